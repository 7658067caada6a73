"""Published weights on the command line: look at a file, and decode recordings with it.

    neurodiff weights check FILE
    neurodiff weights expected
    neurodiff reconstruct IN OUT --weights FILE

IN is a ``.npy`` file, (frames, 256, 256) or (trials, frames, 256, 256) in the values of the
published files, or a folder in which all ``.npy`` files are read, such as ``sub-0001/npy_data``.
OUT gets ``<name>.glb`` and ``<name>.json`` a trial and sample (what decided it, and the mesh's
hash) and ``reconstructions.csv``; a trial whose two files fit is not decoded again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.run import fingerprint
from neurodiff.core.safe_io import (
    atomic_path,
    read_json,
    read_npy,
    sha256_of,
    write_csv,
    write_json,
)

if TYPE_CHECKING:
    from neurodiff.pipelines.mind3d_published import PublishedMinD3D
    from neurodiff.pipelines.reconstructions import Reconstruction

SIDE = 256
TABLE = "reconstructions.csv"
VERSION = 1


def check_weights(path: Path, *, any_size: bool = False, full: bool = False) -> tuple[str, str]:
    """The table of keys of a checkpoint, and why it cannot be used ("" where it can).

    Raises
    ------
    MissingDataError, DataError : the file is missing, broken or no checkpoint that is known.
    """
    from neurodiff.models.weights import compare, not_finite, open_checkpoint
    from neurodiff.pipelines.ldae_weights_check import check_ldae_weights

    found = check_ldae_weights(path, full=full)
    if found is not None:
        return found
    checkpoint = open_checkpoint(path)
    report = compare(checkpoint)
    lines, problem = [report.table(full=full)], report.sentence()
    bad = not_finite(checkpoint)
    if bad:
        lines.append(f"NaN or infinity in {len(bad)} tensors: {', '.join(bad[:5])}")
        problem = problem or f"{path} holds NaN or infinity in {bad[0]}; save or download it again"
    sizes = report.sizes
    other = sizes is not None and checkpoint.layout != "D" and bool(sizes.differences())
    if sizes is not None and other and not any_size and not problem:
        problem = (
            f"{path} is whole, but of another size than the published model: "
            f"{sizes.summary()}. If that is meant, add --any-size"
        )
    strange = len(report.of("unexpected"))
    if not problem:
        extra = f"; {strange} unexpected names are left alone" if strange else ""
        lines.append(f"all that is needed is there{extra}")
    return "\n".join(lines), problem


def expected_table() -> str:
    """Names and parameters of the published models by part, counted without memory."""
    from neurodiff.models.published_sizes import MinD3DSizes, expected_shapes, meta_modules
    from neurodiff.models.vdvae_weights import vdvae_table

    shapes = expected_shapes(MinD3DSizes())
    prefixes = [name.split(".")[0] for name in shapes]
    lines = [f"the released MinD-3D (layout A) holds {len(shapes):,} tensors:"]
    lines += [f"  {name:<28}{prefixes.count(name):>6}" for name in dict.fromkeys(prefixes)]
    parts = meta_modules(MinD3DSizes())
    generator: Any = parts.pop("shape_generator.")
    modules = {
        **{name.rstrip("."): module for name, module in parts.items()},
        "transformer_model": generator.transformer_model,
        **{f"vqvae_model.{n}": m for n, m in generator.vqvae_model.named_children()},
    }
    counts = {name: sum(p.numel() for p in m.parameters()) for name, m in modules.items()}
    lines.append("parameters, each tensor counted once:")
    lines += [f"  {name:<28}{n:>14,}" for name, n in counts.items()]
    lines.append(f"  {'all':<28}{sum(counts.values()):>14,}")
    lines += ["", *vdvae_table()]
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class HowToDecode:
    """The options of ``reconstruct --weights``, as they are typed."""

    samples: int = 1
    seed: int = 0
    subject: str = "1"
    candidates: int = 128
    greedy: bool = False
    dtype: str = "float32"
    device: str = "cpu"
    protocol: str = "mind3d-2024"
    switches: tuple[str, ...] = ()
    any_size: bool = False
    resolution: int = 128
    heads: str = "16,16"  # of encoder and shape decoder: no shape in a file tells them


def reconstruct_published(
    source: Path, out: Path, weights: Path, how: HowToDecode, *, progress: Progress = SILENT
) -> str:
    """Decode every trial of ``source`` with published weights; see the module.

    Raises
    ------
    MissingDataError, DataError : weights or recordings are missing, broken, of another shape.
    UsageError : an option, or a checkpoint that cannot decode.
    """
    names = _files(source)
    if out.is_file() or out.suffix.lower() in (".glb", ".npy"):
        raise UsageError(f"{out} must be a folder")
    pipe = open_pipeline(weights, how)
    progress.say(f"{weights}: protocol {pipe.protocol.name}")
    if pipe.sizes.differences():
        progress.say(
            f"not the published sizes; heads of encoder and shape decoder are taken as {how.heads}"
        )
    decisive = {
        "version": VERSION,
        "weights": sha256_of(weights),
        "protocol": asdict(pipe.protocol),
        "decoding": asdict(pipe.decoding),
        "dtype": how.dtype,
        "heads": how.heads,
        "seed": how.seed,
        "subject": how.subject,
    }
    rows: list[dict[str, Any]] = []
    started, again = time.monotonic(), 0
    for name, frames in progress.over(_trials(names), "decoding", len(names)):
        for k in range(how.samples):
            stem = name if how.samples == 1 else f"{name}_s{k}"
            key = fingerprint({**decisive, "trial": _hash(frames), "name": name, "sample": k})
            done = _done(out, stem, key)
            if done is None:
                result = pipe.predict_trial(
                    frames,
                    subject=how.subject,
                    stimulus=name,
                    samples=1,
                    seed=how.seed,
                    first_sample=k,
                )[0]
                done = _write(out, stem, key, result, pipe)
            else:
                again += 1
            rows.append(
                {"stimulus": name, "sample": k, "mesh": done["mesh"], "faces": done["faces"]}
            )
    write_csv(out / TABLE, pd.DataFrame(rows))
    spent = time.monotonic() - started
    before = f", {again} of them done before" if again else ""
    empty = sum(not row["mesh"] for row in rows)
    end = f"; {empty} are empty (the decoder says that nothing is there)" if empty else ""
    return f"{len(rows)} reconstructions in {spent:.1f} s{before}{end}: {out / TABLE}"


def open_pipeline(weights: Path, how: HowToDecode) -> PublishedMinD3D:
    """The pipeline that the options ask for."""
    import torch

    from neurodiff.pipelines.mind3d_protocol import as_dtype, protocol_named
    from neurodiff.pipelines.mind3d_published import Decoding, PublishedMinD3D

    heads = how.heads.split(",")
    if len(heads) != 2 or not all(one.strip().isdecimal() and int(one) for one in heads):
        raise UsageError(f"heads {how.heads!r} must be two numbers, such as 16,16")
    if how.candidates < 1 or how.resolution < 4 or how.resolution % 4:
        raise UsageError(
            f"candidates {how.candidates} (>= 1) or resolution {how.resolution} (a multiple of 4) "
            "is out of range"
        )
    try:
        device = torch.device(how.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"device {how.device!r} cannot be used ({first}); try cpu") from None
    pipe = PublishedMinD3D.load(
        weights,
        protocol=protocol_named(how.protocol).with_switches(how.switches),
        decoding=Decoding(candidates=how.candidates, greedy=how.greedy, resolution=how.resolution),
        any_size=how.any_size,
        decoder_dtype=as_dtype(how.dtype),
        encoder_heads=int(heads[0]),
        decoder_heads=int(heads[1]),
    )
    return pipe.to(device)


# ----------------------------------------------------------------------------------- helpers


def _files(source: Path) -> dict[str, tuple[Path, int | None]]:
    """Name of each trial -> its file, and its row there (None: the whole file is the trial)."""
    if not source.exists():
        raise MissingDataError(f"{source} does not exist; check the path")
    paths = sorted(source.rglob("*.npy")) if source.is_dir() else [source]
    if not paths:
        raise MissingDataError(f"{source} holds no .npy file; give a folder of fMRI trials")
    found: dict[str, tuple[Path, int | None]] = {}
    for path in paths:
        if path.suffix != ".npy":
            raise UsageError(
                f"{path} is no .npy file; published weights read flat maps (frames, {SIDE}, {SIDE})"
            )
        place = path.relative_to(source) if source.is_dir() else Path(path.name)
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", str(place.with_suffix(""))).strip("._") or "trial"
        shape = read_npy(path, finite=False, mmap=True).shape
        if len(shape) not in (3, 4) or shape[-2:] != (SIDE, SIDE) or 0 in shape:
            raise UsageError(
                f"{path} has shape {shape}; published weights read flat maps of visual cortex "
                f"(frames, {SIDE}, {SIDE}), or several trials of them"
            )
        if len(shape) == 3:
            found[name] = (path, None)
        else:
            found |= {f"{name}-{row:03d}": (path, row) for row in range(shape[0])}
    return found


def _trials(files: dict[str, tuple[Path, int | None]]) -> Iterator[tuple[str, np.ndarray]]:
    for name, (path, row) in files.items():
        values = read_npy(path, dtype=(np.floating, np.integer), finite=False, mmap=True)
        yield name, np.asarray(values if row is None else values[row], dtype=np.float32)


def _hash(frames: np.ndarray) -> str:
    import hashlib

    return hashlib.sha256(np.ascontiguousarray(frames).tobytes()).hexdigest()


def _done(out: Path, stem: str, key: str) -> dict[str, Any] | None:
    """The record of a reconstruction that is whole and was made in the same way."""
    about = out / f"{stem}.json"
    if not about.is_file():
        return None
    try:
        record = read_json(about)
    except DataError:
        return None
    if not isinstance(record, dict) or record.get("key") != key:
        return None
    mesh = record.get("mesh")
    if mesh and (not (out / mesh).is_file() or sha256_of(out / mesh) != record.get("sha256")):
        return None
    return record


def _write(
    out: Path, stem: str, key: str, result: Reconstruction, pipe: PublishedMinD3D
) -> dict[str, Any]:
    from neurodiff.analysis.decoding import write_mesh

    path = out / f"{stem}.glb"
    empty = len(result.mesh.faces) == 0
    if empty:
        path.unlink(missing_ok=True)
    else:
        with atomic_path(path) as temporary:
            write_mesh(result.mesh, temporary)
    record = {
        "key": key,
        "protocol": pipe.protocol.name,
        "stimulus": result.stimulus,
        "sample": result.sample,
        "mesh": "" if empty else path.name,
        "sha256": "" if empty else sha256_of(path),
        "faces": len(result.mesh.faces),
        "embedding": [float(value) for value in result.embedding],
        "codes": [int(code) for code in result.codes],
    }
    write_json(out / f"{stem}.json", record)
    return record
