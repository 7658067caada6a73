"""What a training stage will cost, found without its memory: bytes, operations, hours, disk.

An optimiser step and the part after it run on fake tensors, which have shapes and no values, while
every live storage is counted; so the peak is that of the same operations on real tensors.  On a
graphics card, add what the driver and the allocator's blocks take (about 1 to 3 GB), and take off
what its fused attention does not keep: with dropout, the processor's kernels counted here store the
attention weights.

Hours are operations over the card's peak rate times a utilisation, which is an assumption.
"""

from __future__ import annotations

import contextlib
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from neurodiff.diffusion.paths import VariancePreserving, cosine
from neurodiff.pipelines.mind3d_protocol import as_dtype
from neurodiff.pipelines.mind3d_stages import StageNetworks, StageNoise, StageRecipe

UTILISATION = 0.4  # assumed share of the peak rate; well-tuned transformer training has 0.3 to 0.5


@dataclass(frozen=True)
class Card:
    """Memory in bytes and dense bf16 rate in FLOP/s, from the maker's data sheet."""

    memory: float
    rate: float
    source: str


#: Makers' figures: dense (no sparsity) bf16 tensor-core rates.
CARDS: dict[str, Card] = {
    "A100 80GB": Card(80e9, 312e12, "NVIDIA A100 data sheet"),
    "H100 80GB": Card(80e9, 989e12, "NVIDIA H100 SXM data sheet"),
    "H200": Card(141e9, 989e12, "NVIDIA H200 SXM data sheet"),
    "L40S": Card(48e9, 362e12, "NVIDIA L40S data sheet"),
    "RTX 4090": Card(24e9, 165e12, "NVIDIA Ada architecture paper"),
}


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that are alive, and their peak, while the mode is on.

    ``hold`` counts tensors that were made before.  It works on real and on fake tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: Any = WeakIdKeyDictionary()

    def hold(self, tensors: Any) -> None:
        for tensor in tensors:
            self._see(tensor)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, out)
        return out

    def _see(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            size = storage.nbytes()
            self._seen[storage] = weakref.finalize(storage, self._gone, size)
            self.now += size
            self.peak = max(self.peak, self.now)
        return tensor

    def _gone(self, size: int) -> None:
        self.now -= size


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """Of one process. Bytes; FLOP of one optimiser step over the whole batch."""

    parameters: int
    trained: int
    weights: int  # bytes of all parameters and buffers
    gradients: int  # with several cards twice: theirs, and what is sent
    optimiser: int  # two moments of each trained parameter
    activations: int  # what the peak holds beside the three above
    peak: int
    flop: float
    checkpoint: int  # bytes of one checkpoint on disk, of which two are kept
    result: int  # bytes of the finished weights: what was trained, and the whole under its names


def stage_cost(recipe: StageRecipe) -> StageCost:
    """Cost of an optimiser step of one process out of ``recipe.gpus``."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    path = cosine(recipe.sizes.bridge.timesteps)  # has values, so it is made before the mode
    with FakeTensorMode(allow_non_fake_inputs=True):
        return measured_step(recipe, path)


def measured_step(recipe: StageRecipe, path: VariancePreserving) -> StageCost:
    """Build the networks and do one optimiser step; on fake tensors inside of their mode."""
    networks, batch = stage_networks(recipe, path), micro_batch(recipe)
    trained, _ = networks.rates(recipe.slow)
    live = LiveBytes()
    live.hold([*networks.parameters(), *networks.buffers()])
    weights = live.now
    counter = FlopCounterMode(display=False, custom_mapping=_ATTENTION)
    with live:
        one_step(networks, trained, recipe, batch, counter)
    gradients = sum(p.numel() * p.element_size() for p in trained)
    moments = 2 * gradients
    buckets = gradients if recipe.gpus > 1 else 0  # what is sent between cards is a second copy
    stored = sum(t.numel() * t.element_size() for t in networks.state_dict().values())
    return StageCost(
        parameters=sum(p.numel() for p in networks.parameters()),
        trained=sum(p.numel() for p in trained),
        weights=weights,
        gradients=gradients + buckets,
        optimiser=moments,
        activations=live.peak - weights - gradients - moments,
        peak=live.peak + buckets,
        flop=float(counter.get_total_flops()) * recipe.training.accumulate * recipe.gpus,
        checkpoint=stored + moments,
        result=stored + gradients,
    )


def stage_networks(recipe: StageRecipe, path: VariancePreserving) -> StageNetworks:
    """The networks of a stage in training mode, the frozen part in its own number type."""
    networks = StageNetworks(recipe, path)
    if recipe.stage == 2 and recipe.training.precision != "no":  # only autocast mixes types
        dtype = as_dtype(recipe.frozen_precision)
        for parameter in networks.shape_generator.transformer_model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
    return networks.train()


def micro_batch(recipe: StageRecipe) -> tuple[Tensor, Tensor, Tensor | None, StageNoise]:
    """Values of the right shape for one part of a step of one process."""
    n = recipe.training.batch_size // (recipe.training.accumulate * recipe.gpus)
    sizes = recipe.sizes
    side, dim = sizes.encoder.image_size, sizes.bridge.dim
    codes = None
    if recipe.stage == 2:
        codes = torch.zeros(n, sizes.decoder.sequence, dtype=torch.long)
    hidden = torch.zeros(n, dtype=torch.bool)
    noise = StageNoise(torch.zeros(n, dtype=torch.long), torch.ones(n, dim), hidden, hidden.clone())
    return torch.ones(n, sizes.frames, side, side), torch.ones(n, dim), codes, noise


def one_step(
    networks: StageNetworks,
    trained: list[torch.nn.Parameter],
    recipe: StageRecipe,
    batch: tuple[Tensor, Tensor, Tensor | None, StageNoise],
    counter: FlopCounterMode | None = None,
) -> None:
    """A step that makes gradients and moments, and the next part on top of them.

    The peak is then that of every part but the very first; ``counter`` counts the second part.
    """
    optimiser = torch.optim.AdamW(trained, lr=1e-6, foreach=False)
    _backward(networks, recipe, batch)
    optimiser.step()
    with counter if counter is not None else contextlib.nullcontext():
        _backward(networks, recipe, batch)


def _backward(networks: StageNetworks, recipe: StageRecipe, batch: Any) -> None:
    precision = recipe.training.precision
    dtype = torch.float32 if precision == "no" else as_dtype(precision)
    with torch.autocast("cpu", dtype=dtype, enabled=precision != "no"):
        networks(*batch)["loss"].backward()


def _attention_flop(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    """Two matrix products: queries with keys, weights with values."""
    b, h, q, d = query
    return 2 * b * h * q * key[2] * (d + value[3])


def _attention_backward_flop(
    gradient: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any
) -> int:
    """Five matrix products: the weights again, and the derivatives of four factors."""
    b, h, q, d = query
    return 2 * b * h * q * key[2] * (3 * d + 2 * value[3])


_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flop,
}


def plan_text(recipe: StageRecipe, *, trials: int | None = None) -> str:
    """What ``fit --dry-run`` prints of a stage.

    Memory is given for the recipe's card and number of cards, hours for every card of the table.
    """
    cost, how = stage_cost(recipe), recipe.training
    per_card = how.batch_size // (how.accumulate * recipe.gpus)
    n = recipe.items if trials is None else trials
    total = cost.flop * how.steps
    card = CARDS[recipe.gpu]
    fits = "fits" if cost.peak < 0.93 * card.memory else "does NOT fit"
    lines = [
        f"recipe {recipe.name}: published stage {recipe.stage}, protocol {recipe.protocol}",
        f"{recipe.gpus} x {recipe.gpu}: batch {how.batch_size} = {recipe.gpus} cards x "
        f"{how.accumulate} parts x {per_card} trials; {how.steps} steps, "
        f"{how.steps * how.batch_size / n:.1f} epochs of {n} trials",
        f"parameters: {cost.parameters:,}, of which {cost.trained:,} are trained",
        "peak memory of a card, counted on tensors without values (an upper bound: fused attention "
        "on a card keeps less):",
        f"  weights                       {_gb(cost.weights)}",
        f"  gradients                     {_gb(cost.gradients)}",
        f"  moments of AdamW              {_gb(cost.optimiser)}",
        f"  activations and work space    {_gb(cost.activations)}",
        f"  all                           {_gb(cost.peak)}, {fits} into {card.memory / 1e9:.0f} GB "
        "(with 7 % left for the driver and the allocator)",
        f"operations: {cost.flop / 1e12:,.1f} TFLOP a step, {total / 1e18:,.3f} EFLOP in all",
        f"disk: {_gb(2 * cost.checkpoint)} for two checkpoints, {_gb(cost.result)} for the result",
        f"hours on {recipe.gpus} card(s), assuming {UTILISATION:.0%} of the peak bf16 rate:",
    ]
    for name, one in CARDS.items():
        hours = total / (recipe.gpus * one.rate * UTILISATION) / 3600
        room = "" if cost.peak < 0.93 * one.memory else "  (too little memory)"
        lines.append(
            f"  {name:<12}{hours:>8.2f} h{room}   [{one.rate / 1e12:.0f} TFLOP/s, {one.source}]"
        )
    lines.append("nothing was written (--dry-run); no graphics card was used for these figures")
    return "\n".join(lines)


def _gb(size: float) -> str:
    return f"{size / 1e9:>7.2f} GB"
