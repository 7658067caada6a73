"""The CT demo: a simulated archive as DICOM, indexed, fitted, standardized and scored.

    chests -> scanned in several kernels, noise drawn once a scan -> archive of DICOM, hard scans
    among it -> index -> filter fitted on other patients with other pixels -> cohort standardized
    -> agreement with the scans as acquired in the standard, and with the planted truth -> page

Nothing is downloaded. The simulator's kernel change is one linear filter by construction, so the
easy direction checks the chain; the hard directions show what no linear filter brings back.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis import ct_agreement
from neurodiff.analysis.ct_apply import Applied, HowToApply, apply_cohort, result_files
from neurodiff.analysis.ct_cohort import each_case, open_archive
from neurodiff.analysis.ct_qa import CaseChange, change_of
from neurodiff.core.errors import DataError, UsageError, suggest
from neurodiff.core.progress import Progress
from neurodiff.core.run import Run
from neurodiff.core.seeds import item_seed
from neurodiff.datasets.ct_headers import SeriesFacts
from neurodiff.datasets.ct_series import CTSeries, read_series
from neurodiff.datasets.simulated.ct_archive import (
    MODEL,
    VENDOR,
    SimulatedHeader,
    write_simulated_series,
)
from neurodiff.datasets.simulated.scanners import (
    KernelChange,
    SimulatedLung,
    imitate_iterative,
    kernel_library,
    simulated_lung,
    simulated_scan,
)
from neurodiff.metrics.agreement import Agreement
from neurodiff.metrics.ct_scores import agatston, emphysema_index, perc15
from neurodiff.pipelines.ct_standardizer import CTStandardizer

EASY = "sharp to soft"
LIBRARY_ENTRY = "toshiba_fc51_fc13"
SECRET = "the demo's patients do not exist"


@dataclass(frozen=True, kw_only=True)
class CTDemoSize:
    """How much is simulated; pixels of the fit and of the test differ on purpose."""

    fitted: int
    tested: int
    slices: int
    fit_pixels: int
    test_pixels: int
    squares: int
    bootstraps: int


SIZES = {
    "demo": CTDemoSize(fitted=3, tested=10, slices=8, fit_pixels=320, test_pixels=288,
                       squares=240, bootstraps=1000),
    "tiny": CTDemoSize(fitted=1, tested=2, slices=3, fit_pixels=176, test_pixels=160,
                       squares=24, bootstraps=100),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Direction:
    """One conversion scored against its target: agreement, RMSE in the body (HU), warnings."""

    name: str
    before: Agreement | None
    after: Agreement | None
    rmse: tuple[float, float]
    said: tuple[str, ...] = ()
    refused: str = ""


@dataclass
class CTOutcome:
    """All that the page is made from."""

    run: Run
    size: CTDemoSize
    standardizer: CTStandardizer
    applied: Applied
    again: Applied
    directions: list[Direction] = field(default_factory=list)
    scores: pd.DataFrame = field(default_factory=pd.DataFrame)
    changes: list[CaseChange] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    expected_refusals: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def run_ct_demo(out: str | Path, seed: int = 0, size: str = "demo") -> str:
    """Run the demo in the folder ``out``; returns what to tell the user.

    Raises
    ------
    UsageError : an unknown size, or a folder that holds something else.
    """
    if size not in SIZES:
        raise UsageError(f"there is no size {size!r}.{suggest(size, SIZES)}")
    progress = Progress.to_stdout(every=15)
    run = Run.create(
        out,
        {"name": f"ct_{size}", "pipeline": "ct-linear", "size": asdict(SIZES[size])},
        {"data": "simulated chests", "simulated": True, "kernel change": LIBRARY_ENTRY},
        command=sys.argv,
        seed=seed,
    )
    page = run.stage("report", {"seed": seed}, [run.fingerprint], version=1)
    if page.done and run.report_path.is_file():
        return f"done before, nothing repeated\n{_closing(run, page.metrics)}"
    progress.say(f"run folder: {run.folder} (interrupt at any time; the same command goes on)")
    outcome = standardize_simulated(run, SIZES[size], seed, progress)

    from neurodiff.analysis.ct_demo_page import write_demo_page

    findings = write_demo_page(outcome)
    run.touch()
    page.finish({"findings": findings, "seconds": outcome.seconds})
    return _closing(run, page.metrics)


def standardize_simulated(run: Run, size: CTDemoSize, seed: int, progress: Progress) -> CTOutcome:
    """Everything up to the scores."""
    seconds: dict[str, float] = {}
    began = time.monotonic()

    def clock(part: str) -> None:
        nonlocal began
        seconds[part] = time.monotonic() - began
        began = time.monotonic()

    folder = run.folder / "work"
    progress.say("simulating chests and writing them as DICOM")
    fit_chests = [
        _chest(seed, f"fit {k}", size.slices, size.fit_pixels) for k in range(size.fitted)
    ]
    chests = [_chest(seed, f"test {k}", size.slices, size.test_pixels) for k in range(size.tested)]
    changes = demo_kernels()
    fit_scans = [simulated_scan(c, changes, seed=item(seed, "noise", c.seed)) for c in fit_chests]
    scans = [simulated_scan(c, changes, seed=item(seed, "noise", c.seed)) for c in chests]
    for number, (chest, scan) in enumerate(zip(fit_chests, fit_scans, strict=True)):
        for series, kernel in ((1, "SHARP"), (2, "SOFT")):
            _write(folder / "pairs" / f"{number}" / kernel, scan[kernel], chest,
                   SimulatedHeader(patient=900 + number, series=series, kernel=kernel))  # fmt: skip
    for number, (chest, scan) in enumerate(zip(chests, scans, strict=True)):
        for series, kernel in ((1, "SHARP"), (2, "SOFT")):
            _write(folder / "archive" / f"person {number}" / kernel, scan[kernel], chest,
                   SimulatedHeader(patient=number, series=series, kernel=kernel))  # fmt: skip
    refusals = _hard_scans(folder / "archive", scans[0]["SHARP"], chests[0])
    clock("simulation")

    progress.say("fitting sharp to soft on other patients")
    pairs = [
        tuple(read_series(folder / "pairs" / f"{k}" / kernel) for kernel in ("SHARP", "SOFT"))
        for k in range(size.fitted)
    ]
    made = CTStandardizer().fit(pairs)  # type: ignore[arg-type]  # two series each
    made.save_pretrained(folder / "mapping")
    clock("fit")

    key = folder / "secret"
    key.write_text(SECRET, encoding="utf-8")
    how = HowToApply(identity="deidentify")
    place = (folder / "archive", folder / "standardized", folder / "mapping", how)
    applied = apply_cohort(*place, key_file=key, progress=progress)
    clock("apply")
    again = apply_cohort(*place, key_file=key)
    clock("apply again")
    outcome = CTOutcome(run, size, made, applied, again, seconds=seconds)
    outcome.expected_refusals = refusals
    outcome.leaks = leaks(folder / "standardized")
    outcome.changes, order = _changes(folder, key, progress)
    outcome.scores = _scores(outcome.changes, [chests[k] for k in order])
    clock("scores")
    for direction in _directions(outcome, chests, scans, fit_chests, fit_scans, seed):
        progress.say(f"  {direction.name}: {_words(direction)}")
        outcome.directions.append(direction)
    clock("agreement")
    return outcome


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


def leaks(folder: Path) -> list[str]:
    """Files of results whose name or content holds an identifier of a simulated patient."""
    secrets = (b"SIM-", b"Simulated^Person", b"19500101", b"20200101", b"person ")
    found = []
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder)).encode()
        content = path.read_bytes() if path.is_file() else b""
        if any(secret in name or secret in content for secret in secrets):
            found.append(str(path.relative_to(folder)))
    return found


def item(seed: int, what: str, which: object) -> int:
    """Seed of one draw."""
    return item_seed(seed, subject=str(which), stimulus=what, stage="ct demo")


def scans_of(scans: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Scans as a file holds them: whole HU."""
    return [{kernel: np.rint(hu) for kernel, hu in scan.items()} for scan in scans]


def _chest(seed: int, name: str, slices: int, pixels: int) -> SimulatedLung:
    return simulated_lung(item(seed, "chest", name), slices=slices, size=pixels)


def _write(folder: Path, hu: np.ndarray, chest: SimulatedLung, header: SimulatedHeader) -> None:
    write_simulated_series(folder, hu, chest.spacing, header, padding=chest.padding)


def _hard_scans(root: Path, hu: np.ndarray, chest: SimulatedLung) -> int:
    """Scans that must not be standardized, each for a reason of its own; how many there are."""
    headers = {
        "other vendor": SimulatedHeader(
            patient=800, vendor="GE MEDICAL SYSTEMS", kernel="STANDARD"
        ),
        "no kernel": SimulatedHeader(patient=801, kernel=None),
        "iterative": SimulatedHeader(patient=802, iterative="AIDR 3D"),
        "thick": SimulatedHeader(patient=803, thickness_mm=5.0),
        "unknown kernel": SimulatedHeader(patient=804, kernel="BONE"),
    }
    # two patients in one folder, whose slices lie side by side
    for name, header in headers.items():
        shared = "mixed" if name in ("iterative", "thick") else name
        _write(root / shared, hu, chest, header)
    twice = SimulatedHeader(patient=805)
    write_simulated_series(root / "two as one", hu, chest.spacing, twice, prefix="a")
    write_simulated_series(root / "two as one", hu + 9, chest.spacing, twice, prefix="b")
    cut = write_simulated_series(root / "cut", hu, chest.spacing, SimulatedHeader(patient=806))
    cut[0].write_bytes(cut[0].read_bytes()[:-5000])
    mri = SimulatedHeader(patient=807, modality="MR")
    write_simulated_series(root / "mri", hu, chest.spacing, mri)  # left out by the index
    return len(headers) + 2


def _changes(folder: Path, key: Path, progress: Progress) -> tuple[list[CaseChange], list[int]]:
    """Standardized scans beside their source and reference, and whose chest each is."""
    from neurodiff.analysis.ct_cohort import read_key

    index = folder / "standardized.index.parquet"
    archive = open_archive(folder / "archive", index=index, key=read_key(key))
    records = result_files(folder / "standardized")
    chosen = [
        case
        for case in archive.cases
        if records.get(case.scan, {}).get("report", {}).get("status") == "mapped"
    ]
    order: list[int] = []

    def work(case: Any) -> CaseChange:
        home = case.files[0].parent.parent
        before = case.read()
        after = read_series(folder / "standardized" / case.scan).hu
        reference = read_series(home / "SOFT")
        report = records[case.scan]["report"]
        change = change_of(case.scan, before, after, reference, report)
        order.append(int(home.name.split()[-1]))
        return change

    found, failed = each_case(chosen, work, step="compare", progress=progress)
    if len(failed):
        raise DataError(f"a standardized scan cannot be compared: {failed['reason'].iloc[0]}")
    return list(found.values()), order


def _scores(changes: list[CaseChange], chests: list[SimulatedLung]) -> pd.DataFrame:
    """Clinical scores of each scan before, after, as acquired in the standard, and planted."""
    rows = []
    for change, chest in zip(changes, chests, strict=True):
        spacing = (chest.thickness_mm, *chest.spacing)
        truth = {
            "emphysema index": 100 * chest.truth["low_attenuation_share"],
            "15th percentile": chest.truth["percentile_15"],
            "Agatston-like": chest.truth["agatston"],
        }
        rows += [(change.scan, "truth", name, value) for name, value in truth.items()]
        for version in ("before", "after", "reference"):
            hu = change.arrays[version]
            values = {
                "emphysema index": emphysema_index(hu, chest.lung),
                "15th percentile": perc15(hu, chest.lung),
                "Agatston-like": agatston(hu, chest.heart, spacing, kvp=120.0).score,
            }
            rows += [(change.scan, version, name, value) for name, value in values.items()]
    return pd.DataFrame(rows, columns=["scan", "version", "score", "value"])


def _directions(
    outcome: CTOutcome,
    chests: list[SimulatedLung],
    scans: list[dict[str, np.ndarray]],
    fit_chests: list[SimulatedLung],
    fit_scans: list[dict[str, np.ndarray]],
    seed: int,
) -> Any:
    """Yield the easy direction, as it went through the files, and the hard ones."""
    size = outcome.size
    arrays = {c.scan: c.arrays for c in outcome.changes}
    padding = {scan: a["padding"] for scan, a in arrays.items()}
    spacing = outcome.changes[0].spacing
    soft = {scan: a["reference"] for scan, a in arrays.items()}
    places = ct_agreement.squares(soft, padding, most=size.squares)
    versions = [{s: a[name] for s, a in arrays.items()} for name in ("before", "after")]
    said = tuple(dict.fromkeys(w for c in outcome.changes for w in c.report["warnings"]))
    score = _Scorer(places, padding, spacing, seed, size.bootstraps)
    yield score(EASY, versions[0], versions[1], soft, said)

    fit_rounded, rounded = scans_of(fit_scans), scans_of(scans)
    few = dict(enumerate(rounded))
    few_padding = {k: chest.padding for k, chest in enumerate(chests)}
    named = {str(k): scan["SOFT"] for k, scan in few.items()}
    places = ct_agreement.squares(
        named, {str(k): p for k, p in few_padding.items()}, most=size.squares
    )
    score = _Scorer(
        places, {str(k): p for k, p in few_padding.items()}, spacing, seed, size.bootstraps
    )
    fits = list(zip(fit_chests, fit_rounded, strict=True))
    for name, source, target in (
        ("soft to sharp", "SOFT", "SHARP"),
        ("smooth to sharp: information is gone", "SMOOTH", "SHARP"),
    ):
        made = CTStandardizer().fit(
            [(_series(s[source], c, source), _series(s[target], c, target)) for c, s in fits]
        )
        yield _converted(name, made, source, target, chests, rounded, score)
    name = "sharp at a quarter of the dose to soft"
    noisy = [
        np.rint(
            simulated_scan(c, {"SHARP": None}, seed=item(seed, "low", c.seed), dose=0.25)["SHARP"]
        )
        for c in chests
    ]
    low = [{**scan, "SHARP": hu} for scan, hu in zip(rounded, noisy, strict=True)]
    yield _converted(name, outcome.standardizer, "SHARP", "SOFT", chests, low, score)
    name = "sharp to soft with iterative reconstruction"
    smooth = [{**s, "SOFT": np.rint(imitate_iterative(s["SOFT"], strength=0.5))} for s in rounded]
    fit_smooth = [imitate_iterative(s["SOFT"], strength=0.5) for s in fit_rounded]
    made = CTStandardizer().fit(
        [
            (_series(s["SHARP"], c, "SHARP"), _series(hu, c, "SOFT", "imitated"))
            for (c, s), hu in zip(fits, fit_smooth, strict=True)
        ]
    )
    yield _converted(name, made, "SHARP", "SOFT", chests, smooth, score)


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


def _converted(
    name: str,
    made: CTStandardizer,
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
            done = made.apply(_series(scan[source], chest, source))
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


def _words(one: Direction) -> str:
    if one.after is None or one.before is None:
        return f"refused: {one.refused}"
    a, b = (x.classes.set_index("feature_class").loc["all", "ccc"] for x in (one.before, one.after))
    return f"CCC {a:.3f} before, {b:.3f} after; RMSE {one.rmse[0]:.1f} and {one.rmse[1]:.1f} HU"


def _closing(run: Run, measured: dict[str, Any]) -> str:
    return "\n".join([*measured.get("findings", []), f"report: {run.report_path}"])
