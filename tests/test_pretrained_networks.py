"""Networks behind the image metrics: names and sizes of the published files, known properties."""

import numpy as np
import pytest
import torch
from torch import nn

from neurodiff.core.errors import DataError
from neurodiff.features.efficientnet_lite import EfficientNetLite0
from neurodiff.features.perceptual import LPIPS, AlexNetTrunk, VGG16Trunk
from neurodiff.features.vit import VisionTransformer, VisionTransformerSize, current_names

SMALL = VisionTransformerSize(image=28, patch=14, layers=2, heads=2, dim=16, hidden=32, classes=10)


def count(module):
    return sum(p.numel() for p in module.parameters())


def heads(trunk, value=1.0):
    return {
        f"lin{k}.model.1.weight": torch.full((1, width, 1, 1), value)
        for k, width in enumerate(trunk.widths)
    }


def pictures(n=2, size=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def test_sizes_are_the_published_ones():
    with torch.device("meta"):
        assert count(VisionTransformer()) == 633_470_440  # as torchvision states for vit_h_14
        assert count(EfficientNetLite0()) == 4_652_008
        assert count(AlexNetTrunk()) == 2_469_696  # the convolutions of AlexNet
        assert count(VGG16Trunk()) == 14_714_688  # the convolutions of VGG16


def test_vit_is_torchs_own_encoder_under_other_names():
    torch.manual_seed(0)
    ours = VisionTransformer(SMALL).eval()
    nn.init.normal_(ours.encoder.pos_embedding)
    theirs = nn.TransformerEncoderLayer(
        16, 2, 32, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    ).eval()
    block = ours.blocks[0]
    theirs.self_attn.load_state_dict(block.self_attention.state_dict())
    for mine, other in (
        (block.ln_1, theirs.norm1),
        (block.ln_2, theirs.norm2),
        (block.mlp[0], theirs.linear1),
        (block.mlp[3], theirs.linear2),
    ):
        other.load_state_dict(mine.state_dict())
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        torch.testing.assert_close(block(x), theirs(x), atol=1e-6, rtol=1e-5)
    assert ours.probabilities(pictures()).sum(1) == pytest.approx([1, 1], abs=1e-5)


def test_older_names_of_vit_files_are_read():
    weights = VisionTransformer(SMALL).state_dict()
    old = {
        name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): value
        for name, value in weights.items()
    }
    assert set(old) != set(weights)
    assert set(current_names(old)) == set(weights)
    assert "encoder.layers.encoder_layer_1.self_attention.in_proj_weight" in weights


def test_efficientnet_pads_as_tensorflow_does():
    """Stride 2 of an even size pads one pixel at the end only: the first output sees pixel 0."""
    network = EfficientNetLite0().eval()
    x = torch.zeros(1, 3, 8, 8)
    x[..., 0, 0] = 1
    stem = network._conv_stem
    with torch.no_grad():
        from neurodiff.features.efficientnet_lite import _same

        y = _same(stem, x)
    assert y.shape[-2:] == (4, 4)
    torch.testing.assert_close(y[0, :, 0, 0], stem.weight[:, :, 0, 0].sum(1))


@pytest.mark.parametrize("trunk", [AlexNetTrunk, VGG16Trunk])
def test_lpips_is_symmetric_zero_for_equal_pictures_and_alone_in_its_batch(trunk):
    torch.manual_seed(0)
    made = trunk()
    metric = LPIPS(made, heads(made))
    a, b = pictures(seed=0), pictures(seed=1)
    there = metric.distances(a, b)
    np.testing.assert_array_equal(metric.distances(a, a), 0)
    np.testing.assert_allclose(metric.distances(b, a), there, rtol=1e-5)
    np.testing.assert_array_equal(metric.distances(a[1:], b[1:]), there[1:])
    assert (metric.distances(a, b, values="0..1") != there).all()


def test_lpips_of_one_head_in_closed_form():
    """Heads of 1: the squared distance of unit vectors, 2 - 2 cos, averaged over the picture."""
    torch.manual_seed(0)
    trunk = AlexNetTrunk()
    weights = heads(trunk, 0.0)
    weights["lin0.model.1.weight"] += 1
    a, b = pictures(1, seed=0), pictures(1, seed=1)
    x, y = (torch.from_numpy(v).permute(0, 3, 1, 2).float() / 127.5 - 1 for v in (a, b))
    with torch.no_grad():
        cosine = nn.functional.cosine_similarity(trunk(x)[0], trunk(y)[0], dim=1)
    expected = float((2 - 2 * cosine).mean())
    assert LPIPS(trunk, weights).distances(a, b)[0] == pytest.approx(expected, rel=1e-4)


def test_heads_of_another_trunk_are_refused():
    trunk = AlexNetTrunk()
    with pytest.raises(DataError, match=r"lin1\.model\.1\.weight.*\(1, 192, 1, 1\)"):
        LPIPS(trunk, heads(VGG16Trunk))
    with pytest.raises(DataError, match=r"lin0.* is missing"):
        LPIPS(trunk, {})


def test_vgg_layers_are_transposed_and_checked():
    arrays = {}
    for b, block in enumerate(VGG16Trunk().blocks, start=1):
        for k, convolution in enumerate(block):
            place = f"block{b}/layers/conv2d{f'_{k}' if k else ''}/vars"
            shape = tuple(convolution.weight.shape)
            arrays[f"{place}/0"] = np.zeros((*shape[2:], shape[1], shape[0]), np.float32)
            arrays[f"{place}/1"] = np.zeros(shape[0], np.float32)
    arrays["block1/layers/conv2d/vars/0"][0, 2, 1, 5] = 7
    trunk = VGG16Trunk.from_arrays(arrays)
    assert trunk.blocks[0][0].weight[5, 1, 0, 2] == 7
    del arrays["block4/layers/conv2d_2/vars/1"]
    with pytest.raises(DataError, match="block4/layers/conv2d_2/vars/1"):
        VGG16Trunk.from_arrays(arrays)
