"""LDAE's files: published layouts, Lightning checkpoints, MONAI bundles both ways, broken ones."""

import json

import pytest
import torch

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.models.ldae_autoencoder import autoencoder, old_names
from neurodiff.models.ldae_names import (
    encoder_size_of,
    encoder_tensors,
    from_imagenet,
    part_of,
    unet_size_of,
)
from neurodiff.models.ldae_sizes import (
    PRESETS,
    AutoencoderSize,
    LatentUNetSize,
    SliceEncoderSize,
)
from neurodiff.models.ldae_slice_encoder import SliceEncoder
from neurodiff.models.ldae_unet import LatentUNet, ShiftUNet
from neurodiff.pipelines.ldae_bundles import export_bundle, import_bundle
from neurodiff.pipelines.ldae_files import (
    PUBLISHED_SCALE,
    LDAENetworks,
    convert_lightning,
    load_autoencoder,
    load_encoder,
    load_ldae,
    load_unet,
)

AE = AutoencoderSize(widths=(8, 16), blocks=1, groups=8)
UNET = LatentUNetSize(width=32, multipliers=(1, 2), blocks=1, attention=(2,), semantic=16)
CUBE = LatentUNetSize(
    width=32, multipliers=(1, 2), blocks=1, attention=(2,), semantic=16, stride=(2, 2, 2), heads=2
)
SLICES = SliceEncoderSize(widths=(8, 16), depths=(1, 2), slices=6, heads=8)


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


def published(encoder):
    """Names of encoder.pth: the slice network twice, tensors shared."""
    state = dict(encoder.state_dict())
    twins = {n: t for n, t in state.items() if n.startswith("backbone.")}
    return state | {f"slice_distributed.module.{n}": t for n, t in twins.items()}


def write_published(networks, folder):
    folder.mkdir(exist_ok=True)
    torch.save(old_names(networks.autoencoder.state_dict()), folder / "autoencoderkl.pth")
    torch.save(networks.decoder.state_dict(), folder / "decoder.pth")
    torch.save(published(networks.encoder), folder / "encoder.pth")
    return folder


def equal(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def lightning(networks, *, averaged=1.0):
    """A checkpoint of all networks; averaged weights are the last ones times ``averaged``."""
    parts = {
        "vae.": old_names(networks.autoencoder.state_dict()),
        "decoder.": networks.decoder.state_dict(),
        "encoder.": published(networks.encoder),
        "ema_decoder.": {n: averaged * t for n, t in networks.decoder.state_dict().items()},
    }
    state = {prefix + n: t for prefix, tensors in parts.items() for n, t in tensors.items()}
    state["discriminator.conv.weight"] = torch.zeros(3)
    return {"state_dict": state, "epoch": 3, "pytorch-lightning_version": "2.4.0"}


# ------------------------------------------------------------------------------- published


def test_the_published_folder_gives_the_networks_and_its_protocol(networks, tmp_path):
    loaded = load_ldae(write_published(networks, tmp_path))
    for part in ("autoencoder", "decoder", "encoder"):
        assert equal(getattr(loaded, part), getattr(networks, part)), part
        assert not getattr(loaded, part).training
    assert loaded.protocol == "ldae-2025"
    assert loaded.latent_scale == PUBLISHED_SCALE
    assert loaded.decoder.size == UNET
    assert loaded.encoder.size == SLICES
    z = torch.randn(1, 3, 2, 4, 4)
    assert torch.equal(loaded.autoencoder.decode(z), networks.autoencoder.decode(z))


def test_volumes_to_latents_codes_and_back(networks):
    volume = torch.rand(2, 1, 16, 16, 6)
    latents = networks.latents()
    z = latents.encode(volume)
    with torch.no_grad():
        mean, _ = networks.autoencoder.encode(volume)
        plain = networks.autoencoder.decode(mean)
    torch.testing.assert_close(z, 0.9 * mean)
    torch.testing.assert_close(latents.decode(z), plain, rtol=1e-4, atol=1e-4)
    codes = networks.codes(volume)
    assert codes.shape == (2, 16)
    assert not torch.allclose(codes, networks.codes(volume.flip(4)), atol=1e-5)
    broken = volume.clone()
    broken[1, 0, 3, 2, 1] = torch.nan
    for call in (latents.encode, networks.codes):
        with pytest.raises(DataError, match="volumes hold NaN or infinity in item 1"):
            call(broken)
    with pytest.raises(DataError, match="latents hold NaN or infinity in item 0"):
        latents.decode(torch.full_like(z, torch.inf))
    bare = LDAENetworks(networks.autoencoder)
    with pytest.raises(UsageError, match="without the scale"):
        bare.latents()
    with pytest.raises(UsageError, match="no semantic encoder"):
        bare.codes(volume)


def test_positions_in_another_layout_are_the_same_numbers(networks, tmp_path):
    state = published(networks.encoder)
    state["positional_encoding.pe"] = state["positional_encoding.pe"].transpose(0, 1)
    torch.save(state, tmp_path / "encoder.pth")
    assert equal(load_encoder(tmp_path / "encoder.pth"), networks.encoder)


def test_stage_two_is_a_plain_unet(tmp_path):
    unet = LatentUNet(UNET)
    torch.save({"state_dict": unet.state_dict()}, tmp_path / "unet.pth")
    loaded = load_unet(tmp_path / "unet.pth")
    assert type(loaded) is LatentUNet
    assert equal(loaded, unet)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_sizes_follow_from_shapes(preset):
    size = PRESETS[preset]
    with torch.device("meta"):
        made = ShiftUNet(size.unet), SliceEncoder(size.encoder)
    shapes = [{n: tuple(t.shape) for n, t in m.state_dict().items()} for m in made]
    assert unet_size_of(shapes[0]) == size.unet
    found = encoder_size_of(shapes[1], heads=size.encoder.heads)
    assert (found.widths, found.depths, found.slices) == (
        size.encoder.widths,
        size.encoder.depths,
        size.encoder.slices,
    )


@pytest.mark.parametrize(
    "size",
    [
        LatentUNetSize(width=32, multipliers=(1,), blocks=2, attention=(), semantic=4),
        LatentUNetSize(width=32, multipliers=(1, 1, 2), blocks=3, attention=(1, 4), semantic=4),
    ],
)
def test_other_unets_are_recognised_too(size):
    with torch.device("meta"):
        shapes = {n: tuple(t.shape) for n, t in ShiftUNet(size).state_dict().items()}
    assert unet_size_of(shapes) == size


def test_parts_are_recognised_by_their_names(networks):
    assert part_of(old_names(networks.autoencoder.state_dict())) == "autoencoder"
    assert part_of(networks.decoder.state_dict()) == "decoder"
    assert part_of(LatentUNet(UNET).state_dict()) == "unet"
    assert part_of(networks.encoder.state_dict()) == "encoder"
    assert part_of(lightning(networks)["state_dict"]) == "lightning"
    assert part_of({"fc.weight": torch.zeros(1)}) is None


def test_imagenet_weights_answer_a_grey_picture_alike():
    rgb = torch.nn.Conv2d(3, 8, 4, 4)
    with torch.no_grad():
        tensors = {
            "features.0.0.weight": rgb.weight.clone(),
            "classifier.0.weight": torch.ones(16),
            "classifier.2.weight": torch.ones(10, 16),
        }
    kept = from_imagenet(tensors)
    assert set(kept) == {
        "backbone.backbone.features.0.0.weight",
        "backbone.backbone.classifier.0.weight",
    }
    grey = torch.rand(1, 1, 8, 8)
    ours = torch.nn.functional.conv2d(
        grey, kept["backbone.backbone.features.0.0.weight"], rgb.bias, 4
    )
    torch.testing.assert_close(ours, rgb(grey.expand(1, 3, 8, 8)), rtol=1e-5, atol=1e-6)
    assert tensors["features.0.0.weight"].shape[1] == 3


# ------------------------------------------------------------------------------- Lightning


@pytest.mark.parametrize("averaged", [True, False])
def test_lightning_parts_load_after_conversion(networks, tmp_path, averaged):
    torch.save(lightning(networks, averaged=2.0), tmp_path / "last.ckpt")
    written = convert_lightning(tmp_path / "last.ckpt", tmp_path / "out", averaged=averaged)
    assert set(written) == {"autoencoder", "decoder", "encoder"}
    loaded = load_ldae(tmp_path / "out")
    assert equal(loaded.autoencoder, networks.autoencoder)
    assert equal(loaded.encoder, networks.encoder)
    factor = 2.0 if averaged else 1.0
    weight = loaded.decoder.label_emb.weight
    assert torch.equal(weight, factor * networks.decoder.label_emb.weight)


def test_a_lightning_checkpoint_is_not_loaded_unconverted(networks, tmp_path):
    torch.save(lightning(networks), tmp_path / "last.ckpt")
    with pytest.raises(DataError, match="convert it first") as caught:
        load_unet(tmp_path / "last.ckpt")
    assert "Lightning" in str(caught.value)


class _Settings:
    """What a training's settings may be pickled as."""


def test_a_checkpoint_with_objects_is_refused_and_runs_nothing(networks, tmp_path):
    torch.save(lightning(networks) | {"hyper_parameters": _Settings()}, tmp_path / "last.ckpt")
    with pytest.raises(DataError, match="loading it could run code"):
        convert_lightning(tmp_path / "last.ckpt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lightning_checkpoints_of_others_are_refused(tmp_path):
    torch.save({"state_dict": {"net.weight": torch.zeros(2)}}, tmp_path / "a.ckpt")
    with pytest.raises(DataError, match="of another model"):
        convert_lightning(tmp_path / "a.ckpt", tmp_path)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "b.ckpt")
    with pytest.raises(DataError, match="no 'state_dict'"):
        convert_lightning(tmp_path / "b.ckpt", tmp_path)


# ------------------------------------------------------------------------------- bundles


def test_a_bundle_comes_back_as_it_went(networks, tmp_path):
    folder = export_bundle(networks, tmp_path / "bundle")
    loaded = import_bundle(folder)
    for part in ("autoencoder", "decoder", "encoder"):
        assert equal(getattr(loaded, part), getattr(networks, part)), part
    assert loaded.latent_scale == 0.9
    assert loaded.protocol == "neurodiff-1"
    assert loaded.decoder.size == UNET  # strides and heads, of which no shape tells
    z = torch.randn(1, 3, 2, 4, 4)  # the groups of the norms came back too
    assert torch.equal(loaded.autoencoder.decode(z), networks.autoencoder.decode(z))
    with pytest.raises(UsageError, match="exists"):
        export_bundle(networks, folder)


def test_strides_and_heads_come_back_with_a_bundle(networks, tmp_path):
    cube = ShiftUNet(CUBE)
    folder = export_bundle(LDAENetworks(networks.autoencoder, cube), tmp_path / "bundle")
    loaded = import_bundle(folder)
    assert loaded.decoder.size == CUBE
    assert loaded.encoder is None


def test_monai_builds_the_networks_of_our_bundle(networks, tmp_path):
    from monai.bundle import ConfigParser

    folder = export_bundle(networks, tmp_path / "bundle")
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    parser.read_meta(str(folder / "configs" / "metadata.json"))
    for key, part, file in (
        ("autoencoder_def", "autoencoder", "autoencoder.pt"),
        ("network_def", "decoder", "model.pt"),
        ("encoder_def", "encoder", "encoder.pt"),
    ):
        made = parser.get_parsed_content(key)
        own = getattr(networks, part)
        made.load_state_dict({n: torch.zeros_like(t) for n, t in own.state_dict().items()})
        assert (folder / "models" / file).exists()


def monai_bundle(folder, config, **files):
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    for name, state in files.items():
        torch.save(state, folder / "models" / f"{name}.pt")
    return folder


def test_a_bundle_of_monai_with_old_names_is_read(networks, tmp_path):
    from monai.networks.nets import DiffusionModelUNet

    unet_config = {
        "spatial_dims": 3,
        "in_channels": 3,
        "out_channels": 3,
        "num_res_blocks": 1,
        "attention_levels": [False, True],
        "norm_num_groups": 8,
        "num_head_channels": [0, 16],
        "with_conditioning": True,
        "cross_attention_dim": 4,
        "resblock_updown": True,
    }
    unet = DiffusionModelUNet(channels=[8, 16], include_fc=True, **unet_config).eval()
    config = {
        "imports": ["$import torch"],
        "groups": 8,
        "network_def": "@autoencoder_def",
        "autoencoder": "$@autoencoder_def.to('cpu')",
        "autoencoder_def": {"_target_": "AutoencoderKL", "norm_num_groups": "@groups"},
        "diffusion_def": {
            "_target_": "generative.networks.nets.DiffusionModelUNet",
            "num_channels": [8, 16],
            **unet_config,
        },
    }
    folder = monai_bundle(
        tmp_path / "b",
        config,
        autoencoder=old_names(networks.autoencoder.state_dict()),
        model=unet.state_dict(),
    )
    loaded = import_bundle(folder)
    assert equal(loaded.autoencoder, networks.autoencoder)
    assert equal(loaded.decoder, unet)
    assert loaded.encoder is None
    assert loaded.latent_scale is None


def test_expressions_in_a_bundle_are_not_run(networks, tmp_path):
    config = {
        "autoencoder_def": {
            "_target_": "AutoencoderKL",
            "norm_num_groups": "$__import__('pathlib').Path('ran').touch()",
        }
    }
    folder = monai_bundle(tmp_path / "b", config, autoencoder=networks.autoencoder.state_dict())
    with pytest.raises(DataError, match="none is run"):
        import_bundle(folder)


@pytest.mark.parametrize(
    ("config", "error", "sentence"),
    [
        ({}, DataError, "no 'autoencoder_def'"),
        ([1], DataError, "no settings by name"),
        ({"autoencoder_def": {"_target_": "VQVAE"}}, DataError, "is a VQVAE"),
        ({"autoencoder_def": {"channels": 3}}, DataError, "names no '_target_'"),
        ({"autoencoder_def": {}, "network_def": 1}, DataError, "names no '_target_'"),
        ({"autoencoder_def": {"_target_": "ShiftUNet", "wide": 2}}, UsageError, "has no 'wide'"),
        (
            {"autoencoder_def": {"_target_": "AutoencoderKL"}, "encoder_def": {"_target_": "x"}},
            MissingDataError,
            "has none of encoder.pt",
        ),
    ],
)
def test_broken_bundles_are_refused(networks, tmp_path, config, error, sentence):
    folder = monai_bundle(tmp_path / "b", config, autoencoder=networks.autoencoder.state_dict())
    with pytest.raises(error, match=sentence):
        import_bundle(folder)


# ------------------------------------------------------------------------------- wrong input


def test_missing_files_are_named(networks, tmp_path):
    with pytest.raises(MissingDataError, match=r"has no autoencoderkl\.pth"):
        load_ldae(tmp_path)
    write_published(networks, tmp_path)
    (tmp_path / "encoder.pth").unlink()
    with pytest.raises(MissingDataError, match=r"has no encoder\.pth"):
        load_ldae(tmp_path)


def test_files_of_another_network_are_refused(networks, tmp_path):
    write_published(networks, tmp_path)
    with pytest.raises(DataError, match="is the semantic encoder of LDAE"):
        load_autoencoder(tmp_path / "encoder.pth")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "x.pth")
    with pytest.raises(DataError, match="of no network that is known here"):
        load_encoder(tmp_path / "x.pth")
    torch.save(LatentUNet(UNET).state_dict(), tmp_path / "decoder.pth")
    with pytest.raises(DataError, match="has no shift"):
        load_ldae(tmp_path)


def test_networks_of_two_models_are_refused(networks, tmp_path):
    write_published(networks, tmp_path)
    other = SliceEncoder(SliceEncoderSize(widths=(8, 24), depths=(1, 1), slices=6, heads=8))
    torch.save(published(other), tmp_path / "encoder.pth")
    with pytest.raises(DataError, match="encoder of 24 numbers and a decoder that reads 16"):
        load_ldae(tmp_path)


def test_a_missing_name_nan_and_a_differing_copy_are_refused(networks, tmp_path):
    state = networks.decoder.state_dict()
    fewer = {n: t for n, t in state.items() if n != "shift_out.0.bias"}
    torch.save(fewer, tmp_path / "fewer.pth")
    with pytest.raises(DataError, match=r"lacks 'shift_out\.0\.bias'"):
        load_unet(tmp_path / "fewer.pth")
    torch.save(state | {"out.2.bias": torch.full((3,), torch.nan)}, tmp_path / "nan.pth")
    with pytest.raises(DataError, match=r"out\.2\.bias holds NaN or infinity"):
        load_unet(tmp_path / "nan.pth")
    twice = published(networks.encoder)
    name = "slice_distributed.module.backbone.backbone.features.0.0.bias"
    assert name in twice
    with pytest.raises(DataError, match="of which it should be a copy"):
        encoder_tensors(twice | {name: twice[name] + 1})


def test_a_truncated_file_is_refused(networks, tmp_path):
    write_published(networks, tmp_path)
    whole = (tmp_path / "decoder.pth").read_bytes()
    (tmp_path / "decoder.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a complete weights file"):
        load_unet(tmp_path / "decoder.pth")
