"""The grid and the step of the published bridge."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from neurodiff.diffusion.paths import cosine
from neurodiff.diffusion.sampling import sample
from neurodiff.models.feature_bridge import FeatureBridge
from neurodiff.models.feature_bridge_2024 import BridgeDDIM2024, bridge_2024


@pytest.fixture(scope="module")
def published():
    path = Path(__file__).parent / "golden" / "recipe.py"
    spec = importlib.util.spec_from_file_location("golden_recipe", path)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe.load("mind3d_prior")["mind3d.prior"]["outputs"]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_published_bridge_grid_and_where_it_asks_for_noise(published):
    path = cosine(100)
    grid = bridge_2024(path)
    assert [int(level.t) for level in grid] == [*published["ddim_times_network_calls"], -1]
    assert [int(level.t) for level in bridge_2024(path, 8)] == [*published["ddim8_times"], -1]
    asked = []

    def noise(step, x):
        asked.append(step)
        return torch.zeros_like(x)

    sample(lambda x, level, state: x / 2, normal(2), grid, BridgeDDIM2024(path), noise=noise)
    count, last, never = len(asked), asked[-1], published["ddim_noise_drawn_at_call"][-1]
    assert (count, last, never) == (61, 60, 61)


def test_published_step_is_one_row_down_the_table():
    path, x, mean, noise = cosine(100), normal(4), normal(4, seed=1), normal(4, seed=2)
    a, b = path.level(60), path.level(44)
    before, after = path.alphas_cumprod[59], path.alphas_cumprod[43]
    fresh = ((1 - before / after) * (1 - after) / (1 - before)).sqrt()
    eps = (x - path.alpha[60] * mean) / path.sigma[60]
    expected = after.sqrt() * mean + fresh * noise + (1 - after - fresh**2).sqrt() * eps
    ours = sample(lambda *_: mean, x, [a, b], BridgeDDIM2024(path), noise=lambda *_: noise)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


# --- the condition cache at the published size ----------------------------------------------------


@pytest.mark.parametrize(("candidates", "least"), [(1, 50), (16, 200)])
def test_one_sample_costs_a_fiftieth_and_sixteen_a_two_hundredth(candidates, least):
    """FLOPs of the published sampler's 63 calls: the condition once and three tokens a call,
    against the whole network at each; on the meta device."""
    calls = len(bridge_2024(cosine(100))) - 1
    with torch.device("meta"):
        net, tokens = FeatureBridge().eval(), torch.zeros(1, 768, 512)
        x = torch.zeros(candidates, 512)
        with FlopCounterMode(display=False) as once:
            state = net.prepare(tokens).repeat(candidates)
        with FlopCounterMode(display=False) as step:
            net.step(x, 3, state)
        with FlopCounterMode(display=False) as whole:
            net(x, 3, tokens.expand(candidates, -1, -1))
    cached = once.get_total_flops() + calls * step.get_total_flops()
    assert calls == 63
    assert calls * whole.get_total_flops() / cached >= least
