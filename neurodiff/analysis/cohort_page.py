"""A page to look through a cohort: slices of each scan, its flags, and what was left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from neurodiff.analysis import viewer
from neurodiff.analysis.page import templates
from neurodiff.core.atomic import atomic_write, write_csv
from neurodiff.core.cohort import Cohort
from neurodiff.core.errors import UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.seeds import item_seed
from neurodiff.core.volume import Volume
from neurodiff.datasets.brain_mri_flags import Flag, Stage, flag_names, flags_of, tissue_of

PLANES = ("sagittal", "coronal", "axial")
SIDE = 112  # pixels of a slice's longer side


def cohort_page(
    cohort: Cohort,
    path: str | Path,
    *,
    stage: Stage = "scan",
    shown: int = 200,
    seed: int = 0,
    progress: Progress = SILENT,
) -> pd.DataFrame:
    """Write the page (HTML, one file) and a table of flags beside it (CSV).

    Every scan is opened and flagged. Where there are more than ``shown``, the page shows those
    with flags first, then a draw by ``seed``; the table has all.

    Returns
    -------
    Columns scan, flags (names, ``""`` where there is none), text and path, a row for each scan;
    a scan that cannot be read has the flag ``failed`` and the reason as its text.

    Raises
    ------
    UsageError : a name that does not end in .html, or nothing to show.
    DataError : the page cannot be written.
    """
    path = Path(path)
    if path.suffix != ".html":
        raise UsageError(f"{path} does not end in .html")
    if shown < 1:
        raise UsageError(f"{shown} scans were to be shown; give a number from 1")
    found, failed = cohort.each(
        lambda row, volume: (flags_of(volume, stage=stage), _images(volume)), progress=progress
    )
    table = _table(cohort, {scan: flags for scan, (flags, _) in found.items()}, failed)
    order = sorted(
        cohort.ids,
        key=lambda scan: (
            scan in found and not found[scan][0],
            item_seed(seed, subject=scan, stimulus="", stage="cohort page"),
        ),
    )
    chosen = set(order[:shown])
    cards = [
        _card(cohort.row(number), found.get(scan), failed)
        for number, scan in enumerate(cohort.ids)
        if scan in chosen
    ]
    page = _render(cohort, table, cards, failed)
    with atomic_write(path) as file:
        file.write(page.encode("utf-8"))
    write_csv(path.with_suffix(".csv"), table)
    return table


def slices(volume: Volume) -> list[Image.Image]:
    """Sagittal, coronal and axial slice through the middle of the tissue, up being up.

    Grey from the background to the 99.5th percentile; pixels are square in mm.
    """
    upright = volume.reoriented("RAS")
    values = upright.data[0]
    low, high = float(values.min()), float(np.percentile(values, 99.5))
    grey = np.clip((values - low) / ((high - low) or 1.0), 0, 1)
    tissue = tissue_of(values)
    middle = np.argwhere(tissue).mean(axis=0) if tissue.any() else np.array(values.shape) / 2
    pictures = []
    for axis in range(3):
        plane = np.take(grey, int(middle[axis]), axis=axis)
        wide, high_mm = (mm for a, mm in enumerate(upright.extent) if a != axis)
        scale = SIDE / max(wide, high_mm)
        size = (max(1, round(wide * scale)), max(1, round(high_mm * scale)))
        picture = Image.fromarray((255 * plane.T[::-1]).astype(np.uint8))
        pictures.append(picture.resize(size, Image.Resampling.BILINEAR))
    return pictures


def _images(volume: Volume) -> list[tuple[str, str]]:
    """Data addresses and planes; small, because they are kept of every scan."""
    return [
        (viewer.thumbnail_uri(picture, max_side=SIDE), plane)
        for picture, plane in zip(slices(volume), PLANES, strict=True)
    ]


def _table(cohort: Cohort, flags: dict[str, list[Flag]], failed: pd.DataFrame) -> pd.DataFrame:
    reasons = dict(zip(failed["scan"], failed["reason"], strict=True))
    rows = []
    for scan, path in zip(cohort.ids, cohort.scans["path"], strict=True):
        if scan in reasons:
            rows.append((scan, "failed", reasons[scan], path))
        else:
            text = "; ".join(flag.text for flag in flags[scan])
            rows.append((scan, flag_names(flags[scan]), text, path))
    return pd.DataFrame(rows, columns=["scan", "flags", "text", "path"])


def _card(
    row: pd.Series, found: tuple[list[Flag], list[tuple[str, str]]] | None, failed: pd.DataFrame
) -> dict[str, Any]:
    words = [str(row[column]) for column in ("diagnosis", "sex", "site") if row[column] is not None]
    if row["age"] == row["age"]:
        words.insert(0, f"{row['age']:.1f} years")
    if row["session"] == row["session"]:
        words.append(f"month {row['session']:g}")
    if found is None:
        texts = failed.loc[failed["scan"] == row["scan"], "reason"].tolist()
        return {"scan": row["scan"], "words": ", ".join(words), "flags": texts, "images": []}
    flags, images = found
    return {
        "scan": row["scan"],
        "words": ", ".join(words),
        "flags": [flag.text for flag in flags],
        "images": images,
    }


def _render(
    cohort: Cohort, table: pd.DataFrame, cards: list[dict[str, Any]], failed: pd.DataFrame
) -> str:
    from importlib.metadata import version

    environment = templates()
    lost = pd.concat([frame for frame in (cohort.left_out, failed) if frame is not None])
    flagged = int((table["flags"] != "").sum())
    facts = [*cohort.facts().items(), ("with a flag", f"{flagged} of {len(table)}")]
    if len(cards) < len(table):
        shown = f"{len(cards)} of {len(table)} scans: flagged ones first, then a seeded draw."
    else:
        shown = "All scans, in the order of the table."
    return environment.get_template("cohort_page.jinja").render(
        title=f"Cohort {cohort.name}".strip(),
        data=cohort,  # the style sheet asks it whether it is simulated
        facts=facts,
        notes=cohort.notes,
        counts=_counts(table),
        shown=shown,
        cards=cards,
        left_out=lost.itertuples(index=False, name=None) if len(lost) else None,
        version=version("neurodiff"),
    )


def _counts(table: pd.DataFrame) -> list[tuple[str, int, str]]:
    """Each flag with the number of scans that have it and the text of the first."""
    counts: dict[str, tuple[int, str]] = {}
    for scan, flags, text, _ in table.itertuples(index=False, name=None):
        for name in filter(None, flags.split(", ")):
            n, example = counts.get(name, (0, f"{scan}: {text}"))
            counts[name] = (n + 1, example)
    return [(name, n, example) for name, (n, example) in sorted(counts.items())]
