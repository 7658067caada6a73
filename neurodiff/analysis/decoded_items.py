"""What decoded items of objects and of pictures share: their trial, its values, the last words."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from neurodiff.analysis.sources import Source, trials_of
from neurodiff.core.errors import DataError, NeurodiffError
from neurodiff.core.progress import Progress
from neurodiff.core.recording import Recording
from neurodiff.core.run import Run


class Counts(Protocol):
    """Items that were asked for and that are done, and the first sentence of each failure."""

    @property
    def items(self) -> int: ...

    @property
    def done(self) -> int: ...

    @property
    def failures(self) -> tuple[str, ...]: ...


def recording_to_decode(
    run: Run, source: Source, progress: Progress, *, is_own: bool, root: Path | None
) -> Recording:
    """The test trials of the run's own data set, or every trial of another one.

    A ``root`` that was given for the run's own data is where they are from now on.
    """
    recording, _ = source.open(progress)
    if not is_own:
        return recording
    test = trials_of(recording, "test")
    if root is not None:
        run.info["data"] = {**run.info["data"], "root": source.root}
    return test


def closing(found: Counts, run: Run) -> str:
    """What was decoded and where it is.

    Raises
    ------
    NeurodiffError : some items failed (exit code 1); the others are done.
    """
    if found.failures:
        raise NeurodiffError(
            f"{found.items - found.done} of {found.items} items failed, first: "
            f"{found.failures[0]}; the others are done: mend the data and start the same command "
            "again"
        )
    return f"{found} in {run.folder / 'items'}"


def facts_of_trial(row: Any, source: Source, simulated: bool, **more: Any) -> dict[str, Any]:
    """What an item says of its trial: what was shown, ``more``, and where it comes from."""
    return {
        **{name: str(row[name]) for name in ("subject", "stimulus", "split")},
        **{name: row[name] for name in ("session", "run", "repeat")},
        **more,
        "data": source.plain(),
        "simulated": simulated,
    }


def trial_hash(recording: Recording, trial: int) -> str:
    """SHA-256 of a trial's values, which are read and checked here.

    Raises
    ------
    DataError : NaN or infinity.
    """
    values = np.ascontiguousarray(recording.data[[trial]], dtype="<f4")
    if not np.isfinite(values).all():
        stimulus = recording.trials["stimulus"].iloc[trial]
        raise DataError(
            f"trial {trial} (stimulus {stimulus!r}) holds NaN or infinity; repair or drop it"
        )
    return hashlib.sha256(repr(values.shape).encode() + values.data).hexdigest()


def unreadable(folder: Path, error: Exception) -> DataError:
    """The error of an item whose files are not those of an item."""
    return DataError(
        f"{folder} is not a readable item ({type(error).__name__}: {error}); remove the folder "
        "and run `neurodiff reconstruct` again"
    )
