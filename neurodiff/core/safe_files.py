"""Files from outside, opened so that they can neither take other files nor the memory.

A header may claim anything. Before an array is made of it, what it claims is held against the size
of the file: deflate packs at most 1,032 to 1, so a packed file of n bytes cannot hold more than
1,032 n, and what is not packed cannot hold more than n. What is left is held against a budget.

    open_hdf5      no external storage, no links to other files, no virtual data sets
    open_nibabel   NIfTI, CIFTI, GIfTI, MGH: the array that the header claims
    open_npz       members of an archive by their own headers, and no object arrays
    open_mesh      counts in PLY, STL and OFF headers; no material or buffer of another file
    extract        tar and zip: no path out of the folder, no links, no more bytes than allowed

Facts: reference/ecosystem.md, section 4.1 (an HDF5 file of 1,400 bytes that claims 4,000 TB; one
that returns the bytes of another file; NIfTI headers of 32,767 x 32,767 x 1,000).
"""

from __future__ import annotations

import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from neurodiff.core.errors import DataError, MissingDataError, UsageError

PACKING = 1032  # the most that deflate can pack, to one
BUDGET = 64 * 2**30
"""Bytes of one array that a file may claim; a whole NSD session is 0.9 GB, a CIFTI run 0.5 GB."""
_LINKS = 100_000
_SMALL = 2**28  # bytes that an HDF5 data set may claim without holding them (never written)


def open_hdf5(path: str | os.PathLike[str], *, budget: int = BUDGET) -> Any:
    """An HDF5 file, open for reading, of which every data set has its bytes in the file itself.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : not whole, a link or storage in another file, a virtual data set, or a data set that
        claims more than the file can hold.
    """
    import h5py

    path = _there(path)
    try:
        file = h5py.File(path, "r", locking=False)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{path} is not a complete HDF5 file ({_first(error)}); download it again"
        ) from None
    try:
        _check_group(file, path, file, path.stat().st_size, budget)
    except DataError:
        file.close()
        raise
    except Exception as error:  # broken structures end in many types inside the library
        file.close()
        raise DataError(f"{path} is a damaged HDF5 file ({_first(error)}); copy it again") from None
    return file


def _check_group(file: Any, path: Path, group: Any, size: int, budget: int) -> None:
    import h5py

    pending, seen, count = [group], set(), 0
    while pending:
        group = pending.pop()
        for name in group:
            count += 1
            if count > _LINKS:
                raise DataError(f"{path} has over {_LINKS} entries; it is no file of ours")
            link = group.get(name, getlink=True)
            where = f"{group.name.rstrip('/')}/{name}"
            if isinstance(link, h5py.ExternalLink):
                raise DataError(
                    f"{path} reads {where} from another file, which is not followed; save it as "
                    "one file"
                )
            if isinstance(link, h5py.SoftLink) and name not in group:
                continue  # leads nowhere; who asks for it is told so
            entry = group[name]
            if entry.file.filename != file.filename:  # by a soft link through an external one
                raise DataError(f"{path} reads {where} from another file; save it as one file")
            if isinstance(entry, h5py.Group):
                identity = h5py.h5o.get_info(entry.id).addr
                if identity not in seen:
                    seen.add(identity)
                    pending.append(entry)
            elif isinstance(entry, h5py.Dataset):
                _check_dataset(path, where, entry, size, budget)


def _check_dataset(path: Path, where: str, entry: Any, size: int, budget: int) -> None:
    if entry.external or entry.is_virtual:
        raise DataError(
            f"{path} keeps the values of {where} in another file, which is not followed; save it "
            "as one file"
        )
    if entry.shape is None:
        return
    claimed = int(np.prod(entry.shape, dtype=object)) * entry.dtype.itemsize
    held = entry.id.get_storage_size()
    fits = PACKING * held if entry.compression or entry.chunks else held
    if claimed > budget or (claimed > _SMALL and claimed > fits) or held > size:
        raise DataError(
            f"{path} claims {claimed / 1e9:.3g} GB for {where} and holds {held / 1e9:.3g} GB of it "
            f"(allowed are {budget / 1e9:.3g} GB); copy or download it again"
        )


def open_nibabel(path: str | os.PathLike[str], *, budget: int = BUDGET) -> Any:
    """An image that nibabel reads, whose header claims no more than the file can hold.

    Raises
    ------
    MissingDataError : there is no such file, or no other half of a pair.
    DataError : damaged, no image, or a header that claims too much.
    """
    import nibabel

    path = _there(path)
    try:
        image = nibabel.load(path)
    except FileNotFoundError as error:
        other = Path(os.fsdecode(error.filename)).name if error.filename else "the other file"
        raise MissingDataError(f"{path} lacks the other half of its pair, {other}") from None
    except Exception as error:  # broken headers end in errors of many types
        what = _first(error)
        raise DataError(f"{path} is not a readable image ({what}); copy it again") from None
    check_image(image, path, budget=budget)
    return image


def check_image(image: Any, path: Path, *, budget: int = BUDGET) -> None:
    """DataError where the array of an opened image cannot lie in its file.

    GIfTI is read whole by nibabel, and is bounded by its XML.
    """
    shape = getattr(image, "shape", None)
    if shape is None or not hasattr(image, "get_data_dtype"):
        return
    claimed = int(np.prod(shape, dtype=object)) * np.dtype(image.get_data_dtype()).itemsize
    data = path
    maps = getattr(image, "file_map", {}) or {}
    if "image" in maps and maps["image"].filename:
        data = Path(maps["image"].filename)
    size = data.stat().st_size if data.is_file() else 0
    packed = data.suffix in (".gz", ".mgz", ".bz2", ".zst")
    if claimed > budget or claimed > (PACKING * size if packed else size):
        raise DataError(
            f"the header of {path} claims {' x '.join(map(str, shape))} values, "
            f"{claimed / 1e9:.3g} GB, and the file has {size / 1e9:.3g} GB; it is cut off or no "
            "image: copy it again"
        )


def open_npz(
    path: str | os.PathLike[str], names: tuple[str, ...] | None = None, *, budget: int = BUDGET
) -> dict[str, np.ndarray]:
    """Arrays of an archive that ``np.savez`` wrote.

    names : those to read; None is all.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : no whole archive, an array that is not there, an object array, or one that claims
        more than its member can hold.
    """
    path = _there(path)
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            there = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
            for name in names or tuple(there):
                if name not in there:
                    raise DataError(
                        f"{path} has no array {name!r} but {', '.join(there) or 'nothing'}"
                    )
                found[name] = _member(archive, there[name], path, budget)
    except DataError:
        raise
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, struct.error, zlib.error,
            NotImplementedError, RuntimeError, MemoryError) as error:  # fmt: skip
        raise DataError(f"{path} is not a whole archive of arrays ({_first(error)})") from None
    return found


def _member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, budget: int
) -> np.ndarray:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        if version == (2, 0):
            read = np.lib.format.read_array_header_2_0
        elif version != (1, 0):
            raise ValueError(f"array format {version}")
        shape, _, dtype = read(file)
    if dtype.hasobject:
        raise DataError(f"{path} holds Python objects in {member.filename}; give numbers")
    claimed = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if claimed > budget or claimed > member.file_size or (
        member.file_size > PACKING * max(member.compress_size, 1)
    ):  # fmt: skip
        raise DataError(
            f"{path} claims {claimed / 1e9:.3g} GB for {member.filename}, which holds "
            f"{member.compress_size / 1e9:.3g} GB; copy or download it again"
        )
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


MESH_ENDINGS = (".ply", ".obj", ".stl", ".off", ".glb", ".gltf")


def open_mesh(path: str | os.PathLike[str], *, process: bool = True) -> Any:
    """One mesh of a file; a scene is joined. Materials and buffers in other files are not read.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : damaged, another format, counts that the file cannot hold, or no face.
    """
    import trimesh

    path = _there(path)
    kind = path.suffix.lower()
    if kind not in MESH_ENDINGS:
        raise DataError(f"{path} is no mesh; give a file that ends in {', '.join(MESH_ENDINGS)}")
    _check_counts(path, kind)
    try:
        with open(path, "rb") as file:  # without a resolver nothing beside it is found
            mesh = trimesh.load(
                file, file_type=kind[1:], resolver=None, force="mesh", process=process
            )
    except Exception as error:  # broken bytes end in any of a dozen types inside the loader
        raise DataError(f"{path} is not a readable mesh ({_first(error)}); copy it again") from None
    faces, vertices = getattr(mesh, "faces", ()), np.asarray(getattr(mesh, "vertices", ()))
    if not len(faces):
        raise DataError(f"{path} has no face; replace it")
    if not np.isfinite(vertices).all():
        raise DataError(f"{path} has vertices that are NaN or infinite; export it again")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise DataError(f"{path} has faces of vertices that are not there; export it again")
    return mesh


def _check_counts(path: Path, kind: str) -> None:
    """Counts that a header states against the bytes that are there."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(4096)
    counts: list[int] = []
    if kind == ".ply":
        for line in head.split(b"end_header")[0].splitlines():
            words = line.split()
            if len(words) == 3 and words[0] == b"element":
                counts.append(_whole(words[2], path))
    elif kind == ".off":
        words = head.replace(b"OFF", b" ").split()[:2]
        counts = [_whole(w, path) for w in words]
    elif kind == ".stl" and not head.lstrip().startswith(b"solid") and len(head) >= 84:
        counts = [struct.unpack("<I", head[80:84])[0]]
    if any(n < 0 for n in counts) or sum(counts) > size:
        raise DataError(
            f"{path} claims {sum(counts)} elements in {size} bytes; it is cut off or no mesh: copy "
            "it again"
        )


def _whole(word: bytes, path: Path) -> int:
    try:
        return int(word)
    except ValueError:
        raise DataError(f"{path} states {word[:20]!r} elements; export the mesh again") from None


@contextmanager
def _opened_archive(path: Path) -> Iterator[Any]:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield archive
        else:
            with tarfile.open(path) as archive:
                yield archive
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is no whole tar or zip ({_first(error)}); copy it again") from None


def extract(
    path: str | os.PathLike[str], folder: str | os.PathLike[str], *, budget: int = BUDGET
) -> list[Path]:
    """Unpack a tar or zip into a folder that is empty or not there; returns the files.

    Raises
    ------
    MissingDataError : there is no such archive.
    UsageError : the folder holds something.
    DataError : damaged; a path out of the folder, a link or a device; more bytes than ``budget`` or
        than packing allows. Nothing is left of it.
    """
    from neurodiff.core.atomic import replaced_folder

    path, target = _there(path), Path(folder)
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise UsageError(f"{target} holds something; name a new folder")
    with replaced_folder(target) as new, _opened_archive(path) as archive:
        if isinstance(archive, zipfile.ZipFile):
            sizes = {m.filename: m.file_size for m in archive.infolist()}
            _check_sizes(path, sizes, budget)
            for member in archive.infolist():
                _inside(path, member.filename)
                if member.is_dir():
                    continue
                place = new / member.filename
                place.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, open(place, "wb") as file:
                    _copy(source, file, member.file_size, path)
        else:
            members = archive.getmembers()
            _check_sizes(path, {m.name: m.size for m in members}, budget)
            for member in members:
                _inside(path, member.name)
                if not (member.isfile() or member.isdir()):
                    raise DataError(f"{path} holds {member.name!r}, a link or device; repack it")
            archive.extractall(new, filter="data")
    return sorted(p for p in target.rglob("*") if p.is_file())


def _check_sizes(path: Path, sizes: Mapping[str, int], budget: int) -> None:
    total, size = sum(sizes.values()), path.stat().st_size
    if total > budget or total > PACKING * size:
        raise DataError(
            f"{path} unpacks to {total / 1e9:.3g} GB of {size / 1e9:.3g} GB (allowed are "
            f"{budget / 1e9:.3g} GB); unpack it yourself if you trust it"
        )


def _inside(path: Path, name: str) -> None:
    parts = Path(name.replace("\\", "/")).parts
    if name.startswith(("/", "\\")) or ".." in parts or (parts and ":" in parts[0]):
        raise DataError(f"{path} holds {name!r}, which lies outside of its folder; repack it")


def _copy(source: Any, file: Any, size: int, path: Path) -> None:
    left = size
    while block := source.read(min(2**20, left + 1)):
        left -= len(block)
        if left < 0:
            raise DataError(f"{path} holds more than it states; repack it")
        file.write(block)


def _there(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if not path.exists():
        raise MissingDataError(f"{path} does not exist; check the path")
    if not path.is_file():
        raise DataError(f"{path} is not a file; give a file")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes); copy or make it again")
    return path


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
