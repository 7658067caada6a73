"""Sizes of a very deep variational autoencoder, in the notation of its published settings.

References
----------
Child 2021, Very Deep VAEs Generalize Autoregressive Models, ICLR, and its released settings.
"""

import re
from dataclasses import dataclass, fields

from neurodiff.core.errors import UsageError

Shape3 = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class VDVAESize:
    """Sizes of a `neurodiff.models.vdvae.VDVAE`; the defaults are published (ImageNet, 64 px).

    enc_blocks, dec_blocks : blocks from the picture down, and from the coarsest latent up, in the
    published notation: ``16x9`` nine blocks at 16 pixels, ``16d2`` one that halves its output,
    ``16m8`` one that first takes in the 8-pixel state.  zdim : channels of a latent.  width :
    channels everywhere.  bottleneck : inner width of a block, as a share.  no_bias_above : largest
    resolution with a learned start.  mixtures : logistic components of a pixel.
    """

    image_size: int = 64
    enc_blocks: str = "64x11,64d2,32x20,32d2,16x9,16d2,8x8,8d2,4x7,4d4,1x5"
    dec_blocks: str = "1x2,4m1,4x3,8m4,8x7,16m8,16x15,32m16,32x31,64m32,64x12"
    zdim: int = 16
    width: int = 512
    bottleneck: float = 0.25
    no_bias_above: int = 64
    mixtures: int = 10

    def __post_init__(self) -> None:
        side = self.image_size
        for resolution, down in self.encoder_blocks:
            if resolution != side or (down and side % down):
                raise UsageError(
                    f"enc_blocks {self.enc_blocks!r} has a block at {resolution} pixels"
                    f"{f' that divides them by {down}' if down else ''} where the picture has "
                    f"{side}; start at image_size and let each d divide what there is"
                )
            side //= down or 1
        there = self._encoder_resolutions
        done: set[int] = set()
        for resolution, mixed in self.decoder_blocks:
            if resolution not in there:
                raise UsageError(
                    f"dec_blocks has a block at {resolution} pixels; the encoder passes "
                    f"{', '.join(map(str, sorted(there)))}"
                )
            if mixed is not None and (mixed not in done or resolution % mixed):
                raise UsageError(
                    f"dec_blocks has {resolution}m{mixed}; the {mixed}-pixel state must have been "
                    f"made before, and divide {resolution}"
                )
            done.add(resolution)
        if not self.decoder_blocks or self.decoder_blocks[-1][0] != self.image_size:
            raise UsageError(f"dec_blocks {self.dec_blocks!r} does not end at {self.image_size}")
        if self.no_bias_above < self.decoder_blocks[0][0]:
            raise UsageError(
                f"no_bias_above {self.no_bias_above} leaves the first block, at "
                f"{self.decoder_blocks[0][0]} pixels, without a start"
            )
        if min(self.zdim, self.width, self.mixtures, self.inner) < 1:
            raise UsageError("zdim, width, mixtures and width * bottleneck must be at least 1")

    @property
    def encoder_blocks(self) -> list[tuple[int, int | None]]:
        """(resolution, divisor of the output or None) of each block."""
        return self._blocks(self.enc_blocks, "d")

    @property
    def decoder_blocks(self) -> list[tuple[int, int | None]]:
        """(resolution, resolution that it takes in or None) of each block."""
        return self._blocks(self.dec_blocks, "m")

    @property
    def inner(self) -> int:
        """Channels inside a block."""
        return int(self.width * self.bottleneck)

    @property
    def _encoder_resolutions(self) -> set[int]:
        ends = {resolution // (down or 1) for resolution, down in self.encoder_blocks}
        return ends | {self.image_size}

    def latent_shapes(self, count: int | None = None) -> list[Shape3]:
        """(zdim, r, r) of the first ``count`` latents, of all where it is None.

        Raises
        ------
        UsageError : there are fewer blocks, or ``count`` is negative.

        Examples
        --------
        >>> sum(c * h * w for c, h, w in VDVAESize().latent_shapes(31))
        91168
        """
        blocks = self.decoder_blocks
        if count is not None and not 0 <= count <= len(blocks):
            raise UsageError(f"{count} latents asked for; this VDVAE has {len(blocks)}")
        return [(self.zdim, r, r) for r, _ in blocks[:count]]

    def differences(self) -> list[str]:
        """What is not of the published size, one sentence each."""
        pairs = [(f.name.replace("_", " "), getattr(self, f.name), f.default) for f in fields(self)]
        return [f"{name} {a} (published {b})" for name, a, b in pairs if a != b]

    def summary(self) -> str:
        """:meth:`differences` in one line."""
        return "; ".join(self.differences())

    @staticmethod
    def _blocks(text: str, letter: str) -> list[tuple[int, int | None]]:
        """The published notation as (resolution, number after ``letter`` or None)."""
        blocks: list[tuple[int, int | None]] = []
        for part in text.split(","):
            match = re.fullmatch(rf"(\d+)(?:([x{letter}])(\d+))?", part.strip())
            if match is None or int(match[1]) < 1 or (match[3] and int(match[3]) < 1):
                raise UsageError(
                    f"{part!r} in {text!r} is no block; expected blocks such as 16, 16x9 or "
                    f"16{letter}2 with commas between them"
                )
            resolution = int(match[1])
            if match[2] == letter:
                blocks.append((resolution, int(match[3])))
            else:
                blocks += [(resolution, None)] * int(match[3] or 1)
        return blocks


#: The network of the published weights: ImageNet at 64 pixels.
IMAGENET64 = VDVAESize()
