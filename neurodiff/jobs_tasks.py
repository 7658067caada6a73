"""What a batch can do with an item: the protocol of a task, and the list of those there are.

A worker loads a task's state once (`prepare`) and then does its items one by one (`do`). A name in
a manifest stands for one of the tasks listed here and for nothing else: a manifest is a file, and a
file must not choose what is imported.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from neurodiff.core.errors import DataError, UsageError, suggest
from neurodiff.core.run import Item, Run, fingerprint
from neurodiff.core.seeds import numpy_generator

Place = Callable[[Path], Path]  # where a folder is to be read: itself, or its copy on a local disk


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which items are asked for: None means every one; ``samples`` of each."""

    subjects: Collection[str] | None = None
    stimuli: Collection[str] | None = None
    samples: int = 1
    met: tuple[dict[str, None], dict[str, None]] = field(
        default_factory=lambda: ({}, {}), repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UsageError(f"samples is {self.samples}; expected at least 1")

    def require_known(self) -> None:
        """UsageError for a name that is asked for and that no item has, after all were asked for by
        `wants`: without it a misspelt one of several would be left out silently."""
        for kind, asked, known in zip(
            ("subject", "stimulus"), (self.subjects, self.stimuli), self.met, strict=True
        ):
            if unknown := sorted(set(asked or ()) - set(known)):
                there = list(known)
                more = f" and {len(there) - 8} more" if len(there) > 8 else ""
                raise UsageError(
                    f"there is no {kind} {unknown[0]!r} to do; there are "
                    f"{', '.join(there[:8]) or 'none'}{more}.{suggest(unknown[0], there)}"
                )

    def require_one_sample(self, task: str) -> None:
        """UsageError where several samples are asked of a task whose items have one."""
        if self.samples != 1:
            raise UsageError(f"samples is {self.samples}; an item of {task} has one sample")

    def wants(self, subject: object, stimulus: object) -> bool:
        """Whether the item of this subject and stimulus is asked for."""
        self.met[0][str(subject)] = self.met[1][str(stimulus)] = None
        return (self.subjects is None or str(subject) in self.subjects) and (
            self.stimuli is None or str(stimulus) in self.stimuli
        )


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What a task plans: items with what finds them again, its settings, digests of its inputs."""

    items: Sequence[tuple[Item, Mapping[str, Any]]]
    settings: Mapping[str, Any]
    digests: Mapping[str, str] = field(default_factory=dict)


class Task(Protocol):
    """A kind of item. ``settings`` are plain, and stand in the manifest.

    A task that gains by doing several items at once also has ``do_many(state, items, folders,
    extras)``, which returns a record an item, and the setting ``together``.
    """

    name: str

    def plan(self, run: Run, settings: Mapping[str, Any], chosen: Selection) -> Planned:
        """The items that are asked for. A key covers everything that a result depends on."""
        ...

    def prepare(self, run: Run, settings: Mapping[str, Any], place: Place) -> Any:
        """What a worker holds for all its items: models, recordings."""
        ...

    def do(
        self, state: Any, item: Item, folder: Path, extra: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Write an item's files into an empty folder; returns what ``done.json`` records besides.

        Noise comes from ``item.seed`` or the run's seed and the item's names alone.
        """
        ...


class Rehearsal:
    """Cheap items that behave like real ones, to try a cluster before hours of work on it.

    Settings: ``items`` (60), ``seconds`` an item (0.01), ``files`` of ``values`` numbers each (3,
    1000), ``fail`` and ``die``: stimuli whose item raises an error or kills its process.
    """

    name = "rehearsal"
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "items": 60,
        "seconds": 0.01,
        "files": 3,
        "values": 1000,
        "fail": [],
        "die": [],
    }

    def plan(self, run: Run, settings: Mapping[str, Any], chosen: Selection) -> Planned:
        unknown = set(settings) - set(self.DEFAULTS)
        if unknown:
            raise UsageError(
                f"rehearsal has no setting {', '.join(sorted(unknown))}; it has "
                f"{', '.join(self.DEFAULTS)}.{suggest(min(unknown), self.DEFAULTS)}"
            )
        full = {**self.DEFAULTS, **settings}
        for name in ("items", "files", "values", "seconds"):
            least, value = (1, full[name]) if name == "files" else (0, full[name])
            known = int | float if name == "seconds" else int
            if isinstance(value, bool) or not isinstance(value, known) or not value >= least:
                raise UsageError(f"{name} is {value!r}; give a number from {least}")
        for name in ("fail", "die"):
            full[name] = [full[name]] if isinstance(full[name], str) else list(full[name] or ())
        of_content = fingerprint({name: full[name] for name in ("files", "values")})
        names = [("rehearsal", f"item-{k:05d}") for k in range(int(full["items"]))]
        items = [
            (run.item(self.name, subject, stimulus, sample, of_content), {})
            for subject, stimulus in names
            if chosen.wants(subject, stimulus)
            for sample in range(chosen.samples)
        ]
        return Planned(items=items, settings=full)

    def prepare(self, run: Run, settings: Mapping[str, Any], place: Place) -> Any:
        return dict(settings)

    def do(
        self, state: Any, item: Item, folder: Path, extra: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        if item.stimulus in state["die"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if item.stimulus in state["fail"]:
            raise DataError(f"the item of {item.stimulus} was asked to fail")
        generator, digest = numpy_generator(item.seed), hashlib.sha256()
        for k in range(int(state["files"])):
            values = generator.standard_normal(int(state["values"])).astype("<f4")
            digest.update(values.tobytes())
            (folder / f"part-{k}.bin").write_bytes(values.tobytes())
            if state["seconds"]:
                time.sleep(float(state["seconds"]) / max(1, int(state["files"])))
        return {"noise": digest.hexdigest(), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES", "")}


#: name -> where the task is; imported when it is asked for
TASKS = {
    "reconstruct": "neurodiff.jobs_decoding:Reconstruct",
    "attribute": "neurodiff.jobs_attribution:Attribute",
    "encode": "neurodiff.jobs_scans:Encode",
    "evaluate": "neurodiff.jobs_scores:Evaluate",
    "rehearsal": "neurodiff.jobs_tasks:Rehearsal",
}


def task_of(name: str) -> Task:
    """The task of that name.

    Raises
    ------
    UsageError : there is none.

    Examples
    --------
    >>> task_of("rehearsal").name
    'rehearsal'
    """
    if name not in TASKS:
        raise UsageError(
            f"there is no task {name!r}; expected {', '.join(TASKS)}.{suggest(name, TASKS)}"
        )
    module, _, attribute = TASKS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)()
