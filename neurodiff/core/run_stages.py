"""Stages of a run: fitted parts in folders named after what went in; see `neurodiff.core.run`."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from neurodiff.core import provenance, tracking
from neurodiff.core.atomic import plain
from neurodiff.core.run_identity import fingerprint, slug
from neurodiff.core.sealed import (
    DONE,
    Verify,
    is_sealed,
    seal,
    sealed_record,
    whole_files,
)


class Stage:
    """A fitted part of a run: the folder ``stages/<name>-<hash>``."""

    def __init__(
        self,
        parent: Path,
        name: str,
        settings: Mapping[str, Any],
        inputs: Sequence[str],
        version: int,
    ) -> None:
        self.name = slug(name)
        self._identity = {
            "stage": self.name,
            "settings": plain(settings),
            "inputs": [str(part) for part in inputs],
            "version": int(version),
        }
        self.hash = fingerprint(self._identity)
        self.folder = parent / f"{self.name}-{self.hash}"

    @property
    def done(self) -> bool:
        """Whether the stage is finished and its files are whole."""
        return self.is_done()

    def is_done(self, verify: Verify | None = None) -> bool:
        """As ``done``; ``verify="size"`` is quick, ``"hash"`` reads files of any size."""
        return is_sealed(self.folder, verify)

    def path(self, file: str) -> Path:
        """Path of a file of this stage; its folder is made. Write it atomically."""
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def finish(
        self, metrics: Mapping[str, Any] | None = None, files: Iterable[str] | None = None
    ) -> None:
        """Mark as done, with the size and SHA-256 of ``files`` (all but logs and checkpoints)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        names = whole_files(self.folder, (DONE, "metrics.jsonl", "checkpoint"))
        record = {**self._identity, "metrics": metrics or {}, "finished": provenance.now()}
        seal(self.folder, names if files is None else files, record)

    @property
    def metrics(self) -> dict[str, Any]:
        """What :meth:`finish` was given; empty before."""
        return dict((sealed_record(self.folder) or {}).get("metrics") or {})

    def log(self, values: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``, and tell the trackers (`core.tracking`)."""
        tracking.tell(self.name, values)
        path = self.path("metrics.jsonl")
        line = json.dumps(plain(values), allow_nan=False).encode() + b"\n"
        with open(path, "ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a line that a kill cut off stays a line of its own
                    line = b"\n" + line
            file.write(line)

    def read_log(self) -> list[dict[str, Any]]:
        """Lines of ``metrics.jsonl``, without those that a kill cut off."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_bytes().splitlines() if path.is_file() else []
        rows = []
        for line in lines:
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
        return [row for row in rows if isinstance(row, dict)]

    def __repr__(self) -> str:
        return f"<Stage {self.folder.name}, {'done' if self.is_done('size') else 'not done'}>"
