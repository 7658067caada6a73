"""Scans on their way into an LDAE and back: opened, prepared, encoded, and written with a sidecar.

What a verb writes of one scan is an image on the model's grid, a change map at the scan's own
voxels, and a JSON file that says how both were made and what they cannot show.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neurodiff.core.atomic import plain, write_csv, write_error, write_json
from neurodiff.core.cohort import LEFT_OUT, Cohort
from neurodiff.core.errors import DataError, MissingDataError, NeurodiffError, UsageError, suggest
from neurodiff.core.progress import Progress
from neurodiff.core.provenance import now, package_version
from neurodiff.core.safe_io import read_json, sha256_of
from neurodiff.core.volume import Volume
from neurodiff.pipelines.brain_preprocessing import WHAT_IS_LOST, Prepared, prepare_scan

if TYPE_CHECKING:
    from neurodiff.pipelines.ldae import LDAE
    from neurodiff.pipelines.ldae_autoencoder_alone import AutoencoderAlone

Failures = list[tuple[str, str, str]]
_IMAGES = (".nii", ".nii.gz", ".img", ".hdr", ".mgh", ".mgz")


@dataclass(frozen=True, kw_only=True)
class Walk:
    """How scans are walked: steps of a walk (None: the model's), seed of noise that is drawn, and
    the device of the networks."""

    steps: int | None = None
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"steps is {self.steps}; expected at least 1")


@dataclass(frozen=True, eq=False, kw_only=True)
class EncodedScan:
    """One scan in the model: what is known of it, prepared, its code and the noise it comes from.

    ``volume`` (1, 1, i, j, k), ``code`` (1, d), ``noise`` and ``latent`` (1, c, i, j, k).
    """

    row: Mapping[str, Any]
    source: str
    flags: str
    made: Prepared
    clipped: float
    volume: np.ndarray
    code: np.ndarray
    noise: np.ndarray


# ------------------------------------------------------------------------------------- opening


def open_scans(cohort: Cohort | str | Path, root: str | Path | None = None) -> Cohort:
    """A cohort by the name of a data set, a folder of scans, a CSV of them, or one scan's file.

    Raises
    ------
    MissingDataError : no such path.
    UsageError : no such data set, or one that has no scans; a ``root`` beside a path.
    DataError : a table or a folder that cannot be read, two scans with one id.
    """
    if isinstance(cohort, Cohort):
        return cohort
    from neurodiff.datasets.brain_mri import discover
    from neurodiff.datasets.opening import OPENERS, VOLUMES, find_cards, open_dataset, resolve

    text, path = str(cohort), Path(cohort).expanduser()
    is_card = path.suffix in (".yaml", ".yml")
    if path.exists() and not is_card and text not in OPENERS:
        if root is not None:
            raise UsageError(f"{text} is a path of its own; leave out --root")
        if path.is_file() and path.suffix.lower() != ".csv":
            return one_scan(path)
        return discover(path)
    known = sorted({*OPENERS, *find_cards()})
    if not is_card and text not in known:
        if "/" in text or "\\" in text or path.suffix:
            raise MissingDataError(
                f"{text} does not exist; give a folder of scans, a CSV of them, or the name of a "
                "data set with --root"
            )
        raise UsageError(
            f"{text!r} is no folder, no CSV and no data set; data sets of scans are "
            f"{', '.join(VOLUMES)}.{suggest(text, known)}"
        )
    if resolve(text, root or ".")[0] not in VOLUMES:
        raise UsageError(
            f"{text} is no data set of scans; there are {', '.join(VOLUMES)}, and the path of a "
            "folder or a CSV of scans"
        )
    opened = open_dataset(text, root=root)
    assert isinstance(opened, Cohort)
    return opened


def one_scan(path: Path) -> Cohort:
    """A cohort of one file, named after it."""
    if not path.is_file():
        raise MissingDataError(f"{path} does not exist; check the path of the scan")
    if not path.name.lower().endswith(_IMAGES):
        raise DataError(
            f"{path} is no scan; expected a file that ends in {', '.join(_IMAGES)} (a table of "
            "scans ends in .csv)"
        )
    name = re.sub(r"(\.nii)?\.(gz|nii|img|hdr|mgh|mgz)$", "", path.name, flags=re.IGNORECASE)
    return Cohort(pd.DataFrame({"scan": [name], "subject": [name], "path": [str(path)]}))


def open_model(folder: str | Path, walk: Walk | None = None) -> LDAE:
    """The LDAE of a folder, a run or published weights, on the device that was asked for.

    Raises
    ------
    MissingDataError, DataError : no model there, a broken one, or an autoencoder alone.
    UsageError : a device that is not there.
    """
    from neurodiff.pipelines.ldae import LDAE

    pipe = open_coder(folder, walk)
    if not isinstance(pipe, LDAE):
        raise DataError(
            f"{folder} holds an autoencoder alone, which can encode and decode; the rest asks for "
            "a semantic encoder and a diffusion: give the folder of a whole LDAE"
        )
    return pipe


def open_coder(folder: str | Path, walk: Walk | None = None) -> LDAE | AutoencoderAlone:
    """As `open_model`, and an autoencoder alone too, whose codes are its latents."""
    import torch

    from neurodiff.pipelines.ldae_opening import open_published

    device = (walk or Walk()).device
    try:
        asked = torch.device(device)
    except RuntimeError:
        asked = None
    if asked is None or asked.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {device}: expected cpu or cuda")
    if asked.type == "cuda" and (asked.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {device}: torch finds no such device here; use cpu")
    pipe = open_published(folder)
    if not pipe.fitted:
        raise DataError(f"{folder} holds a model that was never trained; fit it first")
    return pipe if device == "cpu" else pipe.to(device)


# ------------------------------------------------------------------------------------- one scan


def prepared(pipe: LDAE | AutoencoderAlone, volume: Volume) -> Prepared:
    """A scan on the model's grid with the way back; errors as `LDAE.prepare`."""
    if pipe.preparation is not None:
        return prepare_scan(volume, pipe.preparation)
    return Prepared(
        volume=pipe.prepare(volume), affine=volume.affine, shape=volume.shape, low=0.0, high=1.0
    )


def flags_with(volume: Volume, made: Prepared) -> str:
    """Names of what is unusual about a scan, with what the grid padded or cropped."""
    from neurodiff.datasets.brain_mri_flags import Flag, flag_names, flags_of

    found = flags_of(volume)
    for note in made.notes:
        found.append(Flag("cropped" if "cropped" in note else "padded", note))
    return flag_names(found)


def source_of(row: Mapping[str, Any], volume: Volume | None = None) -> str:
    """Fingerprint of a scan: SHA-256 of its file, or of its values where it has none; "" where
    neither is at hand."""
    path = Path(row["path"] or "")
    if row["path"] and path.is_file():
        other = {".img": ".hdr", ".hdr": ".img"}.get(path.suffix)
        pair = [path, *([path.with_suffix(other)] if other else [])]
        return "+".join(sha256_of(one) for one in pair if one.is_file())
    return "" if volume is None else volume.fingerprint()


def encode_scan(
    pipe: LDAE, row: Mapping[str, Any], volume: Volume, steps: int | None = None
) -> EncodedScan:
    """Prepare a scan, and find its code and the noise it comes from; errors as `LDAE.prepare`."""
    made = prepared(pipe, volume)
    values = made.volume.data[None]
    code = pipe.codes(values)
    return EncodedScan(
        row=row,
        source=source_of(row, volume),
        flags=flags_with(volume, made),
        made=made,
        clipped=float(((volume.data < made.low) | (volume.data > made.high)).mean()),
        volume=values,
        code=code,
        noise=pipe.noise(pipe.latents(values), code, steps=steps),
    )


def decoded(pipe: LDAE, code: np.ndarray, noise: np.ndarray, steps: int | None) -> np.ndarray:
    """Values (1, i, j, k) of one code and noise.

    Raises
    ------
    DataError : a code so far from those of scans that the walk ends in NaN.
    """
    latents = (
        pipe.decode(code, noise, steps=steps) if np.isfinite(code).all() else np.full(1, np.nan)
    )
    if not np.isfinite(latents).all():
        raise DataError(
            "the code lies so far from those of scans that the walk from it ends in NaN or "
            "infinity; give a smaller amount, or look at the table of codes"
        )
    return pipe.images(latents)[0]


# ------------------------------------------------------------------------------------- writing


def made_by(pipe: LDAE | AutoencoderAlone, verb: str, walk: Walk) -> dict[str, Any]:
    """What every sidecar says of the model; what has to be the same for a result to be kept."""
    recipe = getattr(pipe, "recipe", None)  # an autoencoder alone walks nowhere
    return {
        "verb": verb,
        "model": pipe.identity,
        "recipe": pipe.name,
        "protocol": pipe.protocol,
        "steps": None if recipe is None else walk.steps or recipe.sampling.steps,
    }


def is_written(stem: Path, record: Mapping[str, Any], parts: tuple[str, ...]) -> bool:
    """Whether files of ``stem`` were made under the same record; a broken sidecar counts as not."""
    beside = stem.with_name(stem.name + ".json")
    if not beside.is_file() or not all((stem.with_name(stem.name + p)).is_file() for p in parts):
        return False
    try:
        return read_json(beside).get("made") == _as_json(record)
    except (DataError, AttributeError):
        return False


def write_changed(
    stem: Path,
    scan: EncodedScan,
    values: np.ndarray,
    unchanged: np.ndarray,
    record: Mapping[str, Any],
    notes: tuple[str, ...] = (),
) -> None:
    """``<stem>.nii.gz`` on the model's grid, ``<stem>_change.nii.gz`` at the scan's own voxels,
    and last ``<stem>.json``."""
    grid = scan.made.volume
    change = scan.made.to_scan_space(grid.with_data(values - unchanged))
    grid.with_data(values).save(stem.with_name(stem.name + ".nii.gz"))
    change.save(stem.with_name(stem.name + "_change.nii.gz"))
    seen = np.abs(unchanged - scan.volume[0])
    about = {
        "made": dict(record),
        "neurodiff": package_version(),
        "written": now(),
        "scan": _known(scan.row),
        "flags": scan.flags,
        "image": {
            "grid": list(grid.shape),
            "affine": grid.affine,
            "values": "0 to 1; 0 and 1 are low and high of the scan",
            "low": scan.made.low,
            "high": scan.made.high,
        },
        "change": {
            "what": "changed minus unchanged reconstruction from the same noise, so that what the "
            "model loses anyway cancels",
            "grid": list(scan.made.shape),
            "affine": scan.made.affine,
            "resampling": "linear, from the model's grid to the scan's own voxels; 0 outside the "
            "model's field of view",
            "values": "shares of high - low",
            "largest": float(np.abs(change.data).max()),
        },
        "prepared": list(scan.made.notes),
        "notes": list(notes),
        "cannot be restored": lost_of(scan, float(seen.mean())),
    }
    write_json(stem.with_name(stem.name + ".json"), about)


def lost_of(scan: EncodedScan, error: float) -> list[str]:
    """What the written image cannot show, in sentences."""
    cropped = [note for note in scan.made.notes if "cropped" in note]
    lines = [
        f"detail that the autoencoder lost: the unchanged reconstruction differs from the prepared "
        f"scan by {error:.4f} of its range on average",
        *WHAT_IS_LOST[:1],
        f"{WHAT_IS_LOST[1]}{': ' + '; '.join(cropped) if cropped else ' (nothing was cropped)'}",
        f"intensities outside {scan.made.low:g} to {scan.made.high:g}, which scaling clipped "
        f"({scan.clipped:.2%} of the scan's voxels)",
    ]
    if "skull" in scan.flags.split(", "):
        lines.append("the skull: the scan has one, and the model was made for scans without")
    else:
        lines.append("the skull and everything else outside the brain, where it was taken away")
    return lines


def write_failed(folder: Path, failed: Failures) -> Path:
    """``failed.csv`` of scan, path, reason; an older one goes where nothing failed."""
    path = folder / "failed.csv"
    if failed:
        write_csv(path, pd.DataFrame(failed, columns=list(LEFT_OUT)))
    else:
        path.unlink(missing_ok=True)
    return path


def close_run(folder: Path, failed: Failures, scans: Cohort, done: str, progress: Progress) -> None:
    """List what failed and what the cohort left out, and raise where a scan failed."""
    count = len(scans)
    left = list(scans.left_out.itertuples(index=False, name=None))  # type: ignore[union-attr]
    listed = write_failed(folder, [*failed, *left])
    if left:
        progress.say(
            f"{len(left)} {'was' if len(left) == 1 else 'were'} left out before, first "
            f"{left[0][0]}: {left[0][2]} (all in {listed})"
        )
    if not failed:
        return
    for scan, _, reason in failed[:5] if count > 1 else []:
        progress.say(f"failed: {scan}: {reason}")
    if len(failed) == count:
        what = failed[0][2] if count == 1 else f"none of {count} scans could be {done}; first: "
        raise DataError(what if count == 1 else f"{what}{failed[0][2]} ({listed})")
    raise NeurodiffError(
        f"{len(failed)} of {count} scans could not be {done}, first {failed[0][0]}: {failed[0][2]} "
        f"(all in {listed}); the others are done: mend these and start the same command again"
    )


def require_folder(folder: Path) -> None:
    """Make the folder, before hours are spent on what could not be written to it.

    Raises
    ------
    DataError : it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise write_error(folder, error) from None


def file_name(scan: str) -> str:
    """A scan's id as the name of a file; signs that a file system may not take are escaped."""
    return re.sub(r"[^A-Za-z0-9_.+-]|^\.", lambda m: f"%{ord(m[0]):x}", scan) or "%"


def affine_text(affine: np.ndarray) -> str:
    """The upper three rows, for a cell of a table."""
    return " ".join(repr(float(value)) for value in np.asarray(affine)[:3].ravel())


def affine_of(text: Any) -> np.ndarray | None:
    """What `affine_text` wrote; None for anything else."""
    try:
        numbers = [float(part) for part in str(text).split()]
    except ValueError:
        return None
    if len(numbers) != 12 or not np.isfinite(numbers).all():
        return None
    return np.vstack([np.reshape(numbers, (3, 4)), [0, 0, 0, 1]])


def _known(row: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("scan", "subject", "session", "age", "diagnosis")
    return {key: row[key] for key in keys if key in row} | {"file": Path(row["path"] or "").name}


def _as_json(record: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(plain(record)))
