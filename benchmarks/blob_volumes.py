"""A small 3D latent diffusion model of synthetic volumes, trained from a seed: the ruler of
``module_cache.py`` and ``inversion.py``.

Volumes are two Gaussian blobs of random place, width and weight in each of three channels of 8³;
the network is MONAI's UNet with 1.19 million parameters; it predicts noise on linear betas.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from neurodiff.diffusion.heads import EPS
from neurodiff.diffusion.latents import Latents
from neurodiff.diffusion.objective import Objective
from neurodiff.diffusion.paths import VariancePreserving, linear
from neurodiff.diffusion.sampling import NetworkDenoiser

SIDE, CHANNELS = 8, 3


@dataclass(frozen=True)
class Model:
    """The UNet, the denoiser on it, its path, and volumes that it was not trained on."""

    net: torch.nn.Module
    denoiser: NetworkDenoiser
    path: VariancePreserving
    held_out: Tensor
    loss: float


def volumes(n: int, seed: int) -> Tensor:
    """(n, 3, 8, 8, 8) float32."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, SIDE)
    place = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))  # (3, i, j, k)
    centre = torch.rand(n, 2, 3, generator=generator) * 1.2 - 0.6
    width = torch.rand(n, 2, 1, 1, 1, generator=generator) * 0.25 + 0.2
    weight = torch.rand(n, 2, CHANNELS, generator=generator) * 2 - 0.5
    far = ((place - centre[..., None, None, None]) ** 2).sum(2)  # (n, blob, i, j, k)
    blobs = torch.exp(-far / (2 * width**2))
    return torch.einsum("nbijk,nbc->ncijk", blobs, weight)


def trained(steps: int, seed: int, kept: Path | None = None) -> Model:
    """Train, or read the weights that an earlier call left at ``kept``."""
    from monai.networks.nets import DiffusionModelUNet
    from safetensors.torch import load_file, save_file

    torch.manual_seed(seed)
    net = DiffusionModelUNet(
        spatial_dims=3,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        channels=(16, 32, 48),
        attention_levels=(False, False, True),
        num_res_blocks=1,
        num_head_channels=16,
        norm_num_groups=8,
    )
    data = volumes(4096, seed)
    latents = Latents.fit(lambda x: x, lambda z: z, [data])
    path, loss = linear(1000), float("nan")
    denoiser = NetworkDenoiser(lambda x, t, c: net(x, timesteps=t), EPS)
    if kept is not None and kept.exists():
        net.load_state_dict(load_file(kept))
    else:
        objective, generator = Objective(path, EPS), torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
        seen = []
        for step in range(steps):
            rows = torch.randint(len(data), (32,), generator=generator)
            terms = objective(denoiser, latents.encode(data[rows]), generator=generator)
            optimizer.zero_grad()
            terms["loss"].backward()
            optimizer.step()
            schedule.step()
            seen.append(float(terms["loss"].detach()))
            if step % 50 == 49:
                print(f"  training: step {step + 1} of {steps}, loss {sum(seen[-50:]) / 50:.3f}")
        loss = sum(seen[-50:]) / 50
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            save_file(net.state_dict(), kept)
    net.eval().requires_grad_(False)
    held_out = latents.encode(volumes(64, seed + 1000))
    return Model(net, denoiser, path, held_out, loss)
