"""Vision transformer that turns flat-map frames of fMRI into tokens.

A frame is a picture of the visual cortex, (1, 256, 256) in the published model: 16 x 16 patches
become tokens, a fixed two-dimensional sine-cosine position is added, a class token is put in
front, and ``pred`` projects every token to the width that the feature aggregation expects.
Parameter names are the published ones, so published weights load by name at any size.

Most patches of a small flat map lie outside the cortex.  ``patches`` keeps only those that touch
the mask; positions are then picked from the whole grid, and all weights stay the same.

Source: Gao et al., "MinD-3D: Reconstruct High-quality 3D Objects in Human Brain", ECCV 2024;
encoder after He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class FMRIEncoderSize:
    """Sizes of :class:`FMRIEncoder`; the defaults are the published ones (304,937,984 parameters).

    ``image_size`` and ``patch_size`` are pixels a side; the second must divide the first.
    """

    image_size: int = 256
    patch_size: int = 16
    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0
    pred_out: int = 2048

    def __post_init__(self):
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        if self.embed_dim % self.num_heads or self.embed_dim % 4:
            raise ValueError(
                f"embed_dim {self.embed_dim} must be a multiple of 4 (positions) and of "
                f"num_heads {self.num_heads}"
            )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Patches of a whole frame."""
        return self.grid**2


class FMRIEncoder(nn.Module):
    """Frames (n, 1, h, w) -> patch tokens (n, tokens, pred_out).

    Parameters
    ----------
    size : the sizes; default as published.
    patches : indices of the patches to keep, row-major in the grid, distinct; None keeps all, as
        published.  :func:`patches_touching` makes them from a mask.
    drop, attn_drop, drop_path : rates of dropout in the projections, in the attention weights, and
        of whole residual branches of a sample.  Published training: 0.01 each.

    Raises
    ------
    ValueError : ``patches`` is empty, repeats an index or leaves the grid; a frame has
        another size.
    """

    patches: Tensor | None

    def __init__(
        self,
        size: FMRIEncoderSize | None = None,
        *,
        patches: Int[Tensor, " kept"] | None = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.size = size = size or FMRIEncoderSize()
        dim, side = size.embed_dim, size.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(sincos_positions(size.grid, dim), requires_grad=False)
        self.patch_embed = _PatchEmbed(side, dim)
        self.blocks = nn.ModuleList(
            _Block(dim, size.num_heads, size.mlp_ratio, drop, attn_drop, drop_path)
            for _ in range(size.depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.pred = nn.Linear(dim, size.pred_out)
        self.register_buffer("patches", _checked_patches(patches, size.tokens), persistent=False)
        self._initialise()

    @property
    def tokens(self) -> int:
        """Tokens that leave :meth:`forward`: the kept patches."""
        return self.size.tokens if self.patches is None else len(self.patches)

    def forward(self, x: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n tokens out"]:
        """Patch tokens, without the class token."""
        return self.pred(self._encode(self._embed(x))[:, 1:])

    def forward_all(self, x: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n all_tokens out"]:
        """Class token first, then the patch tokens (one pass where a loss needs both)."""
        return self.pred(self._encode(self._embed(x)))

    def forward_cls(self, x: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 out"]:
        """The class token alone."""
        return self.pred(self._encode(self._embed(x))[:, :1])

    def forward_pixels(
        self, pixels: Float[Tensor, "n kept pixels"]
    ) -> Float[Tensor, "n all_tokens out"]:
        """As :meth:`forward_all`, from the pixels of the kept patches (see :meth:`gather`)."""
        return self.forward_embedded(self.embed_patches(pixels))

    def forward_embedded(
        self, embedded: Float[Tensor, "n kept dim"]
    ) -> Float[Tensor, "n all_tokens out"]:
        """As :meth:`forward_pixels`, from what :meth:`embed_patches` made of the pixels."""
        return self.pred(self._encode(embedded))

    def embed_patches(self, pixels: Float[Tensor, "n kept pixels"]) -> Float[Tensor, "n kept dim"]:
        """Embed gathered pixels: the numbers of the convolution, without the unused patches.

        ``pixels`` holds the kept patches in their order, each flattened row by row.
        """
        expected = (self.tokens, self.size.patch_size**2)
        if pixels.shape[1:] != expected:
            raise ValueError(
                f"pixels has shape {tuple(pixels.shape)}; this encoder keeps {expected[0]} patches "
                f"of {expected[1]} pixels"
            )
        projection = self.patch_embed.proj
        return F.linear(pixels, projection.weight.flatten(1), projection.bias)

    def gather(self, x: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n kept pixels"]:
        """Pixels of the kept patches of whole frames, as :meth:`embed_patches` takes them."""
        self._check_frame(x)
        n, side, grid = len(x), self.size.patch_size, self.size.grid
        pixels = x.reshape(n, grid, side, grid, side).transpose(2, 3).reshape(n, grid * grid, -1)
        return pixels if self.patches is None else pixels[:, self.patches]

    def _embed(self, x: Tensor) -> Tensor:
        if self.patches is not None:
            return self.embed_patches(self.gather(x))
        self._check_frame(x)
        return self.patch_embed(x)

    def _encode(self, tokens: Tensor) -> Tensor:
        positions = self.pos_embed[:, 1:]
        if self.patches is not None:
            positions = positions[:, self.patches]
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        x = torch.cat([first, tokens + positions], dim=1)  # (n, 1 + kept, dim)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def _check_frame(self, x: Tensor) -> None:
        expected = (1, self.size.image_size, self.size.image_size)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"frames have shape {tuple(x.shape)}; expected (n, {', '.join(map(str, expected))})"
            )

    def _initialise(self) -> None:
        """Small normal tokens, Xavier matrices, zero biases, as masked autoencoders start."""
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(self.size.embed_dim, -1))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)


def patches_touching(mask: Bool[Tensor, "h w"], patch_size: int = 16) -> Int[Tensor, " kept"]:
    """Row-major indices of the patches that hold at least one true pixel of ``mask``.

    Examples
    --------
    >>> mask = torch.zeros(4, 4, dtype=torch.bool)
    >>> mask[3, 0] = True
    >>> patches_touching(mask, 2)
    tensor([2])
    """
    height, width = mask.shape
    if height % patch_size or width % patch_size:
        raise ValueError(f"mask {tuple(mask.shape)} is not made of patches of {patch_size} pixels")
    rows, columns = height // patch_size, width // patch_size
    cells = mask.reshape(rows, patch_size, columns, patch_size)
    return cells.any(3).any(1).flatten().nonzero().flatten()


def sincos_positions(grid: int, dim: int) -> Float[Tensor, "1 tokens dim"]:
    """Fixed positions of a class token (zeros) and of a ``grid`` x ``grid`` square of patches.

    The first half of ``dim`` codes the column, the second the row; each half is sines then
    cosines of position / 10000^(k / (dim / 4)).  Computed in float64, returned in float32.
    """
    frequency = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    place = torch.arange(grid, dtype=torch.float64)
    angle = place[:, None] * frequency
    code = torch.cat([angle.sin(), angle.cos()], dim=1)  # (grid, dim / 2)
    column = code[None].expand(grid, -1, -1)
    row = code[:, None].expand(-1, grid, -1)
    table = torch.cat([column, row], dim=2).reshape(grid * grid, dim)
    return torch.cat([torch.zeros(1, dim, dtype=torch.float64), table])[None].float()


def _checked_patches(patches: Tensor | None, tokens: int) -> Tensor | None:
    if patches is None:
        return None
    patches = patches.long()
    if len(patches) == 0 or len(patches.unique()) != len(patches):
        raise ValueError("patches must be a non-empty list of distinct patch indices")
    if patches.min() < 0 or patches.max() >= tokens:
        raise ValueError(
            f"patches reach from {int(patches.min())} to {int(patches.max())}; "
            f"the grid has {tokens} patches, 0 to {tokens - 1}"
        )
    return patches


class _PatchEmbed(nn.Module):
    """(n, 1, h, w) -> (n, tokens, dim), row-major."""

    def __init__(self, patch_size: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(1, dim, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int, drop: float, attn_drop: float):
        super().__init__()
        self.heads, self.attn_drop = heads, attn_drop
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        rate = self.attn_drop if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=rate)  # (n, heads, tokens, dim/heads)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(n, tokens, dim)))


class _Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, drop: float):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class _Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float,
        drop: float,
        attn_drop: float,
        drop_path: float,
    ):
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim)
        self.attn = _Attention(dim, heads, drop, attn_drop)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = _Mlp(dim, int(dim * mlp_ratio), drop)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._thin(self.attn(self.norm1(x)))
        return x + self._thin(self.mlp(self.norm2(x)))

    def _thin(self, branch: Tensor) -> Tensor:
        """Drop the branch of some samples in training, and scale the others up."""
        if not self.training or self.drop_path == 0.0:
            return branch
        keep = 1.0 - self.drop_path
        kept = torch.rand(len(branch), 1, 1, device=branch.device) < keep
        return branch * kept.to(branch.dtype) / keep
