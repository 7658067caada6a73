"""What LDAE's stages read: prepared scans in one mapped file, and their latents.

Preparation and encoding run once.  With a run the files lie in the folders of their stages and a
killed run goes on at the scan where it stopped; without one they go with the temporary folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from neurodiff.core.atomic import write_json
from neurodiff.core.cohort import Cohort
from neurodiff.core.config import dump
from neurodiff.core.errors import DataError, NeurodiffError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.safe_io import read_json
from neurodiff.core.volume import Volume
from neurodiff.datasets.latent_cache import Latent, LatentCache, hash_of_weights
from neurodiff.models.ldae_autoencoder import encode
from neurodiff.pipelines.ldae_settings import LDAERecipe
from neurodiff.pipelines.stages import Stages

if TYPE_CHECKING:
    from neurodiff.core.run import Run

VERSION = 1
VOLUMES, RECORD = "volumes.npy", "prepared.json"
_FLUSH = 16  # scans between two notes of how far it came


@dataclass(frozen=True, eq=False, kw_only=True)
class PreparedScans:
    """Scans of a cohort on the model's grid.

    ``volumes`` (n, 1, i, j, k), mapped from the disk, float16 or float32; ``rows`` of them belong
    to ``cohort``, scan by scan, with ``affines`` (n, 4, 4); ``failed`` are (scan, reason).
    """

    cohort: Cohort
    volumes: np.ndarray
    rows: np.ndarray
    affines: np.ndarray
    failed: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, which: Sequence[int] | np.ndarray) -> np.ndarray:
        """float32 (len(which), 1, i, j, k)."""
        return np.asarray(self.volumes[self.rows[np.asarray(which)]], np.float32)


def prepared_scans(
    cohort: Cohort,
    prepare: Callable[[Volume], Volume],
    recipe: LDAERecipe,
    folder: Path,
    *,
    progress: Progress = SILENT,
) -> PreparedScans:
    """Prepare every scan into ``folder``; one that fails is listed and the rest goes on.

    Raises
    ------
    DataError : no scan could be prepared; the first reason is named.
    """
    shape = (len(cohort), 1, *recipe.size.grid)
    folder.mkdir(parents=True, exist_ok=True)
    path, about = folder / VOLUMES, _record(folder)
    there = path.is_file() and about.get("scans") == cohort.ids
    volumes = np.lib.format.open_memmap(
        path, mode="r+" if there else "w+", dtype=recipe.semantic.stored, shape=shape
    )
    if not there:
        about = {"scans": cohort.ids, "done": 0, "failed": [], "affines": []}
    progress.begin("prepare")
    for number in range(about["done"], len(cohort)):
        affine = np.eye(4)
        try:
            found = prepare(cohort[number])
            volumes[number], affine = found.data, found.affine
        except NeurodiffError as error:
            about["failed"].append([cohort.ids[number], str(error)])
        about["affines"].append(affine.tolist())
        about["done"] = number + 1
        if about["done"] % _FLUSH == 0 or about["done"] == len(cohort):
            volumes.flush()
            write_json(folder / RECORD, about)
        progress.update(number + 1, len(cohort), f"{len(about['failed'])} failed")
    return _opened(cohort, folder, about)


def scans_of(
    cohort: Cohort,
    pipe: Any,
    *,
    name: str,
    stages: Stages,
    place: Path,
    progress: Progress = SILENT,
) -> tuple[PreparedScans, str]:
    """`prepared_scans` as a stage of a run, and the identity of what was prepared.

    place : folder without a run.
    """
    recipe = pipe.recipe
    settings = {
        "preparation": None if recipe.preparation is None else dump(recipe.preparation),
        "grid": list(recipe.size.grid),
        "stored": recipe.semantic.stored,
    }
    inputs = [cohort.fingerprint()]
    folder = stage_folder(stages.run, name, settings, inputs, place)

    def fit(_: Any, __: Any) -> dict[str, Any]:
        made = prepared_scans(cohort, pipe.prepare, recipe, folder, progress=progress)
        return {"scans": len(made), "failed": len(made.failed)}

    stages.do(
        name,
        settings=settings,
        inputs=inputs,
        version=VERSION,
        fit=fit,
        state=lambda: {"scans": torch.tensor(len(cohort))},
        restore=lambda state: None,
    )
    found = _opened(cohort, folder, _record(folder))
    for scan, reason in found.failed[:5]:
        progress.say(f"  left out {scan}: {reason}")
    return found, "\x1f".join([*inputs, json.dumps(settings, sort_keys=True)])


def stage_folder(
    run: Run | None, name: str, settings: dict[str, Any], inputs: list[str], place: Path
) -> Path:
    """Where a stage's files lie: in the run, or below ``place``."""
    if run is None:
        return place / name
    return run.stage(name, settings, inputs, VERSION).folder


@torch.no_grad()
def encode_scans(
    autoencoder: Any,
    scans: PreparedScans,
    folder: Path,
    *,
    shape: Sequence[int],
    progress: Progress = SILENT,
) -> LatentCache:
    """Means and log-variances of all scans in a cache, which may hold some already.

    Raises
    ------
    DataError : the folder holds latents of another autoencoder or shape.
    """
    identity = hash_of_weights(autoencoder.state_dict())
    cache = LatentCache.open(folder, autoencoder=identity, shape=shape)
    device = next(autoencoder.parameters()).device
    missing, ids = set(cache.missing(scans.cohort.ids)), scans.cohort.ids
    progress.begin("latents")
    for number, scan in enumerate(ids):
        if scan in missing:
            volume = torch.from_numpy(scans.take([number])).to(device)
            mean, log_variance = (v[0].float().cpu().numpy() for v in encode(autoencoder, volume))
            affine = scans.affines[number]
            cache.write(scan, Latent(mean=mean, log_variance=log_variance, affine=affine))
        progress.update(number + 1, len(ids))
    return cache


class Posteriors:
    """Latents of scans in memory, unscaled: means and SDs, of which each step draws.

    Parameters
    ----------
    draws_once : one frozen draw of each (protocol "ldae-2025"), the same as `LatentCache.sample`.
    centre : (c, i, j, k) that is taken from each.
    """

    def __init__(
        self,
        cache: LatentCache,
        ids: Sequence[str],
        *,
        seed: int,
        draws_once: bool,
        centre: np.ndarray | None = None,
    ) -> None:
        self.mean = np.zeros((len(ids), *cache.shape), np.float32)
        self.sd = None if draws_once else np.zeros_like(self.mean)
        for number, scan in enumerate(ids):
            if self.sd is None:
                self.mean[number] = cache.sample(scan, seed=seed)
            else:
                latent = cache.read(scan)
                self.mean[number] = latent.mean
                self.sd[number] = np.exp(0.5 * latent.log_variance)
        if centre is not None:
            self.mean -= centre

    def __len__(self) -> int:
        return len(self.mean)

    def draw(self, rows: np.ndarray, generator: torch.Generator) -> torch.Tensor:
        """Draws (len(rows), c, i, j, k), float32."""
        mean = torch.from_numpy(self.mean[rows])
        if self.sd is None:
            return mean
        noise = torch.randn(mean.shape, generator=generator)
        return mean + torch.from_numpy(self.sd[rows]) * noise


def _opened(cohort: Cohort, folder: Path, about: dict[str, Any]) -> PreparedScans:
    failed = {scan: reason for scan, reason in about["failed"]}
    rows = np.array([k for k, scan in enumerate(cohort.ids) if scan not in failed], int)
    if not len(rows):
        first = next(iter(failed.values()), "there is none")
        raise DataError(f"none of {len(cohort)} scans could be prepared; first: {first}")
    volumes = np.lib.format.open_memmap(folder / VOLUMES, mode="r")
    return PreparedScans(
        cohort=cohort.select(rows) if failed else cohort,
        volumes=volumes,
        rows=rows,
        affines=np.array(about["affines"], np.float64)[rows],
        failed=tuple(failed.items()),
    )


def _record(folder: Path) -> dict[str, Any]:
    try:
        about = read_json(folder / RECORD)
    except DataError:
        return {}
    whole = isinstance(about, dict) and {"scans", "done", "failed", "affines"} <= set(about)
    return about if whole else {}
