"""LDAE's networks from files and into files: published weights, Lightning, MONAI bundles, BrLP.

Nothing is downloaded and no code in a file is run: torch files are read as weights only, and the
settings of a bundle as values.  A file is recognised by its names, never by its file name.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neurodiff.core.atomic import atomic_write, save_safetensors, write_json
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.safe_io import load_weights, read_json
from neurodiff.diffusion.latents import Latents
from neurodiff.models.ldae_autoencoder import (
    autoencoder,
    autoencoder_size_of,
    current_names,
    decode_in_slabs,
    encode,
)
from neurodiff.models.ldae_names import (
    WHAT,
    Part,
    encoder_size_of,
    encoder_tensors,
    filled,
    lightning_parts,
    part_of,
    unet_size_of,
)
from neurodiff.models.ldae_sizes import LatentUNetSize, SliceEncoderSize, from_plain
from neurodiff.models.ldae_slice_encoder import SliceEncoder, slices_first
from neurodiff.models.ldae_unet import LatentUNet, ShiftUNet
from neurodiff.pipelines.ldae_sampling import check_finite

#: What the published latents were multiplied with: one over the SD of one training batch.
PUBLISHED_SCALE = 0.8730
FILES = {
    "autoencoder": "autoencoderkl.pth",
    "decoder": "decoder.pth",
    "encoder": "encoder.pth",
}


@dataclass(frozen=True)
class LDAENetworks:
    """Networks of one model; a bundle or a stage may lack some.

    Parameters
    ----------
    autoencoder : MONAI's ``AutoencoderKL``.
    decoder : trunk and shift, or a U-Net without shift.
    encoder : of semantic codes.
    latent_scale : latents are the autoencoder's times this; None where the files do not say.
    protocol : what the weights were trained under.
    """

    autoencoder: Any
    decoder: Any = None
    encoder: SliceEncoder | None = None
    latent_scale: float | None = None
    protocol: str = "neurodiff-1"

    def latents(self, *, memory: float | None = None) -> Latents:
        """Volumes (n, 1, i, j, k) in [0, 1] to latents of the diffusion, and back in slabs.

        memory : bytes that the decoding may take above the weights (`decode_in_slabs`).

        Raises
        ------
        UsageError : the files did not say what latents are multiplied with.
        """
        if self.latent_scale is None:
            raise UsageError(
                "these weights come without the scale of their latents; give latent_scale, one "
                "over the SD of the latents of training scans"
            )

        @torch.no_grad()
        def mean(volume: Tensor) -> Tensor:
            check_finite("volumes", volume)
            return encode(self.autoencoder, volume)[0]

        def decode(z: Tensor) -> Tensor:
            check_finite("latents", z)
            return decode_in_slabs(self.autoencoder, z, memory=memory)

        return Latents(mean, decode, std=1 / self.latent_scale)

    @torch.no_grad()
    def codes(self, volume: Tensor) -> Tensor:
        """Semantic codes (n, code) of volumes (n, 1, i, j, k) in [0, 1], in the image's axes.

        Raises
        ------
        UsageError : no semantic encoder, or a volume that it does not read.
        DataError : NaN or infinity.
        """
        if self.encoder is None:
            raise UsageError("these weights have no semantic encoder; give encoder.pth as well")
        check_finite("volumes", volume)
        return self.encoder(slices_first(volume))


def load_ldae(folder: str | Path) -> LDAENetworks:
    """The published weights: a folder with autoencoderkl.pth, decoder.pth and encoder.pth.

    Files that :func:`convert_lightning` wrote (autoencoder.safetensors, ...) serve as well.  The
    protocol is "ldae-2025".

    Raises
    ------
    MissingDataError : the folder or a file is not there.
    DataError : a broken file, of another network, or networks that do not fit each other.
    """
    folder = Path(folder)
    paths = {part: _file(folder, part, name) for part, name in FILES.items()}
    networks = LDAENetworks(
        load_autoencoder(paths["autoencoder"]),
        load_unet(paths["decoder"]),
        load_encoder(paths["encoder"]),
        PUBLISHED_SCALE,
        "ldae-2025",
    )
    decoder, encoder = networks.decoder, networks.encoder
    if not isinstance(decoder, ShiftUNet):
        raise DataError(
            f"{paths['decoder']} is {WHAT['unet']} and has no shift; give {WHAT['decoder']}"
        )
    assert encoder is not None
    if decoder.size.semantic != encoder.size.code:
        raise DataError(
            f"{folder} has an encoder of {encoder.size.code} numbers and a decoder that reads "
            f"{decoder.size.semantic}; give files of one model"
        )
    return networks


def load_autoencoder(path: str | Path, *, groups: int | None = None, eps: float = 1e-6) -> Any:
    """MONAI's ``AutoencoderKL`` from a file of LDAE, BrLP or a bundle, with old or today's names.

    groups, eps : of the norms, of which the file does not tell (`autoencoder_size_of`).

    Raises
    ------
    MissingDataError, DataError : no file, a broken one, of another network, a missing name.
    """
    tensors = current_names(_tensors(path, "autoencoder"))
    size = autoencoder_size_of(_shapes(tensors), groups=groups, eps=eps)
    with torch.device("meta"):
        network = autoencoder(size)
    return filled(network, tensors, str(path))


def load_unet(path: str | Path, *, size: LatentUNetSize | None = None) -> LatentUNet:
    """`ShiftUNet` from decoder.pth, or `LatentUNet` from a file of stage 2.

    size : by default that of the file's shapes, with one head and the published strides.

    Raises
    ------
    MissingDataError, DataError : as :func:`load_autoencoder`.
    """
    tensors = _tensors(path, "decoder", "unet")
    size = size or unet_size_of(_shapes(tensors))
    with torch.device("meta"):
        network = ShiftUNet(size) if "label_emb.weight" in tensors else LatentUNet(size)
    filled(network, tensors, str(path))
    return network


def load_encoder(path: str | Path, *, size: SliceEncoderSize | None = None) -> SliceEncoder:
    """`SliceEncoder` from encoder.pth.

    size : by default that of the file's shapes, with eight heads.

    Raises
    ------
    MissingDataError, DataError : as :func:`load_autoencoder`.
    """
    tensors = encoder_tensors(_tensors(path, "encoder"))
    with torch.device("meta"):
        network = SliceEncoder(size or encoder_size_of(_shapes(tensors)))
    filled(network, tensors, str(path))
    return network


def convert_lightning(
    path: str | Path, folder: str | Path, *, averaged: bool = True
) -> dict[Part, Path]:
    """Networks of a Lightning checkpoint as safetensors, one file each; what was written.

    Only tensors are read (``weights_only``): a checkpoint that holds objects of the training code
    is refused.

    averaged : take the moving average of the weights where there is one.

    Raises
    ------
    MissingDataError, DataError : no file, a broken one, none of LDAE's networks in it.
    """
    whole = load_weights(path)
    inner = whole.get("state_dict")
    if not isinstance(inner, Mapping):
        raise DataError(f"{path} has no 'state_dict'; expected a checkpoint of Lightning")
    tensors = {n: t for n, t in inner.items() if isinstance(t, Tensor)}
    written: dict[Part, Path] = {}
    for part, found in lightning_parts(tensors, averaged=averaged).items():
        ready = encoder_tensors(found) if part == "encoder" else found
        ready = current_names(ready) if part == "autoencoder" else ready
        written[part] = Path(folder) / f"{part}.safetensors"
        save_safetensors(ready, written[part])
    return written


# ------------------------------------------------------------------------------- bundles


def export_bundle(networks: LDAENetworks, folder: str | Path) -> Path:
    """Write networks as a MONAI bundle: configs/ and models/, read by ``monai.bundle`` too.

    Raises
    ------
    UsageError : the folder is there already.
    """
    folder = Path(folder)
    if folder.exists():
        raise UsageError(f"{folder} exists; give the name of a folder that does not")
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


def import_bundle(folder: str | Path) -> LDAENetworks:
    """Networks of a MONAI bundle: MONAI's brain latent diffusion model, or one of ours.

    Settings are taken as values: expressions ("$...") are not run.  The autoencoder's size follows
    from its weights.  A ``DiffusionModelUNet`` becomes ``decoder`` as it is, with old names
    converted.

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
        key = next((k for k in (f"{name}_def", *_OTHER_KEYS.get(name, ())) if k in config), None)
        if key is not None:
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


_MODELS = {
    "autoencoder": ("autoencoder.pt", "autoencoder.pth"),
    "network": ("model.pt", "diffusion_model.pt", "diffusion_model.pth"),
    "encoder": ("encoder.pt",),
}
_OTHER_KEYS = {"network": ("diffusion_def", "diffusion"), "autoencoder": ("autoencoder",)}
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
    size = _size_of_network(network)
    return {"_target_": "monai.networks.nets.AutoencoderKL", **size.config()}


def _size_of_network(network: Any) -> Any:
    norm = network.decoder.blocks[-2]
    shapes = _shapes(network.state_dict())
    return autoencoder_size_of(shapes, groups=norm.num_groups, eps=norm.eps)


def _built(config: Mapping[str, Any], key: str, path: Path, folder: Path) -> Any:
    given = config[key]
    where = f"{folder}/configs/inference.json: {key}"
    if not isinstance(given, Mapping) or not isinstance(given.get("_target_"), str):
        raise DataError(f"{where} names no '_target_'; expected the definition of a network")
    target = given["_target_"].removesuffix(_MAKE).rsplit(".", 1)[-1]
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
    tensors = _tensors(path)
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


# ------------------------------------------------------------------------------- helpers


def _file(folder: Path, part: str, name: str) -> Path:
    for path in (folder / name, folder / f"{part}.safetensors"):
        if path.exists():
            return path
    raise MissingDataError(
        f"{folder} has no {name}; expected a folder with {', '.join(FILES.values())}"
    )


def _tensors(path: str | Path, *wanted: str) -> dict[str, Tensor]:
    """Named tensors of a file, which has to be of one of the ``wanted`` networks."""
    whole = load_weights(path)
    inner = next(
        (v for k in ("state_dict", "model") if isinstance(v := whole.get(k), Mapping)), whole
    )
    tensors = {n.removeprefix("module."): t for n, t in inner.items() if isinstance(t, Tensor)}
    part = part_of(tensors)
    if wanted and part not in wanted:
        found = WHAT[part] if part else "of no network that is known here"
        do = "; convert it first (convert_lightning)" if part == "lightning" else ""
        raise DataError(f"{path} is {found}; expected {WHAT[wanted[0]]}{do}")
    return tensors


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in tensors.items()}
