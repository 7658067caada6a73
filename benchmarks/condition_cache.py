"""The exact condition cache of the MinD-3D bridge and of a UNet, against the uncached network.

    python benchmarks/condition_cache.py [--points 64] [--candidates 1 4 16] [--repeats 3]

FLOPs are counted on the meta device at the published size (768 tokens of 512, depth 6), for whole
runs of the published sampler; seconds are those of a smaller bridge, one run after the other in one
process, on the machine at hand. The UNet is a small conditioned one of MONAI.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from functools import partial

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch.utils.flop_counter import FlopCounterMode

from neurodiff.diffusion.caching import ContextCache
from neurodiff.diffusion.grids import trailing
from neurodiff.diffusion.heads import V
from neurodiff.diffusion.paths import cosine
from neurodiff.diffusion.sampling import NetworkDenoiser, sample
from neurodiff.diffusion.solvers import DDIM
from neurodiff.models.feature_bridge import FeatureBridge, FeatureBridgeSize
from neurodiff.models.feature_bridge_2024 import BridgeDDIM2024, bridge_2024

PATH = cosine(100)


def uncached(net: FeatureBridge, tokens: torch.Tensor, rows: int):
    """The whole network at every call, as published code runs it."""
    wide = tokens.expand(rows, -1, -1)
    return lambda x, level, state: net(x, int(level.t), wide)


def cached(net: FeatureBridge, tokens: torch.Tensor, rows: int):
    state = net.prepare(tokens).repeat(rows)
    return lambda x, level, _: net.step(x, int(level.t), state)


def drawn(make, net: FeatureBridge, tokens: torch.Tensor, rows: int, points: int) -> torch.Tensor:
    """Embeddings of ``rows`` candidates of one trial, the condition's own cost included."""
    x = torch.zeros(rows, net.size.dim, device=tokens.device)
    if tokens.device.type == "cpu":
        x = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        denoiser = make(net, tokens, rows)
        return sample(
            denoiser, x, bridge_2024(PATH, points), BridgeDDIM2024(PATH), noise=lambda s, x: x * 0
        )


def flops(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def seconds(run, repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", type=int, default=64)
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    with torch.device("meta"):
        full, full_tokens = FeatureBridge().eval(), torch.zeros(1, 768, 512)
    torch.manual_seed(0)
    small = FeatureBridge(FeatureBridgeSize(dim=128, depth=3, heads=4, dim_head=32)).eval()
    tokens = torch.randn(1, 192, 128, generator=torch.Generator().manual_seed(1))
    calls = options.points - 1
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; one sample = {calls} calls"
    )
    print("bridge; FLOPs: published size, meta device; seconds: 192 tokens of 128, depth 3\n")
    print(f"{'candidates':>10} {'GFLOP uncached':>15} {'cached':>8} {'ratio':>7}", end=" | ")
    print(f"{'s uncached':>10} {'cached':>8} {'ratio':>6} {'largest difference':>19}")
    for rows in options.candidates:
        counts, times, ends = [], [], []
        for make in (uncached, cached):
            of_full = partial(drawn, make, full, full_tokens, rows, options.points)
            of_small = partial(drawn, make, small, tokens, rows, options.points)
            counts.append(flops(of_full))
            ends.append(of_small())
            times.append(seconds(of_small, options.repeats))
        off = float((ends[0] - ends[1]).abs().max() / ends[0].abs().max())
        print(
            f"{rows:>10} {counts[0] / 1e9:>15.1f} {counts[1] / 1e9:>8.2f} "
            f"{counts[0] / counts[1]:>7.1f} | {times[0]:>10.2f} {times[1]:>8.3f} "
            f"{times[0] / times[1]:>6.1f} {off:>13.1e} (rel.)"
        )
    unet(options.repeats)


def unet(repeats: int) -> None:
    """Cross-attention to 257 tokens of 768 in a small 2D UNet: what keys and values are worth."""
    from monai.networks.nets import DiffusionModelUNet

    torch.manual_seed(0)
    net = DiffusionModelUNet(
        spatial_dims=2,
        in_channels=4,
        out_channels=4,
        channels=(64, 128),
        attention_levels=(False, True),
        num_res_blocks=1,
        num_head_channels=32,
        with_conditioning=True,
        cross_attention_dim=768,
    ).eval()
    torch.nn.init.normal_(net.out[2].conv.weight, std=0.02)  # MONAI's last layer starts at zero
    denoiser = NetworkDenoiser(lambda x, t, c: net(x, timesteps=t, context=c), V)
    context = torch.randn(1, 257, 768, generator=torch.Generator().manual_seed(2))
    x = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    grid = trailing(PATH, 20)

    def plain() -> torch.Tensor:
        state = denoiser.prepare(context.expand(4, -1, -1))
        return sample(denoiser, x, grid, DDIM(), state=state)

    expected, before, taken = plain(), flops(plain), seconds(plain, repeats)
    cache = ContextCache(denoiser, net)

    def once() -> torch.Tensor:
        return sample(cache, x, grid, DDIM(), state=cache.prepare(context))

    off = float((once() - expected).abs().max() / expected.abs().max())
    print("\nUNet of MONAI, 16 x 16, 4 candidates of one context of 257 x 768, 20 steps of DDIM")
    print(
        f"GFLOP {before / 1e9:.2f} -> {flops(once) / 1e9:.2f}, seconds {taken:.2f} -> "
        f"{seconds(once, repeats):.2f}, largest difference {off:.1e} (rel.); "
        f"cached: {len(cache.modules)} layers"
    )


if __name__ == "__main__":
    main()
