"""Meshes: counts are compared with the size of the file, and other files are not followed."""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from neurodiff.core.errors import DataError
from neurodiff.core.safe_limits import existing_file, first_line, require_budget

_SIZES = {
    **dict.fromkeys(("char", "uchar", "int8", "uint8"), 1),
    **dict.fromkeys(("short", "ushort", "int16", "uint16"), 2),
    **dict.fromkeys(("int", "uint", "int32", "uint32", "float", "float32"), 4),
    **dict.fromkeys(("double", "float64"), 8),
}
_COMPONENTS = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}
_PARTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_HEADER = 2**16
_GLTF_NODES = 100_000
_FOLLOWED = re.compile(rb"^[ \t]*(?:mtllib|call|csh)[ \t]+([^\r\n]*)", re.MULTILINE)


def load_mesh(path: str | os.PathLike[str], **options: Any) -> Any:
    """One mesh (trimesh) of a file, its parts in place.

    Materials of a Wavefront file are read from its own folder; a name that leads out of it is
    refused, and so is a GLB file with data elsewhere.

    Parameters
    ----------
    path : ``.glb``, ``.obj``, ``.ply``, ``.stl`` or ``.off``.
    options : of ``trimesh.load_mesh``.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : damaged, counts that the file cannot hold, no face, corners that do not exist,
        coordinates that are not finite.
    """
    import trimesh

    path = existing_file(path)
    check_mesh(path)
    try:
        with open(path, "rb") as file, np.errstate(all="ignore"):
            mesh = trimesh.load_mesh(
                file, file_type=path.suffix.lower().lstrip("."), resolver=_resolver(path), **options
            )
        faces = np.asarray(getattr(mesh, "faces", ()))
        vertices = np.asarray(getattr(mesh, "vertices", ()))
    except Exception as error:  # broken bytes end in any of a dozen types inside the loader
        raise DataError(
            f"{path} is not a readable mesh ({first_line(error)}); download it again"
        ) from None
    if len(faces) == 0:
        raise DataError(f"{path} has no face; replace it")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise DataError(f"{path} has faces with corners that do not exist; download it again")
    if not np.isfinite(vertices).all():
        raise DataError(f"{path} has coordinates that are not finite; download it again")
    return mesh


def check_mesh(path: str | os.PathLike[str]) -> None:
    """Compare what a mesh file promises with its size, and look for other files it names.

    Raises
    ------
    MissingDataError, DataError : as `load_mesh`.
    """
    path = existing_file(path)
    checks = {".ply": _ply, ".stl": _stl, ".off": _off, ".obj": _obj, ".glb": _glb}
    check = checks.get(path.suffix.lower())
    if check is None:
        raise DataError(f"{path} is no mesh that is read; convert it to .glb, .obj or .ply")
    require_budget(str(path), 8 * path.stat().st_size)
    try:
        check(path)
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, struct.error,
            OverflowError, RecursionError) as error:  # fmt: skip
        kind = "GLB file" if check is _glb else "mesh"
        raise DataError(
            f"{path} is not a readable {kind} ({first_line(error)}); download it again"
        ) from None


def _resolver(path: Path) -> Any:
    from trimesh.resolvers import Resolver

    folder = path.parent.resolve()

    class Inside(Resolver):
        """Files of the mesh's own folder."""

        def __init__(self) -> None:
            pass  # the base class asks for one of its own

        def get(self, name: str) -> bytes:
            place = (folder / str(name)).resolve()
            if not place.is_relative_to(folder) or not place.is_file():
                raise FileNotFoundError(name)
            if place.stat().st_size > 2**28:
                raise ValueError("a material of over 256 MiB")
            return place.read_bytes()

        def write(self, name: str, data: Any) -> None:
            raise PermissionError(name)

        def namespaced(self, namespace: str) -> Any:
            return self

        def keys(self) -> Any:
            return ()

    return Inside()


def _require(path: Path, wanted: int, size: int) -> None:
    if wanted > size:
        raise DataError(
            f"{path} declares at least {wanted} bytes of mesh and has {size}; download it again"
        )


def _ply(path: Path) -> None:
    with open(path, "rb") as file:
        start = file.read(_HEADER)
    head, mark, _ = start.partition(b"end_header")
    if not start.startswith(b"ply") or not mark:
        raise DataError(f"{path} does not begin as PLY does; download it again")
    ascii_ = b"format ascii" in head
    wanted, count, each = 0, 0, 0
    for line in head.decode("ascii", "replace").splitlines():
        words = line.split()
        if words[:1] == ["element"]:
            wanted += count * each
            if len(words) != 3 or not words[2].isdecimal() or len(words[2]) > 18:
                raise DataError(f"{path} declares an element without a count; download it again")
            count, each = int(words[2]), 0
        elif words[:1] == ["property"]:
            kind = words[2] if words[1] == "list" else words[1]
            if kind not in _SIZES:
                raise DataError(f"{path} has a property of type {kind[:20]!r}; download it again")
            each += 2 if ascii_ else _SIZES[kind]
        if count and not each and words[:1] == ["end"]:
            break
    wanted += count * max(each, 1)
    _require(path, wanted, path.stat().st_size)


def _stl(path: Path) -> None:
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(84)
    if len(start) == 84 and not start.lstrip().startswith(b"solid"):
        _require(path, 84 + 50 * int.from_bytes(start[80:], "little"), size)


def _off(path: Path) -> None:
    with open(path, "rb") as file:
        start = file.read(_HEADER).decode("ascii", "replace")
    words = re.sub(r"#[^\n]*", "", start).split()
    if not words or not words[0].upper().startswith(("OFF", "COFF")):
        raise DataError(f"{path} does not begin as OFF does; download it again")
    glued = words[0].upper().removeprefix("C").removeprefix("OFF")
    counts = ([glued] if glued else []) + words[1:4]
    if len(counts) < 2 or not all(re.fullmatch(r"\d{1,15}", w) for w in counts[:2]):
        raise DataError(f"{path} states no counts of vertices and faces; download it again")
    _require(path, 6 * int(counts[0]) + 8 * int(counts[1]), path.stat().st_size)


def _obj(path: Path) -> None:
    content = path.read_bytes()
    if b"\0" in content:
        raise DataError(f"{path} holds zero bytes, which no Wavefront file does; download it again")
    for name in _FOLLOWED.findall(content):
        words = name.decode("utf-8", "replace").strip()
        place = (path.parent / words).resolve()
        if "://" in words or "\\" in words or not place.is_relative_to(path.parent.resolve()):
            raise DataError(
                f"{path} names a file that leads out of its folder, {words[:60]!r}, which is not "
                "followed; take that line out"
            )


def _glb(path: Path) -> None:
    size = path.stat().st_size
    with open(path, "rb") as file:
        magic, version, length, chunk, kind = struct.unpack("<4sIII4s", file.read(20))
        if magic != b"glTF" or version != 2 or kind != b"JSON":
            raise DataError(
                f"{path} is not a readable GLB file (no mark of GLB 2); download it again"
            )
        if length > size or chunk > size - 20:
            raise DataError(f"{path} is not a readable GLB file (cut off); download it again")
        tree = json.loads(file.read(chunk))
    if not isinstance(tree, dict):
        raise DataError(f"{path} is not a readable GLB file (no scene); download it again")
    for one in [*tree.get("buffers", ()), *tree.get("images", ())]:
        if not str(one.get("uri", "data:")).startswith("data:"):
            raise DataError(
                f"{path} names another file, {str(one['uri'])[:60]!r}, which is not followed; "
                "save it with everything inside"
            )
    buffers = tree.get("buffers", [])
    if sum(int(one["byteLength"]) for one in buffers) > size:
        raise DataError(
            f"{path} is not a readable GLB file (it declares more bytes than it has); download it"
            " again"
        )
    views = tree.get("bufferViews", [])
    for view in views:
        whole = int(buffers[view["buffer"]]["byteLength"])
        begin, width = int(view.get("byteOffset", 0)), int(view["byteLength"])
        if begin < 0 or width < 0 or begin + width > whole:
            raise DataError(
                f"{path} is not a readable GLB file (a part beyond its bytes); download it again"
            )
    for one in tree.get("accessors", []):
        each = _COMPONENTS[one["componentType"]] * _PARTS[one["type"]]
        wanted = int(one["count"]) * each
        inside = int(views[one["bufferView"]]["byteLength"]) if "bufferView" in one else 2**24
        if int(one["count"]) < 0 or wanted > inside:
            raise DataError(
                f"{path} is not a readable GLB file (it declares more values than it has); download"
                " it again"
            )
    _require_a_tree(path, tree.get("nodes", []))


def _require_a_tree(path: Path, nodes: list[Any]) -> None:
    """Nodes have one parent: shared children multiply without end, circles never end."""
    children = [int(child) for node in nodes for child in node.get("children", ())]
    if len(nodes) > _GLTF_NODES or len(children) != len(set(children)):
        raise DataError(f"{path} has parts with several parents, or too many; save it again")
    parent = {c: k for k, node in enumerate(nodes) for c in node.get("children", ())}
    done: set[int] = set()
    for begin in parent:
        way: set[int] = set()
        at = begin
        while at in parent and at not in done:
            if at in way:
                raise DataError(f"{path} has parts that hold each other; save it again")
            way.add(at)
            at = parent[at]
        done |= way
