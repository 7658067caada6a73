"""Earth mover's distance between point sets: exact optimal transport, Euclidean cost.

Two sets of n points are an assignment problem. The solver (Jonker-Volgenant, through SciPy) needs
0.3 to 3 s for 2,048 points, most of it where the sets differ much. Handing it *reduced* costs
``c_ij - u_i - v_j`` changes no optimal assignment, whatever ``u`` and ``v`` are, and shortens its
searches where they are close to the optimal prices. Prices of a quarter of the points by entropic
transport, extended to all, are close enough: about 0.5 s, and the answer stays exact.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

COARSE = 4  # every fourth point is priced
TEMPERATURES = (0.2, 0.1, 0.05, 0.02, 0.01)  # of the entropic transport, in mean costs
ROUNDS = 10
SMALL = 256  # below this the plain solver is as fast


def earth_movers_distance(a: Float[np.ndarray, "n 3"], b: Float[np.ndarray, "m 3"]) -> float:
    """Exact optimal transport between two point sets of uniform weights, Euclidean cost.

    Sets of one size are matched one to one, about 0.5 s for 2,048 points. Sets of different sizes
    are solved as a linear programme, meant for up to 200 points.

    Returns
    -------
    Mean distance a unit of mass moves, in the unit of the points.

    Raises
    ------
    ValueError : a set is empty or not finite.

    References
    ----------
    Rubner et al. 2000, International Journal of Computer Vision 40. Crouse 2016, IEEE Transactions
    on Aerospace and Electronic Systems 52 (the solver). Cuturi 2013, NeurIPS (the first prices).
    """
    from scipy.optimize import linear_sum_assignment, linprog
    from scipy.sparse import eye_array, kron, vstack
    from scipy.spatial.distance import cdist

    for name, points in (("first", a), ("second", b)):
        if len(points) == 0:
            raise ValueError(f"the {name} point set is empty; a distance needs at least one point")
        if not np.isfinite(points).all():
            raise ValueError(f"the {name} point set holds NaN or infinity")
    cost = cdist(a, b)
    n, m = cost.shape
    if n == m:
        return float(cost[linear_sum_assignment(_reduced(cost))].mean())
    leaving = kron(eye_array(n), np.ones((1, m)))
    arriving = kron(np.ones((1, n)), eye_array(m))
    masses = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    plan = linprog(cost.ravel(), A_eq=vstack([leaving, arriving]).tocsr(), b_eq=masses)
    if not plan.success:
        raise ValueError(f"the transport of {n} to {m} points was not solved: {plan.message}")
    return float(plan.fun)


def _reduced(cost: np.ndarray) -> np.ndarray:
    """Costs less the prices of both sides: not negative, zero near the optimum; (n, n)."""
    scale = float(cost.mean())
    if len(cost) < SMALL or scale == 0:
        return cost
    part = cost[::COARSE]  # (n / 4, n)
    rows = _prices((part[:, ::COARSE] / scale).astype(np.float32)) * scale
    columns = (part - rows[:, None]).min(axis=0)
    reduced = cost - columns
    reduced -= reduced.min(axis=1, keepdims=True)
    reduced -= reduced.min(axis=0, keepdims=True)
    return reduced


def _prices(cost: np.ndarray) -> np.ndarray:
    """Row prices of the entropic transport, cooled step by step; mean cost 1; (n,)."""
    rows = np.zeros(len(cost), np.float32)
    columns = np.zeros(cost.shape[1], np.float32)
    tiny = np.float32(1e-30)
    for temperature in TEMPERATURES:
        exponent = (rows[:, None] + columns - cost) / np.float32(temperature)
        kernel = np.exp(np.minimum(exponent, np.float32(60)))
        out = np.ones(len(columns), np.float32)
        for _ in range(ROUNDS):
            into = 1 / np.maximum(kernel @ out, tiny)
            out = 1 / np.maximum(into @ kernel, tiny)
        rows = rows + np.float32(temperature) * np.log(into)
        columns = columns + np.float32(temperature) * np.log(out)
    return rows.astype(np.float64)
