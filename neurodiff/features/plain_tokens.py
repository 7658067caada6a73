"""Tokens of captions and pictures that need no weights: words by their hash, patches by their axes.

For the smallest recipe and for tests. In CLIP's layout, like `neurodiff.features.small_tokens`:
token 0 stands for the whole item and has norm 1, and all tokens of an item are divided alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.features.clip_tokens import flat_captions, rgb_pictures

_CELL = 8  # pixels on a side of a patch after resizing


class WordTokens:
    """Captions -> tokens (n, tokens, width): a random direction for each word, the same for ever.

    Token 0 is the mean over words; then the first words in order, then zeros.
    """

    name = "words"

    def __init__(self, *, tokens: int = 8, width: int = 32) -> None:
        if tokens < 2 or width < 2:
            raise UsageError(f"{tokens} tokens of {width} numbers; give at least 2 of each")
        self.text_shape = (tokens, width)

    def text(self, captions: Sequence[Sequence[str]]) -> Float[np.ndarray, "n t d"]:
        """Tokens of each picture's captions, averaged over them, float32.

        Raises
        ------
        UsageError : a picture without captions, an empty caption, or plain strings.
        """
        flat, owner = flat_captions(captions)
        counts = np.bincount(owner, minlength=len(captions)).astype(np.float32)
        out = np.zeros((len(captions), *self.text_shape), np.float32)
        np.add.at(out, owner, np.stack([self._tokens(text) for text in flat]))
        return out / counts[:, None, None]

    def null_text(self) -> Float[np.ndarray, "t d"]:
        """Tokens of the empty caption."""
        return self._tokens("")

    def _tokens(self, text: str) -> np.ndarray:
        tokens, width = self.text_shape
        words = re.findall(r"\w+", text.lower()) or [""]
        vectors = np.stack([_direction(word, width) for word in words])
        whole = vectors.mean(axis=0)
        out = np.zeros(self.text_shape, np.float32)
        out[0] = whole
        out[1 : 1 + len(words)] = vectors[: tokens - 1]
        return out / np.float32(np.linalg.norm(whole))


class PatchTokens:
    """Pictures -> tokens (n, 1 + grid * grid, width): colours of patches on principal axes.

    Token 0 is the whole picture at 8 x 8 pixels, the others are the cells of the grid, 8 x 8 pixels
    each. `fit` takes the axes from training pictures.
    """

    name = "patches"

    def __init__(self, *, grid: int = 2, width: int = 32) -> None:
        if grid < 1 or not 1 <= width <= 3 * _CELL**2:
            raise UsageError(f"a grid of {grid} and a width of {width}; give 1 or more, 1 to 192")
        self.grid, self.width = grid, width
        self.vision_shape = (1 + grid**2, width)
        self._mean: np.ndarray | None = None
        self._axes: np.ndarray | None = None

    def fit(self, images: Sequence[Image.Image] | np.ndarray) -> PatchTokens:
        """Centre and axes from training pictures; returns itself.

        Raises
        ------
        DataError : too few pictures for the width.
        """
        raw = self._raw(images).reshape(-1, 3 * _CELL**2).astype(np.float64)
        if len(raw) <= self.width:
            raise DataError(f"{len(raw)} patches are too few for {self.width} axes")
        mean = raw.mean(axis=0)
        _, vectors = np.linalg.eigh((raw - mean).T @ (raw - mean))
        axes = vectors[:, ::-1][:, : self.width].T
        axes = axes * np.sign(axes[np.arange(len(axes)), abs(axes).argmax(axis=1)])[:, None]
        # as it will be read back: another layout in memory would change the last bits of products
        self._mean, self._axes = mean.astype(np.float32), np.ascontiguousarray(axes, np.float32)
        return self

    def arrays(self) -> dict[str, np.ndarray]:
        """What `fit` learned, to be saved: ``mean`` (192,) and ``axes`` (width, 192)."""
        mean, axes = self._fitted()
        return {"mean": mean, "axes": axes}

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> PatchTokens:
        """Take what another one's `arrays` gave; returns itself."""
        self._mean, self._axes = (np.asarray(arrays[name], np.float32) for name in ("mean", "axes"))
        return self

    def vision(self, images: Sequence[Image.Image] | np.ndarray) -> Float[np.ndarray, "n v d"]:
        """Tokens of PIL pictures in RGB or of a uint8 array (n, h, w, 3), float32."""
        mean, axes = self._fitted()
        tokens = (self._raw(images) - mean) @ axes.T
        return tokens / np.maximum(np.linalg.norm(tokens[:, :1], axis=-1, keepdims=True), 1e-6)

    def null_vision(self) -> Float[np.ndarray, "v d"]:
        """Tokens of a mid-grey picture."""
        return self.vision(np.full((1, _CELL, _CELL, 3), 127, np.uint8))[0]

    def _fitted(self) -> tuple[np.ndarray, np.ndarray]:
        if self._mean is None or self._axes is None:
            raise UsageError("the tokens have no axes yet; fit them on the training pictures")
        return self._mean, self._axes

    def _raw(self, images: Sequence[Image.Image] | np.ndarray) -> np.ndarray:
        side = self.grid * _CELL
        rows = []
        for picture in rgb_pictures(images):
            whole = np.asarray(picture.resize((_CELL, _CELL), Image.Resampling.BOX))
            fine = np.asarray(picture.resize((side, side), Image.Resampling.BOX))
            cells = fine.reshape(self.grid, _CELL, self.grid, _CELL, 3).swapaxes(1, 2)
            rows.append(np.concatenate([whole.reshape(1, -1), cells.reshape(self.grid**2, -1)]))
        return np.stack(rows).astype(np.float32) / 127.5 - 1


def _direction(word: str, width: int) -> np.ndarray:
    seed = item_seed(0, subject="", stimulus=word, stage="word direction")
    return (numpy_generator(seed).standard_normal(width) / np.sqrt(width)).astype(np.float32)
