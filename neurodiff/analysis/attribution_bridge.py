"""MinD-3D asked about the same trials many times: what the questions share is made once.

    responses -> z-scores -> embedded patches and anchor        linear     `LinearFront`
    embedded patches and anchor -> tokens -> walk -> embedding  networks   `rest_of_the_way`

A condition of attribution replaces the responses of some features. It moves the patches that show
these features, and the anchor, by a product of matrices, so that nothing else is read again; and a
trial walks under the same noise in every condition, which is drawn once. Along a straight line of
responses the embedded patches and the anchor move on a straight line too, so that integrals of
gradients are taken there, and brought back to features once.

Numbers are those of `MinD3D.predict_embedding`, to the rounding of float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_array
from torch import Tensor

from neurodiff.bridges.prior import with_anchor
from neurodiff.core.errors import UsageError
from neurodiff.core.seeds import item_seed, torch_generator
from neurodiff.diffusion.grids import trailing
from neurodiff.diffusion.paths import Level
from neurodiff.diffusion.solvers import DDIM
from neurodiff.models.feature_bridge_walk import BridgeWalk
from neurodiff.pipelines.brain_input import frames_at_test
from neurodiff.pipelines.mind3d import MinD3D
from neurodiff.pipelines.mind3d_fitting import renormed
from neurodiff.pipelines.subject_layers import InputLayer

_ROWS = 32  # trials a batch: what they need stays in the processor's cache
_MOST_BYTES = 2**30  # of embedded patches that are kept
_MOST_NOISE = 2**28


class LinearFront:
    """Responses of trials to embedded patches and anchor, through each subject's input layer.

    Parameters
    ----------
    latent : the responses are already those of the space that several subjects share.

    Raises
    ------
    UsageError : nothing is fitted.
    """

    def __init__(self, pipe: MinD3D, *, latent: bool = False) -> None:
        if pipe.brain is None or pipe.ridge is None or pipe.networks is None:
            raise UsageError("this MinD3D is not fitted yet: call fit, or load a fitted one")
        self.brain, self.networks = pipe.brain, pipe.networks
        self.frames = pipe.recipe.bridge.frames
        self.layers = None if latent or pipe.brain.layers is None else pipe.brain.layers.layers
        self._mean, self._std = (torch.from_numpy(v) for v in (self.brain.mean, self.brain.std))
        self._weight = torch.from_numpy(np.asarray(pipe.ridge.coef_, np.float32))
        self._offset = torch.from_numpy(np.asarray(pipe.ridge.intercept_, np.float32))
        self.width = len(self._offset)  # of the anchor
        index, n = self.brain.patch_index, self.brain.n_features
        place = np.flatnonzero(index.ravel() < n)
        self._shown = csr_array(  # which pixels show a feature
            (np.ones(len(place), np.float32), (index.ravel()[place], place)),
            shape=(n, index.size),
        )

    def __call__(self, data: Tensor, subjects: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(n, frames, features) or betas -> patches (n, read frames, kept, width), anchor (n, d).

        Raises
        ------
        UsageError : another number of features, a subject without an input layer.
        """
        frames = self.standardised(data[:, None] if data.ndim == 2 else data, subjects)
        anchor = frames.mean(dim=1) @ self._weight.T + self._offset
        read = frames[:, torch.from_numpy(frames_at_test(frames.shape[1], self.frames))]
        pixels = self.brain.patches(read.flatten(0, 1))
        embedded = self.networks.fmri_encoder.embed_patches(pixels)
        return embedded.unflatten(0, read.shape[:2]), anchor

    def standardised(self, frames: Tensor, subjects: Sequence[str]) -> Tensor:
        """(n, frames, features) -> what the shared model reads, z-scored."""
        if self.layers is None:
            self._check(frames.shape[-1], self.brain.n_features)
            return (frames - self._mean) / self._std
        latent = frames.new_zeros((*frames.shape[:2], self.brain.n_features))
        for rows, layer in self._by_layer(subjects):
            self._check(frames.shape[-1], len(layer.mean))
            mean, std, weights, bias = _tensors(layer)
            read = (frames[rows] - mean) / std
            latent = latent.index_copy(0, rows, read @ weights.T + bias)
        return (latent - self._mean) / self._std

    def changed(
        self, mask: np.ndarray, change: np.ndarray, subjects: Sequence[str]
    ) -> tuple[np.ndarray, Tensor, Tensor]:
        """What a change of the responses of some features adds.

        Parameters
        ----------
        mask : (features,) that change.
        change : (n, frames, features of the mask).

        Returns
        -------
        Numbers of the patches that move, (n, read frames, these, width), and (n, d) of the anchor.
        """
        moved, which = self._moved(mask, torch.from_numpy(change), subjects)
        patches, weights = self._weights(which)
        read = moved[:, torch.from_numpy(frames_at_test(moved.shape[1], self.frames))]
        embedded = (read.flatten(0, 1) @ weights).unflatten(-1, (len(patches), -1))
        anchor = moved.mean(dim=1) @ self._weight[:, torch.from_numpy(which)].T
        return patches, embedded.unflatten(0, read.shape[:2]), anchor

    def _moved(
        self, mask: np.ndarray, change: Tensor, subjects: Sequence[str]
    ) -> tuple[Tensor, np.ndarray]:
        """The change of z-scores, and of which features of the shared model they are."""
        where = torch.from_numpy(np.flatnonzero(mask))
        if self.layers is None:
            return change / self._std[where], np.flatnonzero(mask)
        latent = change.new_zeros((*change.shape[:2], self.brain.n_features))
        for rows, layer in self._by_layer(subjects):
            _, std, weights, _ = _tensors(layer)
            latent[rows] = (change[rows] / std[where]) @ weights[:, where].T
        return latent / self._std, np.arange(self.brain.n_features)

    def _weights(self, which: np.ndarray) -> tuple[np.ndarray, Tensor]:
        """From features to the patches that show them: (features, patches * width)."""
        shown = self._shown[which].tocoo()
        pixels = self.brain.patch_index.shape[1]
        patches, of = np.unique(shown.col // pixels, return_inverse=True)
        n = len(which)
        rows = csr_array(
            (shown.data, (of * n + shown.row, shown.col % pixels)),
            shape=(len(patches) * n, pixels),
        )
        kernel = self.networks.fmri_encoder.patch_embed.proj.weight.detach().flatten(1)
        made = np.asarray(rows @ kernel.numpy().T, np.float32).reshape(len(patches), n, -1)
        return patches, torch.from_numpy(made.transpose(1, 0, 2).reshape(n, -1).copy())

    def _by_layer(self, subjects: Sequence[str]) -> list[tuple[Tensor, InputLayer]]:
        assert self.layers is not None
        out = []
        for name in dict.fromkeys(subjects):
            if name not in self.layers:
                raise UsageError(
                    f"the model has no input layer for subject {name!r}; it has "
                    f"{', '.join(self.layers)}: adapt it with neurodiff fit --adapt-to"
                )
            rows = torch.from_numpy(np.flatnonzero([one == name for one in subjects]))
            out.append((rows, self.layers[name]))
        return out

    def _check(self, given: int, known: int) -> None:
        if given != known:
            raise UsageError(
                f"trials have {given} features; this model was fitted on {known} in "
                f"{self.brain.space_name!r}: bring the recording to that space"
            )


class MinD3DGraph:
    """Frames (n, frames, features) or betas -> embedding (n, d), before it is brought to norm.

    The numbers of `MinD3D.predict_embedding` up to that norm, with derivatives. The norm is left
    out because it has none at 0, next to which the embedding of a mean trial lies.

    Parameters
    ----------
    latent : as of :class:`LinearFront`.
    """

    def __init__(
        self, pipe: MinD3D, *, seed: int = 0, sample: int = 0, latent: bool = False
    ) -> None:
        self.pipe, self.front = pipe, LinearFront(pipe, latent=latent)
        self.noise = TrialNoise(pipe, seed, sample)

    def __call__(self, data: Tensor, trials: pd.DataFrame) -> Tensor:
        return self.rest(self.linear(data, trials), trials)

    def linear(self, data: Tensor, trials: pd.DataFrame) -> Tensor:
        """Embedded patches and anchor of each trial side by side, (n, numbers)."""
        embedded, anchor = self.front(data, list(trials["subject"].astype(str)))
        return torch.cat([embedded.flatten(1), anchor], dim=1)

    def rest(self, numbers: Tensor, trials: pd.DataFrame) -> Tensor:
        """From what `linear` gives to embeddings (n, d)."""
        anchor = self.anchor_of(numbers)
        kept, size = len(self.front.brain.kept), self.pipe.recipe.bridge
        shape = (size.frames, kept, size.encoder.embed_dim)
        embedded = numbers[:, : -anchor.shape[1]].unflatten(1, shape)
        return rest_of_the_way(self.pipe, embedded, anchor, self.noise.of(trials))

    def anchor_of(self, numbers: Tensor) -> Tensor:
        """The anchor (n, d) among what `linear` gives."""
        return numbers[:, -self.front.width :]


class PreparedMinD3D:
    """Decoded features of the same trials, with the responses of some features replaced.

    Parameters
    ----------
    data : (trials, *frames, features), what is asked about when nothing is replaced.
    seed : of the walk's noise, as in ``predict``.
    stages : "anchor", "bridge" or both.
    latent : as of :class:`LinearFront`.
    """

    def __init__(
        self,
        pipe: MinD3D,
        data: np.ndarray,
        trials: pd.DataFrame,
        *,
        seed: int,
        stages: Sequence[str],
        latent: bool = False,
    ) -> None:
        self.pipe, self.data, self.stages = pipe, data, tuple(stages)
        self._front, self._noise = LinearFront(pipe, latent=latent), TrialNoise(pipe, seed)
        self._trials = trials.reset_index(drop=True)
        self._subjects = list(self._trials["subject"].astype(str))
        embedded, anchors = [], []
        with torch.inference_mode():
            for rows in _blocks(len(data)):
                block = torch.from_numpy(np.array(data[rows], np.float32))
                one, anchor = self._front(block, self._subjects[rows])
                embedded.append(one)
                anchors.append(anchor)
            self._embedded, self._anchor = torch.cat(embedded), torch.cat(anchors)

    @staticmethod
    def fits(pipe: MinD3D, trials: int) -> bool:
        """Whether the embedded patches of so many trials are few enough to be kept."""
        if pipe.brain is None or pipe.networks is None:
            return False
        size = pipe.recipe.bridge
        numbers = trials * size.frames * len(pipe.brain.kept) * size.encoder.embed_dim
        return 4 * numbers <= _MOST_BYTES

    def decode(
        self, mask: np.ndarray | None = None, values: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """As the decoder's ``decode``, with ``values`` ([n,] *frames, features of the mask)."""
        out: dict[str, list[np.ndarray]] = {stage: [] for stage in self.stages}
        with torch.inference_mode():
            for rows in _blocks(len(self.data)):
                embedded, anchor = self._embedded[rows], self._anchor[rows]
                if mask is not None and values is not None and mask.any():
                    given = values if values.ndim < self.data.ndim else values[rows]
                    change = np.asarray(given - self.data[rows][..., mask], np.float32)
                    change = change[:, None] if change.ndim == 2 else change
                    patches, more, far = self._front.changed(mask, change, self._subjects[rows])
                    embedded, anchor = embedded.clone(), anchor + far
                    embedded[:, :, torch.from_numpy(patches)] += more
                if "anchor" in out:
                    out["anchor"].append(anchor.double().numpy())
                if "bridge" in out:
                    noise = self._noise.of(self._trials.iloc[rows])
                    found = rest_of_the_way(self.pipe, embedded, anchor, noise)
                    out["bridge"].append(renormed(found).numpy())
        return {stage: np.concatenate(parts) for stage, parts in out.items()}


class TrialNoise:
    """All noise that a trial's walk takes; as `MinD3D.predict_embedding` draws it."""

    def __init__(self, pipe: MinD3D, seed: int, sample: int = 0) -> None:
        settings = pipe.recipe.bridge
        self._seed, self._sample = seed, sample
        self._draws = len(trailing(pipe.path, settings.steps))  # the start, and one a step at most
        self._size = settings.candidates, settings.network.dim
        self._kept: dict[tuple[str, str, str], Tensor] = {}

    def of(self, trials: pd.DataFrame) -> Tensor:
        """(n, draws, candidates, d)."""
        columns = (trials[name].tolist() for name in ("subject", "stimulus", "repeat"))
        return torch.stack([self._one(*key) for key in zip(*columns, strict=True)])

    def _one(self, subject: Any, stimulus: Any, repeat: Any) -> Tensor:
        key = str(subject), str(stimulus), str(repeat)
        if key not in self._kept:
            name = f"{stimulus} r{repeat}"
            seed = item_seed(
                self._seed, subject=subject, stimulus=name, sample=self._sample, stage="bridge"
            )
            generator = torch_generator(seed)
            made = [torch.randn(*self._size, generator=generator) for _ in range(self._draws)]
            drawn = torch.stack(made)
            if 4 * drawn.numel() * (len(self._kept) + 1) > _MOST_NOISE:
                return drawn
            self._kept[key] = drawn
        return self._kept[key]


def rest_of_the_way(pipe: MinD3D, embedded: Tensor, anchor: Tensor, noise: Tensor) -> Tensor:
    """Encoder, aggregation and bridge: the embedding (n, d), before it is brought to norm.

    `neurodiff.bridges.prior.sample_embeddings` with its noise given, and with derivatives.

    Parameters
    ----------
    embedded : (n, frames, kept patches, width).
    noise : (n, draws, candidates, d), of :class:`TrialNoise`.
    """
    settings, networks = pipe.recipe.bridge, pipe.networks
    assert networks is not None
    tokens = networks.tokens_of_embedded(embedded.flatten(0, 1), settings.frames)
    anchors = anchor if settings.anchor == "ridge" else None
    n, _, candidates, d = noise.shape
    prepared = networks.prior_network.prepare(with_anchor(tokens, anchors)).repeat(candidates)
    grid, solver = trailing(pipe.path, settings.steps), DDIM(settings.eta)
    times = [int(level.t) for level in grid[:-1]]
    walk, draws = BridgeWalk(networks.prior_network, prepared, times), iter(noise.unbind(1))
    added = 0 if anchors is None else anchors.repeat_interleave(candidates, dim=0)

    def fresh() -> Tensor:
        return next(draws).to(tokens).reshape(n * candidates, d)

    def denoise(at: Tensor, level: Level) -> Tensor:
        return walk.step(at, times.index(int(level.t))) + added

    x = grid[0].sigma * fresh()
    for a, b in pairwise(grid):
        x = solver.step(x, a, b, denoise, fresh, {})
    drawn = x.reshape(n, candidates, d)
    mean = drawn.mean(dim=1)
    if settings.choose == "mean":
        return mean
    aim = mean if settings.choose == "nearest-to-mean" else tokens.mean(dim=1)
    best = torch.cosine_similarity(drawn, aim[:, None], dim=-1).argmax(dim=1)
    return drawn[torch.arange(n), best]


def _blocks(n: int) -> list[slice]:
    return [slice(start, min(start + _ROWS, n)) for start in range(0, n, _ROWS)]


def _tensors(layer: InputLayer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    parts = (layer.mean, layer.std, layer.weights, layer.bias)
    mean, std, weights, bias = (torch.from_numpy(np.asarray(v, np.float32)) for v in parts)
    return mean, std, weights, bias
