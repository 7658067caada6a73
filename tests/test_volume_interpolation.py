"""Filling in a visit on people who change along a line: what is known there must come out."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neurodiff.analysis.volume_interpolation import (
    COPY,
    CORRELATION,
    LATENT,
    METHODS,
    OURS,
    SLOPE,
    VOXEL,
    interpolation_table,
)
from neurodiff.analysis.volume_tables import VolumeScoring
from neurodiff.core.cohort import Cohort
from neurodiff.core.errors import DataError, UsageError

MONTHS = (0.0, 6.0, 12.0, 24.0)


def _load(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LinearLDAE = _load("linear_ldae").LinearLDAE


class World:
    """People whose brain is a base plus a common change times months; scans add noise."""

    def __init__(self, noise):
        rng = np.random.default_rng(1)
        self.change = np.zeros((1, 8, 8, 8))
        self.change[:, 2:5, 2:5, 2:5] = -0.01
        rows, volumes = [], []
        self.base = {}
        for n in range(6):
            subject = f"p{n}"
            self.base[subject] = rng.uniform(0.45, 0.55, (1, 8, 8, 8))
            for months in MONTHS:
                seen = self.truth(subject, months) + noise * rng.standard_normal((1, 8, 8, 8))
                volumes.append(seen)
                rows.append(
                    {
                        "subject": subject,
                        "session": months,
                        "true_hole_ml": float(self.hole(self.truth(subject, months)[0])),
                    }
                )
        self.volumes = np.array(volumes).clip(0, 1).astype(np.float32)
        self.cohort = Cohort(pd.DataFrame(rows), opener=lambda row: None)
        self.pipe = LinearLDAE(self.volumes, components=20, d=8)

    def truth(self, subject, months):
        return self.base[subject] + self.change * months

    def hole(self, x):
        return 1 - x[2:5, 2:5, 2:5].mean()

    def table(self, **options):
        scoring = VolumeScoring(kernel=4, regional=lambda x: {"hole_ml": float(self.hole(x))})
        return interpolation_table(
            self.pipe, self.cohort, self.volumes, truth=self.truth, scoring=scoring, **options
        )


@pytest.fixture(scope="module")
def world():
    return World(noise=0.003)


@pytest.fixture(scope="module")
def table(world):
    return world.table()


def test_every_triple_counts_by_both_meanings_of_gap(table):
    one = table.table[(table.table["method"] == COPY) & (table.table["target"] == "scan")]
    gap, reach = (one[one["definition"] == name] for name in ("gap", "reach"))
    # (0,6,12) (0,6,24) (0,12,24) (6,12,24)
    assert gap["months"].value_counts().to_dict() == {12.0: 6, 24.0: 12, 18.0: 6}
    assert reach["months"].value_counts().to_dict() == {6.0: 18, 12.0: 6}
    np.testing.assert_allclose(gap["t"].unique(), [0.5, 0.25, 1 / 3])
    assert set(table.table["method"]) == set(METHODS)
    assert set(table.table["target"]) == {"scan", "autoencoded", "truth"}


def test_a_linear_change_is_filled_in_and_a_copy_knows_none(table):
    summary = table.summary()
    summary = summary[summary["definition"] == "gap"]
    assert set(summary["target"][summary["score"] == "planted error hole_ml"]) == {"scan"}
    planted = summary[summary["score"] == "planted error hole_ml"].groupby("method")["mean"].mean()
    assert planted[OURS] < 0.2 * planted[COPY]
    truth = summary[summary["target"] == "truth"]
    by = truth.groupby(["score", "method"])["mean"].mean()
    assert by[CORRELATION, COPY] == 0
    assert by[SLOPE, COPY] == 0
    assert by[CORRELATION, VOXEL] > 0.9
    assert by[CORRELATION, OURS] > 0.9
    assert by[SLOPE, OURS] == pytest.approx(1, abs=0.1)
    assert by["error hole_ml", OURS] < 0.2 * by["error hole_ml", COPY]
    # a mean of two latents has less of the scanners' noise than the circle, which keeps its length
    assert by["MSE", LATENT] < by["MSE", OURS] < by["MSE", COPY]


def test_the_sentence_says_where_it_wins_and_where_not(world, table):
    found = table.against_copy()
    truth = found[(found["target"] == "truth") & (found["score"] == CORRELATION)]
    assert (truth["verdict"] == "better").all()
    said = table.sentence().split("Against the ")
    assert said[3].startswith(
        f"truth, {OURS} beats copying the nearest scan in SSIM k=4 s=1.5, MSE"
    )
    # against the scans, whose noise nobody can fill in, the regional error still tells
    assert "error hole_ml" in said[1]


def test_a_method_that_only_adds_noise_is_said_to_be_worse(world):
    still = World(noise=0.02)
    still.change = still.change * 0
    rows = still.cohort.scans["subject"].tolist()
    base = np.array([still.base[subject] for subject in rows])
    noise = 0.02 * np.random.default_rng(3).standard_normal(base.shape)
    still.volumes = (base + noise).astype(np.float32)
    still.pipe.images = lambda latents: np.full((len(latents), 1, 8, 8, 8), 0.9, np.float32)
    text = still.table().sentence()
    assert text.startswith(
        f"Against the scan, {OURS} does worse than the copy in SSIM k=4 s=1.5, MSE, "
    )
    assert "beats" not in text.split("Against the ")[1]


def test_equal_scans_give_no_change_and_no_warning(world):
    still = World(noise=0.0)
    still.volumes = np.repeat(still.volumes[::4], 4, axis=0)  # nothing moves
    table = interpolation_table(still.pipe, still.cohort, still.volumes).table
    ours = table[(table["method"] == COPY) & (table["target"] == "scan")]
    assert ours[CORRELATION].isna().all()
    np.testing.assert_array_equal(ours["MSE"], 0)
    assert "truth" not in set(table["target"])


def test_what_cannot_be_filled_in(world):
    with pytest.raises(UsageError, match="within 3 months"):
        world.table(gaps=(60.0,))
    with pytest.raises(UsageError, match="no gap"):
        world.table(gaps=())
    pairs = world.cohort.select("session < 10")
    keep = np.isin(world.cohort.ids, pairs.ids)
    with pytest.raises(UsageError, match="no subject has three scans"):
        interpolation_table(world.pipe, pairs, world.volumes[keep])
    with pytest.raises(DataError, match="the truth of p0_M006 has shape"):
        interpolation_table(
            world.pipe, world.cohort, world.volumes, truth=lambda s, m: np.zeros((8, 8, 8))
        )
