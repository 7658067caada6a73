"""The fMRI encoder of MinD-3D++, with the published parameter names.

The transformer of :mod:`neurodiff.models.fmri_encoder` without its last projection, and with two
additions: the class token after the twelfth block, normalised, is the contrastive feature; and the
patch tokens of six frames, laid out as a picture, are mixed to the condition latent of a
multi-view image diffusion.  That diffusion is not part of neurodiff.

Source: Gao et al., "fMRI-3D / MinD-3D++", IEEE TPAMI 47(12), 2025.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neurodiff.models.fmri_encoder import FMRIEncoder, FMRIEncoderSize

CLIP_BLOCK = 12  # the contrastive feature is read after this many blocks
LATENT_SIDE, LATENT_CHANNELS, FRAMES = 64, 64, 6


class FMRIEncoderPlus(FMRIEncoder):
    """Frames (n, 1, h, w) -> all tokens (n, 1 + patches, dim), and the contrastive feature."""

    def __init__(self, size: FMRIEncoderSize | None = None):
        super().__init__(size)
        del self.pred
        self.clip_norm = nn.LayerNorm(self.size.embed_dim)
        self.aggregation = nn.Linear(FRAMES * LATENT_CHANNELS, 4)

    def forward(
        self, x: Float[Tensor, "n 1 h w"]
    ) -> tuple[Float[Tensor, "n all_tokens dim"], Float[Tensor, "n 1 dim"]]:
        """Normalised tokens, class token first, and the contrastive feature.

        Raises
        ------
        ValueError : the encoder has fewer than 12 blocks.
        """
        if len(self.blocks) < CLIP_BLOCK:
            raise ValueError(
                f"the encoder has {len(self.blocks)} blocks; the contrastive feature is read after "
                f"block {CLIP_BLOCK}"
            )
        tokens = self._embed(x)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        tokens = torch.cat([first, tokens + self.pos_embed[:, 1:]], dim=1)
        feature = first
        for k, block in enumerate(self.blocks, 1):
            tokens = block(tokens)
            if k == CLIP_BLOCK:
                feature = self.clip_norm(tokens[:, :1])
        return self.norm(tokens), feature

    def condition_latent(
        self, patches: Float[Tensor, "trials frames 256 1024"]
    ) -> Float[Tensor, "trials 4 64 64"]:
        """Patch tokens of six frames, without class tokens -> latent of the image diffusion.

        Each token of 1,024 numbers is 4 x 4 pixels of 64 channels.
        """
        n, frames = patches.shape[:2]
        picture = patches.reshape(n, frames, 16, 16, 4, 4, LATENT_CHANNELS)
        picture = picture.permute(0, 2, 4, 3, 5, 1, 6)  # (n, 16, 4, 16, 4, frames, channels)
        picture = picture.reshape(n, LATENT_SIDE, LATENT_SIDE, frames * LATENT_CHANNELS)
        return self.aggregation(picture).permute(0, 3, 1, 2)
