"""The causal transformer of MinD-3D's diffusion prior, its sizes, and its prepared conditions.

One key/value head, a learned null key and value, cosine-similarity attention, rotary positions on
the first part of each head, a relative bias and SwiGLU feed-forwards. Parameter names are the
published ones.

Sources: Raffel et al. 2020 (bias buckets); Su et al. 2021 (rotary positions); Shazeer 2019 and 2020
(one key/value head, SwiGLU); Shleifer et al. 2021 (the norms inside, "normformer").
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

COSINE_SCALE = 16.0  # similarity = 16 cos(q, k)


@dataclass(frozen=True, kw_only=True)
class FeatureBridgeSize:
    """Sizes of :class:`FeatureBridge`; the defaults are the published ones (22,882,320 parameters).

    ``timesteps`` is the length of the diffusion path; ``rotary_dim`` features of each head are
    rotated (all, if the head is smaller); ``null_tokens`` is the length of a published parameter
    that nothing reads, kept so that weights load by name.
    """

    dim: int = 512
    depth: int = 6
    heads: int = 8
    dim_head: int = 64
    ff_mult: int = 4
    timesteps: int = 100
    rotary_dim: int = 32
    bias_buckets: int = 32
    bias_distance: int = 128
    null_tokens: int = 256

    @property
    def rotated(self) -> int:
        """Features of a head that are rotated; even."""
        return min(self.rotary_dim, self.dim_head) // 2 * 2


@dataclass(frozen=True)
class BridgeState:
    """Keys and values of a batch of conditions, one pair a layer, null key first.

    ``keys[layer]`` and ``values[layer]`` are (trials, 1 + tokens, dim_head); ``candidates`` rows
    of a step belong to each trial, trial-major: row = trial * candidates + candidate.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    candidates: int = 1

    @property
    def rows(self) -> int:
        """Rows that a step expects."""
        return len(self.keys[0]) * self.candidates

    @property
    def tokens(self) -> int:
        """fMRI tokens of the condition."""
        return self.keys[0].shape[1] - 1

    def repeat(self, candidates: int) -> "BridgeState":
        """The same conditions for ``candidates`` times as many rows; no tensor is copied."""
        if candidates < 1:
            raise ValueError(f"candidates is {candidates}; it must be 1 or more")
        return dataclasses.replace(self, candidates=self.candidates * candidates)


class CausalTransformer(nn.Module):
    """Layers of attention and feed-forward, each token blind to what comes after it."""

    def __init__(self, size: FeatureBridgeSize, protocol: str, attn_drop: float, ff_drop: float):
        super().__init__()
        self.rel_pos_bias = _RelativeBias(size)
        rotary = _Rotary(size.rotated)  # one module, in every layer under its published name
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [_Attention(size, rotary, protocol, attn_drop), _feed(size, protocol, ff_drop)]
            )
            for _ in range(size.depth)
        )
        self.norm = _Norm(size.dim, protocol, stable=True)
        self.project_out = nn.Linear(size.dim, size.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.rel_pos_bias(0, x.shape[1])
        for attend, feed in self._pairs():
            x = x + attend(x, bias)
            x = x + feed(x)
        return self.project_out(self.norm(x))

    def _pairs(self) -> list[tuple["_Attention", nn.Sequential]]:
        layers: Any = self.layers
        return [(attend, feed) for attend, feed in layers]

    def prepare(self, x: Tensor) -> BridgeState:
        """Keys and values of every layer for tokens (trials, tokens, dim) that come first."""
        bias = self.rel_pos_bias(0, x.shape[1])
        keys, values = [], []
        *first, last = self._pairs()
        for attend, feed in first:
            q, k, v = attend.project(x, 0)
            k, v = attend.with_null(k, v)
            keys.append(k)
            values.append(v)
            x = x + attend.mix(q, k, v, bias)
            x = x + feed(x)
        _, k, v = last[0].project(x, 0)
        k, v = last[0].with_null(k, v)
        return BridgeState((*keys, k), (*values, v))

    def step(self, x: Tensor, state: BridgeState) -> Tensor:
        """Outputs (rows, few, dim) of the last tokens behind prepared ones."""
        bias = self.rel_pos_bias(state.tokens, x.shape[1])
        for (attend, feed), keys, values in zip(
            self._pairs(), state.keys, state.values, strict=True
        ):
            x = x + attend.step(x, bias, keys, values)
            x = x + feed(x)
        return self.project_out(self.norm(x))


class _Attention(nn.Module):
    """Many query heads, one key/value head, a learned null key and value in front."""

    def __init__(self, size: FeatureBridgeSize, rotary: "_Rotary", protocol: str, drop: float):
        super().__init__()
        inner = size.heads * size.dim_head
        self.heads, self.dropout = size.heads, drop
        self.float32_softmax = protocol == "mind3d-2024"
        self.null_kv = nn.Parameter(torch.randn(2, size.dim_head))
        self.norm = _Norm(size.dim, protocol)
        self.to_q = nn.Linear(size.dim, inner, bias=False)
        self.to_kv = nn.Linear(size.dim, 2 * size.dim_head, bias=False)
        self.rotary_emb = rotary
        self.to_out = nn.Sequential(
            nn.Linear(inner, size.dim, bias=False), _Norm(size.dim, protocol)
        )

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = self.project(x, 0)
        return self.mix(q, *self.with_null(k, v), bias)

    def project(self, x: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (n, heads, tokens, d), keys and values (n, tokens, d) of tokens from ``start``.

        Queries and keys are rotated, then scaled to length sqrt(16): rotation keeps lengths.
        """
        x = self.norm(x)
        q = self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_kv(x).chunk(2, dim=-1)
        return _unit(self.rotary_emb(q, start)), _unit(self.rotary_emb(k, start)), v

    def with_null(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put the null key and value, which has no position, in front."""
        null_k, null_v = (row.expand(len(k), 1, -1) for row in self.null_kv)
        return torch.cat([_unit(null_k), k], dim=1), torch.cat([null_v, v], dim=1)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Attend under ``bias`` (heads, queries, keys), -inf where a key must not be seen."""
        if self.float32_softmax and q.dtype != torch.float32:
            weights = self._softmax(q @ k[:, None].mT + bias)
            out = weights @ v[:, None]
        else:
            k, v = (z[:, None].expand(-1, self.heads, -1, -1) for z in (k, v))
            rate = self.dropout if self.training else 0.0
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=bias.expand(len(q), -1, -1, -1), dropout_p=rate, scale=1.0
            )
        return self.to_out(out.transpose(1, 2).flatten(2))

    def step(self, x: Tensor, bias: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend from the last tokens (trials * candidates, few, dim) to prepared keys and theirs.

        All queries of a trial, over candidates and heads, meet its keys in one matrix product.
        """
        trials, prefix = keys.shape[:2]
        q, k, v = self.project(x, prefix - 1)
        shape = (trials, len(x) // trials, *q.shape[1:])  # (trials, candidates, heads, few, d)
        far = q.reshape(trials, -1, q.shape[-1]) @ keys.mT
        near = q @ k[:, None].mT
        similar = torch.cat(
            [far.reshape(*q.shape[:3], prefix) + bias[..., :prefix], near + bias[..., prefix:]], -1
        )
        weights = self._softmax(similar)
        far = weights[..., :prefix].reshape(trials, -1, prefix) @ values
        out = far.reshape(shape).flatten(0, 1) + weights[..., prefix:] @ v[:, None]
        return self.to_out(out.transpose(1, 2).flatten(2))

    def _softmax(self, similar: Tensor) -> Tensor:
        dtype = torch.float32 if self.float32_softmax else similar.dtype
        weights = similar.softmax(-1, dtype=dtype).to(similar.dtype)
        return F.dropout(weights, self.dropout, self.training)


def _feed(size: FeatureBridgeSize, protocol: str, drop: float) -> nn.Sequential:
    """SwiGLU between two norms; the positions in the list are the published names."""
    inner = size.ff_mult * size.dim
    return nn.Sequential(
        _Norm(size.dim, protocol),
        nn.Linear(size.dim, 2 * inner, bias=False),
        _SwiGLU(),
        _Norm(inner, protocol),
        nn.Dropout(drop),
        nn.Linear(inner, size.dim, bias=False),
    )


class _SwiGLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * F.silu(gate)


class _Norm(nn.Module):
    """Layer norm with a gain and no bias.

    ``stable`` divides by the largest value first, which keeps squares small in half precision;
    it also makes eps relative to that value.
    """

    def __init__(self, dim: int, protocol: str, *, stable: bool = False):
        super().__init__()
        self.g = nn.Parameter(torch.ones(dim))
        self.by_dtype, self.stable = protocol == "mind3d-2024", stable

    def forward(self, x: Tensor) -> Tensor:
        if self.stable:
            x = x / x.amax(dim=-1, keepdim=True).detach()
        eps = 1e-3 if self.by_dtype and x.dtype != torch.float32 else 1e-5
        return F.layer_norm(x, x.shape[-1:], self.g, eps=eps)


class _Rotary(nn.Module):
    """Rotate neighbouring pairs of the first ``dim`` features by position x frequency.

    The frequencies are a published parameter.  They are computed in float32, as there: at position
    700 the last bit of a frequency is 1e-5 of a turn.
    """

    def __init__(self, dim: int):
        super().__init__()
        frequency = 1.0 / 10000.0 ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        self.freqs = nn.Parameter(frequency, requires_grad=False)

    def forward(self, x: Tensor, start: int) -> Tensor:
        place = torch.arange(start, start + x.shape[-2], device=x.device, dtype=self.freqs.dtype)
        angle = place[:, None] * self.freqs  # (tokens, dim / 2)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)  # the angles stay float32
        turned, rest = x.split([2 * len(self.freqs), x.shape[-1] - 2 * len(self.freqs)], dim=-1)
        even, odd = turned[..., 0::2], turned[..., 1::2]
        pairs = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
        return torch.cat([pairs.flatten(-2), rest], dim=-1)


class _RelativeBias(nn.Module):
    """Learned bias of a head by how far back a key is: exact for half the buckets, then by log."""

    def __init__(self, size: FeatureBridgeSize):
        super().__init__()
        self.buckets, self.distance = size.bias_buckets, size.bias_distance
        self.relative_attention_bias = nn.Embedding(size.bias_buckets, size.heads)

    def forward(self, start: int, queries: int) -> Tensor:
        """(heads, queries, keys) for queries from ``start`` and all keys up to the last of them.

        Key 0 is the null key, so token j is key j + 1, and a query sees keys 0 to its own + 1.
        Distance is counted between the two indices: the null key moves every token one nearer.
        """
        weight = self.relative_attention_bias.weight
        query = torch.arange(start, start + queries, device=weight.device)[:, None]
        key = torch.arange(start + queries + 1, device=weight.device)
        back = (query - key).clamp(min=0)
        exact = self.buckets // 2
        far = (back.clamp(min=1) / exact).log() / math.log(self.distance / exact)
        far = exact + (far * (self.buckets - exact)).long()
        bucket = torch.where(back < exact, back, far.clamp(max=self.buckets - 1))
        bias = self.relative_attention_bias(bucket).permute(2, 0, 1)
        return bias.masked_fill(key > query + 1, -math.inf)


def _unit(x: Tensor) -> Tensor:
    """Length sqrt(16): the similarity of two such vectors is 16 times their cosine."""
    return F.normalize(x, dim=-1) * math.sqrt(COSINE_SCALE)
