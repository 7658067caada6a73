"""Feature-bridge diffusion: from condition tokens of a recording to the embedding it evokes.

The network predicts x0 on the published cosine path. With an *anchor* (a cheaper prediction, here
ridge) the network's output is what to add to it:

    D(x_t, t | tokens, anchor) = anchor + network(x_t, t, [tokens, anchor])

so that before any training the bridge already equals the anchor, and what it learns is the rest.
In training the anchor must be a leave-one-out prediction, or the bridge learns to trust it more
than a new trial warrants. Without an anchor this is the published graph (Gao et al. 2024, ECCV,
section 3.3; reference mind3d.md 2.1).

Functions of arrays and of a network with ``prepare`` / ``step`` / ``forward``; the network itself
is ``neurodiff.models.feature_bridge``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from neurodiff.diffusion.grids import trailing
from neurodiff.diffusion.paths import Level, VariancePreserving, add_noise
from neurodiff.diffusion.sampling import sample
from neurodiff.diffusion.solvers import DDIM

Choice = Literal["mean", "nearest-to-mean", "fmri-cosine"]


def with_anchor(
    tokens: Float[Tensor, "n tokens d"], anchor: Float[Tensor, "n d"] | None
) -> Float[Tensor, "n tokens_and_anchor d"]:
    """The anchor takes part as the last condition token."""
    return tokens if anchor is None else torch.cat([tokens, anchor[:, None]], dim=1)


def denoising_loss(
    network: Any,
    target: Float[Tensor, "n d"],
    tokens: Float[Tensor, "n tokens d"],
    *,
    path: VariancePreserving,
    generator: torch.Generator,
    anchor: Float[Tensor, "n d"] | None = None,
    dropout: float = 0.2,
) -> Float[Tensor, ""]:
    """Mean squared error of x0 at uniformly drawn steps (the published objective).

    ``dropout`` is the share of items whose fMRI tokens, and independently whose noisy embedding,
    are replaced by the learned null tokens; the anchor of an item without its tokens is dropped
    with them (it comes from the same recording).
    """
    n = len(target)
    t = path.sample_t(n, generator)
    noise = torch.randn(target.shape, generator=generator).to(target)
    drop_fmri, drop_image = (torch.rand(2, n, generator=generator) < dropout).to(target.device)
    x = add_noise(target, noise, path.levels(t, like=target))
    predicted = network(
        x,
        t.to(target.device),
        with_anchor(tokens, anchor),
        drop_fmri=drop_fmri,
        drop_image=drop_image,
    )
    if anchor is not None:
        predicted = predicted + torch.where(drop_fmri[:, None], 0.0, anchor)
    return F.mse_loss(predicted, target)


@dataclass(frozen=True)
class BridgeDenoiser:
    """The network as the core's denoiser: tokens prepared once, three tokens a step."""

    network: Any
    unconditional: bool = False

    def prepare(self, cond: tuple[Tensor, Tensor | None]) -> tuple[Any, Tensor | None]:
        tokens, anchor = cond
        if self.unconditional:
            hidden = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
            return self.network.prepare(with_anchor(tokens, anchor), hidden), None
        return self.network.prepare(with_anchor(tokens, anchor)), anchor

    def __call__(self, x: Tensor, level: Level, state: tuple[Any, Tensor | None]) -> Tensor:
        prepared, anchor = state
        t = torch.full((len(x),), int(level.t), dtype=torch.long, device=x.device)
        mean = self.network.step(x, t, prepared)
        if anchor is None:
            return mean
        return mean + anchor.repeat_interleave(len(x) // len(anchor), dim=0)


def sample_embeddings(
    network: Any,
    tokens: Float[Tensor, "n tokens d"],
    generators: Sequence[torch.Generator],
    *,
    path: VariancePreserving,
    anchor: Float[Tensor, "n d"] | None = None,
    candidates: int = 8,
    steps: int = 16,
    eta: float = 1.0,
    choose: Choice = "mean",
    unconditional: bool = False,
) -> Float[Tensor, "n d"]:
    """One embedding an item, made from ``candidates`` draws that share the prepared tokens.

    Parameters
    ----------
    generators : one an item; all draws of the item come from it.
    choose : "mean" of the draws (estimates the posterior mean); the draw "nearest-to-mean"; or, as
        published, the draw with the highest cosine to the mean fMRI token.
    unconditional : the learned null stands for all tokens and the anchor: what the bridge says
        without a brain (give ``tokens`` for their shape).
    """
    denoiser = BridgeDenoiser(network, unconditional)
    prepared, anchor = denoiser.prepare((tokens, anchor))
    if candidates > 1:
        prepared = prepared.repeat(candidates)
    n, d = len(tokens), tokens.shape[-1]
    grid = trailing(path, steps)
    start = torch.stack([torch.randn(candidates, d, generator=g) for g in generators])
    x = grid[0].sigma * start.reshape(n * candidates, d).to(tokens)

    def noise(_: int, like: Tensor) -> Tensor:
        rows = [torch.randn(candidates, d, generator=g) for g in generators]
        return torch.stack(rows).reshape(n * candidates, d).to(like)

    drawn = sample(denoiser, x, grid, DDIM(eta), state=(prepared, anchor), noise=noise)
    drawn = drawn.reshape(n, candidates, d)
    mean = drawn.mean(dim=1)
    if choose == "mean":
        return mean
    aim = mean if choose == "nearest-to-mean" else tokens.mean(dim=1)
    best = F.cosine_similarity(drawn, aim[:, None], dim=-1).argmax(dim=1)
    return drawn[torch.arange(n), best]
