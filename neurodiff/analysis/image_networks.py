"""The networks that score decoded pictures, found as files in a folder; nothing is downloaded.

name                     file in the folder                    what is read of it
AlexNet(2), AlexNet(5)   alexnet*.pth                          features.4, features.11
Inception v3             inception_v3*.pth                     avgpool, 2,048
CLIP ViT-L/14            a folder of transformers              projected output, 768
EfficientNet-B1 V1       efficientnet_b1_rwightman*.pth        avgpool, 1,280
EfficientNet-B1 V2       efficientnet_b1-*.pth                 avgpool, 1,280
SwAV ResNet-50           swav*.pth.tar, swav*.pth              avgpool, 2,048
EfficientNet-Lite0       efficientnet-lite0-*.pth (stand-in)   avgpool, 1,280
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from neurodiff.analysis.image_protocols import ImageProtocol, image_protocol_of
from neurodiff.analysis.networks import STANDS_IN, VARIABLE, filled, first_file, install_line
from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.core.safe_io import load_weights, read_json, sha256_of
from neurodiff.features.image_networks import (
    CLIP,
    FeatureExtractor,
    ImageNetwork,
    efficientnet_lite0,
)

# of the published CLIP's vision tower: width, layers, patch, projected width
CLIP_SIZES = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
}
SWAV_HEADS = ("projection_head.", "prototypes.")  # of training; pooled activations do not need them
Make = Callable[[Path], Sequence[FeatureExtractor]]


@dataclass(frozen=True)
class ImageNetworks:
    """The networks that are there, and a sentence for each that is not.

    ``protocol`` is whose input sizes they have; None where they were not looked up.
    """

    found: tuple[FeatureExtractor, ...]
    missing: tuple[str, ...] = ()
    protocol: str | None = None
    files: tuple[Path, ...] = ()

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each file of weights by its name, for the record of a run."""
        return {path.name: sha256_of(path) for path in self.files}

    def lines(self) -> list[str]:
        """What scored, what of it is a stand-in, and what is not available, a sentence each."""
        lines = [
            f"{one.name}: {'a published network' if one.published else f'a stand-in, {STANDS_IN}'}"
            for one in self.found
        ]
        return [*lines, *self.missing]


def find_image_networks(
    folder: str | os.PathLike[str] | None = None, protocol: str = "neurodiff-1"
) -> ImageNetworks:
    """Load what a folder of weights holds, for the input sizes of a protocol.

    Parameters
    ----------
    folder : None takes that of the variable ``NEURODIFF_WEIGHTS``, if set; without either every
        network is missing.

    Raises
    ------
    MissingDataError : the folder that was named is not there.
    DataError : a file is broken or holds another network.
    UsageError : there is no such protocol.
    """
    rules = image_protocol_of(protocol)
    given = folder if folder is not None else os.environ.get(VARIABLE) or None
    where = None if given is None else Path(given).expanduser()
    if where is not None and not where.is_dir():
        raise MissingDataError(
            f"{where} is no folder; name the folder of the weights with --weights DIR or {VARIABLE}"
        )
    found: list[FeatureExtractor] = []
    missing, files = [], []
    for name, patterns, source, make in _known(rules):
        file = None if where is None else _any(where, patterns)
        if file is not None:
            found.extend(make(file))
            whole = file.name != "config.json"
            files.extend([file] if whole else sorted(file.parent.glob("*.safetensors")))
            continue
        place = f"in {where}" if where else f"(no folder of weights: --weights DIR or {VARIABLE})"
        missing.append(f"{name} is not available: no {patterns[0]} {place}; {source}")
    return ImageNetworks(tuple(found), tuple(missing), protocol, tuple(files))


def _known(rules: ImageProtocol) -> list[tuple[str, tuple[str, ...], str, Make]]:
    """Name, files, how to get them, and what makes extractors of them; in the published order."""
    torchvision = "torchvision writes it to its cache for models.{}(weights='IMAGENET1K_{}')"
    first, second = (
        (
            f"EfficientNet-B1 {weights}",
            (pattern,),
            torchvision.format("efficientnet_b1", weights),
            partial(_efficientnet, name=f"EfficientNet-B1 {weights}", rules=rules),
        )
        for weights, pattern in (
            ("V1", "efficientnet_b1_rwightman*.pth"),
            ("V2", "efficientnet_b1-*.pth"),
        )
    )
    return [
        (
            "AlexNet",
            ("alexnet*.pth",),
            torchvision.format("alexnet", "V1"),
            partial(_alexnet, rules=rules),
        ),
        (
            "Inception v3",
            ("inception_v3*.pth",),
            torchvision.format("inception_v3", "V1"),
            partial(_inception, rules=rules),
        ),
        (
            "CLIP ViT-L/14",
            ("*clip*/config.json", "image_encoder/config.json"),
            "save openai/clip-vit-large-patch14 there with transformers, or use the folder "
            "image_encoder of Versatile Diffusion",
            _clip,
        ),
        second if rules.efficientnet_weights == "V2" else first,
        (
            "SwAV ResNet-50",
            ("swav*.pth.tar", "swav*.pth"),
            "swav_800ep_pretrain.pth.tar of the hub facebookresearch/swav",
            _swav,
        ),
        (
            "EfficientNet-Lite0",
            ("efficientnet-lite0-*.pth",),
            f"a stand-in for them, which comes from: {install_line('DIR')}",
            _lite,
        ),
    ]


def _any(where: Path, patterns: Sequence[str]) -> Path | None:
    return next((file for one in patterns if (file := first_file(where, one)) is not None), None)


def _module(module: Any, file: Path, weights: dict[str, Any] | None = None) -> Any:
    """Fill by name; a tensor that the network does not have is refused as well."""
    weights = load_weights(file) if weights is None else weights
    strange = sorted(set(weights) - set(module.state_dict()))
    if strange:
        raise DataError(
            f"{file} holds {strange[0]!r} ({len(strange)} tensors that "
            f"{type(module).__name__} does not have); it holds another network: take it out of "
            "the folder"
        )
    return filled(module, weights, file)


def _alexnet(file: Path, rules: ImageProtocol) -> list[ImageNetwork]:
    from neurodiff.features.alexnet import FIFTH, SECOND, AlexNet

    network = _module(AlexNet(), file)
    return [
        ImageNetwork(name, True, partial(network.activations, last=last), rules.alexnet)
        for name, last in (("AlexNet(2)", SECOND), ("AlexNet(5)", FIFTH))
    ]


def _inception(file: Path, rules: ImageProtocol) -> list[ImageNetwork]:
    from neurodiff.features.inception_v3 import InceptionV3

    network = _module(InceptionV3(), file)
    return [ImageNetwork("Inception v3", True, network.pooled, rules.inception)]


def _efficientnet(file: Path, name: str, rules: ImageProtocol) -> list[ImageNetwork]:
    from neurodiff.features.efficientnet_b1 import EfficientNetB1

    network = _module(EfficientNetB1(), file)
    return [ImageNetwork(name, True, network.pooled, rules.efficientnet)]


def _swav(file: Path) -> list[ImageNetwork]:
    from neurodiff.features.resnet50 import ResNet50

    weights = {name.removeprefix("module."): value for name, value in load_weights(file).items()}
    weights = {k: v for k, v in weights.items() if not k.startswith(SWAV_HEADS)}
    network = _module(ResNet50(classes=None), file, weights)
    return [ImageNetwork("SwAV ResNet-50", True, network.pooled)]


def _clip(file: Path) -> list[ImageNetwork]:
    """The projected output of a vision tower in a folder of transformers, alone or with the text's.

    Raises
    ------
    DataError : it has other sizes than the published one, or its weights are not there.
    """
    config = read_json(file)
    tower = config.get("vision_config") or config
    sizes = {
        name: config.get(name, tower.get(name)) if name == "projection_dim" else tower.get(name)
        for name in CLIP_SIZES
    }
    wrong = {name: size for name, size in sizes.items() if size != CLIP_SIZES[name]}
    if wrong:
        name, size = next(iter(wrong.items()))
        raise DataError(
            f"{file.parent} is a CLIP whose {name} is {size}; that of ViT-L/14 is "
            f"{CLIP_SIZES[name]}: take it out of the folder"
        )
    from transformers import CLIPVisionModelWithProjection

    try:
        network = CLIPVisionModelWithProjection.from_pretrained(file.parent, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise DataError(f"{file.parent} has no complete CLIP ({first}); save it again") from error
    network = network.float().eval()
    size = int(network.config.image_size)
    read = lambda x: network(pixel_values=x).image_embeds  # noqa: E731
    return [ImageNetwork("CLIP ViT-L/14", True, read, size, CLIP)]


def _lite(file: Path) -> list[ImageNetwork]:
    from neurodiff.features.efficientnet_lite import EfficientNetLite0

    return [efficientnet_lite0(filled(EfficientNetLite0(), load_weights(file), file))]
