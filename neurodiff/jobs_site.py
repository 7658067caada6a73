"""What is particular to a cluster: a YAML file that a site's users share, and its local disks."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neurodiff.core import config
from neurodiff.core.atomic import replaced_folder
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.safe_io import read_yaml
from neurodiff.jobs_tasks import Place


@dataclass(frozen=True, kw_only=True)
class Site:
    """How jobs are asked for at a site; what is not given is left to its own defaults.

    Attributes
    ----------
    account, qos, partition, gres, constraint : as sbatch names them; ``gres`` such as "gpu:1".
    memory_gb, cpus, minutes : of one task; at least 15 minutes, since shorter jobs count as timed
        out as soon as they are preempted.
    at_once : tasks of an array that may run at the same time.
    local_disk : folder on the node's own disk, such as "$TMPDIR"; weights are copied there once
        and read from it.
    setup : lines of shell before the work, such as "module load cuda".
    container : an image (.sif) that Apptainer runs the work in, with the script back end.
    more : further options of sbatch, by name.
    """

    account: str | None = None
    qos: str | None = None
    partition: str | None = None
    gres: str | None = None
    constraint: str | None = None
    memory_gb: float | None = None
    cpus: int = 1
    minutes: int = 240
    at_once: int = 256
    local_disk: str | None = None
    setup: tuple[str, ...] = ()
    container: str | None = None
    more: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.minutes < 15:
            raise UsageError(f"minutes is {self.minutes}; give at least 15")
        if self.memory_gb is not None and not 0 < self.memory_gb < math.inf:
            raise UsageError(f"memory_gb is {self.memory_gb}; give a number above 0")
        if self.cpus < 1 or self.at_once < 1:
            raise UsageError("cpus and at_once must be at least 1")
        for name, value in self.more.items():
            if "\n" in f"{name}{value}" or not name.replace("-", "").isalnum():
                raise UsageError(f"more has {name!r}: {value!r}; give options of sbatch by name")
        for name in ("account", "qos", "partition", "gres", "constraint"):
            value = getattr(self, name)
            if value is not None and value.split() != [value]:
                raise UsageError(f"{name} is {value!r}; give one word, or leave it out")
        for name in ("local_disk", "container"):
            value = getattr(self, name)
            if value is not None and (not value.isprintable() or not value.strip()):
                raise UsageError(f"{name} is {value!r}; give a path, or leave it out")


def read_site(path: str | os.PathLike[str] | None) -> Site:
    """A site's profile; without a path that of ``NEURODIFF_SITE``, else nothing in particular.

    Raises
    ------
    MissingDataError : the file is not there.
    UsageError : it is no profile; every problem is listed with its place.
    """
    given = path or os.environ.get("NEURODIFF_SITE")
    if not given:
        return Site()
    try:
        values = read_yaml(given)
    except MissingDataError:
        raise
    except DataError as error:
        raise UsageError(str(error)) from None
    if not isinstance(values, dict):
        raise UsageError(f"{given} is no site profile; expected lines such as 'partition: gpu'")
    return config.check(values, Site, where=str(given))


def staging(local_disk: str | None) -> Place:
    """A function that says where a folder is read: itself, or its copy on the local disk."""
    if not local_disk:
        return Path
    expanded = Path(os.path.expandvars(local_disk))
    if "$" in str(expanded):
        raise UsageError(
            f"local_disk is {local_disk}, which names a variable that is not set on this node"
        )
    return lambda folder: staged(folder, expanded)


def staged(folder: Path, disk: Path) -> Path:
    """The copy of a folder on a disk of this node, made where it is not there yet.

    It is copied under another name and renamed, so that several workers of a node may want it at
    once; its name covers names, sizes and dates of the files, so that a changed folder is another.

    Raises
    ------
    DataError : the folder cannot be copied, for want of space or rights.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    state: list[Any] = [str(folder.resolve())]
    state += [(str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    digest = hashlib.sha256(repr(state).encode()).hexdigest()[:16]
    target = disk / f"neurodiff-{digest}" / folder.name
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replaced_folder(target) as new:
            shutil.copytree(folder, new)
    except OSError as error:
        if target.is_dir():  # another worker of this node was faster
            return target
        raise DataError(
            f"{folder} could not be copied to {disk} ({error.strerror or error}); free some space "
            "there, or leave local_disk out of the site profile"
        ) from error
    return target
