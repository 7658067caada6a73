"""The surroundings that a number was made in: variables, threads, processor, accelerator, packages.

What `neurodiff.core.provenance` does not hold because it is long. Nothing here names the user, the
host or a folder; torch is asked only where it is already imported.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_VISIBLE_DEVICES",
    "MKL_CBWR",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_NUM_THREADS",
    "PYTHONHASHSEED",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
"""Environment variables that change numbers, or the order in which numbers are added."""
_FLAGS = ("avx", "avx2", "avx512f", "amx_tile", "avx512_bf16", "fma", "sse4_2", "asimd", "sve")


def environment() -> dict[str, Any]:
    """Plain words and numbers, ready for JSON.

    Returns
    -------
    ``variables`` (those of `VARIABLES` that are set), ``threads``, ``processor`` (model and the
    instruction sets that matter), ``accelerator`` and ``deterministic`` (None where torch was not
    imported), ``packages`` (name -> version), ``lock`` (SHA-256 over names, versions and the
    hashes of the files that were installed) and ``changes`` (SHA-256 of what differs from the
    commit; None where nothing does or nobody knows).
    """
    packages, lock = _packages()
    return {
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "threads": _threads(),
        "processor": dict(_processor()),
        "accelerator": _accelerator(),
        "deterministic": _deterministic(),
        "packages": dict(packages),
        "lock": lock,
        "changes": _changes(),
    }


@functools.cache
def _packages() -> tuple[dict[str, str], str]:
    found: dict[str, tuple[str, str]] = {}
    for one in importlib.metadata.distributions():
        name = one.metadata["Name"]
        if name and name.lower() not in found:
            record = one.read_text("RECORD") or ""
            found[name.lower()] = (one.version, hashlib.sha256(record.encode()).hexdigest())
    lines = [f"{name} {version} {digest}" for name, (version, digest) in sorted(found.items())]
    lock = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return {name: version for name, (version, _) in sorted(found.items())}, lock


def _threads() -> dict[str, int]:
    counts = {"cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0}
    counts["cpus"] = counts["cpus"] or os.cpu_count() or 0
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        counts["torch"] = int(torch.get_num_threads())
        counts["torch, between operations"] = int(torch.get_num_interop_threads())
    return counts


@functools.cache
def _processor() -> dict[str, Any]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {"model": "not known", "flags": []}
    known = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in known.items()}
    there = set((fields.get("flags") or fields.get("Features") or "").split())
    return {
        "model": fields.get("model name", "not known"),
        "flags": [flag for flag in _FLAGS if flag in there],
    }


def _accelerator() -> dict[str, Any] | None:
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda"):
        return None
    there = bool(torch.cuda.is_available())
    return {
        "names": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
        if there
        else [],
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if there else None,
        "driver": _driver() if there else None,
    }


def _deterministic() -> dict[str, bool] | None:
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "are_deterministic_algorithms_enabled"):
        return None
    return {
        "asked": bool(torch.are_deterministic_algorithms_enabled()),
        "cudnn benchmark": bool(torch.backends.cudnn.benchmark),
        "tf32": bool(torch.backends.cuda.matmul.allow_tf32),
    }


def _driver() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.splitlines()[0].partition("Kernel Module")[2].split("  ")[0].strip() or None


def _changes() -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "diff", "HEAD"], capture_output=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return hashlib.sha256(done.stdout).hexdigest() if done.stdout else None
