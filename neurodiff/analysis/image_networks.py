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
from pathlib import Path
from typing import Any

from neurodiff.analysis.image_protocols import ImageProtocol, image_protocol_of
from neurodiff.analysis.networks import STANDS_IN, VARIABLE, _filled, _first, install_line
from neurodiff.core.errors import MissingDataError
from neurodiff.core.safe_io import load_weights
from neurodiff.features.image_networks import FeatureExtractor, ImageNetwork, efficientnet_lite0


@dataclass(frozen=True)
class ImageNetworks:
    """The networks that are there, and a sentence for each that is not."""

    found: tuple[FeatureExtractor, ...]
    missing: tuple[str, ...] = ()

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
    missing = []
    for name, patterns, source, make in _known(rules):
        file = None if where is None else _any(where, patterns)
        if file is None:
            place = f"in {where}" if where else f"(no folder: --weights DIR or {VARIABLE})"
            get = source if name != "EfficientNet-Lite0" else install_line(where or "DIR")
            missing.append(
                f"{name} is not available: no {patterns[0]} {place}; it comes from {get}"
            )
        else:
            found.extend(make(file))
    return ImageNetworks(tuple(found), tuple(missing))


Known = tuple[str, tuple[str, ...], str, Callable[[Path], Sequence[ImageNetwork]]]


def _known(rules: ImageProtocol) -> tuple[Known, ...]:
    return (
        (
            "EfficientNet-Lite0",
            ("efficientnet-lite0-*.pth",),
            "",
            _lite,
        ),
    )


def _any(where: Path, patterns: Sequence[str]) -> Path | None:
    return next((file for one in patterns if (file := _first(where, one)) is not None), None)


def _lite(file: Path) -> list[ImageNetwork]:
    from neurodiff.features.efficientnet_lite import EfficientNetLite0

    network: Any = _filled(EfficientNetLite0(), load_weights(file), file)
    return [efficientnet_lite0(network)]
