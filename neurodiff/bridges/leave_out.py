"""Exact leave-one-out, and leave-one-group-out, of ridge with an intercept, without a refit.

With K = U diag(e) U' of the centred rows, h = e / (e + a) and r the residuals of the fit,

    leave-one-out residual of trial i    r_i / (1 - sum_j U_ij^2 h_j - 1/n)
    of a group g of trials               (I - U_g diag(h) U_g' - 1/n)^-1 r_g

(Hastie, Tibshirani & Friedman 2009, eq. 7.64, with the hat matrix of centring added).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neurodiff.core.errors import UsageError


def repeated_rows(groups: object, n: int) -> tuple[np.ndarray, ...]:
    """Row numbers of each group that has more than one row; none if ``groups`` is None.

    Raises
    ------
    UsageError : not one name for each row, or all rows are one group, so that none is left.
    """
    if groups is None:
        return ()
    labels = np.asarray(groups)
    if labels.shape != (n,):
        raise UsageError(f"groups has shape {labels.shape}; expected one name for each of {n} rows")
    codes, counts = np.unique(labels, return_inverse=True, return_counts=True)[1:]
    return tuple(np.flatnonzero(codes == k) for k in np.flatnonzero(counts > 1))


def leave_out_residuals(
    alpha: float,
    eigenvalues: np.ndarray,
    U: np.ndarray,
    Y: np.ndarray,
    UtY: np.ndarray,
    members: Sequence[np.ndarray] = (),
) -> np.ndarray:
    """What the model that never saw a trial (or its group) gets wrong on it; (n, targets).

    Parameters
    ----------
    alpha : the penalty, absolute, > 0.
    eigenvalues, U : (r,) and (n, r); r = n, or fewer where the rest of the kernel is zero.
    Y, UtY : centred targets (n, targets), and ``U.T @ Y``.
    members : row numbers of each group that has several rows.
    """
    n, rank = U.shape
    kept = (eigenvalues / (eigenvalues + alpha)).astype(U.dtype)
    if rank == n:  # the difference written out, so that a small penalty loses no digits
        shrink = (alpha / (eigenvalues + alpha)).astype(U.dtype)
        residuals = U @ (shrink[:, None] * UtY)
        room = np.square(U) @ shrink - 1.0 / n
    else:
        residuals = Y - U @ (kept[:, None] * UtY)
        room = 1.0 - np.square(U) @ kept - 1.0 / n
    # a trial that alone fixes its own prediction has leverage 1: no error can be told there
    out = residuals / np.maximum(room, 1e-12)[:, None].astype(U.dtype)
    for rows in members:
        inside = np.eye(len(rows)) - (U[rows] * kept) @ U[rows].T - 1.0 / n
        out[rows] = np.linalg.lstsq(inside, residuals[rows], rcond=None)[0]
    return out


def leave_out_matrix(smoother: np.ndarray, members: Sequence[np.ndarray] = ()) -> np.ndarray:
    """P with ``P @ Yc`` = leave-one-out predictions minus the targets' mean; (n, n).

    Parameters
    ----------
    smoother : S = a (K + a I)^-1, which gives the residuals of the fit; overwritten.
    """
    n = len(smoother)
    insides = [smoother[np.ix_(rows, rows)] - 1.0 / n for rows in members]
    grouped = [
        np.linalg.lstsq(inside, smoother[rows], rcond=None)[0]
        for inside, rows in zip(insides, members, strict=True)
    ]
    smoother /= -np.maximum(np.diag(smoother) - 1.0 / n, 1e-12)[:, None]
    for rows, solved in zip(members, grouped, strict=True):
        smoother[rows] = -solved
    smoother[np.diag_indices(n)] += 1.0
    return smoother
