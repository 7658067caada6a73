"""What decoding into images returns: one picture a trial and sample, and a list of them."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from neurodiff.core.atomic import atomic_write

if TYPE_CHECKING:
    import PIL.Image


@dataclass(frozen=True)
class Picture:
    """One decoded trial. ``init_image`` is the low-level picture that the generator started from,
    where there was one; both are RGB."""

    subject: str
    stimulus: str
    repeat: int
    sample: int
    image: PIL.Image.Image
    init_image: PIL.Image.Image | None = None


class Pictures(list[Picture]):
    """What ``predict`` returns: a list that can be saved and looked at."""

    def save(self, folder: str | Path) -> list[Path]:
        """One PNG a picture, ``subject_stimulus_r<repeat>_s<sample>.png``; an existing file of
        that name is replaced as a whole.

        Returns
        -------
        The paths that were written.
        """
        paths = []
        for one in self:
            stem = f"{one.subject}_{one.stimulus}_r{one.repeat}_s{one.sample}"
            path = Path(folder) / f"{re.sub(r'[^A-Za-z0-9._-]', '-', stem)}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(png_bytes(one.image))
            paths.append(path)
        return paths

    def show(self, index: int = 0) -> PIL.Image.Image:
        """One picture; a notebook draws it."""
        return self[index].image


def png_bytes(image: PIL.Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def picture_sheet(*rows: Sequence[PIL.Image.Image], gap: int = 2) -> PIL.Image.Image:
    """Rows of pictures on one white sheet, such as the true, the low-level and the decoded ones.

    Raises
    ------
    ValueError : there is no picture.
    """
    import PIL.Image

    if not any(rows):
        raise ValueError("there is no picture to show")
    width = max(one.width for row in rows for one in row) + gap
    height = max(one.height for row in rows for one in row) + gap
    columns = max(len(row) for row in rows)
    sheet = PIL.Image.new("RGB", (columns * width - gap, len(rows) * height - gap), "white")
    for k, row in enumerate(rows):
        for j, one in enumerate(row):
            sheet.paste(one.convert("RGB"), (j * width, k * height))
    return sheet


def as_array(images: Sequence[PIL.Image.Image]) -> UInt8[np.ndarray, "n h w 3"]:
    """Pictures of one size as an array.

    Raises
    ------
    ValueError : there is none, or their sizes differ.
    """
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise ValueError(f"{len(images)} pictures of the sizes {sorted(sizes)}; expected one size")
    return np.stack([np.asarray(image.convert("RGB")) for image in images])
