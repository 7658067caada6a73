"""Writing files so that a kill or a full disk leaves either the old file or the new one.

Content goes to a unique temporary name in the same folder, is synced to disk and then renamed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.processes import began, is_alive, machine

TEMPORARY_PREFIX = ".tmp-"
# ours: .tmp-[new-|old-]<machine>.<process>.<start>-<token>-<name>, without machine from before 1.0
_MARK = (
    rf"{re.escape(TEMPORARY_PREFIX)}(?P<kind>new-|old-)?(?:(?P<machine>[0-9a-f]{{8}})\.)?"
    r"(?P<pid>\d+)(?:\.(?P<start>\d+))?-[0-9a-f]+-"
)
_OURS = re.compile(_MARK)
_OURS_ALL = re.compile(rf"^(?:{re.sub(r'P<[a-z]+>', ':', _MARK)})+")
_LONGEST = 255  # bytes of a name of a file
#: What this process is writing; dated anew by `touch_open`, lest others take it for left behind.
OPEN: set[Path] = set()
#: Numbers such as 1e-4, which YAML 1.1 takes for text and YAML 1.2 for what they are.
YAML_FLOAT = re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Context that yields a temporary path to write, which on success becomes ``path``.

    The temporary name lies in the same folder and keeps the suffix, for writers that choose their
    format by it. On an error it is removed and ``path`` stays as it was. Missing folders are made.

    Raises
    ------
    DataError : the disk is full, or the folder cannot be written to.
    """
    path = Path(path)
    temporary = temporary_name(path)
    OPEN.add(temporary)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync_folder(path.parent)
        except OSError as error:
            if isinstance(error, DataError) or not _is_ours(error, temporary):
                raise
            raise write_error(path, error) from error
    finally:
        OPEN.discard(temporary)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replaced_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A new folder to write into, which takes the place of ``target`` when the block ends well.

    It is made beside ``target`` and renamed, so ``target`` is the old folder or the new one, whole;
    after an error it is the old one.
    """
    target = Path(target)
    new, old = (temporary_name(target, kind) for kind in ("new-", "old-"))
    OPEN.add(new)
    try:
        yield new
        if target.exists():
            os.replace(target, old)
        os.replace(new, target)
    finally:
        if old.exists() and not target.exists():  # the second of the two renames failed
            os.replace(old, target)
        OPEN.discard(new)
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Context that yields a binary file; its content becomes ``path`` when the block succeeds.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "note.txt"
    >>> with atomic_write(target) as file:
    ...     _ = file.write(b"whole or not at all")
    >>> target.read_text()
    'whole or not at all'
    """
    with atomic_path(path) as temporary, open(temporary, "xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as JSON, atomically.

    Numpy numbers and arrays, paths and dataclasses are converted. NaN and infinity, which JSON does
    not have, are written as null.
    """
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as file:
        file.write(text.encode("utf-8") + b"\n")


def write_yaml(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as YAML in the given order of keys, atomically."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes text that our reader would take for a number."""

    Dumper.add_implicit_resolver("tag:yaml.org,2002:float", YAML_FLOAT, list("-+.0123456789"))
    text = yaml.dump(plain(value, nan=True), Dumper=Dumper, sort_keys=False, allow_unicode=True)
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def write_csv(path: str | os.PathLike[str], table: Any) -> None:
    """Write a DataFrame as CSV without its index, atomically."""
    text = table.to_csv(index=False, lineterminator="\n")
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def write_npy(path: str | os.PathLike[str], array: Any) -> None:
    """Write an array of numbers as ``.npy``, atomically; Python objects are refused."""
    array = np.asanyarray(array)
    if array.dtype.hasobject:
        raise UsageError(f"an array of Python objects was to be written to {path}; give numbers")
    with atomic_write(path) as file:
        # A plain writer: numpy's shortcut for real files loses the reason when a disk is full.
        np.lib.format.write_array(_Plain(file), array, allow_pickle=False)


def save_safetensors(
    tensors: Mapping[str, Any],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write named torch tensors as safetensors, atomically.

    Tensors that share memory (tied weights) are written once under each name.

    Raises
    ------
    UsageError : an entry is not a tensor.
    DataError : the disk is full, or the folder cannot be written to.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    ready: dict[str, Any] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise UsageError(f"{name!r} is {type(tensor).__name__}; only tensors go to {path}")
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        ready[str(name)] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    text = {str(key): str(value) for key, value in (metadata or {}).items()}
    with atomic_path(path) as temporary:
        try:
            save_file(ready, temporary, metadata=text or None)
        except SafetensorError as error:
            if "os error 28" in str(error):
                raise OSError(errno.ENOSPC, "No space left on device") from error
            raise DataError(f"{path} could not be written ({str(error).strip()})") from error


def plain(value: Any, *, nan: bool = False) -> Any:
    """``value`` in the types of JSON and YAML; NaN and infinity become None unless ``nan``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item, nan=nan) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), nan=nan)
    if isinstance(value, list | tuple):
        return [plain(item, nan=nan) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(item, nan=nan) for item in value), key=str)
    if isinstance(value, float):
        return value if nan or math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    return str(value)


class _Plain:
    """A file of which numpy sees only ``write``."""

    def __init__(self, file: BinaryIO) -> None:
        self.write = file.write


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some network file systems do not sync folders
        _sync(folder)


DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def _is_ours(error: OSError, temporary: Path) -> bool:
    """Whether the error is about the file being written, not about one that the block read."""
    if error.filename is None:
        # writers in other languages name the file in their text alone
        named_in_text = error.errno is not None and temporary.name in str(error)
        return named_in_text or error.errno in (*DISK_FULL, errno.EIO, errno.EFBIG)
    named = Path(os.fsdecode(error.filename))
    return error.errno in DISK_FULL or named == temporary or named in temporary.parents


def temporary_name(path: Path, kind: str = "") -> Path:
    """A new name in a path's folder that tells which process of which machine writes there.

    Of names that would get too long the beginning is left out, so that their suffix stays.

    Examples
    --------
    >>> temporary_name(Path("runs/a.csv")).name.endswith("-a.csv")
    True
    """
    who = f"{machine()}.{os.getpid()}.{began(os.getpid())}"
    mark = f"{TEMPORARY_PREFIX}{kind}{who}-{secrets.token_hex(4)}-"
    name = path.name
    while len(os.fsencode(mark + name)) > _LONGEST:
        name = name[1:]
    return path.with_name(mark + name)


def touch_open() -> None:
    """Date what this process is writing as of now."""
    for path in tuple(OPEN):
        with contextlib.suppress(OSError):
            os.utime(path)


def remove_leftovers_of_the_dead(folder: Path, others_older_than_s: float = 3600.0) -> int:
    """Remove what `replaced_folder` and `atomic_path` left in a folder when their process was
    killed; how many.

    What a process of this machine left goes as soon as that process is gone, also where its number
    was given to another one since. What another machine may be writing, or this one before its last
    boot, goes when it is unchanged for ``others_older_than_s``, by the file system's own clock.
    """
    count, now = 0, None
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        found = _OURS.match(path.name)
        if found is None:
            continue
        if found["machine"] == machine():
            if is_alive(int(found["pid"]), int(found["start"] or 0)):
                continue
        else:
            with contextlib.suppress(FileNotFoundError):
                changed = max(inner.stat().st_mtime for inner in (path, *path.rglob("*")))
                now = clock_of(folder) if now is None else now
                if now - changed < others_older_than_s:
                    continue
        if found["kind"] == "old-" and not path.with_name(path.name[found.end() :]).exists():
            continue  # killed between two renames: this is the only copy
        count += 1
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return count


def clock_of(folder: Path) -> float:
    """The time by which a file system dates its files, which need not be this machine's."""
    probe = temporary_name(folder / "clock")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def write_error(path: Path, error: OSError) -> DataError:
    """The sentence for a write to ``path`` that failed."""
    # the folder that was wanted, not the temporary one
    wanted = Path(*(_OURS_ALL.sub("", part) for part in path.parts))
    if error.errno in DISK_FULL:
        free = ""
        with contextlib.suppress(OSError):
            free = f", {shutil.disk_usage(path.parent).free // 2**20} MB free"
        return DataError(
            f"disk full: {wanted} could not be written{free}; the previous file, if any, is "
            "unchanged: free some space and start the same command again, which goes on from here"
        )
    why = error.strerror or error
    if error.errno and error.filename is None:  # the text of other languages names our own file
        why = os.strerror(error.errno)
    return DataError(f"{wanted} could not be written ({why}); check the folder")
