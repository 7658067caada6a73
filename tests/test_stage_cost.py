"""Costs of the published stages: predicted without memory, measured by the allocator when small."""

from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from neurodiff.core.training import TrainingSettings
from neurodiff.diffusion.paths import cosine
from neurodiff.models.feature_bridge import FeatureBridgeSize
from neurodiff.models.fmri_encoder import FMRIEncoderSize
from neurodiff.models.published_sizes import MinD3DSizes
from neurodiff.models.shape_decoder import ShapeDecoderSize
from neurodiff.models.triplane_vq import TriplaneVQSize
from neurodiff.pipelines.mind3d_stages import StageRecipe
from neurodiff.pipelines.stage_cost import (
    LiveBytes,
    micro_batch,
    one_step,
    plan_text,
    stage_cost,
    stage_networks,
)

SMALL = MinD3DSizes(
    encoder=FMRIEncoderSize(
        image_size=128, patch_size=16, embed_dim=64, depth=3, num_heads=4, pred_out=128
    ),
    aggregated_tokens=32,
    bridge=FeatureBridgeSize(dim=64, depth=2, heads=4, dim_head=16, rotary_dim=16, null_tokens=4),
    decoder=ShapeDecoderSize(
        vocab=256, width=128, heads=4, layers=6, positions=259, condition=64, sequence=256
    ),
    tokenizer=TriplaneVQSize(hidden=8, plane_resolution=32, grid=16, vocab=256, unet_depth=2),
)


def recipe(stage, **training):
    settings = {"steps": 3000, "batch_size": 8, "accumulate": 2, **training}
    return StageRecipe(
        name="small", stage=stage, training=TrainingSettings(**settings), sizes=SMALL
    )


def measured_peak(one):
    """Largest number of bytes that the allocator had handed out, weights included."""
    networks, batch = stage_networks(one, cosine(100)), micro_batch(one)
    trained, _ = networks.rates(one.slow)
    weights = sum(p.numel() * p.element_size() for p in networks.parameters())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        one_step(networks, trained, one, batch)
    events = profiler.profiler.kineto_results.events()
    now = peak = 0
    for event in sorted(
        (e for e in events if e.name() == "[memory]"), key=lambda event: event.start_ns()
    ):
        now += event.nbytes()
        peak = max(peak, now)
    return weights + peak


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("stage", [1, 2])
def test_predicted_memory_is_what_the_allocator_hands_out(stage, precision):
    one = recipe(stage, precision=precision)
    measured_peak(one)  # kernels set up memory of their own on the first call
    predicted, measured = stage_cost(one).peak, measured_peak(one)
    assert predicted == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("stage", [1, 2])
def test_parts_of_the_memory_are_exact(stage):
    one = recipe(stage)
    cost, networks = stage_cost(one), stage_networks(one, cosine(100))
    trained, _ = networks.rates(one.slow)
    assert cost.trained == sum(p.numel() for p in trained)
    assert cost.gradients == 4 * cost.trained
    assert cost.optimiser == 2 * cost.gradients
    held = sum(p.numel() * p.element_size() for p in networks.parameters())
    assert cost.weights == held + sum(b.numel() * b.element_size() for b in networks.buffers())
    optimiser = torch.optim.AdamW(trained)
    one_batch = micro_batch(one)
    networks(*one_batch)["loss"].backward()
    optimiser.step()
    moments = [v for s in optimiser.state.values() for k, v in s.items() if k != "step"]
    assert sum(v.numel() * v.element_size() for v in moments) == cost.optimiser
    assert all(p.grad is not None for p in trained)  # or cards would wait for each other


def test_more_trials_cost_activations_and_operations_only():
    small, large = (stage_cost(recipe(2, batch_size=b)) for b in (4, 8))
    assert large.weights == small.weights
    assert large.flop == pytest.approx(2 * small.flop, rel=1e-6)
    assert 1.7 < large.activations / small.activations < 2.1


def test_cards_share_a_batch():
    one = recipe(1)
    alone, four = stage_cost(one), stage_cost(replace(one, gpus=4))
    assert four.flop == pytest.approx(alone.flop, rel=0.02)  # small batches cost a little less
    assert four.activations < 0.5 * alone.activations
    assert four.gradients == 2 * alone.gradients


def test_live_bytes_counts_storages_once_and_forgets_them():
    live = LiveBytes()
    with live:
        a = torch.zeros(100)
        b = a[10:].view(9, 10)
        assert live.now == 400
        c = a + 1
        assert (live.now, live.peak) == (800, 800)
        del c
        assert (live.now, live.peak) == (400, 800)
        del a
        assert live.now == 400  # the view keeps it
        del b
    assert live.now == 0


def test_the_plan_names_every_figure_and_its_assumption():
    text = plan_text(recipe(1, precision="bf16"))
    for part in (
        "published stage 1, protocol mind3d-2024",
        "1 x A100 80GB: batch 8 = 1 cards x 2 parts x 4 trials",
        "moments of AdamW",
        "assuming 40% of the peak bf16 rate",
        "H100 80GB",
        "disk:",
        "no graphics card was used",
    ):
        assert part in text
