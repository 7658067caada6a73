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
from itertools import pairwise
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neurodiff.analysis.attribution_decoders import linear_stage
from neurodiff.analysis.attribution_pairs import Shown
from neurodiff.analysis.attribution_problem import Decoder, Problem
from neurodiff.bridges.prior import BridgeDenoiser
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.seeds import item_seed, torch_generator
from neurodiff.diffusion.grids import trailing
from neurodiff.diffusion.paths import Level
from neurodiff.diffusion.solvers import DDIM
from neurodiff.pipelines.brain_input import frames_at_test
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
    pipe = getattr(decoder, "pipe", None)
    if isinstance(pipe, MinD3D):
        bridge = mind3d_graph(pipe, seed=getattr(decoder, "seed", seed))
        stages = [s for s in decoder.stages if s not in affine_stages(decoder)]
        return lambda data, trials: dict.fromkeys(stages, bridge(data, trials))
    raise UsageError(
        f"the decoder {decoder.name!r} is neither affine nor a function of tensors, so that it has "
        "no gradients; use leave_one_out, roi_only or shapley, which only decode"
    )


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
        everywhere = np.ones(self._rows.shape[1], bool)
        self.still = linear.constant + linear.of(self._from, everywhere)
        self.whole = linear.of(self._rows, everywhere)

    def of(self, mask: np.ndarray) -> np.ndarray:
        """Change by the features in ``mask``, (features,) or (*frames, features): (n, d)."""
        if mask.ndim == 1:
            return self._linear.of(self._rows, mask)
        moved = np.where(mask, self._data, self._base)
        features = mask.reshape(-1, mask.shape[-1]).any(axis=0)
        return self._linear.of(self._linear.read(moved) - self._from, features)


def mind3d_graph(
    pipe: MinD3D, *, seed: int = 0, sample: int = 0
) -> Callable[[Tensor, pd.DataFrame], Tensor]:
    """Frames (n, frames, features) or betas -> embedding (n, d), before it is brought to norm.

    The numbers of `MinD3D.predict_embedding` up to that norm, with derivatives. The norm is left
    out because it has none at 0, next to which the embedding of a mean trial lies.

    Raises
    ------
    UsageError : nothing is fitted, a model of several subjects, or another number of features.
    """
    if pipe.brain is None or pipe.ridge is None or pipe.networks is None:
        raise UsageError("this MinD3D is not fitted yet: call fit, or load a fitted one")
    brain, networks, settings = pipe.brain, pipe.networks, pipe.recipe.bridge
    if brain.layers is not None:
        raise UsageError(
            "this MinD3D reads several subjects through input layers, which have no gradients "
            "here; use leave_one_out, or the model of one subject"
        )
    mean, std = torch.from_numpy(brain.mean), torch.from_numpy(brain.std)
    weight = torch.from_numpy(np.asarray(pipe.ridge.coef_, np.float32))
    offset = torch.from_numpy(np.asarray(pipe.ridge.intercept_, np.float32))

    def embed(data: Tensor, trials: pd.DataFrame) -> Tensor:
        if data.shape[-1] != brain.n_features:
            raise UsageError(
                f"trials have {data.shape[-1]} features; this model was fitted on "
                f"{brain.n_features} in {brain.space_name!r}: bring the recording to that space"
            )
        frames = data[:, None] if data.ndim == 2 else data
        frames = (frames - mean) / std
        anchor = frames.mean(dim=1) @ weight.T + offset
        read = frames[:, torch.from_numpy(frames_at_test(frames.shape[1], settings.frames))]
        tokens = networks.tokens(brain.patches(read.flatten(0, 1)), settings.frames)
        anchors = anchor if settings.anchor == "ridge" else None
        generators = [_generator(row, seed, sample) for row in trials.itertuples()]
        return _walk(pipe, tokens, anchors, generators)

    return embed


def _walk(
    pipe: MinD3D, tokens: Tensor, anchor: Tensor | None, generators: list[torch.Generator]
) -> Tensor:
    """`neurodiff.bridges.prior.sample_embeddings`, whose loop keeps no derivatives, with them."""
    settings = pipe.recipe.bridge
    denoiser = BridgeDenoiser(pipe.networks.prior_network)
    prepared, anchor = denoiser.prepare((tokens, anchor))
    n, d, candidates = len(tokens), tokens.shape[-1], settings.candidates
    if candidates > 1:
        prepared = prepared.repeat(candidates)

    def noise() -> Tensor:
        rows = [torch.randn(candidates, d, generator=g) for g in generators]
        return torch.stack(rows).reshape(n * candidates, d).to(tokens)

    grid, solver = trailing(pipe.path, settings.steps), DDIM(settings.eta)
    x = grid[0].sigma * noise()

    def denoise(at: Tensor, level: Level) -> Tensor:
        return denoiser(at, level, (prepared, anchor))

    for a, b in pairwise(grid):
        x = solver.step(x, a, b, denoise, noise, {})
    drawn = x.reshape(n, candidates, d)
    mean = drawn.mean(dim=1)
    if settings.choose == "mean":
        return mean
    aim = mean if settings.choose == "nearest-to-mean" else tokens.mean(dim=1)
    best = torch.cosine_similarity(drawn, aim[:, None], dim=-1).argmax(dim=1)
    return drawn[torch.arange(n), best]


def _generator(row: Any, seed: int, sample: int) -> torch.Generator:
    """As `MinD3D.predict_embedding` seeds a trial."""
    name = f"{row.stimulus} r{row.repeat}"
    made = item_seed(seed, subject=row.subject, stimulus=name, sample=sample, stage="bridge")
    return torch_generator(made)


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
