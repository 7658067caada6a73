"""A run is a folder, and its files are the only truth about what is done.

This module, `run_stages` and `run_items` alone know the names of the files in it::

    run.json       package, source revision, versions, platform, seed, command, time, memory
    recipe.yaml    resolved: every default written out
    inputs.json    fingerprints, sizes and hashes of what went in
    stages/<stage>-<hash>/   weights.safetensors, config.json, metrics.jsonl, done.json
    items/<key[:2]>/<key>/   mesh.glb | image.png | volume.nii.gz, done.json or failed.json
    items.csv      key -> task, subject, stimulus, sample
    scores.csv     one row an item      set_scores.csv (FPD)      report.html   report.json   logs/
    batch/<task>-<digest>/   manifest.jsonl, leases, submissions and packed items (see `jobs`)

Every file is written whole or not at all, so a run can be killed at any time and started again, and
several processes may work on it: two that make the same item write the same content.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from neurodiff.core import provenance
from neurodiff.core.atomic import (
    TEMPORARY_PREFIX,
    atomic_write,
    clock_of,
    plain,
    write_csv,
    write_json,
    write_yaml,
)
from neurodiff.core.environment import environment
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.processes import is_alive, machine
from neurodiff.core.run_identity import differences, fingerprint, slug
from neurodiff.core.run_items import ITEM_COLUMNS, Item, failure_in
from neurodiff.core.run_stages import Stage
from neurodiff.core.safe_io import read_csv, read_json, read_yaml
from neurodiff.core.sealed import (
    DONE,
    Verify,
    is_sealed,
    sealed_record,
)

MODEL = "model"  # folder of the fitted pipeline in a run's
_OWN = {"run.json", "recipe.yaml", "inputs.json", "stages", "items", "items.csv", "scores.csv"}
_OWN |= {"set_scores.csv", "report.html", "report.json", "logs", "batch"}


class Run:
    """The folder of one run; made by :meth:`create`, or found again by :meth:`open`."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.info: dict[str, Any] = _dictionary(self.folder / "run.json")
        self.recipe: dict[str, Any] = _dictionary(self.folder / "recipe.yaml")
        self.inputs: dict[str, Any] = _dictionary(self.folder / "inputs.json")
        for key in ("seed", "fingerprint"):
            if key not in self.info:
                raise DataError(f"{self.folder / 'run.json'} has no {key}; it is not a run of ours")
        self._opened = time.monotonic()
        self._wall_before = float(self.info.get("wall_s") or 0.0)

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        recipe: Mapping[str, Any],
        inputs: Mapping[str, Any],
        *,
        command: str | Sequence[str],
        seed: int,
        device: str = "cpu",
    ) -> Run:
        """Make the folder, or reopen it when it holds the same recipe, inputs and seed.

        Parameters
        ----------
        recipe : resolved settings, as from ``config.dump``.
        inputs : fingerprints, sizes and hashes of data and weights.
        command : what the user typed; home folders are stored as ``~``.

        Raises
        ------
        UsageError : the folder holds another run (the keys that differ are named), or other files.
        """
        folder = Path(folder)
        identity = {"recipe": plain(recipe), "inputs": plain(inputs), "seed": int(seed)}
        if (folder / "run.json").exists():
            run = cls(folder)
            run._refuse_other(identity)
            return run
        if folder.exists():
            strange = sorted(
                path.name
                for path in (folder.iterdir() if folder.is_dir() else [folder])
                if path.name not in _OWN and not path.name.startswith(".")
            )
            if strange:
                raise UsageError(
                    f"{folder} is no run and holds {', '.join(strange[:3])}; name a new folder"
                )
        write_yaml(folder / "recipe.yaml", identity["recipe"])
        write_json(folder / "inputs.json", identity["inputs"])
        # Last, so that a folder with a run.json is complete.
        write_json(
            folder / "run.json",
            {
                "fingerprint": fingerprint(identity),
                "seed": int(seed),
                "command": provenance.command_text(command),
                "created": provenance.now(),
                "neurodiff": provenance.package_version(),
                "git": provenance.git_state(),
                "versions": provenance.versions(),
                "platform": provenance.platform_text(),
                "device": str(device),
                "environment": environment(),
                "wall_s": 0.0,
                "peak_memory_mb": provenance.peak_memory_mb(),
            },
        )
        return cls(folder)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Run:
        """The run in ``folder``.

        Raises
        ------
        MissingDataError : there is no run in it.
        DataError : its files are broken.
        """
        folder = Path(folder)
        if not (folder / "run.json").is_file():
            raise MissingDataError(
                f"{folder} is not a run (it has no run.json); give a folder that `neurodiff fit` "
                "or `neurodiff demo` printed"
            )
        for name in ("recipe.yaml", "inputs.json"):
            if not (folder / name).is_file():
                raise MissingDataError(
                    f"{folder} has a run.json and no {name}: the run was copied in part; copy it "
                    "whole, or fit again"
                )
        return cls(folder)

    @staticmethod
    def folder_name(recipe_name: str, data_name: str, fingerprint: str) -> str:
        """``<recipe>-<data>-<fingerprint>``, with other signs than letters and digits as ``_``."""
        return "-".join(slug(part) for part in (recipe_name, data_name, fingerprint))

    @property
    def seed(self) -> int:
        """Seed of the run, from which those of its items follow."""
        return int(self.info["seed"])

    @property
    def fingerprint(self) -> str:
        """Ten hex digits of recipe, inputs and seed."""
        return str(self.info["fingerprint"])

    def touch(self) -> None:
        """Write the wall time spent so far (over all sessions) and the peak memory."""
        wall = self._wall_before + time.monotonic() - self._opened
        peak = max(provenance.peak_memory_mb(), float(self.info.get("peak_memory_mb") or 0.0))
        self.info |= {"wall_s": round(wall, 1), "peak_memory_mb": peak}
        write_json(self.folder / "run.json", self.info)

    # ------------------------------------------------------------------------ stages and items

    def stage(
        self,
        name: str,
        settings: Mapping[str, Any],
        inputs: Sequence[str] = (),
        version: int = 1,
    ) -> Stage:
        """A fitted part; its hash covers settings, hashes of its inputs, its module's VERSION."""
        return Stage(self.folder / "stages", name, settings, inputs, version)

    def item(
        self, task: str, subject: object, stimulus: object, sample: int, settings_hash: str
    ) -> Item:
        """One result; its key covers everything given here, its seed also the run's seed."""
        return Item(self, task, str(subject), str(stimulus), int(sample), str(settings_hash))

    def plan(self, items: Iterable[Item]) -> None:
        """Add ``items`` to ``items.csv``, so that :meth:`status` counts what is still to do."""
        rows = [item.row() for item in items]
        planned = self._planned()
        table = pd.concat([planned, pd.DataFrame(rows, columns=ITEM_COLUMNS)], ignore_index=True)
        table = table.drop_duplicates("key").sort_values("key", kind="stable")
        if len(table) != len(planned):
            write_csv(self.folder / "items.csv", table)

    def items_table(self) -> pd.DataFrame:
        """One row an item, planned or on disk.

        Columns: key, task, subject, stimulus, sample, settings, status (done, failed, pending),
        seconds, seed, error, folder (below the run's).
        """
        rows: dict[str, dict[str, Any]] = {
            row["key"]: row for row in self._planned().to_dict("records")
        }
        for folder in sorted((self.folder / "items").glob("??/*")):
            if folder.name.startswith("."):
                continue
            row = rows.setdefault(folder.name, {"key": folder.name})
            record = sealed_record(folder) or failure_in(folder)
            if record is not None:
                wanted = (*ITEM_COLUMNS, "seconds", "seed")
                row |= {key: record[key] for key in wanted if key in record}
        for key, row in rows.items():
            folder = self._item_folder(key)
            failure = failure_in(folder)
            if is_sealed(folder, "size"):
                row["status"] = "done"
            else:
                row["status"] = "pending" if failure is None else "failed"
            failed = row["status"] == "failed"
            row["error"] = str(failure.get("error", "")) if failed and failure else ""
            row["folder"] = folder.relative_to(self.folder).as_posix()
        columns = [*ITEM_COLUMNS, "status", "seconds", "seed", "error", "folder"]
        return pd.DataFrame(list(rows.values()), columns=columns)

    def status(self) -> dict[str, Any]:
        """Counts from the files: items, done, failed, pending; stages; scores and report."""
        states = self.items_table()["status"]
        stages = {
            folder.name: is_sealed(folder, "size")
            for folder in sorted((self.folder / "stages").glob("*"))
            if not folder.name.startswith(".")
        }
        return {
            "items": len(states),
            **{state: int((states == state).sum()) for state in ("done", "failed", "pending")},
            "stages": stages,
            "scores": self.scores_path.is_file(),
            "report": self.report_path.is_file(),
        }

    def states(
        self, keys: Iterable[str], *, verify: Verify | Literal["none"] = "none"
    ) -> list[str]:
        """``"done"``, ``"failed"`` or ``"pending"`` of each key, quick for 100,000 of them.

        Each item's own files are asked for by name: a listing of a folder may lag behind on a
        shared file system, and would miss what another machine has just finished.

        Parameters
        ----------
        verify : ``"none"`` believes a ``done.json`` that is there, since it is renamed into place
            last; ``"size"`` and ``"hash"`` also compare the files that it lists.
        """
        items, found = os.fspath(self.folder / "items"), []
        for key in keys:
            folder = f"{items}/{key[:2]}/{key}"
            if _has_content(f"{folder}/{DONE}") and (
                verify == "none" or is_sealed(Path(folder), verify)
            ):
                found.append("done")
            else:
                found.append("failed" if _has_content(f"{folder}/failed.json") else "pending")
        return found

    def remove_dead_writers(self, *, others_older_than_s: float = 3600.0) -> int:
        """Remove what killed writers of items left; how many.

        What a process of this machine left goes as soon as the process is gone. What another
        machine's may still be writing goes when it is old, by the file system's own clock.
        """
        items, removed = self.folder / "items", 0
        if not items.is_dir():
            return 0
        now = clock_of(self.folder)
        for path in items.glob(f"??/{TEMPORARY_PREFIX}*"):
            parts = path.name.removeprefix(TEMPORARY_PREFIX).split("-")
            ours = parts[0] == machine() and len(parts) == 3 and parts[1].isdecimal()
            with contextlib.suppress(OSError):
                if is_alive(int(parts[1])) if ours else _age(path, now) < others_older_than_s:
                    continue
                shutil.rmtree(path)
                removed += 1
        return removed

    def remove_leftovers(self, older_than_s: float = 3600.0) -> int:
        """Remove temporary files that killed processes left; returns how many."""
        removed, before = 0, time.time() - older_than_s
        for path in list(self.folder.rglob(f"{TEMPORARY_PREFIX}*")):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < before:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                    removed += 1
        return removed

    # ------------------------------------------------------------------------ scores and report

    @property
    def scores_path(self) -> Path:
        """``scores.csv``."""
        return self.folder / "scores.csv"

    @property
    def report_path(self) -> Path:
        """``report.html``."""
        return self.folder / "report.html"

    @property
    def logs(self) -> Path:
        """``logs/``, made when asked for."""
        (self.folder / "logs").mkdir(exist_ok=True)
        return self.folder / "logs"

    def write_scores(self, table: pd.DataFrame) -> None:
        """Write ``scores.csv``, one row an item and condition."""
        write_csv(self.scores_path, table)

    def read_scores(self) -> pd.DataFrame:
        """The table of ``scores.csv``; MissingDataError before evaluation."""
        text = {"key": str, "subject": str, "stimulus": str}
        return read_csv(self.scores_path, dtype=text)

    def write_set_scores(self, table: pd.DataFrame) -> None:
        """Write ``set_scores.csv``, one row a score of many items together."""
        write_csv(self.folder / "set_scores.csv", table)

    def read_set_scores(self) -> pd.DataFrame:
        """The table of ``set_scores.csv``; MissingDataError where there is none."""
        return read_csv(self.folder / "set_scores.csv", dtype={"condition": str, "note": str})

    def write_report_html(self, text: str) -> None:
        """Write ``report.html``: the page."""
        with atomic_write(self.report_path) as file:
            file.write(text.encode("utf-8"))

    def write_report_json(self, report: Mapping[str, Any]) -> None:
        """Write ``report.json``: every number of the report."""
        write_json(self.folder / "report.json", report)

    def read_report_json(self) -> dict[str, Any]:
        """Content of ``report.json``."""
        return _dictionary(self.folder / "report.json")

    def __repr__(self) -> str:
        return f"<Run {self.folder.name}, seed {self.seed}, fingerprint {self.fingerprint}>"

    def _refuse_other(self, identity: Mapping[str, Any]) -> None:
        own = {"recipe": self.recipe, "inputs": self.inputs, "seed": self.seed}
        differing = differences(own, identity)
        if differing:
            more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
            raise UsageError(
                f"{self.folder} holds a run with other {', '.join(differing[:5])}{more}; "
                "name another folder, or undo the change"
            )

    def _planned(self) -> pd.DataFrame:
        path = self.folder / "items.csv"
        if not path.is_file():
            return pd.DataFrame(columns=ITEM_COLUMNS)
        text = {column: str for column in ITEM_COLUMNS if column != "sample"}
        return read_csv(path, columns=ITEM_COLUMNS, dtype=text, missing_words=False)

    def _item_folder(self, key: str) -> Path:
        return self.folder / "items" / key[:2] / key


def _has_content(path: str) -> bool:
    try:
        return os.stat(path).st_size > 2
    except OSError:
        return False


def _age(path: Path, now: float) -> float:
    return now - path.stat().st_mtime


def _dictionary(path: Path) -> dict[str, Any]:
    value = read_yaml(path) if path.suffix == ".yaml" else read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path} holds {type(value).__name__}; expected names and values")
    return value
