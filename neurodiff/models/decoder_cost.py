"""What decoding with and without cached keys and values costs, counted on the meta device.

The published code recomputes the whole prefix for every code; `ShapeDecoder.generate` keeps keys
and values.  The work of a step is a polynomial in the number of codes before it (of second degree
without a cache, of first degree with one), so a few steps that are counted give all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from neurodiff.models.shape_decoder import ShapeDecoder, ShapeDecoderSize


@torch.no_grad()
def generate_uncached(decoder: ShapeDecoder, condition: Tensor, length: int) -> Tensor:
    """The most likely codes, by the published way: the whole prefix again at every step.

    ``condition`` (n, condition) -> ids (n, length); for comparison only.
    """
    ids = torch.zeros(len(condition), length, dtype=torch.long, device=condition.device)
    for step in range(length):
        ids[:, step] = decoder(ids[:, : step + 1], condition)[:, -1].argmax(-1)
    return ids


def decoding_flops(size: ShapeDecoderSize | None = None) -> tuple[int, int]:
    """Floating-point operations of one object of ``size.sequence`` codes.

    Returns
    -------
    with cached keys and values; without.
    """
    size = ShapeDecoderSize() if size is None else size
    with torch.device("meta"):
        decoder = ShapeDecoder(size).eval()
        condition = torch.zeros(1, size.condition)
    cached = [
        _counted(lambda n=n: decoder.generate(condition, length=n, greedy=True)) for n in _FEW
    ]
    whole = [
        _counted(lambda n=n: decoder(torch.zeros(1, n, dtype=torch.long, device="meta"), condition))
        for n in _FEW
    ]
    # generate's total is a polynomial of second degree in its length; a forward pass is one, too
    with_cache = _polynomial(cached, size.sequence)
    return with_cache, sum(_polynomial(whole, n) for n in range(1, size.sequence + 1))


_FEW = (2, 3, 5)  # lengths that are counted


def _counted(run) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


def _polynomial(values: list[int], n: int) -> int:
    """The parabola through ``values`` at `_FEW`, at ``n``; exact in whole numbers."""
    (a, b, c), (x, y, z) = values, _FEW
    first, second = (b - a), (c - b)
    slope = second * (y - x) - first * (z - y)
    divisor = (z - y) * (y - x) * (z - x)
    total = a * divisor * (y - x) + first * (n - x) * divisor + slope * (n - x) * (n - y) * (y - x)
    return total // (divisor * (y - x))
