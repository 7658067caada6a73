"""The diffusion core against closed forms on Gaussian data, and the published tables.

For data N(mu, s²) the exact denoiser is D(x) = mu + alpha s² / v (x - alpha mu) with
v = alpha² s² + sigma².  With r = x - alpha mu, a DDIM step is then
r_b = r_a (alpha_a alpha_b s² + sigma_a sigma_b) / v_a; the exact flow is r_b = r_a sqrt(v_b / v_a).
"""

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from neurodiff.diffusion.grids import explicit, leading, trailing
from neurodiff.diffusion.guidance import ClassifierFree, Projected, clipped, of_norm
from neurodiff.diffusion.heads import EPS, FLOW, X0, Head, V
from neurodiff.diffusion.paths import (
    CLEAN,
    EDM,
    Flow,
    Level,
    VariancePreserving,
    add_noise,
    anchored,
    constant,
    cosine,
    cosine_betas,
    linear,
    scaled_linear,
    vp,
)
from neurodiff.diffusion.sampling import NetworkDenoiser, item_noise, sample
from neurodiff.diffusion.solvers import DDIM, Ancestral, DPMSolver2M, EDMStep


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


HEADS = [EPS, X0, V, FLOW, Head("edm"), Head("edm", sigma_data=1.7)]
LEVELS = [cosine(100).level(3), cosine(100).level(80), Level(0, 1, 2.5), Flow().level(300)]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("level", LEVELS)
def test_heads_are_one_change_of_variables(head, level):
    x0, eps = normal(5), normal(5, seed=1)
    x = add_noise(x0, eps, level)
    raw = head.target(x0, eps, level)
    torch.testing.assert_close(head.x0(raw, x, level), x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(head.raw(x0, x, level), raw, rtol=0, atol=1e-12)


def test_targets_are_the_published_ones():
    x0, eps, level = normal(5), normal(5, seed=1), cosine(100).level(40)
    assert torch.equal(EPS.target(x0, eps, level), eps)
    assert torch.equal(X0.target(x0, eps, level), x0)
    torch.testing.assert_close(V.target(x0, eps, level), level.alpha * eps - level.sigma * x0)
    torch.testing.assert_close(FLOW.target(x0, eps, level), eps - x0)
    noise, data = 2.0, 0.5  # EDM 2022, Table 1 and eq. 8
    skip, out = data**2 / (noise**2 + data**2), noise * data / math.sqrt(noise**2 + data**2)
    target = (x0 - skip * (x0 + noise * eps)) / out
    torch.testing.assert_close(Head("edm").target(x0, eps, EDM().level(noise)), target)
    given, t = Head("edm").network_input(x0, EDM().level(noise))
    torch.testing.assert_close(given, x0 / math.sqrt(noise**2 + data**2))
    assert t == pytest.approx(math.log(noise) / 4)
    weight = (noise**2 + data**2) / (noise * data) ** 2
    assert Head("edm").weight(EDM().level(noise)) == pytest.approx(weight)


@pytest.mark.parametrize("head", HEADS)
def test_weight_is_the_ratio_of_squared_errors(head):
    level = cosine(100).level(40)
    x, right, wrong = normal(6), normal(6, seed=1), normal(6, seed=2)
    error = (head.raw(wrong, x, level) - head.raw(right, x, level)).square().sum()
    expected = head.weight(level) * (wrong - right).square().sum()
    torch.testing.assert_close(error, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("solver", [DDIM(), DDIM(1.0), Ancestral(), EDMStep(), DPMSolver2M()])
def test_the_sampler_does_not_see_the_head(head, solver):
    """A network that predicts anything samples what the one that predicts x_0 samples."""
    exact, mu, path = Gaussian(0.7), torch.tensor(0.4, dtype=torch.float64), cosine(100)
    grid, x = trailing(path, 10), normal(4, 3)

    def network(given, t, state):
        level = path.level(99) if head.kind == "edm" else path.level(int(t[0]))
        if head.kind == "edm":  # told ln(ratio) / 4 and given c_in x, it finds both again
            ratio = math.exp(4 * float(t[0]))
            alpha = 1 / math.sqrt(1 + ratio**2)
            level = Level(0, alpha, ratio * alpha)
            given = given * alpha * math.sqrt(ratio**2 + head.sigma_data**2)
        return head.raw(exact(given, level, state), given, level)

    def noise(step, like):
        return normal(*like.shape, seed=step)

    denoiser = NetworkDenoiser(network, head)
    direct = sample(exact, x, grid, solver, state=mu, noise=noise)
    ours = sample(denoiser, x, grid, solver, state=denoiser.prepare(mu), noise=noise)
    torch.testing.assert_close(ours, direct, rtol=0, atol=1e-12)


def test_an_unknown_head_is_refused():
    with pytest.raises(ValueError, match="'eps', 'x0', 'v', 'flow' or 'edm'"):
        Head("score")


# --- steps -----------------------------------------------------------------------------------


def test_unit_gaussian_ddim_turns_by_the_angle():
    """alpha = cos, sigma = sin: each step multiplies by the cosine of the angle between levels."""
    path, exact, mu = cosine(100), Gaussian(1.0), torch.zeros(4, dtype=torch.float64)
    x = normal(4)
    for a, b in [(99, 60), (60, 59), (5, 0)]:
        a, b = path.level(a), path.level(b)
        angle = math.acos(a.alpha) - math.acos(b.alpha)
        stepped = sample(exact, x, [a, b], DDIM(), state=mu)
        torch.testing.assert_close(stepped, x * math.cos(angle), rtol=1e-9, atol=0)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_any_eta_keeps_the_level_for_a_known_point(eta):
    """Data at one point: the state keeps mean alpha_b mu and variance sigma_b²."""
    path, mu = cosine(100), torch.tensor([1.7], dtype=torch.float64)
    a, b = path.level(70), path.level(31)
    zero, one = torch.zeros_like(mu), torch.ones_like(mu)

    def step(eps, noise):
        x = add_noise(mu, eps, a)
        return sample(lambda *_: mu, x, [a, b], DDIM(eta), noise=lambda *_: noise)

    torch.testing.assert_close(step(zero, zero), b.alpha * mu, rtol=0, atol=1e-12)
    kept, fresh = step(one, zero) - b.alpha * mu, step(zero, one) - b.alpha * mu
    torch.testing.assert_close(kept**2 + fresh**2, one * b.sigma**2, rtol=1e-12, atol=0)
    assert (fresh.item() > 0) == (eta > 0)


@pytest.mark.parametrize("solver", [DDIM(1.0), Ancestral()])
def test_ancestral_is_the_posterior_of_ddpm(solver):
    path, betas, t = cosine(100), cosine_betas(100), 37
    a, b = path.level(t), path.level(t - 1)
    beta, after, before = betas[t], path.alphas_cumprod[t], path.alphas_cumprod[t - 1]
    x, mean, noise = normal(4), normal(4, seed=1), normal(4, seed=2)
    expected = (
        before.sqrt() * beta / (1 - after) * mean
        + (1 - beta).sqrt() * (1 - before) / (1 - after) * x
        + (beta * (1 - before) / (1 - after)).sqrt() * noise
    )
    ours = sample(lambda *_: mean, x, [a, b], solver, noise=lambda *_: noise)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("solver", [DDIM(1.0), DDIM(), Ancestral(), EDMStep(), DPMSolver2M()])
def test_the_last_step_returns_the_mean(solver):
    x, mean = normal(4), normal(4, seed=1)
    out = sample(lambda *_: mean, x, [cosine(100).level(50), CLEAN], solver)
    torch.testing.assert_close(out, mean, rtol=0, atol=1e-15)


def test_grids():
    path = cosine(100)
    assert [int(level.t) for level in trailing(path, 5)] == [99, 79, 59, 39, 19, -1]
    assert len(trailing(path, 100)) == 101
    assert explicit(path, [9, 4]) == explicit(path, [9, 4, -1]) != explicit(path, [9, 4, 0])
    with pytest.raises(ValueError, match="must fall"):
        explicit(path, [4, 9])
    with pytest.raises(ValueError, match="1 to 100"):
        trailing(path, 101)
    published = [int(level.t) for level in leading(scaled_linear(1000), 50)]
    assert published == [*range(981, 0, -20), -1]  # Brain-Diffuser's 50 steps
    ratios = [level.ratio for level in trailing(EDM((100.0, 0.01)), 2)]
    assert ratios == pytest.approx([100, 1, 0])  # geometric


def test_tables_of_betas():
    first = scaled_linear(1000).alphas_cumprod  # Brain-Diffuser: 0.06036 at t = 741, 0.07051 at 721
    assert first[741].item() == pytest.approx(0.06036, abs=5e-6)
    assert first[721].item() == pytest.approx(0.07051, abs=5e-6)
    assert constant(10, 0.008).alphas_cumprod[4].item() == pytest.approx(0.992**5)
    assert linear(1000).alphas_cumprod[0].item() == pytest.approx(0.9999)  # LDAE at t = 0


# --- anchored paths ----------------------------------------------------------------------------


@pytest.mark.parametrize("head", [EPS, X0, V, FLOW])
def test_an_anchored_path_ends_at_its_measurement(head):
    """Data N(mu, s²) and x = alpha x_0 + (1 - alpha) y + sigma eps: a network that sees x and
    knows y samples what the plain path samples."""
    path, exact = cosine(100), Gaussian(0.7)
    y, mu, x = normal(3), torch.tensor(0.4, dtype=torch.float64), normal(2, 3)
    bridge = anchored(path)
    assert path.level(9).gamma == 0
    assert bridge.level(9).gamma == 1 - path.level(9).alpha
    assert bridge.level(-1) == CLEAN

    def network(given, t, cond):
        level = bridge.level(int(t[0]))
        rest = given - level.gamma * y
        return head.raw(exact(rest, level, mu), rest, level)

    denoiser = NetworkDenoiser(network, head, anchored=True)
    ours = sample(denoiser, x, trailing(bridge, 8), DDIM(), state=denoiser.prepare((None, y)))
    direct = sample(exact, x, trailing(path, 8), DDIM(), state=mu)
    torch.testing.assert_close(ours, direct, rtol=0, atol=1e-12)
    x0, eps, level = normal(3, seed=1), normal(3, seed=2), bridge.level(60)
    expected = level.alpha * x0 + (1 - level.alpha) * y + level.sigma * eps
    torch.testing.assert_close(add_noise(x0, eps, level, y), expected, rtol=0, atol=1e-15)


def test_an_anchored_level_needs_the_measurement():
    denoiser, bridge = NetworkDenoiser(lambda x, t, c: x, X0), anchored(cosine(100))
    with pytest.raises(ValueError, match="anchored=True"):
        denoiser(normal(2, 3), bridge.level(60), denoiser.prepare(None))


# --- projections -------------------------------------------------------------------------------


def test_projections():
    mean = torch.tensor([[3.0, -0.5, 0.2], [0.1, 0.2, -0.4]])
    assert torch.equal(clipped(1.0)(mean), torch.tensor([[1.0, -0.5, 0.2], [0.1, 0.2, -0.4]]))
    length = of_norm(5.0)(mean).norm(dim=1)
    torch.testing.assert_close(length, torch.full((2,), 5.0))
    path, exact = cosine(100), Gaussian(2.0)
    denoiser, mu = Projected(exact, clipped(0.5)), torch.zeros(3, dtype=torch.float64)
    x, level = 3 * normal(4, 3), path.level(10)
    bounded = denoiser(x, level, denoiser.prepare(mu))
    assert torch.equal(bounded, exact(x, level, mu).clamp(-0.5, 0.5))
    assert bounded.abs().max() == 0.5


# --- sampling and guidance -------------------------------------------------------------------


@pytest.mark.parametrize(
    "solver",
    [DDIM(1.0), Ancestral(), EDMStep(churn=2.0, path=cosine(100), steps=6), DPMSolver2M()],
)
def test_an_item_does_not_depend_on_its_batch(solver):
    path, exact = cosine(100), Gaussian(0.5)

    def run(seeds):
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        noise = item_noise(generators)
        x = noise(-1, torch.zeros(len(seeds), 3, dtype=torch.float64))
        return sample(exact, x, trailing(path, 6), solver, state=x.new_zeros(1), noise=noise)

    together, alone = run([11, 12, 13]), run([12])
    assert torch.equal(together[1:2], alone)
    assert torch.equal(run([13, 12, 11]), together.flip(0))
    assert not torch.allclose(together[0], together[1])


def test_an_item_does_not_depend_on_its_batch_in_a_network():
    """Float32 on the CPU, where a product of other sizes may sum in another order."""
    path = cosine(100)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(33, 128), torch.nn.SiLU(), torch.nn.Linear(128, 32))

    def network(x, t, cond):
        return net(torch.cat([x, t[:, None].float() / 100], 1))

    denoiser = NetworkDenoiser(network, V)

    def run(seeds):
        noise = item_noise([torch.Generator().manual_seed(s) for s in seeds])
        x = noise(-1, torch.zeros(len(seeds), 32))
        return sample(
            denoiser, x, trailing(path, 12), DDIM(1.0), state=denoiser.prepare(None), noise=noise
        )

    together = run([11, 12, 13, 14])
    torch.testing.assert_close(run([12]), together[1:2], rtol=0, atol=1e-6)
    torch.testing.assert_close(run([14, 13, 12, 11]), together.flip(0), rtol=0, atol=1e-6)
    assert together.std() > 0.1


def test_noise_of_an_item_is_the_same_in_single_precision():
    x = torch.zeros(1, 3)
    single = item_noise([torch.Generator().manual_seed(5)])(0, x)
    double = item_noise([torch.Generator().manual_seed(5)])(0, x.double())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=1e-7)


def test_drawn_samples_have_the_spread_of_the_data():
    """Ancestral with analytic variance, 4000 draws, five standard errors."""
    path, s, n = cosine(100), 0.6, 4000

    def posterior(level):
        return s**2 * level.sigma**2 / (level.alpha**2 * s**2 + level.sigma**2)

    generator = [torch.Generator().manual_seed(0)]
    x = item_noise(generator)(-1, torch.zeros(1, n, dtype=torch.float64))
    mu = torch.full((1,), 0.3, dtype=torch.float64)
    grid = trailing(path, 4)
    out = sample(Gaussian(s), x, grid, Ancestral(posterior), state=mu, noise=generator)
    assert out.var().item() == pytest.approx(s**2, rel=5 * math.sqrt(2 / n))
    assert out.mean().item() == pytest.approx(0.3, abs=5 * s / math.sqrt(n))


def test_guidance_is_affine_in_the_mean_and_the_same_for_noise():
    path, exact = cosine(100), Gaussian(0.8)
    level, x = path.level(40), normal(3)
    guided = ClassifierFree(exact, 2.5, lambda mu: torch.zeros_like(mu))
    mu = torch.full((3,), 0.9, dtype=torch.float64)
    state = guided.prepare(mu)
    known, base = exact(x, level, mu), exact(x, level, torch.zeros_like(mu))
    mean = guided(x, level, state)
    torch.testing.assert_close(mean, base + 2.5 * (known - base), rtol=0, atol=1e-15)
    eps_known, eps_base = (EPS.raw(m, x, level) for m in (known, base))
    torch.testing.assert_close(
        EPS.raw(mean, x, level), eps_base + 2.5 * (eps_known - eps_base), rtol=0, atol=1e-13
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
    for grid in ([CLEAN], trailing(path, 5)[::-1]):
        with pytest.raises(ValueError, match="at least two levels that fall"):
            sample(exact, normal(2), grid, DDIM(), state=mu)
    nobody = torch.zeros(0, 3, dtype=torch.float64)
    out = sample(exact, nobody, trailing(path, 5), DDIM(1.0), state=mu, noise=[])
    assert out.shape == (0, 3)
    with pytest.raises(ValueError, match=r"eta is 1\.5"):
        DDIM(1.5)
