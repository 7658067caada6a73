"""Training curves for other eyes: three methods that anything can implement.

A run keeps its curves itself (``metrics.jsonl`` of each stage). Who wants them elsewhere gives a
:class:`Tracker`; what it does cannot change or stop the training. Nothing leaves the machine unless
a tracker takes it.

    with tracked(TensorBoardTracker(folder)):
        pipe.fit(...)

Examples
--------
>>> class Printed:
...     def begin(self, stage, settings): pass
...     def log(self, stage, values, step): print(stage, step, values["loss"])
...     def close(self): print("closed")
>>> with tracked(Printed()):
...     tell("trunk", {"step": 10, "loss": 0.5})
trunk 10 0.5
closed
"""

from __future__ import annotations

import contextlib
import logging
import numbers
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from neurodiff.core.errors import UsageError, suggest

_log = logging.getLogger("neurodiff")
_CURRENT: ContextVar[tuple[Tracker, ...]] = ContextVar("neurodiff trackers", default=())


@runtime_checkable
class Tracker(Protocol):
    """What takes the curves of a training."""

    def begin(self, stage: str, settings: Mapping[str, Any]) -> None:
        """A stage begins; its settings as plain values."""
        ...

    def log(self, stage: str, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step of a stage."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


class TensorBoardTracker:
    """Event files for TensorBoard, one folder a stage.

    Raises
    ------
    UsageError : the package tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UsageError(
                "TensorBoard's event files need the package tensorboard: pip install "
                "'neurodiff[tensorboard]'"
            ) from None
        self._make, self.folder = SummaryWriter, Path(folder)
        self._writers: dict[str, Any] = {}

    def begin(self, stage: str, settings: Mapping[str, Any]) -> None:
        lines = [f"{name}: {value}" for name, value in settings.items()]
        self._writer(stage).add_text("settings", "    " + "\n    ".join(lines))

    def log(self, stage: str, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer(stage).add_scalar(name, value, step)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _writer(self, stage: str) -> Any:
        if stage not in self._writers:
            self._writers[stage] = self._make(str(self.folder / stage))
        return self._writers[stage]


KNOWN = {"tensorboard": TensorBoardTracker}


def tracker_named(name: str, folder: str | Path) -> Tracker:
    """The tracker of a name, writing into a folder; UsageError for an unknown one."""
    if name not in KNOWN:
        raise UsageError(
            f"there is no tracker {name!r}; there are {', '.join(KNOWN)}.{suggest(name, KNOWN)}"
        )
    return KNOWN[name](folder)


@contextlib.contextmanager
def tracked(*trackers: Tracker) -> Iterator[None]:
    """Stages that log within this block tell these trackers too, which are closed at its end."""
    for tracker in trackers:
        if not isinstance(tracker, Tracker):
            raise UsageError(
                f"{type(tracker).__name__} is no tracker; give an object with begin, log and close"
            )
    token = _CURRENT.set((*_CURRENT.get(), *trackers))
    try:
        yield
    finally:
        _CURRENT.reset(token)
        for tracker in trackers:
            _safely(tracker, "close")


def began(stage: str, settings: Mapping[str, Any]) -> None:
    """Tell the trackers that a stage begins."""
    for tracker in _CURRENT.get():
        _safely(tracker, "begin", stage, settings)


def tell(stage: str, values: Mapping[str, Any]) -> None:
    """Tell the trackers a line of a stage's log: its numbers, at its ``step``."""
    if not _CURRENT.get():
        return
    numbers_of = {
        name: float(value)
        for name, value in values.items()
        if name != "step" and isinstance(value, numbers.Real) and not isinstance(value, bool)
    }
    for tracker in _CURRENT.get():
        _safely(tracker, "log", stage, numbers_of, int(values.get("step", 0)))


def _safely(tracker: Tracker, what: str, *given: Any) -> None:
    """A tracker that fails is reported and costs nothing else."""
    try:
        getattr(tracker, what)(*given)
    except Exception as error:
        _log.warning("%s failed in %s (%s); training goes on", type(tracker).__name__, what, error)
