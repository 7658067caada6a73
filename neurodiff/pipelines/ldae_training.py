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

import tempfile
from collections.abc import Callable
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
from neurodiff.core.training import TrainingSettings, train
from neurodiff.datasets.latent_cache import LatentCache, hash_of_weights
from neurodiff.diffusion.heads import EPS
from neurodiff.diffusion.objective import Objective, snr_power
from neurodiff.diffusion.paths import VariancePreserving
from neurodiff.models.ldae_autoencoder import encode
from neurodiff.models.ldae_denoiser import Coefficient, ShiftDenoiser, one_coefficient
from neurodiff.models.ldae_slice_encoder import SliceEncoder, slices_first
from neurodiff.models.ldae_unet import LatentUNet, ShiftUNet
from neurodiff.pipelines.ldae_files import LDAENetworks, load_autoencoder
from neurodiff.pipelines.ldae_losses import (
    Adversary,
    AutoencoderLoss,
    SlicePerceptualLoss,
    perceptual_network,
)
from neurodiff.pipelines.ldae_scans import (
    Posteriors,
    PreparedScans,
    encode_scans,
    scans_of,
    stage_folder,
)
from neurodiff.pipelines.ldae_settings import LDAERecipe, unnamed_networks
from neurodiff.pipelines.stages import Stages

if TYPE_CHECKING:
    from neurodiff.core.run import Run
    from neurodiff.pipelines.ldae import LDAE

VERSION = 1
_MOST_CHECKED = 64  # validation scans that choose the autoencoder
_SLICES = 32  # that the encoder's backward pass holds at once
Log = Callable[[dict], None] | None


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
    from neurodiff.pipelines.ldae import untrained, with_networks
    from neurodiff.pipelines.ldae_fitted_directions import fit_directions

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
        posteriors = Posteriors(cache, scans.cohort.ids, seed=seed, draws_once=recipe.draws_once)
        scale = recipe.trunk.latent_scale or cache.scale(scans.cohort.ids)
        inputs = [hash_of_weights(autoencoder.state_dict()), identity, f"{scale!r}", str(seed)]
        trunk = fit_trunk(work, posteriors, scale, inputs, pipe.device)
        decoder = networks.decoder.start_from(trunk)
        inputs.append(hash_of_weights(trunk.state_dict()))
        encoder = networks.encoder
        fit_semantic(work, (encoder, decoder), scans, posteriors, scale, inputs)
        with_networks(pipe, LDAENetworks(autoencoder, decoder, encoder, float(scale)))
        pipe.gates = [*stages.gates]
        pipe.directions = fit_directions(pipe, scans, progress=progress)
    return pipe


@dataclass(frozen=True)
class Work:
    """What every stage needs. ``place`` takes files that no run keeps."""

    recipe: LDAERecipe
    seed: int
    stages: Stages
    place: Path
    progress: Progress = SILENT

    def train(
        self,
        name: str,
        model: nn.Module,
        loss: Any,
        n: int,
        settings: TrainingSettings,
        **more: Any,
    ) -> None:
        """`core.training.train` with this run's seed and progress."""
        train(
            model,
            loss,
            n_items=n,
            settings=self.recipe.averaged(settings),
            seed=self.seed,
            stage=name,
            progress=self.progress,
            **more,
        )


# ------------------------------------------------------------------------------- stage 1


class BestOf:
    """The weights of the smallest error so far; a checkpoint takes them along."""

    def __init__(self) -> None:
        self.error, self.step, self.weights = float("inf"), -1, {}

    def see(self, error: float, step: int, weights: dict[str, Tensor]) -> None:
        if error < self.error:
            copies = {name: t.detach().cpu().clone() for name, t in weights.items()}
            self.error, self.step, self.weights = error, step, copies

    def state_dict(self) -> dict[str, Any]:
        return {"error": self.error, "step": self.step, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.error, self.step, self.weights = state["error"], state["step"], state["weights"]


def fit_autoencoder(
    work: Work,
    network: Any,
    scans: PreparedScans,
    checked: PreparedScans | None,
    identity: str,
) -> Any:
    """Stage 1, or the autoencoder of the recipe's file where it is not to be trained."""
    recipe, stage = work.recipe, work.recipe.autoencoder
    device = next(network.parameters()).device
    start = ""
    if stage.weights is not None:
        size = recipe.size.autoencoder
        given = load_autoencoder(stage.weights, groups=size.groups, eps=size.eps)
        _require_size(given, network, stage.weights)
        network.load_state_dict(given.state_dict())
        start = hash_of_weights(given.state_dict())
    training = stage.training
    if training is None:
        return network.eval()

    def fit(folder: Path | None, log: Log) -> dict[str, Any]:
        adversary, perceptual, best = _others(stage, work), None, BestOf()
        keep: dict[str, Any] = {}
        if adversary is not None:
            keep["adversary"] = adversary.to(device)
        if stage.perceptual > 0 and stage.perceptual_network is not None:
            perceptual = SlicePerceptualLoss(
                perceptual_network(stage.perceptual_network),
                share=stage.perceptual_share,
                values="0..1" if recipe.protocol == "ldae-2025" else "-1..1",
            ).to(device)
        if checked is not None:
            keep["best"] = best
        model = AutoencoderLoss(network, stage, adversary=adversary, perceptual=perceptual)
        last: dict[str, float] = {}

        def loss(module: nn.Module, rows: np.ndarray, generator: torch.Generator) -> dict:
            terms = module(torch.from_numpy(scans.take(rows)).to(device), generator)
            last.update({name: float(value.detach()) for name, value in terms.items()})
            return terms

        def after(step: int) -> None:
            if adversary is not None:
                adversary.step(training.clip_norm)
            due = (step + 1) % stage.check_every == 0 or step + 1 == training.steps
            if checked is not None and due:
                best.see(reconstruction_error(network, checked), step + 1, network.state_dict())

        more = {"folder": folder, "log": log, "after_step": after, "keep": keep}
        work.train("autoencoder", model, loss, len(scans), training, **more)
        measured: dict[str, Any] = dict(last)
        if checked is not None:
            if not recipe.averaged(training).ema_decay:
                network.load_state_dict(best.weights)
            measured |= {"validation l1": best.error, "step": best.step}
        return measured

    work.stages.do(
        "autoencoder",
        settings={"size": dump(recipe.size.autoencoder), **_plain(stage, recipe)},
        inputs=[identity, start, str(work.seed)],
        version=VERSION,
        fit=fit,
        state=network.state_dict,
        restore=network.load_state_dict,
    )
    return network.eval()


@torch.no_grad()
def reconstruction_error(network: Any, scans: PreparedScans) -> float:
    """Mean absolute error of scans through the means of their latents, at most 64 of them."""
    training = network.training
    network.eval()
    device, total = next(network.parameters()).device, 0.0
    chosen = np.unique(np.linspace(0, len(scans) - 1, min(len(scans), _MOST_CHECKED)).astype(int))
    for number in chosen:
        x = torch.from_numpy(scans.take([number])).to(device)
        total += float((network.decode(encode(network, x)[0]) - x).abs().mean())
    network.train(training)
    return total / len(chosen)


def _others(stage: Any, work: Work) -> Adversary | None:
    if not stage.adversarial > 0:
        return None
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise UsageError(
            "the adversary of stage 1 is trained by one process, as published; start this stage "
            "without a launcher, or set autoencoder.adversarial=0"
        )
    return Adversary(stage, seed=work.seed, batch_size=stage.training.batch_size)


def _require_size(given: Any, wanted: Any, path: str) -> None:
    a, b = ({n: tuple(t.shape) for n, t in m.state_dict().items()} for m in (given, wanted))
    if a != b:
        differing = sorted(n for n in a.keys() | b.keys() if a.get(n) != b.get(n))
        raise UsageError(
            f"{path} is an autoencoder of another size than the recipe's size.autoencoder (first: "
            f"{differing[0]}, {a.get(differing[0])} there, {b.get(differing[0])} here)"
        )


# ------------------------------------------------------------------------------- latents


def fit_latents(work: Work, autoencoder: Any, scans: PreparedScans, identity: str) -> LatentCache:
    """Latents of all scans, as a stage."""
    hashed = hash_of_weights(autoencoder.state_dict())
    inputs = [hashed, identity]
    folder = stage_folder(work.stages.run, "latents", {}, inputs, work.place) / "cache"
    shape = work.recipe.size.latent

    def fit(_: Any, __: Any) -> dict[str, Any]:
        cache = encode_scans(autoencoder, scans, folder, shape=shape, progress=work.progress)
        return {"scans": len(cache.ids)}

    work.stages.do(
        "latents",
        settings={},
        inputs=inputs,
        version=VERSION,
        fit=fit,
        state=lambda: {"scans": torch.tensor(len(scans))},
        restore=lambda state: None,
    )
    return LatentCache.open(folder, autoencoder=hashed, shape=shape)


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
    from neurodiff.pipelines.ldae import seeded

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
        settings={"size": dump(recipe.size.unet), **_plain(stage, recipe)},
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

        walks = recipe.walks()
        model = SemanticLoss(
            encoder,
            decoder,
            walks.path(),
            power=stage.snr_power,
            coefficient=walks.training_coefficient(),
        )
        set_checkpointing(encoder, decoder, stage.checkpointing)
        work.train("semantic", model, loss, len(latents), training, folder=folder, log=log)
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
        settings={**sizes, **_plain(stage, recipe)},
        inputs=inputs,
        version=VERSION,
        fit=fit,
        state=state,
        restore=restore,
    )


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


def _plain(stage: Any, recipe: LDAERecipe) -> dict[str, Any]:
    """Settings that decide a stage's result, of which its checkpoints' spacing is none."""
    return {"stage": dump(stage), "protocol": recipe.protocol, "walks": dump(recipe.sampling)}
