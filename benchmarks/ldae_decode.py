"""Peak memory and seconds of decoding one scan: MONAI's decode against decoding in slabs.

    python benchmarks/ldae_decode.py [--latent 8 10 8] [--planes 4] [--full]

The published autoencoder (13.8 M parameters) with random weights, one item, float32. Each way runs
in a process of its own; memory is the peak of the process above what it held with the weights
loaded, so it counts work space too. "predicted" is `decode_memory`. --full takes the published
latent, 16 x 20 x 16 (128 x 160 x 128 voxels): 3,460 GMAC, about a minute a way on two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from neurodiff.models.ldae_autoencoder import autoencoder, decode_in_slabs, decode_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--latent", type=int, nargs=3, default=[8, 10, 8])
    parser.add_argument("--full", action="store_true", help="the published latent")
    parser.add_argument("--planes", type=int, default=4)
    parser.add_argument("--ways", nargs="+", choices=["plain", "slabs"], default=["plain", "slabs"])
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sides = [16, 20, 16] if options.full else options.latent
    if options.way:
        print(json.dumps(one(options.way, sides, options.planes)))
        return
    print(f"latent 3 x {' x '.join(map(str, sides))}, {torch.get_num_threads()} thread(s)")
    print(f"{'way':<8}{'peak GB':>9}{'predicted':>11}{'seconds':>9}   digest of the volume")
    for way in options.ways:
        command = [sys.executable, __file__, "--way", way, "--planes", str(options.planes)]
        command += ["--latent", *map(str, sides)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        predicted = f"{row['predicted']:.2f}" if way == "slabs" else ""
        digest = "  ".join(f"{value:+.7f}" for value in row["digest"])
        print(f"{way:<8}{row['peak']:>9.2f}{predicted:>11}{row['seconds']:>9.1f}   {digest}")


def one(way: str, sides: list[int], planes: int) -> dict:
    """Peak bytes above the weights (in GB), seconds, and numbers that a wrong volume would miss."""
    torch.manual_seed(0)
    network = autoencoder().eval()
    z = torch.randn(1, 3, *sides)
    small = torch.randn(1, 3, 2, 2, 2)
    with torch.no_grad():  # libraries and work space that any decoding makes once
        network.decode(small)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    held, start = _status("VmRSS"), time.perf_counter()
    with torch.no_grad():
        out = decode_in_slabs(network, z, planes=planes) if way == "slabs" else network.decode(z)
    seconds, flat = time.perf_counter() - start, out.flatten().double()
    wave = torch.cos(0.7 * torch.arange(len(flat), dtype=torch.float64))
    return {
        "peak": (_status("VmHWM") - held) / 1e9,
        "predicted": decode_memory(network, tuple(z.shape), planes=planes) / 1e9,
        "seconds": seconds,
        "digest": [float(flat.mean()), float(flat.std()), float((flat * wave).mean() * 1e3)],
    }


def _status(field: str) -> int:
    """Bytes that the kernel reports of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"this system reports no {field}; the benchmark needs Linux")


if __name__ == "__main__":
    main()
