"""Networks that score decoded pictures: names, sizes and outputs of the published ones; loading."""

import numpy as np
import pytest
import torch
from PIL import Image

from neurodiff.analysis import image_networks as lookup
from neurodiff.analysis.image_networks import find_image_networks
from neurodiff.core.errors import DataError
from neurodiff.core.safe_io import save_safetensors
from neurodiff.features.alexnet import FIFTH, SECOND, AlexNet
from neurodiff.features.efficientnet_b1 import EfficientNetB1
from neurodiff.features.efficientnet_lite import EfficientNetLite0
from neurodiff.features.image_networks import (
    CLIP,
    IMAGENET,
    FeatureExtractor,
    ImageNetwork,
    efficientnet_lite0,
)
from neurodiff.features.inception_v3 import InceptionV3
from neurodiff.features.resnet50 import ResNet50

# parameters as torchvision's documentation of the weights states them, tensors of the state dict,
# and some of its names and shapes
PUBLISHED = {
    AlexNet: (
        61_100_840,
        16,
        {
            "features.0.weight": (64, 3, 11, 11),
            "features.3.weight": (192, 64, 5, 5),
            "features.10.bias": (256,),
            "classifier.1.weight": (4096, 9216),
            "classifier.4.weight": (4096, 4096),
            "classifier.6.bias": (1000,),
        },
    ),
    InceptionV3: (
        27_161_264,
        None,
        {
            "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
            "Conv2d_4a_3x3.bn.running_mean": (192,),
            "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
            "Mixed_6a.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
            "Mixed_6c.branch7x7dbl_2.conv.weight": (160, 160, 7, 1),
            "Mixed_7a.branch7x7x3_2.conv.weight": (192, 192, 1, 7),
            "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
            "AuxLogits.conv1.conv.weight": (768, 128, 5, 5),
            "AuxLogits.fc.weight": (1000, 768),
            "fc.weight": (1000, 2048),
        },
    ),
    EfficientNetB1: (
        7_794_184,
        None,
        {
            "features.0.0.weight": (32, 3, 3, 3),
            "features.0.1.running_var": (32,),
            "features.1.0.block.0.0.weight": (32, 1, 3, 3),
            "features.1.0.block.1.fc1.weight": (8, 32, 1, 1),
            "features.1.1.block.2.0.weight": (16, 16, 1, 1),
            "features.2.0.block.0.0.weight": (96, 16, 1, 1),
            "features.3.2.block.1.0.weight": (240, 1, 5, 5),
            "features.6.4.block.2.fc2.bias": (1152,),
            "features.8.0.weight": (1280, 320, 1, 1),
            "classifier.1.weight": (1000, 1280),
        },
    ),
    ResNet50: (
        25_557_032,
        None,
        {
            "conv1.weight": (64, 3, 7, 7),
            "layer1.0.conv1.weight": (64, 64, 1, 1),
            "layer1.0.downsample.0.weight": (256, 64, 1, 1),
            "layer3.5.bn3.running_mean": (1024,),
            "layer4.0.downsample.1.bias": (2048,),
            "fc.weight": (1000, 2048),
        },
    ),
}


@pytest.mark.parametrize("network", PUBLISHED, ids=lambda kind: kind.__name__)
def test_parameters_are_the_published_ones(network):
    count, tensors, names = PUBLISHED[network]
    with torch.device("meta"):
        module = network()
    assert sum(p.numel() for p in module.parameters()) == count
    state = module.state_dict()
    if tensors is not None:
        assert len(state) == tensors
    for name, shape in names.items():
        assert tuple(state[name].shape) == shape


def test_outputs_have_the_published_shapes():
    x = torch.zeros(2, 3, 224, 224, device="meta")
    with torch.device("meta"):
        alexnet, inception = AlexNet().eval(), InceptionV3().eval()
        efficientnet, resnet = EfficientNetB1().eval(), ResNet50(classes=None).eval()
    assert alexnet.activations(x, SECOND).shape == (2, 192, 27, 27)
    assert alexnet.activations(x, FIFTH).shape == (2, 256, 13, 13)
    assert alexnet(x).shape == (2, 1000)
    assert inception.pooled(x).shape == (2, 2048)
    assert inception.pooled(torch.zeros(1, 3, 342, 342, device="meta")).shape == (1, 2048)
    assert efficientnet.pooled(x).shape == (2, 1280)
    assert resnet(x).shape == (2, 2048)


def test_relu_is_what_alexnet_gives():
    """The published layers are those after the rectification: no value is below 0."""
    torch.manual_seed(0)
    with torch.no_grad():
        found = AlexNet().eval().activations(torch.randn(1, 3, 64, 64), SECOND)
    assert found.min() == 0
    assert found.max() > 0


def test_inception_sees_values_from_minus_1_to_1():
    network = InceptionV3().eval()
    seen = []
    network.Conv2d_1a_3x3.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    mean, std = (torch.tensor(v)[:, None, None] for v in IMAGENET)
    pixels = torch.rand(1, 3, 75, 75)
    with torch.no_grad():
        network.pooled((pixels - mean) / std)
    torch.testing.assert_close(seen[0], 2 * pixels - 1, atol=1e-5, rtol=0)


def test_preparation_is_pillows_bilinear_without_a_crop_then_normalisation():
    image = np.random.default_rng(0).integers(0, 256, (1, 40, 60, 3), dtype=np.uint8)
    network = ImageNetwork("x", False, lambda x: x, 16, CLIP)
    resized = Image.fromarray(image[0]).resize((16, 16), Image.Resampling.BILINEAR)
    expected = (np.asarray(resized) / 255 - CLIP[0]) / CLIP[1]
    found = network.prepare(image)[0].permute(1, 2, 0)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert network(image).shape == (1, 3 * 16 * 16)
    assert isinstance(network, FeatureExtractor)


def test_floats_are_refused():
    network = ImageNetwork("x", False, lambda x: x)
    with pytest.raises(ValueError, match=r"x got pictures of float32 .* expected uint8"):
        network(np.zeros((1, 8, 8, 3), np.float32))


def test_the_stand_ins_features_are_what_its_classifier_reads():
    torch.manual_seed(0)
    module = EfficientNetLite0().eval()
    image = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    rows = torch.from_numpy(efficientnet_lite0(module)(image))
    with torch.no_grad():
        probabilities = module._fc(rows).softmax(-1).numpy()
    np.testing.assert_allclose(probabilities, module.probabilities(image), atol=1e-6)


def weights_of(module, drop=(), prefix=""):
    return {prefix + k: v for k, v in module.state_dict().items() if k not in drop}


def test_files_are_found_and_loaded_by_name(tmp_path):
    torch.manual_seed(0)
    module = ResNet50(classes=None)
    extra = {
        "module.projection_head.0.weight": torch.zeros(2),
        "module.prototypes.weight": module.bn1.weight,
    }
    torch.save(
        weights_of(module, prefix="module.") | extra, tmp_path / "swav_800ep_pretrain.pth.tar"
    )
    torch.save(weights_of(EfficientNetB1()), tmp_path / "efficientnet_b1-c27df63c.pth")
    torch.save(weights_of(EfficientNetB1()), tmp_path / "efficientnet_b1_rwightman-bac287d4.pth")
    names = {
        protocol: [one.name for one in find_image_networks(tmp_path, protocol).found]
        for protocol in ("neurodiff-1", "mindeye-2023")
    }
    assert names["neurodiff-1"] == ["EfficientNet-B1 V1", "SwAV ResNet-50"]
    assert names["mindeye-2023"] == ["EfficientNet-B1 V2", "SwAV ResNet-50"]
    networks = find_image_networks(tmp_path, "mindeye-2023")
    assert [one.size for one in networks.found] == [255, 224]
    assert all(one.published for one in networks.found)
    image = np.full((1, 64, 64, 3), 90, np.uint8)
    row = networks.found[1](image)
    with torch.no_grad():
        expected = module.eval()(networks.found[1].prepare(image))
    np.testing.assert_allclose(row, expected.numpy(), atol=1e-6)


def test_alexnet_gives_two_layers(tmp_path, monkeypatch):
    class Small(AlexNet):
        def __init__(self):
            super().__init__()
            del self.classifier[:]  # 58 of its 61 million parameters

    monkeypatch.setattr("neurodiff.features.alexnet.AlexNet", Small)
    torch.save(weights_of(Small()), tmp_path / "alexnet-owt-7be5be79.pth")
    two, five = find_image_networks(tmp_path).found
    assert (two.name, five.name) == ("AlexNet(2)", "AlexNet(5)")
    image = np.full((1, 64, 64, 3), 90, np.uint8)
    assert two(image).shape == (1, 192 * 27 * 27)
    assert five(image).shape == (1, 256 * 13 * 13)


def test_a_file_of_another_network_is_refused(tmp_path):
    path = tmp_path / "efficientnet_b1_rwightman-x.pth"
    whole = weights_of(EfficientNetB1())
    torch.save(whole | {"head.weight": torch.zeros(1)}, path)
    with pytest.raises(DataError, match=r"holds 'head.weight' .1 tensors .* another network"):
        find_image_networks(tmp_path)
    torch.save({k: v for k, v in whole.items() if k != "classifier.1.bias"}, path)
    with pytest.raises(DataError, match=r"lacks 'classifier\.1\.bias'"):
        find_image_networks(tmp_path)
    path.write_bytes(b"no weights")
    with pytest.raises(DataError):
        find_image_networks(tmp_path)


SMALL_CLIP = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "patch_size": 8,
    "projection_dim": 4,
}


def test_clip_comes_from_a_folder_of_its_published_sizes(tmp_path, monkeypatch):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        **SMALL_CLIP, intermediate_size=16, num_attention_heads=2, image_size=16
    )
    torch.manual_seed(0)
    model = CLIPVisionModelWithProjection(config).eval()
    model.save_pretrained(tmp_path / "image_encoder")
    with pytest.raises(DataError, match=r"hidden_size is 16; that of ViT-L/14 is 1024"):
        find_image_networks(tmp_path)
    monkeypatch.setattr(lookup, "CLIP_SIZES", SMALL_CLIP)
    (clip,) = find_image_networks(tmp_path).found
    assert (clip.name, clip.size, clip.normalise) == ("CLIP ViT-L/14", 16, CLIP)
    image = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = model(pixel_values=clip.prepare(image)).image_embeds
    np.testing.assert_allclose(clip(image), expected.numpy(), atol=1e-6)
    assert list(find_image_networks(tmp_path).hashes()) == ["model.safetensors"]
    (tmp_path / "image_encoder" / "model.safetensors").unlink()
    with pytest.raises(DataError, match="has no complete CLIP"):
        find_image_networks(tmp_path)


def test_the_stand_in_is_found_and_named_as_one(tmp_path):
    torch.save(weights_of(EfficientNetLite0()), tmp_path / "efficientnet-lite0-x.pth")
    networks = find_image_networks(tmp_path)
    (lite,) = networks.found
    assert (lite.name, lite.published) == ("EfficientNet-Lite0", False)
    assert "a stand-in" in networks.lines()[0]
    assert len(networks.missing) == 5
    assert list(networks.hashes()) == ["efficientnet-lite0-x.pth"]
    save_safetensors({"a": torch.zeros(1)}, tmp_path / "other.safetensors")  # not looked at
    assert len(find_image_networks(tmp_path).found) == 1


def test_resnet_is_that_of_transformers_under_other_names():
    """An independent implementation with the same weights gives the same activations."""
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    ours, theirs = ResNet50(classes=None).eval(), ResNetModel(ResNetConfig()).eval()
    state = {}
    for name, value in ours.state_dict().items():
        layer, _, last = name.rpartition(".")
        if layer in ("conv1", "bn1"):
            where = "embedder.embedder"
            kind = "convolution" if layer == "conv1" else "normalization"
        else:
            stage, block, rest = layer.split(".", 2)
            where = f"encoder.stages.{int(stage[-1]) - 1}.layers.{block}"
            if rest.startswith("downsample"):
                where += ".shortcut"
                kind = "convolution" if rest.endswith("0") else "normalization"
            else:
                where += f".layer.{int(rest[-1]) - 1}"
                kind = "convolution" if rest.startswith("conv") else "normalization"
        state[f"{where}.{kind}.{last}"] = value
    theirs.load_state_dict(state)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = theirs(x).pooler_output.flatten(1)
        torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("network", "size", "billions"),
    [
        (AlexNet, 224, 0.71),
        (InceptionV3, 299, 5.71),
        (EfficientNetB1, 240, 0.69),
        (ResNet50, 224, 4.09),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_multiplications_are_as_many_as_torchvision_states(network, size, billions):
    """A wrong stride, padding or branch would show."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        module = network().eval()
        x = torch.zeros(1, 3, size, size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    assert counter.get_total_flops() / 2e9 == pytest.approx(billions, abs=0.0051)
