"""``weights check`` of LDAE's networks at any size, and what it says of broken ones."""

import dataclasses

import pytest
import torch

from neurodiff.core.errors import DataError
from neurodiff.models.ldae_autoencoder import autoencoder, old_names
from neurodiff.models.ldae_names import encoder_size_of, unet_size_of
from neurodiff.models.ldae_sizes import AutoencoderSize, LatentUNetSize, SliceEncoderSize
from neurodiff.models.ldae_slice_encoder import SliceEncoder
from neurodiff.models.ldae_unet import LatentUNet, ShiftUNet
from neurodiff.pipelines.ldae_files import load_unet
from neurodiff.pipelines.ldae_weights_check import check_ldae_weights

#: Neither width is a multiple of the published 32 groups.
NARROW = LatentUNetSize(
    width=16, multipliers=(1, 2), blocks=1, attention=(2,), semantic=6, groups=8
)
ODD = dataclasses.replace(NARROW, width=40, groups=20)


def checked(state, tmp_path, **options):
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    table, problem = check_ldae_weights(path, **options)
    return table, problem


@pytest.mark.parametrize("size", [NARROW, ODD])
@pytest.mark.parametrize("network", [LatentUNet, ShiftUNet])
def test_unets_of_fewer_groups_are_judged(tmp_path, network, size):
    state = network(size).state_dict()
    table, problem = checked(state, tmp_path)
    assert problem == ""
    assert f"{len(state)} matched, 0 missing, 0 unexpected, 0 other shape" in table
    assert f"a width of {size.width}, which the published 32 groups do not divide" in table
    fewer = {n: t for n, t in state.items() if n != "out.0.bias"}
    table, problem = checked(fewer, tmp_path)
    assert "1 missing" in table
    assert "(out.0.bias)" in problem


def test_what_cannot_be_told_is_not_guessed_when_a_network_is_to_run(tmp_path):
    state = ShiftUNet(NARROW).state_dict()
    torch.save(state, tmp_path / "decoder.pth")
    with pytest.raises(DataError, match=r"decoder\.pth: the U-Net has a width of 16") as error:
        load_unet(tmp_path / "decoder.pth")
    assert len(str(error.value).splitlines()) == 1
    assert load_unet(tmp_path / "decoder.pth", size=NARROW).size.groups == 8
    shapes = {n: tuple(t.shape) for n, t in state.items()}
    assert unet_size_of(shapes, groups=8) == NARROW
    assert unet_size_of(shapes, groups=None).groups == 16


def test_encoders_of_other_heads_are_judged_and_not_guessed(tmp_path):
    size = SliceEncoderSize(widths=(4, 12), depths=(1, 1), slices=6, heads=2)
    state = SliceEncoder(size).state_dict()
    table, problem = checked(state, tmp_path)
    assert problem == ""
    assert "codes of 12 numbers, which the published 8 heads do not divide" in table
    with pytest.raises(DataError, match="8 heads"):
        encoder_size_of({n: tuple(t.shape) for n, t in state.items()})


@pytest.mark.parametrize(
    "size",
    [
        AutoencoderSize(widths=(6, 12), blocks=1, groups=3),
        AutoencoderSize(widths=(8, 8), blocks=1, groups=4, template=(8, 8, 8)),
        AutoencoderSize(widths=(8, 8), blocks=1, groups=4, template=(8, 8, 16), patch=2),
        AutoencoderSize(widths=(8, 8), blocks=1, groups=4, patch=2),
    ],
)
def test_autoencoders_of_ours_and_theirs(tmp_path, size):
    state = autoencoder(size).state_dict()
    for names in (state, old_names(state)):
        table, problem = checked(names, tmp_path)
        assert problem == "", table
        assert f"{len(state)} matched" in table


def test_all_that_is_wrong_is_told(tmp_path):
    state = autoencoder(AutoencoderSize(widths=(8, 8), blocks=1, groups=4)).state_dict()
    broken = dict(state)
    broken["quant_conv_mu.conv.bias"] = torch.full((3,), torch.nan)
    broken["more"] = torch.zeros(1)
    table, problem = checked(broken, tmp_path)
    assert "1 unexpected" in table
    assert "NaN" in table
    assert "1 unexpected in the autoencoder (more); 1 NaN" in problem
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "other.pth")
    assert check_ldae_weights(tmp_path / "other.pth") is None
