"""``--model`` of files that others published: LDAE, its Lightning checkpoints, bundles, BrLP."""

import argparse
import json
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from neurodiff.analysis.ldae_scans import open_model
from neurodiff.analysis.ldae_verbs import decode_codes, edit_scans, encode_cohort
from neurodiff.cli import app
from neurodiff.core.code_table import read_codes
from neurodiff.core.errors import DataError, MissingDataError, NeurodiffError, UsageError
from neurodiff.core.volume import Volume
from neurodiff.datasets.simulated.brain_opening import simulated_brains
from neurodiff.models.ldae_autoencoder import autoencoder, old_names
from neurodiff.models.ldae_sizes import AutoencoderSize, LatentUNetSize, SliceEncoderSize
from neurodiff.models.ldae_slice_encoder import SliceEncoder
from neurodiff.models.ldae_unet import LatentUNet, ShiftUNet
from neurodiff.pipelines import ldae_opening
from neurodiff.pipelines.brain_preprocessing import LDAE_2025, prepare_scan
from neurodiff.pipelines.ldae import LDAE
from neurodiff.pipelines.ldae_autoencoder_alone import AutoencoderAlone
from neurodiff.pipelines.ldae_bundles import export_bundle
from neurodiff.pipelines.ldae_files import PUBLISHED_SCALE, LDAENetworks
from neurodiff.pipelines.ldae_opening import open_published

#: Published names, grid and width of a code; everything between them is thin.
AE = AutoencoderSize(widths=(2, 2, 2, 2), blocks=1, groups=2)
UNET = LatentUNetSize(width=32, multipliers=(1, 1), blocks=1, attention=(), semantic=768)
SLICES = SliceEncoderSize(widths=(4, 4, 8, 768), depths=(1, 1, 1, 1))


@pytest.fixture(scope="module")
def networks():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = autoencoder(AE), ShiftUNet(UNET), SliceEncoder(SLICES)
        with torch.no_grad():
            for part in parts:
                for p in part.eval().parameters():
                    p.add_(0.05 * torch.randn_like(p))
    return LDAENetworks(*parts, latent_scale=0.9)


@pytest.fixture(scope="module")
def scan(session_tmp):
    """A file of the simulated cohort, enlarged to millimetres that the published grid expects."""
    volume = simulated_brains("tiny", 0).cohort()[0]
    volume.save(session_tmp / "opened" / "scan.nii.gz")
    return session_tmp / "opened" / "scan.nii.gz"


@pytest.fixture(scope="module")
def published(networks, session_tmp):
    folder = session_tmp / "published-ldae"
    folder.mkdir()
    torch.save(old_names(networks.autoencoder.state_dict()), folder / "autoencoderkl.pth")
    torch.save(networks.decoder.state_dict(), folder / "decoder.pth")
    torch.save(twice(networks.encoder), folder / "encoder.pth")
    return folder


def twice(encoder):
    state = dict(encoder.state_dict())
    twins = {n: t for n, t in state.items() if n.startswith("backbone.")}
    return state | {f"slice_distributed.module.{n}": t for n, t in twins.items()}


def lightning(networks, factor=1.0):
    """Stage 3 as Lightning keeps it: last and averaged weights, a discriminator, its arguments."""
    parts = {
        "encoder.": {n: 0 * t for n, t in twice(networks.encoder).items()},
        "ema_encoder.": twice(networks.encoder),
        "decoder.": {n: 0 * t for n, t in networks.decoder.state_dict().items()},
        "ema_decoder.": networks.decoder.state_dict(),
    }
    state = {prefix + n: t for prefix, part in parts.items() for n, t in part.items()}
    return {
        "state_dict": state,
        "epoch": 3,
        "hyper_parameters": argparse.Namespace(lr=2.5e-5),
    }


def wanted_code(networks, scan):
    """What the published code gives: the scan prepared as published, through the encoder alone."""
    made = prepare_scan(Volume.open(scan), LDAE_2025).volume.data
    return networks.codes(torch.from_numpy(made[None])).numpy()


def run(*arguments):
    """Exit code and the sentence of a command, as the shell shows them."""
    try:
        result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    except NeurodiffError as error:
        return error.exit_code, str(error)
    return result.exit_code, result.output


def one_sentence(error):
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


# ------------------------------------------------------------------------------- LDAE


def test_published_weights_encode_a_cohort_to_768_columns(networks, published, scan, tmp_path):
    code, text = run("encode", scan, tmp_path / "codes.parquet", "--model", published)
    assert code == 0, text
    table = read_codes(tmp_path / "codes.parquet")
    assert table.width == 768
    assert table.about["protocol"] == "ldae-2025"
    assert table.about["grid"] == [128, 160, 128]
    assert table.about["preparation"]["orientation"] is None
    np.testing.assert_allclose(table.codes, wanted_code(networks, scan), rtol=1e-5, atol=1e-5)
    assert open_published(published).networks.latent_scale == PUBLISHED_SCALE


def test_lightning_is_converted_and_then_encodes_alike(networks, scan, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save(lightning(networks), folder / "last.ckpt")
    torch.save({"state_dict": {f"vae.{n}": t for n, t in old_names(
        networks.autoencoder.state_dict()).items()}}, folder / "ae.ckpt")  # fmt: skip
    out, safe = tmp_path / "codes.parquet", folder / "last.safetensors"
    code, text = run("encode", scan, out, "--model", folder)
    assert code == 3
    assert f"`neurodiff weights convert {folder / 'ae.ckpt'} {folder / 'ae.safetensors'}`" in text
    assert run("weights", "convert", folder / "ae.ckpt", folder / "ae.safetensors")[0] == 0
    code, text = run("weights", "convert", folder / "last.ckpt", safe)
    assert code == 2
    assert "--i-trust-this-file" in text
    assert not safe.exists()
    trusted = ("--i-trust-this-file",)
    assert run("weights", "convert", folder / "last.ckpt", safe, *trusted)[0] == 0
    assert run("weights", "check", safe)[0] == 0
    code, text = run("encode", scan, out, "--model", folder)
    assert code == 0, text
    table = read_codes(out)
    assert table.width == 768
    np.testing.assert_allclose(table.codes, wanted_code(networks, scan), rtol=1e-5, atol=1e-5)


def test_the_released_classifier_becomes_a_direction(published, tmp_path):
    folder = shutil.copytree(published, tmp_path / "model")
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(1, 768, generator=generator)
    mean, std = torch.randn(768, generator=generator), torch.rand(768, generator=generator) + 0.5
    torch.save({"weight": weight, "bias": torch.zeros(1)}, folder / "disease_classifier.ckpt")
    torch.save(mean, folder / "semantic_mean.pt")
    torch.save(std, folder / "semantic_std.pt")
    pipe = open_published(folder)
    assert list(pipe.directions) == ["AD", "CN"]
    code = torch.randn(1, 768, generator=generator)
    for name, sign in (("CN", 1), ("AD", -1)):
        step = sign * 2.5 * 768**0.5 * weight / weight.norm()
        wanted = ((code - mean) / std + step) * std + mean
        np.testing.assert_allclose(pipe.move(code.numpy(), name, 2.5), wanted, rtol=1e-4, atol=1e-4)
    torch.save(mean[:4], folder / "semantic_mean.pt")
    with pytest.raises(DataError, match="expected one number for each"):
        open_published(folder)
    (folder / "semantic_mean.pt").unlink()
    with pytest.raises(MissingDataError, match=r"semantic_mean\.pt does not exist"):
        open_published(folder)


def test_our_bundle_opens_whole(networks, tmp_path):
    folder = export_bundle(networks, tmp_path / "bundle")
    pipe = open_model(folder)
    assert isinstance(pipe, LDAE)
    assert (pipe.code_width, pipe.grid, pipe.protocol) == (768, (128, 160, 128), "neurodiff-1")


# ------------------------------------------------------------------------------- autoencoders


def monai_bundle(folder, network):
    """The brain bundle of MONAI's model zoo: old names, and a generator that nobody opens here."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    config = {
        "imports": ["$import torch"],
        "autoencoder_def": {"_target_": "AutoencoderKL", "norm_num_groups": 2, "norm_eps": 1e-6},
        "network_def": "@autoencoder_def",
        "diffusion_def": {"_target_": "DiffusionModelUNet", "in_channels": 7},
    }
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    torch.save(old_names(network.state_dict()), folder / "models" / "autoencoder.pt")
    (folder / "models" / "model.pt").write_bytes(b"not read")
    return folder


def test_a_monai_bundle_encodes_latents_and_says_what_it_cannot(
    networks, scan, tmp_path, monkeypatch
):
    assert ldae_opening.BUNDLE_GRID == (160, 224, 160)
    monkeypatch.setattr(ldae_opening, "BUNDLE_GRID", (24, 32, 24))
    folder = monai_bundle(tmp_path / "bundle", networks.autoencoder)
    out = tmp_path / "codes.parquet"
    code, text = run("encode", scan, out, "--model", folder)
    assert code == 0, text
    assert "no semantic codes" in text
    table = read_codes(out)
    assert table.width == 3 * 3 * 4 * 3
    pipe = open_published(folder)
    volume = pipe.prepare(Volume.open(scan)).data[None]
    with torch.no_grad():
        mean, _ = networks.autoencoder.encode(torch.from_numpy(volume))
        image = networks.autoencoder.decode(mean).clamp(0, 1)
    np.testing.assert_allclose(table.codes[0], mean.flatten().numpy(), rtol=1e-4, atol=1e-5)
    code, text = run("decode", out, tmp_path / "images", "--model", folder)
    assert code == 0, text
    found = Volume.open(tmp_path / "images" / "scan.nii.gz")
    np.testing.assert_allclose(found.data, image[0].numpy(), rtol=1e-3, atol=1e-3)
    told = json.loads((tmp_path / "images" / "scan.json").read_text())
    assert not any("noise" in line for line in told["cannot be restored"])
    for verb in (
        ("edit", scan, tmp_path / "o", "--towards", "AD", "--amount", "1"),
        ("interpolate", scan, scan, tmp_path / "o"),
    ):
        code, text = run(*verb, "--model", folder)
        assert code == 3
        assert "an autoencoder alone, which can encode and decode" in text
        assert len(text.splitlines()) == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("where", ["folder", "file"])
def test_brlp_s_autoencoder_is_read_by_folder_or_file(networks, tmp_path, where):
    path = tmp_path / "brlp" / "autoencoder-ep-2.pth"
    path.parent.mkdir()
    torch.save(old_names(networks.autoencoder.state_dict()), path)
    torch.save({"conv_in.conv.weight": torch.zeros(2)}, path.with_name("latentdiffusion.pth"))
    pipe = open_published(path if where == "file" else path.parent)
    assert isinstance(pipe, AutoencoderAlone)
    assert pipe.latent == (3, 16, 20, 16)
    assert pipe.code_width == 15_360
    own = pipe.networks.autoencoder.state_dict()
    assert all(torch.equal(own[n], t) for n, t in networks.autoencoder.state_dict().items())


def test_an_autoencoder_alone_on_a_grid_of_its_own(networks, tmp_path):
    pipe = AutoencoderAlone(networks.autoencoder, grid=(16, 24, 16))
    volumes = np.random.default_rng(0).random((2, 1, 16, 24, 16), np.float32)
    codes = pipe.codes(volumes)
    assert codes.shape == (2, 3 * 2 * 3 * 2)
    assert np.array_equal(pipe.codes(volumes[1:]), codes[1:])
    assert pipe.images(codes).shape == volumes.shape
    with pytest.raises(UsageError, match=r"set to read \(n, 1, 16, 24, 16\)"):
        pipe.codes(volumes[:, :, :8])
    with pytest.raises(DataError, match="values from"):
        pipe.codes(volumes * 300)
    with pytest.raises(DataError, match=r"has \(n, 36\)"):
        pipe.images(codes[:, :9])
    with pytest.raises(DataError, match="NaN"):
        pipe.images(np.full_like(codes, np.nan))
    with pytest.raises(UsageError, match="multiples of 8"):
        AutoencoderAlone(networks.autoencoder, grid=(16, 20, 16))


def test_a_table_of_latents_is_not_decoded_by_another_autoencoder(
    networks, scan, tmp_path, monkeypatch
):
    monkeypatch.setattr(ldae_opening, "BUNDLE_GRID", (24, 32, 24))
    first = monai_bundle(tmp_path / "a", networks.autoencoder)
    twin = autoencoder(AE)
    twin.load_state_dict({n: 1.1 * t for n, t in networks.autoencoder.state_dict().items()})
    other = monai_bundle(tmp_path / "b", twin)
    table = encode_cohort(scan, tmp_path / "codes.parquet", first)
    with pytest.raises(DataError, match="encoded by another model"):
        decode_codes(table, tmp_path / "out", other)


# ------------------------------------------------------------------------------- wrong folders


def test_folders_without_a_model_say_what_is_taken(tmp_path):
    with pytest.raises(MissingDataError, match="does not exist"):
        open_published(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("x")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(MissingDataError, match="is no fitted model") as error:
        open_published(tmp_path)
    assert "a MONAI bundle" in one_sentence(error)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(MissingDataError, match="has no fitted model"):
        open_published(tmp_path)


@pytest.mark.parametrize("lost", ["autoencoderkl.pth", "decoder.pth", "encoder.pth"])
def test_a_part_that_is_missing_is_named(published, tmp_path, lost):
    folder = shutil.copytree(published, tmp_path / "model")
    (folder / lost).unlink()
    with pytest.raises(MissingDataError, match=f"lacks the published {lost}") as error:
        open_published(folder)
    one_sentence(error)


def test_stage_two_without_a_shift_and_two_of_a_kind(networks, published, tmp_path):
    folder = shutil.copytree(published, tmp_path / "model")
    (folder / "decoder.pth").unlink()
    torch.save(LatentUNet(UNET).state_dict(), folder / "unet.pth")
    with pytest.raises(MissingDataError, match=r"stage 2.* lacks the published decoder\.pth"):
        open_published(folder)
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("a.pth", "b.pth"):
        torch.save(networks.autoencoder.state_dict(), alone / name)
    with pytest.raises(DataError, match="both hold an autoencoder"):
        open_published(alone)
    torch.save(networks.autoencoder.state_dict(), folder / "copy.pth")  # the published name wins
    shutil.copy(published / "decoder.pth", folder)
    assert isinstance(open_published(folder), LDAE)


def test_broken_and_foreign_files(networks, published, tmp_path):
    folder = shutil.copytree(published, tmp_path / "model")
    whole = (folder / "decoder.pth").read_bytes()
    (folder / "decoder.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a complete weights file"):
        open_published(folder)
    other = SliceEncoder(SliceEncoderSize(widths=(4, 16), depths=(1, 1)))
    (folder / "decoder.pth").write_bytes(whole)
    torch.save(other.state_dict(), folder / "encoder.pth")
    with pytest.raises(DataError, match="encoder of 16 numbers and a decoder that reads 768"):
        open_published(folder)


def test_sizes_that_do_not_fit_the_published_grid(networks, published, tmp_path):
    folder = shutil.copytree(published, tmp_path / "model")
    short = SliceEncoder(SliceEncoderSize(widths=(4, 768), depths=(1, 1), slices=24))
    torch.save(short.state_dict(), folder / "encoder.pth")
    with pytest.raises(UsageError, match="weights do not say theirs") as error:
        open_published(folder)
    assert "from_networks" in one_sentence(error)


def test_an_edit_without_a_classifier_says_so(published, scan, tmp_path):
    with pytest.raises(UsageError, match="it has none") as error:
        edit_scans(scan, tmp_path / "out", published, "AD", [1.0])
    one_sentence(error)
