"""Masked-autoencoder pre-training of the fMRI encoder, with the published parameter names.

The whole frame passes through one vector: the encoder's class token, projected to ``pred_out``,
is all that the decoder sees; mask tokens stand at every patch and are told apart by their
positions alone.  The published scripts never call this network; it is presumably what the released
encoder was pre-trained with (609,874,176 parameters at the published size).

Source: Gao et al., "MinD-3D: Reconstruct High-quality 3D Objects in Human Brain", ECCV 2024;
decoder after He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neurodiff.models.fmri_encoder import FMRIEncoder, FMRIEncoderSize, _Block, sincos_positions


class FMRIAutoencoder(FMRIEncoder):
    """Frames (n, 1, h, w) -> reconstructed frames of the same shape.

    Parameters
    ----------
    size : of the encoder; the decoder has its heads and feed-forward ratio.
    decoder_dim, decoder_depth : width and blocks of the decoder; default as published.
    """

    def __init__(
        self,
        size: FMRIEncoderSize | None = None,
        *,
        decoder_dim: int = 1024,
        decoder_depth: int = 24,
    ):
        super().__init__(size)
        size = self.size
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.decoder_pos_embed = nn.Parameter(
            sincos_positions(size.grid, decoder_dim), requires_grad=False
        )
        self.decoder_embed = nn.Linear(size.pred_out, decoder_dim)
        self.decoder_blocks = nn.ModuleList(
            _Block(decoder_dim, size.num_heads, size.mlp_ratio, 0.0, 0.0, 0.0)
            for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_dim)
        self.decoder_pred = nn.Linear(decoder_dim, size.patch_size**2)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in (self.decoder_embed, self.decoder_blocks, self.decoder_pred):
            for layer in module.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_uniform_(layer.weight)
                    nn.init.zeros_(layer.bias)

    def reconstruct(self, x: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h w"]:
        """The frame that the class token of ``x`` remembers."""
        first = self.decoder_embed(self.forward_cls(x))  # (n, 1, decoder_dim)
        masked = self.mask_token.expand(len(x), self.size.tokens, -1)
        tokens = torch.cat([first, masked], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        pixels = self.decoder_pred(self.decoder_norm(tokens)[:, 1:])  # (n, patches, pixels)
        grid, side = self.size.grid, self.size.patch_size
        pixels = pixels.reshape(len(x), grid, grid, side, side).transpose(2, 3)
        return pixels.reshape(len(x), 1, grid * side, grid * side)


def reconstruction_error(
    reconstructed: Float[Tensor, "n 1 h w"],
    x: Float[Tensor, "n 1 h w"],
    mask: Float[Tensor, "n h w"] | None = None,
) -> Float[Tensor, " n"]:
    """Mean squared error of each frame; over the pixels where ``mask`` is 1, if there is one.

    Raises
    ------
    ValueError : a frame of which the mask counts nothing.
    """
    error = (reconstructed - x).square()[:, 0]
    if mask is None:
        return error.mean((1, 2))
    counted = mask.sum((1, 2))
    if not (counted > 0).all():
        raise ValueError("mask counts no pixel of a frame; give a mask with at least one 1 each")
    return (error * mask).sum((1, 2)) / counted
