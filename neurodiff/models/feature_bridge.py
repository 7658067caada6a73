"""The diffusion prior of MinD-3D: from the fMRI tokens of a trial to an image embedding.

A causal transformer reads the fMRI tokens, the time, the noisy image embedding and a learned
query, in this order, and predicts the clean embedding at the query
(:mod:`neurodiff.models.feature_bridge_transformer`).  Parameter names are the published ones.

Because the fMRI tokens come first and attention is causal, nothing about them depends on the time
or the noise.  ``prepare`` computes their keys and values once; ``step`` then runs three tokens
only, for any number of candidates of a trial, with the same numbers as the whole network.

The published loss and sampling loop are in :mod:`neurodiff.models.feature_bridge_2024`.

Sources: Gao et al., "MinD-3D", ECCV 2024; Ramesh et al., "Hierarchical Text-Conditional Image
Generation with CLIP Latents", 2022 (the prior).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from neurodiff.models.feature_bridge_transformer import (
    BridgeState,
    CausalTransformer,
    FeatureBridgeSize,
)


class FeatureBridge(nn.Module):
    """Predict the clean image embedding from a noisy one and fMRI tokens.

    Parameters
    ----------
    size : the sizes; default as published.
    protocol : "neurodiff-1" computes in the dtype of the weights, layer-norm eps 1e-5.
        "mind3d-2024" is the published code: eps 1e-3 in every dtype but float32 (so in fp16 and
        bf16 too), and softmax in float32.  In float32 both give the same numbers.
    attn_drop, ff_drop : dropout of attention weights and feed-forwards; published training 0.01.

    Raises
    ------
    ValueError : another protocol.
    """

    def __init__(
        self,
        size: FeatureBridgeSize | None = None,
        *,
        protocol: str = "neurodiff-1",
        attn_drop: float = 0.0,
        ff_drop: float = 0.0,
    ):
        super().__init__()
        if protocol not in ("neurodiff-1", "mind3d-2024"):
            raise ValueError(f"protocol {protocol!r}; known: 'neurodiff-1', 'mind3d-2024'")
        self.size = size = size or FeatureBridgeSize()
        self.protocol, dim = protocol, size.dim
        self.learned_query = nn.Parameter(torch.randn(dim))
        self.null_fmri_encodings = nn.Parameter(torch.randn(1, size.null_tokens, dim))  # unread
        self.null_fmri_embeds = nn.Parameter(torch.randn(1, 1, dim))
        self.null_image_embed = nn.Parameter(torch.randn(1, dim))
        self.to_time_embeds = nn.Sequential(nn.Embedding(size.timesteps, dim))
        self.causal_transformer = CausalTransformer(size, protocol, attn_drop, ff_drop)

    def forward(
        self,
        x_t: Float[Tensor, "rows dim"],
        t: Int[Tensor, " rows"] | int,
        fmri_tokens: Float[Tensor, "rows tokens dim"],
        *,
        drop_fmri: Bool[Tensor, " rows"] | None = None,
        drop_image: Bool[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, "rows dim"]:
        """Clean embedding, from all tokens in one pass (training).

        Parameters
        ----------
        x_t : noisy embeddings, in the units of the diffusion (norm about sqrt(dim)).
        t : steps of the diffusion path, 0 to ``timesteps`` - 1.
        fmri_tokens : conditions, a row each.
        drop_fmri : rows whose fMRI tokens are replaced by the learned null token.
        drop_image : rows whose noisy embedding is replaced by the learned null embedding.
        """
        condition = self._condition(fmri_tokens, drop_fmri)
        last = self._last_tokens(x_t, t, drop_image)
        return self.causal_transformer(torch.cat([condition, last], dim=1))[:, -1]

    def prepare(
        self,
        fmri_tokens: Float[Tensor, "trials tokens dim"],
        drop_mask: Bool[Tensor, " trials"] | None = None,
    ) -> BridgeState:
        """Keys and values of the conditions, for :meth:`step`; exact, for use in ``eval`` mode."""
        return self.causal_transformer.prepare(self._condition(fmri_tokens, drop_mask))

    def step(
        self,
        x_t: Float[Tensor, "rows dim"],
        t: Int[Tensor, " rows"] | int,
        state: BridgeState,
        drop_image: Bool[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, "rows dim"]:
        """As :meth:`forward` for prepared conditions; rows are trial-major (trial, candidate).

        Raises
        ------
        ValueError : the rows are not those of the state.
        """
        if len(x_t) != state.rows:
            raise ValueError(
                f"x_t has {len(x_t)} rows; the state holds {state.rows} "
                f"({len(state.keys[0])} trials x {state.candidates} candidates)"
            )
        last = self._last_tokens(x_t, t, drop_image)
        return self.causal_transformer.step(last, state)[:, -1]

    def _condition(self, tokens: Tensor, drop: Tensor | None) -> Tensor:
        if tokens.shape[2] != self.size.dim:
            raise ValueError(f"fMRI tokens have {tokens.shape[2]} features, not {self.size.dim}")
        if drop is None:
            return tokens
        return torch.where(drop[:, None, None], self.null_fmri_embeds, tokens)

    def _last_tokens(self, x_t: Tensor, t: Tensor | int, drop: Tensor | None) -> Tensor:
        """Time, noisy embedding and query: (rows, 3, dim)."""
        rows = len(x_t)
        if not isinstance(t, Tensor):
            t = torch.full((rows,), t, device=x_t.device)
        if drop is not None:
            x_t = torch.where(drop[:, None], self.null_image_embed, x_t)
        query = self.learned_query.expand(rows, -1)
        return torch.stack([self.to_time_embeds(t), x_t, query], dim=1)
