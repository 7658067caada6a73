"""A codebook of vectors: nearest code, how much of it is in use, and new places for dead codes.

A small vector-quantised network collapses to few codes when most of them start far from what the
encoder emits; moving unused codes onto encoder outputs now and then prevents it.  Codes are rows
of a matrix (vocab, dim); ids count from 0.

References
----------
van den Oord et al. 2017, Neural Discrete Representation Learning.  Re-seeding of unused codes:
Dhariwal et al. 2020, Jukebox, section 3.
"""

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor


def nearest_codes(
    z: Float[Tensor, "n tokens dim"], codebook: Float[Tensor, "vocab dim"]
) -> Int[Tensor, "n tokens"]:
    """Id of the closest code; of several equally close ones the first."""
    # without the matrix product: its cancellation would change codes in float32
    mode = "donot_use_mm_for_euclid_dist"
    ids = z.new_zeros(z.shape[:2], dtype=torch.long)
    for row, item in zip(ids, z, strict=True):  # an item at a time bounds the distance table
        row.copy_(torch.cdist(item, codebook, compute_mode=mode).argmin(-1))
    return ids


def code_usage(ids: Int[Tensor, "..."], vocab: int) -> Int[Tensor, " vocab"]:
    """How often each code occurs in ``ids``."""
    return torch.bincount(ids.flatten(), minlength=vocab)


def perplexity(usage: Num[Tensor, " vocab"]) -> float:
    """Number of codes in effective use: exp of the entropy; from 1 to the size of the codebook.

    Raises
    ------
    ValueError : no code was used.

    Examples
    --------
    >>> perplexity(torch.tensor([5, 5, 0, 0]))
    2.0
    """
    total = float(usage.sum())
    if not total > 0:
        raise ValueError("usage is all zero; count the codes of at least one object first")
    share = usage[usage > 0].double() / total
    return round(float(torch.exp(-(share * share.log()).sum())), 12)


@torch.no_grad()
def reseed_dead_codes(
    embedding: Tensor,
    usage: Num[Tensor, " vocab"],
    candidates: Float[Tensor, "... dim"],
    generator: torch.Generator,
    *,
    minimum: int | float = 1,
) -> Int[Tensor, " dead"]:
    """Move every code used fewer than ``minimum`` times onto a random candidate, in place.

    Parameters
    ----------
    embedding : codebook (vocab, dim), usually a parameter; changed in place.
    usage : counts of each code, from :func:`code_usage`, or a running average of them.
    candidates : vectors the encoder emitted; drawn without repetition while there are enough.
    generator : decides the draw (on the CPU).

    Returns
    -------
    ids of the codes that moved, ascending.  An optimiser's state for these rows is stale: zero it,
    or accept a few wrong steps.

    Raises
    ------
    ValueError : shapes do not fit, or a candidate is not finite.
    """
    candidates = candidates.reshape(-1, candidates.shape[-1])
    if len(usage) != len(embedding) or candidates.shape[1] != embedding.shape[1]:
        raise ValueError(
            f"a codebook of shape {tuple(embedding.shape)} got usage of {len(usage)} codes and "
            f"candidates of length {candidates.shape[1]}"
        )
    if len(candidates) == 0 or not torch.isfinite(candidates).all():
        raise ValueError("candidates are empty or not finite; nothing to move codes onto")
    dead = (usage < minimum).nonzero()[:, 0]
    rounds = -(-len(dead) // len(candidates))
    picks = [torch.randperm(len(candidates), generator=generator) for _ in range(rounds)]
    if picks:
        pick = torch.cat(picks)[: len(dead)].to(candidates.device)
        embedding[dead] = candidates[pick].to(embedding)
    return dead
