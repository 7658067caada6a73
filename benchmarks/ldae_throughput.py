"""Seconds and operations of a scan: latent diffusion autoencoder beside one of voxels, equal calls.

    python benchmarks/ldae_throughput.py [--calls 4] [--repeats 3] [--full-calls 100] [--seed 0]

First table, measured: presets `TINY` (LDAE) and `VOXEL_TINY`, 64 x 96 x 64 voxels, random weights,
float32, one scan at a time; seconds are the processor's, of all threads (on one thread of an idle
machine they are the clock's), medians over the repeats after one that is not counted.
Second table, counted on tensors without memory: `BASE` and `VOXEL_BASE`, the published grid of
128 x 160 x 128, where a call of the voxel network alone takes minutes on a CPU. Both voxel networks
have about the parameters of the latent ones.

Rows: the semantic code; the noise of a scan by explicit DDIM; a scan's latent (or voxels) from
noise by DDIM; the autoencoder, which only the latent way needs and which is then part of the sums.
"gain" is voxel over latent, for seconds and for multiply-accumulates (FLOP / 2) apart. Encoding and
decoding take the same number of calls on either side; fewer calls are `ldae_solvers.py`'s subject.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from neurodiff.models.ldae_autoencoder import autoencoder
from neurodiff.models.ldae_sizes import BASE, TINY, LDAESize
from neurodiff.models.ldae_slice_encoder import SliceEncoder, slices_first
from neurodiff.models.ldae_unet import ShiftUNet
from neurodiff.models.voxel_dae import (
    VOXEL_BASE,
    VOXEL_TINY,
    VoxelDAENetworks,
    VoxelDAESize,
    meta_networks,
    same_graph,
)
from neurodiff.pipelines.ldae_sampling import LatentSampler, SamplingSettings

ROWS = (
    "semantic encoding",
    "stochastic encoding",
    "decoding (diffusion)",
    "autoencoder encode",
    "autoencoder decode",
)
#: what a user waits for, as sums of rows
SUMS = {
    "scan to code and noise": (0, 1, 3),
    "code and noise to scan": (2, 4),
    "both ways": (0, 1, 2, 3, 4),
}
Times = list[float | None]


@dataclass(frozen=True)
class Latent:
    """LDAE's three networks, random or without memory."""

    size: LDAESize
    autoencoder: nn.Module
    unet: ShiftUNet
    encoder: SliceEncoder

    @classmethod
    def of(cls, size: LDAESize) -> Latent:
        parts = autoencoder(size.autoencoder), ShiftUNet(size.unet), SliceEncoder(size.encoder)
        return cls(size, *(part.eval().requires_grad_(False) for part in parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=4, help="measured, each way")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--full-calls", type=int, default=100, help="counted, each way")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), float32, batch 1, "
        f"{platform.machine()} {processor()}, seed {options.seed}"
    )
    latent, voxel = Latent.of(TINY), VoxelDAENetworks(VOXEL_TINY).eval().requires_grad_(False)
    start = cpu_seconds()
    seconds = measured(latent, voxel, options.calls, options.repeats)
    heading("measured", TINY, VOXEL_TINY, options.calls, f"median of {options.repeats}")
    table(counted(TINY, VOXEL_TINY, options.calls), seconds)
    print(f"{cpu_seconds() - start:.0f} CPU seconds")
    heading("counted", BASE, VOXEL_BASE, options.full_calls, "on the meta device")
    table(counted(BASE, VOXEL_BASE, options.full_calls), None)
    with torch.device("meta"):
        x = torch.zeros(1, 1, *BASE.grid)
        graph = call_macs(ShiftUNet(same_graph(BASE)).eval(), x)
        own = call_macs(ShiftUNet(BASE.unet).eval(), torch.zeros(1, *BASE.latent))
    print(
        f"one call of the latent U-Net {own / 1e9:,.0f} GMAC; of the very same graph on voxels, "
        f"without its attention, {graph / 1e9:,.0f} GMAC: {graph / own:.0f} times"
    )


def heading(word: str, size: LDAESize, voxel: VoxelDAESize, calls: int, how: str) -> None:
    def millions(network: nn.Module) -> str:
        return f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} M"

    with torch.device("meta"):
        own = millions(ShiftUNet(size.unet))
    beside = millions(meta_networks(voxel).unet)
    grid, z = (" x ".join(map(str, of)) for of in (size.grid, size.latent))
    print(f"\n{word}: {grid} voxels, latent {z}, {calls} calls each way, {how}")
    print(f"parameters of the U-Net: latent {own}, voxel {beside}")


def table(macs: tuple[Times, Times], seconds: tuple[Times, Times] | None) -> None:
    """Rows, then their sums; seconds only where they were measured."""
    columns = ("latent", "voxel", "gain")
    names = [f"s {c}" if c != "gain" else c for c in columns] if seconds else []
    names += [f"GMAC {c}" if c != "gain" else c for c in columns]
    print(f"{'a scan':<24}" + "".join(f"{name:>13}" for name in names))

    def line(name: str, rows: tuple[int, ...]) -> str:
        cells = []
        for pair, scale in ((seconds, 1.0), (macs, 1e-9)):
            if pair is None:
                continue
            both = [[side[r] for r in rows if side[r] is not None] for side in pair]
            own, beside = (sum(values) * scale if values else None for values in both)
            cells += [amount(own), amount(beside)]
            cells.append(f"{beside / own:.1f}" if own and beside else "")
        return f"{name:<24}" + "".join(f"{cell:>13}" for cell in cells)

    for row, name in enumerate(ROWS):
        print(line(name, (row,)))
    for name, rows in SUMS.items():
        print(line(name, rows))


def amount(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


# ------------------------------------------------------------------------------- counting


def counted(size: LDAESize, voxel: VoxelDAESize, calls: int) -> tuple[Times, Times]:
    """Multiply-accumulates of each row, latent and voxel, on the meta device."""
    with torch.device("meta"):
        latent, beside = Latent.of(size), meta_networks(voxel)
        scan, z = torch.zeros(1, 1, *size.grid), torch.zeros(1, *size.latent)
        axial = slices_first(scan)
    code = macs(lambda: latent.encoder(axial))
    own, other = calls * call_macs(latent.unet, z), calls * call_macs(beside.unet, scan)
    ends = [
        macs(lambda: latent.autoencoder.encode(scan)),
        macs(lambda: latent.autoencoder.decode(z)),
    ]
    return [code, own, own, *ends], [macs(lambda: beside.encoder(axial)), other, other, None, None]


def call_macs(unet: ShiftUNet, x: Tensor) -> float:
    """Of one call, trunk and shift."""
    t = torch.zeros(1, device=x.device)
    code = torch.zeros(1, unet.size.semantic, device=x.device)
    return macs(lambda: unet(x, t, code))


def macs(run: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops() / 2


# ------------------------------------------------------------------------------- measuring


def measured(
    latent: Latent, voxel: VoxelDAENetworks, calls: int, repeats: int
) -> tuple[Times, Times]:
    """Seconds of each row, latent and voxel."""
    scan, z = torch.rand(1, 1, *latent.size.grid), torch.randn(1, *latent.size.latent)
    axial, voxels = slices_first(scan), 2 * scan - 1
    settings = SamplingSettings(steps=calls)

    def timed(run: Callable[[], object]) -> float:
        taken = []
        for _ in range(repeats + 1):
            start = time.process_time()
            with torch.no_grad():
                run()
            taken.append(time.process_time() - start)
        return statistics.median(taken[1:])

    def walks(unet: ShiftUNet, x: Tensor, code: Tensor) -> list[float]:
        sampler = LatentSampler(unet, settings)
        there = sampler.encode(x, code, method="ddim")
        assert there.calls == calls  # equal on both sides
        return [
            timed(lambda: sampler.encode(x, code, method="ddim")),
            timed(lambda: sampler.decode(code, there.noise)),
        ]

    with torch.no_grad():
        code = latent.encoder(axial)
    own = [timed(lambda: latent.encoder(axial)), *walks(latent.unet, z, code)]
    own.append(timed(lambda: latent.autoencoder.encode(scan)))
    own.append(timed(lambda: latent.autoencoder.decode(z)))
    beside = [timed(lambda: voxel.encoder(axial)), *walks(voxel.unet, voxels, code)]
    return own, [*beside, None, None]


def processor() -> str:
    """Model name that Linux tells, or nothing."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((ln.split(":", 1)[1].strip() for ln in lines if ln.startswith("model name")), "")


def cpu_seconds() -> float:
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return spent.ru_utime + spent.ru_stime


if __name__ == "__main__":
    main()
