"""What demonstrations do around their work: one page, the time of each part, the last words."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from neurodiff.core.progress import Progress
from neurodiff.core.run import Run


def once(
    run: Run,
    seed: int,
    progress: Progress,
    *,
    work: Callable[[], Any],
    write: Callable[[Any], list[str]],
) -> str:
    """Work and page of a demonstration, unless its page is there; returns what to tell the user.

    Parameters
    ----------
    work : everything up to the scores; its outcome has a dictionary ``seconds``.
    write : writes the page of an outcome and returns the findings in words.
    """
    page = run.stage("report", {"seed": seed}, [run.fingerprint], version=1)
    if page.done and run.report_path.is_file():
        return f"done before, nothing repeated\n{closing(run, page.metrics)}"
    progress.say(f"run folder: {run.folder} (interrupt at any time; the same command goes on)")
    outcome = work()
    began = time.monotonic()
    findings = write(outcome)
    outcome.seconds["report"] = time.monotonic() - began
    run.touch()
    page.finish({"findings": findings, "seconds": outcome.seconds})
    return closing(run, page.metrics)


def closing(run: Run, measured: Mapping[str, Any]) -> str:
    """The findings, and where the page is."""
    return "\n".join([*measured.get("findings", []), f"report: {run.report_path}"])


class Clock:
    """Seconds of each part, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def __call__(self, part: str) -> None:
        now = time.monotonic()
        self.seconds[part] = now - self._last
        self._last = now
