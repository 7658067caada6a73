"""What the three stages of LDAE will cost, found without their memory: bytes, operations, hours.

A micro-batch of each stage runs forward and backward on fake tensors, which have shapes and no
values, while every live storage is counted (`stage_cost.LiveBytes`).  Weights, gradients, the two
moments of the optimiser, the moving average and the discriminator are added as they lie beside it.
On a graphics card, add what the driver and the allocator's blocks take (about 1 to 2 GB).

Hours are operations over the card's peak rate times a utilisation, which is an assumption:
three-dimensional convolutions reach less of it than the matrix products of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from neurodiff.core.cohort import Cohort
from neurodiff.core.errors import UsageError, suggest
from neurodiff.core.training import TrainingSettings
from neurodiff.diffusion.paths import VariancePreserving
from neurodiff.models.ldae_autoencoder import autoencoder
from neurodiff.models.ldae_slice_encoder import SliceEncoder, slices_first
from neurodiff.models.ldae_unet import LatentUNet, ShiftUNet
from neurodiff.pipelines.ldae_losses import Adversary, AutoencoderLoss
from neurodiff.pipelines.ldae_settings import LDAERecipe
from neurodiff.pipelines.ldae_training import SemanticLoss, TrunkLoss, set_checkpointing
from neurodiff.pipelines.stage_cost import CARDS, LiveBytes

UTILISATION = 0.25  # assumed share of the peak bf16 rate
STAGES = ("autoencoder", "trunk", "semantic")
_ROOM = 0.93  # of the card; the rest is the driver's and the allocator's


@dataclass(frozen=True, kw_only=True)
class LDAEStageCost:
    """Bytes of one stage, and FLOP of one of its optimiser steps over the whole batch."""

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimiser: int
    average: int  # the moving average of the weights
    activations: int  # what the peak of a micro-batch holds beside weights and gradients
    flop: float
    steps: int

    @property
    def peak(self) -> int:
        held = self.weights + self.gradients + self.optimiser + self.average
        return held + self.activations


def stage_costs(recipe: LDAERecipe) -> dict[str, LDAEStageCost]:
    """Cost of each stage that the recipe trains."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    found = {}
    path = recipe.walks().path()  # its tables have values, so it is made before the mode
    for name in STAGES:
        training = getattr(recipe, name).training
        if training is not None:
            with FakeTensorMode(allow_non_fake_inputs=True):
                found[name] = _measured(recipe, name, training, path)
    return found


def _measured(
    recipe: LDAERecipe, name: str, training: TrainingSettings, path: VariancePreserving
) -> LDAEStageCost:
    n = -(-training.batch_size // training.accumulate)
    model, inputs, beside = _stage(recipe, name, n, path)
    trained = [p for p in model.parameters() if p.requires_grad]
    live = LiveBytes()
    live.hold([*model.parameters(), *model.buffers()])
    weights = live.now
    counter = FlopCounterMode(display=False)
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.bfloat16}[
        training.precision
    ]
    with live, counter, torch.autocast("cpu", dtype=dtype, enabled=training.precision != "no"):
        model.train()(*inputs, torch.Generator())["loss"].backward()
    gradients = sum(p.numel() * p.element_size() for p in trained)
    extra = [p for m in beside for p in m.parameters()]
    held = sum(p.numel() * p.element_size() for p in extra)
    ema = weights if training.ema_decay else 0
    return LDAEStageCost(
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in trained),
        weights=weights + held,
        gradients=gradients + held,
        optimiser=2 * (gradients + held),
        average=ema,
        # those of the discriminator are made in the step, and are counted with its weights
        activations=max(live.peak - weights - gradients - 2 * held, 0),
        flop=float(counter.get_total_flops()) * training.accumulate,
        steps=training.steps,
    )


def _stage(
    recipe: LDAERecipe, name: str, n: int, path: VariancePreserving
) -> tuple[nn.Module, list[Any], list[nn.Module]]:
    """The module of a stage, a micro-batch for it, and networks that are trained beside it."""
    volumes = torch.zeros(n, 1, *recipe.size.grid)
    latents = torch.zeros(n, *recipe.size.latent)
    if name == "autoencoder":
        stage = recipe.autoencoder
        network = autoencoder(recipe.size.autoencoder)
        if not stage.adversarial:
            return AutoencoderLoss(network, stage), [volumes], []
        assert stage.training is not None
        adversary = Adversary(stage, seed=0, batch_size=stage.training.batch_size)
        adversary.steps = stage.adversarial_from
        return AutoencoderLoss(network, stage, adversary=adversary), [volumes], [adversary.network]
    if name == "trunk":
        trunk = LatentUNet(recipe.size.unet)
        trunk.checkpointing = recipe.trunk.checkpointing
        return TrunkLoss(trunk, path), [latents], []
    with torch.device("meta"):  # its first weights are drawn by value, which a fake tensor has not
        encoder = SliceEncoder(recipe.size.encoder)
    _give_memory(encoder)
    decoder = ShiftUNet(recipe.size.unet)
    set_checkpointing(encoder, decoder, recipe.semantic.checkpointing)
    return _Semantic(encoder, decoder, path), [volumes, latents], []


class _Semantic(SemanticLoss):
    """The same work without the question whether the shift acts, which needs values."""

    def forward(self, volumes: Tensor, latents: Tensor, generator: Any) -> dict[str, Tensor]:
        steps = torch.zeros(len(latents))
        noise, shift = self.decoder(latents, steps, self.encoder(slices_first(volumes)))
        return {"loss": ((noise - shift - latents) ** 2).mean()}


def _give_memory(network: nn.Module) -> None:
    """Parameters and buffers on the meta device become tensors of the mode that is on."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.zeros(parameter.shape))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.zeros(buffer.shape)


def plan_text(recipe: LDAERecipe, cohort: Cohort | int | None = None) -> str:
    """What ``fit --dry-run`` prints: memory for the recipe's card, hours for every card.

    Parameters
    ----------
    cohort : the scans or their number, for epochs and the disk.

    Raises
    ------
    UsageError : the recipe names a card that is not in the table.
    """
    if recipe.card not in CARDS:
        raise UsageError(
            f"card is {recipe.card!r}; known are {', '.join(CARDS)}.{suggest(recipe.card, CARDS)}"
        )
    card, costs = CARDS[recipe.card], stage_costs(recipe)
    scans = None if cohort is None else cohort if isinstance(cohort, int) else len(cohort)
    grid = " x ".join(map(str, recipe.size.grid))
    lines = [
        f"recipe {recipe.name}, protocol {recipe.protocol}: {grid} voxels, latents of "
        f"{' x '.join(map(str, recipe.size.latent))}, codes of {recipe.size.encoder.code}",
        f"memory of one {recipe.card}, counted on tensors without values; add 1 to 2 GB for the "
        "driver and the allocator:",
    ]
    for name in STAGES:
        training = getattr(recipe, name).training
        if training is None:
            lines.append(f"  {name}: not trained")
            continue
        cost = costs[name]
        fits = "fits" if cost.peak < _ROOM * card.memory else "does NOT fit"
        epochs = "" if not scans else f", {training.steps * training.batch_size / scans:.1f} epochs"
        per = -(-training.batch_size // training.accumulate)
        lines += [
            f"  {name}: {training.steps} steps of {training.batch_size} "
            f"({training.accumulate} parts of {per}){epochs}, precision {training.precision}; "
            f"{cost.trained:,} of {cost.parameters:,} parameters are trained",
            f"    weights {_gb(cost.weights)}, gradients {_gb(cost.gradients)}, optimiser "
            f"{_gb(cost.optimiser)}, moving average {_gb(cost.average)}, activations "
            f"{_gb(cost.activations)}: {_gb(cost.peak)} in all, {fits} into "
            f"{card.memory / 1e9:.0f} GB",
            f"    {cost.flop / 2e12:,.3g} TMAC a step",
        ]
    if recipe.autoencoder.training is not None and recipe.autoencoder.perceptual:
        lines.append("  the perceptual trunk of stage 1 comes on top: its size is that of a file")
    if scans:
        voxels = recipe.size.grid[0] * recipe.size.grid[1] * recipe.size.grid[2]
        each = voxels * (2 if recipe.semantic.stored == "float16" else 4)
        latent = 8 * torch.Size(recipe.size.latent).numel()
        lines.append(
            f"disk for {scans} scans: {_gb(scans * each)} prepared, {_gb(scans * latent)} latents"
        )
    lines.append(f"hours, assuming {UTILISATION:.0%} of the peak bf16 rate:")
    for name, one in CARDS.items():
        hours = {k: c.flop * c.steps / (one.rate * UTILISATION) / 3600 for k, c in costs.items()}
        parts = ", ".join(f"{k} {h:.2f}" for k, h in hours.items())
        lines.append(f"  {name:<10}{sum(hours.values()):>9.2f} h ({parts})   [{one.source}]")
    lines.append("nothing was written (--dry-run)")
    return "\n".join(lines)


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
