"""What a fit does about leaks; apart from the audit, so that the command line imports nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Strictness:
    """What a fit does about leaks. ``strict`` also compares the stimuli themselves, which takes
    about a minute for ten thousand pictures, and ends where something is found; ``allow`` names
    the checks whose findings are accepted."""

    strict: bool = False
    allow: tuple[str, ...] = ()


LENIENT = Strictness()
