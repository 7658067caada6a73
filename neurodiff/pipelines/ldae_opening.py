"""A model by the place where its files lie, whoever wrote them: what ``--model`` takes.

::

    a run, or save_pretrained                our own                           all of an LDAE
    autoencoderkl.pth decoder.pth encoder.pth       LDAE as published          all of an LDAE
    *.safetensors of `neurodiff weights convert`    LDAE's Lightning files     all of an LDAE
    configs/inference.json, models/          a MONAI bundle      ours: all; others: the autoencoder
    one file, or a folder with it            BrLP's autoencoder                the autoencoder

Files are told apart by the names of their tensors, never by their own; only Lightning's ``*.ckpt``
is known by its ending, and asked to be converted: what of several networks and averages is taken
is decided there, once.  Beside published weights, disease_classifier.ckpt, semantic_mean.pt and
semantic_std.pt give the direction AD.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.models.ldae_names import WHAT, lightning_parts, part_of
from neurodiff.pipelines.brain_preprocessing import BrainPreprocessing
from neurodiff.pipelines.ldae import LDAE
from neurodiff.pipelines.ldae_autoencoder_alone import AutoencoderAlone
from neurodiff.pipelines.ldae_bundles import holds_ldae, import_bundle
from neurodiff.pipelines.ldae_directions import PUBLISHED_FILES, published_direction
from neurodiff.pipelines.ldae_files import (
    FILES,
    PUBLISHED_SCALE,
    LDAENetworks,
    autoencoder_of,
    encoder_of,
    named_tensors,
    require_one_model,
    unet_of,
)
from neurodiff.pipelines.ldae_saving import from_pretrained, is_model

WEIGHTS = (".pth", ".pt", ".safetensors")
LIGHTNING = ".ckpt"
#: Of MONAI's brain bundle: 1 mm and its own grid (metadata.json of the bundle).
BUNDLE_GRID = (160, 224, 160)


def open_published(place: str | os.PathLike[str]) -> LDAE | AutoencoderAlone:
    """The model in a folder, of a run or a file; see above for what is known.

    Raises
    ------
    MissingDataError : nothing there, no weights that are known, or a part of an LDAE is missing.
    DataError : a broken file, one that has to be converted first, parts that do not fit.
    UsageError : weights whose size fits no published grid.
    """
    place = Path(place)
    if not place.exists():
        raise MissingDataError(f"{place} does not exist; give the folder of a model with --model")
    if any(is_model(folder) for folder in (place, place / "model")) or _is_run(place):
        return from_pretrained(place)
    if (place / "configs" / "inference.json").is_file():
        return _bundle(place)
    found = _found(place)
    if {"autoencoder", "decoder", "encoder"} <= set(found.parts):
        return _ldae(place, found)
    if found.unconverted:
        first = found.unconverted[0]
        raise DataError(
            f"{first} is a checkpoint of Lightning, which is converted before it is used: run "
            f"`neurodiff weights convert {first} {first.with_suffix('.safetensors')}` (with "
            "--i-trust-this-file where it asks for that), then give the same --model again"
        )
    if found.broken:
        raise found.broken[0]
    if "autoencoder" in found.parts and not {"decoder", "encoder"} & set(found.parts):
        path, tensors = found.parts["autoencoder"]
        return AutoencoderAlone(autoencoder_of(tensors, str(path)), name=path.stem)
    raise _lacking(place, found)


@dataclass
class _Found:
    """Network -> file and tensors; Lightning's files; complaints of files that cannot be read."""

    parts: dict[str, tuple[Path, dict[str, Tensor]]] = field(default_factory=dict)
    unconverted: list[Path] = field(default_factory=list)
    broken: list[DataError] = field(default_factory=list)


def _found(place: Path) -> _Found:
    """Networks in the files of a folder and of its ``models``; files of other networks are left."""
    found = _Found()
    for path in _files(place):
        if path.name in PUBLISHED_FILES:
            continue
        if path.suffix == LIGHTNING:
            found.unconverted.append(path)
            continue
        try:
            tensors = named_tensors(path)
        except DataError as error:
            found.broken.append(error)
            continue
        part = part_of(tensors)
        if part == "lightning" and path.suffix != ".safetensors":
            found.unconverted.append(path)
        elif part == "lightning":
            for name, own in lightning_parts(tensors).items():
                _add(found, name, path, own)
        elif part is not None:
            _add(found, part, path, tensors)
    return found


def _files(place: Path) -> list[Path]:
    """Published names first, so that they win over a copy in another file."""
    if place.is_file():
        return [place]
    folders = [folder for folder in (place, place / "models") if folder.is_dir()]
    paths = [
        path
        for folder in folders
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix in (*WEIGHTS, LIGHTNING)
    ]
    return sorted(paths, key=lambda path: path.name not in FILES.values())


def _add(found: _Found, part: str, path: Path, tensors: dict[str, Tensor]) -> None:
    known = found.parts.get(part)
    if known is None:
        found.parts[part] = (path, tensors)
    elif known[0].name not in FILES.values():
        raise DataError(
            f"{known[0]} and {path} both hold {WHAT[part]}; leave one of them in the folder"
        )


def _ldae(place: Path, found: _Found) -> LDAE:
    """Published weights, under the published protocol."""
    (a, autoencoder), (d, decoder), (e, encoder) = (
        found.parts[part] for part in ("autoencoder", "decoder", "encoder")
    )
    networks = LDAENetworks(
        autoencoder_of(autoencoder, str(a)),
        unet_of(decoder, str(d)),
        encoder_of(encoder, str(e)),
        PUBLISHED_SCALE,
        "ldae-2025",
    )
    require_one_model(networks, place, d)
    pipe = _with_grid(networks, place, "published")
    if any((place / name).is_file() for name in PUBLISHED_FILES):
        towards = published_direction(place)
        if len(towards.weight) != pipe.code_width:
            raise DataError(
                f"{place / PUBLISHED_FILES[0]} reads codes of {len(towards.weight)} numbers, and "
                f"this model's have {pipe.code_width}; give files of one model"
            )
        pipe.directions = {"AD": towards, "CN": towards.away("CN")}
    return pipe


def _bundle(place: Path) -> LDAE | AutoencoderAlone:
    if holds_ldae(place):
        return _with_grid(import_bundle(place), place, "bundle")
    network = import_bundle(place, autoencoder_only=True).autoencoder
    preparation = BrainPreprocessing(spacing=1.0, shape=BUNDLE_GRID)
    return AutoencoderAlone(
        network, grid=BUNDLE_GRID, preparation=preparation, name="autoencoder of a MONAI bundle"
    )


def _with_grid(networks: LDAENetworks, place: Path, name: str) -> LDAE:
    """On the published grid; weights of other sizes say so."""
    try:
        return LDAE.from_networks(networks, name=name)
    except UsageError as error:
        raise UsageError(
            f"{place} does not fit the published grid of 128 x 160 x 128 voxels, and weights do "
            f"not say theirs ({error}); open it in Python with LDAE.from_networks(grid=...) and "
            "save_pretrained"
        ) from None


def _lacking(place: Path, found: _Found) -> Any:
    """The error about what is not there."""
    wanted = [part for part in FILES if part not in found.parts]
    if not found.parts:
        return MissingDataError(
            f"{place} is no fitted model and holds no weights that are known; --model takes a run "
            f"of `neurodiff fit`, a folder with {', '.join(FILES.values())}, a MONAI bundle, or an "
            "autoencoder of BrLP"
        )
    have = ", ".join(f"{path.name} ({WHAT[part]})" for part, (path, _) in found.parts.items())
    return MissingDataError(
        f"{place} has {have} and lacks the published "
        f"{', '.join(FILES[part] for part in wanted)}; put the files of one model into one folder"
    )


def _is_run(place: Path) -> bool:
    return (place / "run.json").is_file()
