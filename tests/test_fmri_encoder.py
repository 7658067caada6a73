"""The fMRI encoder: published numbers, published size, and the gathered-patch path."""

import importlib.util
from pathlib import Path

import pytest
import torch

from neurodiff.models.fmri_encoder import FMRIEncoder, FMRIEncoderSize, patches_touching


@pytest.fixture(scope="module")
def recipe():
    path = Path(__file__).parent / "golden" / "recipe.py"
    spec = importlib.util.spec_from_file_location("golden_recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def golden(recipe):
    return recipe.load("mind3d_encoder")["mind3d.encoder"]


SMALL = FMRIEncoderSize(image_size=64, embed_dim=48, depth=2, num_heads=4)


def test_names_and_shapes_are_the_published_ones(recipe, golden):
    names = recipe.manifest(FMRIEncoder(SMALL), golden["recipe"]["exclude"])
    assert names == golden["manifest"]["params"]


def test_published_size():
    with torch.device("meta"):
        encoder = FMRIEncoder()
    counts = [(p.numel(), p.requires_grad) for p in encoder.parameters()]
    assert sum(n for n, _ in counts) == 304_937_984
    assert sum(n for n, trained in counts if trained) == 304_674_816
    assert len(encoder.state_dict()) == 296


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_numbers(recipe, golden, dtype):
    tol = 1e-9 if dtype == torch.float64 else 1e-5
    x = recipe.make(golden["inputs"]["x"]).to(dtype)
    encoder = recipe.fill(FMRIEncoder(SMALL), golden["recipe"]).to(dtype)
    with torch.no_grad():
        recipe.check(encoder(x), golden["outputs"]["w_pred"], tol)
        recipe.check(encoder.forward_all(x), golden["outputs"]["w_pred_all"], tol)
        recipe.check(encoder.forward_cls(x), golden["outputs"]["cls_only_forward"], tol)


def test_golden_positions(recipe, golden):
    recipe.check(FMRIEncoder(SMALL).pos_embed, golden["outputs"]["pos_embed"], 1e-9)


def test_gathered_pixels_give_the_convolution(recipe, golden):
    encoder = recipe.fill(FMRIEncoder(SMALL), golden["recipe"])
    x = recipe.make(golden["inputs"]["x"])
    with torch.no_grad():
        tokens = encoder.embed_patches(encoder.gather(x))
        torch.testing.assert_close(tokens, encoder.patch_embed(x), rtol=0, atol=1e-12)
        torch.testing.assert_close(
            encoder.forward_pixels(encoder.gather(x)), encoder.forward_all(x), rtol=0, atol=1e-12
        )


def test_all_patches_in_another_order_permute_the_tokens(recipe, golden):
    """Attention does not see order, positions travel with their patch: a permutation in, out."""
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    whole = recipe.fill(FMRIEncoder(SMALL), golden["recipe"])
    shuffled = recipe.fill(FMRIEncoder(SMALL, patches=order), golden["recipe"])
    x = recipe.make(golden["inputs"]["x"])
    with torch.no_grad():
        torch.testing.assert_close(shuffled(x), whole(x)[:, order], rtol=0, atol=1e-11)
        torch.testing.assert_close(
            shuffled.forward_cls(x), whole.forward_cls(x), rtol=0, atol=1e-11
        )


def test_kept_patches_alone_are_seen(recipe, golden):
    kept = torch.tensor([1, 6, 10])
    encoder = recipe.fill(FMRIEncoder(SMALL, patches=kept), golden["recipe"])
    x = recipe.make(golden["inputs"]["x"])
    noisy = x.clone()
    noisy[:, :, :16, :16] += 5.0  # patch 0, not kept
    with torch.no_grad():
        before, elsewhere = encoder(x), encoder(noisy)
        noisy[:, :, :16, 16:32] += 5.0  # patch 1, kept
        assert before.shape == (3, 3, 2048)
        torch.testing.assert_close(before, elsewhere, rtol=0, atol=0)
        assert (encoder(noisy) - before).abs().max() > 1e-3
    assert encoder.state_dict().keys() == FMRIEncoder(SMALL).state_dict().keys()


def test_patches_touching_a_mask():
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[0, 15] = mask[16, 63] = mask[40, 20] = True  # grid cells (0, 0), (1, 3), (2, 1)
    assert patches_touching(mask, 16).tolist() == [0, 7, 9]
    assert len(patches_touching(~mask, 16)) == 16


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    size = FMRIEncoderSize(image_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2)
    block = FMRIEncoder(size, drop_path=0.25).blocks[0].train()
    kept = block._thin(torch.ones(4000, 2, 3))
    assert kept.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert (kept == kept[:, :1, :1]).all()
    assert kept.mean().item() == pytest.approx(1.0, abs=0.05)  # 5.5 standard errors
    assert (block.eval()._thin(torch.ones(5, 2, 3)) == 1).all()


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="not a multiple of patch_size"):
        FMRIEncoderSize(image_size=60)
    with pytest.raises(ValueError, match="distinct"):
        FMRIEncoder(SMALL, patches=torch.tensor([2, 2]))
    with pytest.raises(ValueError, match="16 patches"):
        FMRIEncoder(SMALL, patches=torch.tensor([2, 16]))
    encoder = FMRIEncoder(SMALL)
    with pytest.raises(ValueError, match=r"expected \(n, 1, 64, 64\)"):
        encoder(torch.zeros(2, 1, 32, 128))
    with pytest.raises(ValueError, match="keeps 16 patches of 256 pixels"):
        encoder.embed_patches(torch.zeros(2, 15, 256))
