"""What a run knows about itself, gathered as plain JSON: the record that reports show and compare.

A record has the parts of `PARTS`. What a run does not know is absent or says "not recorded": it is
never guessed. ``circumstances`` (command, times, memory) differ between equal runs and are compared
for information only.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd

from neurodiff.analysis.benchmark_data import Opened, data_facts
from neurodiff.analysis.benchmark_scores import summary_numbers, tidy_scores
from neurodiff.analysis.kinds import pipeline_of_run
from neurodiff.core.atomic import plain
from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.core.run import Run
from neurodiff.core.safe_io import read_json, sha256_of
from neurodiff.core.seeds import item_seed

FORMAT = "neurodiff-record-1"
PARTS = (
    "identity",
    "settings",
    "data",
    "weights",
    "versions",
    "environment",
    "seeds",
    "items",
    "scores",
    "circumstances",
)
NOT_RECORDED = "not recorded"
FITTED = "fitted by this run"
SEED_RULE = (
    "first 63 bits of SHA-256 of (run seed, subject, stimulus, sample, stage): neither batch nor "
    "order nor shard changes an item's noise"
)


def record_of(run: Run, opened: Opened | str | None = None) -> dict[str, Any]:
    """The record of a run; with ``opened`` (of `open_run_data`) the trials of its data are counted.

    Raises
    ------
    DataError : a file of the run is broken.
    """
    info, inputs = run.info, run.inputs
    revision = info.get("git") or {}
    around = info.get("environment") or {}
    table = run.items_table()
    return plain(
        {
            "format": FORMAT,
            "identity": {
                "name": run.folder.name,
                "pipeline": pipeline_of_run(run.folder),
                "recipe": run.recipe.get("name", ""),
                "recipe sha256": digest(run.recipe),
                "protocol of the pipeline": run.recipe.get("protocol", ""),
                "fingerprint": run.fingerprint,
                "simulated": bool(inputs.get("simulated")),
                "neurodiff": info.get("neurodiff") or NOT_RECORDED,
                "commit": revision.get("commit") or NOT_RECORDED,
                "changed since the commit": _yes_no(revision.get("dirty")),
                "changes sha256": around.get("changes") or "",
            },
            "settings": run.recipe,
            "data": data_facts(run, opened),
            "weights": weights_of(run).to_dict("records"),
            "versions": info.get("versions") or {},
            "environment": {
                "platform": info.get("platform", NOT_RECORDED),
                "device": info.get("device", NOT_RECORDED),
                "variables that change numbers": around.get("variables", NOT_RECORDED),
                "threads": around.get("threads", NOT_RECORDED),
                "processor": around.get("processor", NOT_RECORDED),
                "accelerator": around.get("accelerator") or NOT_RECORDED,
                "deterministic algorithms": around.get("deterministic") or NOT_RECORDED,
                "packages": around.get("packages", NOT_RECORDED),
                "packages sha256": around.get("lock", NOT_RECORDED),
            },
            "seeds": seeds_of(run, table),
            "items": items_of(run, table),
            "scores": summary_numbers(tidy_scores(run)),
            "circumstances": {
                "command": " ".join(info.get("command") or []),
                "created": info.get("created", ""),
                "wall time, s": info.get("wall_s"),
                "peak memory, MB": info.get("peak_memory_mb"),
                "energy": info.get("energy", NOT_RECORDED),
            },
        }
    )


def digest(value: Any) -> str:
    """SHA-256 of plain values; the order of keys does not matter."""
    text = json.dumps(plain(value, nan=True), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def weights_of(run: Run) -> pd.DataFrame:
    """Every file of weights that the numbers depend on: part, source, file, bytes, sha256, licence.

    Fitted parts are named with the hash of their stage. Networks that only measure are "of the
    evaluation".
    """
    rows: list[dict[str, Any]] = []

    def add(part: str, source: str, file: str, size: Any, sha256: Any, licence: str) -> None:
        row = {"part": part, "source": source, "file": file, "bytes": size, "sha256": sha256}
        rows.append(row | {"licence": licence})

    for folder in sorted((run.folder / "stages").glob("*")):
        try:
            done = read_json(folder / "done.json")
        except DataError:
            continue
        for name, stated in sorted(done.get("files", {}).items()):
            if name.endswith((".safetensors", ".npz", ".npy", ".pt")):
                add(folder.name, FITTED, name, stated["size"], stated["sha256"], "as the data")
    for path in sorted((run.folder / "model").rglob("*")):
        if path.suffix in (".safetensors", ".npz", ".npy", ".bin"):
            name = path.relative_to(run.folder).as_posix()
            hashed = sha256_of(path)
            add(path.parent.name, FITTED, name, path.stat().st_size, hashed, "as the data")
    given = run.inputs.get("networks") or {}
    for name, what in given.items() if isinstance(given, dict) else ():
        add(str(name), "given by the user", "", None, _hash_in(what), NOT_RECORDED)
    for k, hashed in enumerate(run.inputs.get("weights") or []):
        add(f"start {k + 1}", "given by the user", "", None, hashed, NOT_RECORDED)
    for name, what in (run.info.get("networks") or {}).items():
        label = what.get("name") if isinstance(what, dict) else None
        part = f"{name}: {label}" if label else str(name)
        add(part, "network of the evaluation, given by the user", "", None, _hash_in(what), "")
    columns = ["part", "source", "file", "bytes", "sha256", "licence"]
    table = pd.DataFrame(rows, columns=columns)
    table["licence"] = table["licence"].replace("", NOT_RECORDED)
    return table


def seeds_of(run: Run, table: pd.DataFrame | None = None) -> dict[str, Any]:
    """The run's seed, the rule, and whether the recorded seeds of the items follow it."""
    table = run.items_table() if table is None else table
    done = table[table["status"] == "done"]
    wrong = 0
    for row in done.to_dict("records"):
        expected = item_seed(
            run.seed,
            subject=str(row["subject"]),
            stimulus=str(row["stimulus"]),
            sample=int(row["sample"]),
            stage=str(row["task"]),
        )
        wrong += row["seed"] == row["seed"] and int(row["seed"]) != expected
    return {
        "run seed": run.seed,
        "rule": SEED_RULE,
        "items whose seed follows the rule": f"{len(done) - wrong} of {len(done)}",
        "items with another seed": wrong,
    }


def items_of(run: Run, table: pd.DataFrame | None = None) -> dict[str, Any]:
    """Counts by task, failures with their reasons, and one hash over the files of all items."""
    table = run.items_table() if table is None else table
    files = item_files(run, table)
    tasks = {
        str(task): {str(k): int(v) for k, v in part["status"].value_counts().items()}
        for task, part in table.groupby("task", sort=True)
    }
    failed = table[table["status"] == "failed"]
    return {
        "counts": tasks,
        "failed": [f"{s}: {e}" for s, e in failed[["stimulus", "error"]].to_numpy()],
        "sha256 of all files": digest(files) if files else "",
    }


def item_files(run: Run, table: pd.DataFrame | None = None) -> dict[str, dict[str, str]]:
    """Key of each finished item -> its files -> SHA-256, as recorded when it was finished."""
    table = run.items_table() if table is None else table
    found = {}
    for key, folder in table.loc[table["status"] == "done", ["key", "folder"]].to_numpy():
        record = read_json(run.folder / Path(folder) / "done.json")
        found[str(key)] = {name: one["sha256"] for name, one in record["files"].items()}
    return dict(sorted(found.items()))


def record_in(path: str | Path) -> dict[str, Any]:
    """The record of a run's folder, or of the only run of a report's JSON.

    A ``report.json`` of another kind of page has no records: its numbers are taken as they are.

    Raises
    ------
    MissingDataError : there is neither.
    DataError : a file that is no report, or one about several runs.
    """
    path = Path(path)
    if path.is_dir():
        return record_of(Run.open(path))
    if not path.is_file():
        raise MissingDataError(f"{path} is neither a run's folder nor a report's JSON")
    numbers = read_json(path)
    if not isinstance(numbers, dict) or not str(numbers.get("format", "")).startswith("neurodiff-"):
        raise DataError(f"{path} is no report of neurodiff; give a run's folder or a report's JSON")
    records = (numbers.get("benchmark") or {}).get("records")
    if records is None:
        return {
            "format": numbers["format"],
            "identity": {"name": path.name},
            "scores": numbers.get("conditions") or {},
            "settings": numbers.get("provenance") or {},
        }
    if len(records) != 1:
        raise DataError(
            f"{path} is about {len(records)} runs ({', '.join(records)}); compare their folders"
        )
    [record] = records.values()
    return record


def _hash_in(what: Any) -> Any:
    if not isinstance(what, dict):
        return what
    found = what.get("sha256", what)
    return json.dumps(found, sort_keys=True) if isinstance(found, dict) else found


def _yes_no(value: Any) -> str:
    return NOT_RECORDED if value is None else "yes" if value else "no"
