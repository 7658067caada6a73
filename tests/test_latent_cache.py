"""Latents on disk: exact, drawn by the item, and refused where they are of another autoencoder."""

import numpy as np
import pytest

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.datasets.latent_cache import (
    Latent,
    LatentCache,
    hash_of_weights,
    read_published_latent,
)

HASH, OTHER = "a" * 64, "b" * 64
SHAPE = (3, 4, 5, 4)


def latent(seed=0, variance=0.25):
    mean = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    log_variance = np.full(SHAPE, np.log(variance), np.float32)
    return Latent(mean=mean, log_variance=log_variance, affine=np.diag([1.5, 1.5, 1.5, 1]),
                  source="f" * 64)  # fmt: skip


def test_what_was_written_is_read(tmp_path):
    cache = LatentCache.open(tmp_path / "c", autoencoder=HASH, shape=SHAPE)
    odd = "sub 01/../é_M000"
    cache.write(odd, latent())
    cache.write("b", latent(1))
    again = LatentCache.open(tmp_path / "c", autoencoder=HASH)
    assert set(again.ids) == {odd, "b"}
    assert again.missing(["b", "c"]) == ["c"]
    assert {path.parent for path in (tmp_path / "c").rglob("*.npz")} == {tmp_path / "c/latents"}
    found = again.read(odd)
    for name in ("mean", "log_variance", "affine"):
        np.testing.assert_array_equal(getattr(found, name), getattr(latent(), name))
    assert found.source == "f" * 64
    with pytest.raises(MissingDataError, match="no latent of c"):
        again.read("c")


def test_draws_belong_to_the_scan_and_follow_the_gaussian(tmp_path):
    cache = LatentCache.open(tmp_path / "c", autoencoder=HASH, shape=SHAPE)
    cache.write("a", latent())
    draws = np.stack([cache.sample("a", seed=0, epoch=epoch) for epoch in range(400)])
    np.testing.assert_array_equal(draws[3], cache.sample("a", seed=0, epoch=3))
    assert np.abs(draws.mean(axis=0) - latent().mean).mean() < 0.03
    assert draws.std(axis=0).mean() == pytest.approx(0.5, abs=0.01)
    # the scale is that of the samples: closed form against the draws themselves
    assert cache.scale() == pytest.approx(1 / draws.std(), rel=0.01)


def test_a_cache_of_another_autoencoder_is_refused(tmp_path):
    folder = tmp_path / "c"
    LatentCache.open(folder, autoencoder=HASH, shape=SHAPE, settings={"spacing": 1.5})
    with pytest.raises(DataError, match=r"another autoencoder \(aaaaaaaaaa; this one is bbbbbbb"):
        LatentCache.open(folder, autoencoder=OTHER)
    with pytest.raises(DataError, match=r"shape \(3, 4, 5, 4\); \(3, 8, 8, 8\) was"):
        LatentCache.open(folder, autoencoder=HASH, shape=(3, 8, 8, 8))
    with pytest.raises(DataError, match=r"spacing 1\.5, not 2"):
        LatentCache.open(folder, autoencoder=HASH, settings={"spacing": 2.0})
    with pytest.raises(UsageError, match="hash_of_weights"):
        LatentCache.open(folder, autoencoder="autoencoderkl.pth")
    with pytest.raises(UsageError, match="needs the shape"):
        LatentCache.open(tmp_path / "new", autoencoder=HASH)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(DataError, match="other files"):
        LatentCache.open(tmp_path / "full", autoencoder=HASH, shape=SHAPE)


def test_broken_entries(tmp_path):
    cache = LatentCache.open(tmp_path / "c", autoencoder=HASH, shape=SHAPE)
    holed = latent()
    holed.mean[0, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        cache.write("a", holed)
    with pytest.raises(DataError, match=r"holds float32 \(3, 4, 5, 4\)"):
        cache.write("a", Latent(mean=holed.mean[:1], log_variance=holed.log_variance,
                                affine=np.eye(4)))  # fmt: skip
    cache.write("a", latent())
    path = tmp_path / "c/latents/a.npz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match="damaged"):
        cache.read("a")


def test_hashes_tell_weights_apart():
    torch = pytest.importorskip("torch")
    weights = {"w": np.ones((2, 3), np.float32), "b": np.zeros(3, np.float32)}
    base = hash_of_weights(weights)
    assert hash_of_weights({k: torch.from_numpy(v) for k, v in weights.items()}) == base
    assert hash_of_weights({**weights, "b": np.full(3, 1e-7, np.float32)}) != base
    assert hash_of_weights({"w": weights["w"].T.copy(), "b": weights["b"]}) != base
    assert hash_of_weights({"v": weights["w"], "b": weights["b"]}) != base
    half = {k: torch.from_numpy(v).bfloat16() for k, v in weights.items()}
    assert hash_of_weights(half) != base


def test_published_latents(tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 16, 20, 16))
    np.savez_compressed(tmp_path / "a_compressed_latent.npz", data=values)
    found = read_published_latent(tmp_path / "a_compressed_latent.npz")
    np.testing.assert_array_equal(found, values.astype(np.float32))
    np.savez(tmp_path / "b.npz", other=values)
    with pytest.raises(DataError, match="arrays other"):
        read_published_latent(tmp_path / "b.npz")
    (tmp_path / "c.npz").write_text("no")
    with pytest.raises(DataError, match="archive"):
        read_published_latent(tmp_path / "c.npz")
