"""Tables of reconstruction, clamp and generation on a closed-form pipe."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neurodiff.analysis.volume_clamp import CLAMPED, PLAIN, TRIP, clamp_table
from neurodiff.analysis.volume_features import (
    block_means,
    code_features,
    pca_features,
    regional_features,
)
from neurodiff.analysis.volume_generation import FLOOR, generation_table
from neurodiff.analysis.volume_reconstruction import reconstruction_table
from neurodiff.analysis.volume_tables import (
    VolumeScoring,
    VolumeTable,
    measured,
    other_person,
    over_subjects,
)
from neurodiff.core.errors import DataError, UsageError

SSIM = "SSIM k=3 s=1.5"


def _load(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LinearLDAE = _load("linear_ldae").LinearLDAE


@pytest.fixture(scope="module")
def world():
    """12 people of two scans: smooth patterns with decreasing spread, and noise."""
    rng = np.random.default_rng(0)
    patterns = np.repeat(
        np.repeat(np.repeat(rng.standard_normal((8, 1, 4, 4, 4)), 3, 2), 3, 3), 3, 4
    )
    weights = rng.standard_normal((12, 8)) * 0.06 * 0.8 ** np.arange(8)
    weights = np.repeat(weights, 2, 0) + 0.004 * rng.standard_normal((24, 8))
    volumes = 0.5 + np.tensordot(weights, patterns, 1)
    volumes += 0.01 * rng.standard_normal(volumes.shape)
    volumes = volumes.clip(0, 1).astype(np.float32)
    people = [f"p{n // 2}" for n in range(24)]
    scans = pd.DataFrame({"subject": people, "scan": [f"{p}_{n}" for n, p in enumerate(people)]})
    return volumes, scans


@pytest.fixture(scope="module")
def pipe(world):
    return LinearLDAE(world[0], components=6, d=3)


def test_conditions_stand_in_their_order(world, pipe):
    volumes, scans = world
    mean = volumes.mean(0)
    masks = np.zeros((24, 12, 12, 12), bool)
    masks[:, 2:10, 2:10, 2:10] = True
    table = reconstruction_table(pipe, volumes, scans, masks=masks, mean=mean, steps=(5, 9))
    summary = table.summary().set_index(["target", "score", "condition", "steps"])["mean"]
    of_scan = summary["scan"]
    ceiling = of_scan["MSE"]["autoencoder", ""]
    encoded = of_scan["MSE"]["encoded"]
    semantic = of_scan["MSE"]["semantic"]
    assert encoded["5"] == pytest.approx(ceiling)  # the closed form closes at any steps
    assert ceiling < semantic["5"] < of_scan["MSE"]["another person", ""]
    # the drawn part has variance 1 around 0 where the scan has its own: twice the variance
    spread = pipe.spread[3:] ** 2 / np.prod(pipe.shape)
    assert semantic["5"] - ceiling == pytest.approx(2 * spread.sum(), rel=0.35)
    # the mean misses the components' own variance, once
    missed = (pipe.spread**2).sum() / np.prod(pipe.shape)
    assert of_scan["MSE"]["training mean", ""] == pytest.approx(ceiling + missed, rel=1e-3)
    against = summary["autoencoder"]
    assert against["MSE"]["encoded", "5"] == pytest.approx(0, abs=1e-10)
    assert ("autoencoder", "") not in against["MSE"].index
    for name in (f"brain {SSIM}", "brain MSE", SSIM, "seconds", "calls"):
        assert name in table.scores
    assert (table.table["condition"].value_counts()[["encoded", "semantic"]] == 96).all()


def test_a_scan_scores_the_same_in_any_batch(world, pipe):
    volumes, scans = world
    whole = reconstruction_table(pipe, volumes, scans, seed=4).table
    turned = reconstruction_table(pipe, volumes[::-1], scans[::-1], seed=4).table
    keys = ["scan", "condition", "target"]
    one, other = (t[t["condition"] == "semantic"].set_index(keys)[SSIM] for t in (whole, turned))
    np.testing.assert_allclose(one, other.loc[one.index], rtol=1e-6)


def test_intervals_are_over_people():
    table = pd.DataFrame({"subject": ["a", "a", "a", "b"], "x": [1.0, 1.0, 1.0, 3.0]})
    found = over_subjects(table, "x")
    assert (found["mean"], found["subjects"], found["scans"]) == (2.0, 2, 4)
    assert (found["low"], found["high"]) == (1.0, 3.0)
    alone = over_subjects(table[:3].assign(x=[1.0, np.nan, 1.0]), "x")
    assert (alone["subjects"], alone["scans"]) == (1, 2)
    assert np.isnan(alone["low"])


def test_differences_are_paired_and_have_a_verdict():
    rng = np.random.default_rng(0)
    base = rng.normal(size=20)
    rows = pd.DataFrame({"subject": [f"s{n}" for n in range(20)], "scan": range(20)})
    one = rows.assign(method="new", good=base + 0.1, bad=base + 0.1, same=base * -1)
    other = rows.assign(method="old", good=base, bad=base, same=base * -1)
    table = VolumeTable(
        pd.concat([one, other]), ("method",), {"good": True, "bad": False, "same": True}
    )
    found = table.differences("method", "new", "old", on=["scan"]).set_index("score")
    assert found["verdict"].tolist() == ["better", "worse", "not told apart"]
    assert found.loc["good", "high"] == pytest.approx(0.1)  # pairing removes the spread
    with pytest.raises(UsageError, match=r"no method 'nwe'.*Did you mean 'new'"):
        table.differences("method", "nwe", "old", on=["scan"])


def test_calls_of_the_network_are_counted():
    import torch

    from neurodiff.models.ldae_sizes import LatentUNetSize
    from neurodiff.models.ldae_unet import ShiftUNet

    size = LatentUNetSize(width=32, multipliers=(1,), attention=(), semantic=4)
    network = ShiftUNet(size).eval()
    with measured() as cost, torch.no_grad():
        for _ in range(3):
            network(torch.zeros(2, 3, 2, 2, 2), torch.zeros(2), torch.zeros(2, 4))
    network(torch.zeros(2, 3, 2, 2, 2), torch.zeros(2), torch.zeros(2, 4))  # not counted any more
    assert cost.calls == 6
    assert cost.seconds > 0


def test_the_clamp_shows_in_noise_trip_and_contrast(world, pipe):
    volumes, scans = world
    clamped = LinearLDAE(volumes, components=6, d=3, limit=1.0)
    table = clamp_table(pipe, clamped, volumes, scans).summary().set_index(["score", "model"])
    mean = table["mean"]
    assert mean["noise std", PLAIN] < 1.5 < 5 < mean["noise std", CLAMPED]
    assert mean[TRIP, PLAIN] == pytest.approx(0, abs=1e-10)
    assert mean[TRIP, CLAMPED] > 0.01
    assert mean["semantic spread", CLAMPED] < mean["semantic spread", PLAIN]
    clamped.identity = "another"
    with pytest.raises(UsageError, match="different weights"):
        clamp_table(pipe, clamped, volumes, scans)


def test_generation_has_a_floor_at_the_same_n(world, pipe):
    volumes, scans = world
    name, pca = pca_features(volumes, 2)
    blocks, means = block_means(2)
    features = {name: pca, blocks: means, "codes": code_features(pipe)}
    table = generation_table(pipe, volumes, scans, features, permutations=50)
    assert table.groupby("features").size().tolist() == [4, 4, 4]
    assert (table["n"] == 12).all()
    assert (table["reference_n"] == 12).all()
    assert (table.groupby("features")["bandwidth"].nunique() == 1).all()
    by = table.set_index(["features", "set"])
    # two components that the autoencoder keeps: its pictures are as far as the scans themselves
    assert by["frechet"][name, "autoencoded"] == pytest.approx(by["frechet"][name, FLOOR], rel=0.02)
    again = generation_table(pipe, volumes, scans, features, permutations=50)
    pd.testing.assert_frame_equal(table, again)
    with pytest.raises(UsageError, match="at least 4"):
        generation_table(pipe, volumes[:6], scans[:6], features)
    with pytest.raises(UsageError, match="no feature"):
        generation_table(pipe, volumes, scans, {})


def test_features_are_what_they_say(world):
    volumes, _ = world
    _, pca = pca_features(volumes, 4)
    scores = pca(volumes)
    np.testing.assert_allclose(np.cov(scores.T), np.eye(4), atol=1e-6)
    _, means = block_means(3)
    np.testing.assert_allclose(means(volumes).mean(1), volumes.mean((1, 2, 3, 4)), rtol=1e-5)
    logs = regional_features(lambda v: {"a": float(v.sum()), "b": 1.0})(volumes)
    np.testing.assert_allclose(logs[:, 1], 0)
    with pytest.raises(UsageError, match="components"):
        pca_features(volumes, 24)


def test_what_does_not_belong_together(world, pipe):
    volumes, scans = world
    with pytest.raises(UsageError, match="24 volumes for a table of 3"):
        reconstruction_table(pipe, volumes, scans[:3])
    with pytest.raises(UsageError, match="no column 'scan'"):
        reconstruction_table(pipe, volumes, scans[["subject"]])
    with pytest.raises(UsageError, match="masks have shape"):
        reconstruction_table(pipe, volumes, scans, masks=np.ones((24, 3, 3, 3), bool))
    with pytest.raises(UsageError, match="the mean has shape"):
        reconstruction_table(pipe, volumes, scans, mean=volumes[:1])
    broken = volumes.copy()
    broken[2, 0, 1, 1, 1] = np.nan
    with pytest.raises(DataError, match="p1_2 holds NaN"):
        reconstruction_table(pipe, broken, scans)
    one = scans.assign(subject="p")
    assert "another person's scan is missing" in reconstruction_table(pipe, volumes, one).notes[1]
    assert other_person(["a", "a", "b", "a"]).tolist() == [2, 2, 3, 2]


def test_a_perceptual_network_is_named_by_its_trunk(world, pipe):
    class Slices:
        def distances(self, a, b, *, values="-1..1"):
            return np.abs(a.astype(float) - b).mean(axis=(1, 2, 3))

    scoring = VolumeScoring(kernel=4, lpips=(Slices(), "squeeze"))
    table = reconstruction_table(pipe, world[0][:4], world[1][:4], scoring=scoring)
    assert "LPIPS 2.5D squeeze" in table.scores
    assert "SSIM k=4 s=1.5" in table.scores
