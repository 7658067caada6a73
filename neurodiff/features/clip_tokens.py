"""CLIP's tokens of captions and pictures, normalised as Brain-Diffuser and Versatile Diffusion do.

    captions -> text tokens (n, 77, 768): every token projected, divided by the norm of the
    projected end-of-text token, then the mean over a picture's captions
    pictures -> vision tokens (n, 257, 768): layer norm and projection of every token, divided by
    the norm of the first

The networks are transformers' own, from a local folder; nothing is downloaded. Pictures are
prepared here, from the numbers in the folder: the processors of transformers changed twice what
they do to pictures in floats, which made the second stage of the released code fail (blurred or
black pictures). Only PIL pictures and uint8 arrays are taken, so that nothing is rescaled twice.

References
----------
Ozcelik & VanRullen 2023, Scientific Reports 13.  Radford et al. 2021, ICML (CLIP).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.safe_io import read_json

TEXT_SHAPE, VISION_SHAPE = (77, 768), (257, 768)  # of CLIP ViT-L/14
DETOUR = 512  # pixels: the released code enlarges NSD's 425 before CLIP makes 224 of them


@dataclass(frozen=True, kw_only=True)
class CLIPPixels:
    """How pictures become CLIP's input: ``size`` pixels on a side, mean and SD of each colour."""

    size: int = 224
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    sd: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    detour: int | None = DETOUR

    def __call__(self, image: Image.Image) -> Float[np.ndarray, "3 size size"]:
        """Bicubic, the shorter side to ``size``, the middle cut out, values to mean 0 and SD 1.

        With ``detour`` the picture is first resized to that square, bilinear.
        """
        if self.detour is not None:
            square = (self.detour, self.detour)
            image = image.resize(square, Image.Resampling.BILINEAR)
        short = min(image.size)
        width, height = (int(self.size * side / short) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        image = image.crop((left, top, left + self.size, top + self.size))
        return self.normalised(np.asarray(image, np.float32) / 255)

    def normalised(self, values: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "3 h w"]:
        """Values from 0 to 1 with each colour's mean and SD taken off, colours first."""
        mean, sd = np.array(self.mean, np.float32), np.array(self.sd, np.float32)
        return np.ascontiguousarray(((values - mean) / sd).transpose(2, 0, 1), np.float32)


class CLIPTokens:
    """Captions and pictures -> tokens; made by `from_folder`.

    Attributes
    ----------
    text_shape, vision_shape : (tokens, width) of an item.
    pixels : how a picture is prepared.
    name : of the folder, to stand beside the numbers that were made with it.
    """

    def __init__(
        self,
        text: tuple[Any, Any],
        vision: tuple[Any, Any],
        tokenizer: Any,
        *,
        pixels: CLIPPixels,
        name: str,
        device: str = "cpu",
    ) -> None:
        self.pixels, self.name, self.device = pixels, name, device
        self._tokenizer = tokenizer
        self._text, self._text_projection = (m.eval().to(device) for m in text)
        self._vision, self._visual_projection = (m.eval().to(device) for m in vision)
        self.text_shape = (
            int(self._text.config.max_position_embeddings),
            int(self._text_projection.out_features),
        )
        grid = int(self._vision.config.image_size) // int(self._vision.config.patch_size)
        self.vision_shape = (grid**2 + 1, int(self._visual_projection.out_features))

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        detour: int | None = DETOUR,
        any_size: bool = False,
        device: str = "cpu",
    ) -> CLIPTokens:
        """CLIP from its own folder, or from that of Versatile Diffusion.

        Parameters
        ----------
        folder : with ``config.json``, weights, tokenizer and ``preprocessor_config.json`` of CLIP
            ViT-L/14; or with the folders ``text_encoder``, ``tokenizer``, ``image_encoder`` and
            ``image_feature_extractor``.
        detour : side of the square that a picture is resized to first (bilinear), 512 in the
            released code; None goes to CLIP's own size at once.
        any_size : accept another CLIP than ViT-L/14.

        Raises
        ------
        MissingDataError : no such folder, or a part of it is not there.
        DataError : files that are broken, lack weights, do not belong together, or another CLIP.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise MissingDataError(f"{folder} is not a folder; give that of CLIP ViT-L/14")
        if (folder / "image_encoder").is_dir() or (folder / "text_encoder").is_dir():
            text, vision = _versatile_diffusion(folder)
            tokenizer, processor = folder / "tokenizer", folder / "image_feature_extractor"
        else:
            text, vision = _clip(folder)
            tokenizer = processor = folder
        made = cls(
            text,
            vision,
            _tokenizer(tokenizer),
            pixels=_pixels(processor, detour),
            name=folder.name,
            device=device,
        )
        made._require_consistent(folder)
        found = (made.text_shape, made.vision_shape)
        if not any_size and found != (TEXT_SHAPE, VISION_SHAPE):
            (t, d), (v, w) = found
            raise DataError(
                f"{folder} holds another CLIP than ViT-L/14: its tokens are {t} x {d} for text and "
                f"{v} x {w} for pictures, not 77 x 768 and 257 x 768; give the folder of ViT-L/14, "
                "or allow other sizes (any_size)"
            )
        return made

    def text(
        self, captions: Sequence[Sequence[str]], *, batch: int = 64
    ) -> Float[np.ndarray, "n t d"]:
        """Tokens of each picture's captions, averaged over them; float32.

        Parameters
        ----------
        captions : one sequence a picture, each with at least one caption; long ones are cut.

        Raises
        ------
        UsageError : a picture without captions, an empty caption, or plain strings.
        """
        out = np.zeros((len(captions), *self.text_shape), np.float32)
        flat, owner = flat_captions(captions)
        counts = np.bincount(owner, minlength=len(captions))
        for start in range(0, len(flat), batch):
            tokens = self._text_tokens(flat[start : start + batch])
            for k, one in zip(owner[start : start + batch], tokens, strict=True):
                out[k] += one / np.float32(counts[k])
        return out

    def vision(
        self, images: Sequence[Image.Image] | np.ndarray, *, batch: int = 16
    ) -> Float[np.ndarray, "n v d"]:
        """Tokens of pictures, float32.

        Parameters
        ----------
        images : PIL pictures in RGB, or a uint8 array (n, h, w, 3).

        Raises
        ------
        UsageError : values that are no uint8 (they would be rescaled twice), or no RGB.
        """
        pictures = rgb_pictures(images)
        out = np.zeros((len(pictures), *self.vision_shape), np.float32)
        for start in range(0, len(pictures), batch):
            part = np.stack([self.pixels(p) for p in pictures[start : start + batch]])
            out[start : start + batch] = self._vision_tokens(part)
        return out

    def null_text(self) -> Float[np.ndarray, "t d"]:
        """Tokens of the empty caption: text's part of the unconditional side of guidance."""
        return self._text_tokens([""])[0]

    def null_vision(self) -> Float[np.ndarray, "v d"]:
        """Tokens of a picture that is mid-grey (0.5 everywhere), the part of pictures."""
        grey = np.full((self.pixels.size, self.pixels.size, 3), 0.5, np.float32)
        return self._vision_tokens(self.pixels.normalised(grey)[None])[0]

    @torch.no_grad()
    def _text_tokens(self, texts: Sequence[str]) -> np.ndarray:
        ids = self._tokenizer(
            list(texts),
            padding="max_length",
            max_length=self.text_shape[0],
            truncation=True,
            return_tensors="pt",
        )["input_ids"].to(self.device)
        output = self._text(input_ids=ids)  # as published: without a mask of the padding
        tokens = self._text_projection(output.last_hidden_state)
        pooled = self._text_projection(output.pooler_output)  # of the end-of-text token
        return _divided(tokens, pooled)

    @torch.no_grad()
    def _vision_tokens(self, pixels: np.ndarray) -> np.ndarray:
        output = self._vision(pixel_values=torch.from_numpy(pixels).to(self.device))
        normed = self._vision.post_layernorm(output.last_hidden_state)
        tokens = self._visual_projection(normed)
        return _divided(tokens, tokens[:, 0])

    def _require_consistent(self, folder: Path) -> None:
        """Parts of one CLIP: the tokenizer's ids have embeddings, the picture is cut to its size.

        Raises
        ------
        DataError : they are not.
        """
        known = int(self._text.config.vocab_size)
        if len(self._tokenizer) > known:
            raise DataError(
                f"the tokenizer of {folder} has {len(self._tokenizer)} entries and its text "
                f"network {known}; they are of different models"
            )
        size = int(self._vision.config.image_size)
        if self.pixels.size != size:
            raise DataError(
                f"{folder} prepares pictures of {self.pixels.size} pixels and its network takes "
                f"{size}; they are of different models"
            )


def flat_captions(captions: Sequence[Sequence[str]]) -> tuple[list[str], np.ndarray]:
    """All captions in one list, and the number of the picture that each belongs to.

    Raises
    ------
    UsageError : a picture without captions, an empty caption, or plain strings.
    """
    if isinstance(captions, str) or any(isinstance(one, str) for one in captions):
        raise UsageError("captions are plain strings; give a sequence of captions for each picture")
    flat: list[str] = []
    owner: list[int] = []
    for k, texts in enumerate(captions):
        if not len(texts):
            raise UsageError(f"picture {k} has no caption; drop it, or use the null tokens")
        if any(not text.strip() for text in texts):
            raise UsageError(f"a caption of picture {k} is empty; drop that caption")
        flat += [str(text) for text in texts]
        owner += [k] * len(texts)
    return flat, np.array(owner, np.int64)


def rgb_pictures(images: Sequence[Image.Image] | np.ndarray) -> list[Image.Image]:
    """Pictures as PIL's, from PIL's or from a uint8 array (n, h, w, 3).

    Raises
    ------
    UsageError : an array of another number type or shape, or a picture that is not RGB.
    """
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8:
            raise UsageError(
                f"the pictures are {images.dtype}; give uint8 from 0 to 255 or PIL pictures "
                "(values that are rescaled already would be rescaled again)"
            )
        if images.ndim != 4 or images.shape[-1] != 3:
            raise UsageError(f"the pictures have shape {images.shape}; expected (n, h, w, 3)")
        return [Image.fromarray(one) for one in images]
    for k, image in enumerate(images):
        if isinstance(image, Image.Image):
            if image.mode != "RGB":
                raise UsageError(f"picture {k} is in mode {image.mode}; use .convert('RGB')")
            continue
        kind = getattr(image, "dtype", type(image).__name__)
        raise UsageError(
            f"picture {k} is no PIL picture but {kind}; give PIL pictures in RGB, or one uint8 "
            "array (n, h, w, 3)"
        )
    return list(images)


def _divided(tokens: Tensor, pooled: Tensor) -> np.ndarray:
    return (tokens / pooled.norm(dim=-1)[:, None, None]).float().cpu().numpy()


# ------------------------------------------------------------------------------- folders


def _clip(folder: Path) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    from transformers import CLIPModel

    model = _network(CLIPModel, folder)
    return (model.text_model, model.text_projection), (model.vision_model, model.visual_projection)


def _versatile_diffusion(folder: Path) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    text = _network(CLIPTextModelWithProjection, folder / "text_encoder")
    vision = _network(CLIPVisionModelWithProjection, folder / "image_encoder")
    return (text.text_model, text.text_projection), (vision.vision_model, vision.visual_projection)


def _network(kind: Any, folder: Path) -> Any:
    """A network of transformers with every one of its weights from the folder."""
    if not (folder / "config.json").is_file():
        raise MissingDataError(f"{folder} has no config.json; expected a {kind.__name__}")
    try:
        network, loading = kind.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # broken files end in any of a dozen types inside the loader
        first = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        raise DataError(
            f"{folder} is no complete {kind.__name__} ({first}); copy it again"
        ) from None
    missing = sorted(name for name in loading["missing_keys"] if "position_ids" not in name)
    if missing:  # transformers would go on with random numbers
        raise DataError(
            f"{folder} lacks {len(missing)} weights of {kind.__name__} (first {missing[0]}); it is "
            "of another network, or cut"
        )
    return network.float().requires_grad_(False)


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise MissingDataError(f"{folder} has no tokenizer.json and no vocab.json of CLIP")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as in _network
        first = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        raise DataError(f"{folder} holds no complete tokenizer ({first}); copy it again") from None


def _pixels(folder: Path, detour: int | None) -> CLIPPixels:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise MissingDataError(f"{path} is missing; it says how CLIP's pictures are prepared")
    stated = read_json(path)
    published = CLIPPixels()
    size = stated.get("crop_size", published.size)
    mean, sd = stated.get("image_mean", published.mean), stated.get("image_std", published.sd)
    if isinstance(size, dict):
        size = size.get("height")
    for steps in ("do_resize", "do_center_crop", "do_normalize"):
        if stated.get(steps, True) is not True:
            raise DataError(f"{path} sets {steps} to {stated[steps]!r}; CLIP's own is true")
    if stated.get("resample", 3) != int(Image.Resampling.BICUBIC):
        raise DataError(
            f"{path} asks for resampling {stated['resample']}; CLIP's own is 3, bicubic"
        )
    if not isinstance(size, int) or len(mean) != 3 or len(sd) != 3 or min(sd) <= 0:
        raise DataError(f"{path} gives size {size}, mean {mean} and SD {sd}; it is not CLIP's")
    return CLIPPixels(size=size, mean=tuple(mean), sd=tuple(sd), detour=detour)
