"""Stages of a fit: done once, kept in the run's folder, loaded the next time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.safe_io import load_weights, save_safetensors
from neurodiff.core.training import remove_checkpoints

if TYPE_CHECKING:
    from neurodiff.core.run import Run

State = dict[str, Any]


@dataclasses.dataclass
class Stages:
    """Runs or recalls stages. Without a run nothing is kept.

    ``gates`` collects what each stage measured, in order.
    """

    run: Run | None = None
    progress: Progress = SILENT
    gates: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def do(
        self,
        name: str,
        *,
        settings: Any,
        inputs: list[str],
        version: int,
        fit: Callable[[Path | None, Callable[[dict], None] | None], dict[str, Any]],
        state: Callable[[], State],
        restore: Callable[[State], None],
    ) -> str:
        """Fit, or load what an earlier call fitted.

        Parameters
        ----------
        settings : dataclass or dictionary; with ``inputs`` (hashes) and ``version`` it decides
            whether an earlier result is this one.
        fit : gets the stage's folder and a function that logs metrics; returns what was measured.
        state, restore : the fitted tensors out and in; ``fit`` followed by ``state`` gives what
            ``restore`` takes.

        Returns
        -------
        The stage's hash, an input of the stages that build on it.
        """
        plain = dataclasses.asdict(settings) if dataclasses.is_dataclass(settings) else settings
        if self.run is None:
            self.gates.append({"stage": name, **fit(None, None)})
            return ""
        stage = self.run.stage(name, plain, inputs, version)
        if stage.done:
            self.progress.say(f"{name}: done before, loaded")
            restore(load_weights(stage.path("weights.safetensors")))
        else:
            self.progress.say(f"{name}:")
            measured = fit(stage.folder, stage.log)
            save_safetensors(state(), stage.path("weights.safetensors"))
            remove_checkpoints(stage.folder)
            stage.finish(measured)
        self.gates.append({"stage": name, **stage.metrics})
        return stage.hash
