"""Who is alive: names of machines and processes that are never used twice.

A number of a process is given again after its end, and another machine has the same numbers; with
the machine's boot and the time at which the process began a name is unique. Nothing here tells the
host's name.
"""

from __future__ import annotations

import functools
import hashlib
import os
import socket
from pathlib import Path


@functools.cache
def machine() -> str:
    """Eight hex digits of this machine, its last boot and the name space of its processes.

    Two containers on one machine that do not see each other's processes have two names.

    Examples
    --------
    >>> len(machine()), machine() == machine()
    (8, True)
    """
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id",):
        try:
            parts.append(Path(path).read_text(encoding="ascii").strip())
        except (OSError, UnicodeDecodeError):
            parts.append("")
    try:
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        parts.append("")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def began(process: int) -> int:
    """When a process began, in ticks since boot; 0 where there is no such process or no telling.

    Examples
    --------
    >>> began(os.getpid()) == began(os.getpid())
    True
    """
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        fields = text.rpartition(")")[2].split()
        if fields[0] in "ZX":
            return 0  # ended, and not yet waited for
        return int(fields[19])
    except (OSError, IndexError, ValueError):
        return 0


def is_alive(process: int, start: int = 0) -> bool:
    """Whether a process of this machine runs; with ``start`` (of `began`) the very same one."""
    found = began(process)
    if found:
        return not start or found == start
    if Path("/proc/self/stat").exists():
        return False
    try:  # a system without /proc
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True
