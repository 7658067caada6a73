"""LDAE's sampling: golden walks, exact round trips, solvers against a closed form, own seeds."""

import importlib.util
from pathlib import Path

import pytest
import torch

from neurodiff.core.errors import DataError, UsageError
from neurodiff.diffusion.guidance import ScoreShift
from neurodiff.diffusion.heads import EPS
from neurodiff.diffusion.sampling import NetworkDenoiser
from neurodiff.models.ldae_denoiser import ShiftDenoiser, one_coefficient
from neurodiff.models.ldae_sizes import LatentUNetSize
from neurodiff.models.ldae_unet import ShiftUNet
from neurodiff.pipelines.ldae_sampling import (
    LatentSampler,
    SamplingSettings,
    draw_noise,
    scan_generator,
    slerp,
)

_SPEC = importlib.util.spec_from_file_location(
    "golden_recipe", Path(__file__).parent / "golden" / "recipe.py"
)
recipe = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(recipe)

CASE = recipe.load("ldae")["ldae.unets"]
OUT = CASE["outputs"]
SMALL = LatentUNetSize(width=32, multipliers=(1, 2), blocks=1, attention=(2,), semantic=6)


def small_network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ShiftUNet(SMALL)
        with torch.no_grad():
            for p in network.parameters():
                p.add_(0.03 * torch.randn_like(p))
            for last in (network.out[2], network.shift_out[2]):  # a contraction, as trained ones
                last.weight.mul_(0.03)
    return network.double()


@pytest.fixture(scope="module")
def network():
    return small_network()


@pytest.fixture(scope="module")
def inputs():
    return {name: recipe.make(CASE["inputs"][name]) for name in ("z", "y", "noise")}


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, 2, 4, 4, generator=generator, dtype=torch.float64)
    return x, torch.randn(2, 6, generator=generator, dtype=torch.float64)


class Gaussian(torch.nn.Module):
    """The exact noise of data from N(mean, sd²), of which the code is the mean; the trunk's is 0.

    Its score is known, and so is where every noise leads: x_0 = mean + sd * x_T / SD(x_T).
    """

    def __init__(self, path, sd):
        super().__init__()
        self.path, self.sd = path, sd
        self.unused = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.size = SMALL

    def _scale(self, t):
        ratio = torch.as_tensor(self._ratio(float(t[0])))
        alpha = 1 / (1 + ratio**2).sqrt()
        sigma = ratio * alpha
        return alpha, sigma, alpha**2 * self.sd**2 + sigma**2

    def _ratio(self, t):
        low = int(t)
        logs = (self.path.sigma / self.path.alpha).log()
        high = min(low + 1, self.path.steps - 1)
        return float((logs[low] + (t - low) * (logs[high] - logs[low])).exp())

    def noise(self, x, t):
        _, sigma, variance = self._scale(t)
        return sigma * x / variance

    def forward(self, x, t, code):
        alpha, _, variance = self._scale(t)
        shift = alpha * code[:, :, None, None, None] / variance  # of the score
        return self.noise(x, t), shift.expand(x.shape)

    def aim(self, x, code):
        """Where the probability flow leads x_T, at step 0."""
        (a0, s0), (a, s) = ((float(self.path.alpha[t]), float(self.path.sigma[t])) for t in (0, -1))
        mean = code[:, :, None, None, None]
        spread = ((a0**2 * self.sd**2 + s0**2) / (a**2 * self.sd**2 + s**2)) ** 0.5
        return a0 * mean + spread * (x - a * mean)


def oracle(steps=100, sd=0.5, iterations=8):
    settings = SamplingSettings(steps=steps, iterations=iterations)
    return LatentSampler(Gaussian(settings.path(), sd), settings)


# ------------------------------------------------------------------------------- golden


def test_published_walks_equal_the_published_code(inputs):
    size = LatentUNetSize(width=32, semantic=16)
    network = recipe.fill(ShiftUNet(size), CASE["recipe"])
    sampler = LatentSampler(network, SamplingSettings(protocol="ldae-2025", steps=5))
    assert [level.t for level in reversed(sampler.grid())] == OUT["ddim5_timestep_map"]
    encoded = sampler.encode(inputs["z"], inputs["y"])
    assert encoded.calls == 5
    assert encoded.residual is None
    recipe.check(encoded.noise, OUT["encode_ddim5"], 1e-6)
    recipe.check(sampler.decode(inputs["y"], encoded.noise), OUT["decode_ddim5"], 1e-6)
    drawn = sampler.decode(inputs["y"], inputs["noise"])
    recipe.check(drawn, OUT["sample_ddim5_from_noise"], 1e-6)


def test_between_two_scans_equals_the_published_code(inputs):
    z, y = inputs["z"], inputs["y"]
    recipe.check(slerp(z[:1], z[1:], 0.3), OUT["slerp_0.3_of_z0_z1"], 1e-9)
    recipe.check(torch.lerp(y[:1], y[1:], 0.3), OUT["lerp_0.3_of_y0_y1"], 1e-9)


# ------------------------------------------------------------------------------- solvers


def test_exact_encoding_is_undone_by_ddim_and_explicit_is_not(batch):
    x, code = batch[0], batch[1][:, :3]
    sampler = oracle(steps=6, iterations=30)
    exact = sampler.encode(x, code)
    assert exact.residual < 1e-12
    torch.testing.assert_close(sampler.decode(code, exact.noise), x, rtol=0, atol=1e-10)
    explicit = sampler.encode(x, code, method="ddim")
    assert explicit.calls == 6 < exact.calls
    back = sampler.decode(code, explicit.noise)
    assert float((back - x).abs().max()) > 1e-2


def test_exact_encoding_is_nearer_on_a_network_too(network, batch):
    x, code = batch
    sampler = LatentSampler(network, SamplingSettings(steps=3, iterations=20))

    def off(method):
        noise = sampler.encode(x, code, method=method).noise
        return float((sampler.decode(code, noise) - x).norm() / x.norm())

    assert off("exact") < off("ddim") / 5


def test_another_code_leads_elsewhere(network, batch):
    x, code = batch
    sampler = LatentSampler(network, SamplingSettings(steps=4))
    noise = sampler.encode(x, code).noise
    away = sampler.decode(code + 1, noise)
    assert float((away - x).abs().max()) > 1e-3


@pytest.mark.parametrize(("way", "order"), [("ddim", 1), ("dpm", 2)])
def test_walks_lead_where_the_closed_form_says_with_their_order(batch, way, order):
    x, code = batch[0], batch[1][:, :3]
    sampler = oracle()
    aim = sampler.network.aim(x, code)

    def errors(steps):
        ahead = sampler.decode(code, x, steps=steps, solver=way) - aim
        back = sampler.encode(aim, code, steps=steps, method=way).noise - x
        return [float(error.norm() / x.norm()) for error in (ahead, back)]

    for few, many in zip(errors(60), errors(120), strict=True):
        assert many < (0.03 if order == 1 else 1e-3)
        assert 0.7 * 2**order < few / many < 1.5 * 2**order


def test_dpm_needs_a_fifth_of_the_calls_of_ddim_both_ways(batch):
    """Error to the closed form at 20 calls, beside the 100 calls of the published settings."""
    x, code = batch[0], batch[1][:, :3]
    sampler = oracle()
    aim = sampler.network.aim(x, code)

    def errors(way, steps):
        ahead = sampler.decode(code, x, steps=steps, solver=way) - aim
        back = sampler.encode(aim, code, steps=steps, method=way)
        assert back.calls == steps
        return float(ahead.square().mean()), float((back.noise - x).square().mean())

    for quick, published in zip(errors("dpm", 20), errors("ddim", 100), strict=True):
        assert quick < published


def test_the_shift_is_the_cores_score_shift_in_one_call(network, batch):
    x, code = batch
    sampler = LatentSampler(network, SamplingSettings())

    class Part:
        def __init__(self, run):
            self.run = run

        def prepare(self, cond):
            return cond

        def __call__(self, x, level, state):
            t = torch.full((len(x),), level.t, dtype=torch.float64)
            return self.run(x, t, state)

    trunk = NetworkDenoiser(lambda x, t, cond: network.noise(x, t), EPS)
    two = ScoreShift(trunk, Part(lambda x, t, c: network(x, t, c)[1]))
    level = sampler.path.level(300)
    expected = two(x, level, two.prepare((None, code)))
    mean = ShiftDenoiser(network)(x, level, code)
    torch.testing.assert_close(mean, expected)
    batched = sampler.path.levels(torch.tensor([300, 300]), like=x)
    torch.testing.assert_close(ShiftDenoiser(network)(x, batched, code), expected)


def test_training_and_sampling_share_a_coefficient_except_as_published():
    ours, published = SamplingSettings(), SamplingSettings(protocol="ldae-2025")
    assert ours.training_coefficient() is one_coefficient
    path = published.path()
    lost = published.training_coefficient()
    for t in (100, 500, 999):  # they agree within 2 %
        assert lost(path.level(t)) == pytest.approx(one_coefficient(path.level(t)), rel=0.02)
    assert lost(path.level(0)) == 0.0


def test_the_clamp_is_on_only_in_the_published_protocol(batch):
    """Data of unit SD lie outside of [-1, 1] for a third; the clamp loses their spread."""
    settings = SamplingSettings()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 4, 4, 4, generator=generator, dtype=torch.float64)
    code = torch.zeros(4, 3, dtype=torch.float64)
    network = Gaussian(settings.path(), 1.0)
    free = LatentSampler(network, settings).decode(code, x, steps=50)
    clamped = LatentSampler(network, SamplingSettings(protocol="ldae-2025"))
    tight = clamped.decode(code, x, steps=50)
    assert float(free.std()) == pytest.approx(1.0, abs=0.05)
    assert float(tight.std()) < 0.8
    assert float(tight.abs().max()) < 1.1
    far = clamped.encode(x, code, steps=50).noise
    assert float(far.std()) > 5  # what the clamp cannot say goes into the noise


def test_no_shift_after_stop_and_none_without_codes(network, batch):
    x, code = batch
    sampler = LatentSampler(network, SamplingSettings(steps=4))
    plain = sampler.decode(None, x)
    assert torch.equal(sampler.decode(code, x, stop=1.0), plain)
    torch.testing.assert_close(sampler.decode(code, x, scale=0.0), plain)
    whole, most = sampler.decode(code, x), sampler.decode(code, x, stop=0.25)
    assert not torch.allclose(whole, most)
    assert not torch.allclose(most, plain)
    calls = []
    hook = network.shift_out.register_forward_hook(lambda *_: calls.append(1))
    sampler.decode(code, x, stop=0.25)
    hook.remove()
    assert len(calls) == 3


# ------------------------------------------------------------------------------- seeds


def test_noise_belongs_to_the_scan():
    def noise(*names):
        made = [scan_generator(0, subject=s, scan=n) for s, n in names]
        return draw_noise(made, (3, 2, 2, 2))

    both = noise(("01", "M000"), ("02", "M006"))
    assert torch.equal(noise(("02", "M006"))[0], both[1])
    assert torch.equal(noise(("02", "M006"), ("01", "M000")), both.flip(0))
    assert not torch.equal(noise(("02", "M000"))[0], both[1])
    second = draw_noise([scan_generator(0, subject="02", scan="M006", sample=1)], (3, 2, 2, 2))
    assert not torch.equal(second[0], both[1])


def test_a_scan_decodes_alike_in_any_batch(network, batch):
    x, code = batch
    sampler = LatentSampler(network, SamplingSettings(steps=4))
    for way in ("ddim", "dpm"):
        whole = sampler.decode(code, x, solver=way)
        alone = sampler.decode(code[1:], x[1:], solver=way)
        torch.testing.assert_close(whole[1:], alone, rtol=1e-9, atol=1e-9)


def test_a_network_in_half_precision_walks_in_float32(batch):
    x, code = (v.float() for v in batch)
    sampler = LatentSampler(small_network().bfloat16(), SamplingSettings(steps=3))
    latents = sampler.decode(code, x.bfloat16())
    assert latents.dtype == torch.float32
    full = LatentSampler(small_network().float(), SamplingSettings(steps=3))
    assert float((latents - full.decode(code, x)).norm() / latents.norm()) < 0.1


def test_slerp_keeps_the_length_and_ends_where_it_should():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 3, 4, generator=generator) for _ in range(2))
    a, b = (v / v.flatten(1).norm(dim=1)[:, None, None] for v in (a, b))
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    middle = slerp(a, b, 0.5)
    torch.testing.assert_close(middle.flatten(1).norm(dim=1), torch.ones(2))
    torch.testing.assert_close(slerp(a[:1], b[:1], 0.5)[0], middle[0])  # each item by itself
    assert torch.isfinite(slerp(a, a, 0.3)).all()
    torch.testing.assert_close(slerp(a, a, 0.3), a)


# ------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize("where", ["latents", "codes", "noise"])
def test_nan_is_named_with_its_item(network, batch, where):
    x, code = batch
    x, code = x.clone(), code.clone()
    (code if where == "codes" else x)[1].view(-1)[2] = torch.nan
    sampler = LatentSampler(network, SamplingSettings(steps=2))
    call = (
        (lambda: sampler.decode(code, x)) if where == "noise" else lambda: sampler.encode(x, code)
    )
    with pytest.raises(DataError, match="NaN or infinity in item 1") as caught:
        call()
    assert where in str(caught.value)


def test_indivisible_latents_and_other_shapes_are_refused(network, batch):
    x, code = batch
    sampler = LatentSampler(network, SamplingSettings(steps=2))
    for wrong in (x[..., :3], x[:, :2], x[0]):
        with pytest.raises(UsageError, match=r"latents have|semantic codes have"):
            sampler.encode(wrong, code[: len(wrong)])
    with pytest.raises(UsageError, match=r"expected \(2, 6\), one for each latent"):
        sampler.decode(code[:1], x)
    with pytest.raises(UsageError, match=r"expected \(2, 6\)"):
        sampler.decode(code[:, :5], x)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda s, x, c: s.encode(x, c, method="heun"), "method is 'heun'"),
        (lambda s, x, c: s.decode(c, x, solver="exact"), "solver is 'exact'"),
        (lambda s, x, c: s.decode(c, x, steps=0), "steps is 0"),
        (lambda s, x, c: s.decode(c, x, steps=1000), "1 to 999"),
        (lambda s, x, c: s.decode(c, x, stop=1.5), "stop is 1.5"),
        (lambda s, x, c: SamplingSettings(protocol="ldae"), "protocol is 'ldae'"),
        (lambda s, x, c: SamplingSettings(iterations=0), "iterations is 0"),
    ],
)
def test_wrong_settings_are_refused(network, batch, call, sentence):
    x, code = batch
    with pytest.raises(UsageError, match=sentence):
        call(LatentSampler(network, SamplingSettings(steps=2)), x, code)
