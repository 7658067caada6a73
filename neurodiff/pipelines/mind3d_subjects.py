"""MinD-3D for several people: input layers, one shared model, and a new person on N trials.

Functions of a `MinD3D` whose shapes are fitted; what they fit is kept in the stages of a run, as
everything else. The layers are described in ``subject_layers``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from neurodiff.core.errors import UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.geometry.bank import ShapeBank
from neurodiff.pipelines.mind3d_fitting import mean_cosine
from neurodiff.pipelines.stages import Stages
from neurodiff.pipelines.subject_layers import (
    SubjectLayers,
    adapt_layer,
    fit_layer,
    joined,
    layers_from_state,
    layers_state,
    training_latents,
)

if TYPE_CHECKING:
    from neurodiff.core.run import Run
    from neurodiff.pipelines.mind3d import MinD3D

VERSION = 1


def fit_subjects(
    pipe: MinD3D,
    recordings: Sequence[Recording],
    bank: ShapeBank,
    *,
    seed: int = 0,
    run: Run | None = None,
    progress: Progress = SILENT,
) -> MinD3D:
    """Fit a layer for each person, then anchor, bridge and adapters on the latents of all.

    Parameters
    ----------
    pipe : its shapes are fitted.
    recordings : training trials, one recording a person, with the same number of frames.
    bank : shapes of all stimuli.

    Raises
    ------
    UsageError : fewer than 2 people, one that is there twice, or other numbers of frames.
    """
    names = [subject_of(recording) for recording in recordings]
    if len(names) < 2 or len(set(names)) < len(names):
        raise UsageError(f"subjects are {', '.join(names)}; give two or more, each once")
    if len({recording.frames for recording in recordings}) > 1:
        raise UsageError("the subjects' trials have different numbers of frames")
    embedding = pipe.embedding
    if embedding is None:
        raise UsageError("the shapes of this MinD3D are not fitted yet: call fit_shapes")
    target = embedding(bank.views)
    fitted: dict = {}
    left_out: dict[str, np.ndarray] = {}

    def fit(folder, log) -> dict:
        cosines = []
        for name, recording in progress.over(
            list(zip(names, recordings, strict=True)), "input layers"
        ):
            goal = target[bank.rows(list(recording.trials["stimulus"]))]
            fitted[name], left_out[name] = fit_layer(recording, goal)
            cosines.append(mean_cosine(left_out[name], goal))
        return {"subjects": len(names), "leave-one-out cosine, mean": float(np.mean(cosines))}

    def state() -> dict[str, torch.Tensor]:
        _, arrays = layers_state(SubjectLayers(fitted, tuple(names)))
        arrays |= {f"{name}.left_out": left_out[name] for name in names}
        return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}

    def restore(tensors: dict[str, torch.Tensor]) -> None:
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        facts = {
            "shared": names,
            "layers": {
                name: {
                    "space_name": recording.space.name,
                    "space_fingerprint": recording.space.fingerprint(),
                    "trials": recording.n_trials,
                    "how": "own trials",
                }
                for name, recording in zip(names, recordings, strict=True)
            },
        }
        fitted.update(layers_from_state(facts, arrays).layers)
        left_out.update({name: arrays[f"{name}.left_out"] for name in names})

    stages = Stages(run, progress)
    stages.do(
        "subject-layers",
        settings={"embedding": pipe.recipe.embedding},
        inputs=[*(one.fingerprint() for one in recordings), bank.fingerprint(), str(seed)],
        version=VERSION,
        fit=fit,
        state=state,
        restore=restore,
    )
    layers = SubjectLayers(fitted, tuple(names))
    latents = [
        training_latents(fitted[name], recording, left_out[name])
        for name, recording in zip(names, recordings, strict=True)
    ]
    together = joined(layers, list(recordings), latents)
    pipe.fit_brain(together, bank, seed=seed, run=run, progress=progress)
    pipe.gates = [*stages.gates, *pipe.gates]
    assert pipe.brain is not None
    pipe.brain = replace(pipe.brain, layers=layers)
    return pipe


def adapt_subject(
    pipe: MinD3D,
    subject: str,
    recording: Recording | None,
    bank: ShapeBank | None = None,
    *,
    group: bool = True,
) -> MinD3D:
    """Fit a new person's input layer, and nothing else, on the trials of ``recording``.

    Parameters
    ----------
    subject : as in the trials' column subject.
    recording : N trials; None, or one trial, gives the group's layer.
    bank : shapes of the trials' stimuli.
    group : without it, the layer is fitted on the N trials alone.

    Raises
    ------
    UsageError : the model has no input layers, or the person is one of its own.
    """
    brain, embedding = pipe.brain, pipe.embedding
    if brain is None or brain.layers is None or embedding is None:
        raise UsageError("this model has no input layers; fit it with --subjects")
    target = None
    if recording is not None and bank is not None:
        target = embedding(bank.views)[bank.rows(list(recording.trials["stimulus"]))]
    layer = adapt_layer(brain.layers, recording, target, group=group)
    pipe.brain = replace(brain, layers=brain.layers.with_layer(subject, layer))
    return pipe


def adapted_gate(pipe: MinD3D, subject: str, trials: int) -> dict:
    """What to tell of an adapted layer, as a row of ``gates``."""
    layers = None if pipe.brain is None else pipe.brain.layers
    if layers is None or subject not in layers.layers:
        raise UsageError(f"this model has no input layer of {subject!r}")
    how = layers.layers[subject].how
    return {"stage": "adapted layer", "subject": subject, "trials": trials, "from": how}


def adaptation_trials(recording: Recording, n: int, *, seed: int = 0) -> Recording | None:
    """``n`` trials drawn by the seed; fewer are always among more. None for no trials.

    Raises
    ------
    UsageError : more trials than there are.
    """
    if not 0 <= n <= recording.n_trials:
        raise UsageError(
            f"{n} trials of {subject_of(recording)} were asked for; there are "
            f"{recording.n_trials} training trials"
        )
    if n == 0:
        return None
    key = item_seed(seed, subject=subject_of(recording), stimulus="", stage="adaptation trials")
    order = numpy_generator(key).permutation(recording.n_trials)
    return recording.select(np.sort(order[:n]))


def subject_of(recording: Recording) -> str:
    """The one person of a recording.

    Raises
    ------
    UsageError : several.
    """
    names = list(dict.fromkeys(recording.trials["subject"]))
    if len(names) != 1:
        raise UsageError(
            f"the recording is of {len(names)} subjects ({', '.join(map(str, names[:3]))}); give "
            "one recording a person"
        )
    return str(names[0])
