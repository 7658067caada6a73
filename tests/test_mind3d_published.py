"""Published weights at work: switches, draws that belong to the item, files, the command line."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import trimesh
from typer.testing import CliRunner

import neurodiff as nd
from neurodiff.cli import app
from neurodiff.core.errors import DataError, UsageError
from neurodiff.datasets.surface import FlatImageSpace
from neurodiff.models.feature_bridge import FeatureBridgeSize
from neurodiff.models.fmri_encoder import FMRIEncoderSize
from neurodiff.models.published_sizes import MinD3DSizes, expected_shapes, schedule_tables
from neurodiff.models.shape_decoder import ShapeDecoderSize
from neurodiff.models.triplane_vq import TriplaneVQSize
from neurodiff.pipelines.mind3d_protocol import MIND3D_2024, NEURODIFF_1, protocol_named
from neurodiff.pipelines.mind3d_published import Decoding, PublishedMinD3D

SMALL = MinD3DSizes(
    encoder=FMRIEncoderSize(patch_size=64, embed_dim=16, depth=1, num_heads=16, pred_out=16),
    aggregated_tokens=3,
    bridge=FeatureBridgeSize(
        dim=16, depth=2, heads=2, dim_head=8, ff_mult=1, rotary_dim=8, null_tokens=2
    ),
    decoder=ShapeDecoderSize(
        vocab=32, width=16, heads=16, layers=2, positions=19, condition=16, sequence=16
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
DECODING = Decoding(candidates=3, points=5, resolution=16, threshold=0.5)


@pytest.fixture(scope="module")
def file(session_tmp):
    """A released file of small sizes with random values."""
    generator = torch.Generator().manual_seed(3)
    state = {
        name: 0.3 * torch.randn(shape, generator=generator)
        for name, shape in expected_shapes(SMALL).items()
    }
    for name in state:
        if name.startswith("diffusion_prior.net."):
            state[name] = state[name.replace("diffusion_prior.net.", "prior_network.")]
        if name.endswith("rotary_emb.freqs"):
            state[name] = 1.0 / 10000.0 ** (torch.arange(0, 8, 2) / 8)
    for name, table in schedule_tables(100).items():
        state[f"diffusion_prior.noise_scheduler.{name}"] = table
    decoder = "shape_generator.transformer_model."
    state[decoder + "z_value_dec.weight"] = state[decoder + "emb.weight"]
    path = session_tmp / "mind3d_small.pt"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def pipe(file):
    return nd.MinD3D.from_published(file, any_size=True, decoding=DECODING)


def frames(seed=0, n=10):
    return np.random.default_rng(seed).normal(size=(n, 256, 256)).astype(np.float32)


# --- protocol ----------------------------------------------------------------------------------


def test_published_weights_switch_the_published_protocol_on(pipe):
    assert isinstance(pipe, PublishedMinD3D)
    assert pipe.protocol == MIND3D_2024
    assert pipe.networks.prior_network.protocol == "mind3d-2024"
    tokens = pipe.tokens(torch.from_numpy(frames(n=6))[None])
    assert tokens.shape == (1, 6 * 3, 16)


def test_what_each_switch_does():
    x = torch.tensor([[[3.0, 4.0]]])
    unit, raw = torch.tensor([[[0.6, 0.8]]]), x
    e, long = torch.tensor([[0.6, 0.8]]), torch.tensor([[0.6, 0.8]]) * 2**0.5
    cases = {
        "tokens=unit-in-training": (unit, raw),
        "tokens=unit": (unit, unit),
        "tokens=raw": (raw, raw),
    }
    for switch, wanted in cases.items():
        protocol = MIND3D_2024.with_switches([switch])
        for training, value in zip((True, False), wanted, strict=True):
            torch.testing.assert_close(protocol.tokens_for(x, training=training), value)
    cases = {
        "condition=long-in-training": (long, e),
        "condition=long": (long, long),
        "condition=unit": (e, e),
    }
    for switch, wanted in cases.items():
        protocol = MIND3D_2024.with_switches([switch])
        for training, value in zip((True, False), wanted, strict=True):
            torch.testing.assert_close(protocol.condition_for(e, training=training), value)
    assert MIND3D_2024.bridge == "mind3d-2024"
    assert MIND3D_2024.with_switches(["bridge_norms=plain"]).bridge == "neurodiff-1"
    assert NEURODIFF_1.bridge == "neurodiff-1"
    assert MIND3D_2024.with_switches(["tokens=unit"]).name == "mind3d-2024 with tokens=unit"
    assert MIND3D_2024.with_switches(["tokens=unit-in-training"]) == MIND3D_2024


def test_the_length_of_the_condition_reaches_the_decoder(pipe, monkeypatch):
    seen = []
    decoder = pipe.shapes.transformer_model
    own = decoder.generate
    monkeypatch.setattr(decoder, "generate", lambda c, **how: (seen.append(c), own(c, **how))[1])
    e = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    for switch, factor in (("condition=long-in-training", 1.0), ("condition=long", 4.0)):
        protocol = MIND3D_2024.with_switches([switch])
        published = PublishedMinD3D(pipe.networks, pipe.shapes, SMALL, protocol=protocol)
        published.codes(e, [torch.Generator().manual_seed(1)])
        torch.testing.assert_close(seen.pop(), factor * e)


def test_switches_reach_the_networks(file):
    """Each one changes what is sampled; the norms do so in half precision only."""

    def embedding(*switches, dtype=torch.float32):
        pipe = PublishedMinD3D.load(
            file,
            any_size=True,
            decoding=DECODING,
            dtype=dtype,
            protocol=MIND3D_2024.with_switches(switches),
        )
        return pipe.predict_trial(frames())[0]

    plain = embedding()
    assert np.abs(embedding("tokens=unit").embedding - plain.embedding).max() > 1e-4
    norms = embedding("bridge_norms=plain")
    np.testing.assert_allclose(norms.embedding, plain.embedding, rtol=0, atol=1e-5)
    half = [embedding(*s, dtype=torch.float16) for s in ((), ("bridge_norms=plain",))]
    assert np.abs(half[0].embedding - half[1].embedding).max() > 1e-4


def test_unknown_switches_and_protocols_are_refused():
    with pytest.raises(UsageError, match=r"there is no 'token'.*Did you mean 'tokens'"):
        MIND3D_2024.with_switches(["token=unit"])
    with pytest.raises(UsageError, match="it can be by-dtype, plain"):
        MIND3D_2024.with_switches(["bridge_norms=off"])
    with pytest.raises(UsageError, match="there are mind3d-2024, neurodiff-1"):
        protocol_named("mind3d")


# --- decoding ----------------------------------------------------------------------------------


def test_an_item_does_not_depend_on_what_is_decoded_beside_it(pipe):
    both = np.stack([frames(1), frames(2)])
    trials = pd.DataFrame({"stimulus": ["a", "b"], "split": "test"})
    recording = nd.Recording.from_arrays(
        both.reshape(2, 10, -1), trials, space=FlatImageSpace(), name="flat"
    )
    many = pipe.predict(recording, samples=2, seed=5)
    assert [(one.stimulus, one.sample) for one in many] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    alone = pipe.predict_trial(
        both[1], stimulus="b", first_sample=1, seed=5, subject=many[0].subject
    )
    np.testing.assert_array_equal(alone[0].embedding, many[3].embedding)
    np.testing.assert_array_equal(alone[0].codes, many[3].codes)
    assert (many[2].embedding != many[3].embedding).any()
    assert isinstance(many[0].mesh, trimesh.Trimesh)


def test_frames_two_to_seven_are_read(pipe):
    x = frames()
    same, other = x.copy(), x.copy()
    same[[0, 1, 8, 9]] += 1
    other[7] += 1
    first = pipe.predict_trial(x)[0].embedding
    np.testing.assert_array_equal(pipe.predict_trial(same)[0].embedding, first)
    assert (pipe.predict_trial(other)[0].embedding != first).any()


def test_greedy_codes_are_the_most_likely_ones(pipe):
    greedy = PublishedMinD3D(
        pipe.networks, pipe.shapes, SMALL, decoding=Decoding(candidates=1, points=5, greedy=True)
    )
    embedding = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    ids = greedy.codes(embedding)
    logits = pipe.shapes.transformer_model(ids, embedding)
    assert (logits.argmax(-1) == ids).all()


@pytest.mark.parametrize(
    ("values", "error", "sentence"),
    [
        (np.zeros((10, 64, 64)), UsageError, r"'trial' has shape \(10, 64, 64\)"),
        (np.zeros((0, 256, 256)), UsageError, "these weights read flat maps"),
        (np.full((10, 256, 256), np.nan), DataError, "'trial' holds NaN or infinity"),
    ],
)
def test_wrong_recordings_are_refused(pipe, values, error, sentence):
    with pytest.raises(error, match=sentence):
        pipe.predict_trial(values)


# --- command line ------------------------------------------------------------------------------


def call(*args):
    return CliRunner().invoke(app, [str(one) for one in args])


def test_check_prints_the_table_and_its_verdict(file, tmp_path):
    good = call("weights", "check", file, "--any-size")
    assert good.exit_code == 0, good.output
    assert "layout A (released MinD-3D)" in good.output
    assert "all that is needed is there" in good.output
    other = call("weights", "check", file)
    assert other.exit_code == 3
    assert "whole, but of another size" in other.output
    state = torch.load(file, weights_only=True)  # noqa: TID251
    del state["fa_module.fc2.bias"]
    torch.save(state | {"extra": torch.zeros(2)}, tmp_path / "half.pt")
    half = call("weights", "check", tmp_path / "half.pt", "--any-size")
    assert half.exit_code == 3
    assert "missing     fa_module.fc2.bias" in half.stdout
    assert "unexpected  extra" in half.stdout
    assert "1 missing: fa_module.fc2.bias" in half.stderr
    assert call("weights", "check", tmp_path / "none.pt").exit_code == 3


def test_expected_counts_the_published_model():
    text = call("weights", "expected").output
    for number in ("1,226", "296", "761", "4,038,465,877", "3,702,296,576"):
        assert number in text


def test_a_folder_of_trials_is_decoded_and_not_twice(file, tmp_path):
    source = tmp_path / "npy_data" / "02691156"
    source.mkdir(parents=True)
    np.save(source / "one.npy", frames(1))
    np.save(source / "two.npy", frames(2, n=8))
    args = (tmp_path / "npy_data", tmp_path / "out", "--weights", file, "--any-size")
    how = ("--candidates", 2, "--greedy", "--seed", 4)
    first = call("reconstruct", *args, *how)
    assert first.exit_code == 0, first.output
    assert "protocol mind3d-2024" in first.output
    table = pd.read_csv(tmp_path / "out" / "reconstructions.csv")
    assert list(table["stimulus"]) == ["02691156_one", "02691156_two"]
    about = json.loads((tmp_path / "out" / "02691156_one.json").read_text())
    assert about["protocol"] == "mind3d-2024"
    assert len(about["codes"]) == 16
    assert "2 of them done before" in call("reconstruct", *args, *how).output
    again = call("reconstruct", *args, *how, "--switch", "tokens=unit")
    assert "done before" not in again.output  # another protocol is another result


def test_wrong_usage_is_told_in_a_sentence(file, tmp_path):
    np.save(tmp_path / "small.npy", np.zeros((10, 8, 8), np.float32))
    base = ("reconstruct", tmp_path / "small.npy", tmp_path / "out", "--weights", file)
    wrong = call(*base, "--any-size")
    assert wrong.exit_code == 2
    assert "has shape (10, 8, 8)" in wrong.output
    np.save(tmp_path / "small.npy", frames())
    for extra, code, sentence in (
        ((), 3, "of another size than the published model"),
        (("--any-size", "--dtype", "int8"), 2, "there are float32, bf16, fp16"),
        (("--any-size", "--protocol", "x"), 2, "there are mind3d-2024"),
        (("--any-size", "--heads", "4"), 2, "must be two numbers"),
        (("--any-size", "--device", "tpu9"), 2, "cannot be used"),
        (("--model", "m"), 2, "without --model"),
    ):
        result = call(*base, *extra)
        assert (result.exit_code, sentence in result.output) == (code, True), result.output
