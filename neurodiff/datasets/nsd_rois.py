"""Masks and regions of interest of the Natural Scenes Dataset, with the names that come with it.

A family, such as ``prf-visualrois``, is one file of labels: -1 outside the cortex, 0 in the cortex
without a label, and a number for each region. Names are in ``<family>.mgz.ctab``, one
``<number> <name>`` a line. ROIs of a recording are called

- ``V1v``, ``FFA-1``, ``PPA``, ... in the families whose names are found in no other (`PLAIN`);
- ``HCP_MMP1/V1``, ``Kastner2015/V1v``, ... in all others;
- ``prf-visualrois``, ... for any label of a family; ``V1``, ``V2``, ``V3`` for both halves
  of a map, and ``V4`` for hV4;
- ``lh.V1v``, ``rh.V1v``, ... for one hemisphere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from neurodiff.core.errors import DataError, MissingDataError, UsageError, suggest
from neurodiff.core.lazy import LazyMasks
from neurodiff.core.spaces import MaskSpace, checked_values, open_image
from neurodiff.datasets.mgh import read_mgh
from neurodiff.datasets.nsd_files import DIMENSIONS, HEMISPHERES, label_folders, volume_folder

PLAIN = (
    "prf-visualrois", "prf-eccrois", "floc-faces", "floc-bodies", "floc-places", "floc-words",
    "streams",
)  # fmt: skip
UNIONS = {
    "V1": ("V1v", "V1d"), "V2": ("V2v", "V2d"), "V3": ("V3v", "V3d"), "V4": ("hV4",),
}  # fmt: skip
NOT_FAMILIES = ("nsdgeneral", "brainmask")


class FsaverageSpace:
    """Vertices of both hemispheres of a surface inside two boolean masks, left before right."""

    fill = float("nan")

    def __init__(self, left: np.ndarray, right: np.ndarray, name: str = "fsaverage") -> None:
        self.masks = (np.asarray(left, bool), np.asarray(right, bool))
        self.n_features = int(sum(mask.sum() for mask in self.masks))
        if self.n_features == 0:
            raise DataError("the mask has no vertex inside; give a mask with some vertices above 0")
        self.name = name

    def fingerprint(self) -> str:
        """Identity of the space, from its masks."""
        import hashlib

        digest = hashlib.sha256(b"fsaverage")
        for mask in self.masks:
            digest.update(str(mask.shape).encode() + np.packbits(mask).tobytes())
        return digest.hexdigest()

    def to_image(self, values: Any) -> np.ndarray:
        """float32 ``(vertices of both hemispheres,)``, NaN outside the mask."""
        full = np.full(sum(mask.size for mask in self.masks), self.fill, np.float32)
        full[np.concatenate(self.masks)] = checked_values(values, self)
        return full

    def __repr__(self) -> str:
        return f"FsaverageSpace({self.n_features} vertices, name={self.name!r})"


@dataclass(frozen=True, eq=False)
class Grid:
    """The features of a recording: which voxels or vertices of which files.

    Attributes
    ----------
    space : of the recording.
    masks : boolean, one for each file of a session: one volume, or two hemispheres.
    affine : of the volume, or None.
    """

    space: MaskSpace | FsaverageSpace
    masks: tuple[np.ndarray, ...]
    affine: np.ndarray | None

    def values(self, path: Path) -> np.ndarray:
        """Values (features,) of a map in the same space, from one file of a volume.

        Raises
        ------
        DataError : another shape than the mask has.
        """
        return _inside(path, self.masks[0])

    def both(self, left: Path | None, right: Path | None, outside: float) -> np.ndarray:
        """Values (features,) of a map of two hemispheres, or of volumes that hold one each."""
        if len(self.masks) == 1:
            parts = [self.values(path) for path in (left, right) if path is not None]
            chosen = parts[0]
            for other in parts[1:]:
                chosen = np.where(other > 0, other, chosen)
            return chosen
        return np.concatenate(
            [
                np.full(int(mask.sum()), outside) if path is None else _inside(path, mask)
                for path, mask in zip((left, right), self.masks, strict=True)
            ]
        )


def open_grid(root: Path, subject: int, space: str, mask: str | Path | MaskSpace) -> Grid:
    """The features of a mask: its name, such as ``"nsdgeneral"``, its path, or its space.

    Values above 0 are inside.

    Raises
    ------
    MissingDataError : there is no such mask; names those that are there.
    DataError : a broken file, an empty mask, or the shape of another subject.
    """
    volume_folder(root, subject, space)
    if isinstance(mask, MaskSpace):
        return Grid(mask, (mask.mask,), mask.affine)
    if space == "fsaverage":
        paths = surface_labels(root, subject, str(mask))
        if paths is None:
            raise MissingDataError(
                f"{label_folders(root, subject)[-1]} has no lh.{mask}.mgz and rh.{mask}.mgz; there "
                f"is {', '.join(families(root, subject, space)) or 'nothing'}"
            )
        left, right = (read_labels(path, 1) > 0 for path in paths)
        name = f"{mask}, fsaverage"
        return Grid(FsaverageSpace(left, right, name), (left, right), None)
    path = mask_path(root, subject, space, mask)
    image = open_image(path)
    inside = read_labels(path, 3) > 0
    owner = [other for other, size in DIMENSIONS.items() if size == inside.shape]
    if space == "func1pt8mm" and owner and owner != [subject]:
        raise DataError(
            f"{path} has shape {inside.shape}, the volume of subj{owner[0]:02d}; subj{subject:02d} "
            f"has {DIMENSIONS[subject]}: give the mask of the subject that is opened"
        )
    if not inside.any():
        raise DataError(f"{path} has no voxel above 0; give a mask with some voxels inside")
    return Grid(MaskSpace(inside, image.affine, f"{mask_name(path)}, {space}"), (inside,),
                np.asarray(image.affine))  # fmt: skip


def mask_path(root: Path, subject: int, space: str, mask: str | Path) -> Path:
    """File of a mask by its name, or the path itself where it is one."""
    folder = volume_folder(root, subject, space)
    for path in (folder / "roi" / f"{mask}.nii.gz", folder / f"{mask}.nii.gz", Path(mask)):
        if path.is_file():
            return path
    there = ["brainmask"] if (folder / "brainmask.nii.gz").is_file() else []
    there += [mask_name(path) for path in sorted((folder / "roi").glob("*.nii.gz"))]
    raise MissingDataError(
        f"{folder / 'roi' / f'{mask}.nii.gz'} is missing; there is "
        f"{', '.join(there) or 'no mask'}: download the folder roi, or give the path of a mask"
        f"{suggest(mask, there)}"
    )


def mask_name(path: Path) -> str:
    """File name without its endings."""
    return path.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".mgz")


def families(root: Path, subject: int, space: str) -> list[str]:
    """Names of the families of labels that are there, whole or by hemisphere, `PLAIN` first."""
    if space == "fsaverage":
        stems = {
            mask_name(path)
            for folder in label_folders(root, subject)[1:]
            for path in folder.glob("?h.*.mgz")
        }
    else:
        folder = volume_folder(root, subject, space) / "roi"
        stems = {mask_name(path) for path in folder.glob("*.nii.gz")}
    names = {stem[3:] if stem[:3] in ("lh.", "rh.") else stem for stem in stems} - {*NOT_FAMILIES}
    known = [name for name in PLAIN if name in names]
    return known + sorted(names - set(known))


def surface_labels(root: Path, subject: int, family: str) -> tuple[Path, Path] | None:
    """Files of a family on fsaverage, or None; a subject's own surface is another mesh."""
    folder = label_folders(root, subject)[-1]
    left, right = (folder / f"{side}.{family}.mgz" for side in HEMISPHERES)
    return (left, right) if left.is_file() and right.is_file() else None


def read_labels(path: Path, dimensions: int) -> np.ndarray:
    """Labels of a NIfTI volume (X, Y, Z) or of an MGZ surface (vertices,).

    Raises
    ------
    DataError : broken, another number of dimensions, or values that are not finite.
    """
    values = _read_values(path)
    if dimensions == 1:
        values = values.reshape(-1) if max(values.shape, default=0) == values.size else values
    if values.ndim != dimensions:
        raise DataError(f"{path} has shape {values.shape}; expected {dimensions} dimensions")
    if values.dtype.kind == "f":
        # ROI files that were mapped between spaces mark what lies outside by NaN
        values = np.nan_to_num(values, nan=-1.0)
    return values


def _read_values(path: Path) -> np.ndarray:
    if path.name.endswith((".mgh", ".mgz")):
        return read_mgh(path)
    image = open_image(path)
    try:
        return np.asanyarray(image.dataobj)
    except Exception as error:  # unpacking broken bytes ends in errors of many types
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} is truncated or damaged ({first}); download it again") from None


def read_names(root: Path, subject: int, family: str) -> dict[int, str] | None:
    """Names of a family's labels from its ``.ctab``; label 0, which is none, is left out.

    Returns
    -------
    None where there is no such file.

    Raises
    ------
    DataError : a line without a number and a name, or a number or name that is there twice.
    """
    for folder in label_folders(root, subject):
        path = folder / f"{family}.mgz.ctab"
        if path.is_file():
            return parse_ctab(path)
    return None


def parse_ctab(path: Path) -> dict[int, str]:
    """Number and name of each label; four trailing numbers, a colour, are left out."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text; download it again") from None
    names: dict[int, str] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 5 and all(word.lstrip("-").isdigit() for word in words[-4:]):
            words = words[:-4]
        if len(words) < 2 or not words[0].lstrip("-").isdigit():
            raise DataError(f"{path}, line {number} is {line!r}; expected '<number> <name>'")
        label, name = int(words[0]), " ".join(words[1:])
        if label in names or name in names.values():
            raise DataError(f"{path}, line {number}: {line!r} is there twice; download it again")
        names[label] = name
    return {label: name for label, name in names.items() if label > 0}


def open_rois(root: Path, subject: int, space: str, grid: Grid) -> Mapping[str, np.ndarray]:
    """Every ROI by name; the names are known at once, the masks are made when asked for."""
    makers: dict[str, Callable[[], np.ndarray]] = {}
    for family in families(root, subject, space):
        _add_family(makers, root, subject, space, grid, family)
    for prefix in ("", "lh.", "rh."):
        for name, halves in UNIONS.items():
            parts = [makers[prefix + half] for half in halves if prefix + half in makers]
            if len(parts) == len(halves) and prefix + name not in makers:
                makers[prefix + name] = partial(_union, parts)
    return LazyMasks(list(makers), partial(_made, makers))


def _add_family(
    makers: dict[str, Callable[[], np.ndarray]], root: Path, subject: int, space: str,
    grid: Grid, family: str,
) -> None:  # fmt: skip
    sources = label_sources(root, subject, space, family)
    if not sources:  # one hemisphere of a surface
        return
    labels = _Labels(grid, sources)
    names = read_names(root, subject, family)
    if names is None:  # without names, the labels that are there, by number
        there = np.unique(labels("" if "" in sources else next(iter(sources))))
        names = {int(label): str(int(label)) for label in there if label > 0}
        plain = False
    else:
        plain = family in PLAIN
    for side in sources:
        prefix = f"{side}." if side else ""
        makers[prefix + family] = partial(labels.mask, side, None)
        for label, name in names.items():
            full = prefix + (name if plain else f"{family}/{name}")
            makers.setdefault(full, partial(labels.mask, side, label))


class _Labels:
    """Labels of a family inside the mask, each file read once."""

    def __init__(self, grid: Grid, sources: dict[str, tuple[Path | None, Path | None]]) -> None:
        self.grid, self.sources = grid, sources
        self._kept: dict[str, np.ndarray] = {}

    def __call__(self, side: str) -> np.ndarray:
        if side not in self._kept:
            self._kept[side] = self.grid.both(*self.sources[side], 0)
        return self._kept[side]

    def mask(self, side: str, label: int | None) -> np.ndarray:
        """Where the label is this one, or any where it is None."""
        return self(side) > 0 if label is None else self(side) == label


def _made(makers: dict[str, Callable[[], np.ndarray]], name: str) -> np.ndarray:
    return makers[name]()


def _union(parts: list[Callable[[], np.ndarray]]) -> np.ndarray:
    return np.any([part() for part in parts], axis=0)


def label_sources(
    root: Path, subject: int, space: str, family: str
) -> dict[str, tuple[Path | None, Path | None]]:
    """Files of a family: ``""`` for both hemispheres, ``"lh"`` and ``"rh"`` for one."""
    if space == "fsaverage":
        found = surface_labels(root, subject, family)
        if found is None:
            return {}
        return {"": found, "lh": (found[0], None), "rh": (None, found[1])}
    folder = volume_folder(root, subject, space) / "roi"
    sides = [folder / f"{side}.{family}.nii.gz" for side in HEMISPHERES]
    left, right = (path if path.is_file() else None for path in sides)
    sources: dict[str, tuple[Path | None, Path | None]] = {}
    whole = folder / f"{family}.nii.gz"
    if whole.is_file():
        sources[""] = (whole, None)
    elif left and right:
        sources[""] = (left, right)
    if left:
        sources["lh"] = (left, None)
    if right:
        sources["rh"] = (None, right)
    return sources


def _inside(path: Path, mask: np.ndarray) -> np.ndarray:
    values = read_labels(path, mask.ndim)
    if values.shape != mask.shape:
        raise DataError(
            f"{path} has shape {values.shape} and the mask {mask.shape}; use files of the same "
            "subject and space"
        )
    return values[mask]


def read_map(grid: Grid, paths: tuple[Path, ...]) -> np.ndarray:
    """A map such as ncsnr inside the mask, float64 (features,).

    Raises
    ------
    UsageError : another number of files than the grid has.
    DataError : another shape than the mask has.
    """
    if len(paths) != len(grid.masks):
        raise UsageError(f"{len(paths)} files were given for {len(grid.masks)} masks")
    parts = []
    for path, mask in zip(paths, grid.masks, strict=True):
        values = _read_values(path).astype(np.float64)
        values = values.reshape(-1) if mask.ndim == 1 else values
        if values.shape != mask.shape:
            raise DataError(
                f"{path} has shape {values.shape} and the mask {mask.shape}; use files of the same "
                "subject and space"
            )
        parts.append(values[mask])
    return np.concatenate(parts)
