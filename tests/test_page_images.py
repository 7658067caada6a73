"""The page of decoded pictures: nothing chosen by hand, every anchor beside the score."""

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from neurodiff.analysis import image_scorer
from neurodiff.analysis.image_conditions import image_conditions
from neurodiff.analysis.image_evaluation import ImageScorer, evaluate_images
from neurodiff.analysis.image_protocols import published_images, read_image_card
from neurodiff.analysis.page_images import (
    ImageFindings,
    bottleneck_frame,
    dimension_table,
    image_report,
    nearness_table,
    picture_grids,
    score_table,
    subject_table,
    write_image_page,
)
from neurodiff.analysis.report import PictureGrid, Report, ReportData
from neurodiff.core.errors import UsageError
from neurodiff.core.stimuli import Stimuli
from neurodiff.metrics.dimension import bottleneck_curve
from neurodiff.pipelines.pictures import Picture

IDS = [f"scene-{k:02d}" for k in range(14)]
METRIC = "2-way [corners]"


def noise(seed):
    values = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((24, 24))


PICTURES = {name: noise(k) for k, name in enumerate(IDS)}


class Corners:
    name, published = "corners", False

    def __call__(self, images):
        small = [Image.fromarray(image).resize((5, 5)) for image in images]
        return np.stack([np.asarray(image, np.float32).ravel() for image in small])


def answers(share, seed=500):
    return [
        Picture("s1", name, 0, 0, Image.blend(PICTURES[name], noise(seed + k), share))
        for k, name in enumerate(IDS)
    ]


@pytest.fixture(scope="module")
def conditions():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_scorer, "PIXELS", 32)
        truth = Stimuli(pd.DataFrame({"id": IDS, "category": ["a", "b"] * 7}), None, PICTURES.get)
        train = [noise(k) for k in range(100, 120)]
        scorer = ImageScorer(truth, IDS, networks=[Corners()], train=train, permutations=20)
        return image_conditions(scorer, answers(0.6), ceiling=answers(0.1))


def grids(conditions, **options):
    table = conditions.evaluations["reconstruction"].table
    return picture_grids(PICTURES, {"reconstruction": answers(0.6)}, table, METRIC, **options)


class Reader(HTMLParser):
    """Tags that are open, pictures with their words, and addresses that would be fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.alts, self.addresses = [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "img":
            self.alts.append(attrs["alt"])
        self.addresses += [attrs[k] for k in ("src", "href") if k in attrs]
        if tag not in ("img", "meta", "link", "col", "br", "line", "path", "rect", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag


def test_the_page_holds_every_item_and_asks_for_nothing(conditions, tmp_path):
    curve = bottleneck_curve(lambda rank: np.linspace(0.4, 0.6, 14) + rank / 100, (1, 5, 10))
    findings = ImageFindings(
        title="Pictures <decoded>",
        simulated=True,
        conditions=conditions,
        grids=grids(conditions),
        bottleneck={"reconstruction": curve},
        bottleneck_metric=METRIC,
        rois=pd.DataFrame({"region": ["V1"], "2-way": [0.7]}),
        published=published_images(read_image_card("mindeye-2023")),
        notes=["a limit"],
    )
    path = write_image_page(tmp_path / "page.html", findings)
    text = path.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    for name in IDS:
        assert f"shown, {name}" in reader.alts
        assert f"reconstruction, {name}" in reader.alts
    assert all(address.startswith(("data:", "#")) for address in reader.addresses)
    assert "Pictures &lt;decoded&gt;" in text
    for words in ("All 14 items", "Worst 4 by", "Bottleneck", "Region by region", "Published fig"):
        assert words in text
    assert "simulated subjects and pictures" in text
    assert "(?)" in text
    numbers = image_report(findings).to_json()
    assert numbers["grids"][0]["items"][0]["label"] == "scene-00"
    assert numbers["conditions"]["ceiling: true features, same generator"]["role"] == "ceiling"
    assert any("reward blur" in note for note in numbers["notes"])
    assert any("stand-in" in note for note in numbers["notes"])


def test_the_score_table_has_all_anchors(conditions):
    table = score_table(conditions).set_index("metric")
    row = table.loc[METRIC]
    assert row["chance"] == "0.500" or row["chance"].startswith(("0.4", "0.5"))
    assert "(" in row["best without a brain"]
    assert row["cluster only"] == "0.769"  # ((14 - 7) + (7 - 1) / 2) / 13
    assert row["way"] != "–"
    assert table.loc["SSIM 2d", "p"] == "–"


def test_many_items_are_drawn_by_the_seed_and_not_by_result(conditions):
    first, again, other = (grids(conditions, limit=5, seed=seed)[0] for seed in (0, 0, 1))
    labels = [[label for label, _, _ in grid.items] for grid in (first, again, other)]
    assert labels[0] == labels[1] != labels[2]
    assert len(set(labels[0])) == 5
    assert first.title == "5 of 14 items"
    assert "seed 0" in first.why


def test_worst_and_best_are_by_rank_whatever_the_direction(conditions):
    table = conditions.evaluations["reconstruction"].table
    for metric, better in (("PixCorr", 1), ("distance [corners]", -1)):
        made = picture_grids(PICTURES, {"reconstruction": answers(0.6)}, table, metric)
        values = table.set_index("stimulus")[metric] * better
        worst, _, best = ([label for label, _, _ in grid.items] for grid in made[1:])
        assert worst[0] == values.idxmin()
        assert best[-1] == values.idxmax()


def test_bad_grids_are_one_sentence(conditions):
    table = conditions.evaluations["reconstruction"].table
    with pytest.raises(UsageError, match="no 'CLIP' to rank"):
        picture_grids(PICTURES, {"x": answers(0.5)}, table, "CLIP")
    with pytest.raises(UsageError, match="no true picture of stimulus 'scene-00'"):
        picture_grids({}, {"x": answers(0.5)}, table, METRIC)
    wrong = PictureGrid(title="t", why="", names=("a", "b"), items=[("i", [None], "")])
    with pytest.raises(ValueError, match="i has 1 pictures"):
        Report(ReportData(title="t", simulated=False, grids=[wrong])).html()


def test_a_missing_picture_is_shown_as_missing():
    grid = PictureGrid(title="t", why="", names=("a", "b"), items=[("i", [noise(0), None], "")])
    text = Report(ReportData(title="t", simulated=False, grids=[grid])).html()
    assert '<span class="none">none</span>' in text


def test_dimensions_of_collapsed_predictions():
    rng = np.random.default_rng(0)
    train, true = rng.standard_normal((40, 3, 8)), rng.standard_normal((20, 3, 8))
    collapsed = rng.standard_normal((20, 1, 1)) * np.ones((20, 3, 8))
    row = dimension_table({"vision": (collapsed, true, train)}, (1, 24)).iloc[0]
    assert row["dimensions, predicted"] == pytest.approx(1)
    assert row["dimensions, true"] > 5
    assert row["in 24 training axes, true"] == pytest.approx(1)


def test_subjects_have_columns_of_their_own():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_scorer, "PIXELS", 32)
        truth = Stimuli(pd.DataFrame({"id": IDS}), None, PICTURES.get)
        two = [replace(one, subject="s2") for one in answers(0.0)]
        found = evaluate_images(answers(1.0) + two, truth, networks=[Corners()], permutations=5)
    table = subject_table(found).set_index("metric")
    assert list(table) == ["s1", "s2", "mean over subjects"]
    assert table.loc["PixCorr", "s2"].startswith("1.00")
    with pytest.raises(UsageError, match="no 'nearest train"):
        nearness_table(found, METRIC, "corners")


def test_nearness_orders_pictures_by_the_training_set(conditions):
    found = conditions.evaluations["reconstruction"]
    table = nearness_table(found, METRIC, "corners", parts=3)
    assert list(table["n"]) == [5, 5, 4]
    whole = (table["mean"] * table["n"]).sum() / 14
    assert whole == pytest.approx(found.table[METRIC].mean())
    with pytest.raises(UsageError, match="14 pictures make no 9 parts"):
        nearness_table(found, METRIC, "corners", parts=9)


def test_no_bottleneck_no_curve():
    assert bottleneck_frame({}, METRIC) is None
