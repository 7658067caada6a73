"""The planted truth of a subject who looks at scenes, in closed form and by recording."""

from dataclasses import fields

import numpy as np
import pytest

from neurodiff.core.errors import UsageError
from neurodiff.datasets.simulated.noise import MEASURED_LAG1
from neurodiff.datasets.simulated.objects import CATEGORIES
from neurodiff.datasets.simulated.places import PLACES
from neurodiff.datasets.simulated.scene_subject import (
    PREFERRED,
    SCENE_TUNING,
    SceneFeatures,
    SceneFeatureSpace,
    opponent_maps,
    plant_scene_subject,
    record_betas,
)
from neurodiff.datasets.simulated.scenes import make_scenes
from neurodiff.datasets.simulated.subject import beta_variance

N = 120


@pytest.fixture(scope="module")
def scenes():
    return make_scenes(N, split="train", seed=0)


@pytest.fixture(scope="module")
def space(scenes):
    return SceneFeatureSpace(scenes)


@pytest.fixture(scope="module")
def features(space, scenes):
    return space(scenes)


@pytest.fixture(scope="module")
def planted(features):
    return plant_scene_subject(features)


@pytest.fixture(scope="module")
def noise(planted, features, scenes):
    """(repeats, vertices): trials of one scene without its signal."""
    ids = scenes.ids[:1]
    recording = record_betas(planted, features.select([0]), ids, split="train", repeats=150)
    return recording.array() - planted.signal(features.select([0]))


def test_features_are_z_scores_of_the_reference(features):
    for field in fields(features):
        values = getattr(features, field.name)
        assert values.dtype == np.float32
        varies = values.std(axis=0) > 1e-3
        np.testing.assert_allclose(values.mean(axis=0), 0, atol=2e-3)
        np.testing.assert_allclose(values[:, varies].std(axis=0), 1, atol=0.02)
    assert features.light.shape == (N, 192)
    assert features.category.shape == (N, len(CATEGORIES))
    assert features.place.shape == (N, len(PLACES))


def test_features_of_new_scenes_use_the_scale_of_the_reference(space, scenes, features):
    one = space(scenes.select([3]))
    for field in fields(one):
        np.testing.assert_allclose(
            getattr(one, field.name)[0], getattr(features, field.name)[3], rtol=1e-4, atol=1e-4
        )


def test_light_maps_tell_luminance_and_colour():
    """Left half red, right half blue: constant fields with the values of the formula."""
    image = np.zeros((1, 64, 64, 3), np.uint8)
    image[0, :, :32] = (255, 0, 0)
    image[0, :, 32:] = (0, 0, 255)
    luminance, red_green, blue_yellow = opponent_maps(image)[0]
    for found, left, right in (
        (luminance, 0.3, 0.11),
        (red_green, 1.0, 0.0),
        (blue_yellow, -0.5, 1.0),
    ):
        np.testing.assert_allclose(found[:, :4], left, atol=1e-6)
        np.testing.assert_allclose(found[:, 4:], right, atol=1e-6)


def test_scenes_of_other_categories_have_no_category_feature(scenes):
    space = SceneFeatureSpace(scenes, categories=("bottle", "chair"))
    others = [k for k, s in enumerate(scenes.scenes) if s.category not in ("bottle", "chair")]
    raw = space._raw(scenes.select(others))["category"]
    assert raw.shape == (len(others), 2)
    assert not raw.any()
    values = space(scenes.select(others)).category
    np.testing.assert_array_equal(values, np.broadcast_to(values[:1], values.shape))


def test_noise_has_the_variance_of_a_beta(noise):
    """Mean over 8,921 vertices of the variance over 150 trials; smooth noise, so a few percent."""
    variance = noise.astype(float).var(axis=0).mean()
    assert variance == pytest.approx(beta_variance(MEASURED_LAG1), rel=0.08)
    assert abs(noise.mean()) < 0.05


def test_ceilings_are_as_planted(features):
    for median in (0.03, 0.10, 0.5):
        subject = plant_scene_subject(features, median_ceiling=median)
        inside = subject.informative
        assert np.median(subject.noise_ceiling()[inside]) == pytest.approx(median, rel=1e-4)
        # the mean of k trials has k times the signal-to-noise ratio
        single, triple = subject.noise_ceiling(), subject.noise_ceiling(3)
        np.testing.assert_allclose(
            (triple / (1 - triple))[inside], 3 * (single / (1 - single))[inside], rtol=1e-4
        )


def test_signal_has_the_variance_that_the_ceiling_states(planted, features):
    """In vertices of one family, the variance over the reference scenes is amplitude squared."""
    signal = planted.signal(features)
    cortex = planted.cortex
    for area in ("V1", "V2", "LO1", "FFC", "PHA1"):
        mask = cortex.area(area)
        np.testing.assert_allclose(signal[:, mask].std(axis=0), planted.amplitude[mask], rtol=2e-3)


def test_silent_areas_carry_nothing(planted, features):
    named = {area for areas in SCENE_TUNING.values() for area in areas}
    table = planted.areas_table().set_index("area")
    silent = [area for area in table.index if area not in named]
    assert silent
    assert (table.loc[silent, "carries"] == "nothing").all()
    signal = planted.signal(features)
    for area in silent:
        assert not signal[:, planted.cortex.area(area)].any()
        assert not planted.informative[planted.cortex.area(area)].any()


@pytest.mark.parametrize("area", PREFERRED)
def test_a_tuned_area_answers_most_to_what_it_prefers(planted, features, scenes, area):
    """By mean response over scenes of each kind, at nearly every vertex."""
    family, what = PREFERRED[area]
    kinds = np.array([getattr(scene, family) for scene in scenes.scenes])
    mask = planted.cortex.area(area)
    response = planted.signal(features)[:, mask]
    # by design: without what other families add at the same vertices
    own = getattr(features, family) @ planted.weights[family][:, mask]
    for values, least in ((own, 0.97), (response, 0.9)):
        means = {kind: values[kinds == kind].mean(axis=0) for kind in np.unique(kinds)}
        most = np.max(list(means.values()), axis=0)
        assert (means[what] >= most).mean() > least


def test_subjects_share_what_is_preferred_and_differ_else(features):
    one, other = (plant_scene_subject(features, subject=k) for k in (1, 2))
    mask = one.cortex.area("V1")
    assert not np.array_equal(one.weights["light"][:, mask], other.weights["light"][:, mask])
    own = plant_scene_subject(features, subject=1)
    np.testing.assert_array_equal(one.weights["place"], own.weights["place"])
    same = [plant_scene_subject(features, subject=k, individual=0.0) for k in (1, 2)]
    np.testing.assert_array_equal(same[0].weights["category"], same[1].weights["category"])
    np.testing.assert_array_equal(same[0].amplitude, same[1].amplitude)


def test_a_trial_does_not_depend_on_the_others(planted, features, scenes):
    pair = record_betas(planted, features.select([4, 9]), [scenes.ids[4], scenes.ids[9]],
                        split="train", repeats=2)  # fmt: skip
    alone = record_betas(planted, features.select([9]), [scenes.ids[9]], split="test", repeats=2)
    rows = [k for k, i in enumerate(pair.trials["stimulus"]) if i == scenes.ids[9]]
    # the same up to one step of half precision: a product of matrices rounds by their shape
    np.testing.assert_allclose(pair.array()[rows], alone.array(), rtol=1.1e-3, atol=1e-3)
    assert not np.array_equal(alone.array()[0], alone.array()[1])
    reverse = record_betas(planted, features.select([9, 4]), [scenes.ids[9], scenes.ids[4]],
                           split="train")  # fmt: skip
    np.testing.assert_allclose(reverse.array()[0], alone.array()[0], rtol=1.1e-3, atol=1e-3)


def test_the_table_of_trials(planted, features, scenes):
    recording = record_betas(planted, features.select([0, 1, 2]), scenes.ids[:3], split="train",
                             repeats=2, first_session=5)  # fmt: skip
    assert recording.frames == ()
    assert recording.n_features == 8921
    assert recording.simulated
    trials = recording.trials
    assert list(trials["repeat"]) == [1, 1, 1, 2, 2, 2]
    assert list(trials["stimulus"]) == scenes.ids[:3] * 2
    assert set(trials["session"]) == {5}
    assert set(trials["subject"]) == {"sim-01"}
    assert recording.array().dtype == np.float32
    assert set(PREFERRED) < set(recording.rois)


def test_wrong_use_is_told(planted, features, scenes):
    with pytest.raises(UsageError, match="2 scenes, but features of 120"):
        record_betas(planted, features, scenes.ids[:2], split="train")
    with pytest.raises(UsageError, match="shown 0 times"):
        record_betas(planted, features.select([0]), scenes.ids[:1], split="train", repeats=0)
    with pytest.raises(UsageError, match="nothing to record"):
        record_betas(planted, features.select([]), [], split="train")
    with pytest.raises(UsageError, match="1 reference scenes"):
        SceneFeatureSpace(scenes.select([0]))
    with pytest.raises(UsageError, match="share between 0 and 1"):
        plant_scene_subject(features, median_ceiling=1.0)
    with pytest.raises(UsageError, match="variance needs two"):
        plant_scene_subject(features.select([0]))
    assert isinstance(features.select([1, 2]), SceneFeatures)
