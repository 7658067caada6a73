"""An autoencoder over blocks of voxels: nothing is lost, and it encodes and decodes as whole."""

from __future__ import annotations

import pytest
import torch

from neurodiff.core.errors import UsageError
from neurodiff.models.ldae_autoencoder import (
    autoencoder,
    decode_in_slabs,
    encode,
    folded,
    unfolded,
)
from neurodiff.models.ldae_sizes import AutoencoderSize

SIZE = AutoencoderSize(widths=(8, 16), blocks=1, groups=8, patch=2)


def test_folding_keeps_every_voxel_and_places_blocks_side_by_side():
    x = torch.arange(2 * 3 * 4 * 6 * 8.0).reshape(2, 3, 4, 6, 8)
    y = folded(x, 2)
    assert y.shape == (2, 24, 2, 3, 4)
    torch.testing.assert_close(unfolded(y, 2), x, rtol=0, atol=0)
    # the first channel is the first voxel of each block
    torch.testing.assert_close(y[:, 0], x[:, 0, ::2, ::2, ::2], rtol=0, atol=0)
    torch.testing.assert_close(y[:, 7], x[:, 0, 1::2, 1::2, 1::2], rtol=0, atol=0)
    assert folded(x, 1).shape == x.shape


def test_a_patched_autoencoder_has_monais_names_and_its_own_factor():
    network = autoencoder(SIZE)
    assert SIZE.factor == 4
    plain = autoencoder(AutoencoderSize(widths=(8, 16), blocks=1, groups=8, image_channels=8))
    assert {n: t.shape for n, t in network.state_dict().items()} == {
        n: t.shape for n, t in plain.state_dict().items()
    }
    x = torch.rand(1, 1, 8, 12, 8)
    plain.load_state_dict(network.state_dict())
    torch.testing.assert_close(encode(network, x)[0], plain.encode(folded(x, 2))[0])
    torch.testing.assert_close(network.encode(x)[0], encode(network, x)[0])


def test_decoding_in_slabs_is_decoding():
    torch.manual_seed(0)
    network = autoencoder(SIZE).eval()
    z = torch.randn(1, 3, 4, 3, 2)
    with torch.no_grad():
        whole = network.decode(z)
    assert whole.shape == (1, 1, 16, 12, 8)
    torch.testing.assert_close(decode_in_slabs(network, z, planes=1), whole, rtol=1e-4, atol=1e-5)


def test_axes_that_a_patch_does_not_divide_are_refused():
    with pytest.raises(UsageError, match="multiples of 4"):
        encode(autoencoder(SIZE), torch.rand(1, 1, 8, 10, 8))
    with pytest.raises(UsageError, match="patch is 0"):
        AutoencoderSize(patch=0)
