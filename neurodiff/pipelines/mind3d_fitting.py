"""Training of each stage of MinD-3D: what is drawn, what is predicted, what is minimised.

Functions of networks and arrays; ``neurodiff.pipelines.mind3d`` calls them in order and keeps what
they fit. ``Loop`` holds what every stage hands on to the one training loop.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from neurodiff.bridges.prior import denoising_loss
from neurodiff.bridges.ridge import MultiTargetRidge
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording
from neurodiff.core.seeds import item_seed, seeded_layers, torch_generator
from neurodiff.core.training import train
from neurodiff.diffusion.paths import VariancePreserving
from neurodiff.geometry.bank import ShapeBank
from neurodiff.models.codebook import code_usage, reseed_dead_codes
from neurodiff.models.mind3d import BrainNetworks, ShapeGenerator
from neurodiff.models.shape_decoder import ShapeDecoder
from neurodiff.models.triplane_vq import TriplaneVQ
from neurodiff.pipelines.brain_input import BrainInput, frames_at_test
from neurodiff.pipelines.mind3d_settings import (
    BridgeSettings,
    ShapeDecoderSettings,
    TokenizerSettings,
)

if TYPE_CHECKING:
    import pandas as pd

#: what a fitted anchor is restored from
_ANCHOR = ("coef_", "intercept_", "alpha_", "loo_predictions_")


@dataclass(frozen=True)
class Loop:
    """Seed of the run, and where a stage's checkpoints, metrics and progress go."""

    seed: int = 0
    folder: Path | None = None
    log: Callable[[dict], None] | None = None
    progress: Progress = SILENT

    def run(self, stage: str, model: nn.Module, loss, settings, n_items: int, **more) -> None:
        """`neurodiff.core.training.train` with what this loop holds."""
        train(
            model,
            loss,
            n_items=n_items,
            settings=settings,
            seed=self.seed,
            stage=stage,
            folder=self.folder,
            log=self.log,
            progress=self.progress,
            **more,
        )


def fit_tokenizer(
    model: TriplaneVQ, bank: ShapeBank, settings: TokenizerSettings, loop: Loop
) -> None:
    """Reconstruct occupancy at labelled points from surface points."""
    module = _TokenizerTraining(model, int(settings.continuous * settings.training.steps))

    def loss(model, rows, generator):
        points = _pick(bank.surface, rows, settings.n_points, generator)
        chosen = _choices(len(rows), bank.queries.shape[1], settings.n_queries, generator)
        queries = as_tensor(np.take_along_axis(bank.queries[rows], chosen[..., None], axis=1))
        occupied = as_tensor(np.take_along_axis(bank.occupied[rows], chosen, axis=1))
        return model(points, queries, occupied)

    def upkeep(step):
        module.steps += 1
        after = int(module.steps) - module.continuous  # quantised steps done so far
        late = step > settings.reseed_until * settings.training.steps
        if after >= 0 and after % settings.reseed_every == 0 and not late:
            key = item_seed(loop.seed, subject="", stimulus=f"step {step}", stage="reseed")
            module.reseed(torch_generator(key))

    loop.run("tokenizer", module, loss, settings.training, len(bank), after_step=upkeep)


def fit_shape_decoder(
    model: ShapeDecoder,
    codes: Int[Tensor, "n codes"],
    target: Float[Tensor, "n d"],
    settings: ShapeDecoderSettings,
    loop: Loop,
) -> dict:
    """Codes from the embedding; noise on it teaches the decoder what a blurred one means."""

    def loss(model, rows, generator):
        clean = target[rows]
        spread = settings.condition_noise * torch.rand(len(rows), 1, generator=generator)
        noisy = clean + spread * torch.randn(clean.shape, generator=generator)
        logits = model(codes[rows], renormed(noisy), use_adapters=False)
        return {"loss": F.cross_entropy(logits.flatten(0, 1), codes[rows].flatten())}

    loop.run("shape-decoder", model, loss, settings.training, len(codes))
    return decoder_likelihood(model, codes[:256], target[:256], use_adapters=False)


def fit_anchor(
    ridge: MultiTargetRidge,
    betas: Float[np.ndarray, "trials features"],
    target: Float[np.ndarray, "trials d"],
    stimuli: Sequence[str] | pd.Series,
) -> dict:
    """Ridge from betas to embedding, where the bridge starts."""
    ridge.fit(betas, target, groups=stimuli)  # repeats of a stimulus are left out together
    return {
        "leave-one-out cosine": mean_cosine(ridge.loo_predictions_, target),
        "alpha": ridge.alpha_[0],
    }


def anchor_state(ridge: MultiTargetRidge) -> dict[str, Tensor]:
    """What of a fitted anchor a stage keeps, float64."""
    return {name: torch.tensor(getattr(ridge, name), dtype=torch.float64) for name in _ANCHOR}


def restore_anchor(ridge: MultiTargetRidge, state: dict[str, Tensor]) -> None:
    """The inverse of `anchor_state`."""
    for name in _ANCHOR:
        setattr(ridge, name, state[name].numpy().astype(np.float64))
    ridge.n_features_in_ = ridge.coef_.shape[-1]


def fit_bridge(
    networks: BrainNetworks,
    recording: Recording,
    brain: BrainInput,
    target: Float[np.ndarray, "trials d"],
    anchors: Float[Tensor, "trials d"] | None,
    settings: BridgeSettings,
    loop: Loop,
    *,
    path: VariancePreserving,
) -> dict:
    """Embedding from frames, by diffusion, on top of the leave-one-out anchor (or of nothing)."""
    goal, n = torch.from_numpy(target), settings.frames

    def loss(model, rows, generator):
        ascending = np.argsort(rows, kind="stable")  # lazy data is read in order
        frames = np.zeros((len(rows), *_frames_of(recording)), np.float32)
        frames[ascending] = brain.standardised(recording.data[rows[ascending]])
        order = torch.rand(frames.shape[:2], generator=generator).argsort(dim=1)
        chosen = (
            order[:, :n].sort(dim=1).values.numpy()
            if frames.shape[1] > n
            else np.tile(frames_at_test(frames.shape[1], n), (len(rows), 1))
        )
        maps = np.take_along_axis(frames, chosen[..., None], axis=1)
        maps = torch.from_numpy(maps.reshape(-1, maps.shape[-1]))
        maps += settings.input_noise * torch.randn(maps.shape, generator=generator)
        value = denoising_loss(
            model.prior_network,
            goal[rows],
            model.tokens(brain.patches(maps), n),
            path=path,
            generator=generator,
            anchor=None if anchors is None else anchors[rows],
            dropout=settings.condition_dropout,
        )
        return {"loss": value}

    loop.run("bridge", networks, loss, settings.training, recording.n_trials)
    return {"trials": recording.n_trials}


def fit_adapters(
    model: ShapeDecoder,
    adapters: nn.Module,
    codes: Int[Tensor, "trials codes"],
    predicted: Float[Tensor, "trials d"],
    settings: ShapeDecoderSettings,
    loop: Loop,
) -> dict:
    """Published stage 2: only the adapters learn, fed with predictions from the brain.

    ``predicted`` are the anchor's leave-one-out predictions, so their errors are those of trials
    that nothing was fitted on.
    """

    def loss(_, rows, generator):
        logits = model(codes[rows], renormed(predicted[rows]))
        return {"loss": F.cross_entropy(logits.flatten(0, 1), codes[rows].flatten())}

    loop.run("adapters", adapters, loss, settings.adapters, len(codes))
    return decoder_likelihood(model, codes[:256], predicted[:256], use_adapters=True)


def reset_adapters(decoder: ShapeDecoder, seed: int) -> None:
    """To the identity: another recording may have been fitted before."""
    with first_weights(seed, "adapters"):
        for block in decoder.blocks:
            if block.adapter is not None:
                nn.init.normal_(block.adapter.x_fc1.weight, std=0.02)
                for values in (block.adapter.x_fc1.bias, *block.adapter.x_fc2.parameters()):
                    nn.init.zeros_(values)


def shapes_hash(shapes: ShapeGenerator) -> str:
    """SHA-256 of tokenizer and shape decoder, without the adapters."""
    digest = hashlib.sha256()
    for name, tensor in shapes.state_dict().items():
        if ".adapter." not in name:
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(name.encode() + raw.numpy().tobytes())
    return digest.hexdigest()


def first_weights(seed: int, part: str) -> AbstractContextManager[None]:
    """Layers made in this block start from the run's seed and the part's name."""
    key = item_seed(seed, subject="", stimulus=part, stage="initial weights")
    return seeded_layers(key)


def mean_cosine(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"]) -> float:
    """Cosine of each pair of rows, mean over rows; 0 for a row of zeros."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean((a * b).sum(axis=1) / np.maximum(lengths, 1e-12)))


def renormed(embedding: Tensor) -> Tensor:
    """To norm sqrt(d): a prediction's length says how sure it is, not what it is."""
    return F.normalize(embedding, dim=-1) * embedding.shape[-1] ** 0.5


def as_tensor(values: np.ndarray) -> Tensor:
    """float32, whatever the array holds."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


@torch.no_grad()
def decoder_likelihood(
    model: ShapeDecoder,
    codes: Int[Tensor, "n codes"],
    embedding: Float[Tensor, "n d"],
    *,
    use_adapters: bool,
    of: str = "training objects",
) -> dict[str, float]:
    """How likely the decoder finds the true codes: mean cross-entropy (nats a code; a guess has
    ln(vocab)) and the share of codes that it ranks first, given all codes before."""
    logits = model(codes, renormed(embedding), use_adapters=use_adapters)
    entropy = F.cross_entropy(logits.flatten(0, 1), codes.flatten())
    hits = (logits.argmax(-1) == codes).float().mean()
    return {f"cross-entropy ({of})": float(entropy), f"code accuracy ({of})": float(hits)}


def _frames_of(recording: Recording) -> tuple[int, int]:
    frames = recording.frames or (1,)
    return frames[0], recording.n_features


class _TokenizerTraining(nn.Module):
    """The tokenizer with what its training remembers (so that a checkpoint holds it).

    The first ``continuous`` steps leave the codes unquantised and the codebook is then set to
    encoder outputs: from the published initial codebook (all codes near 0) a training this short
    collapses to a single code.
    """

    def __init__(self, model: nn.Module, continuous: int):
        super().__init__()
        self.model, self.continuous = model, continuous
        self.register_buffer("usage", torch.zeros(model.size.vocab))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self._planes: Tensor | None = None

    def forward(self, points, queries, occupied) -> dict[str, Tensor]:
        self._planes = self.model.encode_planes(points)
        if self.steps < self.continuous:
            codes, vq = self.model.encode(self._planes), torch.zeros(())
        else:
            ids, codes, vq = self.model.quantise(self._planes)
            self.usage.mul_(0.9).add_(code_usage(ids, len(self.usage)))
        logits = self.model.occupancy(self.model.planes_from_codes(codes), queries)
        occupancy = F.binary_cross_entropy_with_logits(logits, occupied)
        return {"loss": occupancy + vq, "occupancy": occupancy, "vq": vq}

    @torch.no_grad()
    def reseed(self, generator: torch.Generator) -> None:
        """Codes that nothing chose lately move onto vectors of the last batch."""
        vectors = self.model.encode(self._planes.detach()).flatten(0, 1)
        codebook = self.model.quantizer.quantizer.embedding.weight
        reseed_dead_codes(codebook, self.usage, vectors, generator)


def _pick(points: np.ndarray, rows: np.ndarray, n: int, generator: torch.Generator) -> Tensor:
    chosen = _choices(len(rows), points.shape[1], n, generator)
    return as_tensor(np.take_along_axis(points[rows], chosen[..., None], axis=1))


def _choices(rows: int, available: int, n: int, generator: torch.Generator) -> np.ndarray:
    """``n`` different positions a row."""
    return torch.rand(rows, available, generator=generator).topk(n, dim=1).indices.numpy()
