"""One factorisation of the brain data, shared by every penalty, target, head and permutation.

For centred X (n trials, p vertices) and any penalty a,

    prediction of new rows = H(a) (Y - mean) + mean,      H(a) = K_new (K + a I)^-1,  K = X X'

so that weights, which outweigh everything else, are never made. K = U diag(e) U' is found once
(from the p x p covariance where p < n) and gives H for any penalty; for one penalty alone a
Cholesky factor is cheaper, and is what is used until the eigenvectors have been asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from neurodiff.bridges.device_algebra import (
    check_device,
    gram,
    inverse_positive,
    positive_solver,
    product,
    symmetric_eigen,
)
from neurodiff.bridges.leave_out import leave_out_matrix, repeated_rows
from neurodiff.core.errors import DataError, UsageError

#: penalties whose leave-one-out operators are kept: 0.3 GB each for 8,859 trials in float32
KEPT_OPERATORS = 3


@dataclass(frozen=True, eq=False, kw_only=True)
class KernelFactor:
    """Centred brain data and, made when first asked for, the eigenvectors of its kernel.

    Attributes
    ----------
    mean : (p,) float64, of each vertex over the trials.
    centred : (n, p), in the type that was asked for.
    members : row numbers of each group with several rows; they are left out together.
    device : where the heavy products run.
    """

    mean: np.ndarray
    centred: np.ndarray
    members: tuple[np.ndarray, ...] = ()
    device: str = "cpu"

    @property
    def trials(self) -> int:
        """Number of training trials."""
        return self.centred.shape[0]

    @property
    def features(self) -> int:
        """Number of features."""
        return self.centred.shape[1]

    @property
    def primal(self) -> bool:
        """Whether the p x p covariance is factored, because it is the smaller one."""
        return self.features < self.trials

    @cached_property
    def mean_eigenvalue(self) -> float:
        """Of the n x n kernel: the unit of relative penalties. 1 if all trials are equal."""
        flat = self.centred.reshape(-1)
        trace = sum(
            float(np.dot(part, part))
            for part in (flat[k : k + 2**22].astype(np.float64) for k in range(0, flat.size, 2**22))
        )
        return trace / self.trials or 1.0

    @cached_property
    def kernel(self) -> np.ndarray:
        """K = X X'; (n, n) float64."""
        return gram(self.centred, self.device)

    @cached_property
    def eigen(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Eigenvalues (r,), U (n, r), and in the primal form V / sqrt(e) (p, r), else None."""
        if not self.primal:
            values, U = symmetric_eigen(self._kernel_copy(), self.device)
            return np.clip(values, 0, None), U, None
        values, V = symmetric_eigen(gram(self.centred.T, self.device), self.device)
        real = values > values[-1] * self.features * np.finfo(np.float64).eps
        values, V = values[real], V[:, real]
        V = V / np.sqrt(values)
        return values, product(self.centred.astype(np.float64), V, self.device), V

    def hat(self, rows: np.ndarray, alpha: float, *, centre: bool = True) -> np.ndarray:
        """H(alpha) of new rows; (m, p) -> (m, n) float64.

        ``centre=False`` takes the rows as they are, for a pattern over vertices instead of a
        trial: then ``H @ (Y - mean)`` is the pattern times the weights, without an intercept.
        """
        rows = np.asarray(rows, np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.features:
            raise DataError(
                f"new rows have shape {rows.shape}; this bridge was fitted on {self.features} "
                "features: give (rows, features) of the same mask"
            )
        if centre:
            rows = rows - self.mean
        if self.by_eigenvectors:
            return product(self.scores(rows, alpha), self.eigen[1].T, self.device)
        return self._solve(alpha, self.against(rows).T).T

    def scores(self, rows: np.ndarray, alpha: float) -> np.ndarray:
        """H(alpha) in the basis of the eigenvectors, ``H == scores @ U.T``; (m, p) -> (m, r).

        The rows are taken as they are.
        """
        values, U, V = self.eigen
        if V is None:
            return product(self.against(rows), U, self.device) / (values + alpha)
        return product(rows, V, self.device) * (values / (values + alpha))

    def against(self, rows: np.ndarray) -> np.ndarray:
        """``rows @ X'`` in float64; (m, p) -> (m, n). The rows are taken as they are."""
        if self.centred.dtype == np.float64:
            return product(rows, self.centred.T, self.device)
        out = np.zeros((len(rows), self.trials))
        for k in range(0, self.features, 2048):  # float64 of a few columns at a time
            part = self.centred[:, k : k + 2048].astype(np.float64)
            out += product(rows[:, k : k + 2048], part.T, self.device)
        return out

    def dual(self, alpha: float, Y: np.ndarray) -> np.ndarray:
        """``(K + alpha I)^-1 Y`` of centred targets; (n, t) -> (n, t) float64."""
        Y = np.asarray(Y, np.float64)
        if not self.by_eigenvectors:
            return self._solve(alpha, Y)
        values, U, _ = self.eigen
        UtY = product(U.T, Y, self.device)
        if U.shape[1] == self.trials:
            return product(U, UtY / (values + alpha)[:, None], self.device)
        inside = product(U, UtY * (values / (values + alpha))[:, None], self.device)
        return (Y - inside) / alpha

    def leave_out(self, alpha: float) -> np.ndarray:
        """P(alpha): leave-one-out predictions minus mean = P @ centred targets; (n, n).

        In the type of the centred data. Those of the last few penalties are kept, as heads that
        share the factor ask for the same ones: do not write into it.
        """
        kept = self.__dict__.setdefault("_operators", {})
        if alpha not in kept:
            while len(kept) >= KEPT_OPERATORS:
                del kept[next(iter(kept))]
            kept[alpha] = self._leave_out(alpha).astype(self.centred.dtype, copy=False)
        return kept[alpha]

    def _leave_out(self, alpha: float) -> np.ndarray:
        if self.by_eigenvectors:
            values, U, _ = self.eigen
            if U.shape[1] == self.trials:
                smoother = gram(U * np.sqrt(alpha / (values + alpha)), self.device)
            else:
                smoother = -gram(U * np.sqrt(values / (values + alpha)), self.device)
                smoother[np.diag_indices(self.trials)] += 1.0
        else:
            smoother = self.kernel.copy()
            smoother[np.diag_indices(self.trials)] += alpha
            smoother = inverse_positive(smoother, self.device)
            smoother *= alpha
        return leave_out_matrix(smoother, self.members)

    def refuse_other(self, X: np.ndarray) -> None:
        """DataError if ``X`` is not what was factored: its shape and a few rows are compared."""
        if X.shape != self.centred.shape:
            raise DataError(
                f"X has shape {X.shape} and the factor {self.centred.shape}; factorise the same "
                "trials"
            )
        rows = np.unique(np.linspace(0, self.trials - 1, 5).astype(int))
        here = np.asarray(X[rows] - self.mean, self.centred.dtype)
        if not np.allclose(here, self.centred[rows], rtol=1e-5, atol=1e-6):
            raise DataError("the factor was made from other brain data of this shape; factorise(X)")

    def with_groups(self, groups: object) -> KernelFactor:
        """The same factor, leaving out these groups; nothing is computed again."""
        return self.with_members(repeated_rows(groups, self.trials))

    def with_members(self, members: tuple[np.ndarray, ...]) -> KernelFactor:
        """As `with_groups`, with the row numbers of each group."""
        if [rows.tolist() for rows in members] == [rows.tolist() for rows in self.members]:
            return self
        other = replace(self, members=members)
        for name in ("kernel", "eigen", "mean_eigenvalue"):
            if name in self.__dict__:
                other.__dict__[name] = self.__dict__[name]
        return other

    @property
    def by_eigenvectors(self) -> bool:
        """Whether the eigenvectors are used: they are cheap, or have been asked for."""
        return self.primal or "eigen" in self.__dict__

    def __getstate__(self) -> dict[str, Any]:
        cheap = {"_solver", "_operators"}
        return {name: value for name, value in self.__dict__.items() if name not in cheap}

    def _solve(self, alpha: float, right: np.ndarray) -> np.ndarray:
        """``(K + alpha I)^-1 right``; the Cholesky factor of the last penalty is kept."""
        last = self.__dict__.get("_solver")
        if last is None or last[0] != alpha:
            self.__dict__.pop("_solver", None)
            shifted = self.kernel.copy()
            shifted[np.diag_indices(self.trials)] += alpha
            last = self.__dict__["_solver"] = alpha, positive_solver(shifted, self.device)
        return last[1](right)

    def _kernel_copy(self) -> np.ndarray:
        """The kernel, to be overwritten: what was kept of it is given up for the eigenvectors."""
        self.__dict__.pop("_solver", None)
        kept = self.__dict__.pop("kernel", None)
        return gram(self.centred, self.device) if kept is None else kept


def factorise(
    X: Any, *, dtype: Any = np.float64, device: str = "cpu", groups: object = None
) -> KernelFactor:
    """Centre the brain data once for all heads, penalties and targets.

    Parameters
    ----------
    X : (n, p) trials by vertices; finite, no constant vertex.
    dtype : float64, or float32, which keeps the centred data in half the memory; the kernel and
        its eigenvectors are float64 in both.
    device : "cpu" (NumPy) or a device of torch.
    groups : (n,) names of what is left out together, such as the stimulus of each trial.

    Raises
    ------
    DataError : not a matrix of at least two trials, NaN, or a vertex that never varies.
    UsageError : another dtype, or a device that is not there.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> factor = factorise(rng.standard_normal((20, 50)))
    >>> factor.hat(rng.standard_normal((3, 50)), 10.0).shape
    (3, 20)
    """
    dtype = float_type(dtype)
    check_device(device)
    X = np.asarray(X)
    if X.ndim != 2 or X.dtype.kind not in "biuf":
        raise DataError(f"X has shape {X.shape} of {X.dtype}; expected numbers (trials, vertices)")
    if len(X) < 2 or X.shape[1] < 1:
        raise DataError(f"X has shape {X.shape}; ridge needs at least 2 trials and 1 vertex")
    mean = X.mean(axis=0, dtype=np.float64)
    if not np.isfinite(mean).all():
        bad = np.flatnonzero(~np.isfinite(mean))
        raise DataError(
            f"X holds NaN or infinity in {len(bad)} of {X.shape[1]} vertices, first in number "
            f"{bad[0]}; mask or repair these vertices before fitting"
        )
    constant = np.flatnonzero((X[:1] == X).all(axis=0))
    if len(constant):
        raise DataError(
            f"{len(constant)} of {X.shape[1]} vertices have zero variance over the {len(X)} "
            f"trials, first number {constant[0]}; a constant feature carries nothing: leave it out "
            "of the mask"
        )
    centred = np.asarray(X - mean, dtype)
    return KernelFactor(
        mean=mean, centred=centred, members=repeated_rows(groups, len(X)), device=device
    )


def float_type(dtype: Any) -> np.dtype:
    """float32 or float64 as a dtype; anything else is a UsageError."""
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = np.dtype(object)
    if found not in (np.float32, np.float64):
        raise UsageError(f"dtype is {dtype!r}; ridge streams in 'float64' or 'float32'")
    return found
