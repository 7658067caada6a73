"""A fitted Brain-Diffuser as a folder: JSON, safetensors and npy, one sub-folder a component.

::

    model_index.json     format, recipe with every default, gates, SHA-256 of every file
    brain_input/         means and standard deviations of voxels, space, subject; with several
                         subjects the input layer of each and the axes of the shared space
    decoder/factor/      brain data and factor, shared by the three heads
    decoder/<head>/      penalty, statistics, targets by hashed reference
    vdvae/  vision/  generator/        only what was trained here

Published networks are not copied: the recipe names their files. Training features in a run's stages
are referred to, not copied either; a folder that is moved alone needs them where they were.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from neurodiff.core.atomic import plain, replaced_folder, save_safetensors, write_json
from neurodiff.core.config import check, dump
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.provenance import now, package_version
from neurodiff.core.safe_io import load_weights, read_json, sha256_of
from neurodiff.models.vdvae import VDVAE
from neurodiff.pipelines.brain_diffuser_networks import load_networks
from neurodiff.pipelines.brain_diffuser_settings import HEADS, BrainDiffuserRecipe
from neurodiff.pipelines.versatile_diffusion import VersatileDiffusionGenerator

if TYPE_CHECKING:
    from neurodiff.pipelines.brain_diffuser import BetaInput, BrainDiffuser
    from neurodiff.pipelines.brain_diffuser_subjects import SharedInput

FORMAT = "neurodiff-brain-diffuser-1"
INDEX = "model_index.json"
_WEIGHTS = "model.safetensors"


def save_pretrained(pipe: BrainDiffuser, folder: str | os.PathLike[str]) -> Path:
    """Write what is fitted to ``folder``; an earlier model there is replaced as a whole.

    Raises
    ------
    UsageError : not fitted, or the folder holds something else than a model.
    DataError : the disk is full; the earlier model, if any, is unchanged.
    """
    target = Path(folder)
    if not pipe.heads or pipe.networks is None or pipe.input is None:
        raise UsageError("this BrainDiffuser is not fitted yet: call fit before save_pretrained")
    if target.exists() and not is_model(target) and (target.is_file() or any(target.iterdir())):
        raise UsageError(f"{target} exists and is no Brain-Diffuser model; name a new folder")
    recipe, networks, betas = pipe.recipe, pipe.networks, pipe.input
    with replaced_folder(target) as new:
        _save_input(betas, new / "brain_input")
        if recipe.low_level.training is not None:
            save_safetensors(networks.vdvae.state_dict(), new / "vdvae" / _WEIGHTS)
        if hasattr(networks.vision, "arrays"):
            axes = {name: torch.tensor(a) for name, a in networks.vision.arrays().items()}
            save_safetensors(axes, new / "vision" / _WEIGHTS)
        if recipe.generator.training is not None:
            assert isinstance(networks.generator, VersatileDiffusionGenerator)
            networks.generator.save_pretrained(new / "generator")
        references = {}
        for head in HEADS:
            bridge = pipe.heads[head]
            bridge.save(new / "decoder" / head, factor_folder=new / "decoder" / "factor")
            path = bridge.targets_.path
            if path is not None:
                references[head] = os.path.relpath(Path(path).resolve(), target.resolve())
        files = sorted(path for path in new.rglob("*") if path.is_file())
        index = {
            "format": FORMAT,
            "pipeline": "BrainDiffuser",
            "neurodiff": package_version(),
            "saved": now(),
            "recipe": dump(recipe),
            "gates": plain(pipe.gates, nan=True),
            "targets": references,
            "components": {str(path.relative_to(new)): sha256_of(path) for path in files},
        }
        write_json(new / INDEX, index)
    return target


def from_pretrained(folder: str | os.PathLike[str]) -> BrainDiffuser:
    """The pipeline in ``folder``, or in the folder ``model`` of a run.

    Raises
    ------
    MissingDataError : no model there, a file of it is missing, or a published network's file.
    DataError : a file is broken or changed.
    """
    from neurodiff.bridges.ridge_files import load_ridge
    from neurodiff.pipelines.brain_diffuser import BrainDiffuser

    place = model_folder(folder)
    index = _index(place)
    for file, digest in index["components"].items():
        path = place / file
        if not path.is_file():
            raise MissingDataError(f"{path} is missing; save or copy the whole model again")
        if sha256_of(path) != digest:
            raise DataError(
                f"{path} is not the file that {INDEX} lists (other SHA-256): it is broken or was "
                "changed; save or copy the whole model again"
            )
    recipe = check(index["recipe"], BrainDiffuserRecipe)
    pipe = BrainDiffuser(recipe)
    pipe.gates = list(index.get("gates") or [])
    fitted: dict[str, Any] = {}
    if recipe.low_level.training is not None:
        fitted["vdvae"] = vdvae = VDVAE(recipe.low_level.size).eval()
        vdvae.load_state_dict(load_weights(place / "vdvae" / _WEIGHTS))
    if (place / "vision" / _WEIGHTS).is_file():
        axes = load_weights(place / "vision" / _WEIGHTS)
        fitted["vision"] = {name: tensor.numpy() for name, tensor in axes.items()}
    if recipe.generator.training is not None:
        fitted["generator"] = VersatileDiffusionGenerator.from_pretrained(place / "generator")
    pipe.networks = load_networks(recipe, fitted)
    pipe.input = _load_input(place / "brain_input")
    factor = None
    for head in HEADS:
        beside = index.get("targets", {}).get(head)
        moved = place / beside if beside and (place / beside).is_file() else None
        try:
            bridge = load_ridge(place / "decoder" / head, targets=moved, factor=factor)
        except MissingDataError as error:
            if moved is None and beside:
                raise MissingDataError(
                    f"the training features of the {head} decoder are neither at "
                    f"{os.path.normpath(place / beside)} nor where they were when it was fitted "
                    f"({error}); a model refers to them: move or copy its whole run folder"
                ) from None
            raise
        pipe.heads[head], factor = bridge, bridge.factor_
    return pipe


def is_model(folder: str | os.PathLike[str]) -> bool:
    """Whether ``folder`` holds the index of a Brain-Diffuser."""
    path = Path(folder) / INDEX
    if not path.is_file():
        return False
    index = read_json(path)
    return isinstance(index, dict) and index.get("format") == FORMAT


def model_folder(folder: str | os.PathLike[str]) -> Path:
    """``folder`` if it is a model, its ``model`` if it is a run.

    Raises
    ------
    MissingDataError : neither.
    """
    place = Path(folder)
    for candidate in (place, place / "model"):
        if (candidate / INDEX).is_file():
            return candidate
    raise MissingDataError(
        f"{place} has no {INDEX}; give a folder of save_pretrained, or of a run that "
        "`neurodiff fit` finished"
    )


def model_fingerprint(folder: str | os.PathLike[str]) -> str:
    """Hash of all that decides a prediction: recipe and files, not when they were saved, nor where
    the targets lie: a run that was moved is the same run."""
    place = model_folder(folder)
    index = _index(place)
    components = dict(index["components"])
    for head in HEADS:
        notes = read_json(place / "decoder" / head / "bridge.json")
        notes["targets"] = {k: v for k, v in notes["targets"].items() if k != "path"}
        components[f"decoder/{head}/bridge.json"] = notes
    decisive = {"recipe": index["recipe"], "components": components}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _save_input(betas: BetaInput | SharedInput, folder: Path) -> None:
    from neurodiff.pipelines.brain_diffuser import BetaInput
    from neurodiff.pipelines.brain_diffuser_subjects import shared_state

    facts: dict[str, Any]
    if isinstance(betas, BetaInput):
        facts = {"space": betas.space, "subject": betas.subject}
        arrays = {"mean": betas.mean, "std": betas.std}
    else:
        facts, arrays = shared_state(betas)
    write_json(folder / "config.json", facts)
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    save_safetensors(tensors, folder / _WEIGHTS)


def _load_input(folder: Path) -> BetaInput | SharedInput:
    from neurodiff.pipelines.brain_diffuser import BetaInput
    from neurodiff.pipelines.brain_diffuser_subjects import shared_from_state

    facts = read_json(folder / "config.json")
    arrays = {name: np.asarray(t) for name, t in load_weights(folder / _WEIGHTS).items()}
    if "layers" in facts:
        return shared_from_state(facts, arrays)
    return BetaInput(arrays["mean"], arrays["std"], str(facts["space"]), str(facts["subject"]))


def _index(place: Path) -> dict[str, Any]:
    index = read_json(place / INDEX)
    found = index.get("format") if isinstance(index, dict) else type(index).__name__
    if found != FORMAT:
        raise DataError(
            f"{place / INDEX} has format {found!r}; expected {FORMAT!r}: it is of another pipeline "
            "or version"
        )
    return index
