"""Ridge on several families of features at once, with a weight for each family (banded ridge).

Each family's kernel is scaled to a mean eigenvalue of 1, so that a family of 60,000 numbers does
not outweigh one of 12, and a model of several families is ridge on the weighted sum of kernels,

    K(w) = sum_f w_f X_f X_f' / mean eigenvalue,   w_f > 0, sum w = 1

which is the same as a penalty of its own for each family. Weights and penalty are chosen for each
target by exact leave-one-group-out error from a small grid; one eigendecomposition a grid point.

References
----------
Nunez-Elizalde, Huth & Gallant 2019, NeuroImage 197; Dupré la Tour et al. 2022, NeuroImage 264.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from neurodiff.bridges.leave_out import leave_out_residuals, repeated_rows
from neurodiff.core.errors import DataError

_TARGETS = 2048  # in memory at a time


def family_weights(n: int, *, banded: bool = True) -> np.ndarray:
    """Weights of ``n`` families to choose from, (choices, n); each row sums to 1.

    Equal weights; and, banded, each family alone at 0.9 and at 0.99 of the whole.
    """
    rows = [np.full(n, 1 / n)]
    if banded and n > 1:
        for most in (0.9, 0.99):
            rows += [np.where(np.arange(n) == k, most, (1 - most) / (n - 1)) for k in range(n)]
    return np.stack(rows)


def banded_predictions(
    train: Mapping[str, np.ndarray],
    test: Mapping[str, np.ndarray],
    responses: np.ndarray,
    families: Sequence[str],
    *,
    alphas: Any = None,
    banded: bool = True,
    groups: Any = None,
) -> np.ndarray:
    """Predict the responses to the test rows from some of the families; (m, targets).

    Parameters
    ----------
    train, test : family -> (n, d_f) and (m, d_f); centred here by the training mean, not scaled.
    responses : (n, targets) of the training rows.
    families : which of them the model has.
    alphas : penalties in units of the summed kernel's mean eigenvalue (1); None: 13 from 1e-3 to
        1e3.
    banded : choose weights of the families, else equal ones.
    groups : (n,) what is left out together when weights and penalties are chosen.

    Raises
    ------
    DataError : a family that never varies, or rows that do not match.
    """
    kernels = [_kernels(name, train[name], test[name], len(responses)) for name in families]
    grid = np.sort(np.logspace(-3, 3, 13) if alphas is None else np.asarray(alphas, float).ravel())
    if len(grid) == 0 or not (np.isfinite(grid) & (grid > 0)).all():
        raise DataError(f"alphas must be positive numbers; got {alphas!r}")
    members = repeated_rows(groups, len(responses))
    responses = np.asarray(responses, np.float64)
    mean = responses.mean(axis=0)
    centred = responses - mean
    best = np.full(centred.shape[1], np.inf)
    predicted = np.zeros((len(kernels[0][1]), centred.shape[1]))
    for weights in family_weights(len(families), banded=banded):
        inner = sum(w * k for w, (k, _) in zip(weights, kernels, strict=True))
        across = sum(w * k for w, (_, k) in zip(weights, kernels, strict=True))
        eigenvalues, U = np.linalg.eigh(inner)
        eigenvalues = np.clip(eigenvalues, 0, None)
        projected = across @ U
        for start in range(0, centred.shape[1], _TARGETS):
            at = slice(start, min(start + _TARGETS, centred.shape[1]))
            Y = centred[:, at]
            UtY = U.T @ Y
            errors = np.stack(
                [
                    np.square(leave_out_residuals(a, eigenvalues, U, Y, UtY, members)).sum(axis=0)
                    for a in grid
                ]
            )
            chosen, least = errors.argmin(axis=0), errors.min(axis=0)
            better = least < best[at]
            for k in np.unique(chosen[better]):
                which = np.flatnonzero(better & (chosen == k))
                shrunk = UtY[:, which] / (eigenvalues + grid[k])[:, None]
                predicted[:, start + which] = projected @ shrunk
            best[at] = np.minimum(best[at], least)
    return predicted + mean


def _kernels(
    name: str, train: np.ndarray, test: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel of the training rows, and of the test rows with them, by the same scale."""
    train, test = np.asarray(train, np.float64), np.asarray(test, np.float64)
    if len(train) != n or train.ndim != 2 or train.shape[1:] != test.shape[1:]:
        raise DataError(
            f"family {name!r} is {train.shape} for training and {test.shape} for test; expected "
            f"{n} training rows and the same features in both"
        )
    mean = train.mean(axis=0)
    train = train - mean
    inner = train @ train.T
    scale = np.trace(inner) / n
    if not scale > 0:
        raise DataError(f"no feature of family {name!r} varies in training; leave it out")
    return inner / scale, (test - mean) @ train.T / scale
