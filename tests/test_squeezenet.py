"""SqueezeNet 1.1 as LPIPS reads it: names, counts, features against an independent build."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.features.perceptual import LPIPS, SCALE, SHIFT
from neurodiff.features.squeezenet import SqueezeNetTrunk, published_shapes
from neurodiff.pipelines.ldae_losses import SlicePerceptualLoss, perceptual_network


def tensors(seed=0):
    """A whole file of torchvision's names with drawn numbers, of a spread that keeps signals."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in published_shapes().items():
        fan = math.prod(shape[1:]) or 1
        found[name] = torch.randn(shape, generator=generator) * (2 / fan) ** 0.5 * 0.7
    return found


def heads(widths=SqueezeNetTrunk.widths):
    generator = torch.Generator().manual_seed(1)
    return {
        f"lin{k}.model.1.weight": torch.rand(1, w, 1, 1, generator=generator)
        for k, w in enumerate(widths)
    }


def write(folder, **files):
    (folder / "lpips/weights/v0.1").mkdir(parents=True)
    torch.save(files.get("trunk", tensors()), folder / "squeezenet1_1-0.pth")
    torch.save(files.get("heads", heads()), folder / "lpips/weights/v0.1/squeeze.pth")
    return folder


def test_names_and_counts_are_those_of_torchvision():
    shapes = published_shapes()
    count = {
        part: sum(math.prod(s) for n, s in shapes.items() if n.startswith(part))
        for part in ("features.", "classifier.")
    }
    assert count == {"features.": 722_496, "classifier.": 513_000}
    assert sum(count.values()) == 1_235_496
    assert len(shapes) == 52
    assert shapes["features.0.weight"] == (64, 3, 3, 3)
    assert shapes["features.6.squeeze.weight"] == (32, 128, 1, 1)
    assert shapes["features.9.expand3x3.bias"] == (192,)
    assert shapes["features.12.expand1x1.weight"] == (256, 64, 1, 1)
    assert shapes["classifier.1.weight"] == (1000, 512, 1, 1)


class Fire(nn.Module):
    def __init__(self, a, s, e):
        super().__init__()
        self.squeeze, self.expand1x1 = nn.Conv2d(a, s, 1), nn.Conv2d(s, e, 1)
        self.expand3x3 = nn.Conv2d(s, e, 3, padding=1)

    def forward(self, x):
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)


def by_the_paper():
    """The table of SqueezeNet 1.1 as one chain, whose places are the names of the file."""

    def pool():
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 2), nn.ReLU(),
        pool(), Fire(64, 16, 64), Fire(128, 16, 64),
        pool(), Fire(128, 32, 128), Fire(256, 32, 128),
        pool(), Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256),
    )  # fmt: skip


@pytest.mark.parametrize("side", [17, 40, 64])
def test_features_are_those_of_the_chain_at_the_published_places(side):
    weights = tensors()
    trunk, chain = SqueezeNetTrunk.from_tensors(weights, "x"), by_the_paper()
    own = {n.removeprefix("features."): t for n, t in weights.items() if n.startswith("features.")}
    chain.load_state_dict(own)
    x = torch.rand(2, 3, side, side + 7, generator=torch.Generator().manual_seed(2)) * 2 - 1
    shift, scale = (torch.tensor(v)[:, None, None] for v in (SHIFT, SCALE))
    with torch.no_grad():
        found, h, wanted = trunk(x), (x - shift) / scale, []
        for place, layer in enumerate(chain):
            h = layer(h)
            if place in (1, 4, 7, 9, 10, 11, 12):
                wanted.append(h)
    assert tuple(f.shape[1] for f in found) == SqueezeNetTrunk.widths
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_distance_is_the_published_formula(tmp_path):
    metric = perceptual_network(write(tmp_path))
    assert metric.trunk.name == "SqueezeNet"
    generator = np.random.default_rng(0)
    a, b = (generator.integers(0, 256, (1, 48, 40, 3), np.uint8) for _ in range(2))
    pair = [torch.from_numpy(v).permute(0, 3, 1, 2).float() / 127.5 - 1 for v in (a, b)]
    total, linear = 0.0, heads()
    with torch.no_grad():
        for k, (p, q) in enumerate(zip(*map(metric.trunk, pair), strict=True)):
            p, q = (f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10) for f in (p, q))
            total += nn.functional.conv2d((p - q) ** 2, linear[f"lin{k}.model.1.weight"]).mean()
    assert metric.distances(a, b)[0] == pytest.approx(float(total), rel=1e-5)
    assert metric.distances(a, a)[0] == 0


def test_the_slice_wise_loss_is_the_metric_of_the_slices(tmp_path):
    from neurodiff.metrics.volumes import lpips_25d

    metric = perceptual_network(write(tmp_path))
    generator = np.random.default_rng(0)
    a, b = (generator.integers(0, 256, (1, 1, 18, 20, 19)) / 255 for _ in range(2))
    a, b = a.astype(np.float32), b.astype(np.float32)
    loss = SlicePerceptualLoss(metric, share=1.0)
    x, y = torch.from_numpy(a), torch.from_numpy(b).requires_grad_()
    found = loss(x, y, torch.Generator().manual_seed(0))
    assert float(found.detach()) == pytest.approx(float(lpips_25d(a, b, metric)[0]), rel=1e-4)
    found.backward()
    assert y.grad.abs().sum() > 0


def test_it_is_preferred_and_old_heads_are_passed_over(tmp_path):
    from neurodiff.features.perceptual import AlexNetTrunk

    write(tmp_path)
    (tmp_path / "lpips/weights/v0.0").mkdir()
    wrong = {name: 5 * t for name, t in heads().items()}
    torch.save(wrong, tmp_path / "lpips/weights/v0.0/squeeze.pth")
    torch.save(AlexNetTrunk().state_dict(), tmp_path / "alexnet-0.pth")
    torch.save(heads(AlexNetTrunk.widths), tmp_path / "lpips/weights/v0.1/alex.pth")
    metric = perceptual_network(tmp_path)
    assert metric.trunk.name == "SqueezeNet"
    assert torch.equal(metric.head0, heads()["lin0.model.1.weight"])


def test_a_file_without_classes_is_read_too():
    trunk = {n: t for n, t in tensors().items() if n.startswith("features.")}
    assert SqueezeNetTrunk.from_tensors(trunk, "x").features["3"].squeeze.bias.shape == (16,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("features.7.squeeze.bias"), r"lacks 'features\.7\.squeeze\.bias'"),
        (lambda t: t.pop("classifier.1.bias"), r"lacks 'classifier\.1\.bias'"),
        (lambda t: t.update({"fc.weight": torch.zeros(1)}), r"holds 'fc\.weight'"),
        (
            lambda t: t.update({"features.0.weight": torch.zeros(96, 3, 7, 7)}),
            r"has \(96, 3, 7, 7\) in 'features\.0\.weight' where \(64, 3, 3, 3\)",
        ),
        (
            lambda t: t.update({"features.0.bias": torch.full((64,), math.nan)}),
            r"features\.0\.bias holds NaN",
        ),
    ],
)
def test_files_of_another_network_are_refused(tmp_path, change, words):
    given = tensors()
    change(given)
    write(tmp_path, trunk=given)
    with pytest.raises(DataError, match=words) as caught:
        perceptual_network(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_heads_of_another_trunk_and_missing_halves(tmp_path):
    write(tmp_path, heads=heads((64, 192, 384, 256, 256)))
    with pytest.raises(DataError, match=r"this trunk needs \(1, 128, 1, 1\)"):
        perceptual_network(tmp_path)
    with pytest.raises(DataError, match="this trunk has 1 depths"):
        LPIPS(_One(), heads((64, 64)))
    (tmp_path / "lpips/weights/v0.1/squeeze.pth").unlink()
    with pytest.raises(MissingDataError, match=r"without its heads squeeze\.pth"):
        perceptual_network(tmp_path)


class _One(nn.Module):
    widths = (64,)


def test_pictures_that_are_too_small():
    with pytest.raises(UsageError, match="at least 17"):
        SqueezeNetTrunk()(torch.zeros(1, 3, 16, 30))
