"""``neurodiff fit`` for the published stages of MinD-3D.

    neurodiff fit mind3d_stage1 --dry-run
    neurodiff fit mind3d_stage1 --data fmri_shape --root DIR --targets clip.npz [--weights FILE]
    neurodiff fit mind3d_stage2 ... --targets clip.npz --codes DIR --weights STAGE1 --weights FILE

``--targets`` is a ``.npz`` file with ``ids`` (n) and ``features`` (n, 512) or (n, views, 512): the
CLIP ViT-B/32 image features of each stimulus.  ``--codes`` is such a file with ``ids`` and
``codes`` (n, 1024), or a folder with ``<stimulus>.npz`` anywhere below it, each with the key
``index``, as the published set of codes has it.

On several cards start it with torch's launcher; every process takes its share of each batch:
``python -m torch.distributed.run --nproc_per_node 4 -m neurodiff.cli fit mind3d_stage2_4gpu ...``
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurodiff.analysis.fit_steps import folder_of_fit
from neurodiff.core.config import dump, find_shared, load
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.run import Run, fingerprint
from neurodiff.core.safe_io import read_npz, read_yaml, save_safetensors, sha256_of

if TYPE_CHECKING:
    from neurodiff.pipelines.mind3d_stage_fitting import StageTargets
    from neurodiff.pipelines.mind3d_stages import StageNetworks, StageRecipe

RESULT = "published.safetensors"
VERSION = 1


def is_stage(recipe: str) -> bool:
    """Whether a recipe, by name or path, is one of a published stage."""
    try:
        values = read_yaml(find_shared("pipelines", recipe))
    except (DataError, UsageError):
        return False  # the loader of the other recipes tells what is wrong
    return isinstance(values, dict) and "stage" in values


def fit_published(
    recipe: str,
    overrides: Sequence[str],
    out: Path,
    data: str | None,
    root: Path | None,
    subject: int | str | None,
    seed: int,
    dry_run: bool,
    *,
    targets: Path | None = None,
    codes: Path | None = None,
    weights: Sequence[Path] = (),
    device: str = "cpu",
) -> Path | str:
    """Fit a stage and write its weights under the published names; returns the run's folder.

    Raises
    ------
    UsageError : recipe, data, or an input that the stage needs and that was not named.
    DataError, MissingDataError : files missing, broken, or without some stimulus.
    """
    from neurodiff.analysis.sources import Source
    from neurodiff.pipelines.mind3d_stages import StageRecipe

    settings = load(recipe, StageRecipe, list(overrides))
    if dry_run:
        return _plan(settings, data, root, subject)
    if targets is None:
        raise UsageError(
            "a published stage needs --targets FILE, the image features of the stimuli (.npz with "
            "ids and features)"
        )
    if settings.stage == 2 and codes is None:
        raise UsageError("stage 2 needs --codes FILE or DIR, the shape codes of the stimuli")
    from neurodiff.datasets.surface import FlatImageSpace, load_visual_cortex
    from neurodiff.pipelines.mind3d_stage_fitting import (
        fit_stage,
        open_stage,
        restore_trained,
        trained_state,
    )
    from neurodiff.pipelines.stages import Stages

    progress = Progress.to_stdout() if _rank() == 0 else SILENT
    source = Source.of(data, root, subject)
    recording, _ = source.open(progress)
    train = recording.select((recording.trials["split"] == "train").to_numpy())
    if train.n_trials == 0:
        raise UsageError("the recording has no trial whose split is 'train'")
    if not isinstance(train.space, FlatImageSpace):
        raise UsageError(
            f"a published stage reads flat maps of 256 x 256 pixels; this recording is in space "
            f"{train.space.name!r}"
        )
    goal = read_targets(list(train.trials["stimulus"]), targets, codes, settings)
    networks = open_stage(settings, weights).to(_device(device))
    inputs = {
        "data": source.name,
        "subject": subject,
        "recording": train.fingerprint(),
        "targets": sha256_of(targets),
        "codes": "" if goal.codes is None else _hash(goal.codes),
        "weights": [sha256_of(path) for path in weights],
    }
    plain = dump(settings)
    folder = folder_of_fit(out, settings.name, source.name, plain, inputs, seed)
    with _one_after_another():
        run = Run.create(folder, plain, inputs, command=sys.argv, seed=seed)
    run.info["data"] = source.plain()
    progress.say(f"run folder: {folder}")
    Stages(run, progress).do(
        f"stage{settings.stage}",
        settings=plain,
        inputs=[fingerprint(inputs), str(seed)],
        version=VERSION,
        fit=lambda place, log: fit_stage(
            networks,
            train,
            goal,
            settings,
            mask=load_visual_cortex().mask if settings.augment else None,
            seed=seed,
            folder=place,
            log=log if _rank() == 0 else None,
            progress=progress,
        ),
        state=lambda: trained_state(networks),
        restore=lambda state: restore_trained(networks, state),
    )
    if _rank() == 0:
        save_safetensors(_whole(networks, settings, weights), folder / RESULT)
        run.touch()
        progress.say(f"weights under the published names: {folder / RESULT}")
    return folder


def read_targets(
    stimuli: list[str], targets: Path, codes: Path | None, recipe: StageRecipe
) -> StageTargets:
    """Targets in the order of the trials, from the files of the module's docstring.

    Raises
    ------
    MissingDataError, DataError : a file is missing or broken, has another shape, or lacks a
        stimulus.
    """
    from neurodiff.pipelines.mind3d_stage_fitting import StageTargets

    dim = recipe.sizes.bridge.dim
    image = _by_id(targets, "features", stimuli)
    if image.ndim not in (2, 3) or image.shape[-1] != dim or image.dtype.kind != "f":
        raise DataError(
            f"{targets}: features have shape {image.shape} and type {image.dtype}; expected "
            f"(n, {dim}) or (n, views, {dim}) numbers"
        )
    if not np.isfinite(image).all():
        raise DataError(f"{targets}: features hold NaN or infinity; make them again")
    if recipe.stage == 1 or codes is None:
        return StageTargets(image)
    if codes.is_dir():
        rows = {name: _codes_below(codes, name) for name in dict.fromkeys(stimuli)}
        wrong = [name for name in rows if rows[name].size != recipe.sizes.decoder.sequence]
        if wrong:
            raise DataError(
                f"{codes}: {wrong[0]} has {rows[wrong[0]].size} codes; expected "
                f"{recipe.sizes.decoder.sequence}"
            )
        found = np.stack([rows[name].reshape(-1) for name in stimuli])
    else:
        found = _by_id(codes, "codes", stimuli)
    length, vocab = recipe.sizes.decoder.sequence, recipe.sizes.decoder.vocab
    if found.shape[1:] != (length,) or found.dtype.kind not in "iu":
        raise DataError(
            f"{codes}: codes have shape {found.shape} and type {found.dtype}; expected (n, "
            f"{length}) whole numbers"
        )
    if found.min() < 0 or found.max() >= vocab:
        raise DataError(
            f"{codes}: codes reach from {found.min()} to {found.max()}; the codebook has 0 to "
            f"{vocab - 1}"
        )
    return StageTargets(image, found.astype(np.int64))


# ----------------------------------------------------------------------------------- helpers


def _plan(
    settings: StageRecipe, data: str | None, root: Path | None, subject: int | str | None
) -> str:
    from neurodiff.analysis.sources import Source
    from neurodiff.pipelines.stage_cost import plan_text

    trials = None
    if data is not None:
        recording, _ = Source.of(data, root, subject).open()
        trials = int((recording.trials["split"] == "train").sum())
        if trials == 0:
            raise UsageError("the recording has no trial whose split is 'train'")
    return plan_text(settings, trials=trials)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    return read_npz(path, text=True)


def _by_id(path: Path, name: str, stimuli: list[str]) -> np.ndarray:
    arrays = _arrays(path)
    missing = [key for key in ("ids", name) if key not in arrays]
    if missing or len(arrays["ids"]) != len(arrays[name]):
        raise DataError(
            f"{path} holds {', '.join(arrays)}; expected ids and {name}, of the same length"
        )
    place = {str(one): k for k, one in enumerate(arrays["ids"])}
    absent = [one for one in dict.fromkeys(stimuli) if one not in place]
    if absent:
        raise DataError(
            f"{path} has no {name} of {len(absent)} of the training stimuli, first {absent[0]!r}; "
            "add them, or leave out their trials"
        )
    return arrays[name][[place[one] for one in stimuli]]


def _codes_below(folder: Path, stimulus: str) -> np.ndarray:
    paths = sorted(folder.rglob(f"{stimulus}.npz"))
    if not paths:
        raise MissingDataError(f"{folder} holds no {stimulus}.npz; add the codes of this stimulus")
    arrays = _arrays(paths[0])
    if "index" not in arrays:
        raise DataError(f"{paths[0]} holds {', '.join(arrays)}; expected the key index")
    return arrays["index"]


def _whole(networks: StageNetworks, settings: StageRecipe, weights: Sequence[Path]) -> dict:
    """The result, and, for stage 2, the shape tokenizer of the file that had the decoder."""
    from neurodiff.models.published_sizes import TOKENIZER
    from neurodiff.models.weights import open_checkpoint
    from neurodiff.pipelines.mind3d_stage_fitting import published_state

    state = published_state(networks)
    if settings.stage == 2:
        for path in weights:
            tensors = open_checkpoint(path).tensors
            state |= {n: t for n, t in tensors.items() if n.startswith(TOKENIZER)}
    return state


def _hash(values: np.ndarray) -> str:
    import hashlib

    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"device {name!r} cannot be used ({first}); try cpu") from None
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


@contextlib.contextmanager
def _one_after_another() -> Iterator[None]:
    """The first process makes the run's folder, then the others open it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    from accelerate import PartialState

    with PartialState().main_process_first():
        yield
