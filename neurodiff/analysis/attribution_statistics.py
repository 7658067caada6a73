"""Scores of decoded features, and what chance and resampling make of them.

Repeats of a stimulus are one item: they are averaged before anything is permuted or resampled.
Predictions and truth are centred over the test stimuli and divided by the SD of the truth, number
by number; then, of predictions i and truths j,

    correlation   Pearson correlation over features of prediction i and truth j; chance 0
    two_way       share of the other truths that prediction i is less correlated with; chance 1/2
    feature_r     mean over features of the products of z-scores; the mean of the diagonal is the
                  mean correlation over stimuli of a feature with its prediction; chance 0

Every metric is a matrix over (predicted stimulus, truth), whose diagonal holds the score of each
stimulus. A null is the mean of the matrix under another pairing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from neurodiff.analysis.exchange import exchange_of, run_sets
from neurodiff.analysis.exchange import exchange_words as exchange_words  # beside its blocks
from neurodiff.core.errors import DataError, UsageError, suggest
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.metrics.encoding_scores import exchange_orders
from neurodiff.metrics.statistics import permutation_p

METRICS = {"correlation": 0.0, "two_way": 0.5, "feature_r": 0.0}
"""Name -> chance."""
OTHERS = {
    "ssim": "pictures", "pixcorr": "pictures", "lpips": "pictures", "clip": "pictures",
    "cd": "meshes", "emd": "meshes", "fpd": "meshes", "fid": "sets of pictures", "iou": "meshes",
}  # fmt: skip
FEW_STIMULI = 60
"""Below, intervals are a little too narrow. Student's t, BCa (also expanded) and the studentised
bootstrap were tried on 20 and 50 stimuli: none covers better."""
LEAST_FEATURES = 8  # of a stage whose profile over features is correlated by "auto"
_TINY = 1e-12


def checked_metric(metric: str, features: int = LEAST_FEATURES) -> str:
    """The metric by name; "auto" is the correlation of profiles, or for few features feature_r.

    Raises
    ------
    UsageError : no metric of decoded features, or a profile of fewer than 3 features.
    """
    if metric == "auto":
        return "correlation" if features >= LEAST_FEATURES else "feature_r"
    if metric not in METRICS:
        what = OTHERS.get(metric.lower())
        why = f" ({metric} compares {what})" if what else ""
        raise UsageError(
            f"{metric!r} is no score of decoded features{why}; there are {', '.join(METRICS)}."
            f"{suggest(metric, METRICS)}"
        )
    if features < 3 and metric != "feature_r":
        raise UsageError(
            f"{metric} needs a profile of at least 3 features and this stage has {features}; use "
            "feature_r"
        )
    return metric


@dataclass(frozen=True, eq=False)
class Scorer:
    """Scores of one subject's predictions at one stage.

    Parameters
    ----------
    truth : (trials, d), equal for trials of one stimulus.
    trials : the table of these trials: stimulus, session and run are read.
    metric : of :data:`METRICS`.

    Raises
    ------
    DataError : NaN, truth that never varies, or that differs between repeats of a stimulus.
    """

    truth: np.ndarray
    trials: pd.DataFrame
    metric: str

    def __post_init__(self) -> None:
        values = np.asarray(self.truth, np.float64).reshape(len(self.truth), -1)
        if not np.isfinite(values).all():
            raise DataError("the truth holds NaN or infinity; leave these stimuli out")
        names = self.trials["stimulus"].astype(str).to_numpy()
        ids, first, of = np.unique(names, return_index=True, return_inverse=True)
        if not np.allclose(values, values[first][of], rtol=1e-4, atol=1e-6):
            raise DataError(
                "the truth differs between repeats of one stimulus; give it by stimulus"
            )
        rows = values[first]
        sd = rows.std(axis=0)
        kept = sd > _TINY * max(1.0, float(np.abs(rows).max()))
        if not kept.any():
            raise DataError("the truth is the same for all stimuli; there is nothing to tell apart")
        target = (rows[:, kept] - rows[:, kept].mean(axis=0)) / sd[kept]
        object.__setattr__(self, "ids", ids)
        object.__setattr__(self, "of", of)
        object.__setattr__(self, "_kept", kept)
        object.__setattr__(self, "_sd", sd[kept])
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_profile", _unit(target - target.mean(axis=1, keepdims=True)))
        object.__setattr__(self, "_count", np.bincount(of).astype(float))
        object.__setattr__(self, "blocks", exchange_blocks(self.trials, ids, of))

    @property
    def chance(self) -> float:
        return METRICS[self.metric]

    def matrix(self, predicted: np.ndarray) -> np.ndarray:
        """(stimuli, stimuli): score of each prediction, were each stimulus its truth."""
        x = self._checked(predicted)[:, self._kept] / self._sd
        x = x - x.mean(axis=0)
        if self.metric == "feature_r":
            means = self._by_stimulus(x)
            spread = means.std(axis=0)
            moves = spread > 1e-9 * max(1.0, float(spread.max(initial=0.0)))
            z = np.where(moves, (means - means.mean(axis=0)) / np.where(moves, spread, 1.0), 0.0)
            return z @ self._target.T / self._target.shape[1]
        x = x - x.mean(axis=1, keepdims=True)
        similar = _unit(x) @ self._profile.T
        if self.metric == "two_way":
            from scipy.stats import rankdata

            similar = (rankdata(np.round(similar, 12), axis=1) - 1) / (similar.shape[1] - 1)
        return self._by_stimulus(similar)

    def _checked(self, predicted: np.ndarray) -> np.ndarray:
        x = np.asarray(predicted, np.float64).reshape(len(predicted), -1)
        if x.shape != (len(self.of), len(self._kept)):
            raise DataError(
                f"the decoder gives {x.shape[1]} features for {x.shape[0]} trials and the truth "
                f"has {len(self._kept)} for {len(self.of)}; give the features it was fitted to"
            )
        if not np.isfinite(x).all():
            row = int(np.argwhere(~np.isfinite(x))[0][0])
            raise DataError(
                f"the decoder gives NaN or infinity, first in trial {row} of this subject; "
                "attribution needs numbers for every trial and replacement"
            )
        return x

    def _by_stimulus(self, rows: np.ndarray) -> np.ndarray:
        if len(rows) == len(self.ids):  # one trial each, in another order
            out = np.empty_like(rows)
            out[self.of] = rows
            return out
        out = np.zeros((len(self.ids), rows.shape[1]))
        np.add.at(out, self.of, rows)
        return out / self._count[:, None]


def exchange_blocks(trials: pd.DataFrame, ids: np.ndarray, of: np.ndarray) -> np.ndarray | None:
    """Which stimuli may change places under the null, by the rule of `exchange`.

    Returns
    -------
    A label for each stimulus, or None where all may.
    """
    if not {"session", "run"} <= set(trials):
        return None
    run = trials["session"].astype(str) + " / " + trials["run"].astype(str)
    return exchange_of(run_sets(run.to_numpy(dtype=str), of, len(ids))).blocks


def interval_words(stimuli: int) -> str:
    """What must be known of an interval over so few stimuli; empty where they are enough."""
    if stimuli >= FEW_STIMULI:
        return ""
    return (
        f"Intervals over {stimuli} stimuli hold the true value in about 93 to 95 % of simulated "
        "subjects without signal, not in 95 %: take an end near 0 for 0."
    )


class Resampling:
    """Intervals and nulls of one subject's stimuli: every region sees the same draws."""

    def __init__(
        self, stimuli: int, subject: str, *, draws: int, seed: int, confidence: float
    ) -> None:
        self.draws, self.confidence = draws, confidence
        self.seed = item_seed(seed, subject=subject, stimulus="", stage="attribution") % 2**32
        self._weights = _weights(stimuli, draws, self.seed)

    def interval(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Expanded percentile interval of the mean over stimuli of (stimuli, ...) values.

        The percentiles are taken further out, by Student's quantile and sqrt(n / (n - 1)): those of
        the plain bootstrap are too narrow for few stimuli (Hesterberg 2015, The American
        Statistician 69, section 4.2). The decoder and the set of other stimuli are held.
        """
        means = np.tensordot(self._weights, values, axes=(1, 0))
        tail = 100 * expanded_tail(self._weights.shape[1], self.confidence)
        low, high = np.percentile(means, [tail, 100 - tail], axis=0)
        return low, high

    def pairing_p(self, matrix: np.ndarray, blocks: np.ndarray | None) -> tuple[float, np.ndarray]:
        """One-sided p of the mean of the diagonal under other pairings, and the null's means."""
        labels = ("",) * len(matrix) if blocks is None else tuple(str(block) for block in blocks)
        orders = _orders(labels, self.draws, self.seed)
        null = matrix[np.arange(len(matrix)), orders].mean(axis=1)
        return permutation_p(float(np.diagonal(matrix).mean()), null), null


@lru_cache(maxsize=4)
def _weights(stimuli: int, draws: int, seed: int) -> np.ndarray:
    """(draws, stimuli) shares of a bootstrap; kept, because every method asks for the same."""
    counts = numpy_generator(seed).multinomial(stimuli, np.full(stimuli, 1 / stimuli), size=draws)
    return counts / stimuli


@lru_cache(maxsize=4)
def _orders(blocks: tuple[str, ...], draws: int, seed: int) -> np.ndarray:
    """(draws, stimuli), kept: regions, stages and methods are paired anew in the same ways."""
    return exchange_orders(blocks, draws, seed)


def expanded_tail(stimuli: int, confidence: float) -> float:
    """Share of the bootstrap's means beyond each end of an expanded percentile interval.

    Examples
    --------
    >>> round(expanded_tail(10, 0.95), 4), round(expanded_tail(1000, 0.95), 4)
    (0.0086, 0.0248)
    """
    from scipy.stats import norm, t

    wide = np.sqrt(stimuli / (stimuli - 1)) * t.ppf((1 + confidence) / 2, stimuli - 1)
    return float(norm.cdf(-wide))


def max_statistic_p(values: np.ndarray, nulls: np.ndarray) -> np.ndarray:
    """p of each value against the greatest of all, which bounds the chance of one false region.

    Parameters
    ----------
    values : (regions,).
    nulls : (regions, draws); draw k is the same permutation for every region. Each region is
        brought to its null's mean and SD first, so that a large one does not hide the others.

    References
    ----------
    Westfall & Young 1993, Resampling-Based Multiple Testing; Nichols & Holmes 2002, HBM 15.

    Examples
    --------
    >>> nulls = np.array([[-1.0, 1.0, 0.0], [1.0, -1.0, 0.0]])
    >>> max_statistic_p(np.array([3.0, 0.5]), nulls)
    array([0.25, 0.75])
    """
    centre, spread = nulls.mean(axis=1), nulls.std(axis=1)
    scale = np.where(spread > _TINY, spread, np.inf)
    greatest = ((nulls - centre[:, None]) / scale[:, None]).max(axis=0)
    seen = (values - centre) / scale
    beaten = (greatest >= seen[:, None] - _TINY).sum(axis=1)
    return (1 + beaten) / (1 + nulls.shape[1])


def adjusted(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg q of the p that are numbers; NaN elsewhere."""
    from scipy.stats import false_discovery_control

    p = np.asarray(p, float)
    q, known = np.full(p.shape, np.nan), np.isfinite(p)
    if known.any():
        q[known] = false_discovery_control(p[known])
    return q


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row that never varies stays 0: it is correlated with nothing."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(length > 1e-9, rows / np.where(length > 1e-9, length, 1.0), 0.0)
