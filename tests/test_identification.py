"""n-way identification: chance, ties and draws in closed form; published code as golden numbers."""

import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from neurodiff.metrics import identification as ident
from neurodiff.metrics.statistics import binomial_p_legacy

GOLDEN = json.loads((Path(__file__).parent / "golden" / "metrics_identification.json").read_text())


def quad(shape: tuple, w: float, phase: float) -> np.ndarray:
    """Q of the golden file."""
    i = np.arange(math.prod(shape))
    return np.cos(w * ((7 * i * i + 3 * i) % 10007) + phase).reshape(shape)


def published_features() -> tuple[np.ndarray, np.ndarray]:
    truth = quad((30, 50), 0.37, 0.3)
    return 0.15 * truth + quad((30, 50), 0.53, 1.1), truth


def published_probabilities() -> tuple[np.ndarray, np.ndarray]:
    logits = 3 * quad((3, 60), 0.37, 0.7)
    odds = np.exp(logits)
    classes = np.array(GOLDEN["metrics.n_way_top1"]["inputs"]["class_ids"])
    return odds / odds.sum(axis=1, keepdims=True), classes


@pytest.mark.parametrize("n", [2, 3, 7, 10])
def test_constant_scores_are_at_chance_to_the_last_bit(n):
    rates = ident.n_way(np.full((4, 10), 0.3), np.arange(4), n)
    assert (rates == ident.chance(n)).all()


@pytest.mark.parametrize("n", [2, 5, 10])
def test_perfect_scores_are_always_right_and_reversed_ones_never(n):
    scores = np.eye(10)
    assert (ident.n_way(scores, np.arange(10), n) == 1).all()
    assert (ident.n_way(-scores, np.arange(10), n) == 0).all()


def test_known_order_gives_the_hypergeometric():
    """Truth at rank r of 8: all n - 1 draws must fall among the r below it."""
    scores = np.arange(8.0)[None].repeat(8, axis=0)
    for n in (2, 3, 5):
        expected = [math.comb(r, n - 1) / math.comb(7, n - 1) for r in range(8)]
        np.testing.assert_allclose(ident.n_way(scores, np.arange(8), n), expected, rtol=1e-15)


@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_expectation_is_the_mean_over_all_draws(n):
    """Every set of distractors is listed, with ties shared among the best."""
    row = np.array([3.0, 3.0, 1.0, 3.0, 5.0, 2.0, 0.0])
    credits = []
    for drawn in combinations([1, 2, 3, 4, 5, 6], n - 1):
        others = row[list(drawn)]
        credits.append(0.0 if (others > 3).any() else 1 / (1 + (others == 3).sum()))
    got = ident.n_way(row[None], np.array([0]), n)
    assert got[0] == pytest.approx(np.mean(credits), abs=1e-15)


def test_two_way_counts_ties_one_half():
    scores = np.array([[0.5, 0.5, 0.1, 0.9, 0.5]])
    assert ident.two_way(scores, np.array([0]))[0] == (1 + 0.5 + 0.5) / 4


def test_allowed_limits_the_distractors():
    scores = np.array([[0.5, 0.9, 0.1, 0.2]])
    allowed = np.array([[True, False, True, True]])
    assert ident.n_way(scores, np.array([0]), 2)[0] == pytest.approx(2 / 3)
    assert ident.n_way(scores, np.array([0]), 2, allowed=allowed)[0] == 1
    with pytest.raises(ValueError, match="item 0 has 2"):
        ident.n_way(scores, np.array([0]), 4, allowed=allowed)
    assert np.isnan(ident.n_way(scores, np.array([0]), 4, allowed=allowed, too_few="nan")[0])


def test_classifier_expectation_is_the_golden_one():
    probabilities, classes = published_probabilities()
    outputs = GOLDEN["metrics.n_way_top1"]["outputs"]
    true = np.eye(60)[classes]  # any picture whose largest class is that one
    for n in (2, 10):
        expected = [outputs[f"{n}way_row{row}"]["exact_expectation"] for row in range(3)]
        got = ident.classifier_n_way(probabilities, true, n)
        np.testing.assert_allclose(got, expected, atol=1e-12, rtol=0)


def test_sampled_draws_repeat_the_published_code():
    probabilities, classes = published_probabilities()
    outputs = GOLDEN["metrics.n_way_top1"]["outputs"]
    for n in (2, 10):
        for row in range(3):
            got = ident.n_way_sampled(
                probabilities[row : row + 1],
                classes[row : row + 1],
                n,
                generator=np.random.RandomState(1234 + row),
            )
            assert got[0] == pytest.approx(outputs[f"{n}way_row{row}"]["mean"], abs=1e-6)


def test_sampled_draws_approach_the_expectation():
    scores = np.random.default_rng(0).normal(size=(1, 20))
    truth = np.array([int(np.argsort(scores[0])[15])])
    exact = ident.n_way(scores, truth, 3)[0]
    sampled = ident.n_way_sampled(
        scores, truth, 3, generator=np.random.default_rng(1), trials=2000
    )[0]
    assert 0.2 < exact < 0.8
    assert abs(sampled - exact) < 4 * math.sqrt(exact * (1 - exact) / 2000)


def test_sampled_ties_share_the_credit():
    rate = ident.n_way_sampled(
        np.zeros((2, 6)), np.array([0, 5]), 4, generator=np.random.default_rng(0), trials=5
    )
    np.testing.assert_allclose(rate, 1 / 4)


def test_two_way_is_that_of_the_published_code():
    predicted, truth = published_features()
    outputs = GOLDEN["metrics.two_way"]["outputs"]
    got = ident.feature_identification(predicted, truth)
    assert got.mean() == pytest.approx(outputs["two_way_official"], abs=1e-12)
    rows = ident.feature_identification(predicted, truth, candidates="predictions")
    expected = outputs["two_way_rows_variant(recon varies)"]
    assert rows.mean() == pytest.approx(expected, abs=1e-12)
    same = ident.feature_identification(predicted[:1].repeat(30, axis=0), truth)
    assert same.mean() == pytest.approx(outputs["two_way_all_recons_identical"], abs=1e-12)
    np.testing.assert_array_equal(ident.TWO_WAY(predicted, truth), got)


def test_correlation_distance_is_that_of_the_published_code():
    predicted, truth = published_features()
    outputs = GOLDEN["metrics.two_way"]["outputs"]
    distance = ident.correlation_distance(predicted, truth)
    assert distance.mean() == pytest.approx(outputs["mean_correlation_distance"], abs=1e-12)
    assert 1 - distance[0] == pytest.approx(outputs["pixcorr_row0"], abs=1e-12)


def test_known_permutation_of_orthogonal_features():
    """Items 0 and 1 are exchanged: each loses to the other and ties with nobody else."""
    truth = np.eye(5)
    predicted = truth[[1, 0, 2, 3, 4]]
    got = ident.feature_identification(predicted, truth, similarity="cosine")
    # An exchanged item scores 0 on its truth: one above, three equal.
    np.testing.assert_allclose(got, [1.5 / 4, 1.5 / 4, 1, 1, 1])


def test_cosine_keeps_the_mean_and_correlation_removes_it():
    a, b = np.array([[1.0, 2.0, 3.0]]), np.array([[11.0, 12.0, 13.0], [3.0, 6.0, 9.0]])
    np.testing.assert_allclose(ident.similarities(a, b), [[1, 1]])
    cosine = ident.similarities(a, b, similarity="cosine")[0]
    assert cosine[0] < 0.999
    assert cosine[1] == pytest.approx(1)


def test_a_category_guess_is_at_chance_within_the_category():
    """Predictions that know only the category: perfect between, chance within."""
    categories = ["chair"] * 4 + ["lamp"] * 4
    prototypes = np.eye(2).repeat(4, axis=0)
    truth = np.hstack([prototypes, 0.1 * np.eye(8)])
    predicted = np.hstack([prototypes, np.zeros((8, 8))])
    options = {"similarity": "cosine"}
    overall = ident.feature_identification(predicted, truth, **options)
    np.testing.assert_allclose(overall, (4 + 3 / 2) / 7)
    for n in (2, 3, 4):
        within = ident.feature_identification(predicted, truth, n, categories=categories, **options)
        assert (within == 1 / n).all()
    exemplar = ident.feature_identification(truth, truth, categories=categories, **options)
    assert (exemplar == 1).all()


def test_repeats_of_a_stimulus_are_no_distractors():
    truth = np.eye(3)[[0, 0, 1, 2]]
    got = ident.feature_identification(truth, truth, 3, ids=["a", "a", "b", "c"])
    assert (got == 1).all()
    without = ident.feature_identification(truth, truth)
    np.testing.assert_allclose(without, [2.5 / 3, 2.5 / 3, 1, 1])


def test_bad_input_is_named():
    scores, truth = np.zeros((2, 3)), np.array([0, 1])
    with pytest.raises(ValueError, match="1 scores are NaN"):
        ident.n_way(np.array([[np.nan, 1.0]]), np.array([0]))
    with pytest.raises(ValueError, match=r"0 \.\. 2"):
        ident.n_way(scores, np.array([0, 3]))
    with pytest.raises(ValueError, match="at least 2 candidates"):
        ident.n_way(scores, truth, 1)
    with pytest.raises(ValueError, match="too few distractors"):
        ident.n_way(scores, truth, 4)
    with pytest.raises(ValueError, match="row 1 of the features is constant"):
        ident.feature_identification(np.array([[0.0, 1, 2], [0.1, 0.1, 0.1]]), np.eye(3)[:2])
    with pytest.raises(ValueError, match="row 0 of the features is zero"):
        ident.similarities(np.zeros((1, 3)), np.eye(3), similarity="cosine")
    with pytest.raises(ValueError, match="3 ids for 2 items"):
        ident.feature_identification(np.eye(3)[:2], np.eye(3)[:2], ids=["a", "b", "c"])


def test_pairing_rates_are_the_published_scores_in_both_directions():
    predicted, truth = published_features()
    outputs = GOLDEN["metrics.two_way"]["outputs"]
    scores = ident.similarities(predicted, truth)
    for vary, name in (
        ("truths", "two_way_official"),
        ("reconstructions", "two_way_rows_variant(recon varies)"),
    ):
        rate = np.diagonal(ident.pairing_rates(scores, vary=vary)).mean()
        assert rate == pytest.approx(outputs[name], abs=1e-12)
        lost = np.diagonal(ident.pairing_rates(scores, vary=vary, ties="lost")).mean()
        assert lost == pytest.approx(rate, abs=1e-12)  # there are no ties
    same = ident.similarities(predicted[:1].repeat(30, axis=0), truth)
    identical = np.diagonal(ident.pairing_rates(same, ties="lost")).mean()
    assert identical == pytest.approx(outputs["two_way_all_recons_identical"], abs=1e-12)
    rate = float(np.diagonal(ident.pairing_rates(scores)).mean())
    assert binomial_p_legacy(rate, 30) == pytest.approx(outputs["binomial_p_official"], abs=1e-12)
