"""Inversion: exact round trips, the map between two Gaussian domains, a trained network."""

import math
from itertools import pairwise

import pytest
import torch
from scipy import fft

from neurodiff.diffusion.grids import karras, trailing
from neurodiff.diffusion.heads import V
from neurodiff.diffusion.inversion import invert
from neurodiff.diffusion.objective import Objective
from neurodiff.diffusion.paths import EDM, Flow, cosine, scaled_linear
from neurodiff.diffusion.sampling import NetworkDenoiser, sample
from neurodiff.diffusion.solvers import DDIM

SHAPE = (3, 4, 5)
FIRST = torch.linspace(0.1, 2.0, 60, dtype=torch.float64).reshape(SHAPE)  # s² of each direction
SECOND = torch.linspace(1.5, 0.3, 60, dtype=torch.float64).reshape(SHAPE)


class Field:
    """Exact denoiser of N(mu, C), C diagonal in the cosine basis."""

    def __init__(self, power, mu):
        self.power, self.mu = power, mu

    def __call__(self, x, level, state):
        rest = torch.from_numpy(fft.dctn((x - level.alpha * self.mu).numpy(), **AXES))
        v = level.alpha**2 * self.power + level.sigma**2
        return self.mu + volume(level.alpha * self.power / v * rest)

    def factor(self, grid):
        """What DDIM on this grid multiplies each direction by."""
        whole = torch.ones(SHAPE, dtype=torch.float64)
        for a, b in pairwise(grid):
            v = a.alpha**2 * self.power + a.sigma**2
            whole *= (a.alpha * b.alpha * self.power + a.sigma * b.sigma) / v
        return whole


AXES = {"axes": (-3, -2, -1), "norm": "ortho"}


def volume(x):
    return torch.from_numpy(fft.idctn(x.numpy(), **AXES))


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MU, NU, X = normal(*SHAPE, seed=1), normal(*SHAPE, seed=2), normal(3, *SHAPE, seed=3)
GRIDS = {
    "vp": trailing(cosine(100), 20),
    "vp, coarse": trailing(scaled_linear(1000), 5),
    "edm": karras(EDM((20.0, 0.01)), 18),
    "flow": trailing(Flow(), 12),
}


@pytest.mark.parametrize("name", GRIDS)
def test_round_trip_is_exact(name):
    grid, field = GRIDS[name], Field(FIRST, MU)
    back = invert(field, X, grid, iterations=60)
    torch.testing.assert_close(sample(field, back.x, grid, DDIM()), X, rtol=0, atol=1e-12)
    assert back.residuals.shape == (len(grid) - 1, 61)
    assert back.residuals[:, -1].max() < 1e-13


@pytest.mark.parametrize("name", GRIDS)
def test_the_inverse_is_the_inverse_factor(name):
    """One number a direction: where a step of DDIM shrinks by f, inversion grows by 1 / f."""
    grid, field = GRIDS[name], Field(FIRST, MU)
    if name == "flow":
        grid = grid[1:]  # from pure noise the last factor is only sigma_b / sigma_a
    rest = torch.from_numpy(fft.dctn((X - MU).numpy(), **AXES))
    expected = grid[0].alpha * MU + volume(rest / field.factor(grid))
    ours = invert(field, X, grid, iterations=60).x
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_residuals_are_of_the_best_iterate():
    grid, field = GRIDS["vp, coarse"], Field(FIRST, MU)
    residuals = invert(field, X, grid, iterations=12, memory=0).residuals
    assert (residuals.diff(dim=1) <= 0).all()
    # without mixing: at worst 1 - ratio_b / ratio_a an iteration
    for (b, a), seen in zip(pairwise(reversed(grid)), residuals, strict=True):
        rate = (seen[-1] / seen[0]) ** (1 / 12)
        assert rate <= 1 - b.ratio / a.ratio + 1e-6
    mixed = invert(field, X, grid, iterations=12).residuals
    assert (mixed[:, -1] < residuals[:, -1]).all()


def test_explicit_inversion_misses_by_the_order_of_a_step():
    field, misses = Field(FIRST, MU), []
    for n in (80, 160):
        grid = karras(EDM((20.0, 0.01)), n)
        explicit = invert(field, X, grid, iterations=0)
        assert explicit.residuals.shape == (n, 0)
        misses.append((sample(field, explicit.x, grid, DDIM()) - X).norm())
    assert misses[0] / misses[1] == pytest.approx(2, abs=0.3)
    assert misses[1] > 1e-3


def test_explicit_step_is_the_published_one():
    """DDIM backwards (Song et al. 2021; LDAE): mean and noise at x_b, recombined at level a."""
    a, b = cosine(100).level(40), cosine(100).level(20)
    mean = normal(3, *SHAPE, seed=9)
    eps = (X - b.alpha * mean) / b.sigma
    ours = invert(lambda x, level, state: mean, X, [a, b], iterations=0).x
    torch.testing.assert_close(ours, a.alpha * mean + a.sigma * eps, rtol=0, atol=1e-12)


def mapped(grid):
    back = invert(Field(FIRST, MU), X, grid, iterations=60)
    return sample(Field(SECOND, NU), back.x, grid, DDIM())


def test_domain_map_on_a_grid():
    """Noise of one domain, data of the other: each direction by the ratio of the two factors."""
    grid = trailing(cosine(100), 10)
    first, second = Field(FIRST, MU).factor(grid), Field(SECOND, NU).factor(grid)
    rest = torch.from_numpy(fft.dctn((X - MU).numpy(), **AXES))
    between = torch.from_numpy(fft.dctn((grid[0].alpha * (MU - NU)).numpy(), **AXES))
    expected = NU + volume(second * (rest / first + between))
    torch.testing.assert_close(mapped(grid), expected, rtol=0, atol=1e-9)


def test_domain_map_goes_to_the_optimal_map():
    """Commuting covariances: T(x) = nu + C2^(1/2) C1^(-1/2) (x - mu); the error falls as 1 / n.

    From pure noise (flow, alpha = 0) nothing of the difference of the means is left in it."""
    rest = torch.from_numpy(fft.dctn((X - MU).numpy(), **AXES))
    optimal = NU + volume((SECOND / FIRST).sqrt() * rest)
    errors = [(mapped(trailing(Flow(), n)) - optimal).norm().item() for n in (40, 80)]
    assert errors[1] / optimal.norm() < 0.02
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.1)


def test_the_best_iterate_is_kept_where_there_is_no_solution():
    """x_0 = 5 cannot be the mean of a denoiser that stays within 1: the least residual is 0.8."""
    grid = [cosine(100).level(60), cosine(100).level(0), trailing(cosine(100), 1)[-1]]
    x0 = torch.full((2, 1), 5.0, dtype=torch.float64)
    x0[1] = 0.3
    back = invert(lambda x, level, state: torch.tanh(x), x0, grid, iterations=60)
    again = sample(lambda x, level, state: torch.tanh(x), back.x, grid[:2], DDIM())
    last = back.residuals[0, -1].item()
    assert last == pytest.approx(0.8, abs=1e-6)
    assert again.isfinite().all()


def test_a_grid_of_one_level_is_refused():
    with pytest.raises(ValueError, match="at least two levels"):
        invert(Field(FIRST, MU), X, GRIDS["vp"][:1])


def test_an_item_is_inverted_by_itself():
    grid, field = GRIDS["vp"], Field(FIRST, MU)
    together = invert(field, X, grid, iterations=8).x
    alone = invert(field, X[1:2], grid, iterations=8).x
    torch.testing.assert_close(alone, together[1:2], rtol=1e-6, atol=1e-6)
    turned = invert(field, X.flip(0), grid, iterations=8).x
    torch.testing.assert_close(turned.flip(0), together, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def trained():
    """A network that has learned a ring of eight points in the plane: not log-concave."""
    torch.manual_seed(0)
    width = 64
    net = torch.nn.Sequential(
        torch.nn.Linear(4, width),
        torch.nn.SiLU(),
        torch.nn.Linear(width, width),
        torch.nn.SiLU(),
        torch.nn.Linear(width, 2),
    ).double()

    def network(x, t, cond):
        place = t[:, None] / 100
        return net(torch.cat([x, place, place**2], 1))

    denoiser, path = NetworkDenoiser(network, V), cosine(100)
    objective, generator = Objective(path, V), torch.Generator().manual_seed(0)
    angle = torch.arange(512, dtype=torch.float64) % 8 * math.pi / 4
    data = torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * normal(512, 2)
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(300):
        terms = objective(denoiser, data, generator=generator)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    start = normal(200, 2, seed=7)
    drawn = sample(denoiser, start, trailing(path, 30), DDIM(), state=denoiser.prepare(None))
    off = [(x.norm(dim=1) - 1).abs().median() for x in (start, drawn)]
    assert off[1] < 0.6 * off[0]  # it has learned the ring
    return denoiser, path, data[:64]


def test_residual_of_a_trained_network_falls_with_the_iterations(trained):
    denoiser, path, data = trained
    grid, state = trailing(path, 12), denoiser.prepare(None)
    misses = []
    for iterations in (0, 1, 3, 30):
        back = invert(denoiser, data, grid, state=state, iterations=iterations)
        again = sample(denoiser, back.x, grid, DDIM(), state=state)
        misses.append((again - data).norm(dim=1).median().item())
    assert misses[0] > misses[1] > misses[2] > misses[3]
    assert misses[3] < 1e-12
