"""The pre-training network, and the encoder of MinD-3D++: published names and golden numbers."""

import importlib.util
from pathlib import Path

import pytest
import torch

from neurodiff.models.fmri_autoencoder import FMRIAutoencoder, reconstruction_error
from neurodiff.models.fmri_encoder import FMRIEncoderSize
from neurodiff.models.fmri_encoder_plus import FMRIEncoderPlus


@pytest.fixture(scope="module")
def recipe():
    path = Path(__file__).parent / "golden" / "recipe.py"
    spec = importlib.util.spec_from_file_location("golden_recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small():
    size = FMRIEncoderSize(image_size=64, embed_dim=48, depth=2, num_heads=4)
    return FMRIAutoencoder(size, decoder_dim=32, decoder_depth=1)


def test_autoencoder_has_the_published_names_and_numbers(recipe):
    case = recipe.load("mind3d_mae")["mind3d.mae_autoencoder"]
    model = small()
    assert recipe.manifest(model, case["recipe"]["exclude"]) == case["manifest"]["params"]
    recipe.fill(model, case["recipe"])
    x = recipe.make(case["inputs"]["x"])
    i = torch.arange(2 * 64 * 64, dtype=torch.float64)
    mask = (torch.sin(0.31 * i) > 0).double().reshape(2, 64, 64)
    out = case["outputs"]
    recipe.check(model.gather(x), out["patchify"], 1e-9)
    with torch.no_grad():
        again = model.reconstruct(x)
    recipe.check(again, out["recon"], 1e-9)
    whole, masked = reconstruction_error(again, x), reconstruction_error(again, x, mask)
    assert whole.tolist() == pytest.approx(out["loss_per_sample"], rel=1e-9)
    assert masked.tolist() == pytest.approx(out["masked_loss_per_sample"], rel=1e-9)


def test_published_size():
    with torch.device("meta"):
        model = FMRIAutoencoder()
    assert sum(p.numel() for p in model.parameters()) == 609_874_176


def test_only_the_class_token_passes():
    """Frames whose class tokens agree are reconstructed alike, whatever their pixels."""
    torch.manual_seed(0)
    model = small().eval()
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(*model.reconstruct(x))
        torch.nn.init.zeros_(model.decoder_embed.weight)
        torch.testing.assert_close(*model.reconstruct(x), rtol=0, atol=0)


def test_a_mask_that_counts_nothing_is_refused():
    x = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match="counts no pixel"):
        reconstruction_error(x, x, torch.tensor([1.0, 0.0])[:, None, None].expand(2, 4, 4))


def test_encoder_plus_has_the_published_names_and_numbers(recipe):
    case = recipe.load("mind3dpp_encoder")["mind3dpp.encoder"]
    size = FMRIEncoderSize(image_size=64, embed_dim=32, depth=14, num_heads=4)
    model = FMRIEncoderPlus(size)
    assert recipe.manifest(model, case["recipe"]["exclude"]) == case["manifest"]["params"]
    recipe.fill(model, case["recipe"])
    out, inputs = case["outputs"], case["inputs"]
    with torch.no_grad():
        tokens, feature = model(recipe.make(inputs["x"]))
        latent = model.condition_latent(recipe.make(inputs["patch_tokens_for_aggregation"]))
    recipe.check(tokens, out["tokens"], 1e-9)
    recipe.check(feature, out["clip_feature_block12"], 1e-9)
    recipe.check(latent, out["condition_latent"], 1e-9)


def test_encoder_plus_at_its_published_size_and_too_shallow():
    with torch.device("meta"):
        model = FMRIEncoderPlus()
        shallow = FMRIEncoderPlus(FMRIEncoderSize(depth=3))
        assert sum(p.numel() for p in model.parameters()) == 302_842_372
        with pytest.raises(ValueError, match="has 3 blocks"):
            shallow(torch.zeros(1, 1, 256, 256))
