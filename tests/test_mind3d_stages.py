"""The published training stages: losses, rates, weights in and out, augmentation, a whole fit."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from neurodiff.analysis.published_fit import fit_published, is_stage, read_targets
from neurodiff.cli import app
from neurodiff.core.config import dump, load
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.safe_io import write_yaml
from neurodiff.core.training import TrainingSettings, learning_rate_at
from neurodiff.datasets.surface import load_visual_cortex
from neurodiff.diffusion.paths import cosine
from neurodiff.models.feature_aggregation import contrastive_loss
from neurodiff.models.feature_bridge import FeatureBridgeSize
from neurodiff.models.feature_bridge_2024 import bridge_loss_2024
from neurodiff.models.fmri_encoder import FMRIEncoderSize
from neurodiff.models.mind3d import ShapeGenerator
from neurodiff.models.published_sizes import MinD3DSizes
from neurodiff.models.shape_decoder import ShapeDecoderSize
from neurodiff.models.triplane_vq import TriplaneVQSize
from neurodiff.models.weights import load_mind3d, open_checkpoint
from neurodiff.pipelines.mind3d_stage_fitting import open_stage
from neurodiff.pipelines.mind3d_stages import StageNetworks, StageNoise, StageRecipe
from neurodiff.pipelines.path_noise import noise_along_paths

SIZES = MinD3DSizes(
    encoder=FMRIEncoderSize(patch_size=64, embed_dim=16, depth=1, num_heads=16, pred_out=16),
    aggregated_tokens=3,
    bridge=FeatureBridgeSize(
        dim=16, depth=1, heads=2, dim_head=8, ff_mult=1, rotary_dim=8, null_tokens=2
    ),
    decoder=ShapeDecoderSize(
        vocab=32,
        width=16,
        heads=16,
        layers=2,
        positions=19,
        condition=16,
        sequence=16,
        adapter_every=1,
    ),
    tokenizer=TriplaneVQSize(
        hidden=8,
        plane_resolution=16,
        grid=4,
        vocab=32,
        width=16,
        unet_depth=2,
        start_filters=4,
        blocks=2,
    ),
)
HOW = TrainingSettings(
    steps=3, batch_size=4, accumulate=2, learning_rate=1e-3, warmup=1, eps=1e-6, decay="linear"
)


def recipe(stage, **changes):
    one = StageRecipe(name=f"small{stage}", stage=stage, training=HOW, sizes=SIZES)
    return replace(one, **changes)


def batch(n=3):
    g = torch.Generator().manual_seed(0)
    maps, image = torch.randn(n, 6, 256, 256, generator=g), torch.randn(n, 16, generator=g)
    codes = torch.randint(32, (n, 16), generator=g)
    return maps, image, codes, StageNoise.draw(n, 16, 100, 0.5, g)


# --- losses ------------------------------------------------------------------------------------


def test_stage_1_is_the_published_loss():
    """Prior by the function that the golden numbers hold; contrastive without normalising."""
    torch.manual_seed(0)
    networks = StageNetworks(recipe(1)).eval()
    maps, image, codes, noise = batch()
    with torch.no_grad():
        terms = networks(maps, image, codes, noise)
        encoded = networks.fmri_encoder.forward_all(maps.flatten(0, 1)[:, None])
        prior, _ = bridge_loss_2024(
            networks.prior_network,
            cosine(100),
            networks.fa_module(encoded[:, 1:], 6),
            image,
            t=noise.t,
            eps=noise.eps,
            drop_fmri=noise.drop_fmri,
            drop_image=noise.drop_image,
        )
        header = networks.clip_header(encoded[:, :1])
        other = contrastive_loss(header, image, 1 / 0.07, normalise=False)
    assert terms["prior"] == pytest.approx(float(prior), rel=1e-6)
    assert terms["contrastive"] == pytest.approx(float(other), rel=1e-6)
    assert terms["loss"] == pytest.approx(float(prior + other), rel=1e-6)


@pytest.mark.parametrize("protocol", ["mind3d-2024", "neurodiff-1"])
def test_stage_2_feeds_the_decoder_long_predictions(protocol):
    torch.manual_seed(0)
    networks = StageNetworks(recipe(2, protocol=protocol)).eval()
    maps, image, codes, noise = batch()
    with torch.no_grad():
        terms = networks(maps, image, codes, noise)
        encoded = networks.fmri_encoder(maps.flatten(0, 1)[:, None])
        tokens = networks.fa_module(encoded, 6)
        _, unit = networks.denoise(tokens, image, noise)
        logits = networks.shape_generator.transformer_model(codes, unit * math.sqrt(16))
        expected = F.cross_entropy(logits.flatten(0, 1), codes.flatten())
    assert terms["codes"] == pytest.approx(float(expected), rel=1e-5)


def test_what_each_stage_trains_and_at_which_rate():
    first, second = StageNetworks(recipe(1)), StageNetworks(recipe(2))
    _, rates = first.rates(0.1)
    assert set(rates) == {1.0}
    fast = {
        name
        for (name, p), rate in zip(
            ((n, p) for n, p in second.named_parameters() if p.requires_grad),
            second.rates(0.1)[1],
            strict=True,
        )
        if rate == 1.0
    }
    assert fast
    assert all(".adapter." in name for name in fast)
    frozen = {n for n, p in second.named_parameters() if not p.requires_grad}
    assert "shape_generator.transformer_model.emb.weight" in frozen
    assert "prior_network.null_fmri_encodings" in frozen


def test_linear_decay_ends_at_zero():
    rates = [learning_rate_at(step, replace(HOW, steps=11, warmup=1)) for step in range(12)]
    np.testing.assert_allclose(rates[1:], 1e-3 * np.linspace(1, 0, 11))


# --- augmentation and recipes ------------------------------------------------------------------


def test_noise_runs_along_connected_paths_of_the_mask():
    mask = np.zeros((40, 40), bool)
    mask[5:35, 5:35] = True
    frames = np.zeros((50, 40, 40), np.float32)
    frames[:, 0, 0] = 1.0  # a spread, so that noise is seen
    out = noise_along_paths(frames, mask, np.random.default_rng(0), lengths=(20, 30))
    changed = out != frames
    assert not changed[:, ~mask].any()
    touched = changed.any((1, 2))
    assert 0.5 < touched.mean() < 0.85  # 0.8 of the frames, of which a sixth get no path
    one = noise_along_paths(
        np.ones((1, 40, 40), np.float32), mask, np.random.default_rng(1), most_paths=1, share=1.0
    )
    assert (one != 1).sum() <= 300
    assert (frames[:, 0, 0] == 1).all()  # the input is left as it was
    again = noise_along_paths(frames, mask, np.random.default_rng(0), lengths=(20, 30))
    np.testing.assert_array_equal(out, again)


@pytest.mark.parametrize("name", ["stage1", "stage2", "stage1_4gpu", "stage2_4gpu"])
def test_shipped_recipes_hold_the_published_settings(name):
    one = load(f"mind3d_{name}", StageRecipe)
    assert one.sizes == MinD3DSizes()
    assert (one.training.steps, one.training.warmup, one.training.eps) == (3000, 150, 1e-6)
    assert one.training.batch_size == {1: 32, 2: 8}[one.stage]
    part = one.training.batch_size // (one.gpus * one.training.accumulate)
    assert part == {1: 8, 2: 2}[one.stage]  # trials that the contrastive loss compares
    assert one.protocol == "mind3d-2024"
    assert is_stage(f"mind3d_{name}")


def test_recipes_that_cannot_be_shared_are_refused(tmp_path):
    write_yaml(tmp_path / "bad.yaml", {**dump(recipe(1)), "gpus": 3})
    with pytest.raises(UsageError, match="cannot be shared by 3 cards x 2 parts"):
        load(tmp_path / "bad.yaml", StageRecipe)
    assert not is_stage("mind3d_tiny")
    assert not is_stage(str(tmp_path / "none.yaml"))


# --- a whole fit -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(session_tmp):
    """Four training trials in the hub's layout, targets, codes, recipes, a released file."""
    root = session_tmp / "stages"
    names = ["aaa", "bbb", "ccc", "ddd", "eee"]
    (root / "data" / "annotations").mkdir(parents=True)
    lists = root / "data" / "annotations"
    (lists / "core_train_list.txt").write_text("\n".join(f"03001627/{n}" for n in names[:4]))
    (lists / "core_test_list.txt").write_text("03001627/eee\n")
    mask = load_visual_cortex().mask
    for seed, name in enumerate(names):
        path = root / "data" / "sub-0001" / "npy_data" / "03001627" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(seed).normal(2, 3, (7, 256, 256)) * mask
        np.save(path, values.astype(np.float32))
    rng = np.random.default_rng(0)
    features = rng.normal(size=(5, 9, 16)).astype(np.float32)
    np.savez(root / "clip.npz", ids=np.array(names), features=features)
    (root / "quantized" / "03001627").mkdir(parents=True)
    for name in names:
        np.savez(root / "quantized" / "03001627" / f"{name}.npz", index=rng.integers(32, size=16))
    for stage in (1, 2):
        write_yaml(root / f"small{stage}.yaml", dump(recipe(stage)))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        shapes = ShapeGenerator(SIZES.decoder, SIZES.tokenizer)
    state = {f"shape_generator.{n}": t for n, t in shapes.state_dict().items()}
    torch.save(state, root / "decoder.pt")
    return root


def call(*args):
    return CliRunner().invoke(app, [str(one) for one in args])


def fit(place, stage, *extra):
    return call(
        *("fit", place / f"small{stage}.yaml", "--data", "fmri_shape"),
        *("--root", place / "data", "--subject", 1, "--out", place / "runs"),
        *("--targets", place / "clip.npz", *extra),
    )


def test_both_stages_from_trials_to_meshes(place):
    first = fit(place, 1)
    assert first.exit_code == 0, first.output
    run = first.output.splitlines()[-1]
    stage1 = f"{run}/published.safetensors"
    assert open_checkpoint(stage1).layout == "B stage 1"
    assert load_mind3d(stage1, any_size=True).shapes is None
    again = fit(place, 1)
    assert "done before, loaded" in again.output  # the same command repeats nothing

    start = ("--weights", stage1, "--weights", place / "decoder.pt")
    second = fit(place, 2, "--codes", place / "quantized", *start)
    assert second.exit_code == 0, second.output
    result = second.output.splitlines()[-1] + "/published.safetensors"
    check = call("weights", "check", result, "--any-size")
    assert check.exit_code == 0, check.output
    before = torch.load(place / "decoder.pt", weights_only=True)  # noqa: TID251
    after = open_checkpoint(result).tensors
    moved = {n for n, t in before.items() if n in after and not torch.equal(after[n], t)}
    assert moved
    assert all(".adapter." in name for name in moved)
    trained = open_checkpoint(stage1).tensors["fmri_encoder.pred.weight"]
    assert not torch.equal(trained, after["fmri_encoder.pred.weight"])

    source = place / "data" / "sub-0001" / "npy_data" / "03001627" / "eee.npy"
    out = place / "meshes"
    how = ("--any-size", "--candidates", 2)
    decoded = call("reconstruct", source, out, "--weights", result, *how)
    assert decoded.exit_code == 0, decoded.output
    assert json.loads((out / "eee.json").read_text())["protocol"] == "mind3d-2024"


def test_stage_2_needs_its_parts(place):
    codes = ("--codes", place / "quantized")
    result = fit(place, 2, *codes, "--weights", place / "decoder.pt")
    assert result.exit_code == 2
    assert "none were given for fmri_encoder, fa_module, prior_network" in result.output
    result = fit(place, 2)
    assert result.exit_code == 2
    assert "needs --codes" in result.output
    no_targets = call("fit", place / "small1.yaml", "--data", "fmri_shape")
    assert no_targets.exit_code == 2
    assert "needs --targets" in no_targets.output
    assert call("fit", "mind3d_tiny", "--targets", place / "clip.npz").exit_code == 2


def test_half_a_decoder_starts_nothing(place, tmp_path):
    """A file without the embedding of the codes, under either of its two names."""
    half = torch.load(place / "decoder.pt", weights_only=True)  # noqa: TID251
    half = {n: t for n, t in half.items() if "emb.weight" not in n and "z_value_dec" not in n}
    first = {n: t for n, t in StageNetworks(recipe(1)).state_dict().items() if "clip" not in n}
    torch.save(half | first, tmp_path / "half.pt")
    with pytest.raises(DataError, match=r"lacks 'emb\.weight'"):
        open_stage(recipe(2), [tmp_path / "half.pt"])


def test_an_encoder_may_start_stage_1(place):
    torch.manual_seed(2)
    encoder = StageNetworks(recipe(1)).fmri_encoder.state_dict()
    state = {f"module.transformer.{n}": t for n, t in encoder.items()}
    torch.save({"model": state}, place / "encoder.pt")
    networks = open_stage(recipe(1), [place / "encoder.pt"])
    assert torch.equal(networks.fmri_encoder.pred.weight, encoder["pred.weight"])
    assert networks.fmri_encoder.pred.weight.requires_grad
    other = replace(SIZES, encoder=replace(SIZES.encoder, embed_dim=32))
    with pytest.raises(DataError, match="it is of another size"):
        open_stage(recipe(1, sizes=other), [place / "encoder.pt"])


def test_targets_that_do_not_fit_are_refused(place, tmp_path):
    names, clip = ["aaa", "bbb"], place / "clip.npz"
    good = read_targets(names, clip, place / "quantized", recipe(2))
    assert good.image.shape == (2, 9, 16)
    assert good.codes.shape == (2, 16)
    drawn = good.features(np.array([0]), torch.Generator().manual_seed(0))
    assert drawn.shape == (1, 16)
    with pytest.raises(DataError, match="no features of 1 of the training stimuli, first 'zzz'"):
        read_targets(["aaa", "zzz"], clip, None, recipe(1))
    wide = tmp_path / "wide.npz"
    np.savez(wide, ids=["zzz"], features=np.zeros((1, 16)))
    with pytest.raises(MissingDataError, match=r"no zzz\.npz"):
        read_targets(["zzz"], wide, place / "quantized", recipe(2))
    for features, sentence in (
        (np.zeros((2, 8)), r"features have shape \(2, 8\)"),
        (np.full((2, 16), np.nan), "NaN or infinity"),
    ):
        np.savez(tmp_path / "bad.npz", ids=names, features=features)
        with pytest.raises(DataError, match=sentence):
            read_targets(names, tmp_path / "bad.npz", None, recipe(1))
    np.savez(tmp_path / "codes.npz", ids=names, codes=np.full((2, 16), 32))
    with pytest.raises(DataError, match="codes reach from 32 to 32; the codebook has 0 to 31"):
        read_targets(names, clip, tmp_path / "codes.npz", recipe(2))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(DataError, match=r"is not a whole"):
        read_targets(names, tmp_path / "broken.npz", None, recipe(1))


def test_dry_run_of_a_stage_needs_no_data(place, tmp_path):
    text = call("fit", place / "small2.yaml", "--dry-run", "--out", tmp_path / "runs").output
    assert "published stage 2" in text
    assert "epochs of 1300 trials" in text
    assert not (tmp_path / "runs").exists()
    args = ([], tmp_path, "fmri_shape", place / "data", 1, 0, True)
    assert "epochs of 4 trials" in fit_published(str(place / "small1.yaml"), *args)
