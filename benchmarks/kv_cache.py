"""Decoding 1,024 codes with and without cached keys and values: ids, seconds, operations.

    python benchmarks/kv_cache.py [--width 192] [--layers 4] [--objects 8] [--threads 1]

Seconds are measured at a reduced width on this machine, greedy, for ``objects`` at once; both ways
must give the same codes. Operations are counted at the published size on the meta device, where
no memory and no graphics card is needed.
"""

from __future__ import annotations

import argparse
import time

import torch

from neurodiff.models.decoder_cost import decoding_flops, generate_uncached
from neurodiff.models.shape_decoder import ShapeDecoder, ShapeDecoderSize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--objects", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    size = ShapeDecoderSize(
        vocab=512, width=given.width, heads=4, layers=given.layers, condition=64
    )
    decoder = ShapeDecoder(size).eval()
    condition = torch.randn(given.objects, size.condition)
    decoder.generate(condition, length=8, greedy=True)  # warm
    started = time.perf_counter()
    cached = decoder.generate(condition, greedy=True)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    whole = generate_uncached(decoder, condition, size.sequence)
    slow = time.perf_counter() - started
    print(
        f"width {size.width}, {size.layers} layers, {given.objects} objects of {size.sequence} "
        f"codes, {given.threads} threads, float32"
    )
    print(f"  ids identical              {torch.equal(cached, whole)}")
    print(f"  distinct codes             {len(cached.unique())}")
    print(f"  with cache                 {seconds:.2f} s")
    print(f"  without cache              {slow:.2f} s")
    print(f"  times faster               {slow / seconds:.1f}")
    with_cache, without = decoding_flops()
    tokens = sum(range(2, 1026)) / 1025
    print("published size, one object, counted on the meta device")
    print(f"  with cache                 {with_cache / 1e12:,.2f} TFLOP")
    print(f"  without cache              {without / 1e12:,.0f} TFLOP")
    print(f"  times fewer                {without / with_cache:.1f}")
    print(f"  tokens through the weights {tokens:.1f} times fewer")


if __name__ == "__main__":
    main()
