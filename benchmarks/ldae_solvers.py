"""Network calls of LDAE's encoding and decoding at the error of DDIM-100 both ways.

    python benchmarks/ldae_solvers.py [--items 8] [--trunk 700] [--shift 250] [--seed 0] [--keep F]

Two rulers. "mixture": 12 Gaussians in 96 dimensions, whose noise is known in closed form, float64,
eight times the items: a few lie where the flow parts between two of the Gaussians.
"trained": a `ShiftUNet` that this run trains, trunk then shift, on latents of simulated brains
(32 x 48 x 32 voxels; a linear autoencoder: patches of 8 x 8 x 8, three principal components, unit
SD); codes are the 16 first principal scores of the latents, and the scans are of people that it
has not seen.

The converged solution is the probability flow between the noisiest level and step 0 of the path,
followed by 499 steps of DPM-Solver++ 2M; how far 249 steps, and explicit DDIM-999 (published grid,
first order), are from it is printed beside. Errors are relative L2 over an item, the median over
items and the largest in brackets:

    encode      noise of the scan against the converged noise
    decode      latent from the converged noise against the converged latent of it
    round trip  the way's own noise, decoded by the same way, against the scan's latent

"calls" are evaluations of the network, counted. The last lines give for each way the fewest calls
with all three errors at most those of explicit DDIM-100 both ways, which takes 200: of the medians,
and of the medians and the largest.

A network of a minute's training is rough in time, so its errors do not fall evenly with the steps,
and the converged solution itself is known to what 249 steps are off by.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import Tensor

from neurodiff.core.training import TrainingSettings, train
from neurodiff.datasets.simulated.brains import BrainSettings, SimulatedBrains
from neurodiff.diffusion.heads import EPS
from neurodiff.diffusion.objective import Objective, snr_power
from neurodiff.diffusion.paths import VariancePreserving
from neurodiff.models.ldae_denoiser import ShiftDenoiser
from neurodiff.models.ldae_sizes import LatentUNetSize
from neurodiff.models.ldae_unet import ShiftUNet
from neurodiff.pipelines.ldae_sampling import LatentSampler, SamplingSettings

SIZE = LatentUNetSize(width=32, multipliers=(1, 2), blocks=1, attention=(2,), semantic=16)
SHAPE, PATCH = (32, 48, 32), 8
#: way -> (encode, decode, steps that are tried); the first row of "ddim" is the published one
WAYS = {
    "ddim": ("ddim", "ddim", (20, 50, 100)),
    "exact": ("exact", "ddim", (10, 20, 50)),
    "dpm": ("dpm", "dpm", (10, 15, 20, 25, 30, 33, 40)),
}
PUBLISHED = ("ddim", 100)


@dataclass(frozen=True)
class Ruler:
    """A sampler, latents and their codes."""

    name: str
    sampler: LatentSampler
    latents: Tensor
    codes: Tensor | None


@dataclass(frozen=True)
class Row:
    """Calls and errors (items,) of one way with one number of steps."""

    way: str
    steps: int
    calls: tuple[int, int]
    encode: Tensor
    decode: Tensor
    trip: Tensor

    def within(self, other: Row, *, worst: bool) -> bool:
        """Whether no error is larger: the median, and if ``worst`` the largest of the items."""
        pairs = list(zip(self.errors, other.errors, strict=True))
        medians = all(bool(a.median() <= b.median()) for a, b in pairs)
        return medians and (not worst or all(bool(a.max() <= b.max()) for a, b in pairs))

    @property
    def errors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.encode, self.decode, self.trip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--items", type=int, default=8)
    parser.add_argument("--subjects", type=int, default=160, help="people to train on, two scans")
    parser.add_argument("--trunk", type=int, default=700, help="updates of the trunk")
    parser.add_argument("--shift", type=int, default=250, help="updates of the shift")
    parser.add_argument("--keep", type=Path, help="file of the weights: read, or written if absent")
    parser.add_argument("--rulers", nargs="+", default=["mixture", "trained"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), seed {options.seed}")
    if "mixture" in options.rulers:
        table(mixture(8 * options.items, options.seed))
    if "trained" in options.rulers:
        table(trained(options))


def table(ruler: Ruler) -> None:
    """Every way and number of steps, then the fewest calls at the published error."""
    start = cpu_seconds()
    x, codes, sampler = ruler.latents, ruler.codes, ruler.sampler
    noise = sampler.encode(x, codes, steps=499, method="dpm").noise
    latent = sampler.decode(codes, noise, steps=499, solver="dpm")
    half = sampler.encode(x, codes, steps=249, method="dpm").noise
    fine = sampler.encode(x, codes, steps=999, method="ddim").noise
    print(f"\n{ruler.name}: {len(x)} items of {' x '.join(map(str, x.shape[1:]))}")
    print(
        f"converged noise (SD {float(noise.std()):.2f}): 249 steps are off by "
        f"{float(off(half, noise).median()):.1e}, explicit DDIM-999 by "
        f"{float(off(fine, noise).median()):.1e}; its latent is off from the scan's by "
        f"{float(off(latent, x).median()):.1e}"
    )
    print(f"{'way':<7}{'steps':>6}{'encode':>8}{'decode':>8}  calls", end="")
    print("".join(f"{name:>22}" for name in ("encode error", "decode error", "round trip")))
    rows = []
    for way, (encoding, decoding, steps) in WAYS.items():
        for n in steps:
            encoded = sampler.encode(x, codes, steps=n, method=encoding)
            there = sampler.decode(codes, noise, steps=n, solver=decoding)
            back = sampler.decode(codes, encoded.noise, steps=n, solver=decoding)
            errors = off(encoded.noise, noise), off(there, latent), off(back, x)
            rows.append(Row(way, n, (encoded.calls, n), *errors))
            words = [f"{float(e.median()):.1e} ({float(e.max()):.1e})" for e in errors]
            print(f"{way:<7}{n:>6}{encoded.calls:>8}{n:>8}       ", end="")
            print("".join(f"{word:>22}" for word in words))
    summary(rows)
    print(f"{cpu_seconds() - start:.0f} CPU seconds")


def summary(rows: list[Row]) -> None:
    """The fewest calls of each way at the published error, and whether they are a third."""
    published = next(row for row in rows if (row.way, row.steps) == PUBLISHED)
    spent = sum(published.calls)
    for way in WAYS:
        for worst, word in ((False, "medians"), (True, "medians and largest")):
            enough = [r for r in rows if r.way == way and r.within(published, worst=worst)]
            if not enough:
                print(f"{way:<7}{word}: no number of steps that was tried is within the errors")
                continue
            best = min(enough, key=lambda row: sum(row.calls))
            ratio = spent / sum(best.calls)
            print(
                f"{way:<7}{word}: {best.steps} steps, {best.calls[0]} + {best.calls[1]} calls "
                f"against {published.calls[0]} + {published.calls[1]}: {ratio:.1f} times fewer "
                f"(at least 3: {'yes' if ratio >= 3 else 'no'})"
            )


def off(x: Tensor, to: Tensor) -> Tensor:
    """Relative L2 distance of each item."""
    return (x - to).flatten(1).norm(dim=1) / to.flatten(1).norm(dim=1)


# ------------------------------------------------------------------------------- closed form


class Mixture(torch.nn.Module):
    """The exact noise of data from an even mixture of Gaussians of SD ``sd``, in float64."""

    def __init__(self, path: VariancePreserving, means: Tensor, sd: float) -> None:
        super().__init__()
        self.logs = (path.sigma / path.alpha).log()
        self.means = torch.nn.Parameter(means, requires_grad=False)  # (components, dimensions)
        self.sd = sd

    def noise(self, x: Tensor, t: Tensor) -> Tensor:
        place = float(t[0])
        low = min(int(place), len(self.logs) - 2)
        ratio = (self.logs[low] + (place - low) * (self.logs[low + 1] - self.logs[low])).exp()
        alpha = (1 + ratio**2).rsqrt()
        sigma = ratio * alpha
        power = alpha**2 * self.sd**2 + sigma**2
        far = x.flatten(1)[:, None] - alpha * self.means  # (n, components, dimensions)
        share = (-(far**2).sum(2) / (2 * power)).softmax(1)
        return (sigma / power * (share[..., None] * far).sum(1)).reshape(x.shape)


def mixture(items: int, seed: int) -> Ruler:
    generator = torch.Generator().manual_seed(seed)
    means = 0.9 * torch.randn(12, 96, generator=generator, dtype=torch.float64)
    settings = SamplingSettings(steps=100, iterations=4)
    sampler = LatentSampler(Mixture(settings.path(), means, 0.4), settings)  # type: ignore[arg-type]
    own = 0.4 * torch.randn(items, 96, generator=generator, dtype=torch.float64)
    rows = torch.randint(12, (items,), generator=generator)
    x = (means[rows] + own).reshape(items, 3, 4, 4, 2)
    return Ruler("mixture of 12 Gaussians, closed form, float64", sampler, x, None)


# ------------------------------------------------------------------------------- trained


def trained(options: argparse.Namespace) -> Ruler:
    """Train on latents of simulated people, and take scans of others."""
    from safetensors.torch import load_file, save_file

    start = cpu_seconds()
    x, codes = brain_latents(options.subjects, options.items, options.seed)
    print(f"\n{len(x)} latents: {cpu_seconds() - start:.0f} CPU seconds")
    torch.manual_seed(options.seed)
    network, path = ShiftUNet(SIZE), SamplingSettings().path()
    some = torch.arange(len(x) - options.items)
    if options.keep is not None and options.keep.exists():
        network.load_state_dict(load_file(options.keep))
    else:
        start, wall = cpu_seconds(), time.perf_counter()
        fit(network, path, x[some], codes[some], options)
        spent = cpu_seconds() - start, time.perf_counter() - wall
        print(f"trained in {spent[0]:.0f} CPU seconds ({spent[1]:.0f} s)")
        if options.keep is not None:
            options.keep.parent.mkdir(parents=True, exist_ok=True)
            save_file(network.state_dict(), options.keep)
    network.eval().requires_grad_(False)
    unseen = slice(len(x) - options.items, None)
    plain, coded = (held_out(network, path, x[unseen], c) for c in (None, codes[unseen]))
    print(f"squared error of the noise of unseen scans: trunk {plain:.4f}, with codes {coded:.4f}")
    sampler = LatentSampler(network, SamplingSettings(steps=100, iterations=4))
    name = f"ShiftUNet of {sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters"
    name += f" ({options.trunk} + {options.shift} updates), float32, walk in float64"
    return Ruler(name, sampler, x[unseen].double(), codes[unseen].double())


def fit(network: ShiftUNet, path: VariancePreserving, x: Tensor, codes: Tensor, options) -> None:
    """Both stages by the library's loop: the trunk's plain loss, then the shift's weighted one."""
    denoiser, plain = ShiftDenoiser(network), Objective(path, EPS)
    weighted, seen = Objective(path, EPS, weight=snr_power()), []

    def stage(objective, cond, steps, name, parameters):
        def loss(_, rows, generator):
            given = None if cond is None else cond[rows]
            terms = objective(denoiser, x[rows], given, generator=generator)
            seen.append(float(terms["loss"].detach()))
            return terms

        settings = TrainingSettings(steps=steps, batch_size=16, learning_rate=2e-3, ema_decay=0.98)
        train(
            network,
            loss,
            n_items=len(x),
            settings=settings,
            seed=options.seed,
            stage=name,
            parameters=parameters,
        )
        part = max(steps // 10, 1)
        first, last = np.mean(seen[:part]), np.mean(seen[-part:])
        print(f"{name}: loss {first:.3f} -> {last:.3f}")
        seen.clear()

    stage(plain, None, options.trunk, "trunk", [p for m in network.trunk() for p in m.parameters()])
    network.freeze_trunk()
    rest = [p for p in network.parameters() if p.requires_grad]
    stage(weighted, codes, options.shift, "shift", rest)


@torch.no_grad()
def held_out(network: ShiftUNet, path: VariancePreserving, x: Tensor, codes: Any) -> float:
    """Squared error of the noise at 64 even steps; the same noise for any network and codes."""
    generator, errors = torch.Generator().manual_seed(0), []
    for t in range(7, path.steps, path.steps // 64):
        at = Objective(path, EPS, density=lambda n, _, t=t: torch.full((n,), t))
        terms = at(ShiftDenoiser(network), x, codes, generator=generator)
        errors.append(float(terms["loss"]))
    return float(np.mean(errors))


def brain_latents(subjects: int, items: int, seed: int) -> tuple[Tensor, Tensor]:
    """Latents (n, 3, 4, 6, 4) of unit SD a channel and codes (n, 16); the last ``items`` are of
    people whose scans fit nothing."""
    people = subjects + items
    brains = SimulatedBrains(BrainSettings(subjects=people, shape=SHAPE), seed=seed)
    months = [[0.0, 24.0]] * subjects + [[0.0]] * items
    scans = [
        torch.from_numpy(np.asarray(brains.scan(name, month).data)).float()
        for name, at in zip(brains.names, months, strict=True)
        for month in at
    ]
    volumes = torch.stack(scans)  # (n, 1, i, j, k)
    patches = volumes
    for axis in (2, 3, 4):
        patches = patches.unfold(axis, PATCH, PATCH)
    patches = patches[:, 0].flatten(4)  # (n, i, j, k, PATCH ** 3)
    known = len(volumes) - items
    rows = patches[:known].flatten(0, 3)
    mean = rows.mean(0)
    ways = torch.linalg.eigh((rows - mean).double().T @ (rows - mean).double())[1].float()
    x = ((patches - mean) @ ways[:, -SIZE.channels :]).movedim(-1, 1)
    x = x - x[:known].mean((0, 2, 3, 4), keepdim=True)
    x = x / x[:known].std((0, 2, 3, 4), keepdim=True)
    flat = x.flatten(1) - x[:known].flatten(1).mean(0)
    _, _, axes = torch.linalg.svd(flat[:known], full_matrices=False)
    scores = flat @ axes[: SIZE.semantic].T
    return x.contiguous(), scores / scores[:known].std(0)


def cpu_seconds() -> float:
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return spent.ru_utime + spent.ru_stime


if __name__ == "__main__":
    main()
