"""Training losses, taps, scores by denoising error and latents, against closed forms."""

import math

import pytest
import torch

from neurodiff.diffusion.guidance import ClassifierFree
from neurodiff.diffusion.heads import EPS, X0, Head, V
from neurodiff.diffusion.latents import Latents
from neurodiff.diffusion.objective import Auxiliary, Objective, snr_power
from neurodiff.diffusion.paths import EDM, Level, anchored, cosine, linear
from neurodiff.diffusion.probes import (
    denoising_errors,
    features,
    log_likelihoods,
    posterior_variance,
    tapped,
)
from neurodiff.diffusion.sampling import NetworkDenoiser
from neurodiff.diffusion.solvers import Ancestral


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Zero:
    """Says that all data are 0: its error on x_0 is x_0."""

    def prepare(self, cond):
        return cond

    def __call__(self, x, level, state):
        return torch.zeros_like(x)


class Gaussian:
    """Exact denoiser of N(state, s²)."""

    def __init__(self, s):
        self.s = s

    def prepare(self, cond):
        return cond

    def __call__(self, x, level, state):
        v = level.alpha**2 * self.s**2 + level.sigma**2
        return state + level.alpha * self.s**2 / v * (x - level.alpha * state)


# --- objective -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "weight", "expected"),
    [
        (X0, None, lambda snr: torch.ones_like(snr)),
        (EPS, None, lambda snr: snr),  # |error of eps|² = SNR |error of x_0|²
        (V, None, lambda snr: snr + 1),  # 1 / sigma²
        (EPS, snr_power(0.1), lambda snr: snr**1.1 / (1 + snr)),
    ],
)
def test_loss_of_a_known_error(head, weight, expected):
    path, x0 = linear(1000), torch.full((64, 3), 2.0, dtype=torch.float64)
    objective = Objective(path, head) if weight is None else Objective(path, head, weight)
    terms = objective(Zero(), x0, generator=seeded())
    t = path.sample_t(64, seeded())
    snr = path.alphas_cumprod[t] / (1 - path.alphas_cumprod[t])
    assert terms["loss"].item() == pytest.approx(4 * expected(snr).mean().item(), rel=1e-9)
    assert terms["loss"] is terms["denoising"]


def test_published_weights_of_ldae():
    """reference ldae.md, 2.4: SNR^0.1 / (1 + SNR) on the linear path."""
    path = linear(1000)
    for t, expected in [(50, 0.043), (200, 0.367), (300, 0.581), (999, 0.36)]:
        assert snr_power(0.1)(path.level(t)) == pytest.approx(expected, abs=0.006)


def test_edm_loss_is_the_published_one():
    """EDM 2022, eq. 2: (sigma² + sigma_data²) / (sigma sigma_data)² |D - x_0|², ln sigma normal."""
    path, x0 = EDM(), torch.ones(50, 4, dtype=torch.float64)
    terms = Objective(path, Head("edm"))(Zero(), x0, generator=seeded())
    sigma = path.sample_t(50, seeded())
    expected = ((sigma**2 + 0.25) / (sigma * 0.5) ** 2).mean().item()
    assert terms["loss"].item() == pytest.approx(expected, rel=1e-9)
    drawn = path.sample_t(20000, seeded()).log()
    assert drawn.mean().item() == pytest.approx(-1.2, abs=5 * 1.2 / math.sqrt(20000))
    assert drawn.std().item() == pytest.approx(1.2, abs=5 * 1.2 / math.sqrt(40000))


def test_the_head_of_the_network_is_what_is_compared():
    """A network that answers the target has no loss, whatever the head; a wrong one its square."""
    path, x0 = cosine(100), normal(8, 3)
    for head in (EPS, X0, V, Head("edm")):
        t = path.sample_t(8, g := seeded())
        eps = torch.randn(x0.shape, generator=g).double()
        target = head.target(x0, eps, path.levels(t, like=x0))
        for off in (0.0, 0.5):
            denoiser = NetworkDenoiser(lambda x, t, c, add=target + off: add, head)
            loss = Objective(path, head)(denoiser, x0, generator=seeded())["loss"].item()
            assert loss == pytest.approx(off**2, abs=1e-9)


def test_times_can_follow_another_density():
    path, x0 = cosine(100), torch.ones(5, 2, dtype=torch.float64)
    at = Objective(path, EPS, density=lambda n, generator: torch.full((n,), 30))
    snr = (path.alpha[30] / path.sigma[30]) ** 2
    assert at(Zero(), x0, generator=seeded())["loss"].item() == pytest.approx(snr.item())


def test_anchored_training_shows_the_network_the_anchored_state():
    path, x0, y = anchored(cosine(100)), normal(4, 3), normal(4, 3, seed=1)
    seen = {}

    def network(x, t, cond):
        seen.update(x=x, t=t, cond=cond)
        return x

    Objective(path, X0)(
        NetworkDenoiser(network, X0, anchored=True), x0, ("tokens", y), generator=seeded()
    )
    t = path.sample_t(4, g := seeded())
    eps, level = torch.randn(x0.shape, generator=g).double(), path.levels(t, like=x0)
    expected = level.alpha * x0 + (1 - level.alpha) * y + level.sigma * eps
    torch.testing.assert_close(seen["x"], expected)
    assert torch.equal(seen["t"], t.double())
    assert seen["cond"] == "tokens"


def network_of_two_layers():
    torch.manual_seed(0)
    layers = torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)
    return torch.nn.Sequential(*layers).double()


def test_auxiliary_losses_read_a_layer_and_train_it():
    net, x0, goal = network_of_two_layers(), normal(6, 3), normal(6, 5, seed=1)
    part = Auxiliary("1", lambda out, target: (out - target).square().mean(1), weight=0.3)
    objective = Objective(cosine(100), X0, network=net, auxiliaries=[part])
    denoiser = NetworkDenoiser(lambda x, t, c: net(x), X0)
    terms = objective(denoiser, x0, generator=seeded(), targets={"1": goal})
    t = cosine(100).sample_t(6, g := seeded())
    level, eps = cosine(100).levels(t, like=x0), torch.randn(x0.shape, generator=g).double()
    layer = net[:2](level.alpha * x0 + level.sigma * eps)
    expected = (layer - goal).square().mean()
    torch.testing.assert_close(terms["1"], expected)
    torch.testing.assert_close(terms["loss"], terms["denoising"] + 0.3 * expected)
    terms["1"].backward()
    assert net[0].weight.grad.abs().max() > 0
    assert net[2].weight.grad is None


def test_taps():
    net, x = network_of_two_layers(), normal(2, 3)
    with tapped(net, ["1", "2"]) as seen:
        out = net(x)
    assert torch.equal(seen["2"], out)
    assert torch.equal(seen["1"], net[:2](x))
    net(2 * x)
    assert torch.equal(seen["2"], out)  # no longer attached
    names = r"no layers \['middle'\]; the network has \['0', '1', '2'\]"
    with pytest.raises(ValueError, match=names):
        tapped(net, ["middle"]).__enter__()


def test_features_by_layer_and_level():
    net = torch.nn.Sequential(
        torch.nn.Conv1d(2, 3, 1, bias=False), torch.nn.Conv1d(3, 2, 1)
    ).double()
    x0, levels = normal(4, 2, 5), [cosine(100).level(t) for t in (60, 10)]

    def denoiser(x, level, state):
        return net(x)

    def found(rows):
        generators = [seeded(i) for i in rows]
        return features(denoiser, net, x0[rows], ["0"], levels, generators)

    all_rows = found([0, 1, 2, 3])
    assert list(all_rows) == [("0", 60.0), ("0", 10.0)]
    for level in levels:
        eps = torch.stack(
            [torch.randn(2, 5, generator=seeded(i), dtype=x0.dtype) for i in range(4)]
        )
        x = level.alpha * x0 + level.sigma * eps
        torch.testing.assert_close(all_rows["0", level.t], (x.mean(2) @ net[0].weight[..., 0].T))
        torch.testing.assert_close(found([2])["0", level.t], all_rows["0", level.t][2:3])


# --- scores --------------------------------------------------------------------------------------


def test_differences_of_denoising_errors():
    """x_0 - D = sigma² / v (x_0 - mu) - alpha s² sigma / v eps; over a noise and its negative the
    difference of two conditions is (sigma² / v)² (|x_0 - mu|² - |x_0 - nu|²) exactly."""
    s, levels = 0.7, [cosine(100).level(t) for t in (90, 50, 5)]
    x0, mu, nu = normal(3, 4), normal(4, seed=1), normal(4, seed=2)
    generators = [seeded(i) for i in range(3)]
    errors = denoising_errors(Gaussian(s), x0, [mu, nu], levels, generators, pairs=2)
    assert errors.shape == (3, 2, 3)
    for at, level in enumerate(levels):
        share = level.sigma**2 / (level.alpha**2 * s**2 + level.sigma**2)
        expected = share**2 * ((x0 - mu) ** 2 - (x0 - nu) ** 2).sum(1)
        ours = errors[:, 0, at] - errors[:, 1, at]
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


def test_scores_are_log_likelihoods():
    """log N(x; mu, s²) - log N(x; nu, s²) = (|x - nu|² - |x - mu|²) / (2 s²)."""
    s, x0, mu, nu = 0.7, normal(3, 4), normal(4, seed=1), normal(4, seed=2)
    levels = [EDM().level(sigma) for sigma in torch.logspace(-3, 3, 400).tolist()]
    generators = [seeded(i) for i in range(3)]
    errors = denoising_errors(Gaussian(s), x0, [mu, nu], levels, generators)
    scores = log_likelihoods(errors, levels)
    expected = (((x0 - nu) ** 2 - (x0 - mu) ** 2).sum(1)) / (2 * s**2)
    torch.testing.assert_close(scores[:, 0] - scores[:, 1], expected, rtol=1e-3, atol=1e-3)
    assert (scores.argmax(1) == (expected < 0).long()).all()


def test_shared_noise_takes_the_variance_of_differences_away():
    """With noise of its own for each condition a difference has variance 4 d k⁴ sigma⁴ from it
    (k = alpha s² / v, each error's term k² sigma² |eps|²); with shared noise none."""
    s, level, d, n = 0.7, cosine(100).level(50), 6, 3000
    x0, mu, nu = torch.zeros(n, d, dtype=torch.float64), normal(d, seed=1), normal(d, seed=2)

    def errors(states, seed):
        generators = [seeded(seed * n + i) for i in range(n)]
        return denoising_errors(Gaussian(s), x0, states, [level], generators)[..., 0]

    shared = errors([mu, nu], 0)
    paired = shared[:, 0] - shared[:, 1]
    own = errors([mu], 1)[:, 0] - errors([nu], 2)[:, 0]
    assert paired.std() < 1e-9
    gain = level.alpha * s**2 / (level.alpha**2 * s**2 + level.sigma**2)
    expected = 4 * d * (gain * level.sigma) ** 4
    assert own.var().item() == pytest.approx(expected, rel=5 * math.sqrt(2.5 / n))


def test_scores_do_not_depend_on_the_batch():
    levels, x0, mu = [cosine(100).level(50)], normal(3, 4), normal(4, seed=1)
    both = denoising_errors(Gaussian(1.0), x0, [mu], levels, [seeded(i) for i in range(3)])
    alone = denoising_errors(Gaussian(1.0), x0[2:], [mu], levels, [seeded(2)])
    torch.testing.assert_close(alone, both[2:], rtol=0, atol=1e-12)


def test_variance_from_errors_is_the_posterior_variance():
    """Var[x_0 | x] = s² sigma² / v; from 4000 draws of the data, within five standard errors."""
    s, n, levels = 0.7, 4000, [cosine(100).level(t) for t in (80, 30)]
    x0, mu = s * normal(n, 1), torch.zeros(1, dtype=torch.float64)
    errors = denoising_errors(Gaussian(s), x0, [mu], levels, [seeded(i) for i in range(n)])
    variance = posterior_variance(errors, levels, 1)
    for level in levels:
        expected = s**2 * level.sigma**2 / (level.alpha**2 * s**2 + level.sigma**2)
        assert variance(level) == pytest.approx(expected, rel=5 * math.sqrt(2 / n))
    assert Ancestral(variance).variance(levels[0]) > variance(levels[1])


# --- latents -------------------------------------------------------------------------------------


def encoder(x):
    return torch.stack([3 * x + 1, x - 2], 1)  # (n, 2, ...)


def test_latents_have_mean_zero_and_spread_one():
    data = normal(40, 5, 6)
    batches = [data[:7], data[7:31], data[31:]]
    z = encoder(data)
    for per, axes in [("all", (0, 1, 2, 3)), ("channel", (0, 2, 3)), ("dimension", (0,))]:
        latents = Latents.fit(encoder, lambda z: z, batches, per=per)
        torch.testing.assert_close(latents.mean, z.mean(axes, keepdim=True), rtol=0, atol=1e-12)
        torch.testing.assert_close(latents.std, z.std(axes, keepdim=True), rtol=0, atol=1e-12)
        scaled = latents.encode(data)
        zero = torch.zeros_like(z.mean(axes))
        torch.testing.assert_close(scaled.mean(axes), zero, rtol=0, atol=1e-12)
        torch.testing.assert_close(scaled.std(axes), zero + 1, rtol=0, atol=1e-12)
        torch.testing.assert_close(latents.decode(scaled), z, rtol=0, atol=1e-12)


def test_a_published_factor_is_one_over_the_spread():
    latents = Latents(lambda x: x, lambda z: z, std=1 / 0.18215)
    torch.testing.assert_close(latents.encode(torch.ones(2)), torch.full((2,), 0.18215))
    assert latents.encode(torch.ones(2)).dtype == torch.float32


def test_latents_that_do_not_vary_are_refused():
    with pytest.raises(ValueError, match="do not vary in every channel"):
        Latents.fit(lambda x: x * torch.tensor([1.0, 0.0])[:, None], None, [normal(4, 2, 3)])
    with pytest.raises(ValueError, match="latents of 1 values"):
        Latents.fit(lambda x: x, None, [normal(1, 2)], per="dimension")


def test_clean_data_has_no_score():
    levels = [Level(0, 1.0, 1e-3), Level(-1.0, 1.0, 0.0)]
    with pytest.raises(ValueError, match="leave out clean data"):
        log_likelihoods(torch.ones(1, 1, 2), levels)


@pytest.mark.parametrize("interval", [(0.0, math.inf), (0.5, 2.0)])
def test_guided_denoisers_train_as_they_sample(interval):
    """The loss of a batch is that of its items, each guided at its own level."""
    path, x0, base = cosine(100), normal(12, 3), torch.zeros(3, dtype=torch.float64)
    guided = ClassifierFree(Gaussian(0.8), 2.0, lambda mu: base, interval)
    mu = torch.full((3,), 0.7, dtype=torch.float64)
    loss = Objective(path, X0)(guided, x0, mu, generator=seeded())["loss"]
    t = path.sample_t(12, g := seeded())
    eps, items = torch.randn(x0.shape, generator=g).double(), []
    for i in range(12):
        level = path.level(int(t[i]))
        mean = guided(level.alpha * x0[i] + level.sigma * eps[i], level, guided.prepare(mu))
        items.append((mean - x0[i]).square().mean())
    torch.testing.assert_close(loss, torch.stack(items).mean())


def test_a_network_in_half_precision_keeps_the_trajectory():
    layer = torch.nn.Linear(3, 3).to(torch.bfloat16)
    seen = []

    def network(x, t, cond):
        seen.append(x.dtype)
        return layer(x)

    denoiser = NetworkDenoiser(network, EPS, dtype=torch.bfloat16)
    out = denoiser(torch.ones(2, 3), cosine(100).level(5), denoiser.prepare(None))
    assert (seen, out.dtype) == ([torch.bfloat16], torch.float32)
