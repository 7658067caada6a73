"""Folders of a Versatile Diffusion generator: our own, and the published one.

Ours (``save_pretrained``)::

    config.json        format, settings, and the SHA-256 of every other file
    unet/              config.json, model.safetensors
    vae/               config.json, diffusion_pytorch_model.safetensors    diffusers reads it too
    null_tokens/       model.safetensors      text, image

The published one is a pipeline folder of diffusers: of it ``image_unet``, ``text_unet``, ``vae``
and ``scheduler`` are read here; its encoders belong to :mod:`neurodiff.features`.  Its text U-Net
is of a class that current diffusers deprecates, so it is not built: its transformers are taken by
name.  Nothing is downloaded.
"""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neurodiff.core.atomic import plain, save_safetensors, write_json
from neurodiff.core.config import check
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.provenance import package_version
from neurodiff.core.safe_io import load_weights, read_json, sha256_of
from neurodiff.models.versatile_diffusion import (
    PUBLISHED,
    DualGuidedUNet,
    DualUNetSize,
    KeyReport,
    compare_states,
    load_states,
)
from neurodiff.models.versatile_diffusion_names import from_published, published_unet_name
from neurodiff.pipelines.versatile_diffusion import Settings, VersatileDiffusionGenerator

FORMAT = "neurodiff-versatile-diffusion-1"
VAE_WEIGHTS = "diffusion_pytorch_model.safetensors"
FILES = (
    "unet/config.json",
    "unet/model.safetensors",
    "vae/config.json",
    f"vae/{VAE_WEIGHTS}",
    "null_tokens/model.safetensors",
)
PARTS = ("image_unet", "text_unet", "vae", "scheduler")  # of a published folder
PUBLISHED_WEIGHTS = (  # in this order, the first that is there
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.fp16.bin",
)
# How a checkpoint of 2022 names the attention of an autoencoder, and how diffusers does now.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def save_pretrained(generator: VersatileDiffusionGenerator, folder: str | Path) -> Path:
    """Write a generator; files are replaced one by one, the index last, so that a folder that was
    cut off while it was written is refused when it is read.

    Raises
    ------
    DataError : the disk is full, or the folder cannot be written to.
    """
    place = Path(folder)
    write_json(place / FILES[0], asdict(generator.unet.size))
    save_safetensors(generator.unet.state_dict(), place / FILES[1])
    config = dict(generator.vae.config)
    # diffusers keeps a set here, which is written in another order in each process
    config["_use_default_values"] = sorted(config.get("_use_default_values", ()))
    write_json(place / FILES[2], plain(config))
    save_safetensors(generator.vae.state_dict(), place / FILES[3])
    null = {"text": generator.null_text, "image": generator.null_image}
    save_safetensors(null, place / FILES[4])
    index = {
        "format": FORMAT,
        "neurodiff": package_version(),
        "settings": asdict(generator.settings),
        "files": {file: sha256_of(place / file) for file in FILES},
    }
    write_json(place / "config.json", index)
    return place


def from_pretrained(folder: str | Path) -> VersatileDiffusionGenerator:
    """What :func:`save_pretrained` wrote, on the CPU, in the types it had.

    Raises
    ------
    MissingDataError : no such folder, or a file of it is missing.
    DataError : a file is broken or changed, or of another version.
    """
    place = Path(folder)
    if not (place / "config.json").is_file():
        raise MissingDataError(
            f"{place} has no config.json; give a folder that save_pretrained of a generator wrote"
        )
    index = read_json(place / "config.json")
    found = index.get("format") if isinstance(index, dict) else type(index).__name__
    if found != FORMAT:
        raise DataError(f"{place / 'config.json'} has format {found!r}; expected {FORMAT!r}")
    for file in FILES:
        if not (place / file).is_file():
            raise MissingDataError(f"{place / file} is missing; save the generator again")
        if sha256_of(place / file) != (index.get("files") or {}).get(file):
            raise DataError(
                f"{place / file} is not the file that config.json lists (other SHA-256): it was "
                "changed or cut off; save the generator again"
            )
    size = _checked(read_json(place / FILES[0]), DualUNetSize, place / FILES[0])
    settings = _checked(index.get("settings"), Settings, place / "config.json")
    with torch.device("meta"):
        unet = DualGuidedUNet(size)
    _assign(unet, load_weights(place / FILES[1]), place / FILES[1])
    vae = _vae(place / "vae", place / FILES[3])
    null = load_weights(place / FILES[4])
    return VersatileDiffusionGenerator(
        unet,
        vae,
        null_text_tokens=null["text"],
        null_image_tokens=null["image"],
        settings=settings,
    )


def from_folder(
    folder: str | Path,
    *,
    null_text_tokens: Any,
    null_image_tokens: Any,
    device: str | torch.device,
    dtype: torch.dtype = torch.float32,
    protocol: str = "neurodiff-1",
    batch: int = 1,
) -> VersatileDiffusionGenerator:
    """The published generator, from a local pipeline folder of diffusers.

    Parameters
    ----------
    folder : holds ``image_unet``, ``text_unet``, ``vae`` and ``scheduler``.
    null_text_tokens, null_image_tokens : (77, 768) and (257, 768), of the empty caption and of a
        mid-grey picture (0 between -1 and 1, 224 pixels), encoded and normalised as the decoded
        tokens are.
    device, dtype : of the U-Net; no other is taken where it does not fit.  The autoencoder stays
        float32, which its decoder needs for the range of its activations.
    protocol, batch : of :class:`~neurodiff.pipelines.versatile_diffusion.Settings`.

    Raises
    ------
    MissingDataError : the folder or a part of it is missing.
    DataError : parts of another kind or size; the sentence names the first names that differ.
    """
    place = Path(folder)
    missing = [part for part in PARTS if not (place / part).is_dir()]
    if missing:
        raise MissingDataError(
            f"{place} has no {', '.join(missing)}; expected a local copy of the Versatile "
            f"Diffusion pipeline of diffusers with {', '.join(PARTS)}"
        )
    settings = replace(
        _settings(place / "scheduler" / "scheduler_config.json"),
        protocol=protocol,  # type: ignore[arg-type]
        batch=batch,
    )
    unet = dual_unet_from_folders(place / "image_unet", place / "text_unet")
    vae = _vae(place / "vae", _weights_file(place / "vae"))
    settings = replace(settings, latent_scale=float(vae.config.scaling_factor))
    if vae.config.latent_channels != unet.size.latent_channels:
        raise DataError(
            f"{place}: the vae has {vae.config.latent_channels} latent channels and image_unet "
            f"{unet.size.latent_channels}; the parts are of different models"
        )
    return VersatileDiffusionGenerator(
        unet.to(device=device, dtype=dtype),
        nn.Module.to(vae, device=device, dtype=torch.float32),
        null_text_tokens=null_text_tokens,
        null_image_tokens=null_image_tokens,
        settings=settings,
    )


def dual_unet_from_folders(image_unet: str | Path, text_unet: str | Path) -> DualGuidedUNet:
    """The dual-guided U-Net from the folders of its two, on the CPU, in the type of the files.

    Raises
    ------
    MissingDataError, DataError : as :func:`from_folder`.
    """
    image_unet, text_unet = Path(image_unet), Path(text_unet)
    size = size_of_folders(image_unet, text_unet)
    with torch.device("meta"):
        network = DualGuidedUNet(size)
    image, text = (load_weights(_weights_file(place)) for place in (image_unet, text_unet))
    try:
        load_states(network, image, text)
    except ValueError as error:
        raise DataError(f"{image_unet} and {text_unet}: {error}") from None
    return network.eval()


def key_report(folder: str | Path) -> KeyReport:
    """Names in ``image_unet`` and ``text_unet`` of a published folder beside those that the
    dual-guided U-Net of their size has; the files are mapped, not read.

    Raises
    ------
    MissingDataError, DataError : a folder is missing, or its sizes are of no such pair.
    """
    image_unet, text_unet = (Path(folder) / part for part in PARTS[:2])
    with torch.device("meta"):
        network = DualGuidedUNet(size_of_folders(image_unet, text_unet))
    image, text = (load_weights(_weights_file(place)) for place in (image_unet, text_unet))
    return compare_states(network, image, text)


def dual_unet_from_checkpoint(path: str | Path, size: DualUNetSize = PUBLISHED) -> DualGuidedUNet:
    """The dual-guided U-Net from the authors' own file, whose names hold ``diffusion_model.``.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : it is broken, lacks a name, or is of another size.
    """
    weights = load_weights(path)
    weights = weights.get("state_dict", weights)
    tensors = {name.rpartition("diffusion_model.")[2]: tensor for name, tensor in weights.items()}
    with torch.device("meta"):
        network = DualGuidedUNet(size)
    own = network.state_dict()
    names = {name: published_unet_name(name, size) for name in own}
    try:
        network.load_state_dict(from_published(own, names, tensors), assign=True)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    return network.eval()


def size_of_folders(image_unet: Path, text_unet: Path) -> DualUNetSize:
    """Sizes that the two ``config.json`` state.

    Raises
    ------
    MissingDataError : one is not there.
    DataError : they are no such pair, or a setting is one that the dual-guided U-Net does not have.
    """
    image, text = (_config(place / "config.json") for place in (image_unet, text_unet))
    where = image_unet / "config.json"
    kinds = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
    try:
        size = DualUNetSize(
            channels=tuple(image["block_out_channels"]),
            layers=image["layers_per_block"],
            heads=image["attention_head_dim"],
            text_width=text["cross_attention_dim"],
            image_width=image["cross_attention_dim"],
            latent_channels=image["in_channels"],
            groups=image.get("norm_num_groups", 32),
            attention=tuple(kinds[kind] for kind in image["down_block_types"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        told = f"lacks or does not know {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{where} is of no U-Net that can be dual-guided: {told}") from None
    with torch.device("meta"):
        built = dict(DualGuidedUNet(size).unet.config)
    for key in sorted(image.keys() & built.keys() - {"sample_size"}):
        if not key.startswith("_") and plain(image[key]) != plain(built[key]):
            raise DataError(
                f"{where} has {key} {image[key]!r}; the dual-guided U-Net has {built[key]!r}"
            )
    for key in ("block_out_channels", "layers_per_block", "attention_head_dim"):
        if plain(text.get(key)) != plain(image.get(key)):
            raise DataError(
                f"{text_unet / 'config.json'} has {key} {text.get(key)!r} and image_unet "
                f"{image.get(key)!r}; the two U-Nets are of different models"
            )
    return size


# -------------------------------------------------------------------------------- helpers


def _settings(path: Path) -> Settings:
    config = _config(path)
    wanted = {"beta_schedule": "scaled_linear", "prediction_type": "epsilon"}
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise DataError(f"{path} has {key} {config[key]!r}; this generator needs {value!r}")
    try:
        return Settings(
            train_steps=config["num_train_timesteps"],
            first_beta=config["beta_start"],
            last_beta=config["beta_end"],
        )
    except KeyError as error:
        raise DataError(f"{path} lacks {error}; it is no scheduler of diffusers") from None


def _vae(place: Path, weights: Path) -> Any:
    from diffusers import AutoencoderKL

    config = _config(place / "config.json")
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(config)
    old = re.compile(rf"(?<=attentions\.0\.)({'|'.join(OLD_ATTENTION)})(?=\.)")
    tensors = {
        old.sub(lambda found: OLD_ATTENTION[found[0]], name): tensor
        for name, tensor in load_weights(weights).items()
    }
    _assign(vae, tensors, weights)
    return vae.eval()


def _assign(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    own = module.state_dict()
    missing, strange = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or strange:
        what = f"lacks {missing[0]!r}" if missing else f"holds {strange[0]!r}, which is unknown"
        raise DataError(f"{path} {what}; it is of another {type(module).__name__}")
    for name, tensor in own.items():
        if tensors[name].shape != tensor.shape:
            raise DataError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)}, and its config.json needs "
                f"{tuple(tensor.shape)}: the two are of different models"
            )
    module.load_state_dict(tensors, assign=True)


def _weights_file(place: Path) -> Path:
    for name in PUBLISHED_WEIGHTS:
        if (place / name).is_file():
            return place / name
    raise MissingDataError(f"{place} has no weights; expected {PUBLISHED_WEIGHTS[0]} in it")


def _config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if not isinstance(config, dict):
        raise DataError(f"{path} holds {type(config).__name__}; expected keys and values")
    return config


def _checked(values: Any, cls: type, path: Path) -> Any:
    if not isinstance(values, dict):
        raise DataError(f"{path} holds {type(values).__name__}; expected keys and values")
    try:
        return check(values, cls, where=str(path))
    except UsageError as error:
        text = "; ".join(line.strip() for line in str(error).splitlines())
        raise DataError(f"{text} (saved by another version)") from None
