"""All steps of a walk of :class:`~neurodiff.models.feature_bridge.FeatureBridge`, for less.

Three tokens follow the fMRI tokens: time, noisy embedding, query. Attention is causal, so the time
token does not depend on the noise: it is the same for all candidates of a trial, and those of all
steps are computed at once. Only the query is read in the end, so that the last layer asks the
others for their keys and values alone. The numbers are those of ``network.step``, to rounding, and
have derivatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from neurodiff.models.feature_bridge import BridgeState, FeatureBridge


class BridgeWalk:
    """Steps of prepared conditions at times that are known before.

    Parameters
    ----------
    network : in ``eval`` mode; nothing is dropped here.
    state : of ``network.prepare``, with the number of candidates.
    times : steps of the diffusion path, in the order in which :meth:`step` counts them.
    """

    def __init__(self, network: FeatureBridge, state: BridgeState, times: Sequence[int]) -> None:
        self._network, self._state = network, state
        transformer: Any = network.causal_transformer
        self._layers = [(attend, feed) for attend, feed in transformer.layers]
        self._end = transformer
        self._prefix = state.tokens + 1  # the null key is one of them
        self._bias = transformer.rel_pos_bias(state.tokens, 3)
        self._time = self._times(torch.tensor(list(times), device=self._bias.device))

    def step(self, x_t: Float[Tensor, "rows dim"], number: int) -> Float[Tensor, "rows dim"]:
        """The clean embedding, from noisy ones at ``times[number]``; rows are trial-major."""
        rows, state = len(x_t), self._state
        if rows != state.rows:
            raise ValueError(f"x_t has {rows} rows; the state holds {state.rows}")
        query = self._network.learned_query.expand(rows, -1)
        x = torch.stack([x_t, query], dim=1)
        for layer, (attend, feed) in enumerate(self._layers):
            last = layer == len(self._layers) - 1
            x = (x[:, 1:] if last else x) + self._attended(layer, attend, x, number, last)
            x = x + feed(x)
        return self._end.project_out(self._end.norm(x))[:, -1]

    def _attended(self, layer: int, attend: Any, x: Tensor, number: int, last: bool) -> Tensor:
        """Attention of the noisy token and the query, or in the last layer of the query alone."""
        keys, values = self._state.keys[layer], self._state.values[layer]
        time_key, time_value = self._time[layer]
        keys = torch.cat([keys, time_key[:, number : number + 1]], dim=1)
        values = torch.cat([values, time_value[:, number : number + 1]], dim=1)
        trials, known = keys.shape[:2]
        q, k, v = attend.project(x, self._prefix)  # the place after that of the time token
        bias = self._bias[:, 1:]
        if last:
            q, bias = q[:, :, 1:], bias[:, 1:]
        shape = (trials, len(x) // trials, *q.shape[1:])  # (trials, candidates, heads, asking, d)
        far = (q.reshape(trials, -1, q.shape[-1]) @ keys.mT).reshape(*q.shape[:3], known)
        near = q @ k[:, None].mT
        similar = torch.cat([far + bias[..., :known], near + bias[..., known:]], dim=-1)
        weights = attend._softmax(similar)
        far = weights[..., :known].reshape(trials, -1, known) @ values
        out = far.reshape(shape).flatten(0, 1) + weights[..., known:] @ v[:, None]
        return attend.to_out(out.transpose(1, 2).flatten(2))

    def _times(self, times: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values (trials, times, d) of the time tokens in each layer."""
        state, prefix = self._state, self._prefix
        trials = len(state.keys[0])
        token = self._network.to_time_embeds(times)
        # each time is a row of its own, at the one place that a time token has
        x = token[None].expand(trials, -1, -1).flatten(0, 1)[:, None]
        bias = self._bias[:, :1, : prefix + 1]
        found = []
        for layer, (attend, feed) in enumerate(self._layers):
            q, k, v = attend.project(x, prefix - 1)
            found.append(
                (k.unflatten(0, (trials, -1))[:, :, 0], v.unflatten(0, (trials, -1))[:, :, 0])
            )
            if layer == len(self._layers) - 1:
                break
            shape = (trials, len(times), *q.shape[1:])
            keys, values = state.keys[layer], state.values[layer]
            far = (q.reshape(trials, -1, q.shape[-1]) @ keys.mT).reshape(*q.shape[:3], prefix)
            near = q @ k[:, None].mT
            weights = attend._softmax(torch.cat([far, near], dim=-1) + bias)
            far = weights[..., :prefix].reshape(trials, -1, prefix) @ values
            out = far.reshape(shape).flatten(0, 1) + weights[..., prefix:] @ v[:, None]
            x = x + attend.to_out(out.transpose(1, 2).flatten(2))
            x = x + feed(x)
        return found
