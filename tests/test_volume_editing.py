"""Edits of a closed-form pipe move what they should, and are told by amount."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neurodiff.analysis.volume_clamp import CLAMPED, PLAIN, clamped_edits
from neurodiff.analysis.volume_editing import (
    BACK,
    CODE_SCORE,
    OUTSIDE_MSE,
    OUTSIDE_SSIM,
    PICTURE_SCORE,
    manipulation_table,
)
from neurodiff.analysis.volume_tables import VolumeScoring
from neurodiff.core.errors import UsageError


def _load(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_closed = _load("linear_ldae")
LinearLDAE, LinearDirection = _closed.LinearLDAE, _closed.LinearDirection
SCORING = VolumeScoring(regional=lambda x: {"hole_ml": float(1 - x[2:5, 2:5, 2:5].mean())})


@pytest.fixture(scope="module")
def world():
    """A hole of each person's own depth is the largest component; the rest is small."""
    rng = np.random.default_rng(0)
    volumes = np.full((16, 1, 8, 8, 8), 0.5)
    depth = np.repeat(rng.uniform(0.1, 0.3, 8), 2) + 0.01 * rng.standard_normal(16)
    volumes[:, :, 2:5, 2:5, 2:5] -= depth[:, None, None, None, None]
    volumes += 0.004 * rng.standard_normal(volumes.shape)
    scans = pd.DataFrame(
        {"subject": [f"p{n // 2}" for n in range(16)], "scan": [f"s{n}" for n in range(16)]}
    )
    volumes = volumes.astype(np.float32)
    pipe = LinearLDAE(volumes, components=6, d=3)
    grows = 1 if pipe.axes[:, 0].reshape(8, 8, 8)[3, 3, 3] < 0 else -1
    pipe.directions["hole"] = LinearDirection(np.array([grows, 0.0, 0.0]))
    return pipe, volumes, scans


@pytest.fixture(scope="module")
def table(world):
    outside = np.ones((8, 8, 8), bool)
    outside[1:6, 1:6, 1:6] = False
    return manipulation_table(*world, "hole", amounts=(-1, 1, 2), outside=outside, scoring=SCORING)


def test_the_region_follows_the_amount(world, table):
    pipe = world[0]
    trends = table.trends().set_index("measure")
    assert table.regions == ["hole_ml"]
    # a unit of amount is one SD of the first component
    per_unit = abs(pipe.axes[:, 0].reshape(8, 8, 8)[2:5, 2:5, 2:5].mean()) * pipe.spread[0]
    assert trends.loc["hole_ml", "slope"] == pytest.approx(per_unit, rel=1e-3)
    assert trends.loc["hole_ml", "spearman"] == pytest.approx(1)
    assert trends.loc["hole_ml", "monotone"] == 1
    assert trends.loc["hole_ml", ["subjects", "scans"]].tolist() == [8, 16]
    assert trends.loc[CODE_SCORE, "slope"] == pytest.approx(1)
    assert trends.loc[PICTURE_SCORE, "slope"] == pytest.approx(1, rel=1e-3)
    assert sorted(set(table.table["amount"])) == [-1.0, 0.0, 1.0, 2.0]


def test_outside_stays_and_the_way_back_closes(table):
    rows = table.table.set_index("amount")
    np.testing.assert_array_equal(rows.loc[0.0, OUTSIDE_MSE], 0)
    np.testing.assert_allclose(rows.loc[0.0, OUTSIDE_SSIM], 1)
    hole = rows["hole_ml"]
    inside = (hole.loc[2.0].to_numpy() - hole.loc[0.0].to_numpy()) ** 2
    assert (rows.loc[2.0, OUTSIDE_MSE].to_numpy() < 0.01 * inside).all()
    assert (rows[BACK] < 1e-10).all()


def test_the_whole_brain_is_outside_where_no_mask_is_given(world, table):
    whole = manipulation_table(*world, "hole", amounts=(1.0,), scoring=SCORING)
    rows = whole.table.set_index("amount").loc[1.0]
    masked = table.table.set_index("amount").loc[1.0]
    assert (rows[OUTSIDE_MSE].to_numpy() > 10 * masked[OUTSIDE_MSE].to_numpy()).all()


def test_an_edit_that_moves_nothing_has_no_trend(world):
    pipe, volumes, scans = world
    still = manipulation_table(
        pipe, volumes, scans, LinearDirection(np.zeros(3)), amounts=(1.0, -1.0), scoring=SCORING
    )
    trends = still.trends().set_index("measure")
    assert trends.loc["hole_ml", ["slope", "spearman", "monotone"]].tolist() == pytest.approx(
        [0, 0, 0], abs=1e-12
    )


def test_a_clamp_stops_the_edit(world):
    pipe, volumes, scans = world
    clamped = LinearLDAE(volumes, components=6, d=3, limit=1.0)
    clamped.directions = pipe.directions
    both = clamped_edits(
        pipe, clamped, volumes, scans, "hole", amounts=(-2.0, 2.0), scoring=SCORING
    )
    slopes = both.trends().set_index(["model", "measure"])["slope"]
    assert slopes[CLAMPED, "hole_ml"] < 0.7 * slopes[PLAIN, "hole_ml"]
    assert slopes[CLAMPED, CODE_SCORE] == pytest.approx(slopes[PLAIN, CODE_SCORE])


def test_what_cannot_be_edited(world):
    with pytest.raises(UsageError, match="besides 0"):
        manipulation_table(*world, "hole", amounts=(0.0,))
    with pytest.raises(UsageError, match="besides 0"):
        manipulation_table(*world, "hole", amounts=(np.nan,))
    with pytest.raises(UsageError, match="outside has shape"):
        manipulation_table(*world, "hole", outside=np.ones((3, 3, 3), bool))
