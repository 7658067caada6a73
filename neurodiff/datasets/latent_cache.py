"""Latents of a cohort on disk: what an autoencoder made of each scan, so that it runs once.

The published files keep one random sample for ever and no scale; here both the mean and the log
of the variance are kept, so that each epoch may draw its own sample, together with the affine and
the hash of the autoencoder. A cache of another autoencoder is refused: its latents would train a
model that no decoder understands.

::

    cache.json          format, autoencoder (64 hex digits), shape, settings
    latents/<scan>.npz  mean and log_variance, float32 (channels, i, j, k); affine (4, 4); source
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurodiff.core.atomic import atomic_write, write_json
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.safe_archives import check_zip, read_npz
from neurodiff.core.safe_io import read_json, require_finite
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.core.volume import checked_affine

FORMAT = "neurodiff latents 1"
RECORD = "cache.json"
FOLDER = "latents"


@dataclass(frozen=True, eq=False, kw_only=True)
class Latent:
    """One scan: Gaussian ``mean`` and ``log_variance``, both float32 (channels, i, j, k), unscaled.

    ``affine`` (4, 4) is that of the image that was encoded, in mm; ``source`` its fingerprint.
    """

    mean: np.ndarray
    log_variance: np.ndarray
    affine: np.ndarray
    source: str = ""

    def sample(self, seed: int) -> np.ndarray:
        """A draw of the Gaussian, float32; the seed is the item's own."""
        noise = numpy_generator(seed).standard_normal(self.mean.shape, np.float32)
        return self.mean + np.exp(0.5 * self.log_variance) * noise


class LatentCache:
    """A folder of latents; made by `LatentCache.open`."""

    def __init__(self, folder: Path, record: Mapping[str, Any]) -> None:
        self.folder = folder
        self.autoencoder: str = record["autoencoder"]
        self.shape: tuple[int, ...] = tuple(record["shape"])
        self.settings: dict[str, Any] = dict(record["settings"])

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        autoencoder: str,
        shape: Iterable[int] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> LatentCache:
        """The cache of this autoencoder in a folder; a new one is begun where there is none.

        Parameters
        ----------
        autoencoder : `hash_of_weights` of it, 64 hex digits.
        shape : (channels, i, j, k) of a latent; may be left out where the cache exists.
        settings : of the preprocessing, compared where both are given.

        Raises
        ------
        DataError : a cache of another autoencoder, shape or preprocessing, or another folder.
        UsageError : a new cache without a shape, or a hash that is none.
        """
        folder = Path(folder)
        if not re.fullmatch(r"[0-9a-f]{64}", autoencoder):
            raise UsageError(
                f"the autoencoder's hash is {autoencoder!r}; give hash_of_weights of its weights"
            )
        asked = None if shape is None else [int(n) for n in shape]
        if not (folder / RECORD).exists():
            if any(folder.glob("*")):
                raise DataError(f"{folder} holds other files and no {RECORD}; give a new folder")
            if asked is None or len(asked) != 4 or min(asked) < 1:
                raise UsageError(f"a new cache needs the shape (channels, i, j, k), not {asked}")
            record: dict[str, Any] = {
                "format": FORMAT,
                "autoencoder": autoencoder,
                "shape": asked,
                "settings": dict(settings or {}),
            }
            write_json(folder / RECORD, record)
        record = _record(folder)
        if record["autoencoder"] != autoencoder:
            raise DataError(
                f"{folder} holds latents of another autoencoder ({record['autoencoder'][:10]}; this"
                f" one is {autoencoder[:10]}); encode the scans again into a new folder"
            )
        if asked is not None and record["shape"] != asked:
            raise DataError(
                f"{folder} holds latents of shape {tuple(record['shape'])}; {tuple(asked)} was "
                "asked for: encode the scans again into a new folder"
            )
        known = record["settings"]
        for key, value in (settings or {}).items():
            if key in known and not _same(known[key], value):
                raise DataError(
                    f"{folder} holds latents of scans prepared with {key} {known[key]!r}, not "
                    f"{value!r}; encode them again into a new folder"
                )
        return cls(folder, record)

    @property
    def ids(self) -> list[str]:
        """Scans that are there, sorted."""
        return sorted(_scan_of(path.stem) for path in (self.folder / FOLDER).glob("*.npz"))

    def missing(self, scans: Iterable[str]) -> list[str]:
        """Those of ``scans`` that are not there yet."""
        there = set(self.ids)
        return [scan for scan in scans if scan not in there]

    def write(self, scan: str, latent: Latent) -> None:
        """Add or replace one scan, whole or not at all.

        Raises
        ------
        DataError : another shape, NaN, or a disk that is full.
        """
        _check(latent, self.shape, f"the latent of {scan}")
        buffer = io.BytesIO()
        np.savez(
            buffer,
            mean=latent.mean,
            log_variance=latent.log_variance,
            affine=np.asarray(latent.affine, np.float64),
            source=np.frombuffer(latent.source.encode("ascii"), np.uint8),
        )
        with atomic_write(self._path(scan)) as file:
            file.write(buffer.getvalue())

    def read(self, scan: str) -> Latent:
        """One scan's latent.

        Raises
        ------
        MissingDataError : it is not there.
        DataError : a damaged file, another shape, NaN.
        """
        path = self._path(scan)
        if not path.is_file():
            raise MissingDataError(f"{self.folder} has no latent of {scan}; encode the scan first")
        try:
            stored = read_npz(path, ["mean", "log_variance", "affine", "source"])
            latent = Latent(
                mean=stored["mean"],
                log_variance=stored["log_variance"],
                affine=stored["affine"],
                source=stored["source"].tobytes().decode("ascii"),
            )
        except (ValueError, OSError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(f"{path} is damaged ({first}); encode {scan} again") from None
        _check(latent, self.shape, str(path))
        return latent

    def sample(self, scan: str, *, seed: int, epoch: int = 0) -> np.ndarray:
        """A draw of the scan's latent; the same for a seed and epoch in any order of scans."""
        drawn = item_seed(seed, subject=scan, stimulus="", sample=epoch, stage="latent")
        return self.read(scan).sample(drawn)

    def mean(self, scans: Iterable[str] | None = None) -> np.ndarray:
        """Mean of the latents of these scans (all by default), float32 (channels, i, j, k)."""
        total, count = np.zeros(self.shape), 0
        for scan in self.ids if scans is None else scans:
            total, count = total + self.read(scan).mean, count + 1
        if not count:
            raise MissingDataError(f"{self.folder} has no latent to take a mean of")
        return (total / count).astype(np.float32)

    def scale(
        self, scans: Iterable[str] | None = None, *, centre: np.ndarray | None = None
    ) -> float:
        """1 over the standard deviation of samples of these scans (all by default), which makes
        the latents of unit size; in closed form, mean of the variances plus that of the means.

        The published 0.8730 is this number for one batch.

        centre : (channels, i, j, k) that is taken from each latent first.
        """
        total = squares = variances = 0.0
        count = 0
        for scan in self.ids if scans is None else scans:
            latent = self.read(scan)
            mean = latent.mean.astype(np.float64) - (0.0 if centre is None else centre)
            total, squares = total + float(mean.sum()), squares + float((mean**2).sum())
            variances += float(np.exp(latent.log_variance.astype(np.float64)).sum())
            count += mean.size
        if not count:
            raise MissingDataError(f"{self.folder} has no latent to take a scale of")
        variance = (squares + variances) / count - (total / count) ** 2
        return float(1 / np.sqrt(variance))

    def _path(self, scan: str) -> Path:
        # a name that differs from the id only by escapes, so that ids may hold any character
        name = "".join(c if re.match(r"[A-Za-z0-9_-]", c) else f"%{ord(c):x}%" for c in scan)
        if not name:
            raise UsageError("a scan without an id cannot be kept")
        return self.folder / FOLDER / f"{name}.npz"


def hash_of_weights(weights: Mapping[str, Any]) -> str:
    """SHA-256 of named arrays or tensors: names, shapes, types and values, in any order.

    Examples
    --------
    >>> a, b = np.ones(2, np.float32), np.zeros(3, np.float32)
    >>> hash_of_weights({"a": a, "b": b}) == hash_of_weights({"b": b, "a": a})
    True
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name]
        if hasattr(value, "detach"):  # a torch tensor; half-precision formats go through float32
            value = value.detach().cpu()
            kind = str(value.dtype)
            value = value.float().numpy() if "float" in kind else value.numpy()
        else:
            value = np.asarray(value)
            kind = str(value.dtype)
            value = value.astype(np.float32) if value.dtype.kind == "f" else value
        kind = kind.removeprefix("torch.")
        digest.update(f"{name}\x1f{tuple(value.shape)}\x1f{kind}\x1e".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def read_published_latent(path: str | Path) -> np.ndarray:
    """The one sample of a published ``*_latent.npz`` (LDAE, BrLP), unscaled, float32.

    The file says neither its autoencoder nor its affine, so that nothing can be checked but its
    shape (channels, i, j, k).

    Raises
    ------
    MissingDataError, DataError : no such file; no array ``data``; another number of axes; NaN.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingDataError(f"{path} does not exist; check the path")
    names = [member.filename.removesuffix(".npy") for member in check_zip(path)]
    values = read_npz(path, ["data"])["data"] if "data" in names else None
    if values is None or values.ndim != 4 or values.dtype.kind != "f":
        found = f"arrays {', '.join(names)}" if values is None else f"shape {values.shape}"
        raise DataError(f"{path} has {found}; expected 'data' of (channels, i, j, k)")
    require_finite(values, str(path))
    return values.astype(np.float32)


def _record(folder: Path) -> dict[str, Any]:
    record = read_json(folder / RECORD)
    keys = {"format", "autoencoder", "shape", "settings"}
    if not isinstance(record, dict) or not keys <= set(record) or record["format"] != FORMAT:
        raise DataError(f"{folder / RECORD} is no record of this version; encode the scans again")
    return record


def _check(latent: Latent, shape: tuple[int, ...], what: str) -> None:
    for name in ("mean", "log_variance"):
        values = getattr(latent, name)
        if values.shape != shape or values.dtype != np.float32:
            raise DataError(
                f"{name} of {what} is {values.dtype} {values.shape}; this cache holds float32 "
                f"{shape}"
            )
        require_finite(values, f"{name} of {what}")
    checked_affine(latent.affine, what)


def _same(stored: Any, given: Any) -> bool:
    if isinstance(given, list | tuple):
        return list(stored) == list(given) if isinstance(stored, list | tuple) else False
    return bool(stored == given)


def _scan_of(name: str) -> str:
    return re.sub(r"%([0-9a-f]+)%", lambda found: chr(int(found.group(1), 16)), name)
