"""What turns decoded features into pictures: the protocol, and the checks that all share.

A generator starts from a picture (the low-level one) and is led by text tokens and image tokens.
It draws nothing of its own: every picture has a seed, so a picture does not change with its batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.seeds import torch_generator

if TYPE_CHECKING:
    import PIL.Image


@runtime_checkable
class Generator(Protocol):
    """Pictures from pictures and tokens."""

    def generate(
        self,
        init_images: Sequence[PIL.Image.Image],
        text_tokens: Any,
        image_tokens: Any,
        *,
        strength: float,
        guidance: float,
        mix: float,
        steps: int,
        seed: Sequence[int],
    ) -> list[PIL.Image.Image]:
        """One picture an initial picture.

        Parameters
        ----------
        init_images : n RGB pictures of one size.
        text_tokens, image_tokens : (n, count, width), float; count and width are the generator's.
        strength : share of the steps that are run, above 0 and at most 1; the rest of the initial
            picture is kept.
        guidance : weight of classifier-free guidance; 1 is none.
        mix : share of the text against the image tokens, 0 to 1.
        steps : of the whole grid.
        seed : one whole number a picture, from :func:`neurodiff.core.seeds.item_seed`.
        """
        ...


@dataclass(frozen=True)
class Request:
    """Checked input of one call; tokens are float32 on the CPU."""

    images: list[PIL.Image.Image]
    text: Tensor
    image: Tensor
    generators: list[torch.Generator]

    def __len__(self) -> int:
        return len(self.images)


def check_options(*, strength: float, guidance: float, mix: float, steps: int) -> None:
    """Refuse numbers that no generator can work with.

    Raises
    ------
    UsageError : one of them is out of its range; the sentence says which.
    """
    if isinstance(steps, bool) or not hasattr(steps, "__index__") or steps < 1:
        raise UsageError(f"steps is {steps!r}; give a whole number from 1")
    if not 0 < strength <= 1:
        raise UsageError(
            f"strength is {strength}; give the share of the steps to run, above 0 and at most 1"
        )
    if int(strength * steps) < 1:
        raise UsageError(
            f"strength {strength} of {steps} steps leaves no step to run; raise one of the two"
        )
    if not 0 <= mix <= 1:
        raise UsageError(f"mix is {mix}; give the share of the text, from 0 to 1")
    if not math.isfinite(guidance):
        raise UsageError(f"guidance is {guidance}; give a finite number, 1 for no guidance")


def check_request(
    init_images: Sequence[PIL.Image.Image],
    text_tokens: Any,
    image_tokens: Any,
    seed: Sequence[int],
    *,
    text_shape: Sequence[int | None],
    image_shape: Sequence[int | None],
    multiple: int = 8,
) -> Request:
    """Check what comes in one row a picture.

    Parameters
    ----------
    text_shape, image_shape : what the generator reads for each picture, without the first axis;
        None where any size is fine.
    multiple : the sides of the pictures must be multiples of it.

    Raises
    ------
    UsageError : counts that differ, no picture, a seed that is no whole number.
    DataError : a picture that is not RGB, pictures of several or unfit sizes, tokens of another
        shape or with NaN or infinity.
    """
    images = list(init_images)
    if not images:
        raise UsageError("there is no initial picture; give one for each picture to make")
    alone = isinstance(seed, int | np.integer)
    if alone or len(seed) != len(images):
        told = "a single seed" if alone else f"{len(seed)} seeds"
        raise UsageError(f"{told} for {len(images)} pictures; give one seed a picture")
    for at, image in enumerate(images):
        if getattr(image, "mode", None) != "RGB":
            found = getattr(image, "mode", type(image).__name__)
            raise DataError(
                f"initial picture {at} is {found}; give RGB pictures (image.convert('RGB'))"
            )
    sizes = sorted({image.size for image in images})
    if len(sizes) > 1:
        raise DataError(f"initial pictures have the sizes {sizes}; give one size to all")
    if any(side % multiple for side in sizes[0]):
        raise DataError(
            f"initial pictures are {sizes[0][0]} x {sizes[0][1]} pixels; this generator needs "
            f"sides that are multiples of {multiple}"
        )
    return Request(
        images,
        _tokens("text", text_tokens, len(images), text_shape),
        _tokens("image", image_tokens, len(images), image_shape),
        [torch_generator(one) for one in seed],
    )


def null_tokens(name: str, tokens: Any, width: int) -> Tensor:
    """Tokens that stand for "no condition", (count, width) or (1, count, width), as the latter.

    Raises
    ------
    UsageError : another shape.
    DataError : NaN or infinity.
    """
    values = _tensor(f"null {name}", tokens)
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or len(values) != 1 or values.shape[2] != width:
        raise UsageError(
            f"null {name} tokens have the shape {tuple(values.shape)}; the network reads "
            f"(count, {width})"
        )
    if not bool(torch.isfinite(values).all()):
        raise DataError(f"null {name} tokens hold NaN or infinity")
    return values


def pixels(images: Sequence[PIL.Image.Image]) -> Tensor:
    """RGB pictures of one size as (n, 3, h, w), float32, -1 to 1."""
    array = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1


def pictures(values: Tensor) -> list[PIL.Image.Image]:
    """(n, 3, h, w), -1 to 1, clipped and rounded to 8 bits; the inverse of :func:`pixels`.

    Raises
    ------
    DataError : NaN or infinity, which no picture can show.
    """
    import PIL.Image

    values = values.detach().float().cpu()
    bad = [at for at, one in enumerate(values) if not bool(torch.isfinite(one).all())]
    if bad:
        raise DataError(
            f"generated pictures {bad[:5]} are NaN or infinite; half precision may overflow: "
            "run the generator in float32, or check its weights"
        )
    bytes_ = ((values.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [PIL.Image.fromarray(one.permute(1, 2, 0).numpy()) for one in bytes_]


def _tokens(name: str, tokens: Any, n: int, shape: Sequence[int | None]) -> Tensor:
    values = _tensor(name, tokens)
    wanted = (n, *shape)
    fits = len(values.shape) == len(wanted) and all(
        want in (None, have) for have, want in zip(values.shape, wanted, strict=True)
    )
    if not fits:
        told = ", ".join("any" if side is None else str(side) for side in wanted)
        raise DataError(
            f"{name} tokens have the shape {tuple(values.shape)}; this generator needs ({told}) "
            f"for {n} pictures"
        )
    if not bool(torch.isfinite(values).all()):
        row = next(at for at, one in enumerate(values) if not bool(torch.isfinite(one).all()))
        raise DataError(f"{name} tokens of picture {row} hold NaN or infinity; check the decoder")
    return values


def _tensor(name: str, tokens: Any) -> Tensor:
    """Float32 on the CPU; an array is copied, for it may be mapped from a read-only file."""
    if isinstance(tokens, Tensor):
        return tokens.detach().to("cpu", torch.float32)
    try:
        return torch.from_numpy(np.array(tokens, dtype=np.float32))
    except (TypeError, ValueError):
        raise DataError(
            f"{name} tokens are {type(tokens).__name__} that are no numbers; give an array "
            "(n, count, width)"
        ) from None
