"""Gradients of decoders that are functions of tensors, summed over the features of regions.

Where the first part of a decoder is linear (`LinearFirst`), gradients are taken of the rest alone
and brought back to features at the end, which is the same and reads no features at each step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neurodiff.analysis.attribution_differentiable import Graph, LinearFirst, tensor_scores
from neurodiff.analysis.attribution_pairs import Shown
from neurodiff.analysis.attribution_problem import Problem
from neurodiff.core.errors import UsageError

_BATCH = 32
_ROWS = 64  # of a batch of trials times steps: more leave the processor's cache


class Slopes:
    """Attributions of one subject's trials towards truths of a stage.

    Parameters
    ----------
    graph : of `attribution_differentiable.differentiable`.
    base : the baseline trial (*frames, features).
    masks : (regions, features).
    scalar : what is differentiated.
    """

    def __init__(
        self,
        problem: Problem,
        graph: Graph,
        stage: str,
        shown: Shown,
        base: np.ndarray,
        masks: np.ndarray,
        *,
        scalar: str,
    ) -> None:
        self._problem, self._shown, self._scalar = problem, shown, scalar
        self._parts = graph if isinstance(graph, LinearFirst) else _Whole(problem, graph)
        self._stage, self._base = stage, torch.from_numpy(base)
        self._masks = masks.astype(np.float64)
        self._trials = problem.test.trials.iloc[shown.rows].reset_index(drop=True)
        self._centre = torch.from_numpy(shown.centre[stage]).float()
        self._truth = torch.from_numpy(shown.truth[stage]).float()

    def towards(self, aims: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Towards several stimuli each, one pass through the decoder for all of them.

        Parameters
        ----------
        aims : (n, aims) numbers of stimuli.
        steps : of the integral; 0 is the gradient at the trial.

        Returns
        -------
        By region and in all, (regions + 1, n, aims); mean over trials of the first aim,
        (features,).
        """
        sums = np.zeros((len(self._masks) + 1, *aims.shape))
        total: Any = 0.0
        for place, x in self._batches():
            slopes = self._mean_slopes(x, place, torch.from_numpy(aims[place]), steps)
            for j, values in enumerate(self._brought_back(x, place, slopes)):
                sums[:-1, place, j] = self._masks @ values.T
                sums[-1, place, j] = values.sum(axis=1)
                total = total + values.sum(axis=0) if j == 0 else total
        return sums, total / len(self._trials)

    def gains(self) -> np.ndarray:
        """f(x) - f(b) of each trial towards its own truth, (n,)."""
        out = np.zeros(len(self._trials))
        own = torch.from_numpy(self._shown.code)
        with torch.no_grad():
            for place, x in self._batches():
                aim, trials = own[torch.from_numpy(place)], self._trials.iloc[place]
                ends = (x, self._base.expand_as(x).contiguous())
                after, before = (
                    self._scores(self._parts.linear(end, trials), place, aim) for end in ends
                )
                out[place] = (after - before).double().numpy()
        return out

    def _batches(self) -> Iterator[tuple[np.ndarray, Tensor]]:
        rows = self._shown.rows
        for first in range(0, len(rows), _BATCH):
            place = np.arange(first, min(first + _BATCH, len(rows)))
            values = np.array(self._problem.test.data[rows[place]], np.float32)
            yield place, torch.from_numpy(values)

    def _scores(self, numbers: Tensor, place: np.ndarray, aim: Tensor) -> Tensor:
        return tensor_scores(self._decoded(numbers, place), self._truth[aim], self._scalar)

    def _decoded(self, numbers: Tensor, place: np.ndarray) -> Tensor:
        found = self._parts.rest(numbers, self._trials.iloc[place], self._stage)
        return found.flatten(1) - self._centre

    def _mean_slopes(self, x: Tensor, place: np.ndarray, aims: Tensor, steps: int) -> list[Tensor]:
        """Mean gradient over the straight way from the baseline, for each aim."""
        trials = self._trials.iloc[place]
        with torch.no_grad():
            end = self._parts.linear(x, trials)
            start = self._parts.linear(self._base.expand_as(x).contiguous(), trials)
        if steps and aims.shape[1] == 1:
            return [self._by_captum(end, start, place, aims[:, 0], steps)]
        nodes, weights = np.polynomial.legendre.leggauss(steps or 1)
        places = (nodes + 1) / 2 if steps else np.ones(1)
        weights = weights / 2 if steps else np.ones(1)
        together = max(_ROWS // len(x), 1)  # nodes a pass
        out = [torch.zeros_like(end) for _ in range(aims.shape[1])]
        for first in range(0, len(places), together):
            some = list(range(first, min(first + together, len(places))))
            at = torch.cat([start + float(places[k]) * (end - start) for k in some])
            at.requires_grad_()
            decoded = self._decoded(at, np.tile(place, len(some)))
            weight = torch.tensor(weights[some], dtype=at.dtype).repeat_interleave(len(x))
            for j, mean in enumerate(out):
                true = self._truth[aims[:, j].repeat(len(some))]
                value = (weight * tensor_scores(decoded, true, self._scalar)).sum()
                keep = j + 1 < len(out)
                (slope,) = torch.autograd.grad(value, at, retain_graph=keep, allow_unused=True)
                if slope is not None:
                    mean += slope.unflatten(0, (len(some), len(x))).sum(dim=0)
        return out

    def _by_captum(
        self, end: Tensor, start: Tensor, place: np.ndarray, aim: Tensor, steps: int
    ) -> Tensor:
        from captum.attr import IntegratedGradients

        def f(numbers: Tensor, row: Tensor, towards: Tensor) -> Tensor:
            return self._scores(numbers, row.numpy(), towards)

        return (
            IntegratedGradients(f, multiply_by_inputs=False)
            .attribute(
                end,
                baselines=start,
                additional_forward_args=(torch.from_numpy(place), aim),
                n_steps=steps,
                method="gausslegendre",
                internal_batch_size=max(_ROWS, len(end)),
            )
            .detach()
        )

    def _brought_back(
        self, x: Tensor, place: np.ndarray, slopes: list[Tensor]
    ) -> Iterator[np.ndarray]:
        """Attributions (n, features), frames summed, of each aim."""
        at = x.clone().requires_grad_()
        numbers = self._parts.linear(at, self._trials.iloc[place])
        for j, slope in enumerate(slopes):
            given = (numbers * slope).sum()
            (found,) = torch.autograd.grad(given, at, retain_graph=j + 1 < len(slopes))
            values = ((x - self._base) * found).double().numpy()
            yield values.reshape(len(x), -1, values.shape[-1]).sum(axis=1)


class _Whole:
    """A graph without a linear part that is known."""

    def __init__(self, problem: Problem, graph: Graph) -> None:
        self._name, self._graph = problem.decoder.name, graph

    def linear(self, data: Tensor, trials: pd.DataFrame) -> Tensor:
        return data * 1

    def rest(self, numbers: Tensor, trials: pd.DataFrame, stage: str) -> Tensor:
        given = self._graph(numbers, trials)
        if stage not in given:
            raise UsageError(
                f"the decoder {self._name!r} has a stage {stage!r} that its tensors do not give; "
                f"they give {', '.join(given)}"
            )
        return given[stage]
