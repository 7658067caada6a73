"""Pictures of scans for the page: slices, and where an edit or a year changed something."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from neurodiff.analysis.report import PictureGrid
from neurodiff.core.cohort import Cohort

if TYPE_CHECKING:
    from neurodiff.pipelines.ldae import LDAE

SHOWN = 6  # scans a grid
HEIGHT = 264  # pixels of a slice
ON_PAGE = {"width": 214, "height": 132}
FULL_CHANGE = 0.3  # of the range of a scan: the deepest colour of a map of changes
COOL, WARM = np.array([33, 78, 152.0]), np.array([178, 34, 34.0])


def slice_picture(volume: np.ndarray) -> Image.Image:
    """An axial slice through the ventricles beside a coronal one, grey, left of the person left.

    volume : (1, i, j, k) or (i, j, k) in [0, 1], axes to the right, front and top (RAS).
    """
    values = np.clip(_planes(volume), 0, 1) * 255
    return _enlarged(Image.fromarray(values.astype(np.uint8)))


def change_picture(change: np.ndarray, *, full: float = FULL_CHANGE) -> Image.Image:
    """The same slices of a difference: red is brighter, blue darker, white no change."""
    share = np.clip(_planes(change) / full, -1, 1)[..., None]
    colour = np.where(share > 0, WARM, COOL)
    values = 255 + np.abs(share) * (colour - 255)
    return _enlarged(Image.fromarray(values.astype(np.uint8)))


def reconstructed_grid(
    pipe: LDAE, cohort: Cohort, volumes: np.ndarray, *, steps: int | None, seed: int
) -> PictureGrid:
    """First scans, by the autoencoder alone, from code and noise, and from the code."""
    rows = _first_rows(cohort)
    shown = volumes[rows]
    scans = [(cohort.row(k)["subject"], cohort.ids[k]) for k in rows]
    ways = ("autoencoder", "encoded", "semantic")
    made = [pipe.reconstruct(shown, how, scans=scans, steps=steps, seed=seed) for how in ways]
    items = [
        (cohort.ids[k], [slice_picture(v) for v in (shown[n], *(m[n] for m in made))], "")
        for n, k in enumerate(rows)
    ]
    return PictureGrid(
        title="Scans and what the model makes of them",
        why="First scans of the first people in the order of the table, not chosen by result. "
        "Axial and coronal slice through the ventricles.",
        names=("scan", "autoencoder (ceiling)", "code and its own noise", "code, drawn noise"),
        items=items,
        **ON_PAGE,
    )


def edited_grid(
    pipe: LDAE,
    cohort: Cohort,
    volumes: np.ndarray,
    direction: str,
    amount: float,
    *,
    steps: int | None,
) -> PictureGrid:
    """First scans moved against and along a direction, and where that changed them."""
    rows = _first_rows(cohort)
    shown = volumes[rows]
    codes = pipe.codes(shown)
    noise = pipe.noise(pipe.latents(shown), codes, steps=steps)
    made = [
        pipe.images(pipe.decode(pipe.move(codes, direction, a), noise, steps=steps))
        for a in (-amount, 0.0, amount)
    ]
    items = []
    for n, k in enumerate(rows):
        pictures = [slice_picture(m[n]) for m in made]
        items.append((cohort.ids[k], [*pictures, change_picture(made[2][n] - made[1][n])], ""))
    return PictureGrid(
        title=f"Edits along {direction}",
        why=f"The same scans. Change: amount {amount:g} minus unedited; red brighter, blue darker, "
        f"deepest at {FULL_CHANGE:g} of the range.",
        names=(f"{-amount:g}", "unedited", f"+{amount:g}", "change"),
        items=items,
        **ON_PAGE,
    )


def filled_in_grid(
    pipe: LDAE,
    cohort: Cohort,
    volumes: np.ndarray,
    *,
    steps: int | None,
    truth: Callable[[str, float], np.ndarray] | None = None,
) -> PictureGrid | None:
    """Middle visits of the widest triples, filled in, and the change from the first visit."""
    triples = cohort.triples().sort_values("gap", ascending=False, kind="stable")
    triples = triples.drop_duplicates("subject").head(SHOWN)
    if not len(triples):
        return None
    place = {scan: k for k, scan in enumerate(cohort.ids)}
    items = []
    for row in triples.to_dict("records"):
        ends = volumes[[place[row["first"]], place[row["last"]]]]
        codes = pipe.codes(ends)
        noise = pipe.noise(pipe.latents(ends), codes, steps=steps)
        between = pipe.between(codes[:1], codes[1:], noise[:1], noise[1:], float(row["t"]))
        found = pipe.images(pipe.decode(*between, steps=steps))[0]
        start = pipe.images(pipe.decode(codes[:1], noise[:1], steps=steps))[0]
        middle = volumes[place[row["middle"]]]
        true = middle - ends[0]
        if truth is not None:
            months = [float(cohort.row(row[name])["session"]) for name in ("middle", "first")]
            brains = [truth(row["subject"], m) for m in months]
            true = brains[0] - brains[1]
        items.append(
            (
                f"{row['first']} to {row['last']}",
                [
                    slice_picture(ends[0]),
                    slice_picture(middle),
                    slice_picture(found),
                    change_picture(true, full=FULL_CHANGE / 2),
                    change_picture(found - start, full=FULL_CHANGE / 2),
                ],
                f"filled in at {row['t']:.2f} of {row['gap']:g} months",
            )
        )
    return PictureGrid(
        title="A visit that is missing, filled in",
        why="The widest pair of visits of the first people. True change: "
        + ("of the brain itself, without noise." if truth is not None else "of the scans."),
        names=("first visit", "true middle", "filled in", "true change", "predicted change"),
        items=items,
        **ON_PAGE,
    )


def _first_rows(cohort: Cohort) -> np.ndarray:
    ids = cohort.first_scans().ids[:SHOWN]
    place = {scan: k for k, scan in enumerate(cohort.ids)}
    return np.array([place[scan] for scan in ids])


def _planes(volume: np.ndarray) -> np.ndarray:
    """Axial and coronal slice side by side, front and top up: (rows, columns)."""
    values = np.asarray(volume, np.float32).reshape(np.shape(volume)[-3:])
    _, j, k = values.shape
    axial = values[:, :, round(0.54 * k)].T[::-1]  # (j, i)
    coronal = values[:, round(0.50 * j), :].T[::-1]  # (k, i)
    height = max(len(axial), len(coronal))
    parts = [
        np.pad(part, ((pad := (height - len(part)) // 2, height - len(part) - pad), (0, 0)))
        for part in (axial, coronal)
    ]
    return np.concatenate(parts, axis=1)


def _enlarged(picture: Image.Image) -> Image.Image:
    width = round(picture.width * HEIGHT / picture.height)
    return picture.resize((width, HEIGHT), Image.Resampling.BILINEAR)
