"""The leakage checks by name, and what a fit does about them; apart from the audit, so that the
command line imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from neurodiff.core.errors import UsageError, suggest

KINDS = (
    "same-stimulus",
    "same-trial",
    "averaged-repeats",
    "same-run",
    "test-statistics",
    "exact-duplicate",
    "recompressed",
    "crop",
    "other-view",
    "same-shape",
    "similar-features",
    "cluster-overlap",
)
"""Of recordings and their stimuli, in the order of the table."""
SCAN_KINDS = ("same-person", "same-scan", "similar-scan", "test-statistics", "same-site")
"""Of cohorts of scans, in the order of the table."""
SEVERITIES = ("error", "warning", "info", "passed", "not checked")


@dataclass(frozen=True, kw_only=True)
class Strictness:
    """What a fit does about leaks. ``strict`` also compares the stimuli themselves, which takes
    about a minute for ten thousand pictures, or the scans, and ends where something is found;
    ``allow`` names the checks whose findings are accepted.

    Raises
    ------
    UsageError : ``allow`` names no check; said when the options are read, before any data.
    """

    strict: bool = False
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_kinds(self.allow)


def require_kinds(names: tuple[str, ...] | list[str]) -> None:
    """Raise UsageError for the first name that is of no check, with those that there are."""
    known = tuple(dict.fromkeys((*KINDS, *SCAN_KINDS)))
    for name in names:
        if name not in known:
            raise UsageError(
                f"there is no leakage check {name!r}; there are {', '.join(known)}."
                f"{suggest(name, known)}"
            )


LENIENT = Strictness()
