"""What the CT demo converts and scores: the easy direction, and those with a reason to be hard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from neurodiff.analysis import ct_agreement
from neurodiff.bridges.ct_profile import thicken
from neurodiff.core.errors import DataError
from neurodiff.core.seeds import item_seed
from neurodiff.datasets.ct_headers import SeriesFacts
from neurodiff.datasets.ct_series import CTSeries
from neurodiff.datasets.simulated.ct_archive import MODEL, VENDOR
from neurodiff.datasets.simulated.scanners import (
    KernelChange,
    SimulatedLung,
    imitate_iterative,
    kernel_library,
    simulated_lung,
    simulated_scan,
    slice_profiles,
)
from neurodiff.metrics.agreement import Agreement
from neurodiff.pipelines.ct_standardizer import CTStandardizer, Standardized

if TYPE_CHECKING:
    from neurodiff.analysis.ct_demo import CTOutcome
    from neurodiff.pipelines.ct_networks import DiffusionMode

EASY = "sharp to soft"
LIBRARY_ENTRY = "toshiba_fc51_fc13"
THICK_PROFILE = "philips_1mm_5mm"
THICKNESS = "slices of 1 mm to 5 mm"


@dataclass(frozen=True, kw_only=True, eq=False)
class Direction:
    """One conversion scored against its target: agreement, RMSE in the body (HU), warnings."""

    name: str
    before: Agreement | None
    after: Agreement | None
    rmse: tuple[float, float]
    said: tuple[str, ...] = ()
    refused: str = ""


def directions(
    outcome: CTOutcome,
    chests: list[SimulatedLung],
    scans: list[dict[str, np.ndarray]],
    fits: list[tuple[SimulatedLung, dict[str, np.ndarray]]],
    seed: int,
    network: DiffusionMode | None = None,
) -> Iterator[Direction]:
    """The easy direction, as it went through the files, then the hard ones.

    Parameters
    ----------
    chests, scans : tested patients, and their scans by kernel.
    fits : the same of the patients that filters are fitted on.
    network : of sharp to soft, where one was trained: one more row.
    """
    size, spacing = outcome.size, outcome.changes[0].spacing
    arrays = {c.scan: c.arrays for c in outcome.changes}
    padding = {scan: a["padding"] for scan, a in arrays.items()}
    before, after, soft = (
        {scan: a[name] for scan, a in arrays.items()} for name in ("before", "after", "reference")
    )
    places = ct_agreement.squares(soft, padding, most=size.squares)
    said = tuple(dict.fromkeys(w for c in outcome.changes for w in c.report["warnings"]))
    score = _Scorer(places, padding, spacing, seed, size.bootstraps)
    yield score(EASY, before, after, soft, said)

    rounded = scans_of(scans)
    fits = [(chest, scans_of([scan])[0]) for chest, scan in fits]
    padding = {str(k): chest.padding for k, chest in enumerate(chests)}
    soft = {str(k): scan["SOFT"] for k, scan in enumerate(rounded)}
    places = ct_agreement.squares(soft, padding, most=size.squares)
    score = _Scorer(places, padding, spacing, seed, size.bootstraps)
    if network is not None:

        def drawn(series: CTSeries, scan: str) -> Standardized:
            return network.apply(outcome.standardizer, series, scan=scan, extrapolate=True)

        yield _converted(f"{EASY}, diffusion", drawn, "SHARP", "SOFT", chests, rounded, score)
    for name, source, target in (
        ("soft to sharp", "SOFT", "SHARP"),
        ("smooth to sharp: information is gone", "SMOOTH", "SHARP"),
    ):
        made = CTStandardizer().fit(
            [(_series(s[source], c, source), _series(s[target], c, target)) for c, s in fits]
        )
        yield _converted(name, _through(made), source, target, chests, rounded, score)
    low = [
        simulated_scan(c, {"SHARP": None}, seed=item(seed, "low", c.seed), dose=0.25)
        for c in chests
    ]
    low = [{**scan, **noisy} for scan, noisy in zip(rounded, scans_of(low), strict=True)]
    through = _through(outcome.standardizer)
    name = "sharp at a quarter of the dose to soft"
    yield _converted(name, through, "SHARP", "SOFT", chests, low, score)
    imitated = [{**s, "SOFT": np.rint(imitate_iterative(s["SOFT"], strength=0.5))} for s in rounded]
    made = CTStandardizer().fit(
        [
            (
                _series(s["SHARP"], c, "SHARP"),
                _series(imitate_iterative(s["SOFT"], strength=0.5), c, "SOFT", "imitated"),
            )
            for c, s in fits
        ]
    )
    name = "sharp to soft with iterative reconstruction"
    yield _converted(name, _through(made), "SHARP", "SOFT", chests, imitated, score)
    yield _thinner_to_thicker(outcome, seed)


def _thinner_to_thicker(outcome: CTOutcome, seed: int) -> Direction:
    """Slices of 1 mm to those of 5 mm every 2 mm of the same scan, by the measured slice profile;
    the weights are fitted on another patient."""
    size, taps = outcome.size, slice_profiles()[THICK_PROFILE]
    half, least = len(taps) // 2, 4  # a fit of the weights takes four thick slices
    centres = half + 2 * np.arange(least)
    thin, thick, padding = {}, {}, {}
    facts = SeriesFacts(vendor=VENDOR, model=MODEL, kernel=("SHARP",), thickness_mm=1.0)
    series = {}
    patients = ("fit", *(f"test {k}" for k in range(size.tested)))
    for name in patients:
        pixels = size.fit_pixels if name == "fit" else size.test_pixels
        chest = simulated_lung(
            item(seed, "thick chest", name), slices=int(centres[-1]) + half + 1, size=pixels
        )
        scan = simulated_scan(chest, {"SHARP": None}, seed=item(seed, "thick noise", name))["SHARP"]
        made, outside = thicken(scan, taps, centres, padding=chest.padding)
        thin[name], thick[name], padding[name] = np.rint(scan), np.rint(made), outside
        series[name] = CTSeries.from_array(
            thin[name], spacing=chest.spacing, padding=chest.padding, facts=facts, name="thin"
        )
        spacing = chest.spacing
    target = CTSeries.from_array(
        thick["fit"],
        spacing=series["fit"].spacing,
        step=2.0,
        padding=padding["fit"],
        facts=replace(facts, thickness_mm=5.0),
        name="thick",
    )
    start = np.array([0.0, 0.0, float(half)])
    target = replace(target, stack=replace(target.stack, origins=target.stack.origins + start))
    standard = CTStandardizer().fit_thickness(series["fit"], target, taps=len(taps))
    before, after, said = {}, {}, []
    for name in patients[1:]:
        done = standard.apply(series[name])
        before[name], after[name] = thin[name][centres], done.hu[centres]
        said += done.report["warnings"]
    wanted = {name: thick[name] for name in before}
    masks = {name: padding[name] for name in before}
    places = ct_agreement.squares(wanted, masks, most=size.squares)
    score = _Scorer(places, masks, spacing, seed, size.bootstraps)
    return score(THICKNESS, before, after, wanted, tuple(dict.fromkeys(said)))


@dataclass(frozen=True)
class _Scorer:
    """Scores a conversion on squares that were chosen once."""

    places: list[ct_agreement.Square]
    padding: dict[str, np.ndarray]
    spacing: tuple[float, float]
    seed: int
    samples: int

    def __call__(
        self, name: str, before: Any, after: Any, target: Any, said: tuple[str, ...]
    ) -> Direction:
        tables = [
            ct_agreement.features_of(hu, self.places, self.spacing)
            for hu in (before, after, target)
        ]
        agreements = [
            ct_agreement.agreement(
                table, tables[2], self.places, seed=self.seed, samples=self.samples
            )
            for table in tables[:2]
        ]
        errors = [
            float(
                np.mean([ct_agreement.body_rmse(hu[s], target[s], self.padding[s]) for s in target])
            )
            for hu in (before, after)
        ]
        return Direction(
            name=name,
            before=agreements[0],
            after=agreements[1],
            rmse=(errors[0], errors[1]),
            said=said,
        )


def _through(made: CTStandardizer) -> Callable[[CTSeries, str], Standardized]:
    return lambda series, scan: made.apply(series)


def _converted(
    name: str,
    convert: Callable[[CTSeries, str], Standardized],
    source: str,
    target: str,
    chests: list[SimulatedLung],
    scans: list[dict[str, np.ndarray]],
    score: _Scorer,
) -> Direction:
    """A direction through the standardizer; a refusal is a result too."""
    before, after, wanted, said = {}, {}, {}, []
    for number, (chest, scan) in enumerate(zip(chests, scans, strict=True)):
        try:
            done = convert(_series(scan[source], chest, source), str(number))
        except DataError as error:
            return Direction(
                name=name, before=None, after=None, rmse=(np.nan, np.nan), refused=str(error)
            )
        before[str(number)], after[str(number)] = scan[source], done.hu
        wanted[str(number)] = scan[target]
        said += done.report["warnings"]
    return score(name, before, after, wanted, tuple(dict.fromkeys(said)))


def _series(
    hu: np.ndarray, chest: SimulatedLung, kernel: str, iterative: str | None = None
) -> CTSeries:
    facts = SeriesFacts(
        vendor=VENDOR, model=MODEL, kernel=(kernel,), thickness_mm=1.0, iterative=iterative
    )
    return CTSeries.from_array(
        hu, spacing=chest.spacing, padding=chest.padding, facts=facts, name=kernel.lower()
    )


def demo_kernels() -> dict[str, KernelChange | None]:
    """The demo's kernels as changes from its sharp one.

    SOFT is the measured Toshiba FC51 to FC13 ratio. SMOOTH is made up to lose information: beyond
    3 lp/cm it leaves less than the rounding to whole HU.
    """
    f = np.linspace(0, 12, 121)
    smooth = KernelChange(
        name="made up", frequency=f, gain=np.exp(-((f / 1.1) ** 2)), measured=False
    )
    return {"SHARP": None, "SOFT": kernel_library()[LIBRARY_ENTRY], "SMOOTH": smooth}


def item(seed: int, what: str, which: object) -> int:
    """Seed of one draw."""
    return item_seed(seed, subject=str(which), stimulus=what, stage="ct demo")


def scans_of(scans: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Scans as a file holds them: whole HU."""
    return [{kernel: np.rint(hu) for kernel, hu in scan.items()} for scan in scans]


def in_words(one: Direction) -> str:
    """Agreement before and after, and errors, of one direction; or why it was refused."""
    if one.after is None or one.before is None:
        return f"refused: {one.refused}"
    a, b = (x.classes.set_index("feature_class").loc["all", "ccc"] for x in (one.before, one.after))
    return f"CCC {a:.3f} before, {b:.3f} after; RMSE {one.rmse[0]:.1f} and {one.rmse[1]:.1f} HU"
