"""Where the trials of a run come from: a data set by name, remembered so that it is found again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neurodiff.core.errors import UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.provenance import command_text
from neurodiff.core.recording import Recording
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.opening import (
    MADE_FROM_A_SEED,
    OPENERS,
    VOLUMES,
    find_cards,
    open_recording,
    resolve,
)
from neurodiff.datasets.simulated.opening import simulated_stimuli, study_of
from neurodiff.datasets.simulated.scene_opening import simulated_scene_stimuli
from neurodiff.geometry.bank import ShapeBank

OBJECTS = "simulated_objects"


@dataclass(frozen=True)
class Source:
    """A data set as the command line names it.

    ``restandardise`` is set where trials of fMRI-Shape go through a model of other data: they are
    in units of their own, and each is brought to mean 0 and standard deviation 1.
    """

    data: str
    root: str | None = None
    subject: int | str | None = None
    restandardise: str | None = None

    @classmethod
    def of(
        cls, data: str | None, root: str | Path | None = None, subject: int | str | None = None
    ) -> Source:
        """From command-line options; folders are made absolute, the home folder is ``~``."""
        if data is None:
            known = ", ".join(sorted({*OPENERS, *find_cards()}))
            raise UsageError(
                f"no data set was named; add --data NAME (there are {known}, and the path of a "
                "card of your own), and --root DIR where its files lie"
            )
        is_path = Path(data).suffix in {".yaml", ".yml"} and Path(data).is_file()
        place = None if root is None else _stored(Path(root))
        return cls(_stored(Path(data)) if is_path else data, place, subject)

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> Source:
        """From what `plain` gave."""
        return cls(
            str(value["data"]),
            value.get("root"),
            value.get("subject"),
            value.get("restandardise"),
        )

    def plain(self) -> dict[str, Any]:
        """As JSON holds it; `from_plain` reads it."""
        return asdict(self)

    @property
    def name(self) -> str:
        """The data set's name, or that of its card's file."""
        return Path(self.data).stem if self.data.endswith((".yaml", ".yml")) else self.data

    @property
    def label(self) -> str:
        """The name with the folder's and the subject, for tables and pages."""
        place = "" if self.root is None else f" ({Path(self.root).name})"
        return f"{self.name}{place}{'' if self.subject is None else f', subject {self.subject}'}"

    @property
    def is_there(self) -> bool:
        """Whether the folder of the files, if any, is where it was."""
        return self.root is None or Path(self.root).expanduser().exists()

    @property
    def reader(self) -> str:
        """Name of the reader of its card."""
        return resolve(self._data, self.root or ".")[0]

    @property
    def _data(self) -> str:
        return str(Path(self.data).expanduser()) if self.data.startswith("~") else self.data

    def open(self, progress: Progress = SILENT) -> tuple[Recording, Stimuli]:
        """Recording and stimuli; see `open_recording` for the errors."""
        options: dict[str, Any] = {}
        if self.restandardise is not None:
            options["restandardise"] = self.restandardise
        if self.reader == OBJECTS:
            self._study(progress)
        elif self.reader in MADE_FROM_A_SEED:
            options["progress"] = progress
        return open_recording(self._data, root=self.root, subject=self.subject, **options)

    def stimuli(self) -> Stimuli:
        """The stimuli alone; simulated ones without simulating a recording."""
        if self.reader not in MADE_FROM_A_SEED or self.reader in VOLUMES:
            return self.open()[1]
        options = resolve(self._data)[2]
        make = simulated_stimuli if self.reader == OBJECTS else simulated_scene_stimuli
        return make(options.get("size", "demo"), options.get("seed", 0))

    def bank(self, ids: list[str], progress: Progress = SILENT) -> ShapeBank | None:
        """Shapes as arrays where the data set has them at hand, else None."""
        if self.reader != OBJECTS:
            return None
        return self._study(progress).bank.select(ids)

    def _study(self, progress: Progress) -> Any:
        options = resolve(self._data)[2]
        return study_of(options.get("size", "demo"), options.get("seed", 0), progress=progress)


def chosen_source(
    own: Source | None, data: str | None, root: Path | None, subject: int | str | None
) -> tuple[Source, bool]:
    """The data set to decode, and whether it is the one that the run was fitted on."""
    if own is None:
        return Source.of(data, root, subject), False
    if data is not None:
        given = Source.of(data, root, subject)
        if given.name != own.name or given.root not in (None, own.root):
            return given, False  # other data, or other files in the same layout
    return (
        Source(
            own.data,
            own.root if root is None else Source.of(own.data, root).root,  # it may have moved
            own.subject if subject is None else subject,
        ),
        True,
    )


def trials_of(recording: Recording, name: str) -> Recording:
    """The trials of a split; UsageError tells which splits there are."""
    there = list(dict.fromkeys(recording.trials["split"]))
    if name not in there:
        advice = (
            "name the trials to learn from 'train' in the column split"
            if name == "train"
            else "name some trials 'test' in the column split, or decode other data with --data"
        )
        raise UsageError(f"the recording has no split {name!r} but {', '.join(there)}; {advice}")
    return recording.select((recording.trials["split"] == name).to_numpy())


def _stored(path: Path) -> str:
    return command_text(["", str(path.expanduser().resolve())])[1]
