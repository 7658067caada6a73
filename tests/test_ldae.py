"""The LDAE pipeline's face: shapes, batches, round trips, folders, refusals."""

import dataclasses

import numpy as np
import pytest
import torch

from neurodiff.core.config import load
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.volume import Volume
from neurodiff.pipelines.brain_preprocessing import BrainPreprocessing
from neurodiff.pipelines.ldae import LDAE
from neurodiff.pipelines.ldae_files import LDAENetworks
from neurodiff.pipelines.ldae_settings import LDAERecipe, named_networks, unnamed_networks

GRID = (24, 32, 24)
SCANS = [("p1", "p1_M000"), ("p1", "p1_M012"), ("p2", "p2_M000")]


def randomised(pipe, spread=0.02):
    """Weights that do something: new ones end in zeros."""
    generator = torch.Generator().manual_seed(0)
    for network in (pipe.networks.decoder, pipe.networks.encoder):
        for p in network.parameters():
            p.data += spread * torch.randn(p.shape, generator=generator)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return randomised(LDAE.from_recipe("ldae_tiny", ["sampling.steps=3"]))


@pytest.fixture(scope="module")
def volumes():
    return np.random.default_rng(0).random((3, 1, *GRID), np.float32)


@pytest.fixture(scope="module")
def parts(pipe, volumes):
    latents, codes = pipe.latents(volumes), pipe.codes(volumes)
    return latents, codes, pipe.noise(latents, codes)


def test_shapes_and_types(pipe, parts):
    latents, codes, noise = parts
    assert latents.shape == noise.shape == (3, *pipe.size.latent) == (3, 3, 6, 8, 6)
    assert codes.shape == (3, 16)
    assert pipe.images(latents).shape == (3, 1, *GRID)
    assert {a.dtype for a in (latents, codes, noise, pipe.images(latents))} == {np.dtype("f4")}


def test_images_lie_between_0_and_1_and_slabs_change_rounding_only(pipe, parts):
    whole = pipe.images(20 * parts[0])
    assert whole.min() == 0
    assert whole.max() <= 1
    np.testing.assert_allclose(pipe.images(parts[0], memory=1e9), pipe.images(parts[0]), atol=1e-5)


def test_an_item_is_the_same_in_any_batch(pipe, volumes, parts):
    latents, codes, noise = parts
    for k in (2, 0):
        assert np.array_equal(pipe.latents(volumes[[k]])[0], latents[k])
        assert np.array_equal(pipe.codes(volumes[[k]])[0], codes[k])
        assert np.array_equal(pipe.noise(latents[[k]], codes[[k]])[0], noise[k])
    some = pipe.reconstruct(volumes[[2, 1]], "semantic", scans=[SCANS[2], SCANS[1]], seed=3)
    every = pipe.reconstruct(volumes, "semantic", scans=SCANS, seed=3)
    assert np.array_equal(some, every[[2, 1]])


def test_items_together_differ_in_rounding_only(pipe, volumes, parts):
    pipe.at_once = 2
    try:
        np.testing.assert_allclose(pipe.codes(volumes), parts[1], atol=1e-5)
        np.testing.assert_allclose(pipe.noise(*parts[:2]), parts[2], atol=1e-3)
    finally:
        pipe.at_once = 1


def test_drawn_noise_is_a_scan_s_own(pipe):
    drawn = pipe.draw(SCANS, seed=0)
    assert np.array_equal(pipe.draw(SCANS[::-1], seed=0), drawn[::-1])
    assert not np.array_equal(pipe.draw(SCANS, seed=1), drawn)
    assert not np.array_equal(pipe.draw(SCANS, seed=0, sample=1), drawn)
    assert len({d.tobytes() for d in drawn}) == 3
    assert abs(drawn.std() - 1) < 0.05


def test_encoded_noise_leads_back_to_the_latent(pipe, parts):
    latents, codes, noise = parts
    back = pipe.decode(codes, noise)
    explicit = pipe.decode(codes, pipe.noise(latents, codes, method="ddim"))
    assert np.abs(back - latents).max() < 0.5 * np.abs(explicit - latents).max()


def test_reconstructions_are_made_of_the_methods(pipe, volumes, parts):
    latents, codes, noise = parts
    assert np.array_equal(pipe.reconstruct(volumes, "autoencoder"), pipe.images(latents))
    encoded = pipe.images(pipe.decode(codes, noise))
    assert np.array_equal(pipe.reconstruct(volumes, "encoded"), encoded)
    drawn = pipe.images(pipe.decode(codes, pipe.draw(SCANS, seed=5)))
    assert np.array_equal(pipe.reconstruct(volumes, "semantic", scans=SCANS, seed=5), drawn)


def test_between_two_scans(pipe, parts):
    _, codes, noise = parts
    a, b = (codes[:1], noise[:1]), (codes[1:2], noise[1:2])
    for t, (code, whole) in ((0.0, a), (1.0, b)):
        at = pipe.between(a[0], b[0], a[1], b[1], t)
        np.testing.assert_allclose(at[0], code, atol=1e-6)
        np.testing.assert_allclose(at[1], whole, atol=1e-5)
    code, whole = pipe.between(a[0], b[0], a[1], b[1], 0.5)
    np.testing.assert_allclose(code, (a[0] + b[0]) / 2, atol=1e-6)
    with pytest.raises(UsageError, match="t is 2"):
        pipe.between(a[0], b[0], a[1], b[1], 2.0)


class Step:
    """A direction for `move`."""

    def move(self, codes, amount):
        return codes + amount


def test_moves_by_name_or_by_object(pipe, parts):
    codes = parts[1]
    pipe.directions["up"] = Step()
    try:
        assert np.array_equal(pipe.move(codes, "up", 2.0), codes + np.float32(2))
        assert np.array_equal(pipe.move(codes, Step(), 2.0), codes + np.float32(2))
        with pytest.raises(UsageError, match=r"no direction 'upp'; it has up.*Did you mean 'up'"):
            pipe.move(codes, "upp", 1.0)
    finally:
        pipe.directions.clear()


# ------------------------------------------------------------------------------- folders


def test_folder_gives_the_same_model(pipe, volumes, parts, tmp_path):
    folder = pipe.save_pretrained(tmp_path / "model")
    again = LDAE.from_pretrained(folder)
    assert again.identity == pipe.identity
    assert again.recipe == pipe.recipe
    assert np.array_equal(again.codes(volumes), parts[1])
    assert np.array_equal(again.decode(parts[1], parts[2]), pipe.decode(parts[1], parts[2]))
    assert np.array_equal(again.images(parts[0]), pipe.images(parts[0]))
    assert sorted(p.name for p in folder.iterdir()) == [
        "autoencoder", "decoder", "encoder", "model_index.json",
    ]  # fmt: skip
    pipe.save_pretrained(folder)  # a model is replaced


def test_directions_are_saved_beside(pipe, tmp_path):
    directions = pytest.importorskip("neurodiff.pipelines.ldae_directions")
    rng = np.random.default_rng(0)
    one = directions.Direction(
        "age", rng.random(16), 70.0, rng.random(16), 1 + rng.random(16), "number", "years"
    )
    pipe.directions["age"] = one
    try:
        again = LDAE.from_pretrained(pipe.save_pretrained(tmp_path / "model"))
    finally:
        pipe.directions.clear()
    codes = rng.random((2, 16)).astype(np.float32)
    assert np.array_equal(again.move(codes, "age", 1.5), one.move(codes, 1.5))
    assert again.directions["age"].unit == "years"


def test_broken_folders_are_refused(pipe, tmp_path):
    with pytest.raises(MissingDataError, match="is no fitted model"):
        LDAE.from_pretrained(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is no LDAE model"):
        pipe.save_pretrained(tmp_path / "other")
    folder = pipe.save_pretrained(tmp_path / "model")
    weights = folder / "encoder" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match="other SHA-256"):
        LDAE.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(MissingDataError, match="is missing"):
        LDAE.from_pretrained(folder)
    (folder / "model_index.json").write_text('{"format": "neurodiff-ldae-1", "files": {}}')
    with pytest.raises(DataError, match="does not list a whole model"):
        LDAE.from_pretrained(folder)


def test_identity_follows_every_weight_and_the_scale(pipe):
    other = LDAE.from_recipe("ldae_tiny")
    assert other.identity == LDAE.from_recipe("ldae_tiny").identity != pipe.identity
    scaled = LDAE.from_networks(dataclasses.replace(other.networks, latent_scale=2.0), grid=GRID)
    assert scaled.identity != other.identity


# ------------------------------------------------------------------------------- networks


def test_from_networks_and_its_protocol(pipe, volumes, parts):
    old = dataclasses.replace(pipe.networks, protocol="ldae-2025")
    published = LDAE.from_networks(old, grid=GRID)
    assert published.protocol == "ldae-2025"
    assert published.sampler.settings.limit == 1.0
    assert published.sampler.settings.encoding == "ddim"
    assert published.recipe.preparation.orientation is None
    assert published.recipe.draws_once
    assert np.array_equal(published.codes(volumes), parts[1])
    walks = [p.decode(parts[1][:1], parts[2][:1], steps=3) for p in (published, pipe)]
    assert not np.allclose(*walks)
    assert pipe.sampler.settings.limit is None
    assert not pipe.recipe.draws_once
    with pytest.raises(UsageError, match="one of them is missing"):
        LDAE.from_networks(LDAENetworks(pipe.networks.autoencoder))


def test_recipes_load_and_name_what_they_need():
    published = load("ldae_2025", LDAERecipe)
    stage = published.autoencoder
    assert (stage.l1, stage.kl, stage.perceptual, stage.adversarial) == (1.0, 1e-7, 1e-3, 0.025)
    assert published.trunk.latent_scale == 0.8730
    assert published.protocol == "ldae-2025"
    assert unnamed_networks(published) == ["autoencoder.perceptual_network"]
    named = load("ldae_2025", LDAERecipe, ["autoencoder.perceptual_network=weights"])
    assert unnamed_networks(named) == []
    assert named_networks(named) == {"autoencoder.perceptual_network": "weights"}
    assert load("ldae_24gb", LDAERecipe).size.latent == (3, 16, 20, 16)
    assert load("ldae_demo", LDAERecipe).preparation is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("size.grid=[24, 32, 26]", "grid is"),
        ("protocol=ldae-2024", "expected"),
        ("trunk.latent_scale=0.0", "latent_scale is 0.0"),
        ("sampling.steps=1000", "steps is 1000"),
        ("trunk.training.accumulate=0", "trunk.training: accumulate is 0"),
        ("preparation={shape: [24, 32, 32]}", "preparation.shape is"),
        ("semantic.stored=int8", "expected"),
    ],
)
def test_recipes_that_cannot_be_are_refused(override, message):
    with pytest.raises(UsageError, match=message):
        LDAE.from_recipe("ldae_tiny", [override])


def test_published_protocol_leaves_the_axes_alone():
    with pytest.raises(UsageError, match=r"preparation\.orientation=null"):
        LDAERecipe(name="x", protocol="ldae-2025", preparation=BrainPreprocessing())


# ------------------------------------------------------------------------------- bad input


def scan(shape=GRID, fill=None, spacing=6.0):
    values = np.random.default_rng(1).random((1, *shape), np.float32)
    if fill is not None:
        values[0, 3, 3, 3] = fill
    return Volume(values, np.diag([spacing] * 3 + [1.0]), name="scan 7")


def test_prepare_takes_what_is_on_the_grid(pipe):
    assert pipe.prepare(scan()).shape == GRID
    for bad, message in (
        (scan((24, 32, 20)), r"scan 7 has 1 channels of \(24, 32, 20\)"),
        (scan(fill=np.nan), "scan 7 hold NaN"),
        (scan(fill=7.0), r"values from .* to 7, and the model reads 0 to 1"),
    ):
        with pytest.raises(DataError, match=message):
            pipe.prepare(bad)


def test_prepare_brings_other_scans_to_the_grid():
    prepared = LDAE.from_recipe(
        "ldae_tiny", ["preparation={spacing: 6.0, shape: [24, 32, 24], intensity: minmax}"]
    )
    made = prepared.prepare(scan((30, 36, 30), spacing=5.0))
    assert made.shape == GRID
    assert made.data.min() == 0
    assert made.data.max() == 1


def test_wrong_arrays_are_told(pipe, volumes, parts):
    latents, codes, noise = parts
    nan = volumes.copy()
    nan[1, 0, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="item 1"):
        pipe.codes(nan)
    with pytest.raises(UsageError, match="volumes have shape"):
        pipe.latents(volumes[:, 0])
    with pytest.raises(UsageError, match="latents has shape"):
        pipe.images(latents[:, :2])
    with pytest.raises(UsageError, match="codes have shape"):
        pipe.decode(codes[:2], noise)
    with pytest.raises(DataError, match="codes hold NaN or infinity in item 0"):
        pipe.decode(np.full_like(codes, np.inf), noise)
    with pytest.raises(UsageError, match="how is 'both'"):
        pipe.reconstruct(volumes, "both")
    with pytest.raises(UsageError, match="3 volumes and no names"):
        pipe.reconstruct(volumes, "semantic")
    with pytest.raises(UsageError, match="there is no item"):
        pipe.codes(volumes[:0])
