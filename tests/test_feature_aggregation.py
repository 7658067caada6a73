"""Aggregation of frames, the contrastive header and its loss."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

from neurodiff.models.feature_aggregation import ClipHeader, FeatureAggregation, contrastive_loss


@pytest.fixture(scope="module")
def recipe():
    path = Path(__file__).parent / "golden" / "recipe.py"
    spec = importlib.util.spec_from_file_location("golden_recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cases(recipe):
    return recipe.load("mind3d_encoder")


def test_aggregation_has_the_published_names_and_numbers(recipe, cases):
    case = cases["mind3d.fa_module"]
    module = FeatureAggregation()
    assert recipe.manifest(module) == case["manifest"]["params"]
    recipe.fill(module, case["recipe"])
    with torch.no_grad():
        out = module(recipe.make(case["inputs"]["z"]), case["config"]["f"])
    recipe.check(out, case["outputs"]["fa"], 1e-9)


def test_header_and_loss_have_the_published_names_and_numbers(recipe, cases):
    case = cases["mind3d.clip_header"]
    module = ClipHeader()
    assert recipe.manifest(module) == case["manifest"]["params"]
    recipe.fill(module, case["recipe"])
    with torch.no_grad():
        fmri = module(recipe.make(case["inputs"]["cls"]))
        image = recipe.make(case["inputs"]["image_features"])
        loss = contrastive_loss(fmri, image, 1 / 0.07, normalise=False)
    recipe.check(fmri, case["outputs"]["clip_header"], 1e-9)
    expected = case["outputs"]["clip_loss_logit_scale_1_over_0.07"]
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_frames_of_a_trial_stay_together():
    """Changing one frame changes that frame's tokens of that trial and nothing else."""
    torch.manual_seed(0)
    module = FeatureAggregation(12, tokens=9, out_tokens=4, width=5).double()
    z = torch.randn(6, 9, 12, dtype=torch.float64)
    changed = z.clone()
    changed[4] += 1.0 + torch.randn(9, 12, dtype=torch.float64)  # trial 1, frame 1 of 3
    with torch.no_grad():
        difference = (module(changed, 3) - module(z, 3)).abs().amax(-1)  # (2, 12)
    moved = torch.zeros(2, 12, dtype=torch.bool)
    moved[1, 4:8] = True
    assert ((difference > 1e-9) == moved).all()


def test_loss_closed_forms():
    """Equal features give ln n; orthonormal pairs give ln(1 + (n-1) exp(-scale))."""
    n, scale = 5, 3.0
    same = torch.ones(n, 8, dtype=torch.float64)
    assert contrastive_loss(same, same, scale).item() == pytest.approx(math.log(n), abs=1e-12)
    axes = torch.eye(n, dtype=torch.float64)
    expected = math.log1p((n - 1) * math.exp(-scale))
    assert contrastive_loss(7 * axes, axes, scale).item() == pytest.approx(expected, abs=1e-12)
    plain = contrastive_loss(2 * axes, axes, scale, normalise=False).item()
    assert plain == pytest.approx(math.log1p((n - 1) * math.exp(-2 * scale)), abs=1e-12)


def test_rows_that_are_no_whole_trials_are_refused():
    module = FeatureAggregation(12, tokens=9, out_tokens=4, width=5)
    with pytest.raises(ValueError, match="7 rows are no whole number of trials of 3 frames"):
        module(torch.zeros(7, 9, 12), 3)
    with pytest.raises(ValueError, match="frames have 8 tokens"):
        module(torch.zeros(6, 8, 12), 3)
    with pytest.raises(ValueError, match="5 rows"):
        ClipHeader(12, frames=6, width=4)(torch.zeros(5, 1, 12))
