"""Fit a published stage: weights in, one training loop, weights out under the published names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording
from neurodiff.core.training import train
from neurodiff.diffusion.paths import cosine
from neurodiff.models.published_sizes import (
    AGGREGATION,
    DECODER,
    ENCODER,
    HEADER,
    LOGIT_SCALE,
    PRIOR,
    PRIOR_TWIN,
)
from neurodiff.models.weights import LAYOUTS, fill, open_checkpoint
from neurodiff.pipelines.mind3d_protocol import as_dtype
from neurodiff.pipelines.mind3d_stages import StageNetworks, StageNoise, StageRecipe
from neurodiff.pipelines.path_noise import noise_along_paths

GROUPS = {1: (ENCODER, AGGREGATION, PRIOR, HEADER), 2: (ENCODER, AGGREGATION, PRIOR, DECODER)}


@dataclass(frozen=True)
class StageTargets:
    """What each training trial is to become, row by row as the recording's trials.

    image : features (trials, d), or (trials, views, d) of which ``views_drawn`` are averaged.
    codes : of the shapes, for stage 2.
    """

    image: Float[np.ndarray, "trials *views d"]
    codes: Int[np.ndarray, "trials codes"] | None = None
    views_drawn: int = 8

    def features(self, rows: np.ndarray, generator: torch.Generator) -> Float[Tensor, "rows d"]:
        """Targets of a batch; of several views a few are drawn and averaged, as published."""
        image = torch.from_numpy(np.ascontiguousarray(self.image[rows], dtype=np.float32))
        if image.ndim == 2:
            return image
        n = min(self.views_drawn, image.shape[1])
        drawn = torch.rand(image.shape[:2], generator=generator).topk(n, dim=1).indices
        return image.gather(1, drawn[..., None].expand(-1, -1, image.shape[2])).mean(1)


def open_stage(recipe: StageRecipe, weights: Sequence[Path]) -> StageNetworks:
    """Networks of a stage that start from checkpoints; each part comes from the last that has it.

    Stage 1 may start from nothing, or from the encoder of any checkpoint (layouts A, B, D).  Stage
    2 needs all of its parts, such as those of a stage 1 and the shape decoder of the released file.

    Raises
    ------
    UsageError : stage 2 without one of its parts.
    DataError : a checkpoint is broken, or its tensors are of another size than the recipe.
    """
    found: dict[str, tuple[Path, dict[str, Tensor]]] = {}
    for path in weights:
        checkpoint = open_checkpoint(path)
        if checkpoint.layout == "F":
            raise UsageError(f"{path} is layout F ({LAYOUTS['F']}); it starts no stage of MinD-3D")
        for group in GROUPS[recipe.stage]:
            part = _part(checkpoint.tensors, group)
            if part:
                found[group] = (path, part)
    missing = [group.rstrip(".") for group in GROUPS[2] if group not in found]
    if recipe.stage == 2 and missing:
        raise UsageError(
            f"stage 2 starts from trained weights, and none were given for {', '.join(missing)}: "
            "add --weights FILE of a stage 1, and --weights FILE with the shape decoder"
        )
    path = cosine(recipe.sizes.bridge.timesteps)
    if recipe.stage == 1:
        networks = StageNetworks(recipe, path)
    else:
        with torch.device("meta"):
            networks = StageNetworks(recipe, path)
    for group, (file, part) in found.items():
        _fill(networks, group, part, recipe, file)
    return networks


def _part(tensors: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
    for prefix in (group, PRIOR_TWIN) if group == PRIOR else (group,):
        part = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        if part:
            return part
    return {}


def _fill(
    networks: StageNetworks, group: str, part: dict[str, Tensor], recipe: StageRecipe, file: Path
) -> None:
    module = networks.get_submodule(group.rstrip("."))
    own = module.state_dict()
    if group == ENCODER:  # a pre-training holds its decoder, too
        part = {name: tensor for name, tensor in part.items() if name in own}
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    mixed = group == DECODER and recipe.training.precision != "no"
    if group == DECODER:
        first = part.pop("z_value_dec.weight", None)
        if first is not None:
            part.setdefault("emb.weight", first)
    # a copy of what is trained: the file stays mapped below what is frozen
    part = {n: t.float().clone() if n in trained else t for n, t in part.items()}
    fill(module, part, dtype=None if mixed else torch.float32, where=str(file))
    if mixed:
        dtype = as_dtype(recipe.frozen_precision)
        for name, parameter in module.named_parameters():
            parameter.data = parameter.data.to(torch.float32 if name in trained else dtype)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trained)


def fit_stage(
    networks: StageNetworks,
    recording: Recording,
    targets: StageTargets,
    recipe: StageRecipe,
    *,
    mask: np.ndarray | None,
    seed: int,
    folder: Path | None = None,
    log: Callable[[dict], None] | None = None,
    progress: Progress = SILENT,
) -> dict:
    """Train in place.

    Parameters
    ----------
    recording : training trials as flat maps (trials, frames, pixels), in the values of the files.
    mask : pixels of the visual cortex, where the augmentation puts noise; None leaves it out.

    Raises
    ------
    UsageError : trials with fewer frames than are read, or pictures of another size.
    """
    side, frames = recipe.sizes.encoder.image_size, networks.frames
    shape = recording.data.shape
    if len(shape) != 3 or shape[2] != side * side or shape[1] < frames:
        raise UsageError(
            f"trials have shape {tuple(shape[1:])}; stage {recipe.stage} reads flat maps of at "
            f"least {frames} frames x {side * side} pixels"
        )
    device = next(networks.parameters()).device
    dim, steps = recipe.sizes.bridge.dim, recipe.sizes.bridge.timesteps

    def loss(model, rows, generator):
        ascending = np.argsort(rows, kind="stable")  # lazy data is read in order
        values = np.zeros((len(rows), *shape[1:]), np.float32)
        values[ascending] = recording.data[rows[ascending]]
        order = torch.rand(values.shape[:2], generator=generator).argsort(dim=1)
        chosen = order[:, :frames].sort(dim=1).values.numpy()
        maps = np.take_along_axis(values, chosen[..., None], axis=1)
        maps = maps.reshape(-1, side, side)
        if mask is not None:
            key = int(torch.randint(2**62, (1,), generator=generator))
            maps = noise_along_paths(maps, mask, np.random.default_rng(key))
        maps = torch.from_numpy(maps).view(len(rows), frames, side, side)
        noise = StageNoise.draw(len(rows), dim, steps, recipe.condition_dropout, generator)
        codes = None if targets.codes is None else torch.from_numpy(targets.codes[rows]).long()
        return model(
            maps.to(device),
            targets.features(rows, generator).to(device),
            None if codes is None else codes.to(device),
            noise.to(device),
        )

    parameters, rates = networks.rates(recipe.slow)
    train(
        networks,
        loss,
        n_items=recording.n_trials,
        settings=recipe.training,
        seed=seed,
        stage=f"stage {recipe.stage}",
        folder=folder,
        log=log,
        progress=progress,
        parameters=parameters,
        rates=rates,
    )
    return {"trials": recording.n_trials, "trained": sum(p.numel() for p in parameters)}


def published_state(networks: StageNetworks) -> dict[str, Tensor]:
    """The networks under the published names: a checkpoint that `open_checkpoint` reads."""
    state = networks.state_dict()
    state.pop(DECODER + "z_value_dec.weight", None)  # the same tensor as emb.weight
    return {
        name: tensor.detach().clone()
        if name.endswith(("rotary_emb.freqs", LOGIT_SCALE))
        else tensor
        for name, tensor in state.items()
    }


def trained_state(networks: StageNetworks) -> dict[str, Tensor]:
    """What training changes, by name."""
    return {n: p.detach() for n, p in networks.named_parameters() if p.requires_grad}


def restore_trained(networks: StageNetworks, state: Mapping[str, Tensor]) -> None:
    """The inverse of `trained_state`.

    Raises
    ------
    DataError : the names are others.
    """
    own = {name: p for name, p in networks.named_parameters() if p.requires_grad}
    if set(own) != set(state):
        strange = sorted(set(own) ^ set(state))
        raise DataError(f"the stage's weights differ in {strange[0]!r}; fit the stage again")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])
