"""The diffusion core against closed forms on Gaussian data, and the published tables.

For data N(mu, s²) the exact denoiser is D(x) = mu + alpha s² / v (x - alpha mu) with
v = alpha² s² + sigma².  With r = x - alpha mu, a DDIM step is then
r_b = r_a (alpha_a alpha_b s² + sigma_a sigma_b) / v_a; the exact flow is r_b = r_a sqrt(v_b / v_a).
"""

import importlib.util
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from neurodiff.diffusion.guidance import ClassifierFree
from neurodiff.diffusion.heads import EPS, X0, Head, V
from neurodiff.diffusion.paths import (
    CLEAN,
    Level,
    VariancePreserving,
    add_noise,
    cosine,
    cosine_betas,
    linear,
    vp,
)
from neurodiff.diffusion.sampling import item_noise, sample
from neurodiff.diffusion.solvers import (
    DDIM,
    BridgeDDIM2024,
    bridge_2024,
    explicit,
    noise_of,
    trailing,
)


@pytest.fixture(scope="module")
def recipe():
    path = Path(__file__).parent / "golden" / "recipe.py"
    spec = importlib.util.spec_from_file_location("golden_recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def published(recipe):
    return recipe.load("mind3d_prior")["mind3d.prior"]["outputs"]


@dataclass
class Gaussian:
    """Exact denoiser of N(mu, s²); the condition is mu."""

    s: float
    prepared: int = 0

    def prepare(self, cond):
        self.prepared += 1
        return cond

    def __call__(self, x, level, state):
        v = level.alpha**2 * self.s**2 + level.sigma**2
        return state + level.alpha * self.s**2 / v * (x - level.alpha * state)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- paths -----------------------------------------------------------------------------------


def test_published_tables(recipe, published):
    buffers = published["schedule_buffers"]
    path = cosine(100)
    recipe.check(cosine_betas(100).float(), buffers["betas"], 1e-9)
    recipe.check(path.alphas_cumprod.float(), buffers["alphas_cumprod"], 1e-9)
    recipe.check(path.alpha.float(), buffers["sqrt_alphas_cumprod"], 1e-9)
    recipe.check(path.sigma.float(), buffers["sqrt_one_minus_alphas_cumprod"], 1e-9)
    assert torch.equal(path.rounded().alphas_cumprod, path.alphas_cumprod.float().double())


def test_cosine_path_is_the_cosine_until_the_clip():
    path, steps = cosine(50), 50
    for t in (0, 10, 48):
        angle = ((t + 1) / steps + 0.008) / 1.008 * math.pi / 2
        expected = math.cos(angle) / math.cos(0.008 / 1.008 * math.pi / 2)
        assert path.level(t).alpha == pytest.approx(expected, rel=1e-12)
    assert cosine_betas(50)[-1] == 0.999


@pytest.mark.parametrize("path", [cosine(100), linear(1000), vp(torch.tensor([0.1, 0.5]))])
def test_variance_is_preserved(path):
    torch.testing.assert_close(
        path.alpha**2 + path.sigma**2, torch.ones(path.steps, dtype=torch.float64)
    )
    level = path.level(1)
    assert level.log_snr == pytest.approx(
        math.log(float(path.alphas_cumprod[1] / (1 - path.alphas_cumprod[1])))
    )
    assert path.level(-1) == CLEAN
    assert CLEAN.log_snr == math.inf


def test_levels_of_a_batch_are_those_of_its_items():
    path, x0, eps = cosine(20), normal(3, 2, 4), normal(3, 2, 4, seed=1)
    t = torch.tensor([0, 7, 19])
    together = add_noise(x0, eps, path.levels(t, like=x0))
    for i in range(3):
        alone = add_noise(x0[i], eps[i], path.level(int(t[i])))
        torch.testing.assert_close(together[i], alone, rtol=0, atol=1e-15)


def test_times_are_uniform_and_repeatable():
    path = cosine(4)
    t = path.sample_t(8000, torch.Generator().manual_seed(3))
    assert torch.equal(t, path.sample_t(8000, torch.Generator().manual_seed(3)))
    share = torch.bincount(t, minlength=4) / 8000
    assert len(share) == 4
    assert (share - 0.25).abs().max() < 0.025  # 5 standard errors


def test_bad_paths_are_refused():
    with pytest.raises(ValueError, match="falling"):
        VariancePreserving(torch.tensor([0.5, 0.6]))
    with pytest.raises(ValueError, match="between 0 and 1"):
        vp(torch.tensor([0.1, 1.0]))
    with pytest.raises(ValueError, match="0 to 19"):
        cosine(20).level(20)
    with pytest.raises(ValueError, match="falling"):
        VariancePreserving(torch.tensor([0.5, math.nan]))


# --- heads -----------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [EPS, X0, V])
@pytest.mark.parametrize("level", [cosine(100).level(3), cosine(100).level(80), Level(0, 1, 2.5)])
def test_heads_are_one_change_of_variables(head, level):
    x0, eps = normal(5), normal(5, seed=1)
    x = add_noise(x0, eps, level)
    raw = head.target(x0, eps, level)
    torch.testing.assert_close(head.x0(raw, x, level), x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(head.raw(x0, x, level), raw, rtol=0, atol=1e-12)


@pytest.mark.parametrize("head", [EPS, X0, V])
def test_weight_is_the_ratio_of_squared_errors(head):
    level = cosine(100).level(40)
    x, right, wrong = normal(6), normal(6, seed=1), normal(6, seed=2)
    error = (head.raw(wrong, x, level) - head.raw(right, x, level)).square().sum()
    expected = head.weight(level) * (wrong - right).square().sum()
    torch.testing.assert_close(error, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("head", [EPS, V])
def test_the_sampler_does_not_see_the_head(head):
    """A network that predicts noise or v samples what the one that predicts x_0 samples."""
    exact, mu = Gaussian(0.7), torch.tensor(0.4, dtype=torch.float64)

    def through_head(x, level, state):
        return head.x0(head.raw(exact(x, level, state), x, level), x, level)

    path = cosine(100)
    x = normal(4, 3)
    direct = sample(exact, x, trailing(path, 10), DDIM(), state=mu)
    torch.testing.assert_close(
        sample(through_head, x, trailing(path, 10), DDIM(), state=mu), direct, rtol=0, atol=1e-12
    )


def test_an_unknown_head_is_refused():
    with pytest.raises(ValueError, match="'eps', 'x0' or 'v'"):
        Head("flow")


# --- solvers ---------------------------------------------------------------------------------


def test_unit_gaussian_ddim_turns_by_the_angle():
    """alpha = cos, sigma = sin: each step multiplies by the cosine of the angle between levels."""
    path, exact, mu = cosine(100), Gaussian(1.0), torch.zeros(4, dtype=torch.float64)
    x = normal(4)
    for a, b in [(99, 60), (60, 59), (5, 0)]:
        a, b = path.level(a), path.level(b)
        angle = math.acos(a.alpha) - math.acos(b.alpha)
        stepped = DDIM().step(x, exact(x, a, mu), a, b)
        torch.testing.assert_close(stepped, x * math.cos(angle), rtol=1e-9, atol=0)


@pytest.mark.parametrize("s", [0.1, 1.0, 3.0])
def test_gaussian_ddim_factor_of_a_whole_run(s):
    path, mu, x = cosine(100), torch.tensor(0.8, dtype=torch.float64), normal(5)
    grid = trailing(path, 7)
    factor = 1.0
    for a, b in pairwise(grid):
        v = a.alpha**2 * s**2 + a.sigma**2
        factor *= (a.alpha * b.alpha * s**2 + a.sigma * b.sigma) / v
    expected = mu + factor * (x - grid[0].alpha * mu)
    ours = sample(Gaussian(s), x, grid, DDIM(), state=mu)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_ddim_converges_to_the_exact_flow_at_first_order():
    path, s = linear(2000, 5e-5, 0.01), 0.5
    mu, x = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    first = path.level(1999)
    exact = s / math.sqrt(first.alpha**2 * s**2 + first.sigma**2)
    errors = [
        abs(float(sample(Gaussian(s), x, trailing(path, n), DDIM(), state=mu)) - exact)
        for n in (50, 100, 200)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.2)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_any_eta_keeps_the_level_for_a_known_point(eta):
    """Data at one point: the state keeps mean alpha_b mu and variance sigma_b²."""
    path, mu = cosine(100), torch.tensor([1.7], dtype=torch.float64)
    a, b, solver = path.level(70), path.level(31), DDIM(eta)
    zero, one = torch.zeros_like(mu), torch.ones_like(mu)

    def step(eps, noise):
        return solver.step(add_noise(mu, eps, a), mu, a, b, noise)

    torch.testing.assert_close(step(zero, zero), b.alpha * mu, rtol=0, atol=1e-12)
    kept, fresh = step(one, zero) - b.alpha * mu, step(zero, one) - b.alpha * mu
    torch.testing.assert_close(kept**2 + fresh**2, one * b.sigma**2, rtol=1e-12, atol=0)
    assert (fresh.item() > 0) == (eta > 0)


def test_eta_one_is_the_posterior_of_ddpm():
    path, betas, t = cosine(100), cosine_betas(100), 37
    a, b = path.level(t), path.level(t - 1)
    beta, after, before = betas[t], path.alphas_cumprod[t], path.alphas_cumprod[t - 1]
    x, mean, noise = normal(4), normal(4, seed=1), normal(4, seed=2)
    expected = (
        before.sqrt() * beta / (1 - after) * mean
        + (1 - beta).sqrt() * (1 - before) / (1 - after) * x
        + (beta * (1 - before) / (1 - after)).sqrt() * noise
    )
    torch.testing.assert_close(
        DDIM(1.0).step(x, mean, a, b, noise), expected, rtol=1e-10, atol=1e-12
    )


def test_ddim_line_of_the_core():
    """x_b = alpha_b D + sigma_b eps, and the last step returns D."""
    path, x, mean = cosine(100), normal(4), normal(4, seed=1)
    a, b = path.level(50), path.level(20)
    line = b.alpha * mean + b.sigma * noise_of(x, mean, a)
    torch.testing.assert_close(DDIM().step(x, mean, a, b), line, rtol=0, atol=1e-15)
    assert torch.equal(DDIM(1.0).step(x, mean, a, CLEAN), mean)


def test_published_bridge_grid_and_where_it_asks_for_noise(published):
    path = cosine(100)
    grid = bridge_2024(path)
    assert [int(level.t) for level in grid] == [*published["ddim_times_network_calls"], -1]
    assert [int(level.t) for level in bridge_2024(path, 8)] == [*published["ddim8_times"], -1]
    asked = []

    def noise(call, x):
        asked.append(call)
        return torch.zeros_like(x)

    mu = torch.zeros(2, dtype=torch.float64)
    sample(Gaussian(1.0), normal(2), grid, BridgeDDIM2024(path), state=mu, noise=noise)
    count, last, never = len(asked), asked[-1], published["ddim_noise_drawn_at_call"][-1]
    assert (count, last, never) == (61, 60, 61)


def test_published_step_is_one_row_down_the_table():
    path, x, mean, noise = cosine(100), normal(4), normal(4, seed=1), normal(4, seed=2)
    a, b = path.level(60), path.level(44)
    before, after = path.alphas_cumprod[59], path.alphas_cumprod[43]
    fresh = ((1 - before / after) * (1 - after) / (1 - before)).sqrt()
    eps = (x - path.alpha[60] * mean) / path.sigma[60]
    expected = after.sqrt() * mean + fresh * noise + (1 - after - fresh**2).sqrt() * eps
    ours = BridgeDDIM2024(path).step(x, mean, a, b, noise)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_grids():
    path = cosine(100)
    assert [int(level.t) for level in trailing(path, 5)] == [99, 79, 59, 39, 19, -1]
    assert len(trailing(path, 100)) == 101
    assert explicit(path, [9, 4]) == explicit(path, [9, 4, -1]) != explicit(path, [9, 4, 0])
    with pytest.raises(ValueError, match="must fall"):
        explicit(path, [4, 9])
    with pytest.raises(ValueError, match="1 to 100"):
        trailing(path, 101)


# --- sampling and guidance -------------------------------------------------------------------


def test_an_item_does_not_depend_on_its_batch():
    path, solver, exact = cosine(100), DDIM(1.0), Gaussian(0.5)

    def run(seeds):
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        noise = item_noise(generators)
        x = noise(-1, torch.zeros(len(seeds), 3, dtype=torch.float64))
        return sample(exact, x, trailing(path, 6), solver, state=x.new_zeros(1), noise=noise)

    together, alone = run([11, 12, 13]), run([12])
    assert torch.equal(together[1:2], alone)
    assert torch.equal(run([13, 12, 11]), together.flip(0))
    assert not torch.allclose(together[0], together[1])


def test_noise_of_an_item_is_the_same_in_single_precision():
    x = torch.zeros(1, 3)
    single = item_noise([torch.Generator().manual_seed(5)])(0, x)
    double = item_noise([torch.Generator().manual_seed(5)])(0, x.double())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=1e-7)


def test_ancestral_samples_have_the_variance_of_the_recursion():
    """On Gaussian data the variance after each step has a closed recursion; 4000 samples."""
    path, s, n = cosine(100), 0.6, 4000
    grid, solver = trailing(path, 10), DDIM(1.0)
    variance = 1.0
    for a, b in pairwise(grid):
        v = a.alpha**2 * s**2 + a.sigma**2
        fresh = solver.noise_sd(a, b)
        kept = math.sqrt(b.sigma**2 - fresh**2)
        slope = b.alpha * a.alpha * s**2 / v + kept * a.sigma / v
        variance = slope**2 * variance + fresh**2
    generator = [torch.Generator().manual_seed(0)]
    x = item_noise(generator)(-1, torch.zeros(1, n, dtype=torch.float64))
    mu = torch.zeros(1, dtype=torch.float64)
    out = sample(Gaussian(s), x, grid, solver, state=mu, noise=generator)
    assert out.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / n))
    assert variance < s**2  # ten ancestral steps narrow the spread


def test_guidance_is_affine_in_the_mean_and_the_same_for_noise():
    path, exact = cosine(100), Gaussian(0.8)
    level, x = path.level(40), normal(3)
    guided = ClassifierFree(exact, 2.5, lambda mu: torch.zeros_like(mu))
    mu = torch.full((3,), 0.9, dtype=torch.float64)
    state = guided.prepare(mu)
    known, base = exact(x, level, mu), exact(x, level, torch.zeros_like(mu))
    mean = guided(x, level, state)
    torch.testing.assert_close(mean, base + 2.5 * (known - base), rtol=0, atol=1e-15)
    eps_known, eps_base = noise_of(x, known, level), noise_of(x, base, level)
    torch.testing.assert_close(
        noise_of(x, mean, level), eps_base + 2.5 * (eps_known - eps_base), rtol=0, atol=1e-13
    )


def test_conditions_are_prepared_once():
    path, exact = cosine(100), Gaussian(0.8)
    guided = ClassifierFree(exact, 1.0, lambda mu: pytest.fail("w = 1 needs no null"))
    mu = torch.ones(2, dtype=torch.float64)
    levels = []
    sample(
        guided,
        normal(2),
        trailing(path, 5),
        DDIM(),
        state=guided.prepare(mu),
        callback=lambda call, level, x, mean: levels.append((call, int(level.t))),
    )
    assert exact.prepared == 1
    assert levels == [(0, 99), (1, 79), (2, 59), (3, 39), (4, 19)]


def test_missing_noise_is_named():
    path, exact, mu = cosine(100), Gaussian(0.8), torch.zeros(1, dtype=torch.float64)
    with pytest.raises(ValueError, match="generator per item"):
        sample(exact, normal(2), trailing(path, 5), DDIM(1.0), state=mu)
    with pytest.raises(ValueError, match="2 items but 1 generators"):
        sample(
            exact,
            normal(2),
            trailing(path, 5),
            DDIM(1.0),
            state=mu,
            noise=[torch.Generator().manual_seed(0)],
        )
    with pytest.raises(ValueError, match="at least two levels"):
        sample(exact, normal(2), [CLEAN], DDIM(), state=mu)
    with pytest.raises(ValueError, match="none was given"):
        DDIM(1.0).step(normal(2), normal(2), path.level(9), path.level(5))
    with pytest.raises(ValueError, match=r"eta is 1\.5"):
        DDIM(1.5)
