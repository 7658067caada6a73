"""From fMRIPrep to trials: series and events in, one file a trial out.

    out/sub-0001/npy_data/<category>/<id>.npy         float32 (frames, 256, 256), the hub's layout
    out/sub-0001/grayordinates/<category>/<id>.npy    float32 (frames, 8921)
    out/sub-0001/trials.csv                           one row a trial
    out/sub-0001/runs/<run>.json                      what the run's trials were made from
    out/sub-0001/prepared.json                        settings, inputs with their hashes, versions
    out/annotations/core_{train,test}_list.txt        the hub's lists

Every file is whole or not there; a run's record is written last. The same command goes on where it
was interrupted, and a folder that was made with other settings is refused.

Order of work: series -> trend, drift and confounds removed -> z-score of each grayordinate -> the
frames of each trial -> flat map (`surface.drawing_weights`). `prepare_zscores` tells whose mean and
SD a z-score takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.core.atomic import atomic_write, write_csv, write_json, write_npy
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.provenance import now, package_version, versions
from neurodiff.core.safe_io import read_csv, read_json, sha256_of
from neurodiff.datasets.fmri_shape_files import read_list
from neurodiff.datasets.fmriprep import find_runs
from neurodiff.datasets.localisers import Localisers, read_localisers
from neurodiff.datasets.prepare_plan import FOLDERS, PrepareSettings, RunPlan, plan_runs
from neurodiff.datasets.prepare_zscores import standardised_run, statistic_runs
from neurodiff.datasets.surface import IMAGE_SIZE, drawing_weights, load_visual_cortex

FORMAT = "neurodiff-prepared-1"
FORMULA = "first frame = ceil((onset + delay - start) / TR - 1e-6)"
TRIALS, RECORD, ROIS = "trials.csv", "prepared.json", "rois.npz"
LISTS = {"train": "core_train_list.txt", "test": "core_test_list.txt"}


@dataclass(frozen=True)
class Prepared:
    """What `prepare` did."""

    out: Path
    trials: int
    subjects: int
    runs: int
    before: int
    outside: int = 0

    def __str__(self) -> str:
        again = f", {self.before} of them done before" if self.before else ""
        left = f"; {self.outside} trials outside their run were left out" if self.outside else ""
        return (
            f"{self.trials} trials of {self.subjects} subject{'s'[: self.subjects > 1]} from "
            f"{self.runs} runs{again}{left}\nopen them with open_dataset('prepared', "
            f"root={str(self.out)!r})"
        )


def prepare(
    fmriprep: str | Path,
    events: str,
    out: str | Path,
    settings: PrepareSettings,
    *,
    subjects: Sequence[str] = (),
    task: str | None = None,
    test_list: str | Path | None = None,
    rois: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Prepared:
    """Cut the trials of every run and write them below ``out``; what is done is not done again.

    Parameters
    ----------
    fmriprep : folder of derivatives.
    events : file, BIDS folder, or path with ``{subject}``, ``{session}``, ``{task}``, ``{run}``.
    subjects, task : which runs; all by default.
    test_list : lines ``<category>/<id>``: these are the test trials. Without one the column
        ``split`` of the events says it, or all are ``train``.
    rois : files of individual areas (see `localisers`); ``{subject}`` is filled in.

    Raises
    ------
    MissingDataError, DataError : files that are missing, broken or contradict each other.
    UsageError : a wrong setting, or a folder that holds trials of other settings.
    """
    out = Path(out)
    tests = None if test_list is None else read_list(Path(test_list), "test")
    split_of = None if tests is None else {(e.synset, e.model) for e in tests}
    found = find_runs(Path(fmriprep), subjects, task)
    plans = {label: plan_runs(runs, events, settings, split_of) for label, runs in found.items()}
    n_trials = sum(len(plan.trials) for part in plans.values() for plan in part)
    if n_trials == 0:
        raise DataError(f"no trial of {events} lies in a run of {fmriprep}")
    labels = {label: subject_label(label) for label in plans}
    extra = {
        label: read_localisers([path.replace("{subject}", label) for path in rois])
        for label in plans
    }
    for label, part in plans.items():
        _refuse_other(out / labels[label], settings, part)
    before = 0
    for label, part in plans.items():
        before += _write_subject(
            out / labels[label], labels[label], part, settings, extra[label], progress
        )
    write_lists(out)
    runs = sum(len(part) for part in plans.values())
    outside = sum(plan.outside for part in plans.values() for plan in part)
    return Prepared(out, n_trials, len(plans), runs, before, outside)


def subject_label(label: str) -> str:
    """``"1"`` and ``"0001"`` are ``sub-0001``, as on the hub; other labels stay as they are."""
    return f"sub-{int(label):04d}" if label.isdecimal() else f"sub-{label}"


def write_lists(out: Path) -> None:
    """The hub's lists, of all prepared subjects; entries that are there already stay.

    Raises
    ------
    DataError : an object would be in both lists.
    """
    entries: dict[str, dict[str, None]] = {}
    for split, name in LISTS.items():
        path = out / "annotations" / name
        known = read_list(path, split) if path.is_file() else []
        entries[split] = dict.fromkeys(f"{e.synset}/{e.model}" for e in known)
    for table in sorted(out.glob(f"sub-*/{TRIALS}")):
        trials = read_csv(table, dtype={"stimulus": str, "folder": str})
        for row in trials.itertuples():
            if row.split in entries and row.repeat == 1:
                entries[row.split].setdefault(f"{row.folder}/{row.stimulus}")
    both = sorted(entries["train"].keys() & entries["test"].keys())
    if both:
        raise DataError(
            f"{both[0]} ({len(both)} in all) is a training and a test object in "
            f"{out / 'annotations'} and the prepared trials; a decoder would be tested on what it "
            "was trained on"
        )
    for split, names in entries.items():
        if names:
            with atomic_write(out / "annotations" / LISTS[split]) as file:
                file.write("".join(f"{name}\n" for name in names).encode())


def _refuse_other(folder: Path, settings: PrepareSettings, plans: list[RunPlan]) -> None:
    """A folder that holds trials of other settings; runs may be added to what is there."""
    path = folder / RECORD
    if not path.is_file():
        if (folder / "npy_data").is_dir() and not (folder / "runs").is_dir():
            raise UsageError(
                f"{folder} holds trials that `neurodiff prepare` did not make; name another --out"
            )
        return
    stored = read_json(path)
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise DataError(f"{path} is no record of `neurodiff prepare`; name another --out")
    own, new = stored.get("settings") or {}, _plain(settings)
    differing = [
        f"{key} (there {own.get(key)!r}, now {value!r})"
        for key, value in new.items()
        if own.get(key) != value
    ]
    if differing:
        raise UsageError(
            f"{folder} holds trials with other {', '.join(differing)}; name another --out, or "
            "remove the folder"
        )


# ----------------------------------------------------------------------------------- writing


def _write_subject(
    folder: Path,
    label: str,
    plans: list[RunPlan],
    settings: PrepareSettings,
    rois: Localisers,
    progress: Progress,
) -> int:
    """Trials, table and record of one subject; returns how many runs were done before."""
    columns, weights, visual = _drawing()
    # written first: it names the settings of whatever an interruption leaves here
    record = {
        "format": FORMAT,
        "settings": _plain(settings),
        "formula": FORMULA,
        "neurodiff": package_version(),
        "versions": versions(),
    }
    if not (folder / RECORD).is_file():
        write_json(folder / RECORD, record)
    outputs = ("maps", "vertices") if settings.keep == "both" else (settings.keep,)
    records, before = [], 0
    for plan in progress.over(plans, f"{label}, runs"):
        identity = _identity(plan, plans, settings)
        known = folder / "runs" / f"{plan.run.name}.json"
        files = [f"{FOLDERS[o]}/{name}" for o in outputs for name in _files(plan.trials)]
        done = _done(known, identity, folder, files)
        if done is not None:
            records.append(done)
            before += 1
            continue
        values = standardised_run(plan, plans, settings, columns)
        for row, name in zip(plan.trials.itertuples(), _files(plan.trials), strict=True):
            part = values[row.first_frame : row.first_frame + plan.frames]
            if "maps" in outputs:
                maps = (weights @ part.T).T.reshape(-1, IMAGE_SIZE, IMAGE_SIZE)
                write_npy(folder / FOLDERS["maps"] / name, maps.astype(np.float32))
            if "vertices" in outputs:
                write_npy(folder / FOLDERS["vertices"] / name, part[:, visual].astype(np.float32))
        done = {
            **identity,
            "inputs": [_input(path) for path in plan.inputs],
            "tr": plan.series.tr,
            "frames_in_run": plan.series.n_frames,
            "trials": len(plan.trials),
            "left_out": plan.outside,
            "sizes": {name: (folder / name).stat().st_size for name in files},
            "time": now(),
        }
        write_json(known, done)
        records.append(done)
    table = pd.concat([_rows(label, plan, outputs[0]) for plan in plans], ignore_index=True)
    write_csv(folder / TRIALS, table)
    if rois.masks:
        with atomic_write(folder / ROIS) as file:
            masks = np.stack(list(rois.masks.values()))
            np.savez_compressed(file, names=np.array([*rois.masks]), masks=masks)
    else:
        (folder / ROIS).unlink(missing_ok=True)  # of an earlier call; the record names none
    inputs = [entry for one in records for entry in one["inputs"]]
    write_json(
        folder / RECORD,
        {
            **record,
            "frames": plans[0].frames,
            "tr": plans[0].series.tr,
            "trials": len(table),
            "runs": [plan.run.name for plan in plans],
            "inputs": inputs,
            "rois": {"files": [_input(Path(path)) for path in rois.files], "names": [*rois.masks]},
            "time": now(),
        },
    )
    return before


def _drawing() -> tuple[np.ndarray, Any, np.ndarray]:
    """Grayordinates that are read, their weights in the flat map, and which of them are visual."""
    weights, cortex = drawing_weights(), load_visual_cortex()
    columns = np.union1d(np.unique(weights.indices), cortex.grayordinates)
    return columns, weights[:, columns], np.searchsorted(columns, cortex.grayordinates)


def _files(trials: pd.DataFrame) -> list[str]:
    """``<folder>/<id>.npy``; a further showing of the same object is ``<id>_rep-2.npy``."""
    return [
        f"{row.folder}/{row.stimulus}{f'_rep-{row.repeat}' if row.repeat > 1 else ''}.npy"
        for row in trials.itertuples()
    ]


def _rows(label: str, plan: RunPlan, output: str) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "path": [f"{label}/{FOLDERS[output]}/{name}" for name in _files(plan.trials)],
            "subject": label,
            "session": plan.run.session or "1",
            "run": plan.run.run,
            "stimulus": plan.trials["stimulus"],
            "folder": plan.trials["folder"],
            "category": plan.trials["category"],
            "repeat": plan.trials["repeat"],
            "split": plan.trials["split"],
            "onset": plan.trials["onset"],
            "first_frame": plan.trials["first_frame"],
            "frames": plan.frames,
        }
    )


def _identity(plan: RunPlan, plans: list[RunPlan], settings: PrepareSettings) -> dict[str, Any]:
    """What decides the trials of a run; a record with another identity is made anew."""
    return {
        "run": plan.run.name,
        "bold": [plan.run.path.name, plan.run.path.stat().st_size],
        "tables": [sha256_of(path) for path in plan.inputs[1:]],
        "statistics": [
            [one.run.path.name, one.run.path.stat().st_size]
            for one in statistic_runs(plan, plans, settings)
        ],
        "events": [
            [name, int(row.first_frame), row.split]
            for name, row in zip(_files(plan.trials), plan.trials.itertuples(), strict=True)
        ],
    }


def _done(known: Path, identity: dict, folder: Path, files: list[str]) -> dict[str, Any] | None:
    """The record of a run whose trials are all there, else None."""
    try:
        record = read_json(known)
    except MissingDataError:
        return None
    if not isinstance(record, dict) or any(record.get(k) != v for k, v in identity.items()):
        return None
    sizes = record.get("sizes") or {}
    whole = set(sizes) == set(files) and all(
        (folder / name).is_file() and (folder / name).stat().st_size == size
        for name, size in sizes.items()
    )
    return record if whole else None


def _input(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _plain(settings: PrepareSettings) -> dict[str, Any]:
    """As JSON gives it back."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(settings).items()
    }
