"""LDAE's networks as MONAI bundles, both ways.

A bundle is a folder: configs/inference.json defines networks by class and arguments, configs/
metadata.json says what they are for, models/ holds their weights.  What we write,
``monai.bundle.ConfigParser`` builds; of what others wrote, settings are taken as values and no
expression is run.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from neurodiff.core.atomic import atomic_write, write_json
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.safe_io import read_json
from neurodiff.models.ldae_autoencoder import autoencoder_size_of, patch_of, template_of
from neurodiff.models.ldae_sizes import LatentUNetSize, SliceEncoderSize, from_plain
from neurodiff.models.ldae_slice_encoder import SliceEncoder
from neurodiff.models.ldae_unet import LatentUNet
from neurodiff.pipelines.ldae_files import (
    LDAENetworks,
    load_autoencoder,
    load_encoder,
    load_unet,
    named_tensors,
    shapes_of,
)


def export_bundle(networks: LDAENetworks, folder: str | Path) -> Path:
    """Write networks as a MONAI bundle: configs/ and models/, read by ``monai.bundle`` too.

    Raises
    ------
    UsageError : the folder is there already.
    """
    folder = Path(folder)
    if folder.exists():
        raise UsageError(f"{folder} exists; give the name of a folder that does not")
    if networks.latent_mean is not None:
        raise UsageError(
            "these latents are centred, which a bundle has no place for; train with "
            "trunk.centre=false"
        )
    config: dict[str, Any] = {"latent_scale": networks.latent_scale, "protocol": networks.protocol}
    parts = {
        "autoencoder": networks.autoencoder,
        "network": networks.decoder,
        "encoder": networks.encoder,
    }
    for name, network in parts.items():
        if network is None:
            continue
        config[f"{name}_def"] = _definition(network)
        with atomic_write(folder / "models" / _MODELS[name][0]) as file:
            torch.save(network.state_dict(), file)
    write_json(folder / "configs" / "inference.json", config)
    write_json(folder / "configs" / "metadata.json", _metadata())
    return folder


def import_bundle(folder: str | Path, *, autoencoder_only: bool = False) -> LDAENetworks:
    """Networks of a MONAI bundle: MONAI's brain latent diffusion model, or one of ours.

    Settings are taken as values: expressions ("$...") are not run.  The autoencoder's size follows
    from its weights.  A ``DiffusionModelUNet`` becomes ``decoder`` as it is, with old names
    converted.

    autoencoder_only : leave the other networks and their files alone, which may be gigabytes.

    Raises
    ------
    MissingDataError : no configs/inference.json, or no weights.
    DataError : a setting that is an expression, a network that is not known here, broken weights.
    """
    folder = Path(folder)
    config = read_json(folder / "configs" / "inference.json")
    if not isinstance(config, Mapping):
        raise DataError(f"{folder}/configs/inference.json holds no settings by name")
    found: dict[str, Any] = {}
    for name, files in _MODELS.items():
        key = _key_of(config, name)
        if key is not None and not (autoencoder_only and name != "autoencoder"):
            path = next((p for f in files if (p := folder / "models" / f).exists()), None)
            if path is None:
                raise MissingDataError(f"{folder}/models has none of {', '.join(files)}")
            found[name] = _built(config, key, path, folder)
    if "autoencoder" not in found:
        raise DataError(f"{folder}/configs/inference.json has no 'autoencoder_def'")
    scale = config.get("latent_scale")
    return LDAENetworks(
        found["autoencoder"],
        found.get("network"),
        found.get("encoder"),
        float(scale) if isinstance(scale, int | float) else None,
        str(config.get("protocol", "neurodiff-1")),
    )


def holds_ldae(folder: str | Path) -> bool:
    """Whether a bundle's definitions are those of a whole LDAE, such as `export_bundle` writes."""
    config = read_json(Path(folder) / "configs" / "inference.json")
    if not isinstance(config, Mapping):
        return False
    keys = {name: _key_of(config, name) for name in _MODELS}
    targets = {name: _target(config[key]) for name, key in keys.items() if key is not None}
    scaled = isinstance(config.get("latent_scale"), int | float)
    return scaled and (targets.get("network"), targets.get("encoder")) == (
        "ShiftUNet",
        "SliceEncoder",
    )


_MODELS = {
    "autoencoder": ("autoencoder.pt", "autoencoder.pth"),
    "network": ("model.pt", "diffusion_model.pt", "diffusion_model.pth"),
    "encoder": ("encoder.pt",),
}
_KEYS = {
    "autoencoder": ("autoencoder_def",),
    "network": ("diffusion_def", "network_def"),
    "encoder": ("encoder_def",),
}
_MAKE = ".from_sizes"
_OURS: dict[str, tuple[Any, type]] = {
    "LatentUNet": (load_unet, LatentUNetSize),
    "ShiftUNet": (load_unet, LatentUNetSize),
    "SliceEncoder": (load_encoder, SliceEncoderSize),
}


def _definition(network: Any) -> dict[str, Any]:
    if isinstance(network, LatentUNet | SliceEncoder):
        made = f"{type(network).__module__}.{type(network).__name__}{_MAKE}"
        return {"_target_": made, **asdict(network.size)}
    if patch_of(network) != 1:
        raise UsageError(
            f"this autoencoder reads blocks of {patch_of(network)} voxels as channels, and MONAI's "
            "has no word for them; export one with patch 1"
        )
    if template_of(network) is not None:
        raise UsageError(
            "this autoencoder reads differences from a mean scan, and MONAI's has no word for "
            "them; export one without a template"
        )
    size = _size_of_network(network)
    return {"_target_": "monai.networks.nets.AutoencoderKL", **size.config()}


def _size_of_network(network: Any) -> Any:
    norm = network.decoder.blocks[-2]
    shapes = shapes_of(network.state_dict())
    return autoencoder_size_of(shapes, groups=norm.num_groups, eps=norm.eps)


def _built(config: Mapping[str, Any], key: str, path: Path, folder: Path) -> Any:
    given = config[key]
    where = f"{folder}/configs/inference.json: {key}"
    if not isinstance(given, Mapping) or not isinstance(given.get("_target_"), str):
        raise DataError(f"{where} names no '_target_'; expected the definition of a network")
    target = _target(given)
    values = {k: _value(config, v, f"{where}.{k}") for k, v in given.items() if k != "_target_"}
    if target == "AutoencoderKL":
        groups, eps = values.get("norm_num_groups"), values.get("norm_eps", 1e-6)
        return load_autoencoder(path, groups=groups, eps=float(eps))
    if target == "DiffusionModelUNet":
        return _monai_unet(values, path)
    if target in _OURS:
        load, sizes = _OURS[target]
        return load(path, size=from_plain(sizes, values))
    raise DataError(f"{where} is a {target}; known are AutoencoderKL, DiffusionModelUNet and ours")


def _key_of(config: Mapping[str, Any], name: str) -> str | None:
    """The key that defines a network; None where nothing does."""
    return next((k for k in _KEYS[name] if k in config and not _names_another(config[k])), None)


def _target(given: Any) -> str:
    """The class that a definition names; "" where it names none."""
    named = given.get("_target_") if isinstance(given, Mapping) else None
    return named.removesuffix(_MAKE).rsplit(".", 1)[-1] if isinstance(named, str) else ""


def _names_another(value: Any) -> bool:
    """MONAI's brain bundle calls its autoencoder ``network_def`` as well."""
    return isinstance(value, str) and value.startswith("@")


def _value(config: Mapping[str, Any], value: Any, where: str) -> Any:
    """A setting, with "@name" replaced by what stands there."""
    for _ in range(8):
        if not isinstance(value, str) or not value.startswith(("@", "$")):
            return value
        if value.startswith("$") or value[1:] not in config:
            break
        value = config[value[1:]]
    raise DataError(f"{where} is {value!r}, an expression, and none is run; write its value there")


def _monai_unet(values: dict[str, Any], path: Path) -> Any:
    """``DiffusionModelUNet`` from old or today's names."""
    from monai.networks.nets import DiffusionModelUNet

    values = {("channels" if k == "num_channels" else k): v for k, v in values.items()}
    tensors = named_tensors(path)
    try:
        network = DiffusionModelUNet(**{"include_fc": True, **values})
        with contextlib.redirect_stdout(io.StringIO()):  # it reports on names that it converts
            network.load_old_state_dict(dict(tensors))
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} does not fit the network of its bundle ({first})") from None
    return network.eval()


def _metadata() -> dict[str, Any]:
    import monai
    import numpy

    return {
        "version": "1.0.0",
        "changelog": {"1.0.0": "exported by neurodiff"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": numpy.__version__,
        "task": "latent diffusion autoencoder of T1-weighted brain MRI",
        "description": "autoencoder, shift U-Net and semantic encoder",
    }
