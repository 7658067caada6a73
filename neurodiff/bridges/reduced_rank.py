"""Ridge through a bottleneck of r dimensions, in closed form for every r.

How much of a reconstruction comes from the brain, and how much from the generator's prior?
BrainBits (Mayo et al. 2024) answers with the curve over the size of a bottleneck between the two,
trained by gradient descent. The best bottleneck of a ridge is known (reduced-rank regression:
Izenman 1975; with a penalty: Mukherjee & Zhu 2011): the weights W become W V V', with V the r
leading right singular vectors of the fitted values of [X; sqrt(a) I] W. From the kernel's
eigenvectors, with h = e / (e + a) and the eigenvectors Q of

    M = diag(sqrt h) U' Y Y' U diag(sqrt h)                  one pass over the targets

the prediction of new rows is

    scores(new) diag(1 / sqrt h) Q_r   Q_r' diag(sqrt h) U' Y        (m, r) times (r, targets)

so that one more pass gives every r. Summing ``Y Y'`` over heads, weighted, gives the bottleneck
that several heads share (BrainBits weighs 1, 2, 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from neurodiff.bridges.device_algebra import Multiplier, symmetric_eigen
from neurodiff.bridges.factored_ridge import FactoredRidge
from neurodiff.bridges.kernel_factor import KernelFactor, float_type
from neurodiff.bridges.target_statistics import centred_block
from neurodiff.core.columns import ColumnSource
from neurodiff.core.errors import DataError, UsageError

#: sizes of the bottleneck in BrainBits; None is no bottleneck
RANKS: tuple[int | None, ...] = (1, 2, 5, 10, 20, 50, 100, 500, None)
_TINY = 1e-12  # share of the largest eigenvalue below which a direction of X is not there


@dataclass(frozen=True, eq=False, kw_only=True)
class Bottleneck:
    """The best r directions of a ridge, for every r up to its rank; from `find_bottleneck`.

    Attributes
    ----------
    inward : (r, n) rows in order of importance; ``inward[:k] @ Y`` are the k numbers' loadings.
    unscale, directions : (r,), (r, r): a new row's k numbers are
        ``scores / unscale @ directions[:, :k]``.
    outward : (n, r) the targets' coordinates, ``Y V``, up to the scale of V.
    energy : (r,) squared singular values of the fitted values, descending.
    alpha : the penalty, absolute.
    kept : which eigenvectors of the kernel are there.
    """

    factor: KernelFactor
    inward: np.ndarray
    unscale: np.ndarray
    directions: np.ndarray
    outward: np.ndarray
    energy: np.ndarray
    alpha: float
    kept: np.ndarray

    @property
    def rank(self) -> int:
        """Of the fit without a bottleneck: at most this many directions exist."""
        return len(self.energy)

    def codes(self, X: np.ndarray, rank: int) -> np.ndarray:
        """The numbers that pass the bottleneck; (m, p) -> (m, rank)."""
        rows = np.asarray(X, np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.factor.features:
            raise DataError(f"X has shape {rows.shape}; expected (rows, {self.factor.features})")
        scores = self.factor.scores(rows - self.factor.mean, self.alpha)[:, self.kept]
        return scores / self.unscale @ self.directions[:, :rank]

    def leave_out_codes(self, rank: int) -> np.ndarray:
        """The same of each training trial, by the ridge that never saw it; (n, rank).

        The directions themselves are those of all trials: they do not have to be told anew for
        each trial left out, and are a little kinder to it than to a new one.
        """
        return self.factor.leave_out(self.alpha) @ self.outward[:, :rank]


def target_gram(
    factor: KernelFactor,
    targets: ColumnSource,
    *,
    dtype: np.dtype | str = "float64",
    block: int = 4096,
) -> np.ndarray:
    """``Y Y'`` of the centred targets in one pass; (n, n) float64."""
    if targets.rows != factor.trials:
        raise DataError(f"the factor has {factor.trials} trials and the targets {targets.rows}")
    total = np.zeros((targets.rows, targets.rows))
    for place in targets.slices(block):
        Y, _ = centred_block(targets, place, float_type(dtype))
        total += Y @ Y.T
    return total


def find_bottleneck(factor: KernelFactor, alpha: float, gram: np.ndarray) -> Bottleneck:
    """Directions of a ridge in order of what they explain.

    Parameters
    ----------
    alpha : the penalty, absolute, > 0.
    gram : (n, n) ``Y Y'`` of the centred targets, or a weighted sum over heads that share the
        bottleneck.
    """
    if not (np.isfinite(alpha) and alpha > 0):
        raise UsageError(f"alpha is {alpha!r}; a penalty is a positive number")
    if gram.shape != (factor.trials, factor.trials):
        raise DataError(f"gram has shape {gram.shape}; expected {(factor.trials,) * 2}")
    values, U, _ = factor.eigen
    kept = values > values[-1] * _TINY
    if not kept.any() or not np.any(gram):
        raise DataError("brain data or targets are constant: there is no direction to order")
    values, U = values[kept], U[:, kept]
    root = np.sqrt(values / (values + alpha))
    inner = root[:, None] * (U.T @ gram @ U) * root
    energy, Q = symmetric_eigen((inner + inner.T) / 2, factor.device)
    energy, Q = energy[::-1].clip(0), Q[:, ::-1]
    real = energy > energy[0] * _TINY
    energy, Q = energy[real], Q[:, real]
    return Bottleneck(
        factor=factor,
        inward=(Q.T * root) @ U.T,
        unscale=root,
        directions=Q,
        outward=gram @ ((U * root) @ Q / energy),
        energy=energy,
        alpha=float(alpha),
        kept=kept,
    )


def bottleneck_predictions(
    bridge: FactoredRidge,
    X: np.ndarray,
    ranks: Sequence[int | None] = RANKS,
    *,
    bottleneck: Bottleneck | None = None,
) -> Iterator[tuple[slice, dict[int | None, np.ndarray]]]:
    """Predictions of new rows through bottlenecks of several sizes, in one pass over the targets.

    Parameters
    ----------
    bridge : fitted, with one penalty for the head; its ``standardise`` holds here, too, with the
        statistics of each size of the bottleneck.
    ranks : sizes >= 1; None is no bottleneck. A size above the rank of the fit is the same as none.
    bottleneck : one shared with other heads; made from this head's targets if None.

    Yields
    ------
    (columns, {rank: (m, columns)}) for one block of targets after another.

    Raises
    ------
    UsageError : no or wrong ranks, or a bridge with a penalty for each target.
    """
    if np.ndim(bridge.alpha_):
        raise UsageError("this bridge has a penalty for each target; fit it with alpha_per='head'")
    for rank in ranks:
        if rank is not None and (not isinstance(rank, int | np.integer) or rank < 1):
            raise UsageError(
                f"a bottleneck of {rank!r} numbers; give whole numbers from 1, or None"
            )
    if not ranks:
        raise UsageError("no sizes were named; give ranks such as [1, 10, None]")
    if bridge.standardise == "test" and len(X) < 2:
        raise DataError("standardise='test' takes its statistics from several test trials; got 1")
    dtype, factor = float_type(bridge.dtype), bridge.factor_
    if bottleneck is None:
        gram = target_gram(factor, bridge.targets_, dtype=dtype, block=bridge.block)
        bottleneck = find_bottleneck(factor, float(bridge.alpha_), gram)
    return _stream(bridge, np.asarray(X), tuple(ranks), bottleneck, dtype)


def _stream(
    bridge: FactoredRidge,
    X: np.ndarray,
    ranks: tuple[int | None, ...],
    bottleneck: Bottleneck,
    dtype: np.dtype,
) -> Iterator[tuple[slice, dict[int | None, np.ndarray]]]:
    sizes = {r: bottleneck.rank if r is None else min(r, bottleneck.rank) for r in ranks}
    largest = max(sizes.values())
    inward = Multiplier(bottleneck.inward[:largest], dtype, bridge.factor_.device)
    codes = bottleneck.codes(X, largest).astype(dtype)
    if bridge.standardise == "loo":
        trained = bottleneck.leave_out_codes(largest)
        average = trained.mean(axis=0)
        uppers = {
            k: np.asarray(np.linalg.qr((trained - average)[:, :k], mode="r"))
            for k in sizes.values()
        }
    for place in bridge.targets_.slices(bridge.block):
        Y, mean = centred_block(bridge.targets_, place, dtype)
        loadings = inward(Y)
        found = {}
        for rank, k in sizes.items():
            part = codes[:, :k] @ loadings[:k]
            if bridge.standardise == "loo" and k == bottleneck.rank:  # nothing is held back
                known = bridge.statistics_
                at, spread = known.loo_mean[place] - mean, known.loo_std[place]
                part = _rescaled(part, at, spread, bridge, place)
            elif bridge.standardise == "loo":
                spread = Multiplier(uppers[k], dtype).squared_norms(loadings[:k])
                at = average[:k] @ loadings[:k]
                part = _rescaled(part, at, np.sqrt(spread / len(Y)), bridge, place)
            elif bridge.standardise == "test":
                at, spread = part.mean(0, np.float64), part.std(0, np.float64)
                part = _rescaled(part, at, spread, bridge, place)
            found[rank] = part + mean.astype(dtype)
        yield place, found


def _rescaled(
    part: np.ndarray, mean: np.ndarray, std: np.ndarray, bridge: FactoredRidge, place: slice
) -> np.ndarray:
    std = np.where(bridge.statistics_.std[place] == 0, 1.0, std)  # constant: stays what it is
    if not (std > 0).all():
        raise DataError(
            f"predictions of target {place.start + int(np.argmin(std))} through the bottleneck do "
            "not vary, so they cannot be re-standardised: fit with standardise='none'"
        )
    scale = bridge.statistics_.std[place] / std
    return ((part - mean) * scale).astype(part.dtype)
