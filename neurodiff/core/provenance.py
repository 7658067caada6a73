"""Where a result comes from: versions, source revision, platform, peak memory.

Nothing here names the user, the host or a home folder, so that a run can be shared.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PACKAGES = ("torch", "numpy", "scipy", "pandas", "diffusers", "scikit-learn", "trimesh", "open3d")


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that numbers depend on; None where absent."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def package_version() -> str | None:
    """Version of neurodiff, or None when it runs from a folder that was never installed."""
    try:
        return importlib.metadata.version("neurodiff")
    except importlib.metadata.PackageNotFoundError:
        return None


def git_state() -> dict[str, str | bool | None]:
    """``commit`` and ``dirty`` of the source tree; both None when it is not a git checkout."""
    root = Path(__file__).resolve().parents[2]
    state: dict[str, str | bool | None] = {"commit": None, "dirty": None}
    if not (root / ".git").exists():
        return state
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return state
    changes = _git(root, "status", "--porcelain")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def platform_text() -> str:
    """System, its release and processor, without the host's name."""
    return f"{platform.system()} {platform.release()} {platform.machine()}".strip()


def command_text(command: str | Sequence[str]) -> list[str]:
    """A command as a list of its arguments, with home folders as ``~`` and a bare program name."""
    parts = command.split() if isinstance(command, str) else [str(part) for part in command]
    if parts and os.path.isabs(parts[0]):
        parts[0] = os.path.basename(parts[0])
    home = os.path.expanduser("~").rstrip("/")
    if len(home) < 2:  # no home, or the root folder
        return parts
    return ["~".join(_split_home(part, home)) for part in parts]


def peak_memory_mb() -> float:
    """Largest memory this process has held so far, in MB (2**20 bytes); 0 where unknown."""
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _split_home(part: str, home: str) -> list[str]:
    """Pieces of ``part`` around whole folders named ``home``."""
    pieces, start = [], 0
    at = part.find(home)
    while at >= 0:
        end = at + len(home)
        if end == len(part) or part[end] in "/:,'\" ":
            pieces.append(part[start:at])
            start = end
        at = part.find(home, end)
    return [*pieces, part[start:]]


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
