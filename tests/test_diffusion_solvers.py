"""Solvers against closed forms on Gaussian volumes.

Data: a 3D random field N(mu, C) whose covariance is diagonal in the cosine basis, with variance s²
along each basis vector.  With v = alpha² s² + sigma² the exact denoiser along each of them is
D = mu + alpha s² / v (x - alpha mu), so every solver multiplies r = x - alpha mu by a number that
can be written down, and the exact flow is r_b = r_a sqrt(v_b / v_a).
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import fft

from neurodiff.diffusion.grids import by_strength, explicit, from_noise, karras, lu_lambda, trailing
from neurodiff.diffusion.guidance import ClassifierFree, Mix, ScoreShift
from neurodiff.diffusion.paths import EDM, Flow, Level, add_noise, cosine, linear, scaled_linear
from neurodiff.diffusion.sampling import posterior_mean, posterior_samples, sample
from neurodiff.diffusion.solvers import DDIM, Ancestral, DPMSolver2M, EDMStep

SHAPE = (3, 4, 5)
POWER = torch.tensor(
    [[[0.2 + 2.0 / (1 + i + 2 * j + 3 * k) for k in range(5)] for j in range(4)] for i in range(3)],
    dtype=torch.float64,
)  # s² of each basis vector: 60 directions, from 0.3 to 2.2


def basis(x):
    return torch.from_numpy(fft.dctn(x.numpy(), axes=(-3, -2, -1), norm="ortho"))


def volume(x):
    return torch.from_numpy(fft.idctn(x.numpy(), axes=(-3, -2, -1), norm="ortho"))


class Field:
    """The exact denoiser; its condition is mu."""

    def __init__(self, power=POWER):
        self.power = power

    def prepare(self, cond):
        return cond

    def __call__(self, x, level, state):
        v = level.alpha**2 * self.power + level.sigma**2
        rest = basis(x - level.alpha * state)
        return state + volume(level.alpha * self.power / v * rest)


def variance(level, power=POWER):
    return level.alpha**2 * power + level.sigma**2


def gain(level, power=POWER):
    return level.alpha * power / variance(level, power)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MU, X = normal(*SHAPE, seed=5), normal(2, *SHAPE, seed=6)
GRIDS = {
    "vp": trailing(cosine(100), 7),
    "latent": explicit(scaled_linear(1000), [900, 700, 300, 90, 20]),
    "edm": karras(EDM((20.0, 0.01)), 8),
    "flow": trailing(Flow(shift=3.0), 6),
}


def ddim(a, b):
    return b.alpha * gain(a) + b.sigma / a.sigma * (1 - a.alpha * gain(a))


def heun(a, b):
    """Of x: alpha_b times the factor of z = x / alpha, over alpha_a.  dz/dr = z sigma² / (v r)."""
    rate = [n.sigma**2 / variance(n) / n.ratio if n.sigma else None for n in (a, b)]
    step = b.ratio - a.ratio
    euler = 1 + step * rate[0]
    full = euler if b.sigma == 0 else 1 + step * (rate[0] + rate[1] * euler) / 2
    return b.alpha / a.alpha * full


def check(solver, grid, factor):
    ours = sample(Field(), X, grid, solver, state=MU)
    expected = MU + volume(factor * basis(X - grid[0].alpha * MU))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


# --- every solver, every direction -------------------------------------------------------------


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("solver", [DDIM(), EDMStep(order=1)])
def test_euler_factor_of_each_direction(name, solver):
    grid = GRIDS[name]
    if grid[0].alpha == 0 and isinstance(solver, EDMStep):
        grid = grid[1:]  # x / alpha of pure noise does not exist
    factor = math.prod([ddim(a, b) for a, b in pairwise(grid)], start=torch.ones(SHAPE).double())
    check(solver, grid, factor)


@pytest.mark.parametrize("name", GRIDS)
def test_heun_factor_of_each_direction(name):
    grid = GRIDS[name][1:]
    check(EDMStep(), grid, math.prod(heun(a, b) for a, b in pairwise(grid)))


@pytest.mark.parametrize("name", GRIDS)
def test_dpm_solver_factor_of_each_direction(name):
    """x_b = sigma_b (x_a / sigma_a + integral of e^lambda D'), D' a line through the last two D
    taken at the middle of the step, in lambda = ln(alpha / sigma)."""
    grid, now, means = GRIDS[name], torch.ones(SHAPE, dtype=torch.float64), []
    lams = [-math.log(n.ratio) if n.sigma else math.inf for n in grid]
    for i, (a, b) in enumerate(pairwise(grid)):
        means.append(gain(a) * now)
        straight = means[-1]
        if i and b.sigma and a.alpha and grid[i - 1].alpha:
            slope = (means[-1] - means[-2]) / (lams[i] - lams[i - 1])
            straight = means[-1] + slope * (lams[i + 1] - lams[i]) / 2
        area = b.alpha - (b.sigma * a.alpha / a.sigma)
        now = b.sigma / a.sigma * now + area * straight
    check(DPMSolver2M(), grid, now)


def test_pure_noise_has_the_mean_of_the_data_as_its_denoised():
    """First step of a flow from alpha = 0: x_b = alpha_b mu + sigma_b x."""
    a, b = Flow().level(1000), Flow().level(400)
    for solver in (DDIM(), DPMSolver2M()):
        ours = sample(Field(), X, [a, b], solver, state=MU)
        torch.testing.assert_close(ours, 0.6 * MU + 0.4 * X, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("solver", "order", "off"),
    [
        (DDIM(), 1, 0.05),
        (EDMStep(order=1), 1, 0.05),
        (EDMStep(), 2, 0.15),
        (DPMSolver2M(), 2, 0.15),
    ],
)
@pytest.mark.parametrize("path", [EDM((5.0, 0.2)), scaled_linear(1000), Flow()])
def test_order_of_convergence(solver, order, off, path):
    errors = []
    exact = None
    for n in (81, 161):
        grid = lu_lambda(path, n, ends=(5.0, 0.2), whole=False)[:-1]
        exact = (variance(grid[-1]) / variance(grid[0])).sqrt()
        flowed = grid[-1].alpha * MU + volume(exact * basis(X - grid[0].alpha * MU))
        errors.append((sample(Field(), X, grid, solver, state=MU) - flowed).norm().item())
    assert errors[1] > 1e-10  # above rounding
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=off)


# --- solvers that add noise --------------------------------------------------------------------


def responses(solver, grid, power):
    """Output of a run on one direction to a unit of its start and of each fresh noise.

    The run is linear in them (mu = 0), so their squares add up to its exact variance.
    """

    def noise(step, x):
        unit = torch.zeros_like(x)
        unit[1 + step] = 1
        return unit

    def denoise(x, level, state):
        return gain(level, power) * x

    start = torch.zeros(len(grid), 1, dtype=torch.float64)
    start[0] = 1
    return sample(denoise, start, grid, solver, noise=noise)[:, 0]


@pytest.mark.parametrize("n", [1, 2, 5, 20])
@pytest.mark.parametrize("s", [0.3, 1.0, 2.5])
def test_analytic_variance_keeps_the_spread_for_any_number_of_steps(n, s):
    exact = Ancestral(lambda level: s**2 * level.sigma**2 / variance(level, s**2))
    for grid in (trailing(Flow(), n), trailing(cosine(100), n), karras(EDM((9.0, 0.1)), n)):
        start = variance(grid[0], s**2)
        out = responses(exact, grid, s**2) ** 2
        assert (start * out[0] + out[1:].sum()).item() == pytest.approx(s**2, rel=1e-9)


def test_small_variance_narrows_the_spread():
    out = responses(Ancestral(), trailing(cosine(100), 5), 1.0) ** 2
    few = out.sum().item()
    many = (responses(Ancestral(), trailing(cosine(100), 100), 1.0) ** 2).sum().item()
    assert few < 0.9 < many < 1


@pytest.mark.parametrize("path", [cosine(100), linear(1000)])
def test_ancestral_without_variance_is_ddim_of_eta_one(path):
    grid = trailing(path, 6)
    draws = [normal(2, *SHAPE, seed=s) for s in range(6)]
    runs = [
        sample(Field(), X, grid, solver, state=MU, noise=lambda step, x: draws[step])
        for solver in (DDIM(1.0), Ancestral())
    ]
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=1e-12)


def test_churn_raises_the_noise_and_only_inside_its_interval():
    """Data at one point: Heun is exact there, so x keeps being r times a number, and only churn
    adds to it."""
    path = EDM((10.0, 0.1))
    grid = karras(path, 4)[:-1]

    def point(x, level, state):
        return torch.zeros_like(x)

    noises = []

    def noise(step, x):
        noises.append(step)
        return torch.ones_like(x)

    solver = EDMStep(churn=0.8, between=(1.0, 5.0), path=path, steps=4)
    out = sample(point, torch.zeros(1, 1).double(), grid, solver, noise=noise)
    inside = [i for i, a in enumerate(grid[:-1]) if 1 <= a.ratio <= 5]
    assert noises == inside != list(range(3))
    expected = 0.0
    for i, (a, b) in enumerate(pairwise(grid)):
        if i in inside:
            raised = a.ratio * 1.2
            expected = (expected + math.sqrt(raised**2 - a.ratio**2)) * b.ratio / raised
        else:
            expected *= b.ratio / a.ratio
    assert out.item() == pytest.approx(expected, rel=1e-12)


def test_churn_is_capped_and_its_noise_can_be_inflated():
    """More churn than (sqrt(2) - 1) a step raises r by sqrt(2) only; its noise has SD ``noise``
    times what that takes: r sqrt(2 - 1)."""
    path = EDM((10.0, 0.1))
    grid = [path.level(4.0), path.level(2.0)]
    solver = EDMStep(churn=50.0, noise=1.003, path=path, steps=4)
    start = torch.zeros(1, 1, dtype=torch.float64)
    out = sample(lambda x, *_: 0 * x, start, grid, solver, noise=lambda s, x: torch.ones_like(x))
    assert out.item() == pytest.approx(4 * 1.003 * 2 / (4 * math.sqrt(2)), rel=1e-12)


def test_a_ratio_outside_a_table_is_its_end():
    path = linear(1000)
    assert path.at(1e9) == path.level(999)
    assert path.at(1e-9) == path.level(0)
    assert path.at(1e9, whole=False).t == 999


def test_levels_that_are_not_on_a_path_are_refused():
    assert EDM().level(-1) == Flow().level(-1) == Level(-1.0, 1.0, 0.0)
    for path, t in ((EDM(), -2.0), (EDM(), math.nan), (Flow(), 1500.0)):
        with pytest.raises(ValueError, match="not on this path"):
            path.level(t)
    for t in (torch.tensor([-1]), torch.tensor([3.9])):
        with pytest.raises(ValueError, match="whole numbers from 0"):
            cosine(100).levels(t, like=X)
    with pytest.raises(ValueError, match="cannot start from pure noise"):
        sample(Field(), X, trailing(Flow(), 4), EDMStep(), state=MU)


def test_churn_without_a_path_is_refused():
    with pytest.raises(ValueError, match="churn needs the path"):
        EDMStep(churn=1.0)
    with pytest.raises(ValueError, match="order 1 or 2"):
        EDMStep(order=3)


# --- starting inside, guidance, posterior --------------------------------------------------------


@pytest.mark.parametrize("strength", [0.2, 0.5, 0.8])
def test_share_of_the_input_that_survives(strength):
    """SDEdit: data noised to a level and taken down keep alpha times the factor of the way."""
    grid = by_strength(trailing(cosine(100), 50), strength)
    assert len(grid) == int(50 * strength) + 1
    noised = [add_noise(x0, normal(*SHAPE), grid[0])[None] for x0 in (X[0], X[1])]
    outs = [sample(Field(), x, grid, DDIM(), state=MU) for x in noised]
    kept = grid[0].alpha * math.prod(ddim(a, b) for a, b in pairwise(grid))
    torch.testing.assert_close(
        basis(outs[0] - outs[1]), kept * basis((X[0] - X[1])[None]), rtol=0, atol=1e-9
    )
    limit = (grid[0].alpha ** 2 * POWER / variance(grid[0])).sqrt()  # of the exact flow
    assert ((kept - limit).abs() / limit).max() < 0.04


def test_guidance_ends_at_the_extrapolated_mean():
    """Two Gaussians of one covariance: the guided denoiser is that of mean base + w (mu - base)."""
    grid, base, w = trailing(cosine(100), 9), normal(*SHAPE, seed=9), 2.5
    guided = ClassifierFree(Field(), w, lambda mu: base)
    ours = sample(guided, X, grid, DDIM(), state=guided.prepare(MU))
    direct = sample(Field(), X, grid, DDIM(), state=base + w * (MU - base))
    torch.testing.assert_close(ours, direct, rtol=0, atol=1e-9)


def test_guidance_acts_inside_its_interval_only():
    grid, base = trailing(cosine(100), 5), torch.zeros(SHAPE).double()
    guided = ClassifierFree(Field(), 3.0, lambda mu: base, interval=(0.3, 3.0))
    state = guided.prepare(MU)
    for level in grid[:-1]:
        plain, ours = Field()(X, level, MU), guided(X, level, state)
        assert torch.equal(plain, ours) == (not 0.3 <= level.ratio <= 3.0)


def test_a_mixture_of_conditions():
    level, other = cosine(100).level(30), normal(*SHAPE, seed=3)
    mixed = Mix(Field(), Field(), 0.4)
    ours = mixed(X, level, mixed.prepare((MU, other)))
    expected = Field()(X, level, 0.6 * MU + 0.4 * other)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


class Tilt:
    """Score that tilting data by exp(b . x_0) adds: b alpha s² / v along each direction."""

    def prepare(self, cond):
        return cond

    def __call__(self, x, level, state):
        return volume(gain(level) * basis(state))


@pytest.mark.parametrize("level", [cosine(100).level(2), cosine(100).level(80), Level(0, 1.0, 3.0)])
def test_shift_of_the_score_is_that_of_tilted_data(level):
    """N(mu, C) tilted by exp(b . x_0) is N(mu + C b, C)."""
    b = normal(*SHAPE, seed=8)
    shifted = ScoreShift(Field(), Tilt(), scale=1.5)
    ours = shifted(X, level, shifted.prepare((MU, b)))
    tilted = Field()(X, level, MU + volume(POWER * basis(1.5 * b)))
    torch.testing.assert_close(ours, tilted, rtol=0, atol=1e-12)


def test_shift_is_noise_minus_sigma_times_shift():
    """The published sampling coefficient of PDAE and LDAE: eps - sqrt(1 - alpha²) shift."""
    level, b = linear(1000).level(400), normal(*SHAPE, seed=8)
    shifted = ScoreShift(Field(), Tilt())
    eps = (X - level.alpha * Field()(X, level, MU)) / level.sigma
    eps = eps - level.sigma * Tilt()(X, level, b)
    expected = (X - level.sigma * eps) / level.alpha
    ours = shifted(X, level, (MU, b))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    stopped = ScoreShift(Field(), Tilt(), interval=(5.0, math.inf))
    assert torch.equal(stopped(X, level, (MU, b)), Field()(X, level, MU))


@pytest.mark.parametrize("ratio", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("path", [cosine(400), EDM(), Flow()])
def test_posterior_mean_and_spread(ratio, path):
    """y = x_0 + r noise: mean mu + s² / (s² + r²) (y - mu), variance s² r² / (s² + r²)."""
    grid = from_noise(path, trailing(path, 10), ratio, whole=False)
    assert grid[0].ratio == pytest.approx(ratio, rel=1e-12)
    share = POWER / (POWER + ratio**2)
    mean = posterior_mean(Field(), X, grid[0], MU)
    torch.testing.assert_close(mean, MU + volume(share * basis(X - MU)), rtol=0, atol=1e-9)
    for power in POWER[0, 0].tolist():
        exact = Ancestral(lambda level, p=power: p * level.sigma**2 / variance(level, p))
        of_y, *of_noise = responses(exact, grid, power).tolist()
        of_y, spread = of_y * grid[0].alpha, sum(out**2 for out in of_noise)
        expected = power * ratio**2 / (power + ratio**2)
        assert of_y == pytest.approx(power / (power + ratio**2), rel=1e-9)
        assert spread == pytest.approx(expected, rel=1e-9)
        # squared errors of the mean and of a draw, over x_0, noise and draw: 1 to 2
        of_mean = (1 - of_y) ** 2 * power + of_y**2 * ratio**2
        assert (of_mean + spread) / of_mean == pytest.approx(2, rel=1e-9)


def test_posterior_samples_are_draws_of_their_items():
    path = cosine(100)
    grid = from_noise(path, trailing(path, 4), 1.0)

    def run(items):
        generators = [[torch.Generator().manual_seed(10 * i + d) for i in items] for d in range(3)]
        return posterior_samples(Field(), X[items], grid, Ancestral(), noise=generators, state=MU)

    # a draw of no spread (mean only): y itself where the data are wide, whatever alpha is
    wide = posterior_samples(
        Field(1e12 * torch.ones(SHAPE).double()), X, grid, DDIM(), noise=[None], state=MU
    )
    torch.testing.assert_close(wide[:, 0], X, rtol=1e-6, atol=1e-6)
    both = run([0, 1])
    assert both.shape == (2, 3, *SHAPE)
    torch.testing.assert_close(run([1]), both[1:], rtol=0, atol=1e-12)
    assert not torch.allclose(both[:, 0], both[:, 1])


# --- grids ---------------------------------------------------------------------------------------


def test_karras_ratios():
    """EDM 2022, eq. 5, at the middle of three: ((80^(1/7) + 0.002^(1/7)) / 2)^7."""
    grid = karras(EDM(), 3)
    middle = ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
    assert [n.ratio for n in grid] == pytest.approx([80, middle, 0.002, 0], rel=1e-12)


def test_lu_lambda_halves_the_logarithm():
    grid = lu_lambda(Flow(), 5, ends=(16.0, 1.0), whole=False)
    assert [n.ratio for n in grid] == pytest.approx([16, 8, 4, 2, 1, 0], rel=1e-12)
    assert [n.t for n in grid[:2]] == pytest.approx([1000 * 16 / 17, 1000 * 8 / 9])


def test_grids_on_a_table_take_its_steps_once():
    path = linear(1000)
    for grid in (karras(path, 40), lu_lambda(path, 40)):
        times = [n.t for n in grid]
        assert times == sorted(set(times), reverse=True)
        assert [times[0], *times[-2:]] == [999, 0, -1]
        assert all(n == path.level(n.t) for n in grid)
    broken = path.at(path.level(500).ratio * 1.001, whole=False)
    assert 500 < broken.t < 501
    assert broken.alpha**2 + broken.sigma**2 == pytest.approx(1, rel=1e-12)


def test_flow_shift():
    """Esser et al. 2024, eq. 23, at u = 1/2: 3 u / (1 + 2 u) = 3 / 4."""
    grid = trailing(Flow(shift=3.0), 2)
    assert [n.sigma for n in grid] == pytest.approx([1, 0.75, 0])
    drawn = Flow(shift=3.0).sample_t(20000, torch.Generator().manual_seed(0)) / 1000
    assert drawn.median().item() == pytest.approx(0.75, abs=0.01)


def test_bad_strength_is_refused():
    with pytest.raises(ValueError, match="leaves 0"):
        by_strength(trailing(cosine(100), 10), 0.05)
    with pytest.raises(ValueError, match="leaves 11"):
        by_strength(trailing(cosine(100), 10), 1.1)
    assert np.allclose(
        [n.ratio for n in by_strength(GRIDS["edm"], 1.0)], [n.ratio for n in GRIDS["edm"]]
    )
