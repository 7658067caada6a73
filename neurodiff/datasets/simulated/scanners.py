"""What a scanner's kernel, dose, slice thickness and iterative reconstruction do to CT slices.

Works on images: two reconstructions of the same raw data differ by a filter that signal and noise
pass alike, so noise is drawn once a scan and filtered by each kernel. Kernel changes come from a
library of measured ratios (``ct_kernels.yaml``, with its sources) and from random mixtures of their
logarithms. A re-projection of finished images would count their blur and noise twice.

A simulated scan imitates the steps named here and no others: no contrast phase, no beam hardening,
no change of kVp, no other vendor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurodiff.core.errors import DataError, UsageError, suggest
from neurodiff.core.radial_gain import apply_gain, check_slices, check_spacing, radial_frequency
from neurodiff.core.safe_io import read_yaml
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.datasets.simulated.chest_ct import SimulatedLung, simulated_lung

__all__ = [
    "KernelChange",
    "SimulatedLung",
    "SimulatedPair",
    "draw_kernel_change",
    "imitate_iterative",
    "kernel_library",
    "local_noise",
    "lower_dose",
    "noise_field",
    "simulated_lung",
    "simulated_pair",
    "simulated_scan",
    "slice_profiles",
]

WATER = 0.0192  # attenuation of water per mm at the energy of a chest CT
LIBRARY = Path(__file__).with_name("ct_kernels.yaml")


@dataclass(frozen=True, kw_only=True, eq=False)
class KernelChange:
    """A ratio of two kernels' transfer functions over radial frequency, lp/cm.

    ``coherence`` is that of the fit, like ``frequency``, or None; ``measured`` is False for random
    mixtures; ``iterative`` names the iterative reconstruction of
    the target's side, so that a filter is only the linear part of the change.
    """

    name: str
    frequency: np.ndarray
    gain: np.ndarray
    source_kernel: str = ""
    target_kernel: str = ""
    vendor: str = ""
    model: str = ""
    iterative: str = ""
    measured: bool = True
    coherence: Any = None
    source: str = ""

    def apply(
        self, hu: Any, spacing: tuple[float, float], padding: np.ndarray | None = None
    ) -> np.ndarray:
        """Slices (slices, rows, columns) behind this change, padding restored."""
        return apply_gain(hu, spacing, self.frequency, self.gain, padding=padding)


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedPair:
    """Two reconstructions of one simulated scan, float32 (slices, rows, columns) in HU.

    ``linear`` is False where iterative reconstruction was imitated on one side.
    """

    source: np.ndarray
    target: np.ndarray
    spacing: tuple[float, float]
    padding: np.ndarray | None
    linear: bool
    facts: dict[str, Any]


def kernel_library(path: Path = LIBRARY) -> dict[str, KernelChange]:
    """The measured kernel changes by name; DataError where the file is not a library."""
    changes = {}
    for entry in _entries(path, "kernels", ("name", "frequency", "gain", "from", "to", "source")):
        f, gain = (np.asarray(entry[key], np.float64) for key in ("frequency", "gain"))
        if f.ndim != 1 or f.shape != gain.shape or np.any(np.diff(f) <= 0) or np.any(gain <= 0):
            raise DataError(
                f"{path}: {entry['name']} needs ascending frequencies with one gain above 0 each"
            )
        if f[0] != 0 or gain[0] != 1:
            raise DataError(f"{path}: {entry['name']} must begin with gain 1 at 0 lp/cm")
        changes[entry["name"]] = KernelChange(
            name=entry["name"],
            frequency=f,
            gain=gain,
            source_kernel=str(entry["from"]),
            target_kernel=str(entry["to"]),
            vendor=str(entry.get("vendor", "")),
            model=str(entry.get("model", "")),
            iterative=str(entry.get("iterative", "")),
            coherence=_curve(entry.get("coherence"), f, f"{path}: {entry['name']}"),
            source=str(entry["source"]),
        )
    return changes


def slice_profiles(path: Path = LIBRARY) -> dict[str, np.ndarray]:
    """Measured weights of thin slices in a thick one, by name; each sums to 1."""
    entries = _entries(path, "profiles", ("name", "taps", "source"))
    taps = {entry["name"]: np.asarray(entry["taps"], np.float64) for entry in entries}
    return {name: weights / weights.sum() for name, weights in taps.items()}


def draw_kernel_change(
    seed: int, *, leave_out: Iterable[str] = (), spread: float = 0.35, path: Path = LIBRARY
) -> KernelChange:
    """A random softening kernel change near the measured ones.

    The logarithms of two library gains are mixed, raised to a power (0.4 to 1.6 at the default
    spread) and stretched in frequency (within 15 %): interpolation between the measured changes and
    mild extrapolation beyond. The result is a filter to a softer kernel, gain 1 at 0 lp/cm.

    Parameters
    ----------
    seed : of the draw.
    leave_out : library names that may not take part, such as the pair a test is made on.
    spread : width of the powers; 0 draws between the entries alone.
    """
    library = kernel_library(path)
    for name in leave_out:
        if name not in library:
            raise UsageError(f"the library has no {name!r}.{suggest(name, library)}")
    used = [library[name] for name in sorted(set(library) - set(leave_out))]
    if not used:
        raise UsageError("every entry of the library is left out; keep at least one")
    rng = numpy_generator(item_seed(seed, subject="", stimulus="", stage="kernel change"))
    f = np.linspace(0, 12, 97)
    shares = rng.dirichlet(np.ones(len(used)))
    stretch = float(np.exp(rng.uniform(-0.15, 0.15)))
    power = float(np.clip(np.exp(spread * rng.standard_normal()), 0.4, 1.6))
    logs = [np.interp(f * stretch, change.frequency, np.log(change.gain)) for change in used]
    gain = np.exp(power * sum(w * log for w, log in zip(shares, logs, strict=True)))
    return KernelChange(
        name=f"random {seed}",
        frequency=f,
        gain=np.minimum(gain, 1.0),
        measured=False,
        source=f"power {power:.2f} of a mixture of {', '.join(c.name for c in used)}",
    )


def local_noise(
    hu: Any, spacing: tuple[float, float], *, sd: float, views: int = 90, size: int = 128
) -> np.ndarray:
    """Noise SD of each pixel, HU: sqrt of the unfiltered back-projection of exp(line integral).

    Quanta that arrive after a line integral p vary as exp(p) once the logarithm is taken, and a
    pixel gathers the variance of all rays through it. Computed on a coarse grid of ``size`` and
    scaled so that soft tissue (-150 to 150 HU) has the mean SD ``sd``. On four real slices it
    followed the measured SD with a correlation of 0.84 or more in shoulders and abdomen, and no
    better than a constant in one thin-walled slice.

    Returns
    -------
    float32 (slices, rows, columns).
    """
    from scipy.ndimage import zoom
    from skimage.transform import iradon, radon

    hu = check_slices(hu)
    row_mm, column_mm = check_spacing(spacing)
    if not sd > 0:
        raise UsageError(f"the SD in tissue is {sd:g} HU; give a positive one")
    side = max(hu.shape[1] * row_mm, hu.shape[2] * column_mm)
    angles = np.arange(views) * 180.0 / views
    result = np.zeros_like(hu)
    for index, one in enumerate(hu):
        mu = WATER * np.clip(1 + one / 1000, 0, None)
        # a square field of `size` pixels around the slice, whatever its shape and spacing
        scale = [size * row_mm / side, size * column_mm / side]
        small = zoom(mu, scale, order=1, grid_mode=True, mode="nearest")[:size, :size]
        grid = np.zeros((size, size))
        top, left = ((size - n) // 2 for n in small.shape)
        grid[top : top + small.shape[0], left : left + small.shape[1]] = small
        integrals = radon(grid, angles, circle=False) * (side / size)
        variance = iradon(np.exp(integrals), angles, filter_name=None, circle=False)
        start = [(n - size) // 2 for n in variance.shape]
        variance = variance[start[0] : start[0] + size, start[1] : start[1] + size]
        variance = variance[top : top + small.shape[0], left : left + small.shape[1]]
        full = [many / few for many, few in zip(one.shape, variance.shape, strict=True)]
        sigma = np.sqrt(
            np.maximum(zoom(variance, full, order=1, grid_mode=True, mode="nearest"), 0)
        )
        tissue = (one > -150) & (one < 150)
        reference = sigma[tissue] if tissue.any() else sigma
        result[index] = sigma * (sd / reference.mean())
    return result


def noise_field(
    shape: tuple[int, int, int],
    spacing: tuple[float, float],
    *,
    seed: int,
    subject: str = "",
    change: KernelChange | None = None,
    taps: Any = (1.0,),
) -> np.ndarray:
    """Noise of a filtered back-projection: float32 (slices, rows, columns), mean 0, SD 1.

    Its power grows with frequency (the ramp) up to the fall of a sharp kernel from 6 lp/cm on, is
    shaped by ``change``, and hangs together across slices by ``taps``. The SD is that of the
    ensemble before ``change``, so that a softer kernel has the lower noise it should have.
    """
    rng = numpy_generator(item_seed(seed, subject=subject, stimulus="", stage="CT noise"))
    weights = np.asarray(taps, np.float64)
    weights = weights / np.sqrt((weights**2).sum())
    white = rng.standard_normal((shape[0] + len(weights) - 1, *shape[1:]), dtype=np.float32)
    across = sum(w * white[k : k + shape[0]] for k, w in enumerate(weights))
    f = radial_frequency((shape[1], shape[2]), check_spacing(spacing), half=False)
    sharp = np.cos(np.clip((f - 6) / 6, 0, 1) * np.pi / 2) ** 2
    amplitude = np.sqrt(f) * sharp
    amplitude /= np.sqrt((amplitude**2).mean())
    if change is not None:
        amplitude = amplitude * np.interp(f, change.frequency, change.gain)
    # real and even amplitude: the half plane of rfft2 is enough
    from scipy.fft import irfft2, rfft2

    half = amplitude[:, : shape[2] // 2 + 1].astype(np.float32)
    return irfft2(rfft2(across, workers=1) * half, s=shape[1:], workers=1).astype(np.float32)


def lower_dose(
    hu: Any,
    spacing: tuple[float, float],
    fraction: float,
    *,
    sd: float,
    seed: int,
    subject: str = "",
    change: KernelChange | None = None,
    taps: Any = (1.0,),
    padding: np.ndarray | None = None,
) -> np.ndarray:
    """The scan as it would be at a fraction of its dose: noise of variance sd²(1/fraction - 1).

    Parameters
    ----------
    hu : (slices, rows, columns) at full dose.
    fraction : above 0, up to 1; 1 adds nothing.
    sd : noise of the scan in soft tissue before ``change``, HU; local by :func:`local_noise`.
    change : kernel by which the scan was filtered from the sharp one; the noise passes it too.
    """
    hu = check_slices(hu)
    if not 0 < fraction <= 1:
        raise UsageError(f"the dose fraction is {fraction:g}; give a share above 0 and up to 1")
    if fraction == 1:
        return hu.copy()
    sigma = local_noise(hu, spacing, sd=sd) * np.float32(np.sqrt(1 / fraction - 1))
    noise = noise_field(hu.shape, spacing, seed=seed, subject=subject, change=change, taps=taps)
    noisy = hu + sigma * noise
    return noisy if padding is None else np.where(padding, hu, noisy)


def imitate_iterative(hu: Any, *, strength: float = 0.3, sd: float = 30.0) -> np.ndarray:
    """Edge-preserving smoothing (total variation) blended in by ``strength``: not linear.

    An imitation of what iterative reconstruction does to texture, not a reconstruction: ``sd``, HU,
    is the noise that it takes for noise.
    """
    from skimage.restoration import denoise_tv_chambolle

    hu = check_slices(hu)
    if not 0 <= strength <= 1 or not sd > 0:
        raise UsageError(f"strength is {strength:g} and sd {sd:g}; give 0 to 1 and a positive SD")
    smooth = np.stack([denoise_tv_chambolle(one, weight=2 * sd, max_num_iter=40) for one in hu])
    return (hu + strength * (smooth - hu)).astype(np.float32)


def simulated_scan(
    truth: SimulatedLung,
    kernels: Mapping[str, KernelChange | None],
    *,
    seed: int,
    sd: float = 80.0,
    dose: float = 1.0,
    blur_mm: float = 0.35,
) -> dict[str, np.ndarray]:
    """One scan of a chest in several kernels: the noise is drawn once and filtered by each.

    Parameters
    ----------
    truth : the chest.
    kernels : name to its change from the sharp kernel; None is the sharp kernel itself.
    seed : of the noise.
    sd : noise of the sharp kernel in soft tissue at dose 1, HU.
    dose : fraction or multiple of that dose.
    blur_mm : SD of the sharp kernel's own blur.

    Returns
    -------
    float32 (slices, rows, columns) for each name, padding at -1024.
    """
    if not dose > 0 or not blur_mm >= 0:
        raise UsageError(f"dose is {dose:g} and blur {blur_mm:g} mm; give a dose above 0")
    f = np.linspace(0, 20, 201)
    blur = np.exp(-2 * (np.pi * blur_mm * f / 10) ** 2)
    clean = apply_gain(truth.hu, truth.spacing, f, blur, padding=truth.padding)
    sigma = local_noise(truth.hu, truth.spacing, sd=sd) / np.float32(np.sqrt(dose))
    noise = noise_field(truth.hu.shape, truth.spacing, seed=seed, subject=str(truth.seed))
    sharp = np.where(truth.padding, truth.hu, clean + sigma * noise)
    return {
        name: sharp.copy() if change is None else change.apply(sharp, truth.spacing, truth.padding)
        for name, change in kernels.items()
    }


def simulated_pair(
    hu: Any,
    spacing: tuple[float, float],
    change: KernelChange,
    *,
    seed: int,
    padding: np.ndarray | None = None,
    dose: float = 1.0,
    sd: float = 80.0,
    iterative: float = 0.0,
) -> SimulatedPair:
    """A training pair from real or simulated slices of a sharp kernel.

    The target is the scan behind ``change`` at its own dose. The source is the sharp scan, at the
    fraction ``dose`` of it where that is below 1. ``iterative`` (0 to 1) imitates iterative
    reconstruction on the target's side and makes the pair non-linear.
    """
    hu = check_slices(hu)
    target = change.apply(hu, spacing, padding)
    if iterative > 0:
        smooth = imitate_iterative(target, strength=iterative, sd=sd / 3)
        target = smooth if padding is None else np.where(padding, hu, smooth)
    source = lower_dose(hu, spacing, dose, sd=sd, seed=seed, padding=padding)
    facts = {
        "kernel": change.name,
        "kernel_source": change.source,
        "measured": change.measured,
        "dose": dose,
        "iterative": iterative,
        "seed": seed,
        "simulated": True,
    }
    return SimulatedPair(
        source=source,
        target=target,
        spacing=check_spacing(spacing),
        padding=padding,
        linear=not iterative and not change.iterative,
        facts=facts,
    )


def _curve(values: Any, f: np.ndarray, where: str) -> np.ndarray | None:
    if values is None:
        return None
    curve = np.asarray(values, np.float64)
    if curve.shape != f.shape:
        raise DataError(f"{where} has {curve.shape} coherences for {f.shape} frequencies")
    return curve


def _entries(path: Path, kind: str, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    values = read_yaml(path)
    entries = values.get(kind) if isinstance(values, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path} has no list of {kind}; expected a kernel library")
    for entry in entries:
        missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise DataError(f"{path}: an entry of {kind} lacks {', '.join(missing)}")
    return entries
