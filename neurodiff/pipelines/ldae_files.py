"""LDAE's networks from files: published weights, autoencoders of BrLP and MONAI, Lightning.

Nothing is downloaded and no code in a file is run: torch files are read as weights only.  A file is
recognised by its names, never by its file name.  Bundles: :mod:`neurodiff.pipelines.ldae_bundles`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neurodiff.core.atomic import save_safetensors
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.safe_io import load_weights
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
from neurodiff.models.ldae_sizes import LatentUNetSize, SliceEncoderSize
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
    latent_mean : (c, i, j, k) that is taken from the autoencoder's latents first; None for nothing.
    protocol : what the weights were trained under.
    """

    autoencoder: Any
    decoder: Any = None
    encoder: SliceEncoder | None = None
    latent_scale: float | None = None
    protocol: str = "neurodiff-1"
    latent_mean: Tensor | None = None

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

        centre = 0.0 if self.latent_mean is None else self.latent_mean
        return Latents(mean, decode, mean=centre, std=1 / self.latent_scale)

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
    require_one_model(networks, folder, paths["decoder"])
    return networks


def require_one_model(networks: LDAENetworks, folder: Path, decoder_file: Path) -> None:
    """Raise DataError where published networks have no shift, or do not fit each other."""
    decoder, encoder = networks.decoder, networks.encoder
    if not isinstance(decoder, ShiftUNet):
        raise DataError(
            f"{decoder_file} is {WHAT['unet']} and has no shift; give {WHAT['decoder']}"
        )
    assert encoder is not None
    if decoder.size.semantic != encoder.size.code:
        raise DataError(
            f"{folder} has an encoder of {encoder.size.code} numbers and a decoder that reads "
            f"{decoder.size.semantic}; give files of one model"
        )
    channels = networks.autoencoder.latent_channels
    if decoder.size.channels != channels:
        raise DataError(
            f"{folder} has an autoencoder of {channels} latent channels and a decoder of "
            f"{decoder.size.channels}; give files of one model"
        )


def load_autoencoder(path: str | Path, *, groups: int | None = None, eps: float = 1e-6) -> Any:
    """MONAI's ``AutoencoderKL`` from a file of LDAE, BrLP or a bundle, with old or today's names.

    groups, eps : of the norms, of which the file does not tell (`autoencoder_size_of`).

    Raises
    ------
    MissingDataError, DataError : no file, a broken one, of another network, a missing name.
    """
    return autoencoder_of(named_tensors(path, "autoencoder"), str(path), groups=groups, eps=eps)


def load_unet(path: str | Path, *, size: LatentUNetSize | None = None) -> LatentUNet:
    """`ShiftUNet` from decoder.pth, or `LatentUNet` from a file of stage 2.

    size : by default that of the file's shapes, with one head and the published strides.

    Raises
    ------
    MissingDataError, DataError : as :func:`load_autoencoder`.
    """
    return unet_of(named_tensors(path, "decoder", "unet"), str(path), size=size)


def load_encoder(path: str | Path, *, size: SliceEncoderSize | None = None) -> SliceEncoder:
    """`SliceEncoder` from encoder.pth.

    size : by default that of the file's shapes, with eight heads.

    Raises
    ------
    MissingDataError, DataError : as :func:`load_autoencoder`.
    """
    return encoder_of(named_tensors(path, "encoder"), str(path), size=size)


def autoencoder_of(
    tensors: Mapping[str, Tensor], where: str, *, groups: int | None = None, eps: float = 1e-6
) -> Any:
    """What `load_autoencoder` makes of the tensors of a file, which ``where`` names in errors."""
    tensors = current_names(tensors)
    size = told_by(where, lambda: autoencoder_size_of(shapes_of(tensors), groups=groups, eps=eps))
    with torch.device("meta"):
        network = autoencoder(size)
    return filled(network, tensors, where)


def unet_of(
    tensors: Mapping[str, Tensor], where: str, *, size: LatentUNetSize | None = None
) -> LatentUNet:
    """What `load_unet` makes of the tensors of a file."""
    size = size or told_by(where, lambda: unet_size_of(shapes_of(tensors)))
    with torch.device("meta"):
        network = ShiftUNet(size) if "label_emb.weight" in tensors else LatentUNet(size)
    filled(network, tensors, where)
    return network


def encoder_of(
    tensors: Mapping[str, Tensor], where: str, *, size: SliceEncoderSize | None = None
) -> SliceEncoder:
    """What `load_encoder` makes of the tensors of a file."""
    kept = told_by(where, lambda: encoder_tensors(tensors))
    size = size or told_by(where, lambda: encoder_size_of(shapes_of(kept)))
    with torch.device("meta"):
        network = SliceEncoder(size)
    filled(network, kept, where)
    return network


def told_by(where: str, make: Callable[[], Any]) -> Any:
    """What ``make`` gives; its complaint about tensors gets the file's name."""
    try:
        return make()
    except (DataError, UsageError) as error:
        raise DataError(f"{where}: {error}") from None


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


# ------------------------------------------------------------------------------- helpers


def _file(folder: Path, part: str, name: str) -> Path:
    for path in (folder / name, folder / f"{part}.safetensors"):
        if path.exists():
            return path
    raise MissingDataError(
        f"{folder} has no {name}; expected a folder with {', '.join(FILES.values())}"
    )


def named_tensors(path: str | Path, *wanted: str) -> dict[str, Tensor]:
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


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by name."""
    return {name: tuple(t.shape) for name, t in tensors.items()}
