"""The three stages of LDAE, and the directions at their end.

    scans    -> prepared volumes                         once
    stage 1  -> autoencoder                              absolute error, KL, perceptual, adversary
    latents  -> means and variances of all scans         once
    stage 2  -> trunk                                    noise prediction, moving average
    stage 3  -> encoder of codes, shift                  SNR^0.1 / (1 + SNR), the trunk frozen

Each step of stages 2 and 3 draws its latents anew from their posteriors; protocol "ldae-2025" drew
once.  The discriminator's optimiser is stepped after the generator's and lies in the same
checkpoints (`core.training.train`, ``keep``), and so do the best weights on validation scans, so a
killed run ends in the weights of an undisturbed one.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from neurodiff.core.cohort import Cohort
from neurodiff.core.config import dump
from neurodiff.core.errors import UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.training import TrainingSettings
from neurodiff.datasets.latent_cache import hash_of_weights
from neurodiff.diffusion.heads import EPS
from neurodiff.diffusion.objective import Objective, snr_power
from neurodiff.diffusion.paths import VariancePreserving
from neurodiff.models.ldae_denoiser import Coefficient, ShiftDenoiser, one_coefficient
from neurodiff.models.ldae_slice_encoder import SliceEncoder, slices_first
from neurodiff.models.ldae_unet import LatentUNet, ShiftUNet
from neurodiff.pipelines.ldae_files import LDAENetworks
from neurodiff.pipelines.ldae_first_stage import (
    VERSION,
    Log,
    Work,
    fit_autoencoder,
    fit_latents,
    stage_settings,
)
from neurodiff.pipelines.ldae_scans import Posteriors, PreparedScans, scans_of
from neurodiff.pipelines.ldae_settings import unnamed_networks
from neurodiff.pipelines.stages import Stages

if TYPE_CHECKING:
    from neurodiff.core.run import Run
    from neurodiff.pipelines.ldae import LDAE

READ_OUT = "read-out"
_SLICES = 32  # that the encoder's backward pass holds at once


def fit_ldae(
    pipe: LDAE,
    cohort: Cohort,
    validation: Cohort | None = None,
    *,
    seed: int,
    run: Run | None = None,
    progress: Progress = SILENT,
) -> LDAE:
    """All stages into ``pipe``; see `LDAE.fit`."""
    from neurodiff.pipelines.ldae import with_networks
    from neurodiff.pipelines.ldae_fitted_directions import fit_directions
    from neurodiff.pipelines.ldae_networks import untrained

    recipe = pipe.recipe
    if lacking := unnamed_networks(recipe):
        raise UsageError(
            f"recipe {recipe.name} neither trains nor names {lacking[0]}; give a path with "
            f"{lacking[0]}=PATH"
        )
    if validation is not None:
        both = sorted(set(cohort.subjects) & set(validation.subjects))
        if both:
            raise UsageError(
                f"{len(both)} subjects, first {both[0]}, are in training and validation; split by "
                "subject (cohort.split)"
            )
    stages = Stages(run, progress)
    networks = untrained(recipe, seed)
    for network in (networks.autoencoder, networks.decoder, networks.encoder):
        network.to(pipe.device)
    with tempfile.TemporaryDirectory(prefix="neurodiff-ldae-") as temporary:
        work = Work(recipe, seed, stages, Path(temporary), progress)
        options = {"stages": stages, "place": work.place, "progress": progress}
        scans, identity = scans_of(cohort, pipe, name="scans", **options)
        checked = None
        if validation is not None:
            checked, other = scans_of(validation, pipe, name="validation-scans", **options)
            identity = f"{identity}\x1e{other}"
        autoencoder = fit_autoencoder(work, networks.autoencoder, scans, checked, identity)
        cache = fit_latents(work, autoencoder, scans, identity)
        ids = scans.cohort.ids
        centre = cache.mean(ids) if recipe.trunk.centre else None
        once = recipe.draws_once
        posteriors = Posteriors(cache, ids, seed=seed, draws_once=once, centre=centre)
        scale = recipe.trunk.latent_scale or cache.scale(ids, centre=centre)
        inputs = [hash_of_weights(autoencoder.state_dict()), identity, f"{scale!r}", str(seed)]
        trunk = fit_trunk(work, posteriors, scale, inputs, pipe.device)
        decoder = networks.decoder.start_from(trunk, shift_too=recipe.semantic.from_trunk)
        inputs.append(hash_of_weights(trunk.state_dict()))
        encoder = networks.encoder
        fit_semantic(work, (encoder, decoder), scans, posteriors, scale, inputs)
        mean = None if centre is None else torch.from_numpy(centre)
        found = LDAENetworks(autoencoder, decoder, encoder, float(scale), latent_mean=mean)
        with_networks(pipe, found)
        pipe.gates = [*stages.gates]
        pipe.directions = fit_directions(pipe, scans, progress=progress)
    return pipe


# ------------------------------------------------------------------------------- stages 2, 3


class TrunkLoss(nn.Module):
    """The trunk with its objective: called with latents (n, c, i, j, k), it gives named terms."""

    def __init__(self, network: LatentUNet, path: VariancePreserving) -> None:
        super().__init__()
        self.network = network
        self.objective = Objective(path, EPS)

    def forward(self, latents: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return self.objective(ShiftDenoiser(_Trunk(self.network)), latents, generator=generator)


@dataclass(frozen=True)
class _Trunk:
    """A `LatentUNet` as a `ShiftDenoiser` calls it without a code."""

    noise: LatentUNet


class SemanticLoss(nn.Module):
    """Encoder and shift with their objective.

    Called with volumes (n, 1, i, j, k) and latents (n, c, i, j, k), it gives named terms. The trunk
    is frozen and in evaluation mode.
    """

    def __init__(
        self,
        encoder: SliceEncoder,
        decoder: ShiftUNet,
        path: VariancePreserving,
        *,
        power: float = 0.1,
        coefficient: Coefficient = one_coefficient,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder.freeze_trunk()
        self.coefficient = coefficient
        self.objective = Objective(path, EPS, snr_power(power))

    def forward(
        self, volumes: Tensor, latents: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        codes = self.encoder(slices_first(volumes))
        denoiser = ShiftDenoiser(self.decoder, coefficient=self.coefficient)
        return self.objective(denoiser, latents, codes, generator=generator)


def fit_trunk(
    work: Work, latents: Posteriors, scale: float, inputs: list[str], device: torch.device
) -> LatentUNet:
    """Stage 2."""
    from neurodiff.pipelines.ldae_networks import seeded

    recipe, stage = work.recipe, work.recipe.trunk
    network = seeded(lambda: LatentUNet(recipe.size.unet), work.seed, "trunk").to(device)
    network.checkpointing = stage.checkpointing
    training = stage.training
    if training is None:
        return network.eval()

    def fit(folder: Path | None, log: Log) -> dict[str, Any]:
        last = _Recent()

        def loss(module: nn.Module, rows: np.ndarray, generator: torch.Generator) -> dict:
            x = latents.draw(rows, generator).to(device) * scale
            return last.saw(module(x, generator))

        model = TrunkLoss(network, recipe.walks().path())
        work.train("trunk", model, loss, len(latents), training, folder=folder, log=log)
        return {**last.means(), "latent scale": scale}

    work.stages.do(
        "trunk",
        settings={"size": dump(recipe.size.unet), **stage_settings(stage, recipe)},
        inputs=inputs,
        version=VERSION,
        fit=fit,
        state=network.state_dict,
        restore=network.load_state_dict,
    )
    network.checkpointing = False
    return network.eval()


def fit_semantic(
    work: Work,
    networks: tuple[SliceEncoder, ShiftUNet],
    scans: PreparedScans,
    latents: Posteriors,
    scale: float,
    inputs: list[str],
) -> None:
    """Stage 3, into the two networks."""
    recipe, stage, (encoder, decoder) = work.recipe, work.recipe.semantic, networks
    training = stage.training
    if training is None:
        return
    device = next(encoder.parameters()).device
    for parameter_name, parameter in encoder.named_parameters():
        if parameter_name.endswith("layer_scale"):
            torch.nn.init.constant_(parameter, stage.layer_scale)

    def fit(folder: Path | None, log: Log) -> dict[str, Any]:
        last = _Recent()

        def loss(module: nn.Module, rows: np.ndarray, generator: torch.Generator) -> dict:
            x = latents.draw(rows, generator).to(device) * scale
            volumes = torch.from_numpy(scans.take(rows)).to(device)
            return last.saw(module(volumes, x, generator))

        if stage.read_out is not None:
            fit_read_out(work, encoder, scans, latents, stage.read_out, folder)
        if stage.even_start:
            decoder.even_codes(codes_of(encoder, scans))
        walks = recipe.walks()
        model = SemanticLoss(
            encoder,
            decoder,
            walks.path(),
            power=stage.snr_power,
            coefficient=walks.training_coefficient(),
        )
        set_checkpointing(encoder, decoder, stage.checkpointing)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        rates = [stage.encoder_rate if n.startswith("encoder.") else 1.0 for n in trained]
        work.train(
            "semantic",
            model,
            loss,
            len(latents),
            training,
            folder=folder,
            log=log,
            parameters=list(trained.values()),
            rates=rates,
        )
        if folder is not None:  # kept until here, so that a killed run repeats nothing of it
            shutil.rmtree(folder / READ_OUT, ignore_errors=True)
        set_checkpointing(encoder, decoder, False)
        return last.means()

    def state() -> dict[str, Tensor]:
        parts = {"encoder": encoder, "decoder": decoder}
        return {f"{p}.{n}": t for p, m in parts.items() for n, t in m.state_dict().items()}

    def restore(found: dict[str, Tensor]) -> None:
        for part, network in (("encoder", encoder), ("decoder", decoder)):
            own = {n[len(part) + 1 :]: t for n, t in found.items() if n.startswith(f"{part}.")}
            network.load_state_dict(own)

    sizes = {"unet": dump(recipe.size.unet), "encoder": dump(recipe.size.encoder)}
    work.stages.do(
        "semantic",
        settings={**sizes, **stage_settings(stage, recipe)},
        inputs=inputs,
        version=VERSION,
        fit=fit,
        state=state,
        restore=restore,
    )


class ReadOut(nn.Module):
    """The encoder and one linear layer that tells the latent from its code."""

    def __init__(self, encoder: SliceEncoder, shape: tuple[int, ...], sd: float) -> None:
        super().__init__()
        self.encoder, self.sd = encoder, sd
        self.linear = nn.Linear(encoder.size.code, int(np.prod(shape)))

    def forward(self, volumes: Tensor, latents: Tensor) -> dict[str, Tensor]:
        told = self.linear(self.encoder(slices_first(volumes)))
        return {"loss": ((told - latents.flatten(1) / self.sd) ** 2).mean()}


def fit_read_out(
    work: Work,
    encoder: SliceEncoder,
    scans: PreparedScans,
    latents: Posteriors,
    training: TrainingSettings,
    folder: Path | None,
) -> None:
    """The encoder alone, so that its codes tell a scan's latent; see `SemanticStage.read_out`."""
    from neurodiff.pipelines.ldae import seeded

    device = next(encoder.parameters()).device
    centre = torch.from_numpy(latents.mean.mean(axis=0))
    sd = float(latents.mean.std(axis=0).mean()) or 1.0
    model = seeded(lambda: ReadOut(encoder, latents.mean.shape[1:], sd), work.seed, "read-out").to(
        device
    )

    def loss(module: nn.Module, rows: np.ndarray, generator: torch.Generator) -> dict:
        x = torch.from_numpy(latents.mean[rows]) - centre
        volumes = torch.from_numpy(scans.take(rows))
        return module(volumes.to(device), x.to(device))

    place = None if folder is None else folder / READ_OUT
    work.train("read-out", model, loss, len(latents), training, folder=place)


@torch.no_grad()
def codes_of(encoder: SliceEncoder, scans: PreparedScans, most: int = 512) -> Tensor:
    """Codes of at most ``most`` of the scans, evenly spread over them."""
    device = next(encoder.parameters()).device
    rows = np.unique(np.linspace(0, len(scans) - 1, min(most, len(scans))).astype(int))
    was = encoder.training
    encoder.eval()
    codes = [
        encoder(slices_first(torch.from_numpy(scans.take(part)).to(device)))
        for part in np.array_split(rows, max(1, len(rows) // 16))
    ]
    encoder.train(was)
    return torch.cat(codes)


def set_checkpointing(encoder: SliceEncoder, decoder: ShiftUNet, on: bool) -> None:
    """Blocks, and slices a few at a time, computed again in the backward pass, or not."""
    encoder.checkpointing = decoder.checkpointing = on
    encoder.slices_at_once = _SLICES if on else None


class _Recent:
    """Means of the terms of the last 50 calls."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def saw(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        self.seen = [*self.seen[-49:], {n: float(t.detach()) for n, t in terms.items()}]
        return terms

    def means(self) -> dict[str, float]:
        names = self.seen[-1] if self.seen else {}
        return {name: float(np.mean([terms[name] for terms in self.seen])) for name in names}
