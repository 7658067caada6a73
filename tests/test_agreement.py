"""Agreement: closed forms, published tables, and a bootstrap that draws whole groups."""

import numpy as np
import pandas as pd
import pytest

from neurodiff.core.errors import DataError, UsageError
from neurodiff.metrics.agreement import (
    agreement_table,
    bland_altman,
    ccc,
    feature_class,
    icc,
    repeatability_coefficient,
)

# Shrout & Fleiss 1979, table 2: six targets by four judges
RATINGS = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
)


def test_icc_of_the_published_table():
    assert icc(RATINGS, "2,1") == pytest.approx(0.29, abs=0.005)
    assert icc(RATINGS, "3,1") == pytest.approx(0.71, abs=0.005)
    assert icc(RATINGS, "2,1") == pytest.approx(0.28976, abs=1e-5)
    assert icc(RATINGS, "3,1") == pytest.approx(0.71484, abs=1e-5)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1.0, 2.0), (0.5, 0.0), (-2.0, 3.0)])
def test_ccc_of_an_affine_map_in_closed_form(scale, shift):
    """y = a x + b: 2 a s^2 / (s^2 + a^2 s^2 + ((a - 1) m + b)^2)."""
    x = np.random.default_rng(0).normal(3.0, 2.0, size=50)
    m, s2 = x.mean(), x.var()
    expected = 2 * scale * s2 / (s2 + scale**2 * s2 + ((scale - 1) * m + shift) ** 2)
    assert ccc(x, scale * x + shift) == pytest.approx(expected, rel=1e-12)


def test_ccc_is_correlation_times_bias_correction():
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(2, 40))
    y = x + 0.5 * y + 0.3
    v = x.std() / y.std()
    u = (x.mean() - y.mean()) / np.sqrt(x.std() * y.std())
    assert ccc(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1] * 2 / (v + 1 / v + u**2))
    assert ccc(x, y) == ccc(y, x)


def test_what_does_not_vary_has_no_concordance():
    assert np.isnan(ccc(np.full(5, 0.1), np.full(5, 0.1)))
    assert ccc(np.full(5, 0.1), np.full(5, 0.2)) == 0
    assert np.isnan(icc(np.full((5, 2), 0.1)))


def test_repeatability_and_bias_of_known_differences():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert repeatability_coefficient(x, x + np.array([3, -3, 3, -3])) == pytest.approx(
        1.96 * 3, rel=1e-4
    )
    limits = bland_altman(x, x + np.array([1, 3, 1, 3]))
    assert limits.bias == 2
    assert limits.sd == pytest.approx(np.sqrt(4 / 3))
    assert limits.upper - limits.lower == pytest.approx(2 * 1.96 * limits.sd, rel=1e-4)


@pytest.mark.parametrize("function", [ccc, repeatability_coefficient, bland_altman])
@pytest.mark.parametrize(
    ("x", "y", "match"),
    [
        ([1.0], [2.0], "at least 2"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], "shapes"),
        ([1.0, np.nan], [1.0, 2.0], "NaN"),
    ],
)
def test_pairs_that_are_none_are_refused(function, x, y, match):
    with pytest.raises(DataError, match=match):
        function(x, y)


def test_icc_needs_things_and_raters():
    with pytest.raises(DataError, match="at least 2 things"):
        icc(np.ones((1, 4)))
    with pytest.raises(UsageError, match="'2,1' or '3,1'"):
        icc(RATINGS, "1,k")


def tables(slices: int = 12, regions: int = 15, shared: float = 1.0):
    """Features of regions in slices; each slice has its own error, shared by its regions."""
    generator = np.random.default_rng(7)
    group = np.repeat(np.arange(slices), regions)
    base = generator.normal(size=(slices * regions, 3))
    error = shared * generator.normal(size=(slices, 3))[group]
    names = ["stat_mean", "cm_contrast_3D_avg", "cm_corr_3D_avg"]
    a = pd.DataFrame(base, columns=names)
    b = pd.DataFrame(base + error + 0.1 * generator.normal(size=base.shape), columns=names)
    return a, b, group


def compare(a, b, group, **given):
    options = {"subjects": ["p"] * len(a), "phantom": [True] * len(a)} | given
    return agreement_table(a, b, group, **options)


def test_the_table_agrees_with_the_functions():
    a, b, group = tables()
    found = compare(a, b, group).features.set_index("feature")
    for name in a:
        row = found.loc[name]
        assert row.ccc == pytest.approx(ccc(a[name], b[name]), rel=1e-12)
        assert row.icc_21 == pytest.approx(icc(np.stack([a[name], b[name]], 1)), rel=1e-12)
        assert row.repeatability == pytest.approx(repeatability_coefficient(a[name], b[name]))
        assert row.bias == pytest.approx((b[name] - a[name]).mean())
        assert row.ccc_low < row.ccc < row.ccc_high
    assert found.feature_class.tolist() == ["stat", "cm", "cm"]


def test_classes_are_means_of_their_features():
    a, b, group = tables()
    result = compare(a, b, group)
    classes = result.classes.set_index("feature_class")
    features = result.features
    own = features.ccc[features.feature_class == "cm"]
    assert classes.loc["cm", "ccc"] == pytest.approx(own.mean())
    assert classes.loc["cm", "features"] == 2
    assert classes.loc["all", "ccc"] == pytest.approx(features.ccc.mean())
    assert classes.loc["all", "above_085"] == (features.ccc >= 0.85).sum()


def test_large_numbers_with_a_small_spread_keep_their_digits():
    a, b, group = tables()
    found = compare(a + 1e7, b + 1e7, group).features.ccc
    np.testing.assert_allclose(found, compare(a, b, group).features.ccc, rtol=1e-6)


def test_drawing_regions_instead_of_slices_would_be_far_too_sure():
    """The error is a slice's own, so regions by themselves give a much shorter interval."""
    a, b, group = tables()
    slices = compare(a, b, group).features
    regions = compare(a, b, np.arange(len(a))).features
    width = (slices.ccc_high - slices.ccc_low) / (regions.ccc_high - regions.ccc_low)
    assert (width > 2).all()


def test_equal_groups_leave_nothing_to_chance():
    """Where every slice holds the same numbers, every bootstrap sample is the same."""
    a, b, _ = tables(slices=1)
    a, b = (pd.concat([t] * 6, ignore_index=True) for t in (a, b))
    found = compare(a, b, np.repeat(np.arange(6), 15)).features
    np.testing.assert_allclose(found.ccc_low, found.ccc, rtol=1e-12)
    np.testing.assert_allclose(found.ccc_high, found.ccc, rtol=1e-12)


def test_the_same_seed_gives_the_same_interval_and_another_does_not():
    a, b, group = tables()
    one = compare(a, b, group, bootstrap=(200, 0.9, 0)).features
    two = compare(a, b, group, bootstrap=(200, 0.9, 0)).features
    three = compare(a, b, group, bootstrap=(200, 0.9, 1)).features
    assert one.equals(two)
    assert not one.ccc_low.equals(three.ccc_low)


def test_the_summary_prints_phantoms_patients_and_what_they_do_not_say():
    a, b, group = tables(slices=4)
    one = compare(a, b, group)
    assert "60 pairs of regions in 4 slices of 1 phantom and 0 patients" in one.summary()
    assert "Only 4 slices" in one.summary()
    assert "nothing about another one" in one.summary()
    patients = [f"s{g // 2}" for g in group]
    two = compare(a, b, group, subjects=patients, phantom=[p == "s0" for p in patients])
    assert (two.phantoms, two.patients) == (1, 1)
    assert "1 phantom and 1 patient;" in two.summary()


def test_one_group_has_no_interval_and_says_so():
    a, b, group = tables(slices=1)
    result = compare(a, b, group)
    assert result.features.ccc_low.isna().all()
    assert "All regions lie in one slice" in result.summary()
    assert "(no interval)" in result.summary()


def test_pairs_with_a_missing_feature_are_left_out_and_counted():
    a, b, group = tables()
    a.iloc[3, 0] = np.nan
    b.iloc[5, 0] = np.inf
    b["extra"] = 1.0
    a["constant"] = b["constant"] = 0.1
    a["never"], b["never"] = np.nan, 1.0
    result = compare(a, b, group)
    found = result.features.set_index("feature")
    keep = np.setdiff1d(np.arange(len(a)), [3, 5])
    assert found.loc["stat_mean", "pairs"] == len(a) - 2
    assert found.loc["stat_mean", "ccc"] == pytest.approx(
        ccc(a["stat_mean"][keep], b["stat_mean"][keep])
    )
    assert np.isnan(found.loc["constant", "ccc"])
    assert np.isnan(found.loc["never", "icc_21"])
    assert result.left_out == ("extra",)
    classes = result.classes.set_index("feature_class")
    assert classes.loc["all", "features"] == 5
    assert classes.loc["all", "defined"] == 3


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda a, b: (a[:1], b[:1], {}), DataError, "1 pairs of regions"),
        (lambda a, b: (a, b[::-1], {}), DataError, "describe other regions"),
        (lambda a, b: (a, b.add_suffix("x"), {}), DataError, "no feature in common"),
        (lambda a, b: (a, b, {"subjects": ["p"]}), UsageError, "1 subjects for 180"),
        (
            lambda a, b: (a, b, {"subjects": np.arange(len(a))}),
            UsageError,
            "lies in 15 subjects",
        ),
        (
            lambda a, b: (a, b, {"phantom": [True, *[False] * (len(a) - 1)]}),
            UsageError,
            "both a phantom and a patient",
        ),
        (lambda a, b: (a, b, {"bootstrap": (100, 95.0, 0)}), UsageError, "confidence within"),
    ],
)
def test_tables_that_cannot_be_compared(change, error, match):
    a, b, group = tables()
    a, b, given = change(a, b)
    with pytest.raises(error, match=match):
        compare(a, b, group[: len(a)], **given)


def test_classes_by_either_name():
    assert feature_class("szm_sze_3D") == "szm"
    assert feature_class("original_glszm_SmallAreaEmphasis") == "glszm"
