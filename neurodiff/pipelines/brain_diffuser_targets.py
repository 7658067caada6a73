"""Targets of the decoders: features of the training stimuli, encoded once and kept.

In a run they are files, one a head, that the ridges stream from disk; the generator that is trained
here reads the same tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurodiff.core.errors import DataError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.seeds import item_seed
from neurodiff.pipelines.brain_diffuser_networks import Networks, Shown

if TYPE_CHECKING:
    from neurodiff.core.run import Run

TARGETS_VERSION = 1


def make_targets(
    networks: Networks,
    head: str,
    shown: Shown,
    *,
    seed: int = 0,
    run: Run | None = None,
    progress: Progress = SILENT,
    block: int = 64,
) -> np.ndarray | Path:
    """Targets of a head for the training stimuli: in memory, or in a run as a file.

    The file is (n, ...) in the type that ``decoder.stored`` names; it appears when it is whole.
    """
    shape = (len(shown), *networks.shape_of(head))
    seeds = posterior_seeds(shown.ids, seed)
    stored = np.dtype(networks.recipe.decoder.stored)

    def fill(out: np.ndarray) -> None:
        blocks = range(0, len(shown), block)
        for k in progress.over(blocks, f"{head} features"):
            stop = min(k + block, len(shown))
            values = networks.encode(head, shown, k, stop, seeds=seeds[k:stop])
            if stored == np.float16 and np.abs(values).max() > np.finfo(np.float16).max:
                raise DataError(
                    f"{head} features of stimulus {shown.ids[k]!r} or near it are beyond float16; "
                    "set decoder.stored=float32"
                )
            out[k:stop] = values

    if run is None:
        out = np.zeros(shape, np.float32)
        fill(out)
        return out
    settings = {
        "head": head,
        "stored": stored.name,
        "networks": str(networks.recipe.low_level if head == "vdvae" else networks.recipe.tokens),
    }
    stage = run.stage(f"targets-{head}", settings, [identity_of(shown), str(seed)], TARGETS_VERSION)
    path = stage.path("targets.npy")
    if not stage.done:
        from neurodiff.core.safe_io import atomic_path

        with atomic_path(path) as temporary:
            # a file object keeps numpy from adding a suffix to the temporary name
            out = np.lib.format.open_memmap(temporary, mode="w+", dtype=stored, shape=shape)
            fill(out)
            out.flush()
        stage.finish({"items": len(shown)})
    return path


def posterior_seeds(ids: Sequence[str], seed: int) -> list[int]:
    """A seed for each stimulus's draw from the VDVAE's posterior."""
    return [item_seed(seed, subject="", stimulus=i, stage="vdvae posterior") for i in ids]


def identity_of(shown: Shown) -> str:
    """Hash of which stimuli, in which order, with which captions, and of their first pictures."""
    digest = hashlib.sha256(repr(shown.ids).encode())
    for name in shown.ids:
        digest.update(repr(shown.stimuli.captions(name)).encode())
    for image in shown.images(0, 20):
        digest.update(image.tobytes())
    return digest.hexdigest()
