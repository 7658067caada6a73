"""Pre-flight: what a job needs and lacks, with size, licence and place; that nothing is fetched.

needed = [Need(name="judge", place="weights/judge", gigabytes=0.1, licence="MIT")]
findings = missing(needed)          # before hours are spent
with offline():                     # every connection raises from here on
    ...
folder = snapshot_folder("group/model", "0123456789abcdef0123456789abcdef01234567")
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurodiff.core.doctor import MISSING, NOTE, OK, WARNING, Finding
from neurodiff.core.errors import MissingDataError, NeurodiffError, UsageError

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[0-9a-f]{40}")
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


class OfflineError(NeurodiffError, ConnectionError):
    """Something tried to reach the network although it was forbidden; exit code 1."""


# ------------------------------------------------------------------------------- what is needed


@dataclass(frozen=True, kw_only=True)
class Need:
    """Data or weights that a job reads.

    Parameters
    ----------
    name : what it is.
    place : the file or folder where it is looked for; None where the user has to name one.
    licence : of the data or weights; "not stated" where it is not.
    gigabytes : of disk; None where it is not known.
    size_text : the size in words, where it is no one number.
    get : where and how a person gets it.
    files : names or patterns that have to be below ``place``.
    optional : a job runs without it.
    """

    name: str
    place: str | os.PathLike[str] | None = None
    licence: str = "not stated"
    gigabytes: float | None = None
    size_text: str = ""
    get: str = ""
    files: tuple[str, ...] = ()
    optional: bool = False

    def lacking(self) -> list[str]:
        """What is not there: the place itself, or the patterns without a file; [] where all is."""
        if self.place is None:
            return ["no place was named"]
        place = Path(self.place)
        if not place.exists():
            return [str(place)]
        if place.is_file():
            return [] if place.stat().st_size else [f"{place} (empty)"]
        return [name for name in self.files if next(place.glob(name), None) is None]

    @property
    def size(self) -> str:
        """``"40 GB"``, or ``"size not stated"``."""
        if self.gigabytes is not None:
            return f"{self.gigabytes:g} GB"
        return self.size_text or "size not stated"


def need_of_card(card: Mapping[str, Any], root: str | os.PathLike[str] | None) -> Need:
    """What a card of a data set (`datasets/*.yaml`) says about getting it.

    Parameters
    ----------
    card : its fields; ``name``, ``licence`` and ``get``, which states place and size, are used.
    root : the folder where the data are looked for.
    """
    get = " ".join(str(card.get("get") or "").split())
    return Need(
        name=str(card.get("name") or "data set"),
        place=root,
        licence=" ".join(str(card.get("licence") or "not stated").split()).rstrip("."),
        size_text=_sizes(get),
        get=get,
    )


def _sizes(text: str) -> str:
    """The sizes that a text states, e.g. ``"39 GB, 40 GB"``; "" where it states none."""
    return ", ".join(re.findall(r"\d[\d.,]* ?[kMGT]i?B\b", text))


def missing(needs: Sequence[Need]) -> list[Finding]:
    """One finding a need: ok, MISSING (or note, where it is optional), and what to do."""
    findings = []
    for need in needs:
        lacks = need.lacking()
        if not lacks:
            findings.append(Finding(name=need.name, value=f"{need.place}"))
            continue
        shown = ", ".join(lacks[:5]) + (f" and {len(lacks) - 5} more" if len(lacks) > 5 else "")
        where = f"; it belongs into {need.place}" if need.place is not None else "; name its folder"
        get = need.get.rstrip(".") or "get it"
        findings.append(
            Finding(
                name=need.name,
                value=f"lacks {shown} ({need.size}, licence: {need.licence})",
                status=NOTE if need.optional else MISSING,
                advice=f"{get}{where}; nothing is downloaded for you",
            )
        )
    return findings


def room(place: str | os.PathLike[str], gigabytes: float) -> Finding:
    """Whether the disk of ``place`` (or of its nearest folder that exists) has the room."""
    folder = Path(place).absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    enough = free >= gigabytes
    return Finding(
        name="disk",
        value=f"{free:.3g} GB free in {folder}, {gigabytes:g} GB needed",
        status=OK if enough else WARNING,
        advice="" if enough else "make room, or name another folder",
    )


# ------------------------------------------------------------------------------------- offline


@contextlib.contextmanager
def offline() -> Iterator[list[str]]:
    """No connection to a network inside the block; yields the list of those that were tried.

    Every ``connect``, ``sendto`` to an address and look-up of a name raises `OfflineError`, and the
    switches of the hub's libraries are set. Sockets of the machine itself (AF_UNIX), which workers
    use, stay. An attempt that other code swallowed is still in the list, and raises at the end.

    It guards this process: processes that it starts get the switches, not the guard.

    Raises
    ------
    OfflineError : a connection was tried.
    """
    tried: list[str] = []
    before = {name: os.environ.get(name) for name in _OFFLINE}
    undo = _guard(tried)
    os.environ.update(_OFFLINE)
    try:
        yield tried
    finally:
        undo()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    if tried:
        raise OfflineError(_sentence(tried[0]))


def forbid_network() -> None:
    """As `offline`, for the rest of the process; attempts raise where they are made."""
    _guard([])
    os.environ.update(_OFFLINE)


def _sentence(address: str) -> str:
    return (
        f"a connection to {address} was tried although nothing may be fetched (--offline); give "
        "the folder of what is missing, or find out which library asks"
    )


def _guard(tried: list[str]) -> Any:
    """Put refusing functions in the place of the socket module's; returns what takes them back."""

    def refuse(address: Any) -> Any:
        shown = ":".join(map(str, address[:2])) if isinstance(address, tuple) else str(address)
        tried.append(shown[:200])
        raise OfflineError(_sentence(shown[:200]))

    def guarded(name: str) -> Any:
        real = getattr(socket.socket, name)

        def method(self: socket.socket, *arguments: Any) -> Any:
            address = arguments[-1] if arguments else ""
            if self.family in (socket.AF_INET, socket.AF_INET6):
                refuse(address)
            return real(self, *arguments)

        return method

    def lookup(host: Any, *_: Any, **__: Any) -> Any:
        refuse(host)

    methods = ("connect", "connect_ex", "sendto")
    functions = ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "create_connection")
    own = {name: socket.socket.__dict__.get(name) for name in methods}
    kept = {name: getattr(socket, name) for name in functions}
    for name in methods:
        setattr(socket.socket, name, guarded(name))
    for name in functions:
        setattr(socket, name, lookup)

    def undo() -> None:
        for name, method in own.items():
            if method is None:
                delattr(socket.socket, name)
            else:
                setattr(socket.socket, name, method)
        for name, function in kept.items():
            setattr(socket, name, function)

    return undo


# --------------------------------------------------------------------------------- hub snapshots


def snapshot_folder(
    repo: str,
    revision: str,
    *,
    kind: str = "model",
    files: Sequence[str] = (),
    cache: str | os.PathLike[str] | None = None,
) -> Path:
    """The folder of a hub snapshot in the local cache; nothing is fetched.

    Parameters
    ----------
    repo : ``"group/name"``.
    revision : the commit, 40 hex digits: a branch may be another file tomorrow.
    kind : ``model`` or ``dataset``.
    files : names or patterns that have to be in it.
    cache : the hub's cache; None is that of huggingface_hub.

    Raises
    ------
    UsageError : another form of name, revision or kind.
    MissingDataError : the snapshot, or one of its files, is not in the cache.
    """
    if not _REPOSITORY.fullmatch(repo) or ".." in repo:
        raise UsageError(f"the repository {repo!r} is no name such as 'group/model'")
    if not _REVISION.fullmatch(revision):
        raise UsageError(
            f"the revision {revision!r} of {repo} is not pinned; give the commit, 40 hex digits"
        )
    if kind not in ("model", "dataset"):
        raise UsageError(f"the kind {kind!r} is neither 'model' nor 'dataset'")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(
            repo, repo_type=kind, revision=revision, cache_dir=cache, local_files_only=True
        )
    except (LocalEntryNotFoundError, OSError):
        place = cache or "the cache of huggingface_hub (HF_HOME)"
        raise MissingDataError(
            f"{repo} at {revision[:10]} is not in {place}; on a machine with a network run "
            f"'hf download {repo} --repo-type {kind} --revision {revision}' and copy the cache"
        ) from None
    folder = Path(found)
    if folder.name != revision:
        raise MissingDataError(f"{repo} at {revision[:10]} is not in the cache, another commit is")
    lacks = [name for name in files if not any(one.exists() for one in folder.glob(name))]
    if lacks:
        raise MissingDataError(
            f"the snapshot of {repo} at {revision[:10]} in {folder} lacks {', '.join(lacks)}; "
            "download it whole"
        )
    return folder
