"""What every test gets: shape checks at run time, one thread, no network, and the real data.

On several workers (``-n``) a file's tests stay together, so that what a file builds once is built
once, and the files that train something start first, so that none of them ends alone.

The import hook has to be in place before the first import of a checked package, and the thread
counts before numpy and torch start their pools: both happen here, at import.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    MPLBACKEND="Agg",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
)

import jaxtyping
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Functions of arrays: a shape that differs from its annotation fails the test. `core` and
# `datasets` are left out, because they meet wrong input on purpose and answer it with errors
# of their own; `bridges.ridge` is, because scikit-learn's contract wants its constructor to
# accept anything and to complain in `fit`.
CHECKED_PACKAGES = [
    "neurodiff.bridges.prior",
    "neurodiff.diffusion",
    "neurodiff.geometry",
    "neurodiff.metrics",
    "neurodiff.models",
]

#: the fit whose run several files ask for
TINY_FIT = [
    *("fit", "mind3d_tiny", "--data", "simulated_tiny"),
    *("-s", "tokenizer.training.steps=20", "-s", "mesh.threshold=0.15"),
]

jaxtyping.install_import_hook(CHECKED_PACKAGES, "beartype.beartype")


def _shared_data() -> Path:
    return Path(os.environ.get("NEURODIFF_SHARED_DATA") or REPOSITORY.parent / "shared" / "data")


def _without_shared_data() -> str:
    """Why a test that needs the small real data cannot run; empty where it can."""
    if _shared_data().is_dir():
        return ""
    return "the small real data is not here; set NEURODIFF_SHARED_DATA to its folder"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the small real data sets; skips where it is absent."""
    reason = _without_shared_data()
    if reason:
        pytest.skip(reason)
    return _shared_data()


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def session_tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One temporary folder for the whole session, for what is costly to make and only read."""
    return tmp_path_factory.mktemp("session")


def _made_once(place: Path, make: Callable[[Path], None]) -> Path:
    """A folder that one worker makes and the others wait for; nobody changes it afterwards."""
    with open(place.with_name(f"{place.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            making = place.with_name(f"{place.name}.making")
            shutil.rmtree(making, ignore_errors=True)
            make(making)
            making.rename(place)
    return place


def _command(*arguments: Any) -> str:
    """What a command of neurodiff prints; it must succeed."""
    from typer.testing import CliRunner

    from neurodiff.cli import app

    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="neurodiff")
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that copies a run of `TINY_FIT` into a folder, and returns the copy.

    The run is fitted once for all workers, and decoded and scored once where ``decoded=True``. What
    the fit printed stands beside the copy, in ``printed.txt``.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def fit(place: Path) -> None:
        printed = _command(*TINY_FIT, "--out", place)
        (place / "printed.txt").write_text(printed, encoding="utf-8")

    def decode(place: Path) -> None:
        folder = copy(place)
        _command("reconstruct", folder)
        _command("evaluate", folder)

    def copy(out: Path, *, decoded: bool = False) -> Path:
        fitted = _made_once(shared / "tiny-fitted", fit)
        source = _made_once(shared / "tiny-decoded", decode) if decoded else fitted
        shutil.copytree(source, out, dirs_exist_ok=True)
        return next(out.glob("mind3d_tiny-*"))

    return copy


@pytest.fixture
def without_shape_checks() -> Iterator[None]:
    """Switch the shape checks off, for a test of how a function itself answers wrong arrays."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out whole files, in the order of collection; another ``--dist`` is left as it is.

    The default, ``load``, hands out ever smaller shares, the last of two tests each: near the end
    the models of a module are fitted by every worker.
    """
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # else by the number of tests
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files first in a worker; skip tests marked ``shared_data`` where that data is absent."""
    if hasattr(config, "workerinput"):
        slow: dict[Path, int] = {}
        for item in items:
            slow[item.path] = slow.get(item.path, 0) + bool(item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])  # stable: files stay whole
    reason = _without_shared_data()
    if not reason:
        return
    for item in items:
        if item.get_closest_marker("shared_data"):
            item.add_marker(pytest.mark.skip(reason=reason))
