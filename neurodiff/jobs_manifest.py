"""The manifest of a batch: which items there are, and from what they are made.

A batch is the folder ``batch/<task>-<digest>`` of a run; its first file, ``manifest.jsonl``, is
never changed: a header (task, settings, digests of weights and data) and a line an item. The same
plan has the same digest, so that planning again finds the batch again. What is done is not in it
but in the run's ledger.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from neurodiff.core.atomic import atomic_write, plain
from neurodiff.core.errors import DataError, MissingDataError, UsageError, suggest
from neurodiff.core.run import Item, Run

MANIFEST = "manifest.jsonl"
FORMAT = 1
_KEY = re.compile("[0-9a-f]{64}")


class Row(NamedTuple):
    """One item of a manifest. ``extra``: what the task needs to find it again, such as the number
    of a trial; it is no part of the item's key."""

    key: str
    subject: str
    stimulus: str
    sample: int
    settings: str
    extra: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Manifest:
    """A batch as it was planned.

    Attributes
    ----------
    folder : of the batch, below that of its run.
    task : name of the task, see `jobs_tasks`.
    kind : the task that its items' keys and seeds name; the same as with the verb.
    settings : of the task, plain.
    digests : of weights and data, by name.
    rows : the items, in an order that is always the same.
    """

    folder: Path
    task: str
    kind: str
    settings: Mapping[str, Any]
    digests: Mapping[str, str]
    rows: Sequence[Row]

    @property
    def name(self) -> str:
        """``<task>-<digest>``."""
        return self.folder.name

    @property
    def run_folder(self) -> Path:
        """The run that the batch is of."""
        return self.folder.parent.parent

    @property
    def keys(self) -> list[str]:
        """Keys of the items, in order."""
        return [row.key for row in self.rows]

    def shard(self, k: int, n: int) -> Sequence[Row]:
        """Every n-th row from the k-th: another n next time redoes nothing."""
        return self.rows[slice(*checked_shard(k, n))]

    def item(self, run: Run, row: Row) -> Item:
        """The item of the run that a row means.

        Raises
        ------
        DataError : the row's key is another one than that of what it names.
        """
        item = run.item(self.kind, row.subject, row.stimulus, row.sample, row.settings)
        if item.key != row.key:
            raise DataError(
                f"{self.folder / MANIFEST} gives item {row.key[:10]} for subject {row.subject}, "
                f"stimulus {row.stimulus}, whose key is {item.key[:10]}; plan the batch again"
            )
        return item

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"<Manifest {self.name}, {len(self)} items>"


def checked_shard(k: int, n: int) -> tuple[int, None, int]:
    """Start, end and step of a shard's rows; UsageError for one that there is not."""
    if n < 1 or not 0 <= k < n:
        raise UsageError(f"shard {k} of {n}: give a number from 0 to the number of shards less 1")
    return k, None, n


def row_of(item: Item, extra: Mapping[str, Any] | None = None) -> Row:
    """The row of an item."""
    return Row(
        key=item.key,
        subject=item.subject,
        stimulus=item.stimulus,
        sample=item.sample,
        settings=item.settings,
        extra=dict(extra or {}),
    )


def write_manifest(
    run: Run,
    task: str,
    kind: str,
    settings: Mapping[str, Any],
    digests: Mapping[str, str],
    rows: Sequence[Row],
) -> Manifest:
    """The batch of these rows, written where it is not there yet.

    Raises
    ------
    UsageError : no rows, or two with one key.
    """
    if not rows:
        raise UsageError(f"{task}: there is nothing to do: no item fits what was asked for")
    keys = {row.key for row in rows}
    if len(keys) != len(rows):
        twice = len(rows) - len(keys)
        raise UsageError(
            f"{task}: {twice} items are there twice (one subject, stimulus, sample and settings); "
            "leave one of each"
        )
    lines = [
        json.dumps(
            [r.key, r.subject, r.stimulus, r.sample, r.settings, plain(r.extra) if r.extra else {}]
        )
        for r in rows
    ]
    header = {
        "format": FORMAT,
        "task": task,
        "kind": kind,
        "settings": plain(settings),
        "digests": plain(digests),
        "run": run.fingerprint,
        "seed": run.seed,
        "items": len(rows),
    }
    text = "\n".join([json.dumps(header, sort_keys=True), *lines]) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    slug = "".join(sign if sign.isalnum() else "_" for sign in task)
    folder = run.folder / "batch" / f"{slug}-{digest[:10]}"
    if not _holds(folder / MANIFEST, text.encode()):  # missing, or a broken one of the same plan
        with atomic_write(folder / MANIFEST) as file:
            file.write(text.encode())
    return Manifest(
        folder=folder,
        task=task,
        kind=kind,
        settings=dict(plain(settings)),
        digests=dict(digests),
        rows=tuple(rows),
    )


def read_manifest(folder: str | os.PathLike[str], *, shard: tuple[int, int] = (0, 1)) -> Manifest:
    """The manifest in a batch's folder, or one shard of it: k of n.

    Raises
    ------
    MissingDataError : there is none.
    DataError : it is broken, cut off, or of a newer neurodiff.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise MissingDataError(f"{folder} is no batch (it has no {MANIFEST}); plan it first")
    start, _, step = checked_shard(*shard)
    try:
        with open(path, encoding="utf-8") as file:
            header = json.loads(next(file, ""))
            if not isinstance(header, dict) or header.get("format") != FORMAT:
                raise DataError(f"{path} is not a manifest of format {FORMAT}; plan it again")
            rows, count = [], 0
            for count, line in enumerate(file, start=1):
                if (count - 1) % step == start:
                    rows.append(_row(line))
        if count != header["items"]:
            raise DataError(f"{path} has {count} items of {header['items']}; plan it again")
        return Manifest(
            folder=folder,
            task=str(header["task"]),
            kind=str(header["kind"]),
            settings=dict(header["settings"]),
            digests=dict(header["digests"]),
            rows=tuple(rows),
        )
    except DataError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f"{path} is broken or no manifest ({type(error).__name__}); plan it again"
        ) from None


def batches(run: Run | str | os.PathLike[str]) -> list[Path]:
    """Folders of the batches of a run, by name."""
    folder = run.folder if isinstance(run, Run) else Path(run)
    return sorted(path.parent for path in (folder / "batch").glob(f"*/{MANIFEST}"))


def find_batch(run: Run, name: str | None = None) -> Path:
    """The batch of that name or beginning; without one the only batch there is.

    Raises
    ------
    MissingDataError : the run has no batch.
    UsageError : none of that name, or several.
    """
    known = batches(run)
    if not known:
        raise MissingDataError(
            f"{run.folder} has no batch; plan one: neurodiff batch submit {run.folder} --task NAME"
        )
    fitting = [path for path in known if name is None or path.name.startswith(name)]
    if len(fitting) == 1:
        return fitting[0]
    names = [path.name for path in fitting or known]
    if not fitting:
        raise UsageError(
            f"{run.folder} has no batch {name!r} but {', '.join(names)}.{suggest(name, names)}"
        )
    raise UsageError(f"{run.folder} has several batches; give --batch: {', '.join(names)}")


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False


def _row(line: str) -> Row:
    key, subject, stimulus, sample, settings, extra = json.loads(line)
    if not (isinstance(key, str) and _KEY.fullmatch(key)):
        raise ValueError("no key")
    if not isinstance(extra, dict):
        raise TypeError("no names and values")
    return Row(
        key=key,
        subject=str(subject),
        stimulus=str(stimulus),
        sample=int(sample),
        settings=str(settings),
        extra=extra,
    )
