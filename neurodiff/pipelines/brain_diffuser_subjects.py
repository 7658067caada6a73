"""Brain-Diffuser for several people: a linear layer each, one shared space, one decoder behind it.

    person s:  betas --z-score--> x --layer s--> latent (k numbers) --three ridges--> features

The linear form of MindEye2 (Scotti et al. 2024, arXiv 2403.11207): there, a ridge layer a subject
leads into a shared space and everything behind it is one network, trained together. Here each part
has a closed form. The shared space is spanned by the leading k principal components of the
features of all training stimuli, each head scaled to the same total variance; layer s is the ridge
regression from person s's betas to the components of what was shown; the decoder is fitted on
everybody's latents together. For training trials these are leave-one-out predictions, since what a
layer says of the trials it was fitted on is too good to learn from. The layers are those of
`subject_layers`, where it is described how a new person's is fitted on a few images.

Components of a new stimulus need no weights either: with Gram matrix G = sum_h w_h Y_h Y_h' =
U diag(e) U' of the training stimuli (centred), they are (sum_h w_h y_h Y_h') U / sqrt(e).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from neurodiff.bridges.kernel_factor import factorise
from neurodiff.core.columns import ColumnSource, open_columns
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording
from neurodiff.core.safe_io import read_npy
from neurodiff.core.stimuli import Stimuli
from neurodiff.pipelines.brain_diffuser_input import betas_of
from neurodiff.pipelines.brain_diffuser_networks import Shown
from neurodiff.pipelines.brain_diffuser_settings import HEADS
from neurodiff.pipelines.brain_diffuser_targets import make_targets, posterior_seeds
from neurodiff.pipelines.mind3d_subjects import adaptation_trials, subject_of
from neurodiff.pipelines.subject_layers import (
    SubjectLayers,
    adapt_layer,
    fit_layer,
    layers_from_state,
    layers_state,
)

if TYPE_CHECKING:
    from neurodiff.core.run import Run
    from neurodiff.pipelines.brain_diffuser import BrainDiffuser

LATENTS = 128
_BLOCK = 4096  # columns of a head in memory at a time
_ARRAYS = ("first", "dual", "weights")


@dataclass(frozen=True, eq=False)
class SharedInput:
    """How the trials of several people are read: through the layer of each.

    Attributes
    ----------
    first : the rows of the decoder's targets that hold each training stimulus once.
    dual : U / sqrt(e) of the module's text, from Gram rows to components.
    weights : of each head in the Gram matrix, in the order of `HEADS`.
    """

    layers: SubjectLayers
    first: Int[np.ndarray, " stimuli"]
    dual: Float[np.ndarray, "stimuli k"]
    weights: Float[np.ndarray, " heads"]

    @property
    def subject(self) -> str:
        """Names of the people, for sentences."""
        return " and ".join(self.layers.shared)

    def __call__(self, recording: Recording) -> Float[np.ndarray, "n k"]:
        """Latents, float64.

        Raises
        ------
        UsageError : a subject without a layer, or other vertices than its layer's.
        DataError : frames, or NaN.
        """
        betas_of(recording)
        return self.layers.to_latent(recording).array()[:, 0].astype(np.float64)


def fit_subjects(
    pipe: BrainDiffuser,
    recordings: Sequence[Recording],
    stimuli: Stimuli,
    *,
    latents: int = LATENTS,
    seed: int = 0,
    run: Run | None = None,
    progress: Progress = SILENT,
) -> BrainDiffuser:
    """A layer for each person and one decoder for all; returns the pipeline.

    Parameters
    ----------
    pipe : its networks are fitted, or are fitted now on the stimuli of all.
    recordings : training trials, one recording a person; they may have seen different stimuli, and
        their vertices may differ (then a new person has no group layer to begin with).
    latents : components of the shared space, fewer than stimuli.

    Raises
    ------
    UsageError : fewer than 2 people, one that is there twice, or too many latents.
    DataError : frames, NaN, a stimulus without picture or caption.

    Notes
    -----
    Where several people saw the same stimuli, the targets are repeated for each of them in memory.
    """
    names = [subject_of(recording) for recording in recordings]
    if len(names) < 2 or len(set(names)) < len(names):
        raise UsageError(f"subjects are {', '.join(names)}; give two or more, each once")
    means = [recording.mean_repeats() for recording in recordings]
    for one in means:
        betas_of(one)
    ids = list(dict.fromkeys(i for one in means for i in one.trials["stimulus"]))
    if not 1 <= latents < len(ids):
        raise UsageError(f"{latents} latents of {len(ids)} training stimuli; give fewer, from 1")
    shown = Shown(stimuli, tuple(ids))
    if pipe.networks is None:
        pipe.fit_networks(shown, seed=seed, run=run, progress=progress)
    networks = pipe.networks
    assert networks is not None
    targets = {
        head: open_columns(
            make_targets(networks, head, shown, seed=seed, run=run, progress=progress)
        )
        for head in HEADS
    }
    scores, shared = _components(targets, latents)
    at = {name: row for row, name in enumerate(ids)}
    rows = [np.array([at[i] for i in one.trials["stimulus"]]) for one in means]
    layers, left_out, gates = {}, [], list(pipe.gates)
    for name, one, own in progress.over(
        list(zip(names, means, rows, strict=True)), "input layers", len(names)
    ):
        layers[name], predicted = fit_layer(one, scores[own])
        left_out.append(predicted)
        r = _correlation(predicted, scores[own])
        gates.append({"stage": "input layer", "subject": name, "correlation": r})
    every = np.concatenate(rows)
    factor = factorise(np.concatenate(left_out).astype(np.float64), groups=every)
    pipe.heads = {}
    for head in HEADS:
        pipe.heads[head] = pipe.fit_head(head, factor, _rows_of(targets[head], every), seed=seed)
        gates.append(pipe._gate(head))
    pipe.gates = gates
    first = np.array([int(np.flatnonzero(every == k)[0]) for k in range(len(ids))])
    pipe.input = dataclasses.replace(
        shared, layers=SubjectLayers(layers, tuple(names)), first=first
    )
    return pipe


def adapt_subject(
    pipe: BrainDiffuser,
    recording: Recording,
    stimuli: Stimuli,
    *,
    images: int | None = None,
    group: bool = True,
    seed: int = 0,
) -> BrainDiffuser:
    """Fit a new person's layer, and nothing else; returns the pipeline.

    Parameters
    ----------
    recording : training trials of the new person; repeats of a stimulus are averaged.
    images : so many of the stimuli, drawn by the seed (fewer are always among more); None for all,
        0 for the group's mean layer.
    group : without it, the layer is the ridge regression of these images alone.

    Raises
    ------
    UsageError : the model is of one person, or the new one is among its own; too many images.
    DataError : frames, or NaN.
    """
    shared = pipe.input
    if not isinstance(shared, SharedInput):
        raise UsageError("this model has no input layers; fit it with fit_across")
    name = subject_of(recording)
    means = recording.mean_repeats()
    betas_of(means)
    part = means if images is None else adaptation_trials(means, images, seed=seed)
    target = None
    if part is not None:
        target = components_of(pipe, stimuli, list(part.trials["stimulus"]), seed=seed)
    layer = adapt_layer(shared.layers, part, target, group=group)
    pipe.input = dataclasses.replace(shared, layers=shared.layers.with_layer(name, layer))
    return pipe


def components_of(
    pipe: BrainDiffuser, stimuli: Stimuli, ids: Sequence[str], *, seed: int = 0
) -> Float[np.ndarray, "n k"]:
    """Components of any stimuli in the shared space; float32."""
    shared, networks = pipe.input, pipe.networks
    assert isinstance(shared, SharedInput)
    assert networks is not None
    shown = Shown(stimuli, tuple(ids))
    seeds = posterior_seeds(shown.ids, seed)
    gram = np.zeros((len(ids), len(shared.first)))
    for head, weight in zip(HEADS, shared.weights, strict=True):
        new = networks.encode(head, shown, 0, len(shown), seeds=seeds).reshape(len(ids), -1)
        source = pipe.heads[head].targets_
        for place in source.slices(_BLOCK):
            Y = source.block(place.start, place.stop, np.float64)[shared.first]
            centre = Y.mean(axis=0)
            gram += weight * (new[:, place] - centre) @ (Y - centre).T
    return (gram @ shared.dual).astype(np.float32)


def shared_state(shared: SharedInput) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What is written of the input: plain facts, and arrays by name."""
    facts, arrays = layers_state(shared.layers)
    return facts, arrays | {f"shared.{name}": getattr(shared, name) for name in _ARRAYS}


def shared_from_state(facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> SharedInput:
    """Inverse of `shared_state`.

    Raises
    ------
    DataError : arrays that are missing or do not fit together.
    """
    try:
        own = {name: np.asarray(arrays[f"shared.{name}"]) for name in _ARRAYS}
    except KeyError as error:
        raise DataError(f"the shared input lacks {error}; save the model again") from None
    return SharedInput(layers_from_state(facts, arrays), **own)


def _components(
    targets: Mapping[str, ColumnSource], k: int
) -> tuple[Float[np.ndarray, "stimuli k"], SharedInput]:
    """Leading components of all heads together, from their Gram matrices, block by block."""
    n = next(iter(targets.values())).rows
    whole, weights = np.zeros((n, n)), []
    for source in targets.values():
        gram = np.zeros((n, n))
        for place in source.slices(_BLOCK):
            Y = source.block(place.start, place.stop, np.float64)
            Y = Y - Y.mean(axis=0)
            gram += Y @ Y.T
        weights.append(n / np.trace(gram))
        whole += weights[-1] * gram
    values, U = np.linalg.eigh(whole)
    values, U = values[::-1][:k], U[:, ::-1][:, :k]
    U = U * np.sign(U[np.abs(U).argmax(axis=0), np.arange(k)])
    values = np.maximum(values, values[0] * 1e-12)
    shared = SharedInput(
        SubjectLayers({}, ()), np.arange(n), U / np.sqrt(values), np.array(weights)
    )
    return (U * np.sqrt(values)).astype(np.float32), shared


def _rows_of(source: ColumnSource, rows: np.ndarray) -> Any:
    """Targets of these rows: the source itself where they are all its rows, in order."""
    if len(rows) == source.rows and (rows == np.arange(source.rows)).all():
        return source
    if source.array is not None:
        found = source.array[rows]
    else:
        assert source.path is not None  # a source is one or the other
        found = read_npy(source.path, finite=False, mmap=True)[rows]
    return found.reshape(len(rows), *source.item_shape)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over rows of the cosine of two rows, both centred over all rows."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean((a * b).sum(axis=1) / np.maximum(lengths, 1e-12)))
