"""A fitted MinD-3D as a folder: JSON and safetensors, one sub-folder a component.

::

    model_index.json          format, recipe with every default, gates, components and their files
    embedding/                config.json, model.safetensors       what the bridge predicts
    vqvae_model/  transformer_model/                               shapes (published names inside)
    brain_input/  ridge/                                           how a recording is read
    fmri_encoder/  fa_module/  prior_network/                      the bridge (published names)
    subject_layers/                                                in a model of several people

A pipeline of which only the shapes are fitted has the first three. Nothing in the folder is code:
no pickle is written or read. The folder is written beside its place and then renamed, and the index
holds the SHA-256 of every file, so that a folder is either whole or refused.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from neurodiff.bridges.ridge import MultiTargetRidge
from neurodiff.core.atomic import replaced_folder
from neurodiff.core.config import check, dump
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.provenance import now, package_version
from neurodiff.core.safe_io import (
    load_weights,
    plain,
    read_json,
    save_safetensors,
    sha256_of,
    write_json,
)
from neurodiff.features.view_embedding import ViewEmbedding
from neurodiff.models.mind3d import BrainNetworks
from neurodiff.pipelines.brain_input import BrainInput
from neurodiff.pipelines.mind3d_settings import MinD3DRecipe
from neurodiff.pipelines.subject_layers import SubjectLayers, layers_from_state, layers_state

if TYPE_CHECKING:
    from neurodiff.pipelines.mind3d import MinD3D

FORMAT = "neurodiff-mind3d-1"
INDEX = "model_index.json"
SHAPES = ("embedding", "vqvae_model", "transformer_model")
BRAIN = ("brain_input", "ridge", "fmri_encoder", "fa_module", "prior_network")
LAYERS = "subject_layers"
_FILES = ("config.json", "model.safetensors")


def save_pretrained(pipe: MinD3D, folder: str | os.PathLike[str]) -> Path:
    """Write what is fitted to ``folder``; an earlier model there is replaced as a whole.

    Raises
    ------
    UsageError : nothing is fitted, or the folder holds something else than a model.
    DataError : the disk is full; the earlier model, if any, is unchanged.
    """
    target = Path(folder)
    if pipe.embedding is None:
        raise UsageError("this MinD3D is not fitted yet: call fit before save_pretrained")
    if target.exists() and not is_model(target) and (target.is_file() or any(target.iterdir())):
        raise UsageError(f"{target} exists and is no MinD-3D model; name a new folder")
    parts = _components(pipe)
    with replaced_folder(target) as new:
        files = {}
        for name, (config, tensors) in parts.items():
            write_json(new / name / _FILES[0], config)
            save_safetensors(tensors, new / name / _FILES[1])
            files[name] = {file: sha256_of(new / name / file) for file in _FILES}
        index = {
            "format": FORMAT,
            "pipeline": "MinD3D",
            "neurodiff": package_version(),
            "saved": now(),
            "recipe": dump(pipe.recipe),
            "gates": plain(pipe.gates),
            "components": files,
        }
        write_json(new / INDEX, index)
    return target


def from_pretrained(folder: str | os.PathLike[str]) -> MinD3D:
    """The pipeline in ``folder``, or in the folder ``model`` of a run.

    Raises
    ------
    MissingDataError : no model there, or a file of it is missing.
    DataError : a file is broken, changed, or of another size than its recipe says.
    """

    place = model_folder(folder)
    index = _index(place)
    names = [*index["components"]]
    for name in names:
        for file, digest in index["components"][name].items():
            path = place / name / file
            if not path.is_file():
                raise MissingDataError(f"{path} is missing; save or copy the whole model again")
            if sha256_of(path) != digest:
                raise DataError(
                    f"{path} is not the file that {INDEX} lists (other SHA-256): it is broken or "
                    "was changed; save or copy the whole model again"
                )
    pipe = _unfitted(index["recipe"], place)
    pipe.gates = list(index.get("gates") or [])
    recipe = pipe.recipe
    pipe.embedding = _embedding(place / "embedding", recipe.embedding.dim)
    sizes = {"vqvae_model": recipe.tokenizer.size, "transformer_model": recipe.decoder.size}
    for name, size in sizes.items():
        _fill(place / name, getattr(pipe.shapes, name), plain(size))
    pipe.shapes.eval()
    if "brain_input" not in names:
        return pipe
    brain = _brain_input(place / "brain_input")
    if LAYERS in names:
        brain = replace(brain, layers=_layers(place / LAYERS))
    pipe.brain = brain
    pipe.ridge = _ridge(place / "ridge", brain.n_features, recipe.embedding.dim)
    bridge = recipe.bridge
    encoder = bridge.encoder_for(brain.image_size)
    with torch.random.fork_rng(devices=[]):  # initial weights draw from the global state
        networks = BrainNetworks(
            encoder,
            bridge.network,
            patches=torch.from_numpy(brain.kept),
            aggregated_tokens=bridge.aggregated_tokens,
        )
    _fill(place / "fmri_encoder", networks.fmri_encoder, plain(encoder))
    _fill(place / "fa_module", networks.fa_module, {"tokens": bridge.aggregated_tokens})
    _fill(place / "prior_network", networks.prior_network, plain(bridge.network))
    networks.eval()
    pipe.networks = networks
    return pipe


def is_model(folder: str | os.PathLike[str]) -> bool:
    """Whether ``folder`` holds the index of a model."""
    return (Path(folder) / INDEX).is_file()


def model_folder(folder: str | os.PathLike[str]) -> Path:
    """``folder`` if it is a model, its ``model`` if it is a run.

    Raises
    ------
    MissingDataError : neither.
    """
    place = Path(folder)
    for candidate in (place, place / "model"):
        if is_model(candidate):
            return candidate
    what = "has no fitted model" if (place / "run.json").is_file() else "is no fitted model"
    raise MissingDataError(
        f"{place} {what} (there is no {INDEX}); give a folder of save_pretrained, or of a run that "
        "`neurodiff fit` finished"
    )


def model_fingerprint(folder: str | os.PathLike[str]) -> str:
    """Hash of all that decides a prediction: recipe and files, not when they were saved."""
    import hashlib
    import json

    index = _index(model_folder(folder))
    decisive = {"recipe": index["recipe"], "components": index["components"]}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


# ------------------------------------------------------------------------------------- out


def _components(pipe: MinD3D) -> dict[str, tuple[dict[str, Any], dict[str, Tensor]]]:
    """Name -> (config, tensors) of everything that is fitted."""
    recipe, embedding = pipe.recipe, pipe.embedding
    assert embedding is not None
    arrays = {name: getattr(embedding, name) for name in ("mean", "axes", "scale")}
    shapes = pipe.shapes
    parts = {
        "embedding": ({"class": "ViewEmbedding", "size": {"dim": recipe.embedding.dim}}, arrays),
        "vqvae_model": _network(shapes.vqvae_model, recipe.tokenizer.size),
        "transformer_model": _network(shapes.transformer_model, recipe.decoder.size),
    }
    brain, ridge, networks = pipe.brain, pipe.ridge, pipe.networks
    if brain is not None and ridge is not None and networks is not None:
        facts = ("space_name", "space_fingerprint", "n_features", "patch_size", "image_size")
        parts["brain_input"] = (
            {"class": "BrainInput", **{name: getattr(brain, name) for name in facts}},
            {name: getattr(brain, name) for name in _BRAIN_ARRAYS},
        )
        coef = np.atleast_2d(ridge.coef_)
        size = {"features": coef.shape[1], "targets": coef.shape[0]}
        parts["ridge"] = (
            {"class": "MultiTargetRidge", "size": size},
            {name: np.asarray(getattr(ridge, name), np.float64) for name in _RIDGE_ARRAYS},
        )
        bridge = recipe.bridge
        encoder = bridge.encoder_for(brain.image_size)
        parts["fmri_encoder"] = _network(networks.fmri_encoder, encoder)
        tokens = {"tokens": bridge.aggregated_tokens}
        parts["fa_module"] = _network(networks.fa_module, tokens)
        parts["prior_network"] = _network(networks.prior_network, bridge.network)
        if brain.layers is not None:
            parts[LAYERS] = layers_state(brain.layers)
    return {name: (config, _tensors(values)) for name, (config, values) in parts.items()}


_BRAIN_ARRAYS = ("mean", "std", "patch_index", "kept")
_RIDGE_ARRAYS = ("coef_", "intercept_", "alpha_")


def _network(module: nn.Module, size: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"class": type(module).__name__, "size": plain(size)}, module.state_dict()


def _tensors(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copies: what is saved must not be a view of something larger."""
    return {
        name: value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        for name, value in values.items()
    }


# -------------------------------------------------------------------------------------- in


def _index(place: Path) -> dict[str, Any]:
    index = read_json(place / INDEX)
    where = place / INDEX
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        found = index.get("format") if isinstance(index, dict) else type(index).__name__
        raise DataError(f"{where} has format {found!r}; this version reads {FORMAT!r}")
    found = index.get("components")
    listed = found if isinstance(found, dict) else {}
    sound = all(isinstance(files, dict) and set(files) == {*_FILES} for files in listed.values())
    known = ({*SHAPES}, {*SHAPES, *BRAIN}, {*SHAPES, *BRAIN, LAYERS})
    if not sound or set(listed) not in known:
        raise DataError(
            f"{where} lists other components than {', '.join((*SHAPES, *BRAIN))}; "
            "save the model again"
        )
    return index


def _unfitted(recipe: Any, place: Path) -> MinD3D:
    from neurodiff.pipelines.mind3d import MinD3D

    where = f"the recipe in {place / INDEX}"
    if not isinstance(recipe, dict):
        raise DataError(f"{where} holds {type(recipe).__name__}; save the model again")
    try:
        settings = check(recipe, MinD3DRecipe, where=where)
    except UsageError as error:
        text = "; ".join(line.strip() for line in str(error).splitlines())
        raise DataError(f"{text} (the model was saved by another version)") from None
    with torch.random.fork_rng(devices=[]):
        return MinD3D(settings)


def _fill(place: Path, module: nn.Module, size: Any) -> None:
    """Weights into a network of the recipe's size; the first that does not fit is named."""
    path = place / _FILES[1]
    stated = _config(place).get("size")
    if stated != size:
        raise DataError(
            f"{place / _FILES[0]} says size {stated}; the recipe in {INDEX} says {size}: the parts "
            "are of different models"
        )
    weights, own = load_weights(path), module.state_dict()
    missing, strange = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or strange:
        what = f"lacks {missing[0]!r}" if missing else f"holds {strange[0]!r}, which is unknown"
        raise DataError(f"{path} {what}; it is not the {place.name} of this recipe")
    for name, tensor in own.items():
        _require_shape(path, name, weights[name], tuple(tensor.shape))
    module.load_state_dict(weights)


def _arrays(place: Path, shapes: Mapping[str, tuple[int | None, ...]]) -> dict[str, np.ndarray]:
    """The named arrays of a component; None in a shape stands for any length."""
    path = place / _FILES[1]
    weights = load_weights(path)
    if set(weights) != set(shapes):
        raise DataError(f"{path} holds {', '.join(sorted(weights))}; expected {', '.join(shapes)}")
    for name, shape in shapes.items():
        _require_shape(path, name, weights[name], shape)
    return {name: np.array(tensor.numpy()) for name, tensor in weights.items()}


def _require_shape(path: Path, name: str, tensor: Any, shape: tuple[int | None, ...]) -> None:
    found = tuple(tensor.shape)
    fits = len(found) == len(shape) and all(
        wanted in (None, length) for wanted, length in zip(shape, found, strict=True)
    )
    if not fits:
        wanted = tuple("any" if length is None else length for length in shape)
        raise DataError(
            f"{path}: {name} has shape {found}, and this recipe needs {wanted}: it is of a model "
            "of another size"
        )


def _config(place: Path) -> dict[str, Any]:
    config = read_json(place / _FILES[0])
    if not isinstance(config, dict):
        raise DataError(f"{place / _FILES[0]} holds {type(config).__name__}; expected keys")
    return config


def _embedding(place: Path, dim: int) -> ViewEmbedding:
    arrays = _arrays(place, {"mean": (None,), "axes": (None, dim), "scale": (dim,)})
    if len(arrays["mean"]) != len(arrays["axes"]):
        raise DataError(f"{place / _FILES[1]}: mean and axes have different numbers of pixels")
    return ViewEmbedding(**arrays)


def _brain_input(place: Path) -> BrainInput:
    config = _config(place)
    facts: dict[str, Callable[[Any], Any]] = {
        "space_name": str,
        "space_fingerprint": str,
        "n_features": int,
        "patch_size": int,
        "image_size": int,
    }
    values: dict[str, Any] = {}
    for name, kind in facts.items():
        values[name] = None
        with contextlib.suppress(KeyError, TypeError, ValueError):
            values[name] = kind(config[name])
        if values[name] is None:
            raise DataError(f"{place / _FILES[0]} has no usable {name}; save the model again")
    n = values["n_features"]
    shapes = {"mean": (n,), "std": (n,), "patch_index": (None, None), "kept": (None,)}
    arrays = _arrays(place, shapes)
    index = arrays["patch_index"]
    if len(index) != len(arrays["kept"]) or index.min() < 0 or index.max() > n:
        raise DataError(f"{place / _FILES[1]}: patch_index does not fit {n} features")
    values.update(arrays)
    return BrainInput(**values)


def _layers(place: Path) -> SubjectLayers:
    arrays = {name: tensor.numpy() for name, tensor in load_weights(place / _FILES[1]).items()}
    try:
        return layers_from_state(_config(place), arrays)
    except DataError as error:
        raise DataError(f"{place}: {error}") from None


def _ridge(place: Path, features: int, targets: int) -> MultiTargetRidge:
    shapes = {"coef_": (targets, features), "intercept_": (targets,), "alpha_": (targets,)}
    ridge = MultiTargetRidge()
    for name, array in _arrays(place, shapes).items():
        setattr(ridge, name, array)
    ridge.n_features_in_ = features
    return ridge
