"""Scores of decoded pictures: known answers, protocols, published cards, bad input."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from neurodiff.analysis import image_networks, image_scorer
from neurodiff.analysis.image_evaluation import ImageScorer, evaluate_images
from neurodiff.analysis.image_networks import ImageNetworks, find_image_networks
from neurodiff.analysis.image_protocols import (
    IMAGE_PROTOCOLS,
    beside_published_images,
    image_reasons_against,
    metric_records,
    published_images,
    read_image_card,
)
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.stimuli import Stimuli
from neurodiff.pipelines.pictures import Picture

IDS = [f"s{k:02d}" for k in range(9)]
PICTURES = {
    name: Image.fromarray(
        np.random.default_rng(k).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    ).resize((32, 32))
    for k, name in enumerate(IDS)
}


@pytest.fixture(autouse=True)
def few_pixels(monkeypatch):
    monkeypatch.setattr(image_scorer, "PIXELS", 48)


class Corners:
    """Thumbnails as features: deterministic, and no neighbour counts."""

    name, published = "corners", False

    def __call__(self, images):
        small = [Image.fromarray(image).resize((5, 5)) for image in images]
        return np.stack([np.asarray(image, np.float32).ravel() for image in small])


def stimuli(categories=("a", "b", "c"), pictures=PICTURES):
    table = pd.DataFrame(
        {"id": IDS, "category": [categories[k % len(categories)] for k in range(9)]}
    )
    return Stimuli(table, None, pictures.__getitem__)


def answers(pictures=PICTURES, subject="s1", ids=IDS, sample=0):
    return [Picture(subject, name, 0, sample, pictures[name]) for name in ids]


def evaluate(pictures, truth=None, protocol="neurodiff-1", **options):
    options.setdefault("networks", [Corners()])
    options.setdefault("permutations", 50)
    return evaluate_images(pictures, truth or stimuli(), protocol, **options)


def test_the_true_pictures_score_perfectly_by_every_protocol():
    for protocol in IMAGE_PROTOCOLS:
        found = evaluate(answers(), protocol=protocol)
        means = found.summary()["mean"]
        assert means[["PixCorr", "SSIM 2d", "SSIM columns"]].to_numpy() == pytest.approx(1)
        assert means.filter(like="2-way").to_numpy() == pytest.approx(1)
        assert means["distance [corners]"] == pytest.approx(0, abs=1e-12)
        assert found.summary().loc["2-way [corners]", "p"] == pytest.approx(1 / 51)


def test_a_decoder_with_one_answer_is_at_chance_or_lost_where_ties_are():
    """Published: 0.5 where true pictures vary, about 0 where reconstructions do."""
    one = {name: PICTURES["s00"] for name in IDS}
    found = evaluate(answers(one)).summary()["mean"]
    assert found["2-way [corners]"] == pytest.approx(0.5)
    assert found["2-way, reconstructions vary [corners]"] == pytest.approx(0.5)
    assert found["2-way within [corners]"] == pytest.approx(0.5)
    lost = evaluate(answers(one), protocol="brain-diffuser-2023").summary()["mean"]
    assert lost["2-way [corners]"] == pytest.approx(0.5)
    assert lost["2-way, reconstructions vary [corners]"] == 0


def test_a_decoder_of_categories_only_scores_the_reference_and_half_within():
    """Each answer is its category's picture; pictures of a category are nearly alike."""
    rng = np.random.default_rng(0)
    base = {c: rng.integers(0, 256, (6, 6, 3)) for c in "abc"}
    near = {
        name: Image.fromarray(
            np.clip(base["abc"[k % 3]] + rng.integers(-3, 4, (6, 6, 3)), 0, 255).astype(np.uint8)
        ).resize((32, 32))
        for k, name in enumerate(IDS)
    }
    answer = {
        n: Image.fromarray(base["abc"[k % 3]].astype(np.uint8)).resize((32, 32))
        for k, n in enumerate(IDS)
    }
    found = evaluate(answers(answer), stimuli(pictures=near)).summary()
    reference = ((9 - 3) + (3 - 1) / 2) / 8
    assert found.loc["2-way [corners]", "reference"] == pytest.approx(reference)
    assert found.loc["2-way [corners]", "mean"] == pytest.approx(reference)
    assert found.loc["2-way within [corners]", "mean"] == pytest.approx(0.5)
    assert found.loc["2-way within [corners]", "p"] > 0.05
    assert found.loc["2-way [corners]", "p"] < 0.05


def test_means_of_one_two_and_three_trials_are_compared_with_each_other():
    """Of a mean, the column repeat counts trials, as in NSD's 37 sessions; it makes no groups."""
    made = answers(dict(zip(IDS, [PICTURES[n] for n in np.roll(IDS, 1)], strict=True)))
    mixed = [replace(one, repeat=1 + k % 3) for k, one in enumerate(made)]
    alike = [replace(one, repeat=3) for one in made]
    one, other = (evaluate(pictures).table.drop(columns="repeat") for pictures in (mixed, alike))
    pd.testing.assert_frame_equal(one, other)
    # second answers are a group of their own
    again = evaluate([*mixed, *(replace(one, repeat=4) for one in mixed[:2])])
    pd.testing.assert_frame_equal(again.table.iloc[:9].drop(columns="repeat"), one)
    assert again.table["2-way [corners]"].notna().all()


def test_one_answer_a_stimulus_at_a_time_and_other_subjects_do_not_matter():
    alone = evaluate(answers())
    other = {name: PICTURES[IDS[-1 - k]] for k, name in enumerate(IDS)}
    both = evaluate(answers() + answers(other, "s2") + answers(other, sample=1))
    columns = alone.metrics
    pd.testing.assert_frame_equal(both.table[columns].iloc[:9], alone.table[columns])
    assert both.summary().loc["PixCorr", "n"] == 9  # pictures, not answers
    first = both.summary(subject="s2")
    assert first.loc["2-way [corners]", "mean"] < 0.6
    with pytest.raises(UsageError, match=r"no subject 's3' .* s1, s2"):
        both.summary(subject="s3")


def test_order_does_not_matter():
    blurred = {n: p.resize((3, 3)).resize((32, 32)) for n, p in PICTURES.items()}
    forward, backward = (evaluate(answers(blurred, ids=ids)) for ids in (IDS, IDS[::-1]))
    a, b = (e.table.set_index("stimulus").sort_index() for e in (forward, backward))
    pd.testing.assert_frame_equal(a, b)
    pd.testing.assert_frame_equal(
        forward.summary()[["mean", "p"]], backward.summary()[["mean", "p"]]
    )


def test_stimuli_without_a_picture_are_listed():
    some = {name: PICTURES[name] for name in IDS[:7]}

    def load(name):
        if name not in some:
            raise MissingDataError(f"no {name}")
        return some[name]

    truth = Stimuli(pd.DataFrame({"id": IDS}), None, load)
    found = evaluate(answers(), truth)
    assert found.no_truth == IDS[7:]
    assert found.summary().loc["PixCorr", "n"] == 7
    assert any("no scores within clusters" in note for note in found.notes)
    assert "2-way within [corners]" not in found.table
    nothing = evaluate(answers(), Stimuli(pd.DataFrame({"id": IDS}), None, None))
    assert nothing.no_truth == IDS
    assert nothing.metrics == []


def test_clusters_of_training_pictures_where_there_are_no_categories():
    train = [p for p in PICTURES.values() for _ in range(3)]
    found = evaluate(answers(), stimuli(categories=("",)), train=train)
    assert any("k-means, by corners" in note for note in found.notes)
    assert found.table["nearest train [corners]"].to_numpy() == pytest.approx(1)
    assert "nearest train [corners]" not in found.metrics


def test_a_picture_of_one_colour_counts_0_and_is_told():
    grey = PICTURES | {"s03": Image.new("RGB", (32, 32), (90, 90, 90))}

    class Robust(Corners):
        def __call__(self, images):
            return super().__call__(images) + np.arange(75, dtype=np.float32)

    found = evaluate(answers(grey), networks=[Robust()])
    row = found.table.set_index("stimulus").loc["s03"]
    assert row.PixCorr == 0
    assert "one colour" in row.note
    assert any(note.startswith("1 reconstructions are of one colour") for note in found.notes)
    with pytest.raises(DataError, match="features of corners: row 3 of the features is constant"):
        evaluate(answers(grey))
    with pytest.raises(DataError, match="stimulus 's03' is one colour"):
        evaluate(answers(), stimuli(pictures=grey))


def test_bad_input_is_one_sentence():
    with pytest.raises(UsageError, match="no picture to score"):
        evaluate([])
    with pytest.raises(UsageError, match=r"no protocol 'neurodiff-2' for pictures.*Did you mean"):
        evaluate(answers(), protocol="neurodiff-2")
    with pytest.raises(UsageError, match="'s00', repeat 0, sample 0 is there twice"):
        evaluate(answers() + answers())
    with pytest.raises(UsageError, match="no stimulus 'x'"):
        evaluate([Picture("s1", "x", 0, 0, PICTURES["s00"])])
    with pytest.raises(UsageError, match="permutations is 1"):
        evaluate(answers(), permutations=1)
    with pytest.raises(UsageError, match="two networks have one name"):
        evaluate(answers(), networks=[Corners(), Corners()])
    other = ImageNetworks((Corners(),), protocol="mindeye-2023")
    with pytest.raises(UsageError, match="take pictures as mindeye-2023 does"):
        evaluate(answers(), networks=other)
    scorer = ImageScorer(stimuli(), IDS[:5], networks=[Corners()])
    with pytest.raises(UsageError, match="'s08' is not among those prepared"):
        scorer.score(answers(ids=["s08"]))

    class Broken(Corners):
        def __call__(self, images):
            return np.full((len(images), 3), np.nan)

    with pytest.raises(DataError, match="corners returned"):
        evaluate(answers(), networks=[Broken()])


def test_one_item_has_no_identification():
    found = evaluate(answers(ids=["s00"])).summary()
    assert found.loc["PixCorr", "n"] == 1
    assert np.isnan(found.loc["PixCorr", "low"])
    assert found.loc["2-way [corners]", "n"] == 0


def test_the_binomial_p_is_shown_by_its_protocol_alone_and_flagged():
    assert "p binomial (legacy)" not in evaluate(answers()).summary()
    legacy = evaluate(answers(), protocol="brain-diffuser-2023").summary()
    assert legacy.loc["2-way [corners]", "p binomial (legacy)"] < 1e-10
    assert np.isnan(legacy.loc["PixCorr", "p binomial (legacy)"])


def test_without_weights_every_network_is_named_with_the_way_to_get_it(monkeypatch, tmp_path):
    monkeypatch.delenv("NEURODIFF_WEIGHTS", raising=False)
    for protocol in IMAGE_PROTOCOLS:
        lines = find_image_networks(protocol=protocol).lines()
        names = [line.split(" is not available")[0] for line in lines]
        weights = IMAGE_PROTOCOLS[protocol].efficientnet_weights
        assert names == [
            "AlexNet",
            "Inception v3",
            "CLIP ViT-L/14",
            f"EfficientNet-B1 {weights}",
            "SwAV ResNet-50",
            "EfficientNet-Lite0",
        ]
    assert "--weights DIR" in lines[0]
    assert "torchvision" in lines[0]
    found = evaluate_images(answers(), stimuli(), permutations=2)
    assert found.metrics == ["PixCorr", "SSIM 2d", "SSIM columns"]
    assert len(found.notes) == 7
    with pytest.raises(MissingDataError, match="is no folder"):
        find_image_networks(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["brain-diffuser-2023", "mindeye-2023"])
def test_cards_name_columns_of_ours_and_mark_what_is_unsure(name):
    card = read_image_card(name)
    rules = IMAGE_PROTOCOLS[name]
    assert card.metrics["SSIM"].ours == rules.ssim
    assert rules.efficientnet_weights in card.metrics["EffNet-B"].ours
    table = published_images(card)
    own = next(row for row in card.published if row.sessions == 37)
    cells = table.loc[f"{own.method} (37 sessions)"]
    assert cells["CLIP"].endswith("(?)")
    assert isinstance(cells["PixCorr"], float)
    assert all(0 <= value <= 1 for row in card.published for value in row.values.values())
    assert all(row.apart for row in card.published if row.sessions == 0)


def test_published_figures_are_those_of_the_papers():
    table = published_images(read_image_card("mindeye-2023"))
    row = table.loc["Brain-Diffuser (40 sessions)"]
    assert list(row)[:8] == [0.273, 0.365, 0.944, 0.966, 0.913, 0.909, 0.728, 0.421]
    assert table.loc["Wills Aligner", "AlexNet(2)"] == "not found"


def test_nothing_is_merged_that_is_not_comparable():
    card = read_image_card("mindeye-2023")
    fits = {"protocol": "mindeye-2023", "simulated": False, "sessions": 40}
    assert image_reasons_against("2-way [AlexNet(2)]", card, **fits) == []
    for name, options, reason in (
        ("2-way [EfficientNet-Lite0]", {}, "the network is EfficientNet-Lite0"),
        ("distance [EfficientNet-B1 V1]", {}, "the network is EfficientNet-B1 V1"),
        ("SSIM columns", {}, "has no SSIM columns"),
        ("2-way, reconstructions vary [AlexNet(2)]", {}, "has no 2-way, reconstructions"),
        ("PixCorr", {"simulated": True}, "simulated"),
        ("PixCorr", {"sessions": None}, "not those published"),
        ("PixCorr", {"sessions": 12}, "no published row has 12 sessions"),
        ("PixCorr", {"protocol": "neurodiff-1"}, "the protocol is neurodiff-1"),
    ):
        found = image_reasons_against(name, card, **(fits | options))
        assert len(found) == 1
        assert reason in found[0]
    table = beside_published_images({"PixCorr": 0.3}, card, label="ours", **fits)
    assert table.index[-1] == "ours (40 sessions)"
    assert all("(40 sessions)" in name for name in table.index)
    assert table.iloc[-1]["SSIM"] == "not computed"
    with pytest.raises(UsageError, match=r"cannot stand in one table.*SSIM columns"):
        beside_published_images({"PixCorr": 0.3, "SSIM columns": 0.3}, card, label="ours", **fits)


def test_records_for_the_page():
    (record,) = metric_records(["distance [corners]"])
    assert record["higher_is_better"] is False
    assert record["name"] == "distance [corners]"


def test_mindeye_holds_pictures_at_256_before_anything_else():
    seen = []

    class Watch(Corners):
        def __call__(self, images):
            seen.append(images.shape[1:])
            return super().__call__(images)

    evaluate(answers(), protocol="mindeye-2023", networks=[Watch()])
    assert set(seen) == {(256, 256, 3)}
    seen.clear()
    evaluate(answers(), networks=[Watch()])
    assert set(seen) == {(32, 32, 3)}


def test_networks_may_be_given_with_their_notes():
    known = ImageNetworks((Corners(),), ("CLIP is not available",))
    found = evaluate(answers(), networks=known)
    assert "CLIP is not available" in found.notes
    assert image_networks.STANDS_IN in found.notes[0]
    assert "9 items, neurodiff-1" in repr(found)
    assert "<table" in found._repr_html_()
