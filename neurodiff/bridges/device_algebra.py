"""The few heavy matrix operations of ridge, on NumPy or on a device of torch.

Arrays come in and go out in host memory; ``device="cpu"`` is NumPy and SciPy, anything else a name
that torch knows ("cuda", "cuda:1", "mps"), and "torch" is torch on the CPU. A device that is not
there is refused; nothing falls back to another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg

from neurodiff.core.errors import UsageError

#: columns of X that are multiplied at a time for the Gram matrix, in float64
_GRAM_COLUMNS = 2048


def check_device(device: str) -> str:
    """``device`` itself, if it can be used now.

    Raises
    ------
    UsageError : torch does not know the name, or sees no such device.
    """
    if device in ("cpu", "torch"):
        return device
    import torch

    try:
        torch.zeros(1, device=device).add_(1)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise UsageError(
            f"device={device!r} cannot be used here ({reason}); give device='cpu', or run where "
            "torch sees that device"
        ) from None
    return device


def gram(rows: np.ndarray, device: str = "cpu") -> np.ndarray:
    """``rows @ rows.T`` in float64, whatever the type of ``rows``; (n, n)."""
    n, p = rows.shape
    if device != "cpu":
        total = _put(np.zeros((n, n)), device)
        for start in range(0, p, _GRAM_COLUMNS):
            block = _put(rows[:, start : start + _GRAM_COLUMNS], device).to(total.dtype)
            total.addmm_(block, block.T)
        return _get(total)
    if rows.dtype == np.float64:
        return rows @ rows.T
    out = np.zeros((n, n))
    for start in range(0, p, _GRAM_COLUMNS):
        block = rows[:, start : start + _GRAM_COLUMNS].astype(np.float64)
        out += block @ block.T  # the same array twice: NumPy computes one triangle
    return out


def product(a: np.ndarray, b: np.ndarray, device: str = "cpu") -> np.ndarray:
    """``a @ b``"""
    if device == "cpu":
        return a @ b
    return _get(_put(a, device) @ _put(b, device))


def symmetric_eigen(matrix: np.ndarray, device: str = "cpu") -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix; may overwrite it."""
    if device == "cpu":
        return scipy.linalg.eigh(matrix, overwrite_a=True, check_finite=False, driver="evd")
    import torch

    values, vectors = torch.linalg.eigh(_put(matrix, device))
    return _get(values), _get(vectors)


def positive_solver(matrix: np.ndarray, device: str = "cpu") -> Callable[[np.ndarray], np.ndarray]:
    """Function B -> ``matrix^-1 B`` of a symmetric positive definite matrix; may overwrite it."""
    if device == "cpu":
        factor = scipy.linalg.cho_factor(matrix, overwrite_a=True, check_finite=False)
        return lambda right: scipy.linalg.cho_solve(factor, right, check_finite=False)
    import torch

    lower = torch.linalg.cholesky(_put(matrix, device))
    return lambda right: _get(torch.cholesky_solve(_put(right, device), lower))


def inverse_positive(matrix: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Inverse of a symmetric positive definite matrix; may overwrite it."""
    if device != "cpu":
        import torch

        return _get(torch.cholesky_inverse(torch.linalg.cholesky(_put(matrix, device))))
    upper, failed = scipy.linalg.lapack.dpotrf(matrix.T, lower=0, overwrite_a=1)
    if not failed:
        upper, failed = scipy.linalg.lapack.dpotri(upper, lower=0, overwrite_c=1)
    if failed:
        raise np.linalg.LinAlgError("the matrix is not positive definite")
    strict = np.tril_indices(len(upper), -1) if len(upper) < 512 else None
    if strict is not None:
        upper[strict] = upper.T[strict]
        return upper
    for k in range(0, len(upper), 512):  # the other triangle, without indices of n x n
        upper[k : k + 512, :k] = upper[:k, k : k + 512].T
        part = upper[k : k + 512, k : k + 512]
        part[...] = np.triu(part) + np.triu(part, 1).T
    return upper


def upper_factor(matrix: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Upper triangular R with ``|R y| == |matrix y|`` for every y that sums to zero.

    By the Cholesky factor of ``matrix.T @ matrix``, of which the direction of equal numbers, where
    it may be singular, is filled up; by QR if it is singular elsewhere, too.
    """
    squared = gram(matrix.T, device)
    squared += np.trace(squared) / len(squared) ** 2
    try:
        return scipy.linalg.cholesky(squared, overwrite_a=True, check_finite=False)
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.qr(matrix, mode="r"))


class Multiplier:
    """A matrix that stays on the device and multiplies one block after another.

    Parameters
    ----------
    matrix : (m, n)
    dtype : type in which it multiplies.
    upper : the matrix is upper triangular; the zeros below are skipped in eight steps.
    """

    def __init__(
        self, matrix: np.ndarray, dtype: Any, device: str = "cpu", *, upper: bool = False
    ) -> None:
        self.device, self.rows = device, len(matrix)
        self.upper = upper
        matrix = np.ascontiguousarray(matrix, dtype=dtype)
        self.matrix = matrix if device == "cpu" else _put(matrix, device)

    def __call__(self, block: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """``matrix @ block``; (n, c) -> (m, c). ``out`` is where NumPy may put it."""
        if self.device == "cpu":
            return np.matmul(self.matrix, block, out=out)
        return _get(self.matrix @ _put(block, self.device))

    def squared_norms(self, block: np.ndarray) -> np.ndarray:
        """Squared length of each column of ``matrix @ block``, in float64; (n, c) -> (c,)."""
        rows, on_device = self.rows, self.device != "cpu"
        if on_device:
            block = _put(block, self.device)
        step = max(256, -(-rows // 8))
        total = np.zeros(block.shape[1])
        for start in range(0, rows, step):
            first = start if self.upper else 0
            part = self.matrix[start : start + step, first:] @ block[first:]
            if on_device:
                total += _get(part.square().sum(0)).astype(np.float64)
            else:
                total += np.einsum("ij,ij->j", part, part)
        return total


def _put(array: np.ndarray, device: str) -> Any:
    import torch

    if not array.flags.writeable or min(array.strides, default=0) < 0:
        array = array.copy()  # torch takes neither as it is
    tensor = torch.from_numpy(array)
    if device == "mps" and tensor.dtype == torch.float64:
        raise UsageError("device='mps' has no float64, in which ridge is factored; use 'cpu'")
    return tensor.to("cpu" if device == "torch" else device)


def _get(tensor: Any) -> np.ndarray:
    return tensor.cpu().numpy()
