"""Fitted decoders as functions that can be differentiated, and the number that is differentiated.

Two kinds of stages: an affine one (`LinearStage`: ridge, Brain-Diffuser's heads) needs no
derivative, because what a region adds to the decoded features is found by decoding it alone; any
other is asked as a function of tensors, `Differentiable`.  MinD-3D is differentiated through
encoder, aggregation, anchor and the whole walk of the bridge, each trial under its own fixed noise.

The number (scalar) of a trial with decoded features y and true features t, both less the mean c of
the true features of the subject's test stimuli:

    projection  (y . t) / (t . t)       1 where the truth is met; linear in y
    similarity  (y . t) / (|y| |t|)     the cosine; steep where y is near c
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
import pandas as pd
from torch import Tensor

from neurodiff.analysis.attribution_bridge import MinD3DGraph
from neurodiff.analysis.attribution_decoders import linear_stage
from neurodiff.analysis.attribution_pairs import Shown
from neurodiff.analysis.attribution_problem import Decoder, Problem
from neurodiff.core.errors import DataError, UsageError
from neurodiff.pipelines.mind3d import MinD3D

Scalar = Literal["projection", "similarity"]
Baseline = Literal["mean", "zero"]
Graph = Callable[[Tensor, pd.DataFrame], dict[str, Tensor]]
_LEAST = 1e-12


@runtime_checkable
class Differentiable(Protocol):
    """A decoder that also takes tensors: (n, *frames, features), trials -> stage -> (n, d).

    Row i of the result may depend on row i alone, and what is drawn on the trial's name alone.
    """

    def tensors(self, data: Tensor, trials: pd.DataFrame) -> dict[str, Tensor]: ...


def differentiable(decoder: Decoder, *, seed: int = 0) -> Graph:
    """The decoder as a function of tensors.

    Parameters
    ----------
    decoder : `Differentiable`, or one whose ``pipe`` is a `MinD3D`.
    seed : of the walk's noise, as in ``predict``; the decoder's own where it has one.

    Raises
    ------
    UsageError : it is neither.
    """
    if isinstance(decoder, Differentiable):
        return decoder.tensors
    pipe, affine = getattr(decoder, "pipe", None), affine_stages(decoder)
    if isinstance(pipe, MinD3D):
        latent = bool(getattr(decoder, "latent", False))
        bridge = mind3d_graph(pipe, seed=getattr(decoder, "seed", seed), latent=latent)
        return _StagesOfMinD3D(bridge, tuple(s for s in decoder.stages if s not in affine))
    raise UsageError(
        f"the decoder {decoder.name!r} is neither affine nor a function of tensors, so that it has "
        "no gradients; use leave_one_out, roi_only or shapley, which only decode"
    )


@runtime_checkable
class LinearFirst(Protocol):
    """A `Graph` whose first part is linear: what it gives moves straight where responses do.

    ``graph(data, trials)[stage]`` is ``graph.rest(graph.linear(data, trials), trials, stage)``, and
    ``linear`` gives (n, numbers).
    """

    def __call__(self, data: Tensor, trials: pd.DataFrame) -> dict[str, Tensor]: ...

    def linear(self, data: Tensor, trials: pd.DataFrame) -> Tensor: ...

    def rest(self, numbers: Tensor, trials: pd.DataFrame, stage: str) -> Tensor: ...


@dataclass(frozen=True)
class _StagesOfMinD3D:
    """The stages of a MinD-3D that are not affine, by name."""

    bridge: MinD3DGraph
    stages: tuple[str, ...]

    def __call__(self, data: Tensor, trials: pd.DataFrame) -> dict[str, Tensor]:
        numbers = self.linear(data, trials)
        return {stage: self.rest(numbers, trials, stage) for stage in self.stages}

    def linear(self, data: Tensor, trials: pd.DataFrame) -> Tensor:
        return self.bridge.linear(data, trials)

    def rest(self, numbers: Tensor, trials: pd.DataFrame, stage: str) -> Tensor:
        if stage == "anchor":
            return self.bridge.anchor_of(numbers)
        return self.bridge.rest(numbers, trials)


def affine_stages(decoder: Decoder) -> frozenset[str]:
    """Stages that are a sum over features of the brain plus a constant."""
    return frozenset(s for s in decoder.stages if linear_stage(decoder, s) is not None)


class LinearParts:
    """What a linear stage decodes from the baseline, and what parts of the trials add to it.

    still, whole : (n, d) of the baseline, and the change when all features are the trial's.
    """

    def __init__(self, problem: Problem, shown: Shown, stage: str, base: np.ndarray) -> None:
        linear = linear_stage(problem.decoder, stage)
        if linear is None:
            raise UsageError(f"the stage {stage!r} of {problem.decoder.name!r} is not linear")
        self._linear, self._base = linear, base
        self._data = np.asarray(problem.test.data[shown.rows], np.float32)
        self._from = linear.read(base[None])
        self._rows = linear.read(self._data) - self._from
        self._frames: dict[int, np.ndarray] = {}
        everywhere = np.ones(self._rows.shape[1], bool)
        self.still = linear.constant + linear.of(self._from, everywhere)
        self.whole = linear.of(self._rows, everywhere)

    def of(self, mask: np.ndarray, frame: int | None = None) -> np.ndarray:
        """Change by the features in ``mask`` (features,), in all frames or in one: (n, d)."""
        if frame is None:
            return self._linear.of(self._rows, mask)
        if frame not in self._frames:
            moved = np.broadcast_to(self._base, self._data.shape).copy()
            moved[:, frame] = self._data[:, frame]
            self._frames[frame] = self._linear.read(moved) - self._from
        return self._linear.of(self._frames[frame], mask)


def mind3d_graph(
    pipe: MinD3D, *, seed: int = 0, sample: int = 0, latent: bool = False
) -> MinD3DGraph:
    """Frames (n, frames, features) or betas -> embedding (n, d), before it is brought to norm.

    Parameters
    ----------
    latent : the features are those of the space that several subjects share, and not responses
        that go through each subject's input layer.

    Raises
    ------
    UsageError : nothing is fitted, a subject without an input layer, other numbers of features.
    """
    return MinD3DGraph(pipe, seed=seed, sample=sample, latent=latent)


# ------------------------------------------------------------------------------------ scalars


def checked_scalar(scalar: str) -> None:
    """Refuse an unknown name."""
    if scalar not in get_args(Scalar):
        raise UsageError(f"scalar is {scalar!r}; known are 'projection' and 'similarity'")


def unit_of(scalar: str) -> str:
    """Unit of attributions."""
    return "share of truth" if scalar == "projection" else "cosine"


def scalar_words(scalar: str) -> str:
    """What is differentiated, for notes."""
    what = "projection on" if scalar == "projection" else "cosine with"
    return (
        f"Scalar: {what} the trial's own true features, both less the mean of the true features of "
        "the subject's test stimuli."
    )


def pair_scores(decoded: np.ndarray, true: np.ndarray, scalar: str) -> np.ndarray:
    """Scalar of each decoded row (n, d) with each true row (m, d), both centred: (n, m)."""
    return decoded @ true.T / _norms(decoded, true, scalar)


def pair_derivatives(
    moved: np.ndarray, decoded: np.ndarray, true: np.ndarray, scalar: str
) -> np.ndarray:
    """Change of `pair_scores` at ``decoded`` (n, d) along ``moved`` (n, d), to first order: (n, m).

    d cos(y, t) = (dy . t / |t| - cos(y, t) dy . y / |y|) / |y|
    """
    along = moved @ true.T / _norms(decoded, true, scalar)
    if scalar == "projection":
        return along
    size = np.maximum((decoded**2).sum(1, keepdims=True), _LEAST)
    radial = (moved * decoded).sum(1, keepdims=True) / size
    return along - pair_scores(decoded, true, scalar) * radial


def _norms(decoded: np.ndarray, true: np.ndarray, scalar: str) -> np.ndarray:
    length = np.linalg.norm(true, axis=1)
    if scalar == "projection":
        return np.maximum(length**2, _LEAST)[None]
    return np.maximum(np.linalg.norm(decoded, axis=1)[:, None] * length[None], _LEAST)


def tensor_scores(decoded: Tensor, true: Tensor, scalar: str) -> Tensor:
    """`pair_scores` row by row, (n, d), (n, d) -> (n,), with derivatives."""
    inner = (decoded * true).sum(-1)
    if scalar == "projection":
        return inner / (true**2).sum(-1).clamp(min=_LEAST)
    return inner / (decoded.norm(dim=-1) * true.norm(dim=-1)).clamp(min=_LEAST)


# ---------------------------------------------------------------------------------- baselines


def baseline_trial(problem: Problem, subject: str, baseline: str) -> np.ndarray:
    """The trial (*frames, features) from which attributions count, float32.

    Parameters
    ----------
    baseline : "mean" of the subject's training trials, or "zero".

    Raises
    ------
    UsageError : an unknown baseline, or the mean of training trials that were not given.
    DataError : no training trial of this subject, or trials of another shape.
    """
    shape = tuple(problem.test.data.shape[1:])
    if baseline == "zero":
        return np.zeros(shape, np.float32)
    if baseline != "mean":
        raise UsageError(f"baseline is {baseline!r}; known are 'mean' (of training) and 'zero'")
    if problem.train is None:
        raise UsageError(
            "the baseline is the mean of the training trials, which were not given; give train=, "
            "or baseline='zero'"
        )
    train = problem.train
    if tuple(train.data.shape[1:]) != shape:
        raise DataError(
            f"training trials have shape {tuple(train.data.shape[1:])} and test trials {shape}; "
            "expected the same frames and features"
        )
    rows = np.flatnonzero(train.trials["subject"].to_numpy() == subject)
    if not len(rows):
        raise DataError(
            f"there is no training trial of subject {subject!r}, whose mean is the baseline; give "
            "a training recording with this subject, or baseline='zero'"
        )
    total = np.zeros(shape)
    for start in range(0, len(rows), 64):
        total += np.asarray(train.data[rows[start : start + 64]], np.float64).sum(axis=0)
    return (total / len(rows)).astype(np.float32)


def baseline_name(baseline: str) -> str:
    """For notes."""
    return "the mean of the subject's training trials" if baseline == "mean" else "zero"
