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

from neurodiff.analysis.ct_apply import Applied, HowToApply, apply_cohort, result_files
from neurodiff.analysis.ct_cohort import each_case, open_archive
from neurodiff.analysis.ct_demo_directions import (
    LIBRARY_ENTRY,
    Direction,
    demo_kernels,
    directions,
    in_words,
    item,
)
from neurodiff.analysis.ct_qa import CaseChange, change_of
from neurodiff.analysis.demo_steps import closing
from neurodiff.core.errors import DataError, UsageError, suggest
from neurodiff.core.progress import Progress
from neurodiff.core.run import Run
from neurodiff.datasets.ct_series import read_series
from neurodiff.datasets.simulated.ct_archive import (
    SimulatedHeader,
    write_simulated_series,
)
from neurodiff.datasets.simulated.scanners import (
    SimulatedLung,
    simulated_lung,
    simulated_scan,
)
from neurodiff.metrics.ct_scores import agatston, emphysema_index, perc15
from neurodiff.pipelines.ct_standardizer import CTStandardizer

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


def run_ct_demo(
    out: str | Path, seed: int = 0, size: str = "demo", *, diffusion: str | None = None
) -> str:
    """Run the demo in the folder ``out``; returns what to tell the user.

    Parameters
    ----------
    diffusion : a recipe of the diffusion, such as "ct_diffusion_demo", which trains for some ten
        minutes: its row then stands beside the linear one. None leaves it out.

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
        {
            "data": "simulated chests",
            "simulated": True,
            "kernel change": LIBRARY_ENTRY,
            "diffusion": diffusion,
        },
        command=sys.argv,
        seed=seed,
    )
    page = run.stage("report", {"seed": seed}, [run.fingerprint], version=1)
    if page.done and run.report_path.is_file():
        return f"done before, nothing repeated\n{closing(run, page.metrics)}"
    progress.say(f"run folder: {run.folder} (interrupt at any time; the same command goes on)")
    outcome = standardize_simulated(run, SIZES[size], seed, progress, diffusion=diffusion)

    from neurodiff.analysis.ct_demo_page import write_demo_page

    findings = write_demo_page(outcome)
    run.touch()
    page.finish({"findings": findings, "seconds": outcome.seconds})
    return closing(run, page.metrics)


def standardize_simulated(
    run: Run, size: CTDemoSize, seed: int, progress: Progress, *, diffusion: str | None = None
) -> CTOutcome:
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
    network = None
    if diffusion is not None:
        from neurodiff.analysis.ct_diffusion_mode import fit_diffusion
        from neurodiff.pipelines.ct_networks import DiffusionMode

        name = next(iter(made.fits))
        fit_diffusion(pairs, diffusion, folder / "mapping", name, seed=seed, progress=progress)  # type: ignore[arg-type]
        network = DiffusionMode(folder / "mapping", seed)
        clock("training")

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
    fits = list(zip(fit_chests, fit_scans, strict=True))
    for direction in directions(outcome, chests, scans, fits, seed, network):
        progress.say(f"  {direction.name}: {in_words(direction)}")
        outcome.directions.append(direction)
    clock("agreement")
    return outcome


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
        change = change_of(case.scan, before, after, reference, report, keep=True)
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
