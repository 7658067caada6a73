"""Diffusion mode of CT standardization on disk: one JSON index and one safetensors a network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from neurodiff.bridges.ct_filter import RadialFilter
from neurodiff.core import config
from neurodiff.core.atomic import replaced_folder, save_safetensors, write_json
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.provenance import package_version
from neurodiff.core.safe_io import load_weights, read_json, sha256_of
from neurodiff.pipelines.ct_diffusion_settings import CTDiffusionRecipe
from neurodiff.pipelines.ct_diffusion_training import build

if TYPE_CHECKING:
    from neurodiff.pipelines.ct_diffusion import CTDiffusion

FORMAT = "neurodiff-ct-diffusion-1"
INDEX = "model_index.json"


def save_pretrained(pipe: CTDiffusion, folder: str | os.PathLike[str]) -> Path:
    """Write what is fitted; an earlier model in ``folder`` is replaced as a whole.

    Raises
    ------
    UsageError : nothing is fitted, or the folder holds something else.
    """
    target = Path(folder)
    if pipe.networks is None or pipe.filter is None:
        raise UsageError("this CTDiffusion is not fitted yet: call fit before save_pretrained")
    if (
        target.exists()
        and not (target / INDEX).is_file()
        and (target.is_file() or any(target.iterdir()))
    ):
        raise UsageError(f"{target} exists and is no CT diffusion model; name a new folder")
    with replaced_folder(target) as new:
        files = {}
        for name, network in pipe.networks.items():
            file = f"{name}.safetensors"
            save_safetensors(network.state_dict(), new / file)
            files[file] = sha256_of(new / file)
        write_json(
            new / INDEX,
            {
                "format": FORMAT,
                "neurodiff": package_version(),
                "recipe": config.dump(pipe.recipe),
                "filter": pipe.filter.to_dict(),
                "residual_scale": pipe.residual_scale.tolist(),
                "spacing_range": list(pipe.spacing_range),
                "gate": pipe.gate,
                "gates": pipe.gates,
                "files": files,
            },
        )
    return target


def from_pretrained(folder: str | os.PathLike[str]) -> CTDiffusion:
    """The model in ``folder``.

    Raises
    ------
    MissingDataError : no model there, or a file of it is missing.
    DataError : a file is broken, changed, or of another size than the recipe says.
    """
    from neurodiff.pipelines.ct_diffusion import CTDiffusion

    place = Path(folder)
    if not (place / INDEX).is_file():
        raise MissingDataError(f"{place} holds no {INDEX}; expected a CT diffusion model")
    index = read_json(place / INDEX)
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise DataError(f"{place / INDEX} is not of format {FORMAT}; save the model again")
    try:
        recipe = config.check(index["recipe"], CTDiffusionRecipe, where=str(place / INDEX))
        pipe = CTDiffusion(recipe)
        pipe.filter = RadialFilter.from_dict(index["filter"])
        pipe.residual_scale = torch.tensor(index["residual_scale"], dtype=torch.float32)
        low, high = (float(side) for side in index["spacing_range"])
        pipe.spacing_range, pipe.gate, pipe.gates = (low, high), index["gate"], index["gates"]
        files = dict(index["files"])
    except UsageError as error:
        raise DataError(str(error)) from None
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{place / INDEX} is incomplete ({error}); save the model again") from None
    if pipe.residual_scale.shape != (recipe.autoencoder.channels,):
        raise DataError(f"{place / INDEX} does not fit its own recipe; save the model again")
    with torch.random.fork_rng(devices=[]):  # initial weights draw from torch's state
        networks = build(recipe)
    for name, network in networks.items():
        path = place / f"{name}.safetensors"
        if not path.is_file():
            raise MissingDataError(f"{path} is missing; copy the whole model again")
        if sha256_of(path) != files.get(path.name):
            raise DataError(f"{path} is not the file that {INDEX} lists; copy the model again")
        try:
            network.load_state_dict(load_weights(path))
        except RuntimeError:
            raise DataError(f"{path} holds another network than the recipe's") from None
    networks["autoencoder"].requires_grad_(False)
    pipe.networks = networks.eval()
    return pipe
