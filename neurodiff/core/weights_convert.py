"""``neurodiff weights convert``: a checkpoint that needs code to be read, made into safetensors.

Loading a pickle runs whatever its author put into it. It is done only where the user says that the
file is trusted, in a process of its own with limits of time and memory, without a network; what
comes back is read by the safe reader before it takes its place.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.safe_limits import existing_file, first_line

WRAPPERS = ("state_dict", "model_state_dict", "model", "params", "ema")
"""Keys under which published checkpoints keep their weights."""

_DEPTH = 20


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was written.

    Attributes
    ----------
    path : the safetensors file.
    tensors, parameters : how many.
    left_out : names of what was no tensor.
    sha256 : of the file that was converted.
    """

    path: Path
    tensors: int
    parameters: int
    left_out: tuple[str, ...]
    sha256: str

    def __str__(self) -> str:
        more = f"; left out, no tensors: {', '.join(self.left_out[:12])}" if self.left_out else ""
        return (
            f"{self.path}: {self.tensors} tensors, {self.parameters:,} parameters, from a file of "
            f"SHA-256 {self.sha256}{more}"
        )


def convert_weights(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    trusted: bool = False,
    seconds: float = 600.0,
    memory_gb: float | None = None,
) -> Converted:
    """Write the tensors of a torch checkpoint as safetensors.

    Where one of `WRAPPERS` holds the weights, they alone are taken; otherwise names of nested
    dictionaries are joined by a dot. Files that are safe to read need no trust and no process.

    Parameters
    ----------
    path : the checkpoint.
    out : ends in ``.safetensors``.
    trusted : the user's word that running the file's code is wanted (``--i-trust-this-file``).
    seconds : after which the process is ended.
    memory_gb : address space of the process in GiB; by default 8 and four times the file.

    Raises
    ------
    UsageError : another suffix, or a file that needs code and is not trusted.
    MissingDataError : there is no such file.
    DataError : no tensors, broken, or over the time or the memory.
    """
    from neurodiff.core.atomic import atomic_path
    from neurodiff.core.safe_io import load_weights, sha256_of

    path, out = existing_file(path), Path(out)
    if out.suffix != ".safetensors":
        raise UsageError(f"{out} does not end in .safetensors, the format that is written")
    digest = sha256_of(path)
    try:
        weights: Any = load_weights(path)
    except DataError:
        if not trusted:
            raise UsageError(
                f"{path} cannot be read without running code that it holds; where you know who "
                f"made it, compare its SHA-256 {digest} with theirs and add --i-trust-this-file"
            ) from None
    else:
        with atomic_path(out) as temporary:
            names = write_tensors(weights, temporary, digest)
        return _counted(out, names, digest)
    with tempfile.TemporaryDirectory(prefix="neurodiff-convert-") as folder:
        inside = Path(folder) / "weights.safetensors"
        left_out = _in_a_process(path, inside, digest, seconds, memory_gb)
        load_weights(inside)
        with atomic_path(out) as temporary:
            temporary.write_bytes(inside.read_bytes())
    return _counted(out, left_out, digest)


def _counted(out: Path, left_out: list[str], digest: str) -> Converted:
    from neurodiff.core.safe_io import load_weights

    found = load_weights(out)
    return Converted(
        path=out,
        tensors=len(found),
        parameters=sum(int(tensor.numel()) for tensor in found.values()),
        left_out=tuple(left_out),
        sha256=digest,
    )


def write_tensors(weights: Any, path: Path, digest: str) -> list[str]:
    """Write named tensors; returns the names of what was left out.

    Raises
    ------
    DataError : no tensor in it.
    """
    from safetensors.torch import save_file

    if isinstance(weights, Mapping):
        for name in WRAPPERS:
            inner = weights.get(name)
            if isinstance(inner, Mapping) and _tensors(inner)[0]:
                weights = inner
                break
    elif hasattr(weights, "state_dict"):
        weights = weights.state_dict()
    tensors, left_out = _tensors(weights)
    if not tensors:
        raise DataError(f"a file of SHA-256 {digest} holds no named tensors; nothing was written")
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(whole, path, metadata={"source_sha256": digest})
    return left_out


def _tensors(value: Any, prefix: str = "", depth: int = 0) -> tuple[dict[str, Any], list[str]]:
    import torch

    found: dict[str, Any] = {}
    left_out: list[str] = []
    if not isinstance(value, Mapping) or depth > _DEPTH:
        return found, [prefix or type(value).__name__]
    for key, item in value.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(item, torch.Tensor):
            found[name] = item
        elif isinstance(item, Mapping):
            more, skipped = _tensors(item, name, depth + 1)
            found |= more
            left_out += skipped
        else:
            left_out.append(name)
    return found, left_out


# ----------------------------------------------------------------------- the process of its own


def _in_a_process(
    path: Path, out: Path, digest: str, seconds: float, memory_gb: float | None
) -> list[str]:
    memory = int((memory_gb or 8.0 + 4 * path.stat().st_size / 2**30) * 2**30)
    command = [
        sys.executable, "-m", "neurodiff.core.weights_convert", str(path.resolve()), str(out),
        digest, str(memory), str(int(seconds)),
    ]  # fmt: skip
    kept = ("PATH", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LANG", "SYSTEMROOT")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": str(out.parent)}
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=seconds, check=False, env=environment,
            cwd=out.parent, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise DataError(f"{path} was not read in {seconds:g} s; nothing was written") from None
    answer = out.parent / "answer.json"
    if done.returncode != 0 or not out.is_file() or not answer.is_file():
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = lines[-1][:200] if lines else f"the process ended with {done.returncode}"
        raise DataError(f"{path} could not be converted ({reason}); nothing was written")
    return [str(name) for name in json.loads(answer.read_text("utf-8"))]


def _child(arguments: list[str]) -> int:
    from neurodiff.core.preflight import forbid_network

    source, out, digest, memory, seconds = arguments
    import torch

    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except ImportError:  # not on Windows, where the time alone is limited
        pass
    forbid_network()
    try:
        weights = torch.load(source, map_location="cpu", weights_only=False)  # noqa: TID251
        left_out = write_tensors(weights, Path(out), digest)
    except BaseException as error:  # the file's own code may raise anything
        print(first_line(error) or type(error).__name__, file=sys.stderr)
        return 1
    Path(out).with_name("answer.json").write_text(json.dumps(left_out), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1:]))
