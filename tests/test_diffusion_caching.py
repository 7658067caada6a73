"""The two caches: the exact one against the uncached network, the other by what it must keep."""

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from neurodiff.diffusion.caching import (
    ContextCache,
    ModuleCache,
    fit_schedule,
    gate,
    interval,
    newton,
    schedule,
)
from neurodiff.diffusion.grids import trailing
from neurodiff.diffusion.guidance import ClassifierFree
from neurodiff.diffusion.heads import V
from neurodiff.diffusion.paths import cosine
from neurodiff.diffusion.sampling import RUN, NetworkDenoiser, sample
from neurodiff.diffusion.solvers import DDIM, DPMSolver2M, EDMStep

PATH = cosine(100)
DEEP = r"down_blocks[.]1|middle_block|up_blocks[.]0"  # all but the outermost level of MONAI's


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lively(net):
    """Give every parameter a value: new UNets end in zeros and would pass any comparison."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            spread = 1 / math.sqrt(p[0].numel()) if p.ndim > 1 else 0.1
            p.copy_((p.ndim == 1) + spread * torch.randn(p.shape, generator=generator))
    return net.eval().requires_grad_(False)


def monai_unet(dims, context=None):
    nets = pytest.importorskip("monai.networks.nets")
    more = {} if context is None else {"with_conditioning": True, "cross_attention_dim": context}
    return lively(
        nets.DiffusionModelUNet(
            spatial_dims=dims,
            in_channels=2,
            out_channels=2,
            channels=(8, 16),
            attention_levels=(False, context is not None),
            num_res_blocks=1,
            num_head_channels=8,
            norm_num_groups=4,
            **more,
        )
    )


def diffusers_unet(context=None):
    diffusers = pytest.importorskip("diffusers")
    sizes = {
        "sample_size": 8,
        "in_channels": 2,
        "out_channels": 2,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
    }
    if context is None:
        plain = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
        return lively(diffusers.UNet2DModel(**sizes, **plain))
    kinds = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return lively(diffusers.UNet2DConditionModel(**sizes, **kinds, cross_attention_dim=context))


def denoiser_of(net, library):
    if library == "monai":
        return NetworkDenoiser(lambda x, t, c: net(x, timesteps=t, context=c), V)
    if library == "diffusers":
        return NetworkDenoiser(lambda x, t, c: net(x, t, encoder_hidden_states=c).sample, V)
    return NetworkDenoiser(lambda x, t, c: net(x, t).sample, V)


def with_context(library, dims):
    net = monai_unet(dims, 12) if library == "monai" else diffusers_unet(12)
    return net, denoiser_of(net, library), normal(2, 9, 12, seed=4)


CONDITIONED = pytest.mark.parametrize(
    ("library", "dims"), [("monai", 2), ("monai", 3), ("diffusers", 2)]
)
PLAIN = pytest.mark.parametrize(
    ("library", "dims"), [("monai", 2), ("monai", 3), ("unconditional", 2)]
)


def plain(library, dims):
    net = monai_unet(dims) if library == "monai" else diffusers_unet()
    select = DEEP if library == "monai" else r"down_blocks[.]1|mid_block|up_blocks[.]0"
    return net, denoiser_of(net, library), select, normal(2, 2, *[8] * dims, seed=3)


def run(denoiser, x, steps=8, solver=None, cond=None):
    state = denoiser.prepare(cond)
    return sample(denoiser, x, trailing(PATH, steps), solver or DDIM(), state=state)


# --- keys and values of the condition ------------------------------------------------------------


@CONDITIONED
def test_context_cache_is_the_uncached_network(library, dims):
    net, denoiser, context = with_context(library, dims)
    x = normal(6, 2, *[8] * dims)  # three candidates of each of two items
    wide = context.repeat_interleave(3, 0)
    with FlopCounterMode(display=False) as before:
        expected = run(denoiser, x, cond=wide)
    cached = ContextCache(denoiser, net)
    assert all(".attn2.to_" in name for name in cached.modules)
    with FlopCounterMode(display=False) as after:
        ours = run(cached, x, cond=context)
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    # 8 steps of 6 rows, against 2 rows once: each layer's products, and nothing else
    own = sum(2 * 9 * m.weight.numel() for m in cached.modules.values())
    assert before.get_total_flops() - after.get_total_flops() == own * (8 * 6 - 2)
    cached.remove()
    assert torch.equal(run(denoiser, x, cond=wide), expected)


@CONDITIONED
def test_context_cache_serves_both_branches_of_guidance(library, dims):
    net, denoiser, context = with_context(library, dims)
    x = normal(2, 2, *[8] * dims)
    guided = ClassifierFree(denoiser, 3.0, lambda c: torch.zeros_like(c))
    expected = run(guided, x, cond=context)
    counted = []
    layer = next(m for n, m in net.named_modules() if n.endswith("attn2.to_k"))
    cached = ContextCache(denoiser, net)
    layer.register_forward_hook(lambda *_: counted.append(1))
    guided = ClassifierFree(cached, 3.0, lambda c: torch.zeros_like(c))
    state = guided.prepare(context)
    counted.clear()
    ours = sample(guided, x, trailing(PATH, 8), DDIM(), state=state)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    before = guided.prepare(2 * context)  # another condition beside it
    again = sample(guided, x, trailing(PATH, 8), DDIM(), state=state)
    assert torch.equal(again, ours)
    assert not torch.allclose(
        sample(guided, x, trailing(PATH, 8), DDIM(), state=before), ours, atol=1e-3
    )


def test_rows_that_are_no_candidates_are_refused():
    net, denoiser, context = with_context("monai", 2)
    cached = ContextCache(denoiser, net)
    with pytest.raises(ValueError, match="3 rows are no multiple of 2 contexts"):
        cached(normal(3, 2, 8, 8), PATH.level(5), cached.prepare(context))


def test_context_cache_that_finds_no_attention_is_refused():
    net, denoiser, _, _ = plain("monai", 2)
    with pytest.raises(ValueError, match="matches no module: nothing to cache"):
        ContextCache(denoiser, net)


# --- predicted outputs ---------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_newton_is_exact_on_polynomials(degree):
    places, at = [4.0, 7.0, 9.5, 13.0][: degree + 1], 15.0

    def curve(t):
        return torch.tensor([sum((i + 1) * (-t) ** i for i in range(degree + 1)), t**degree])

    predicted = newton(places, [curve(t).double() for t in places], at)
    torch.testing.assert_close(predicted, curve(at).double(), rtol=1e-12, atol=0)


def test_newton_where_taylor_by_backward_differences_is_off_by_six():
    """f = t² - 3t at 4, 7, 10, 13, asked at 15: 180 (the difference form gives 174)."""
    values = [torch.tensor(t * t - 3 * t) for t in (4.0, 7.0, 10.0, 13.0)]
    assert newton([4, 7, 10, 13], values, 15).item() == 180


@PLAIN
@pytest.mark.parametrize("order", [0, 1, 2])
def test_interval_one_is_bitwise_the_uncached_run(library, dims, order):
    net, denoiser, select, x = plain(library, dims)
    expected = run(denoiser, x)
    cache = ModuleCache(denoiser, net, select, policy=interval(1), order=order)
    assert torch.equal(run(cache, x), expected)
    report = cache.report()
    assert set(report["predicted"].values()) == {0}
    assert report["full_calls"] == report["calls"] == 8


@PLAIN
def test_cache_saves_what_it_reports(library, dims):
    net, denoiser, select, x = plain(library, dims)
    with FlopCounterMode(display=False) as before:
        expected = run(denoiser, x, steps=9)
    cache = ModuleCache(denoiser, net, select, policy=interval(3))
    with FlopCounterMode(display=False) as after:
        ours = run(cache, x, steps=9)
    report = cache.report()
    assert len(report["attached"]) == 3
    assert set(report["computed"].values()) == {3}
    assert set(report["predicted"].values()) == {6}
    assert all(0.01 < share < 0.9 for share in report["share"].values())
    spent = after.get_total_flops() / before.get_total_flops() * 9
    assert report["full_calls"] == pytest.approx(spent, rel=1e-6)
    assert spent < 8
    assert not torch.equal(ours, expected)
    cache.remove()
    assert torch.equal(run(denoiser, x, steps=9), expected)


class Line(nn.Module):
    """Its part gives a polynomial in t, in a tuple as UNet blocks do."""

    def __init__(self, degree):
        super().__init__()
        self.degree, self.part = degree, _Part()

    def forward(self, x, t, cond):
        out, (more,) = self.part(x, (t / 100) ** self.degree)
        return out + more


class _Part(nn.Module):
    def forward(self, x, power):
        value = power[:, None].expand_as(x)
        return value, [2 * value]


@pytest.mark.parametrize(("degree", "order"), [(0, 0), (1, 1), (2, 2)])
@pytest.mark.parametrize("solver", [DDIM(), DPMSolver2M(), EDMStep()])
def test_a_polynomial_module_is_predicted_exactly(degree, order, solver):
    """Heun asks twice at one level: two values at one place must not be divided."""
    net, x = Line(degree), normal(2, 3).double()
    denoiser = NetworkDenoiser(net, V)
    calls = {0, 1, 2, 3, 7, 12}
    cache = ModuleCache(denoiser, net, "part", policy=schedule(calls), order=order)
    ours = run(cache, x, 12, solver)
    predicted = cache.report()["predicted"]["part"]
    assert predicted == cache.calls - len([c for c in calls if c < cache.calls]) > 5
    cache.remove()
    torch.testing.assert_close(ours, run(denoiser, x, 12, solver), rtol=0, atol=1e-12)


def test_branches_and_runs_do_not_mix():
    net, denoiser, context = with_context("monai", 2)
    x, null = normal(2, 2, 8, 8), lambda c: torch.zeros_like(c)
    alone = {}
    for name, cond in (("known", context), ("null", null(context))):
        cache = ModuleCache(denoiser, net, DEEP, policy=interval(2))
        state = cache.prepare(cond)
        level = trailing(PATH, 8)
        token = RUN.set(object())
        alone[name] = [cache(x, n, state) for n in level[:4]]
        RUN.reset(token)
        cache.remove()
    cache = ModuleCache(denoiser, net, DEEP, policy=interval(2))
    guided = ClassifierFree(cache, 3.0, null)
    state = guided.prepare(context)
    for _ in range(2):  # a second run on the same state begins anew
        RUN.set(object())
        for i, n in enumerate(trailing(PATH, 8)[:4]):
            mean = guided(x, n, state)
            expected = alone["null"][i] + 3.0 * (alone["known"][i] - alone["null"][i])
            torch.testing.assert_close(mean, expected, rtol=0, atol=1e-5)
    RUN.set(None)


def test_outside_of_a_run_everything_is_computed():
    """Two measurements at one level must not share features, though they share a state."""
    net, denoiser, select, x = plain("monai", 2)
    level, cache = PATH.level(40), ModuleCache(denoiser, net, select, policy=interval(100))
    state = cache.prepare(None)
    for y in (x, 2 * x):
        assert torch.equal(cache(y, level, state), denoiser(y, level, denoiser.prepare(None)))


def test_a_layer_that_sees_a_part_of_the_context_is_refused():
    """As in blocks that give text tokens to one attention and image tokens to another."""
    net, _, context = with_context("monai", 2)
    part = NetworkDenoiser(lambda x, t, c: net(x, timesteps=t, context=c[:, :4]), V)
    cached = ContextCache(part, net)
    with pytest.raises(ValueError, match="a part or a projection of the context"):
        cached(normal(2, 2, 8, 8), PATH.level(5), cached.prepare(context))


def test_a_run_that_was_cut_off_leaves_nothing_to_the_next():
    """The next one starts at a cleaner level, as if it went on."""
    net, denoiser, select, x = plain("monai", 2)
    grid, cache = trailing(PATH, 8), ModuleCache(denoiser, net, select, policy=interval(3))

    def stop(call, level, x, mean):
        if call == 1:
            raise KeyboardInterrupt

    state = cache.prepare(None)
    expected = sample(cache, x, grid[4:], DDIM(), state=cache.prepare(None))
    with pytest.raises(KeyboardInterrupt):
        sample(cache, x, grid, DDIM(), state=state, callback=stop)
    assert torch.equal(sample(cache, x, grid[4:], DDIM(), state=state), expected)


def test_half_precision_is_predicted_in_single():
    """A line in t, stored in bfloat16 at 16 and 17, asked at 18.5: exact but for one rounding."""
    net = Line(1)
    cache = ModuleCache(NetworkDenoiser(net, V), net, "part", policy=interval(2))
    kept = [(t, [torch.tensor([2 * t, 1 - t], dtype=torch.bfloat16), None], None) for t in (16, 17)]
    guess, nothing = cache._predict(kept, 18.5)
    assert guess.dtype == torch.bfloat16
    assert torch.equal(guess, torch.tensor([37, -17.5], dtype=torch.bfloat16))
    assert nothing is None


def test_items_do_not_depend_on_their_batch():
    net, denoiser, select, x = plain("monai", 2)
    cache = ModuleCache(denoiser, net, select, policy=interval(3), order=1)
    together, alone = run(cache, x), run(cache, x[1:])
    torch.testing.assert_close(alone, together[1:], rtol=1e-5, atol=1e-6)


def test_gate_computes_more_when_it_tolerates_less():
    net, denoiser, select, x = plain("monai", 2)
    exact, computed, errors = run(denoiser, x, 20), [], []
    for tolerance in (math.inf, 0.5, 0.1, 0.0):
        cache = ModuleCache(denoiser, net, select, policy=gate(tolerance))
        errors.append((run(cache, x, 20) - exact).norm().item())
        computed.append(sum(cache.report()["computed"].values()))
        cache.remove()
    assert computed == sorted(computed)
    assert computed[0] == 3  # one call each: not even infinity is above infinity
    assert computed[-1] == 3 * 20
    assert errors[-1] == 0 < errors[0]


def test_warm_up_computes_the_first_calls():
    net = Line(1)
    cache = ModuleCache(NetworkDenoiser(net, V), net, "part", policy=interval(4, warm_up=3))
    run(cache, normal(2, 3).double(), 9)
    assert cache.report()["computed"]["part"] == 5  # calls 0, 1, 2, 4, 8


def test_drift_grows_with_the_way():
    """Reuse of 1 at place 0 misses the 2 at place 1 by a half of it; three further on, by 1.5."""
    net = Line(1)
    cache = ModuleCache(NetworkDenoiser(net, V), net, "part", policy=interval(2), order=0)
    kept = [(0.0, [torch.tensor([1.0])], None), (1.0, [torch.tensor([2.0])], None)]
    assert cache._drift(kept, 2.0) == pytest.approx(0.5)
    assert cache._drift(kept, 4.0) == pytest.approx(1.5)
    assert cache._drift(kept[:1], 4.0) == math.inf


def test_gate_follows_the_error_of_a_prediction():
    """A part that is a line in t: the first prediction (of two points) is exact, so after three
    computed calls nothing is computed again."""
    net = Line(1)
    cache = ModuleCache(NetworkDenoiser(net, V), net, "part", policy=gate(1e-6), order=1)
    run(cache, normal(2, 3).double(), 12)
    assert cache.report()["computed"]["part"] == 3


def test_schedule_fitted_on_the_final_error_beats_an_interval():
    net, denoiser, select, x = plain("monai", 2)
    reference = run(denoiser, x, 12)
    cache = ModuleCache(denoiser, net, select, policy=interval(3), order=0)
    errors = {"interval": (run(cache, x, 12) - reference).norm().item()}

    def with_policy(policy):
        cache.policy = policy
        return run(cache, x, 12)

    fitted = fit_schedule(with_policy, reference, calls=12, computed=4)
    errors["fitted"] = (with_policy(schedule(fitted)) - reference).norm().item()
    assert len(fitted) == 4
    assert 0 in fitted
    assert errors["fitted"] < errors["interval"]


def test_a_cache_on_nothing_is_refused():
    net, denoiser, _, _ = plain("monai", 2)
    with pytest.raises(ValueError, match=r"'blocks' matches no module.*'middle_block'"):
        ModuleCache(denoiser, net, "blocks", policy=interval(2))


def test_a_part_inside_another_is_refused():
    net, denoiser, _, _ = plain("monai", 2)
    with pytest.raises(ValueError, match=r"'middle_block\.resnet_1' is inside 'middle_block'"):
        ModuleCache(denoiser, net, "middle_block([.]resnet_1)?", policy=interval(2))


def test_a_part_that_is_never_called_is_reported():
    net = Line(1)
    net.unused = nn.Linear(1, 1)
    cache = ModuleCache(NetworkDenoiser(net, V), net, "part|unused", policy=interval(2))
    run(cache, normal(2, 3).double())
    with pytest.raises(RuntimeError, match=r"never called \['unused'\]"):
        cache.report()
