"""LDAE's autoencoder: names, size from shapes, decoding in slabs, its memory, wrong input."""

import contextlib
import io

import pytest
import torch

from neurodiff.core.errors import DataError, UsageError
from neurodiff.models.ldae_autoencoder import (
    autoencoder,
    autoencoder_size_of,
    current_names,
    decode_in_slabs,
    decode_memory,
    encode,
    old_names,
    planes_within,
    set_template,
)
from neurodiff.models.ldae_sizes import TINY, AutoencoderSize

SMALL = AutoencoderSize(widths=(8, 16, 16), blocks=2, groups=4)
PUBLISHED_LATENT = (1, 3, 16, 20, 16)


def shapes_of(network):
    return {name: tuple(t.shape) for name, t in network.state_dict().items()}


def made(size=SMALL, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = autoencoder(size).eval()
        with torch.no_grad():
            for p in network.parameters():  # norms that move and scale, as trained ones do
                p.add_(0.1 * torch.randn_like(p))
    return network


@pytest.fixture(scope="module")
def network():
    return made()


def test_the_published_size_has_the_published_parameters():
    with torch.device("meta"):
        network = autoencoder()
    counts = [sum(p.numel() for p in part.parameters()) for part in (network, network.decoder)]
    assert counts[0] == 13_766_248  # counted in the released code
    assert len(network.state_dict()) == 162
    assert AutoencoderSize().factor == 8


@pytest.mark.parametrize("size", [AutoencoderSize(), SMALL, TINY.autoencoder])
def test_size_follows_from_shapes_under_both_names(size):
    with torch.device("meta"):
        tensors = autoencoder(size).state_dict()
    for named in (tensors, old_names(tensors)):
        shapes = {name: tuple(t.shape) for name, t in named.items()}
        assert autoencoder_size_of(shapes, groups=size.groups) == size


def test_old_names_are_those_that_monai_converts(network):
    old = old_names(network.state_dict())
    assert len(set(old) - set(network.state_dict())) == 2 * (len(SMALL.widths) - 1)
    other = autoencoder(SMALL).eval()
    with contextlib.redirect_stdout(io.StringIO()):
        other.load_old_state_dict(dict(old))
    for name, tensor in current_names(old).items():
        assert torch.equal(other.state_dict()[name], tensor)
    assert current_names(network.state_dict()).keys() == network.state_dict().keys()


@pytest.mark.parametrize("planes", [1, 2, 3, 5, 64])
def test_slabs_equal_the_plain_decode(network, planes):
    z = torch.randn(2, 3, 3, 4, 2, generator=torch.Generator().manual_seed(1))
    before = z.clone()
    with torch.no_grad():
        plain = network.decode(z)
    slabs = decode_in_slabs(network, z, planes=planes)
    assert slabs.shape == (2, 1, 12, 16, 8)
    assert float((slabs - plain).abs().max()) < 1e-5 * float(plain.abs().max())
    assert torch.equal(z, before)


def test_in_float64_slabs_are_exact_to_rounding():
    network = made().double()
    z = torch.randn(1, 3, 2, 3, 2, dtype=torch.float64)
    with torch.no_grad():
        plain = network.decode(z)
    # statistics are taken in float32: far below the 1e-3 asked for, not at float64's rounding
    torch.testing.assert_close(decode_in_slabs(network, z), plain, rtol=1e-5, atol=1e-5)


def test_widths_that_grow_towards_the_image_are_decoded_too():
    network = made(AutoencoderSize(widths=(16, 8), blocks=1, groups=4))
    z = torch.randn(1, 3, 3, 2, 2)
    with torch.no_grad():
        plain = network.decode(z)
    torch.testing.assert_close(decode_in_slabs(network, z, planes=2), plain, rtol=1e-4, atol=1e-5)


def test_statistics_are_those_of_the_whole_volume(network):
    """One bright plane far away moves every voxel, as it does without slabs."""
    z = torch.zeros(1, 3, 6, 2, 2)
    moved = z.clone()
    moved[:, :, -1] = 20.0
    difference = (decode_in_slabs(network, moved) - decode_in_slabs(network, z)).abs()
    assert float(difference[:, :, 0].min()) > 1e-4


def test_the_published_decode_is_predicted_below_two_and_a_half_gigabytes():
    with torch.device("meta"):
        network = autoencoder()
    assert decode_memory(network, PUBLISHED_LATENT) < 2.5e9
    # the input and the output of the last level's first block, 128 and 64 channels
    assert decode_memory(network, PUBLISHED_LATENT) > 128 * 160 * 128 * (128 + 64) * 4
    assert planes_within(network, PUBLISHED_LATENT, 2.5e9) >= 4


def test_planes_follow_the_memory_and_stay_within_it(network):
    z = torch.randn(1, 3, 3, 4, 2)
    least = decode_memory(network, tuple(z.shape), planes=1)
    assert planes_within(network, tuple(z.shape), float(least)) == 1
    assert planes_within(network, tuple(z.shape), 1e12) == 12
    for allowed in (float(least), 2.0 * least):
        planes = planes_within(network, tuple(z.shape), allowed)
        assert decode_memory(network, tuple(z.shape), planes=planes) <= allowed
    with torch.no_grad():
        plain = network.decode(z)
    torch.testing.assert_close(
        decode_in_slabs(network, z, memory=float(least)), plain, rtol=1e-4, atol=1e-5
    )


def test_a_memory_that_cannot_do_is_refused_with_what_can(network):
    with pytest.raises(UsageError, match=r"takes at least .* GB, and 1e-06 GB are allowed"):
        decode_in_slabs(network, torch.zeros(1, 3, 2, 2, 2), memory=1000.0)


def test_encode_gives_mean_and_log_variance(network):
    volume = torch.rand(1, 1, 8, 12, 8)
    with torch.no_grad():
        mean, log_variance = encode(network, volume)
        expected_mean, expected_sd = network.encode(volume)
    assert torch.equal(mean, expected_mean)
    torch.testing.assert_close((log_variance / 2).exp(), expected_sd)


@pytest.mark.parametrize("shape", [(1, 4, 2, 2, 2), (3, 2, 2, 2), (1, 3, 0, 2, 2)])
def test_latents_of_other_channels_are_refused(network, shape, without_shape_checks):
    with pytest.raises(UsageError, match="this autoencoder decodes"):
        decode_in_slabs(network, torch.zeros(shape))


def test_volumes_off_the_grid_are_refused(network):
    with pytest.raises(UsageError, match=r"axes \(8, 10, 8\); .* multiples of 4"):
        encode(network, torch.zeros(1, 1, 8, 10, 8))
    with pytest.raises(UsageError, match="2 channels"):
        encode(network, torch.zeros(1, 2, 8, 8, 8))
    with pytest.raises(UsageError, match="planes is 0"):
        decode_in_slabs(network, torch.zeros(1, 3, 2, 2, 2), planes=0)


def test_shapes_of_another_network_are_refused(network):
    with pytest.raises(DataError, match=r"lack 'encoder\.blocks"):
        autoencoder_size_of({"a": (1, 2)})
    shapes = shapes_of(network)
    with pytest.raises(DataError, match="attention"):
        autoencoder_size_of(shapes | {"encoder.blocks.4.attn.to_q.weight": (3, 3)})
    fewer = {n: s for n, s in shapes.items() if not n.startswith("encoder.blocks.2.")}
    with pytest.raises(DataError, match="residual blocks a level"):
        autoencoder_size_of(fewer)


def test_with_a_template_an_autoencoder_sees_and_draws_differences():
    """It does to (x - mean) / sd what its twin without a template does."""
    size = dict(widths=(8, 8), blocks=1, latent_channels=2, groups=4, patch=2)
    plain = made(AutoencoderSize(**size))
    ours = autoencoder(AutoencoderSize(**size, template=(8, 8, 8))).eval()
    ours.load_state_dict(plain.state_dict() | {n: t for n, t in ours.named_buffers()})
    mean = torch.rand(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    set_template(ours, mean, 0.25)
    x = torch.rand(3, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    z, spread = encode(ours, x)
    twin, twin_spread = encode(plain, (x - mean) / 0.25)
    assert torch.equal(z, twin)
    assert torch.equal(spread, twin_spread)
    assert torch.equal(ours.encode(x)[0], z)
    drawn = plain.decode(z) * 0.25 + mean
    assert torch.equal(ours.decode(z), drawn)
    assert torch.allclose(decode_in_slabs(ours, z, planes=1), drawn, atol=1e-5)


def test_a_template_of_another_grid_is_refused():
    ours = autoencoder(AutoencoderSize(widths=(8,), blocks=1, groups=4, template=(8, 8, 8)))
    with pytest.raises(UsageError, match="holds a mean scan of"):
        encode(ours, torch.zeros(1, 1, 4, 4, 4))
    with pytest.raises(UsageError, match="has place for"):
        set_template(ours, torch.zeros(1, 4, 4, 4), 1.0)
    with pytest.raises(DataError, match="all the same"):
        set_template(ours, torch.zeros(1, 8, 8, 8), 0.0)
