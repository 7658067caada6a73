"""Progress of long work as plain lines, readable in a terminal, a notebook and a batch log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

T = TypeVar("T")


class Progress:
    """Prints at most one line every ``every`` seconds, and one when something ends.

    Parameters
    ----------
    stream : where to print; ``None`` prints nothing (library use).
    every : seconds between two lines.
    """

    def __init__(self, stream: TextIO | None = None, *, every: float = 10.0):
        self.stream, self.every = stream, every
        self._began = self._printed = time.monotonic()
        self._name = ""

    @classmethod
    def to_stdout(cls, *, every: float = 10.0) -> Progress:
        """Onto standard output, at most once in ``every`` seconds."""
        return cls(sys.stdout, every=every)

    def say(self, text: str) -> None:
        """One line, at once; nothing where there is no stream."""
        if self.stream is not None:
            print(text, file=self.stream, flush=True)

    def begin(self, name: str) -> None:
        """A new piece of work; times count from here."""
        self._name = name
        self._began = self._printed = time.monotonic()

    def update(self, done: int, total: int, note: str = "") -> None:
        """How far the work is, if the last line is old enough or the work is done."""
        now = time.monotonic()
        if now - self._printed < self.every and done < total:
            return
        self._printed = now
        spent = now - self._began
        left = f", {spent / done * (total - done):.0f} s left" if 0 < done < total else ""
        self.say(f"  {self._name}: {done}/{total} ({spent:.0f} s{left}) {note}".rstrip())

    def over(self, items: Iterable[T], name: str, total: int | None = None) -> Iterator[T]:
        """Yield from ``items``, telling how far it is."""
        if total is None:
            items = list(items)
            total = len(items)
        self.begin(name)
        for done, item in enumerate(items, start=1):
            yield item
            self.update(done, total)


SILENT = Progress(None)
