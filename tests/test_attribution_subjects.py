"""Subjects of which attribution is known: the truth is planted, and the closed forms hold."""

import numpy as np
import pytest
from scipy.stats import chi2, norm

from neurodiff.core.errors import UsageError
from neurodiff.datasets.simulated import attribution_subjects as planted
from neurodiff.datasets.simulated.attribution_expectations import (
    SENTENCES,
    expected_answers,
    oracle_evidence,
    population_correlations,
    population_encoding,
)
from neurodiff.datasets.simulated.attribution_subjects import (
    DESIGNS,
    attribution_subject,
    null_subjects,
)
from neurodiff.datasets.simulated.noise import smooth_noise, smoothing_kernel
from neurodiff.datasets.simulated.patch_noise import PatchNoise
from neurodiff.datasets.simulated.subject import beta_variance, haemodynamic_response
from neurodiff.datasets.surface import VISUAL_AREAS, load_visual_cortex

FEW = ["FFC", "VVC", "V3A", "PHA3"]  # two share, one has its own, one carries nothing


@pytest.fixture(scope="module")
def shared():
    return attribution_subject("shared", areas=FEW, median_ceiling=0.3)


# ------------------------------------------------------------------------------------- noise


def test_noise_of_a_patch_is_that_of_the_whole_cortex():
    """Same kernel rows, unit variance, and the covariance that many draws have."""
    cortex = load_visual_cortex()
    columns = np.flatnonzero(cortex.areas["MT"])
    noise = PatchNoise(columns=columns)
    whole = smoothing_kernel(cortex, noise.fwhm_mm)
    ours = noise.covariance()
    rows = whole[columns].toarray()
    np.testing.assert_allclose(ours, 0.96 * rows @ rows.T + 0.04, atol=1e-6)
    np.testing.assert_allclose(np.diag(ours), 1, atol=1e-5)
    drawn = noise.draw(range(4000))[:, 0]
    reference = smooth_noise((4000, 1), cortex, generator=np.random.default_rng(5))[:, 0, columns]
    weights = np.random.default_rng(0).standard_normal((len(columns), 6))
    wanted = noise.variance_of(weights)
    np.testing.assert_allclose(wanted, np.diag(weights.T @ ours @ weights), rtol=1e-5)
    bounds = np.array(chi2(4000).ppf([1e-5, 1 - 1e-5])) / 4000
    for values in (drawn, reference):
        ratio = (values @ weights).var(axis=0) / wanted
        assert ((ratio > bounds[0]) & (ratio < bounds[1])).all()


def test_frames_of_a_trial_are_autocorrelated_as_fitted():
    noise = PatchNoise(columns=np.flatnonzero(load_visual_cortex().areas["LO1"]), common_share=0.0)
    drawn = noise.draw(range(500), frames=10)
    lagged = (drawn[:, 1:] * drawn[:, :-1]).mean()
    assert lagged == pytest.approx(0.17, abs=0.02)
    assert drawn[:, -1].var() == pytest.approx(1, abs=0.05)  # stationary


def test_noise_refuses_numbers_outside_their_range():
    columns = np.arange(3)
    with pytest.raises(UsageError, match=r"rho is 1\.0"):
        PatchNoise(columns=columns, rho=1.0)
    with pytest.raises(UsageError, match="fwhm_mm is -1"):
        PatchNoise(columns=columns, fwhm_mm=-1.0)
    with pytest.raises(UsageError, match="0 frames"):
        PatchNoise(columns=columns).draw([0], frames=0)


# ------------------------------------------------------------------------------------- truth


@pytest.mark.parametrize("design", DESIGNS)
def test_an_area_responds_to_its_block_and_to_nothing_else(design):
    subject = attribution_subject(design)
    block_of = {area: block for block, areas in subject.carriers.items() for area in areas}
    assert set(subject.rois) == set(subject.areas)
    assert np.sum(list(subject.rois.values()), axis=0).tolist() == [1] * len(subject.columns)
    for area, mask in subject.rois.items():
        responds = subject.readout[:, mask].any(axis=1)
        wanted = np.zeros(subject.n_features, bool)
        if area in block_of:
            wanted[subject.blocks[block_of[area]]] = True
        np.testing.assert_array_equal(responds, wanted)


def test_truth_tells_unique_shared_and_none(shared):
    table = shared.truth.set_index("area")
    kinds = {"FFC": "shared", "VVC": "shared", "V3A": "unique", "PHA3": "none"}
    assert table["carries"].to_dict() == kinds
    assert table.loc["FFC", "with"] == "VVC"
    assert table.loc["PHA3", "next to"] == "VVC"
    assert table["vertices"].sum() == len(shared.columns) == 1071
    assert shared.informative == {"FFC": True, "VVC": True, "V3A": True, "PHA3": False}
    own = attribution_subject("own").truth
    assert own["carries"].value_counts().to_dict() == {"unique": 16, "none": 15}
    assert set(attribution_subject("null").truth["carries"]) == {"none"}
    near = attribution_subject("neighbour").truth.set_index("area")["next to"].to_dict()
    assert near["VMV3"] == "VVC, PHA3"
    assert near["MT"] == ""


def test_the_median_ceiling_is_the_stated_one(shared):
    power = np.square(shared.readout).sum(axis=0)
    carried = power > 0
    assert carried.sum() == sum(shared.rois[a].sum() for a in ("FFC", "VVC", "V3A"))
    ceiling = power / (power + beta_variance(0.17))
    assert np.median(ceiling[carried]) == pytest.approx(0.3, abs=1e-3)


def test_recorded_responses_have_that_ceiling(shared):
    """Variance between stimuli of two repeats' covariance: signal power, without its noise."""
    recording = shared.record(planted.names("test", 1500), split="test", repeats=2)
    first, second = recording.array().reshape(2, 1500, -1)
    power = np.square(shared.readout).sum(axis=0)
    measured = ((first - first.mean(0)) * (second - second.mean(0))).mean(axis=0)
    for mask in shared.rois.values():
        assert measured[mask].mean() == pytest.approx(power[mask].mean(), abs=0.02)
    noise = (first - second).var(axis=0) / 2
    assert noise.mean() == pytest.approx(beta_variance(0.17), rel=0.02)


def test_amplitudes_are_what_frames_give_a_least_squares_estimate(shared):
    ids = planted.names("test", 400)
    trials = shared.record(ids, split="test", frames=True).array()
    assert trials.shape == (400, 10, 1071)
    h = haemodynamic_response()
    estimates = np.einsum("f,tfv->tv", h, trials) / (h @ h)
    noise = estimates - shared.features(ids) @ shared.readout
    assert noise.var() == pytest.approx(shared.beta_noise, rel=0.03)


def test_a_trial_does_not_depend_on_the_others(shared):
    ids = planted.names("test", 6)
    whole = shared.record(ids, split="test", repeats=2)
    part = shared.record([ids[4], ids[1]], split="test")
    np.testing.assert_allclose(part.data[0], whole.data[4], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(part.data[1], whole.data[1], rtol=1e-5, atol=1e-6)
    assert not np.allclose(whole.data[4], whole.data[10])  # the other repeat has its own noise


def test_splits_share_neither_stimuli_nor_runs(shared):
    train, test = shared.study(train=120, test=60)
    assert not set(train.trials["stimulus"]) & set(test.trials["stimulus"])
    assert not set(train.trials["run"]) & set(test.trials["run"])
    assert train.trials["run"].nunique() == 3
    assert train.simulated
    assert train.space.n_features == 1071
    assert attribution_subject("own").study(train=2, test=1)[0].space.name == "fsLR32k-visual-8921"


def test_stimuli_have_their_features_as_factors(shared):
    ids = planted.names("test", 3)
    stimuli = shared.stimuli(ids)
    assert stimuli.simulated
    assert len(stimuli.factor_names) == shared.n_features == 8
    assert stimuli.factor_names[0] == "category:0"
    found = [list(stimuli[name].factors.values()) for name in ids]
    np.testing.assert_allclose(found, shared.features(ids), rtol=1e-6)


def test_null_subjects_are_seeded_empty_and_different():
    first, second = null_subjects(2, seed=3)
    (again,) = null_subjects(1, seed=3, first=2)
    assert not first.readout.any()
    assert not any(first.informative.values())
    ids = planted.names("test", 4)
    np.testing.assert_array_equal(
        second.record(ids, split="test").data, again.record(ids, split="test").data
    )
    assert not np.allclose(first.features(ids), second.features(ids))
    assert first.record(ids, split="test").data.shape == (4, 648)


# ------------------------------------------------------------------------------ expectations


def test_population_correlations_are_those_of_many_trials(shared):
    """10,000 trials of each replacement; Fisher's z bounds the difference."""
    n = 10_000
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((1071, 8)) * 0.05 + shared.readout.T
    features = rng.standard_normal((n, 8))
    noise = np.sqrt(shared.beta_noise) * shared.noise.draw(range(n))[:, 0]
    responses = features @ shared.readout + noise
    region = shared.rois["VVC"]
    for replacement in ("none", "mean", "permuted"):
        changed = responses.copy()
        if replacement == "mean":
            changed[:, region] = 0.7
        if replacement == "permuted":
            changed[:, region] = changed[rng.permutation(n)][:, region]
        decoded = changed @ weights
        found = [np.corrcoef(decoded[:, j], features[:, j])[0, 1] for j in range(8)]
        where = {} if replacement == "none" else {"without": region, "replacement": replacement}
        wanted = population_correlations(shared, weights, **where)
        limit = norm.ppf(1 - 1e-4) / np.sqrt(n - 3)
        np.testing.assert_allclose(np.arctanh(found), np.arctanh(wanted), atol=limit)


def test_population_encoding_is_that_of_many_trials(shared):
    n = 10_000
    rng = np.random.default_rng(2)
    weights = shared.readout + 0.2 * rng.standard_normal(shared.readout.shape)
    weights[:, 0] = 0
    features = rng.standard_normal((n, 8))
    responses = features @ shared.readout + np.sqrt(shared.beta_noise) * rng.standard_normal(
        (n, 1071)
    )
    predicted = features @ weights
    wanted = population_encoding(shared, weights)
    assert wanted[0] == 0
    centred = [x - x.mean(axis=0) for x in (predicted[:, 1:], responses[:, 1:])]
    found = (centred[0] * centred[1]).mean(axis=0) / centred[0].std(axis=0) / centred[1].std(axis=0)
    limit = norm.ppf(1 - 1e-7) / np.sqrt(n - 3)
    np.testing.assert_allclose(np.arctanh(found), np.arctanh(wanted[1:]), atol=limit)


def test_what_is_shared_is_hardly_missed_and_what_is_unique_is(shared):
    """The best linear decoder of the population, from the planted truth alone."""
    noise = shared.beta_noise * shared.noise.covariance()
    readout = shared.readout.astype(float)
    weights = np.linalg.solve(readout.T @ readout + noise, readout.T)
    whole = population_correlations(shared, weights)
    lost, alone = {}, {}
    for area, mask in shared.rois.items():
        lost[area] = whole - population_correlations(shared, weights, without=mask)
        own = np.linalg.solve(
            readout[:, mask].T @ readout[:, mask] + noise[np.ix_(mask, mask)], readout[:, mask].T
        )
        padded = np.zeros_like(weights)
        padded[mask] = own
        alone[area] = population_correlations(shared, padded)
    both, only = shared.blocks["category"], shared.blocks["only V3A"]
    assert lost["V3A"][only].min() > 0.8
    assert max(lost["FFC"][both].mean(), lost["VVC"][both].mean()) < 0.1
    assert min(alone["FFC"][both].min(), alone["VVC"][both].min()) > 0.8
    assert np.abs(alone["PHA3"]).max() < 1e-6


def test_oracle_evidence_has_half_its_variance_as_mean():
    """Log likelihood ratios of trials add up, with mean v/2 and variance v (or mean -v/2)."""
    subject = attribution_subject("shared", areas=FEW, median_ceiling=0.02)
    repeats, ids = 100, planted.names("test", 6)
    recording = subject.record(ids, split="test", repeats=repeats)
    table = np.array(
        [
            oracle_evidence(subject, recording.select(range(6 * k, 6 * k + 6)))
            for k in range(repeats)
        ]
    )
    sign = np.where(list(subject.informative.values()), 1, -1)
    spread = table.std(axis=0)
    # the mean is off by 4.5 standard errors, and the half variance by 64 %, once in 100,000
    limit = 4.5 * spread / np.sqrt(repeats) + 0.64 * spread**2 / 2
    assert (np.abs(table.mean(axis=0) - sign * spread**2 / 2) < limit).all()
    assert (np.sign(table.sum(axis=0)) == sign).all()


def test_every_design_has_answers_and_sentences(shared):
    assert set(SENTENCES) == set(DESIGNS)
    table = expected_answers(shared).set_index("area")
    methods = ["leave_one_out", "roi_only", "shapley", "encoding"]
    for said in SENTENCES.values():
        assert sorted(said) == sorted(methods)
    assert table.loc["VVC", methods].tolist() == ["low", "high", "low", "high"]
    assert table.loc["V3A", methods].tolist() == ["high"] * 4
    assert table.loc["PHA3", methods].tolist() == ["null"] * 4


# -------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"design": "onw"}, "no design 'onw'.*own"),
        ({"areas": ["V1", "A1"]}, "no visual area 'A1'"),
        ({"areas": ["V1", "V1"]}, "each once"),
        ({"areas": []}, "one or more"),
        ({"dimensions": 0}, "dimensions is 0"),
        ({"median_ceiling": 1.0}, "median_ceiling 1.0"),
        ({"fwhm_mm": 9.0}, "fwhm_mm is 9.0"),
    ],
)
def test_bad_settings_are_refused(options, told):
    with pytest.raises(UsageError, match=told):
        attribution_subject(**options)


def test_nothing_to_record_and_wrong_weights_are_refused(shared):
    with pytest.raises(UsageError, match="0 stimuli shown 1 times"):
        shared.record([], split="test")
    with pytest.raises(UsageError, match="replacement is 'zero'"):
        population_correlations(shared, np.zeros((1071, 8)), replacement="zero")
    with pytest.raises(UsageError, match=r"weights are \(3, 8\)"):
        population_correlations(shared, np.zeros((3, 8)))
    with pytest.raises(UsageError, match=r"weights are \(3, 8\)"):
        population_encoding(shared, np.zeros((3, 8)))
    assert population_correlations(shared, np.zeros((1071, 8))).tolist() == [0.0] * 8


def test_areas_are_the_31_of_the_cortex():
    assert {area for blocks in DESIGNS.values() for of in blocks.values() for area in of} <= set(
        VISUAL_AREAS
    )
