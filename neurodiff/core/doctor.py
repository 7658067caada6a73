"""What ``neurodiff doctor`` looks at: the installation, without importing any of it.

Versions come from package metadata, libraries from the loader's table, so the whole look takes
well under a second even where an import would fail.
"""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

OK, NOTE, WARNING, MISSING = "ok", "note", "warning", "MISSING"

MISSING_CODE = 3

# System libraries that a wheel loads and does not carry: library -> (needed by, remedy).
LIBRARIES = {"usb-1.0": ("open3d", "sudo apt-get install -y libusb-1.0-0")}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the doctor's table.

    Parameters
    ----------
    name : what was looked at.
    value : what was found.
    status : ``ok``, ``note`` (for information), ``warning`` or ``MISSING``.
    advice : what to do; empty where nothing is to be done.
    """

    name: str
    value: str
    status: str = OK
    advice: str = ""

    def __str__(self) -> str:
        line = f"{self.status:<8} {self.name:<18} {self.value}"
        return f"{line}\n{'':<9}{self.advice}" if self.advice else line


def diagnose() -> list[Finding]:
    """Every finding, in the order in which a person would look."""
    return [
        _interpreter(),
        *packages(_requirements()),
        *libraries(),
        torchvision(_version("torchvision")),
        *_hardware(),
        *weights(),
    ]


def summary(findings: Sequence[Finding]) -> tuple[str, int]:
    """Closing line and exit code: 3 where something needed is missing, else 0."""
    missing = [finding.name for finding in findings if finding.status == MISSING]
    warnings = sum(finding.status == WARNING for finding in findings)
    if missing:
        return f"needed and missing or unfit: {', '.join(missing)}", MISSING_CODE
    if warnings:
        return f"nothing is missing; warnings: {warnings}", 0
    return "nothing is missing", 0


def packages(requirements: Sequence[str]) -> list[Finding]:
    """Compare what is installed with what is required.

    Parameters
    ----------
    requirements : lines such as ``"torch==2.13.0"``, as package metadata states them. Lines of
        an extra are left out. A build suffix (``2.13.0+cpu``) counts as the same version.
    """
    from packaging.requirements import Requirement

    findings = []
    for line in requirements:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = _version(requirement.name)
        wanted = str(requirement.specifier)
        remedy = f'python -m pip install "{requirement.name}{wanted}"'
        if found is None:
            value = f"not installed, needs {wanted or 'any version'}"
            finding = Finding(name=requirement.name, value=value, status=MISSING, advice=remedy)
        elif not requirement.specifier.contains(found, prereleases=True):
            value = f"{found}, needs {wanted}"
            finding = Finding(name=requirement.name, value=value, status=MISSING, advice=remedy)
        else:
            finding = Finding(name=requirement.name, value=found)
        findings.append(finding)
    return findings


def libraries() -> list[Finding]:
    """System libraries that a wheel needs and does not carry (Linux only)."""
    if not sys.platform.startswith("linux"):
        return []
    findings = []
    for library, (needed_by, remedy) in LIBRARIES.items():
        found = ctypes.util.find_library(library)
        if found is None:
            value = f"not found; {needed_by} cannot be imported without it"
            findings.append(
                Finding(name=f"lib{library}", value=value, status=MISSING, advice=remedy)
            )
        else:
            findings.append(Finding(name=f"lib{library}", value=found))
    return findings


def torchvision(version: str | None) -> Finding:
    """torchvision is not used; diffusers imports it wherever it is installed.

    Parameters
    ----------
    version : the installed version, ``None`` where there is none.
    """
    if version is None:
        return Finding(name="torchvision", value="not installed, and not needed")
    return Finding(
        name="torchvision",
        value=f"{version}, not used by neurodiff",
        status=WARNING,
        advice="diffusers imports it and fails where its build does not fit torch; "
        "if so: python -m pip uninstall torchvision",
    )


def weights() -> list[Finding]:
    """Where weights are looked for. Nothing is ever downloaded."""
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    state = "there" if cache.is_dir() else "not there"
    return [
        Finding(
            name="weights",
            value="none needed for the demo; yours go into any folder, named by --model DIR",
            status=NOTE,
        ),
        Finding(
            name="model cache",
            value=f"{cache} ({state}; neurodiff downloads nothing into it)",
            status=NOTE,
        ),
    ]


def _interpreter() -> Finding:
    found = platform.python_version()
    if sys.version_info[:2] == (3, 11):
        return Finding(name="python", value=found)
    return Finding(
        name="python",
        value=f"{found}, needs 3.11",
        status=MISSING,
        advice="make clean && make PYTHON=/path/to/python3.11",
    )


def _hardware() -> list[Finding]:
    cores = f"{_usable_cores()} usable of {os.cpu_count()}"
    total = _memory_bytes()
    memory = "unknown" if total is None else f"{total / 2**30:.1f} GiB"
    return [
        Finding(name="processors", value=cores, status=NOTE),
        Finding(name="memory", value=memory, status=NOTE),
    ]


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int | None:
    """Memory of the machine, or of the container where that is less."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def _requirements() -> list[str]:
    return importlib.metadata.requires("neurodiff") or []


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
