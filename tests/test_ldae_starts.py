"""What a short training starts from: even codes, a shift that begins as the trunk, a mean."""

import numpy as np
import pytest
import torch

from neurodiff.datasets.latent_cache import Latent, LatentCache
from neurodiff.models.ldae_sizes import LatentUNetSize
from neurodiff.models.ldae_unet import LatentUNet, ShiftUNet

SIZE = LatentUNetSize(width=8, multipliers=(1, 2), blocks=1, attention=(), groups=4, semantic=4)


def test_a_shift_that_starts_as_the_trunk_is_the_trunk_but_for_its_last_layer():
    torch.manual_seed(0)
    trunk = LatentUNet(SIZE)
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, 0, 0.1)
    trunk.eval()
    network = ShiftUNet(SIZE).start_from(trunk, shift_too=True).eval()
    own = network.state_dict()
    for name, value in trunk.state_dict().items():
        if name.startswith(("middle_block", "output_blocks", "out.")):
            same = torch.equal(own[f"shift_{name}"], value)
            assert same != name.startswith("out.2."), name
    z = torch.randn(2, 3, 4, 4, 4)
    noise, shift = network(z, torch.tensor([7.0, 640.0]), torch.randn(2, 4))
    torch.testing.assert_close(noise, trunk(z, torch.tensor([7.0, 640.0])))
    assert not shift.any()


def test_even_codes_make_the_first_layer_see_mean_0_and_sd_1():
    torch.manual_seed(0)
    network = ShiftUNet(SIZE)
    before = network.label_emb.weight.clone(), network.label_emb.bias.clone()
    codes = 5 + torch.tensor([0.1, 1.0, 10.0, 0.01]) * torch.randn(200, 4)
    network.even_codes(codes)
    z = (codes - codes.mean(0)) / codes.std(0)
    torch.testing.assert_close(
        network.label_emb(codes), z @ before[0].T + before[1], rtol=1e-3, atol=1e-3
    )


def test_the_mean_and_the_scale_around_it_are_those_of_the_latents(tmp_path):
    rng = np.random.default_rng(0)
    common = 10 * rng.standard_normal((2, 3, 3, 3)).astype(np.float32)
    cache = LatentCache.open(tmp_path / "cache", autoencoder="0" * 64, shape=common.shape)
    own = rng.standard_normal((40, *common.shape)).astype(np.float32)
    flat = np.full(common.shape, -30.0, np.float32)
    for number, values in enumerate(own):
        cache.write(f"s{number}", Latent(mean=common + values, log_variance=flat, affine=np.eye(4)))
    mean = cache.mean()
    np.testing.assert_allclose(mean, common + own.mean(0), atol=1e-4)
    # what scans share is most of the variance, and no part of the scale once it is taken away
    assert cache.scale() == pytest.approx(0.1, rel=0.3)
    assert cache.scale(centre=mean) == pytest.approx(1.0, rel=0.1)
