"""Autoregressive decoder of shape codes, steered by one embedding through adapters (MinD-3D).

A pre-LN transformer reads ``[condition, start, code 0, code 1, ...]`` and predicts each code from
what stands before it.  Every ``adapter_every``-th block carries a bottleneck adapter; in the
second stage of MinD-3D only these adapters learn.  Parameter names are the published ones, so
that the published weights load by name at any size.

Shapes: ids (n, steps) int64 in 0 ... vocab - 1; condition (n, condition); logits (n, steps, vocab).

Differences from the paper and from the published code, none of which changes a number:

* The paper draws the adapter beside self-attention; the published code, and this file, apply it
  after the attention residual (``x + adapter(x)``).
* Sampling keeps keys and values (the published code recomputes the whole prefix at each step).
* The last code is not fed in, because no logit that is returned depends on it.

A sampled code is the inverse of the cumulative distribution at one uniform number that belongs to
the item and the step, so the other items of a batch do not enter.

References
----------
Gao et al. 2024, MinD-3D: Reconstruct High-quality 3D objects in Human Brain, ECCV.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class ShapeDecoderSize:
    """Sizes of a :class:`ShapeDecoder`; the defaults are the published ones (3.7 G parameters).

    vocab : number of codes.  width, heads, layers : of the transformer.  positions : rows of the
    position table, at least ``sequence + 1``.  condition : length of the steering embedding.
    sequence : codes of one object.  adapter_every : an adapter in blocks 0, this, twice this, ...;
    0 for none.  adapter_ratio : width of the adapter's bottleneck as a share of ``width``.
    """

    vocab: int = 8192
    width: int = 3072
    heads: int = 16
    layers: int = 32
    positions: int = 1027
    condition: int = 512
    sequence: int = 1024
    adapter_every: int = 4
    adapter_ratio: float = 0.25

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.positions < self.sequence + 1:
            raise ValueError(
                f"positions is {self.positions}; a sequence of {self.sequence} codes needs at "
                f"least {self.sequence + 1}"
            )

    def has_adapter(self, block: int) -> bool:
        """Whether block number ``block`` carries an adapter."""
        return self.adapter_every > 0 and block % self.adapter_every == 0


class ShapeDecoder(nn.Module):
    """Transformer over shape codes (module docstring); ``decoder(ids, condition) -> logits``."""

    def __init__(self, size: ShapeDecoderSize | None = None) -> None:
        super().__init__()
        self.size = size = ShapeDecoderSize() if size is None else size
        width = size.width
        self.value_start = nn.Parameter(torch.zeros(1, width))
        self.bias_value = nn.Parameter(torch.zeros(size.vocab))
        self.emb = nn.Embedding(size.vocab, width)
        self.pos_emb = nn.Embedding(size.positions, width)
        self.clip_project = nn.Linear(size.condition, width)
        self.blocks = nn.ModuleList(_Block(size, size.has_adapter(i)) for i in range(size.layers))
        self.dec = _Head(width)
        self.z_value_dec = nn.Linear(width, size.vocab, bias=False)
        self._initialise()
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make ``z_value_dec`` share the tensor of ``emb`` (again, after an assigning load)."""
        self.z_value_dec.weight = self.emb.weight

    def adapter_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the adapters, the only ones of this network that stage 2 trains."""
        for module in self.modules():
            if isinstance(module, _Adapter):
                yield from module.parameters()

    def forward(
        self,
        ids: Int[Tensor, "n steps"],
        condition: Float[Tensor, "items condition"],
        *,
        use_adapters: bool = True,
    ) -> Float[Tensor, "n steps vocab"]:
        """Logits of each code given the codes before it (teacher forcing).

        ``use_adapters=False`` gives the network as it was before the adapters were put in.

        Raises
        ------
        ValueError : ``condition`` has another length than the network, its rows are not those of
            ``ids``, or the sequence does not fit the position table.
        """
        steps = ids.shape[1]
        self._check(condition, steps)
        if len(ids) != len(condition):
            raise ValueError(f"ids has {len(ids)} rows, condition {len(condition)}")
        x = torch.cat([self._prefix(condition), self.emb(ids[:, :-1])], dim=1)
        x = x + self.pos_emb.weight[: steps + 1]  # (n, 1 + steps, width)
        for block in self.blocks:
            x = block(x, use_adapters=use_adapters)
        return self._logits(x[:, 1:])

    @torch.no_grad()
    def generate(
        self,
        condition: Float[Tensor, "n condition"],
        *,
        length: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = 250,
        uniforms: Float[Tensor, "n steps"] | None = None,
        generators: Sequence[torch.Generator] | None = None,
        greedy: bool = False,
        use_adapters: bool = True,
    ) -> Int[Tensor, "n steps"]:
        """Draw codes one after the other, with cached keys and values.

        Parameters
        ----------
        length : number of codes; ``size.sequence`` if not given.
        temperature : divides the logits, > 0.
        top_k : keep the k most likely codes (all that tie with the k-th); None keeps all.
        uniforms : one number in [0, 1) for each item and step; decides the draw.
        generators : one generator an item, from which ``uniforms`` are drawn if not given.
        greedy : take the most likely code; the four arguments above are then not used.

        Returns
        -------
        ids (n, length), on the device of ``condition``.

        Raises
        ------
        ValueError : a length, temperature, ``top_k`` or shape out of range, or neither
            ``uniforms`` nor ``generators`` nor ``greedy``.
        """
        length = self.size.sequence if length is None else length
        self._check(condition, length)
        if not greedy:
            if not temperature > 0:
                raise ValueError(f"temperature is {temperature}; it must be > 0 (or greedy=True)")
            if top_k is not None and top_k < 1:
                raise ValueError(f"top_k is {top_k}; it must be at least 1, or None for all codes")
            if uniforms is None:
                uniforms = _draw_uniforms(generators, len(condition), length)
            if tuple(uniforms.shape) != (len(condition), length):
                raise ValueError(
                    f"uniforms has shape {tuple(uniforms.shape)}; expected "
                    f"({len(condition)}, {length}): one number for each item and step"
                )
            draws = uniforms.to(condition.device).unbind(1)
        ids = torch.zeros(len(condition), length, dtype=torch.long, device=condition.device)
        caches = [_Cache(len(condition), length + 1) for _ in self.blocks]
        position = self.pos_emb.weight
        x = self._prefix(condition) + position[:2]  # (n, 2, width)
        for step in range(length):
            for block, cache in zip(self.blocks, caches, strict=True):
                x = block(x, cache=cache, use_adapters=use_adapters)
            logits = self._logits(x[:, -1])  # (n, vocab)
            if greedy:
                ids[:, step] = logits.argmax(-1)
            else:
                ids[:, step] = draw_codes(logits, draws[step], temperature, top_k)
            if step + 1 < length:
                x = self.emb(ids[:, step : step + 1]) + position[step + 2]
        return ids

    def _prefix(self, condition: Tensor) -> Tensor:
        start = self.value_start.expand(len(condition), -1)
        return torch.stack([self.clip_project(condition), start], dim=1)  # (n, 2, width)

    def _logits(self, x: Tensor) -> Tensor:
        return self.z_value_dec(self.dec(x)) + self.bias_value

    def _check(self, condition: Tensor, steps: int) -> None:
        if condition.ndim != 2 or condition.shape[1] != self.size.condition:
            raise ValueError(
                f"condition has shape {tuple(condition.shape)}; this decoder takes "
                f"(n, {self.size.condition})"
            )
        if not 1 <= steps <= self.size.positions - 1:
            raise ValueError(
                f"{steps} codes asked for; the position table of this decoder allows 1 to "
                f"{self.size.positions - 1}"
            )

    def _initialise(self) -> None:
        """Weights N(0, 0.02), biases 0; adapters start as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in self.modules():  # after the loop above, which comes to their layers later
            if isinstance(module, _Adapter):
                nn.init.zeros_(module.x_fc2.weight)
        nn.init.normal_(self.value_start, std=0.02)


def draw_codes(
    logits: Float[Tensor, "n vocab"],
    uniforms: Float[Tensor, " n"],
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Int[Tensor, " n"]:
    """Codes where the cumulative distribution first exceeds ``uniforms`` (in [0, 1)).

    The distribution is ``softmax(logits / temperature)`` over the ``top_k`` most likely codes,
    summed in the order of the codes in float64; a code outside of them is never drawn.

    Examples
    --------
    >>> draw_codes(torch.tensor([[0.0, 9.0, 0.0]]).log_softmax(-1), torch.tensor([0.5]))
    tensor([1])
    """
    logits = logits.double() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, float("-inf"))
    cumulative = logits.softmax(-1).cumsum(-1)
    total = cumulative[:, -1:]
    drawn = (cumulative <= uniforms[:, None].double() * total).sum(-1)
    last = (cumulative < total).sum(-1)  # the last code with a probability above rounding
    return torch.minimum(drawn, last)


def _draw_uniforms(generators: Sequence[torch.Generator] | None, n: int, length: int) -> Tensor:
    if generators is None:
        raise ValueError("sampling needs uniforms or generators (one an item), or greedy=True")
    if len(generators) != n:
        raise ValueError(f"{len(generators)} generators for {n} items; expected one an item")
    rows = [
        torch.rand(length, generator=g, dtype=torch.float64, device=g.device).cpu()
        for g in generators
    ]
    return torch.stack(rows) if rows else torch.zeros(0, length, dtype=torch.float64)


class _Cache:
    """Keys and values of one block, grown in place: (n, heads, capacity, head width)."""

    def __init__(self, n: int, capacity: int) -> None:
        self.n, self.capacity, self.filled = n, capacity, 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            shape = (self.n, key.shape[1], self.capacity, key.shape[3])
            self.keys, self.values = key.new_zeros(shape), value.new_zeros(shape)
        start, self.filled = self.filled, self.filled + key.shape[2]
        self.keys[:, :, start : self.filled] = key
        self.values[:, :, start : self.filled] = value
        return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.key = nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, cache: _Cache | None) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )  # (n, heads, steps, head width)
        if cache is not None:
            key, value = cache.extend(key, value)
        # one new step sees all that is cached; several (training, the prefix) need the mask
        y = F.scaled_dot_product_attention(query, key, value, is_causal=x.shape[1] > 1)
        return self.proj(y.transpose(1, 2).flatten(2))


class _Adapter(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.x_fc1 = nn.Linear(width, inner)
        self.x_fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.x_fc2(F.gelu(self.x_fc1(x)))


class _Block(nn.Module):
    def __init__(self, size: ShapeDecoderSize, adapter: bool) -> None:
        super().__init__()
        width = size.width
        self.ln1 = nn.LayerNorm(width)
        self.ln2 = nn.LayerNorm(width)
        self.attn = _Attention(width, size.heads)
        self.adapter = _Adapter(width, int(width * size.adapter_ratio)) if adapter else None
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, *, cache: _Cache | None = None, use_adapters: bool) -> Tensor:
        x = x + self.attn(self.ln1(x), cache)
        if self.adapter is not None and use_adapters:
            x = self.adapter(x)
        return x + self.mlp(self.ln2(x))


class _Head(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(width)
        self.dense = nn.Linear(width, width)
        self.ln2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.ln2(F.gelu(self.dense(self.ln1(x))))
