"""Replay a run from its recipe in a fresh process and folder, and say what came out the same.

What is compared, and when it counts:

    fingerprint   recipe, data and seed hash to the same: always counts
    items         the same keys are there, with the same seeds: always counts
    scores        means of each condition and metric within ``rtol`` and ``atol``: always counts
    bytes         SHA-256 of the files of each stage and item: counts with ``exact`` only, because
                  equal bytes are promised for equal hardware, versions and threads only
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from neurodiff.analysis.benchmark_record import item_files, weights_of
from neurodiff.analysis.benchmark_replay import plan_of
from neurodiff.analysis.benchmark_scores import per_stimulus, tidy_scores
from neurodiff.core.environment import VARIABLES
from neurodiff.core.errors import DataError, NeurodiffError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.provenance import package_version
from neurodiff.core.run import Run
from neurodiff.core.safe_io import write_json

RTOL, ATOL = 1e-3, 1e-6
COLUMNS = ("what", "recorded", "replayed", "verdict", "counts")
SAME, WITHIN, OTHER = "same", "within tolerance", "DIFFERS"
#: What a clean environment keeps of the caller's: where things are, never how to compute.
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT")
KEPT_PREFIXES = ("NEURODIFF_", "XDG_", "CUDA_HOME")

#: What a wheel is built from.
SOURCES = (
    "pyproject.toml", "README.md", "LICENSE", "NOTICE", "neurodiff", "analysis", "datasets",
    "pipelines",
)  # fmt: skip

From = Literal["fit", "reconstruct", "evaluate"]
Runner = Callable[[Sequence[str], Mapping[str, str], Path], "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True, eq=False)
class Verification:
    """What a replay gave.

    Attributes
    ----------
    table : one row a comparison, with the columns `COLUMNS`. folder : of the replayed run.
    seconds : that it took. environment : what the replay ran in, in words.
    """

    table: pd.DataFrame
    folder: Path
    seconds: float
    environment: str
    rtol: float
    atol: float

    @property
    def passed(self) -> bool:
        """Whether nothing that counts differs."""
        return not bool((self.table["counts"] & (self.table["verdict"] == OTHER)).any())

    @property
    def exit_code(self) -> int:
        """0 where the replay agrees, else 1."""
        return 0 if self.passed else 1

    def text(self) -> str:
        """The comparison as lines and the verdict last."""
        lines = [f"replayed in {self.seconds:.0f} s: {self.environment}"]
        for row in self.table.to_dict("records"):
            mark = " " if row["counts"] else "~"
            values = f"{_words(row['recorded'])} | {_words(row['replayed'])}"
            lines.append(f"  {mark} {row['verdict']:<16} {row['what']}: {values}")
        lines.append(
            f"tolerances: relative {self.rtol:g}, absolute {self.atol:g}; lines with ~ do not count"
        )
        lines.append("verified: exit code 0" if self.passed else "the replay differs: exit code 1")
        return "\n".join(lines)


def verify_run(
    run: str | Path | Run,
    *,
    out: str | Path | None = None,
    start: From = "fit",
    rtol: float = RTOL,
    atol: float = ATOL,
    exact: bool = False,
    venv: str | Path | None = None,
    weights: Path | None = None,
    progress: Progress = SILENT,
    runner: Runner | None = None,
) -> Verification:
    """Replay a run and compare.

    Parameters
    ----------
    out : folder of the replay, which must not exist or be empty; else a temporary one, removed.
    start : from where to do it again; "reconstruct" takes the fitted model as it is, "evaluate"
        also the items.
    rtol, atol : of the mean of each condition and metric.
    exact : different bytes count as well.
    venv : a constraints file: the replay runs in a new virtual environment with those versions,
        and with this package installed from a copy of its sources. Options of pip, such as an index
        of your own, are taken from the variable PIP_ARGS, as by the Makefile. Without a file, this
        interpreter starts a new process with a clean environment.
    weights : folder of the networks that the evaluation needs.
    runner : stands in for ``subprocess.run`` in tests.

    Raises
    ------
    UsageError : a run that its recipe alone does not make; a folder that holds something; settings.
    MissingDataError : no run. NeurodiffError : the replay ends with an error, which is shown.
    """
    opened = run if isinstance(run, Run) else Run.open(run)
    if not (rtol >= 0 and atol >= 0):
        raise UsageError(f"tolerances of {rtol} and {atol} were given; give numbers from 0")
    plan = plan_of(opened, weights=weights)
    runner = _run if runner is None else runner
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="neurodiff-verify-") as temporary:
        folder = _empty(Path(out)) if out is not None else Path(temporary)
        python, said = _interpreter(venv, folder, runner, progress)
        content: dict[str, Any] = {"plan": plan, "folder": str(folder.resolve())}
        if start != "fit":
            content["start"] = str(_copied(opened, folder, start))
        write_json(folder / "plan.json", content)
        progress.say(f"replaying {opened.folder.name} from {start}: {said}")
        module = "neurodiff.analysis.benchmark_replay"
        command = [str(python), "-s", "-m", module, str((folder / "plan.json").resolve())]
        done = runner(command, clean_environment(opened, own_code=venv is None), folder)
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            raise NeurodiffError(f"the replay of {opened.folder.name} ended early: {last}")
        place = Path(done.stdout.strip().splitlines()[-1])
        table = compare(opened, Run.open(place), rtol=rtol, atol=atol, exact=exact)
    seconds = time.monotonic() - began
    return Verification(table, place, seconds, said, float(rtol), float(atol))


def compare(
    old: Run, new: Run, *, rtol: float = RTOL, atol: float = ATOL, exact: bool = False
) -> pd.DataFrame:
    """A run beside its replay: one row a comparison, with the columns `COLUMNS`."""
    rows: list[tuple[str, Any, Any, str, bool]] = []

    def add(what: str, a: Any, b: Any, counts: bool = True, verdict: str = "") -> None:
        rows.append((what, a, b, verdict or (SAME if a == b else OTHER), counts))

    add("fingerprint of recipe, data and seed", old.fingerprint, new.fingerprint)
    one, other = (
        table[table["status"] == "done"].set_index("key")
        for table in (old.items_table(), new.items_table())
    )
    shared = one.index.intersection(other.index)
    add("finished items", len(one), len(other))
    add("items of the same key", len(one), len(shared), counts=exact or _model_same(old, new))
    seeds = one.loc[shared, "seed"].astype(object) == other.loc[shared, "seed"].astype(object)
    add("items of the same seed", len(shared), int(seeds.sum()))
    weights = [{(r.part, r.file): r.sha256 for r in weights_of(x).itertuples()} for x in (old, new)]
    equal = sum(weights[0][key] == weights[1].get(key) for key in weights[0])
    add("files of weights with the same bytes", len(weights[0]), equal, counts=exact)
    files = [item_files(x) for x in (old, new)]
    equal = sum(files[0][key] == files[1].get(key) for key in files[0])
    add("items with the same bytes", len(files[0]), equal, counts=exact)
    for what, a, b in _means(old, new):
        close = bool(np.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True))
        verdict = SAME if a == b or (a != a and b != b) else WITHIN if close else OTHER
        add(what, a, b, verdict=verdict)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def clean_environment(run: Run, *, own_code: bool = True) -> dict[str, str]:
    """Variables of the replay: where things are, and those of the run that change numbers.

    Parameters
    ----------
    own_code : the replay imports this very package, also from a folder that is not installed.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT or name.startswith(KEPT_PREFIXES)
    }
    recorded = (run.info.get("environment") or {}).get("variables")
    if recorded is None:  # a run of an earlier version: as the caller has them
        recorded = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    kept |= recorded
    if own_code:
        kept["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    return kept


def _means(old: Run, new: Run) -> list[tuple[str, float, float]]:
    """Means over stimuli of every data set, condition and metric of either run."""
    tables = []
    for run in (old, new):
        table = per_stimulus(tidy_scores(run), by_subject=False)
        keys = ["data", "condition", "metric"]
        tables.append(table.groupby(keys, sort=False)["value"].mean())
    keys = list(dict.fromkeys([*tables[0].index, *tables[1].index]))
    found = []
    for key in keys:
        a, b = (float(table.get(key, np.nan)) for table in tables)
        found.append((f"mean {key[2]} of {key[1]} ({key[0]})", a, b))
    return found


def _model_same(old: Run, new: Run) -> bool:
    """Keys hold the hash of the model: they have to agree where its bytes do."""
    a, b = (dict(zip(t["file"], t["sha256"], strict=True)) for t in map(weights_of, (old, new)))
    return a == b


def _copied(run: Run, folder: Path, start: From) -> Path:
    """A copy of the run without what is to be done again."""
    again = {"scores.csv", "set_scores.csv", "report.html", "report.json"}
    if start == "reconstruct":
        again |= {"items", "items.csv"}

    def skip(place: str, names: list[str]) -> set[str]:
        return again & set(names) if Path(place) == run.folder else set()

    return Path(shutil.copytree(run.folder, folder / run.folder.name, ignore=skip)).resolve()


def _interpreter(
    venv: str | Path | None, folder: Path, runner: Runner, progress: Progress
) -> tuple[Path, str]:
    """The interpreter of the replay and what it runs in, in words."""
    if venv is None:
        text = "a new process of this interpreter, clean environment variables, fresh folder"
        return Path(sys.executable), text
    constraints = Path(venv)
    if not constraints.is_file():
        raise UsageError(f"--venv {constraints} is no file of constraints, such as constraints.txt")
    place = folder / "venv"
    python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    progress.say(f"building a virtual environment from {constraints.name}")
    options = shlex.split(os.environ.get("PIP_ARGS", ""))
    pip = [str(python), "-m", "pip", "install", "-q", *options, "-c", str(constraints.resolve())]
    for command in ([sys.executable, "-m", "venv", str(place)], [*pip, _sources(folder)]):
        done = runner(command, os.environ, folder)
        if done.returncode:
            last = (done.stderr.strip() or "no output").splitlines()[-1]
            raise NeurodiffError(f"the virtual environment was not built: {last}")
    return python, f"a new virtual environment with the versions of {constraints.name}"


def _sources(folder: Path) -> str:
    """What pip is to install: a copy of this package's sources, so that nothing is built among them
    and nothing of an earlier build is taken along; the released package where there are none."""
    source = Path(__file__).resolve().parents[2]
    if not (source / "pyproject.toml").is_file():
        return f"neurodiff=={package_version()}"
    copy = folder / "sources"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        if (source / name).is_dir():
            shutil.copytree(source / name, copy / name, ignore=ignored)
        elif (source / name).is_file():
            copy.mkdir(exist_ok=True)
            shutil.copy2(source / name, copy / name)
    return str(copy)


def _empty(folder: Path) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty; name a new folder for the replay")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made ({error.strerror}); name another") from None
    return folder


def _run(
    command: Sequence[str], environment: Mapping[str, str], folder: Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(command),
        env=dict(environment),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def _words(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
