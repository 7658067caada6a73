"""A decoder of pictures beside its anchors."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from neurodiff.analysis import image_scorer
from neurodiff.analysis.image_conditions import (
    CEILING,
    CHANCE,
    MEAN,
    OURS,
    RANDOM,
    SHUFFLED,
    image_conditions,
    mean_picture,
)
from neurodiff.analysis.image_evaluation import ImageScorer
from neurodiff.core.errors import UsageError
from neurodiff.core.stimuli import Stimuli
from neurodiff.pipelines.pictures import Picture

IDS = [f"s{k:02d}" for k in range(12)]


def noise(seed):
    values = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((24, 24))


PICTURES = {name: noise(k) for k, name in enumerate(IDS)}
TRAIN = [noise(100 + k) for k in range(20)]


class Corners:
    name, published = "corners", False

    def __call__(self, images):
        small = [Image.fromarray(image).resize((5, 5)) for image in images]
        return np.stack([np.asarray(image, np.float32).ravel() for image in small])


@pytest.fixture(autouse=True)
def few_pixels(monkeypatch):
    monkeypatch.setattr(image_scorer, "PIXELS", 48)


@pytest.fixture
def scorer():
    table = pd.DataFrame({"id": IDS, "category": ["a", "b"] * 6})
    truth = Stimuli(table, None, PICTURES.__getitem__)
    return ImageScorer(truth, IDS, networks=[Corners()], train=TRAIN, permutations=50)


def answers(share, seed=500):
    """The true pictures mixed with ``share`` of noise."""
    return [
        Picture("s1", name, 0, 0, Image.blend(PICTURES[name], noise(seed + k), share))
        for k, name in enumerate(IDS)
    ]


def test_conditions_are_ordered_by_what_they_know(scorer):
    found = image_conditions(scorer, answers(0.6), ceiling=answers(0.2, seed=900))
    table = found.table.set_index(["condition", "metric"])
    names = [OURS, MEAN, RANDOM, SHUFFLED, "nearest training picture [corners]", CEILING, CHANCE]
    assert list(found.table["condition"].unique()) == names
    two_way = table["mean"].xs("2-way [corners]", level="metric")
    assert two_way[CEILING] >= two_way[OURS] > 0.7
    assert two_way[MEAN] == pytest.approx(0.5)
    assert two_way[CHANCE] == pytest.approx(0.5, abs=0.05)
    for name in (RANDOM, SHUFFLED):
        assert two_way[name] < 0.75
    row = table.loc[(OURS, "PixCorr")]
    assert row.base in (MEAN, RANDOM, SHUFFLED)
    expected = (row["mean"] - table.loc[(row.base, "PixCorr"), "mean"]) / (
        table.loc[(CEILING, "PixCorr"), "mean"] - table.loc[(row.base, "PixCorr"), "mean"]
    )
    assert row.share == pytest.approx(expected)
    assert row.share_low < row.share < row.share_high
    assert 0 < table.loc[(OURS, "distance [corners]"), "share"] < 1  # where lower is better, too
    assert found.evaluations[OURS].table["PixCorr"].mean() == pytest.approx(row["mean"])
    wide = found.wide()
    assert wide.loc[OURS, "role"] == "ours"
    assert wide.loc[OURS, "PixCorr"]["n"] == 12


def test_a_ceiling_below_the_base_gives_no_share(scorer):
    found = image_conditions(scorer, answers(0.6), ceiling=answers(1.0))
    row = found.table.set_index(["condition", "metric"]).loc[(OURS, "PixCorr")]
    assert np.isnan(row.share)
    assert "no better than" in row.note


def test_a_ceiling_that_is_not_told_from_the_base_gives_no_share(scorer):
    """The ratio to a gap near zero could be any number, and would pass any bar."""
    hidden = {"blind": ("no-brain baseline", answers(0.9, seed=900))}
    found = image_conditions(scorer, answers(0.1), ceiling=answers(0.897, seed=901), others=hidden)
    table = found.table.set_index(["condition", "metric"])
    assert table.loc[(CEILING, "PixCorr"), "mean"] > table.loc[("blind", "PixCorr"), "mean"]
    row = table.loc[(OURS, "PixCorr")]
    assert row.base == "blind"
    assert np.isnan([row.share, row.share_low, row.share_high]).all()
    assert "not told apart" in row.note


def test_the_random_baselines_are_the_same_in_any_order(scorer):
    one, two = (
        image_conditions(scorer, items).evaluations for items in (answers(0.5), answers(0.5)[::-1])
    )
    for name in (RANDOM, SHUFFLED):
        a, b = (e[name].table.set_index("stimulus").sort_index() for e in (one, two))
        pd.testing.assert_frame_equal(a, b)
    assert (one[SHUFFLED].table["PixCorr"] < 0.9).all()  # nobody got the own answer


def test_answers_are_exchanged_among_means_of_any_number_of_trials(scorer):
    made = [replace(one, repeat=1 + k) for k, one in enumerate(answers(0.0))]
    assert len(image_conditions(scorer, made).evaluations[SHUFFLED]) == len(made)


def test_others_have_roles_and_names_of_their_own(scorer):
    extra = {"blind": ("no-brain baseline", answers(1.0))}
    assert "blind" in image_conditions(scorer, answers(0.5), others=extra).evaluations
    with pytest.raises(UsageError, match="two conditions are called"):
        image_conditions(scorer, answers(0.5), others={OURS: ("ours", answers(0.5))})
    with pytest.raises(UsageError, match="unknown role"):
        image_conditions(scorer, answers(0.5), others={"x": ("best", answers(0.5))})


def test_a_picture_is_computed_once(scorer, monkeypatch):
    seen = []
    call = Corners.__call__
    monkeypatch.setattr(Corners, "__call__", lambda s, x: (seen.append(len(x)), call(s, x))[1])
    image_conditions(scorer, answers(0.5))
    assert sum(seen) == 12 + 1  # the answers and the mean picture; training pictures are known


def test_mean_picture():
    black, white = Image.new("RGB", (4, 3)), Image.new("RGB", (8, 6), (255, 255, 255))
    mean = mean_picture([black, white])
    assert mean.size == (4, 3)
    assert (np.asarray(mean) == 128).all()
