"""Stage 1 of LDAE, the autoencoder, and the latents of all scans by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neurodiff.core.config import dump
from neurodiff.core.errors import UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.training import TrainingSettings, train
from neurodiff.datasets.latent_cache import LatentCache, hash_of_weights
from neurodiff.models.ldae_autoencoder import autoencoder, encode, set_template, template_of
from neurodiff.pipelines.ldae_files import load_autoencoder
from neurodiff.pipelines.ldae_losses import (
    Adversary,
    AutoencoderLoss,
    SlicePerceptualLoss,
    perceptual_network,
)
from neurodiff.pipelines.ldae_scans import PreparedScans, encode_scans, stage_folder
from neurodiff.pipelines.ldae_settings import LDAERecipe
from neurodiff.pipelines.stages import Stages

VERSION = 1
_MOST_CHECKED = 64  # validation scans that choose the autoencoder
Log = Callable[[dict], None] | None


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


def stage_settings(stage: Any, recipe: LDAERecipe) -> dict[str, Any]:
    """Settings that decide a stage's result, of which its checkpoints' spacing is none."""
    return {"stage": dump(stage), "protocol": recipe.protocol, "walks": dump(recipe.sampling)}


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
        given = _given(recipe, network)
        network.load_state_dict(given.state_dict())
        start = hash_of_weights(given.state_dict())
    training = stage.training
    if training is None:
        return network.eval()
    if template_of(network) is not None and not start:
        set_template(network, *mean_and_sd(scans))

    def fit(folder: Path | None, log: Log) -> dict[str, Any]:
        adversary, perceptual, best = _others(stage, work), None, BestOf()
        keep: dict[str, Any] = {}
        if adversary is not None:
            keep["adversary"] = adversary.to(device)
        if stage.perceptual > 0 and stage.perceptual_network is not None:
            perceptual = SlicePerceptualLoss(
                perceptual_network(Path(stage.perceptual_network).expanduser()),
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
        settings={"size": dump(recipe.size.autoencoder), **stage_settings(stage, recipe)},
        inputs=[identity, start, str(work.seed)],
        version=VERSION,
        fit=fit,
        state=network.state_dict,
        restore=network.load_state_dict,
    )
    return network.eval()


def require_networks_fit(recipe: LDAERecipe) -> None:
    """Open the networks that a recipe names, so that wrong ones are told before scans are prepared.

    Raises
    ------
    MissingDataError, DataError : as `load_autoencoder` and `perceptual_network`.
    UsageError : an autoencoder of another size than the recipe's.
    """
    stage = recipe.autoencoder
    if stage.weights is not None:
        with torch.device("meta"):
            wanted = autoencoder(recipe.size.autoencoder)
        _given(recipe, wanted)
    uses = stage.training is not None and stage.perceptual > 0
    if uses and stage.perceptual_network is not None:
        perceptual_network(Path(stage.perceptual_network).expanduser())


def _given(recipe: LDAERecipe, wanted: Any) -> Any:
    """The autoencoder of the recipe's file, which has to be of the size of ``wanted``."""
    size, path = recipe.size.autoencoder, recipe.autoencoder.weights
    assert path is not None
    given = load_autoencoder(Path(path).expanduser(), groups=size.groups, eps=size.eps)
    _require_size(given, wanted, path)
    return given


def mean_and_sd(scans: PreparedScans) -> tuple[Tensor, float]:
    """The mean scan (1, i, j, k), float32, and the SD of all voxels about it; two passes."""
    parts = np.array_split(np.arange(len(scans)), -(-len(scans) // 16))
    total = sum(scans.take(part).sum(axis=0, dtype=np.float64) for part in parts)
    mean = total / len(scans)
    squares = sum(float(((scans.take(part) - mean) ** 2).sum()) for part in parts)
    sd = float(np.sqrt(squares / (len(scans) * mean.size)))
    return torch.from_numpy(mean.astype(np.float32)), sd


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


def fit_latents(work: Work, network: Any, scans: PreparedScans, identity: str) -> LatentCache:
    """Latents of all scans, as a stage."""
    hashed = hash_of_weights(network.state_dict())
    inputs = [hashed, identity]
    folder = stage_folder(work.stages.run, "latents", {}, inputs, work.place) / "cache"
    shape = work.recipe.size.latent

    def fit(_: Any, __: Any) -> dict[str, Any]:
        cache = encode_scans(network, scans, folder, shape=shape, progress=work.progress)
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
