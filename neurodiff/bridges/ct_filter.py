"""The radial filter that turns one CT reconstruction kernel into another.

Two reconstructions of the same raw data differ by one linear filter, noise included: the radial
transfer ratio H(f) over line pairs per centimetre. From pairs it is the Wiener (cross-spectrum)
estimate::

    H(f) = sum Re(T S*) / sum |S|^2          coherence(f) = |sum T S*|^2 / (sum |S|^2 sum |T|^2)

with the sums over slices and over the ring of each bin, S and T the transforms of the windowed
source and target slices about their means. Where coherence is low the target holds what the source
does not, and no linear filter brings it back.

References
----------
Ohkubo et al. 2011 and Gallardo-Estrella et al. 2016 for the ratio of frequency contents; Bendat and
Piersol, Random Data, for the standard error of a transfer function.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.radial_gain import (
    apply_gain,
    check_slices,
    check_spacing,
    continue_into,
    nyquist,
    radial_frequency,
)

Estimate = Literal["wiener", "power"]
Hold = Literal["band", "smooth"]

#: below this frequency, lp/cm, a filter leaves an image as it is: mean HU, organs, emphysema
LOCKED = 0.5
_OVERLAP = 2.25  # neighbouring coefficients of a Hann-windowed slice that share one measurement


@dataclass(frozen=True, kw_only=True, eq=False)
class RadialFilter:
    """A gain over radial frequency and how well it is known.

    Attributes
    ----------
    frequency : (bins,) lp/cm, ascending from 0.
    gain : (bins,) factor there; linear between, held beyond the last.
    coherence : (bins,) from 0 to 1, the share of the target's power that the source explains; NaN
        where it was not measured (filters from phantoms and libraries).
    error : (bins,) standard error of the gain; NaN where it was not measured.
    slices : slice pairs behind it; 0 for filters that were not fitted to pairs.
    source : where it comes from, in words.

    Examples
    --------
    >>> soft = RadialFilter.from_gain([0.0, 5.0, 10.0], [1.0, 0.5, 0.0])
    >>> float(soft.at(2.5)), float(soft.then(soft).at(5.0))
    (0.75, 0.25)
    """

    frequency: np.ndarray
    gain: np.ndarray
    coherence: np.ndarray
    error: np.ndarray
    slices: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("frequency", "gain", "coherence", "error"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        f = self.frequency
        if f.ndim != 1 or len(f) < 2 or any(len(a) != len(f) for a in self._curves()):
            raise DataError(
                f"a filter's curves have lengths {[len(np.atleast_1d(a)) for a in self._curves()]} "
                f"over {f.shape} frequencies; expected one value each at 2 or more"
            )
        if not (np.isfinite(f).all() and np.isfinite(self.gain).all() and f[0] >= 0):
            raise DataError("a filter's frequencies and gains must be finite, from 0 lp/cm up")
        if np.any(np.diff(f) <= 0):
            raise DataError("a filter's frequencies must ascend")

    @classmethod
    def from_gain(cls, frequency: Any, gain: Any, *, source: str = "") -> RadialFilter:
        """A filter of known gain, coherence and error unmeasured."""
        unknown = np.full(np.shape(frequency), np.nan)
        return cls(frequency=frequency, gain=gain, coherence=unknown, error=unknown, source=source)

    @classmethod
    def from_dict(cls, values: Any) -> RadialFilter:
        """A filter from ``to_dict``'s mapping; DataError where keys or numbers are not right."""
        try:
            count = len(values["frequency"])
            curves = {
                name: [np.nan if v is None else float(v) for v in values.get(name, [None] * count)]
                for name in ("coherence", "error")
            }
            return cls(
                frequency=[float(v) for v in values["frequency"]],
                gain=[float(v) for v in values["gain"]],
                slices=int(values.get("slices", 0)),
                source=str(values.get("source", "")),
                **curves,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"this is no filter ({error}); expected lists frequency (lp/cm) and gain"
            ) from None
        except ValueError as error:
            raise DataError(f"this is no filter: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain lists; None for what was not measured."""

        def plain(curve: np.ndarray) -> list[float | None]:
            return [float(value) if np.isfinite(value) else None for value in curve]

        return {
            "frequency": plain(self.frequency),
            "gain": plain(self.gain),
            "coherence": plain(self.coherence),
            "error": plain(self.error),
            "slices": self.slices,
            "source": self.source,
        }

    def at(self, frequency: Any) -> np.ndarray:
        """Gain at frequencies (any shape), lp/cm."""
        return np.asarray(np.interp(frequency, self.frequency, self.gain))

    def apply(
        self,
        hu: Any,
        spacing: tuple[float, float],
        padding: np.ndarray | None = None,
        *,
        workers: int = 2,
    ) -> np.ndarray:
        """Filtered slices: see :func:`neurodiff.core.radial_gain.apply_gain`."""
        return apply_gain(hu, spacing, self.frequency, self.gain, padding=padding, workers=workers)

    def locked(self, below: float = LOCKED, hold: Hold = "band") -> RadialFilter:
        """The same filter with the slow part of an image kept.

        Parameters
        ----------
        below : lp/cm; 0 leaves the filter as it is.
        hold : "band": gain 1 up to ``below``, reached from a fifth above it, so that nothing below
            changes at all. "smooth": gain 1 at 0 alone, the fit from ``below`` on and a cosine
            between, which has no step in frequency and no tail of centimetres at strong edges.
        """
        if hold not in ("band", "smooth"):
            raise UsageError(f"hold is {hold!r}; expected 'band' or 'smooth'")
        if below <= 0:
            return self
        if hold == "smooth":
            f = np.union1d(self.frequency, np.linspace(0, below, 33))
            share = 0.5 - 0.5 * np.cos(np.pi * np.clip(f / below, 0, 1))
        else:
            f = np.union1d(self.frequency, [0.0, below, 1.2 * below])
            share = np.clip((f - below) / (0.2 * below), 0, 1)
        return self._on(f, 1 + share * (self.at(f) - 1))

    def then(self, other: RadialFilter) -> RadialFilter:
        """The filter of this one followed by another: gains multiply, the lower coherence stays."""
        f = np.union1d(self.frequency, other.frequency)
        known = np.fmin(
            np.interp(f, self.frequency, self.coherence),
            np.interp(f, other.frequency, other.coherence),
        )
        both = self._on(f, self.at(f) * other.at(f))
        return replace(both, coherence=known, error=np.full(len(f), np.nan))

    def limit(self, coherence: float = 0.5) -> float:
        """Frequency, lp/cm, up to which the coherence stays at ``coherence`` or above.

        Infinity where it stays there over the whole range, or where coherence was not measured.
        """
        # one noisy bin among good ones is no limit, two are; what was not measured is none
        middle = _median3(np.where(np.isnan(self.coherence), 1.0, self.coherence))
        below = np.flatnonzero(middle < coherence)
        return float(self.frequency[below[0]]) if len(below) else float("inf")

    def sharpens(self, by: float = 1.05) -> bool:
        """Whether the gain exceeds ``by`` somewhere: more than the noise of a fit."""
        return bool(np.any(_median3(self.gain) > by))

    def _curves(self) -> list[np.ndarray]:
        return [self.gain, self.coherence, self.error]

    def _on(self, f: np.ndarray, gain: np.ndarray) -> RadialFilter:
        return replace(
            self,
            frequency=f,
            gain=gain,
            coherence=np.interp(f, self.frequency, self.coherence),
            error=np.interp(f, self.frequency, self.error),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossSpectra:
    """Sums over slices and over the ring of each bin; float64 (bins,). They add up over series."""

    edges: np.ndarray  # (bins + 1,) lp/cm
    source: np.ndarray  # sum |S|^2
    target: np.ndarray  # sum |T|^2
    cross: np.ndarray  # sum T S*, complex
    weighted: np.ndarray  # sum |S|^2 f, which places a bin where its power is
    count: np.ndarray  # coefficients
    slices: int

    def __add__(self, other: CrossSpectra) -> CrossSpectra:
        if not np.array_equal(self.edges, other.edges):
            raise UsageError("spectra of different bins do not add; give both the same edges")
        sums = {
            name: getattr(self, name) + getattr(other, name)
            for name in ("source", "target", "cross", "weighted", "count", "slices")
        }
        return CrossSpectra(edges=self.edges, **sums)


def fit_filter(
    source: Any,
    target: Any,
    spacing: tuple[float, float],
    *,
    padding: np.ndarray | None = None,
    bins: int = 96,
    estimate: Estimate = "wiener",
    lock: float = LOCKED,
    hold: Hold = "band",
) -> RadialFilter:
    """Filter from slice pairs of one spacing.

    Parameters
    ----------
    source, target : (slices, rows, columns), HU, of the same raw data at the same positions.
    spacing : (row_mm, column_mm).
    padding : bool alike; True where either was not measured.
    bins : rings between 0 and the highest frequency of the slices' corners.
    estimate : "wiener" minimises the squared error; "power" is sqrt(sum |T|^2 / sum |S|^2), which
        keeps the target's noise spectrum and equals the former where coherence is 1.
    lock, hold : lp/cm below which the image is kept, and how: see `RadialFilter.locked`.

    Raises
    ------
    DataError : shapes, spacing or values that are not right, or a source without any texture.
    """
    edges = bin_edges([spacing], bins)
    spectra = cross_spectra(source, target, spacing, edges=edges, padding=padding)
    return filter_from_spectra(spectra, estimate=estimate, lock=lock, hold=hold)


def bin_edges(spacings: list[tuple[float, float]], bins: int = 96) -> np.ndarray:
    """Edges (bins + 1,) of equal rings that hold every frequency of slices of these spacings."""
    if bins < 4:
        raise UsageError(f"{bins} bins are too few for a filter; give at least 4")
    highest = max(np.hypot(5 / row, 5 / column) for row, column in map(check_spacing, spacings))
    return np.linspace(0, highest * (1 + 1e-9), bins + 1)


def cross_spectra(
    source: Any,
    target: Any,
    spacing: tuple[float, float],
    *,
    edges: np.ndarray,
    padding: np.ndarray | None = None,
) -> CrossSpectra:
    """Spectra of Hann-windowed slice pairs, summed over rings; see :func:`fit_filter`."""
    from scipy.fft import rfft2

    source, target = check_slices(source, "the source"), check_slices(target, "the target")
    if source.shape != target.shape:
        raise DataError(
            f"the source has shape {source.shape} and the target {target.shape}; pairs are the "
            "same slices on the same grid"
        )
    if min(source.shape[1:]) < 16:
        raise DataError(f"slices of {source.shape[1:]} pixels are too small; give 16 x 16 or more")
    if padding is not None and np.shape(padding) != source.shape:
        raise DataError(f"padding has shape {np.shape(padding)}; expected {source.shape}")
    radius = radial_frequency(source.shape[1:], spacing)
    ring = np.digitize(radius, edges).ravel() - 1
    # all but the first and last column of the half plane stand for two coefficients
    weight = np.full(radius.shape, 2.0)
    weight[:, 0] = 1
    if source.shape[2] % 2 == 0:
        weight[:, -1] = 1
    window = np.multiply.outer(*(_hann(size) for size in source.shape[1:]))
    bins = len(edges) - 1

    def summed(values: np.ndarray) -> np.ndarray:
        return np.bincount(ring, (values * weight).ravel(), minlength=bins)[:bins]

    sums = {name: np.zeros(bins) for name in ("source", "target", "weighted", "real", "imaginary")}
    for index in range(len(source)):
        outside = None if padding is None else np.asarray(padding[index], bool)
        S, T = (
            rfft2(window * _about_mean(slices[index], outside, window))
            for slices in (source, target)
        )
        power, cross = np.abs(S) ** 2, T * np.conj(S)
        sums["source"] += summed(power)
        sums["target"] += summed(np.abs(T) ** 2)
        sums["weighted"] += summed(power * radius)
        sums["real"] += summed(cross.real)
        sums["imaginary"] += summed(cross.imag)
    return CrossSpectra(
        edges=edges,
        source=sums["source"],
        target=sums["target"],
        cross=sums["real"] + 1j * sums["imaginary"],
        weighted=sums["weighted"],
        count=summed(np.ones(radius.shape)) * len(source),
        slices=len(source),
    )


def filter_from_spectra(
    spectra: CrossSpectra,
    *,
    estimate: Estimate = "wiener",
    lock: float = LOCKED,
    hold: Hold = "band",
) -> RadialFilter:
    """The filter of summed spectra; see :func:`fit_filter`."""
    if estimate not in ("wiener", "power"):
        raise UsageError(f"estimate is {estimate!r}; expected 'wiener' or 'power'")
    total = spectra.source.sum()
    # rings whose power is rounding noise of float32 say nothing about a ratio
    used = (spectra.count > 0) & (spectra.source > 1e-13 * total) & (spectra.weighted > 0)
    if total <= 0 or used.sum() < 2:
        raise DataError("the source slices are uniform, so no filter can be fitted to them")
    source, target = spectra.source[used], spectra.target[used]
    cross, count = spectra.cross[used], spectra.count[used]
    with np.errstate(divide="ignore", invalid="ignore"):
        coherence = np.where(target > 0, np.abs(cross) ** 2 / (source * target), 0).clip(0, 1)
    wiener = cross.real / source
    gain = wiener if estimate == "wiener" else np.sqrt(target / source)
    # sqrt((1 - c) / (2 n c)) |H| with |H|^2 = c T / S; real data count n is half the coefficients
    error = np.sqrt((1 - coherence) * (target / source) / np.maximum(count / _OVERLAP, 1))
    f = spectra.weighted[used] / source
    found = RadialFilter(
        frequency=np.concatenate([[0.0], f]),
        gain=np.concatenate([[1.0], gain]),  # H(0) = 1: the mean is kept
        coherence=np.concatenate([coherence[:1], coherence]),
        error=np.concatenate([[0.0], error]),
        slices=spectra.slices,
        source=f"{estimate} fit of {spectra.slices} slice pairs",
    )
    return found.locked(lock, hold)


def gaussian_filter(sigma_mm: float, *, highest: float, bins: int = 256) -> RadialFilter:
    """Blur by a Gaussian of this SD: the plainest softer kernel, and the fits' closed form."""
    if not 0 < sigma_mm < 50:
        raise UsageError(f"sigma is {sigma_mm:g} mm; give a positive width below 50")
    f = np.linspace(0, highest, bins)
    gain = np.exp(-2 * (np.pi * sigma_mm * f / 10) ** 2)
    return RadialFilter.from_gain(f, gain, source=f"Gaussian of {sigma_mm:g} mm")


def fitted_range(spacing: tuple[float, float], fitted: list[tuple[float, float]]) -> str:
    """Empty where a spacing lies within 5 % of those fitted, else a sentence."""
    row, column = check_spacing(spacing)
    sides = [side for pair in fitted for side in check_spacing(pair)]
    if not sides or (
        min(sides) / 1.05 <= min(row, column) and max(row, column) <= max(sides) * 1.05
    ):
        return ""
    reach = max(nyquist(pair) for pair in fitted)
    return (
        f"pixels of {row:g} x {column:g} mm lie outside the fitted {min(sides):g} to "
        f"{max(sides):g} mm; the filter is known up to {reach:.1f} lp/cm"
    )


def _hann(size: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(size) + 0.5) / size)).astype(np.float64)


def _about_mean(one: np.ndarray, outside: np.ndarray | None, window: np.ndarray) -> np.ndarray:
    """A slice about its windowed mean, so that the mean's leakage is in no bin."""
    filled = one if outside is None else continue_into(one, outside)
    filled = filled.astype(np.float64)
    return filled - (filled * window).sum() / window.sum()


def _median3(curve: np.ndarray) -> np.ndarray:
    """Running median of three; the ends stay."""
    if len(curve) < 3:
        return curve
    middle = np.median([curve[:-2], curve[1:-1], curve[2:]], axis=0)
    return np.concatenate([curve[:1], middle, curve[-1:]])
