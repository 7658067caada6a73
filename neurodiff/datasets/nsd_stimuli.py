"""Pictures and captions of the Natural Scenes Dataset, read in place, one at a time.

The pictures are one HDF5 dataset of 39.6 GB, ``imgBrick`` uint8 (73000, 425, 425, 3); the captions
a ``.npy`` of text (73000, 5), empty where a picture has fewer.  Row n is picture n, from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.nsd_betas import opened_hdf5
from neurodiff.datasets.nsd_files import CAPTIONS, STIMULI


def stimulus_id(number: int) -> str:
    """``"nsd-00013"`` for picture 13, counted from 0 as in the column nsdId of NSD's table."""
    return f"nsd-{number:05d}"


def open_stimuli(root: Path, pictures: Sequence[int]) -> Stimuli:
    """Stimuli of these pictures, in this order; captions are empty where the file is not there.

    Raises
    ------
    DataError : a picture that the file of captions does not reach, or a broken file of captions.
    """
    numbers = [int(number) for number in pictures]
    table: dict[str, Any] = {"id": [stimulus_id(number) for number in numbers]}
    if (root / CAPTIONS).is_file():
        table["captions"] = read_captions(root / CAPTIONS, numbers)
        table["caption"] = [texts[0] if texts else "" for texts in table["captions"]]
    brick = root / STIMULI
    return Stimuli(
        pd.DataFrame(table), None, lambda name: read_picture(brick, int(name.split("-")[-1]))
    )


def read_picture(path: Path, number: int, *, dataset: str = "imgBrick") -> Any:
    """One picture of the file as an RGB image, without reading the others.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : another dataset, type or shape, or a number beyond the last picture.
    """
    import PIL.Image

    with opened_hdf5(path) as file:
        brick = picture_brick(path, file, dataset)
        if not 0 <= number < len(brick):
            raise DataError(
                f"picture {number} is not in {path}, which has {len(brick)}, counted from 0; use "
                "the file and the design of the same release"
            )
        values = np.asarray(brick[number])
    return PIL.Image.fromarray(np.repeat(values[..., None], 3, 2) if values.ndim == 2 else values)


def picture_brick(path: Path, file: Any, dataset: str = "imgBrick") -> Any:
    """The dataset of pictures in an open file, after a check of type and shape."""
    brick = file.get(dataset)
    if brick is None or not hasattr(brick, "shape"):
        raise DataError(f"{path} has no dataset {dataset!r} but {', '.join(file) or 'nothing'}")
    if brick.dtype != np.uint8 or brick.ndim not in (3, 4) or brick.shape[3:] not in ((3,), ()):
        raise DataError(
            f"{dataset} of {path} is {brick.dtype} {brick.shape}; expected uint8 (pictures, "
            "height, width, 3)"
        )
    return brick


def read_captions(path: Path, pictures: Sequence[int]) -> list[tuple[str, ...]]:
    """Captions of these pictures without the empty ones; the rest of the file is not read.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : no text of shape (pictures, captions), or a picture beyond its last row.
    """
    texts = mapped_text(path)
    last = max(pictures, default=0)
    if last >= len(texts) or min(pictures, default=0) < 0:
        raise DataError(
            f"picture {last} is not in {path}, which has captions of {len(texts)}, counted from 0"
        )
    return [
        tuple(text for text in (str(value).strip() for value in texts[number]) if text)
        for number in pictures
    ]


def mapped_text(path: Path) -> np.ndarray:
    """Text (pictures, captions) of a ``.npy`` file, mapped.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : truncated, or anything but text of two axes.
    """
    if not path.is_file():
        raise MissingDataError(f"{path} does not exist; get the curated captions")
    try:
        texts = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # the header is Python text, which breaks in many ways
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} is not a whole .npy file of text ({first}); get it again") from (
            None
        )
    if not isinstance(texts, np.ndarray) or texts.dtype.kind != "U" or texts.ndim != 2:
        found = f"{texts.dtype} {texts.shape}" if isinstance(texts, np.ndarray) else "an archive"
        raise DataError(f"{path} holds {found}; expected text (pictures, captions)")
    return texts
