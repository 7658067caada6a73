"""Seeds that depend on what an item is, never on when or where it is computed.

An item's noise is the same in any order, batch, shard or machine, because its seed is a hash of the
run's seed and the item's own identity. No function here leaves a global random state changed.

Examples
--------
>>> item_seed(0, subject="sub-01", stimulus="chair-7") == item_seed(
...     0, subject="sub-01", stimulus="chair-7", sample=0
... )
True
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from neurodiff.core.errors import UsageError

if TYPE_CHECKING:
    import numpy
    import torch


def item_seed(
    run_seed: int, *, subject: object, stimulus: object, sample: int = 0, stage: str = ""
) -> int:
    """Seed of one item: the first 63 bits of a SHA-256 of what identifies it.

    Parameters
    ----------
    run_seed : seed of the whole run.
    subject, stimulus : names; taken as text, so ``1`` and ``"1"`` are the same subject.
    sample : number of the sample drawn for this stimulus, from 0.
    stage : name of the step that draws, so that two steps never share their noise.

    Returns
    -------
    An integer from 0 to 2**63 - 1, which numpy and torch both accept.
    """
    identity = [int(run_seed), str(subject), str(stimulus), int(sample), str(stage)]
    text = json.dumps(identity, ensure_ascii=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode("ascii")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def numpy_generator(seed: int) -> numpy.random.Generator:
    """A fresh numpy generator (PCG64) for ``seed``.

    Raises
    ------
    UsageError : ``seed`` is negative or not an integer.
    """
    import numpy

    return numpy.random.default_rng(_checked(seed))


def torch_generator(seed: int) -> torch.Generator:
    """A fresh torch generator on the CPU for ``seed``.

    Noise is drawn on the CPU and then moved, so that a device does not change it.

    Raises
    ------
    UsageError : ``seed`` is negative, above 2**63 - 1 or not an integer.
    """
    import torch

    generator = torch.Generator()
    generator.manual_seed(_checked(seed))
    return generator


@contextlib.contextmanager
def seeded_layers(seed: int) -> Iterator[None]:
    """Make networks in this block: their first weights follow from ``seed`` alone.

    Constructors of layers draw from torch's global state of the CPU; it is set here and put back
    at the end.

    Raises
    ------
    UsageError : as `torch_generator`.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_checked(seed))
        yield


def _checked(seed: int) -> int:
    is_whole = hasattr(seed, "__index__") and not isinstance(seed, bool)
    if not is_whole or not 0 <= int(seed) < 2**63:
        raise UsageError(f"the seed is {seed!r}; give a whole number from 0 to 2**63 - 1")
    return int(seed)
