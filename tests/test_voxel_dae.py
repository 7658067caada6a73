"""The voxel diffusion autoencoder: exact round trips, own items, training, sizes, files."""

import dataclasses

import numpy as np
import pytest
import torch

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.training import TrainingSettings
from neurodiff.models.ldae_sizes import BASE, TINY, LatentUNetSize
from neurodiff.models.ldae_unet import ShiftUNet
from neurodiff.models.voxel_dae import (
    SMALLEST,
    VOXEL_BASE,
    VOXEL_TINY,
    VoxelDAENetworks,
    meta_networks,
    same_graph,
)
from neurodiff.pipelines.ldae_sampling import SamplingSettings
from neurodiff.pipelines.voxel_dae import VoxelDAE

SCANS = [("01", "M000"), ("02", "M000")]


def lively(sampling=None):
    """A model whose last layers are not zero, as of a trained one."""
    pipe = VoxelDAE(SMALLEST, sampling=sampling or SamplingSettings(steps=4, iterations=20))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in pipe.networks.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
        for last in (pipe.networks.unet.out[2], pipe.networks.unet.shift_out[2]):
            last.weight.mul_(0.1)  # a contraction, as trained ones
            last.bias.mul_(0.1)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return lively()


@pytest.fixture(scope="module")
def volumes():
    """Bright boxes of two sizes on grey."""
    v = np.full((2, 1, 8, 8, 8), 0.2, np.float32)
    v[0, :, 2:5, 3:6, 1:4] = 0.9
    v[1, :, 1:6, 1:7, 2:6] = 0.7
    return v


def count(network):
    return sum(p.numel() for p in network.parameters())


def test_parameters_are_about_those_of_the_latent_networks():
    for voxel, latent in ((VOXEL_BASE, BASE), (VOXEL_TINY, TINY)):
        with torch.device("meta"):
            beside = count(ShiftUNet(latent.unet))
        networks = meta_networks(voxel)
        assert count(networks.unet) == pytest.approx(beside, rel=0.1)
        assert voxel.grid == latent.grid
        assert voxel.encoder == latent.encoder
        assert all(p.device.type == "meta" for p in networks.parameters())


def test_the_base_has_the_bottleneck_of_the_latents_but_for_the_axis_they_do_not_halve():
    unet = BASE.unet
    latent = [a // m for a, m in zip(BASE.latent[1:], unet.multiples, strict=True)]
    voxel = [a // m for a, m in zip(VOXEL_BASE.grid, VOXEL_BASE.unet.multiples, strict=True)]
    assert voxel[1:] == latent[1:]
    assert (voxel[0], latent[0]) == (4, 16)
    assert dataclasses.replace(same_graph(BASE), channels=3, attention=unet.attention) == unet


def test_exact_noise_is_undone(pipe, volumes):
    codes = pipe.codes(volumes)
    noise = pipe.noise(pipe.latents(volumes), codes)
    back = pipe.images(pipe.decode(codes, noise))
    np.testing.assert_allclose(back, volumes, atol=2e-4)
    np.testing.assert_allclose(pipe.reconstruct(volumes, "encoded"), back, atol=1e-6)
    explicit = pipe.noise(pipe.latents(volumes), codes, method="ddim")
    worse = np.abs(pipe.images(pipe.decode(codes, explicit)) - volumes).max()
    assert worse > 10 * np.abs(back - volumes).max()


def test_a_scan_is_the_same_in_any_batch(pipe, volumes):
    codes = pipe.codes(volumes)
    assert np.array_equal(pipe.codes(volumes[1:])[0], codes[1])
    assert np.array_equal(
        pipe.reconstruct(volumes[::-1].copy(), "semantic", scans=SCANS[::-1])[0],
        pipe.reconstruct(volumes, "semantic", scans=SCANS)[1],
    )
    drawn = pipe.draw(SCANS, seed=3)
    assert np.array_equal(pipe.draw(SCANS[1:], seed=3)[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[1])
    assert pipe.draw([]).shape == (0, 1, 8, 8, 8)


def test_the_ceiling_is_the_scan_itself(pipe, volumes):
    assert np.array_equal(pipe.reconstruct(volumes, "autoencoder"), volumes)
    assert pipe.images(pipe.latents(volumes)) == pytest.approx(volumes, abs=1e-6)


def test_the_code_reaches_the_voxels(pipe, volumes):
    codes, noise = pipe.codes(volumes), pipe.draw(SCANS)
    other = pipe.decode(codes[::-1].copy(), noise)
    assert np.abs(other - pipe.decode(codes, noise)).max() > 1e-4
    plain = pipe.decode(codes, noise, scale=0.0)
    np.testing.assert_allclose(plain, pipe.decode(codes * 0, noise, scale=0.0))


def test_between_two_scans(pipe, volumes):
    codes, noise = pipe.codes(volumes), pipe.draw(SCANS)
    for t, row in ((0.0, 0), (1.0, 1)):
        c, n = pipe.between(codes[:1], codes[1:], noise[:1], noise[1:], t)
        np.testing.assert_allclose(c[0], codes[row], atol=1e-6)
        np.testing.assert_allclose(n[0], noise[row], atol=1e-5)


def test_both_stages_learn_and_the_second_leaves_the_trunk(volumes):
    seen = []

    def fitted():
        pipe = VoxelDAE(SMALLEST, sampling=SamplingSettings(steps=4))
        settings = TrainingSettings(steps=30, batch_size=4, learning_rate=3e-3, warmup=3)
        few = dataclasses.replace(settings, steps=10)
        return pipe.fit(volumes, trunk=settings, semantic=few, seed=2, log=seen.append)

    new = VoxelDAE(SMALLEST)
    pipe = fitted()
    trunk = [row["loss"] for row in seen[:4]]
    assert trunk[-1] < 0.8 * trunk[0]
    assert pipe.fitted
    assert not new.fitted
    moved = {
        name
        for (name, a), b in zip(
            pipe.networks.named_parameters(), new.networks.parameters(), strict=True
        )
        if not torch.equal(a, b)
    }
    assert any(name.startswith("encoder.") for name in moved)
    assert any(name.startswith("unet.shift_out") for name in moved)
    assert not any(p.requires_grad for p in pipe.networks.parameters())
    again = fitted()
    for a, b in zip(pipe.networks.parameters(), again.networks.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_semantic_stage_trains_shift_and_encoder_alone(volumes):
    pipe = lively()
    pipe.networks.requires_grad_(True)
    pipe.networks.unet.freeze_trunk()
    loss = pipe.semantic_loss(volumes)(pipe.networks, np.array([0, 1]), torch.Generator())["loss"]
    loss.backward()
    graded = {n for n, p in pipe.networks.named_parameters() if p.grad is not None}
    assert any(n.startswith("encoder.backbone") for n in graded)
    assert any(n.startswith("unet.shift") for n in graded)
    assert not any(n.startswith(("unet.input", "unet.out.", "unet.time")) for n in graded)


def test_saved_and_loaded(tmp_path, pipe, volumes):
    folder = pipe.save_pretrained(tmp_path / "model")
    again = VoxelDAE.from_pretrained(folder)
    assert again.size == pipe.size
    assert again.sampling == pipe.sampling
    assert np.array_equal(again.codes(volumes), pipe.codes(volumes))
    pipe.save_pretrained(folder)  # over an earlier one
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="no model; name a new folder"):
        pipe.save_pretrained(tmp_path / "other")
    with pytest.raises(MissingDataError, match=r"holds no model_index\.json"):
        VoxelDAE.from_pretrained(tmp_path / "other")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("voxel-dae-1", "voxel-dae-9"))
    with pytest.raises(DataError, match="not of format"):
        VoxelDAE.from_pretrained(folder)
    index.write_text('{"format": "neurodiff-voxel-dae-1", "size": {}}')
    with pytest.raises(DataError, match="describes no voxel model"):
        VoxelDAE.from_pretrained(folder)


def test_wrong_volumes_are_refused(pipe, volumes):
    with pytest.raises(UsageError, match=r"this model reads \(n, 1, 8, 8, 8\)"):
        pipe.codes(volumes[..., :7])
    with pytest.raises(DataError, match="expected 0 to 1"):
        pipe.codes(volumes * 255)
    broken = volumes.copy()
    broken[1, 0, 3, 3, 3] = np.nan
    with pytest.raises(DataError, match="NaN or infinity in item 1"):
        pipe.latents(broken)
    codes = pipe.codes(volumes)
    with pytest.raises(UsageError, match=r"expected \(2, 16\)"):
        pipe.noise(pipe.latents(volumes), codes[:1])
    with pytest.raises(UsageError, match="give scans"):
        pipe.reconstruct(volumes, "semantic")
    with pytest.raises(UsageError, match="how is 'voxel'"):
        pipe.reconstruct(volumes, "voxel")
    with pytest.raises(UsageError, match="no size 'huge'"):
        VoxelDAE.from_preset("huge")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"grid": (8, 8, 7)}, r"multiples of \(2, 2, 2\)"),
        ({"grid": (8, 8, 16)}, "16 axial slices"),
        ({"unet": LatentUNetSize(width=32, semantic=16)}, "3 channels; a volume has one"),
        ({"unet": dataclasses.replace(SMALLEST.unet, semantic=8)}, "the shift reads 8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, sentence):
    with pytest.raises(UsageError, match=sentence):
        dataclasses.replace(SMALLEST, **change)


def test_presets_are_by_name():
    assert VoxelDAE.from_preset("tiny").size == VOXEL_TINY
    assert isinstance(VoxelDAENetworks(SMALLEST).unet, ShiftUNet)
