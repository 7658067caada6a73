"""Activation patterns of a linear decoder: what its weights say about where a signal is.

A decoder's weights ``W`` (features x latents, s = X W) are large also where a vertex only helps to
cancel noise. The pattern of the forward model that belongs to it,

    A = cov(X) W cov(s)^-1                                             (Haufe et al. 2014, eq. 6)

is large only where the response varies with the latents. Since cov(X) W = cov(X, s), no features x
features matrix is made: A is the regression of each vertex on the decoded latents.

References
----------
Haufe, Meinecke, Görgen, Dähne, Haynes, Blankertz & Bießmann 2014, NeuroImage 87.
"""

from __future__ import annotations

import numpy as np

from neurodiff.bridges.leave_out import leave_out_residuals, repeated_rows
from neurodiff.core.errors import DataError


def activation_patterns(X: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Patterns (features, latents) of a linear decoder from what it decodes for the rows of X.

    Parameters
    ----------
    X : (n, features), the rows on which the decoder was fitted.
    decoded : (n, latents), X W plus any constant.

    Returns
    -------
    In units of X for one unit of the latent, the other latents held.

    Raises
    ------
    DataError : rows that do not match, or latents that are constant or combinations of each other.
    """
    X, decoded = np.asarray(X, np.float64), np.asarray(decoded, np.float64)
    if X.ndim != 2 or decoded.ndim != 2 or len(X) != len(decoded):
        raise DataError(
            f"X is {X.shape} and decoded is {decoded.shape}; expected (n, features) and "
            "(n, latents) of the same trials"
        )
    s = decoded - decoded.mean(axis=0)
    covariance = s.T @ s
    if np.linalg.matrix_rank(covariance, hermitian=True) < s.shape[1]:
        raise DataError(
            f"the {s.shape[1]} decoded latents are constant or combinations of each other, so they "
            "have no patterns of their own: take fewer latents, or a smaller penalty"
        )
    return np.linalg.solve(covariance, s.T @ (X - X.mean(axis=0))).T


class LatentDecoder:
    """Ridge from brain data to a few latents, factored once, refitted to permuted latents cheaply.

    Parameters
    ----------
    X : (n, features); centred here.
    alphas : in units of the kernel's mean eigenvalue; None: 13 from 1e-3 to 1e3.
    groups : (n,) names of what is left out together when the penalty is chosen.
    """

    def __init__(self, X: np.ndarray, alphas: object = None, groups: object = None) -> None:
        self.centred = np.asarray(X, np.float64) - np.mean(X, axis=0, dtype=np.float64)
        eigenvalues, self.U = np.linalg.eigh(self.centred @ self.centred.T)
        self.eigenvalues = np.clip(eigenvalues, 0, None)
        scale = self.eigenvalues.mean()
        if not scale > 0:
            raise DataError(f"none of the {self.centred.shape[1]} features varies over the trials")
        grid = np.logspace(-3, 3, 13) if alphas is None else np.asarray(alphas, float).ravel()
        if len(grid) == 0 or not (np.isfinite(grid) & (grid > 0)).all():
            raise DataError(f"alphas must be positive numbers; got {alphas!r}")
        self.grid = np.sort(grid) * scale
        self.members = repeated_rows(groups, len(self.centred))

    def choose(self, latents: np.ndarray) -> float:
        """The penalty with the least leave-one-group-out error, summed over latents."""
        Y = latents - latents.mean(axis=0)
        UtY = self.U.T @ Y
        errors = [
            np.square(leave_out_residuals(a, self.eigenvalues, self.U, Y, UtY, self.members)).sum()
            for a in self.grid
        ]
        return float(self.grid[int(np.argmin(errors))])

    def decoded(self, latents: np.ndarray, alpha: float) -> np.ndarray:
        """X W of the ridge fitted to these latents, (n, latents), centred."""
        kept = self.eigenvalues / (self.eigenvalues + alpha)
        return self.U @ (kept[:, None] * (self.U.T @ (latents - latents.mean(axis=0))))

    def weights(self, latents: np.ndarray, alpha: float) -> np.ndarray:
        """W of that ridge, (features, latents)."""
        dual = self.U.T @ (latents - latents.mean(axis=0))
        return self.centred.T @ (self.U @ (dual / (self.eigenvalues + alpha)[:, None]))


def leading_latents(features: np.ndarray, most: int) -> tuple[np.ndarray, float]:
    """Principal components of standardised features, of unit variance, and their share of variance.

    Parameters
    ----------
    features : (n, d). most : components; fewer where the features span fewer.

    Returns
    -------
    (n, components), signs such that the largest entry of each is positive; and from 0 to 1.
    """
    features = np.asarray(features, np.float64)
    centred = features - features.mean(axis=0)
    spread = centred.std(axis=0)
    kept = spread > 1e-10 * np.maximum(np.abs(features).max(axis=0), 1e-300)
    if not kept.any():
        raise DataError(f"none of the {features.shape[1]} features varies; there are no latents")
    scaled = centred[:, kept] / spread[kept]
    values, vectors = np.linalg.eigh(scaled @ scaled.T)
    values, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    n = min(most, int((values > 1e-9 * values[0]).sum()))
    latents = vectors[:, :n] * np.sqrt(len(features))
    largest = latents[np.abs(latents).argmax(axis=0), np.arange(n)]
    return latents * np.sign(largest), float(values[:n].sum() / values.sum())


def projected_latents(
    train: np.ndarray, test: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of standardised training features, (n, c), and the test rows on them.

    Both by the mean, SD and axes of training; components have unit variance in training.
    """
    mean, spread = train.mean(axis=0), train.std(axis=0)
    kept = spread > 1e-10 * np.maximum(np.abs(train).max(axis=0), 1e-300)
    if not kept.any():
        raise DataError(f"none of the {train.shape[1]} features varies; there are no latents")
    own = (train[:, kept] - mean[kept]) / spread[kept]
    values, vectors = np.linalg.eigh(own @ own.T)
    values, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    n = min(most, int((values > 1e-9 * values[0]).sum()))
    scale = np.sqrt(len(own))
    across = (test[:, kept] - mean[kept]) / spread[kept] @ own.T
    return vectors[:, :n] * scale, across @ vectors[:, :n] / values[:n] * scale
