"""A fitted LDAE as a folder: JSON and safetensors, one sub-folder a component.

::

    model_index.json      format, recipe with every default, scale of the latents, gates, files
    autoencoder/  decoder/  encoder/         model.safetensors
    latents/              mean.safetensors                             where latents are centred
    directions/           directions.json, directions.safetensors      where there are any

Nothing in the folder is code.  It is written beside its place and then renamed, and the index holds
the SHA-256 of every file, so that a folder is either whole or refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from neurodiff.core.atomic import plain, replaced_folder, save_safetensors, write_json
from neurodiff.core.config import check, dump
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.provenance import now, package_version
from neurodiff.core.safe_io import load_weights, read_json, sha256_of
from neurodiff.models.ldae_autoencoder import autoencoder
from neurodiff.models.ldae_names import filled
from neurodiff.models.ldae_slice_encoder import SliceEncoder
from neurodiff.models.ldae_unet import ShiftUNet
from neurodiff.pipelines.ldae_files import LDAENetworks
from neurodiff.pipelines.ldae_settings import LDAERecipe

if TYPE_CHECKING:
    from neurodiff.pipelines.ldae import LDAE

FORMAT = "neurodiff-ldae-1"
INDEX = "model_index.json"
NETWORKS = ("autoencoder", "decoder", "encoder")
WEIGHTS = "model.safetensors"
DIRECTIONS = "directions"
MEAN = "latents/mean.safetensors"


def save_pretrained(pipe: LDAE, folder: str | os.PathLike[str]) -> Path:
    """Write the model to ``folder``; an earlier one there is replaced as a whole.

    Raises
    ------
    UsageError : the folder holds something else than a model.
    DataError : the disk is full; the earlier model, if any, is unchanged.
    """
    target = Path(folder)
    if target.exists() and not is_model(target) and (target.is_file() or any(target.iterdir())):
        raise UsageError(f"{target} exists and is no LDAE model; name a new folder")
    with replaced_folder(target) as new:
        for name in NETWORKS:
            save_safetensors(getattr(pipe.networks, name).state_dict(), new / name / WEIGHTS)
        if pipe.networks.latent_mean is not None:
            save_safetensors({"mean": pipe.networks.latent_mean}, new / MEAN)
        if pipe.directions:
            from neurodiff.pipelines.ldae_directions import save_directions

            save_directions(pipe.directions, new / DIRECTIONS)
        files = sorted(p.relative_to(new).as_posix() for p in new.rglob("*") if p.is_file())
        index = {
            "format": FORMAT,
            "pipeline": "LDAE",
            "neurodiff": package_version(),
            "saved": now(),
            "recipe": dump(pipe.recipe),
            "latent_scale": pipe.networks.latent_scale,
            "fitted": pipe.fitted,
            "gates": plain(pipe.gates),
            "files": {file: sha256_of(new / file) for file in files},
        }
        write_json(new / INDEX, index)
    return target


def from_pretrained(folder: str | os.PathLike[str]) -> LDAE:
    """The model in ``folder``, or in the folder ``model`` of a run.

    Raises
    ------
    MissingDataError : no model there, or a file of it is missing.
    DataError : a file is broken, changed, or of another size than its recipe says.
    """
    from neurodiff.pipelines.ldae import LDAE

    place = model_folder(folder)
    index = _index(place)
    for file, digest in index["files"].items():
        path = place / file
        if not path.is_file():
            raise MissingDataError(f"{path} is missing; save or copy the whole model again")
        if sha256_of(path) != digest:
            raise DataError(
                f"{path} is not the file that {INDEX} lists (other SHA-256): it is broken or was "
                "changed; save or copy the whole model again"
            )
    try:
        recipe = check(index["recipe"], LDAERecipe, where=f"the recipe in {place / INDEX}")
    except UsageError as error:
        text = "; ".join(line.strip() for line in str(error).splitlines())
        raise DataError(f"{text} (the model was saved by another version)") from None
    size = recipe.size
    with torch.device("meta"):
        empty = {"autoencoder": autoencoder(size.autoencoder), "decoder": ShiftUNet(size.unet)}
    empty["encoder"] = SliceEncoder(size.encoder)  # its table of positions has values of its own
    parts = {
        name: filled(network, load_weights(place / name / WEIGHTS), str(place / name / WEIGHTS))
        for name, network in empty.items()
    }
    scale = index["latent_scale"]
    mean = load_weights(place / MEAN)["mean"] if MEAN in index["files"] else None
    networks = LDAENetworks(**parts, latent_scale=scale, protocol=recipe.protocol, latent_mean=mean)
    pipe = LDAE(recipe, networks)
    pipe.fitted, pipe.gates = bool(index["fitted"]), list(index["gates"])
    if any(file.startswith(f"{DIRECTIONS}/") for file in index["files"]):
        from neurodiff.pipelines.ldae_directions import load_directions

        pipe.directions = load_directions(place / DIRECTIONS)
    return pipe


def is_model(folder: str | os.PathLike[str]) -> bool:
    """Whether ``folder`` holds the index of a model."""
    return (Path(folder) / INDEX).is_file()


def model_folder(folder: str | os.PathLike[str]) -> Path:
    """``folder`` if it is a model, its ``model`` if it is a run; MissingDataError if neither."""
    place = Path(folder)
    for candidate in (place, place / "model"):
        if is_model(candidate):
            return candidate
    what = "has no fitted model" if (place / "run.json").is_file() else "is no fitted model"
    raise MissingDataError(
        f"{place} {what} (there is no {INDEX}); give a folder of save_pretrained, or of a run that "
        "`neurodiff fit` finished"
    )


def _index(place: Path) -> dict[str, Any]:
    index = read_json(place / INDEX)
    where = place / INDEX
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        found = index.get("format") if isinstance(index, dict) else type(index).__name__
        raise DataError(f"{where} has format {found!r}; this version reads {FORMAT!r}")
    files = index.get("files")
    needed = {f"{name}/{WEIGHTS}" for name in NETWORKS}
    scale = index.get("latent_scale")
    sound = isinstance(files, dict) and needed <= set(files) and isinstance(scale, float | int)
    outside = isinstance(files, dict) and any(
        ".." in Path(f).parts or Path(f).is_absolute() for f in files
    )
    if not sound or outside or not isinstance(index.get("recipe"), dict) or not scale > 0:
        raise DataError(f"{where} does not list a whole model; save the model again")
    return {"fitted": True, "gates": [], **index}
