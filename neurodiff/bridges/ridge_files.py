"""A fitted `FactoredRidge` as a folder: brain data and factor, and the targets by hashed reference.

    bridge.json          settings, the targets' path, shape and SHA-256, the factor's folder
    statistics.npy       (k, targets) penalty, mean, std and leave-one-out mean and std
    targets.npy          only if the targets were an array in memory
    weights.npy          only if asked for: (targets, vertices), 21.9 GB for a published subject
    factor/              may be shared: mean.npy, centred.npy and, if they had been needed,
                         eigenvalues.npy, eigenvectors.npy (and directions.npy in the primal form)

The targets are what the bridge predicts from, so a file that has changed is refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurodiff.bridges.kernel_factor import KernelFactor
from neurodiff.bridges.target_statistics import TargetStatistics
from neurodiff.core.columns import open_columns
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.safe_io import (
    atomic_path,
    read_json,
    read_npy,
    sha256_of,
    write_json,
    write_npy,
)

if TYPE_CHECKING:
    from neurodiff.bridges.factored_ridge import FactoredRidge

VERSION = 1
_ROWS = ("alpha", "mean", "std", "loo_mean", "loo_std")


def save_ridge(
    bridge: FactoredRidge,
    folder: str | os.PathLike[str],
    *,
    factor_folder: str | os.PathLike[str] | None = None,
    weights: bool = False,
) -> None:
    """Write ``bridge`` to ``folder``.

    Parameters
    ----------
    factor_folder : where the factor goes (default: ``folder/factor``); several heads may name the
        same one, and it is written once.
    weights : write the primal weights as well, for other programs; they are not read back.

    Raises
    ------
    UsageError : the factor's folder holds that of other brain data.
    """
    folder = Path(folder)
    place = folder / "factor" if factor_folder is None else Path(factor_folder)
    files = _save_factor(bridge.factor_, place)
    targets, known = bridge.targets_, bridge.statistics_
    path = targets.path
    if path is None:
        assert targets.array is not None  # a source is one or the other
        path = folder / "targets.npy"
        write_npy(path, targets.array.reshape(targets.rows, *targets.item_shape))
    rows = {"alpha": np.broadcast_to(bridge.alpha_, known.mean.shape), "mean": known.mean}
    rows |= {name: getattr(known, name) for name in _ROWS[2:]}
    rows = {name: row for name, row in rows.items() if row is not None}
    write_npy(folder / "statistics.npy", np.stack(list(rows.values())))
    if weights:
        _write_weights(bridge, folder / "weights.npy")
    write_json(
        folder / "bridge.json",
        {
            "class": "FactoredRidge",
            "version": VERSION,
            "settings": bridge.get_params(),
            "alpha": None if np.ndim(bridge.alpha_) else float(bridge.alpha_),
            "alphas": bridge.alphas_,
            "sketch_r2": bridge.sketch_r2_,
            "statistics": list(rows),
            "statistics_sha256": sha256_of(folder / "statistics.npy"),
            "targets": {
                "path": path.name if path.parent == folder else os.path.abspath(path),
                "shape": [targets.rows, *targets.item_shape],
                "sha256": sha256_of(path),
            },
            "factor": os.path.relpath(place, folder),
            "factor_sha256": {name: sha256_of(place / name) for name in files},
            "groups": [rows.tolist() for rows in bridge.factor_.members],
        },
    )


def load_ridge(
    folder: str | os.PathLike[str],
    *,
    targets: str | os.PathLike[str] | None = None,
    factor: KernelFactor | None = None,
    device: str = "cpu",
) -> FactoredRidge:
    """Read a bridge; the hashes of its targets and brain data are compared first.

    Parameters
    ----------
    targets : where the targets lie now, if they were moved; they must be the same bytes.
    factor : of another head loaded from the same factor's folder, to share it in memory.
    device : where the heavy products run.

    Raises
    ------
    MissingDataError : a file is not there.
    DataError : the targets or the brain data are not those of the fit, or a file is broken.
    """
    from neurodiff.bridges.factored_ridge import FactoredRidge

    folder = Path(folder)
    notes = read_json(folder / "bridge.json")
    if not isinstance(notes, dict) or notes.get("class") != "FactoredRidge":
        raise DataError(
            f"{folder / 'bridge.json'} does not describe a FactoredRidge; save it again"
        )
    if notes.get("version") != VERSION:
        raise DataError(
            f"{folder / 'bridge.json'} has version {notes.get('version')!r}; this neurodiff reads "
            f"version {VERSION}: fit again"
        )
    try:
        bridge = FactoredRidge(**{**notes["settings"], "device": device})
        wanted = notes["targets"]
        path = folder / wanted["path"] if targets is None else Path(targets)
        shape, sha = tuple(wanted["shape"]), wanted["sha256"]
        place, names = folder / notes["factor"], list(notes["statistics"])
        hashes = dict(notes["factor_sha256"])
        members = tuple(np.asarray(rows, dtype=int) for rows in notes["groups"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / 'bridge.json'} lacks or garbles {error}; save the bridge again"
        ) from None
    source = open_columns(path)
    if (source.rows, *source.item_shape) != shape:
        raise DataError(
            f"{path} has shape {(source.rows, *source.item_shape)}; the bridge was fitted on "
            f"targets of {shape}: give the file it was fitted on"
        )
    _same_bytes(path, sha, "targets")
    _same_bytes(folder / "statistics.npy", notes["statistics_sha256"], "statistics")
    if factor is None:
        for name, expected in hashes.items():
            _same_bytes(place / name, expected, "brain data")
        factor = _load_factor(place, device, whole="eigenvectors.npy" in hashes)
    else:
        _same_bytes(place / "mean.npy", hashes.get("mean.npy"), "brain data")
        if not np.array_equal(factor.mean, read_npy(place / "mean.npy")):
            raise DataError(
                f"the factor given is not that of {place}; give the head's own, or none"
            )
    if factor.trials != source.rows:
        raise DataError(f"the factor has {factor.trials} trials and the targets {source.rows}")
    statistics = read_npy(folder / "statistics.npy", shape=(len(names), source.shape[1]))
    rows = dict(zip(names, statistics, strict=True))
    alpha: Any = rows.pop("alpha")
    bridge.alpha_ = alpha if notes["alpha"] is None else float(notes["alpha"])
    bridge.alphas_ = np.asarray(notes["alphas"], np.float64)
    bridge.sketch_r2_ = None if notes["sketch_r2"] is None else np.asarray(notes["sketch_r2"])
    bridge.statistics_ = TargetStatistics(**rows)
    bridge.targets_ = source
    bridge.factor_ = factor.with_members(members)
    bridge.n_features_in_ = factor.features
    return bridge


def _save_factor(factor: KernelFactor, place: Path) -> list[str]:
    """Write what is there of the factor, unless it is there already; the names of its files."""
    arrays = {"mean.npy": factor.mean, "centred.npy": factor.centred}
    if "eigen" in factor.__dict__:
        values, U, V = factor.eigen
        arrays |= {"eigenvalues.npy": values, "eigenvectors.npy": U}
        arrays |= {} if V is None else {"directions.npy": V}
    if (place / "centred.npy").exists():
        other = read_npy(place / "centred.npy", finite=False, mmap=True)
        if other.shape != factor.centred.shape or not np.array_equal(other, factor.centred):
            raise UsageError(
                f"{place} holds the factor of other brain data; name another factor_folder"
            )
    for name, array in arrays.items():
        if not (place / name).exists():
            write_npy(place / name, array)
    return list(arrays)


def _load_factor(place: Path, device: str, *, whole: bool) -> KernelFactor:
    centred = read_npy(place / "centred.npy", shape=(None, None))
    n, p = centred.shape
    mean = read_npy(place / "mean.npy", dtype=np.float64, shape=(p,))
    factor = KernelFactor(mean=mean, centred=centred, device=device)
    if whole:
        values = read_npy(place / "eigenvalues.npy", dtype=np.float64, shape=(None,))
        U = read_npy(place / "eigenvectors.npy", dtype=np.float64, shape=(n, len(values)))
        V = None
        if factor.primal:
            V = read_npy(place / "directions.npy", dtype=np.float64, shape=(p, len(values)))
        factor.__dict__["eigen"] = (values, U, V)  # what the cached property would find
    return factor


def _write_weights(bridge: FactoredRidge, path: Path) -> None:
    """A block of targets at a time, as float32 under dtype="float32" and else as float64."""
    count, block = bridge.targets_.shape[1], 256
    with atomic_path(path) as temporary, open(temporary, "xb") as file:
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(bridge.dtype)),
            "fortran_order": False,
            "shape": (count, bridge.factor_.features),
        }
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, count, block):
            coef, _ = bridge.weights(start, min(start + block, count))
            file.write(np.ascontiguousarray(coef, bridge.dtype).tobytes())


def _same_bytes(path: Path, sha: Any, what: str) -> None:
    found = sha256_of(path)
    if found != sha:
        raise DataError(
            f"{path} has SHA-256 {found[:12]}..., and the {what} of the fit had "
            f"{str(sha)[:12]}...; put the original file back, or fit again"
        )
