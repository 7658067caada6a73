"""The feature bridge: published numbers, and the condition cache against the whole network."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from neurodiff.diffusion.guidance import ClassifierFree
from neurodiff.diffusion.paths import cosine
from neurodiff.models.feature_bridge import FeatureBridge, FeatureBridgeSize
from neurodiff.models.feature_bridge_2024 import (
    BridgeCondition,
    BridgeDenoiser,
    bridge_loss_2024,
    sample_bridge_2024,
)

SMALL = FeatureBridgeSize(dim=64, depth=2, heads=2, dim_head=40)
BOTH = pytest.mark.parametrize(
    ("case", "protocol", "tol"),
    [
        ("mind3d.prior", "neurodiff-1", 1e-9),
        ("mind3d.prior.literal64", "mind3d-2024", 1e-6),  # its softmax is float32
    ],
)


@pytest.fixture(scope="module")
def recipe():
    path = Path(__file__).parent / "golden" / "recipe.py"
    spec = importlib.util.spec_from_file_location("golden_recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cases(recipe):
    return recipe.load("mind3d_prior")


@pytest.fixture(scope="module")
def build(recipe, cases):
    """The network of a protocol, filled; its case's inputs and outputs."""

    def make(case="mind3d.prior", protocol="neurodiff-1"):
        golden = cases[case]
        net = recipe.fill(FeatureBridge(SMALL, protocol=protocol), golden["recipe"])
        inputs = {k: recipe.make(v) for k, v in golden["inputs"].items() if isinstance(v, dict)}
        return net, inputs, golden["outputs"]

    return make


def golden_noise(call, x):
    return torch.sin(0.9 * torch.arange(x.numel(), dtype=torch.float64) + call).reshape(x.shape)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- published names and numbers ---------------------------------------------------------------


def test_names_and_shapes_are_the_published_ones(recipe, cases):
    golden = cases["mind3d.prior"]
    names = recipe.manifest(FeatureBridge(SMALL), golden["recipe"]["exclude"])
    assert names == golden["manifest"]["params"]


def test_published_size():
    with torch.device("meta"):
        net = FeatureBridge()
    assert sum(p.numel() for p in net.parameters()) == 22_882_320
    shapes = {name: tuple(v.shape) for name, v in net.state_dict().items()}
    assert len(shapes) == 74
    layer = "causal_transformer.layers.5"
    assert shapes[f"{layer}.0.to_kv.weight"] == (128, 512)
    assert shapes[f"{layer}.0.rotary_emb.freqs"] == (16,)
    assert shapes[f"{layer}.1.1.weight"] == (4096, 512)
    assert shapes[f"{layer}.1.5.weight"] == (512, 2048)


@BOTH
def test_single_calls(recipe, build, case, protocol, tol):
    net, inputs, out = build(case, protocol)
    x, fmri, hide = inputs["image_embed"], inputs["fmri"], torch.ones(2, dtype=torch.bool)
    with torch.no_grad():
        for t in (0, 50, 99):
            recipe.check(net(x, t, fmri), out[f"net_t{t}"], tol)
        recipe.check(net(x, 50, fmri, drop_fmri=hide), out["net_t50_fmri_dropped"], tol)
        recipe.check(net(x, 50, fmri, drop_image=hide), out["net_t50_image_dropped"], tol)


def test_single_precision_stays_near(recipe, build):
    net, inputs, out = build()
    with torch.no_grad():
        ours = net.float()(inputs["image_embed"].float(), 50, inputs["fmri"].float())
    recipe.check(ours, out["net_t50"], 1e-5)


@BOTH
def test_guidance_of_the_core(recipe, build, case, protocol, tol):
    net, inputs, out = build(case, protocol)
    guided = ClassifierFree(
        BridgeDenoiser(net),
        2.5,
        lambda c: dataclasses.replace(c, hide_fmri=True, hide_image=True),
    )
    with torch.no_grad():
        state = guided.prepare(BridgeCondition(inputs["fmri"]))
        ours = guided(inputs["image_embed"], cosine(100).level(50), state)
    recipe.check(ours, out["net_t50_cond_scale_2.5"], tol)


@BOTH
def test_published_loops(recipe, build, case, protocol, tol):
    net, inputs, out = build(case, protocol)
    path, fmri, tol = cosine(100).rounded(), inputs["fmri"][:, :6], max(tol, 1e-7)
    for points, key in ((64, "ddim63_scaled"), (8, "ddim8grid_scaled")):
        drawn = sample_bridge_2024(
            net, path, fmri, start=inputs["x_T"], noise=golden_noise, points=points
        )
        recipe.check(drawn.chosen, out[key], tol)


def test_published_choice_among_candidates(recipe, build, cases):
    net, inputs, out = build()
    description = cases["mind3d.prior"]["inputs"]["x_T"] | {"shape": [6, 64]}
    drawn = sample_bridge_2024(
        net,
        cosine(100).rounded(),
        inputs["fmri"][:, :6],
        start=recipe.make(description),
        noise=golden_noise,
        candidates=3,
    )
    assert drawn.best.tolist() == out["sample_r3_index"]
    recipe.check(drawn.chosen, out["sample_r3_top"], 1e-6)
    expected = torch.tensor(out["sample_r3_cosines"], dtype=torch.float64)
    torch.testing.assert_close(drawn.cosines, expected, rtol=0, atol=1e-6)


@BOTH
def test_published_training_loss(recipe, build, case, protocol, tol):
    net, inputs, out = build(case, protocol)
    no, yes = torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool)
    path = cosine(100)  # training reads square roots that were stored in float32
    path.alpha, path.sigma = path.alpha.float().double(), path.sigma.float().double()
    drops = {
        "no_drop": (None, None),
        "fmri_drop_row1": (torch.tensor([False, True]), no),
        "image_drop_row0": (no, torch.tensor([True, False])),
        "both_drop_all": (yes, yes),
    }
    for key, (drop_fmri, drop_image) in drops.items():
        with torch.no_grad():
            loss, predicted = bridge_loss_2024(
                net,
                path,
                inputs["fmri"],
                inputs["train_image"],
                t=torch.tensor([7, 83]),
                eps=inputs["train_noise"],
                drop_fmri=drop_fmri,
                drop_image=drop_image,
            )
        assert loss.item() == pytest.approx(out[f"train_loss_{key}"], rel=tol)
        if key == "no_drop":
            recipe.check(predicted * 8, out["train_pred_no_drop"], tol)


# --- the condition cache -----------------------------------------------------------------------


@pytest.mark.parametrize("candidates", [1, 4])
@pytest.mark.parametrize("protocol", ["neurodiff-1", "mind3d-2024"])
def test_cached_equals_uncached(build, protocol, candidates):
    net, inputs, _ = build(protocol=protocol)
    fmri, rows = inputs["fmri"], 2 * candidates
    x, t = normal(rows, 64), torch.arange(rows) * 11
    drop_fmri, drop_image = torch.tensor([False, True]), torch.arange(rows) % 3 == 1
    tol = 1e-9 if protocol == "neurodiff-1" else 1e-6
    with torch.no_grad():
        state = net.prepare(fmri, drop_fmri).repeat(candidates)
        cached = net.step(x, t, state, drop_image)
        whole = net(
            x,
            t,
            fmri.repeat_interleave(candidates, 0),
            drop_fmri=drop_fmri.repeat_interleave(candidates),
            drop_image=drop_image,
        )
    assert whole.abs().max() > 1  # an all-zero output would pass anything
    torch.testing.assert_close(cached, whole, rtol=0, atol=tol)


def test_cache_copies_nothing_and_saves_the_work():
    with torch.device("meta"):
        net = FeatureBridge().eval()
        tokens, x = torch.zeros(1, 768, 512), torch.zeros(16, 512)
        with FlopCounterMode(display=False) as prepared:
            state = net.prepare(tokens)
        wide = state.repeat(4).repeat(4)
        assert wide.rows == 16
        assert all(a is b for a, b in zip(wide.keys, state.keys, strict=True))
        with FlopCounterMode(display=False) as step:
            net.step(x, 3, wide)
        with FlopCounterMode(display=False) as whole:
            net(x, 3, tokens.expand(16, -1, -1))
    steps = 63
    cached = prepared.get_total_flops() + steps * step.get_total_flops()
    assert whole.get_total_flops() * steps / cached > 150


def test_the_condition_is_causal(build):
    """Later fMRI tokens do not change the keys of earlier ones, and all reach the prediction."""
    net, inputs, _ = build()
    fmri, changed = inputs["fmri"], inputs["fmri"].clone()
    changed[:, 100] += normal(64)
    with torch.no_grad():
        before, after = net.prepare(fmri), net.prepare(changed)
        for a, b in zip(before.keys, after.keys, strict=True):
            torch.testing.assert_close(a[:, :101], b[:, :101], rtol=0, atol=1e-14)
            assert (a[:, 101] - b[:, 101]).abs().max() > 1e-3
        difference = net.step(normal(2, 64), 5, before) - net.step(normal(2, 64), 5, after)
    assert difference.abs().max() > 1e-6


def test_dropped_rows_do_not_see_what_was_dropped(build):
    net, inputs, _ = build()
    x, fmri, drop = inputs["image_embed"], inputs["fmri"], torch.tensor([True, False])
    with torch.no_grad():
        other = net(x, 5, -fmri, drop_fmri=drop) - net(x, 5, fmri, drop_fmri=drop)
        noisy = net(-x, 5, fmri, drop_image=drop) - net(x, 5, fmri, drop_image=drop)
    for difference in (other, noisy):
        assert difference[0].abs().max() == 0
        assert difference[1].abs().max() > 1e-3


def test_gradients_reach_every_parameter_that_is_read():
    torch.manual_seed(0)
    net = FeatureBridge(FeatureBridgeSize(dim=16, depth=2, heads=2, dim_head=8), attn_drop=0.1)
    drop = torch.tensor([True, False, False])
    args = torch.randn(3, 16), torch.tensor([1, 2, 3]), torch.randn(3, 5, 16)
    net.train()(*args, drop_fmri=drop, drop_image=drop.flip(0)).square().sum().backward()
    without = {name for name, p in net.named_parameters() if p.grad is None}
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    assert without - frozen == {"null_fmri_encodings"}
    assert frozen == {"causal_transformer.layers.0.0.rotary_emb.freqs"}


# --- sampling ----------------------------------------------------------------------------------


def test_a_row_does_not_depend_on_its_batch(build):
    net, inputs, _ = build()
    fmri, path = inputs["fmri"][:, :6], cosine(100)

    def run(tokens, seeds):
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        return sample_bridge_2024(
            net, path, tokens, generators=generators, candidates=2, points=6
        ).embeddings

    both, second = run(fmri, [1, 2, 3, 4]), run(fmri[1:], [3, 4])
    torch.testing.assert_close(both[1:], second, rtol=0, atol=1e-13)
    assert not torch.allclose(both[1, 0], both[1, 1])


def test_wrong_input_is_refused(build):
    net, inputs, _ = build()
    fmri = inputs["fmri"][:, :6]
    state = net.prepare(fmri).repeat(3)
    with pytest.raises(ValueError, match=r"2 rows; the state holds 6 \(2 trials x 3 candidates\)"):
        net.step(normal(2, 64), 0, state)
    with pytest.raises(ValueError, match="1 or more"):
        state.repeat(0)
    with pytest.raises(ValueError, match="32 features, not 64"):
        net.prepare(normal(2, 6, 32))
    with pytest.raises(ValueError, match="known: 'neurodiff-1', 'mind3d-2024'"):
        FeatureBridge(SMALL, protocol="mind3d")
    with pytest.raises(ValueError, match="50 steps; this bridge was built for 100"):
        sample_bridge_2024(net, cosine(50), fmri, start=normal(2, 64))
    with pytest.raises(ValueError, match="either generators"):
        sample_bridge_2024(net, cosine(100), fmri)
    with pytest.raises(ValueError, match="3 rows, not 2"):
        sample_bridge_2024(net, cosine(100), fmri, start=normal(3, 64))
