"""The simulated study: what is planted is what is found, in closed form and by recording."""

from dataclasses import replace

import numpy as np
import pytest

from neurodiff.core.errors import UsageError
from neurodiff.datasets.simulated.noise import MEASURED_COMMON_SHARE
from neurodiff.datasets.simulated.objects import CATEGORIES, HELD_OUT_CATEGORIES, make_objects
from neurodiff.datasets.simulated.stimulus_features import FeatureSpace
from neurodiff.datasets.simulated.study import (
    StudySettings,
    bank_from_objects,
    factor_table,
    make_study,
)
from neurodiff.datasets.simulated.subject import (
    TRIALS_A_RUN,
    TUNING,
    beta_variance,
    haemodynamic_response,
    plant_subject,
    record,
)

SIZE = StudySettings(
    train_per_category=8, test_per_category=2, unseen_per_category=2, n_categories=3
)


@pytest.fixture(scope="module")
def study():
    return make_study(SIZE, seed=0, workers=1)


@pytest.fixture(scope="module")
def reference(study):
    """Features of the training objects, over which a signal has unit variance."""
    chosen = study.split == "train"
    f = study.features
    return type(f)(f.contrast[chosen], f.shape[chosen], f.category[chosen])


@pytest.fixture(scope="module")
def strong(reference):
    """A subject whose ceiling is high enough to be measured in few trials."""
    return plant_subject(reference, median_ceiling=0.85)


@pytest.fixture(scope="module")
def repeated(study, strong, reference):
    """(repeats, stimuli, frames, vertices) of all training objects, eight times."""
    shown = study.ids("train")
    recording = record(strong, reference, shown, split="train", repeats=8)
    assert list(recording.trials["stimulus"][: len(shown)]) == shown
    return recording.array().reshape(8, len(shown), 10, -1)


# ------------------------------------------------------------------------------ noise ceiling


def explained_share(values):
    """Variance of the stimuli's true means over the whole, unbiased; (repeats, stimuli, v)."""
    repeats = len(values)
    noise = values.var(axis=0, ddof=1).mean(axis=0)
    between = values.mean(axis=0).var(axis=0, ddof=0) - noise / repeats * (1 - 1 / values.shape[1])
    return between / (between + noise)


def test_ceiling_of_a_volume_is_the_measured_one(strong, repeated):
    peak = int(haemodynamic_response().argmax())
    measured = explained_share(repeated[:, :, peak].astype(float))
    informative = strong.informative
    wanted = strong.volume_ceiling()
    for low, high in ((0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.0)):
        chosen = informative & (wanted >= low) & (wanted < high)
        assert chosen.sum() > 50
        assert measured[chosen].mean() == pytest.approx(wanted[chosen].mean(), abs=0.03)
    assert abs(measured[~informative].mean()) < 0.02


def test_ceiling_of_a_beta_is_the_measured_one(strong, repeated):
    h = haemodynamic_response().astype(float)
    betas = np.einsum("rsfv,f->rsv", repeated, h) / (h @ h)
    silent = ~strong.informative
    assert betas[:, :, silent].var() == pytest.approx(beta_variance(strong.rho), rel=0.05)
    measured = explained_share(betas)
    wanted = strong.noise_ceiling()
    informative = strong.informative
    assert wanted[informative].min() > strong.volume_ceiling()[informative].min()
    assert measured[informative].mean() == pytest.approx(wanted[informative].mean(), abs=0.02)
    assert np.median(measured[informative]) == pytest.approx(0.85, abs=0.02)


def test_ceiling_of_averaged_repeats():
    """Spearman-Brown: of n repeats n c / (1 + (n - 1) c)."""
    from neurodiff.datasets.simulated.subject import PlantedSubject

    a = np.sqrt(np.array([0.0, 0.1, 1.0]))
    planted = PlantedSubject(1, 0, None, {}, a)
    c = planted.volume_ceiling()
    np.testing.assert_allclose(c, [0, 1 / 11, 0.5])
    np.testing.assert_allclose(planted.volume_ceiling(4), 4 * c / (1 + 3 * c))
    b = planted.noise_ceiling()
    np.testing.assert_allclose(planted.noise_ceiling(3), 3 * b / (1 + 2 * b))


@pytest.mark.parametrize("ceiling", [0.10, 0.03])
def test_median_ceiling_is_exact(reference, ceiling):
    planted = plant_subject(reference, median_ceiling=ceiling)
    inside = planted.informative
    assert np.median(planted.noise_ceiling()[inside]) == pytest.approx(ceiling, rel=1e-4)
    assert planted.noise_ceiling()[inside].std() > 0.2 * ceiling  # vertices differ
    assert not planted.noise_ceiling()[~inside].any()


def test_white_noise_has_the_textbook_beta_variance():
    h = haemodynamic_response().astype(float)
    assert h.max() == 1
    assert len(h) == 10
    assert beta_variance(0.0) == pytest.approx(1 / (h @ h))
    assert beta_variance(0.3) > beta_variance(0.0)


# --------------------------------------------------------------------------------- the tuning


def test_signal_has_unit_variance_over_the_reference(strong, reference):
    inside = strong.informative
    signal = strong.signal(reference)[:, inside] / strong.amplitude[inside]
    np.testing.assert_allclose(signal.std(axis=0), 1, atol=1e-3)
    np.testing.assert_allclose(signal.mean(axis=0), 0, atol=1e-3)


def test_areas_carry_their_family_and_no_other(strong):
    carried = {area for areas in TUNING.values() for area in areas}
    for family, areas in TUNING.items():
        inside = np.any([strong.cortex.areas[area] for area in areas], axis=0)
        np.testing.assert_array_equal((strong.weights[family] != 0).any(axis=0), inside)
    for area, mask in strong.cortex.areas.items():
        assert strong.informative[mask].all() == (area in carried)
        assert strong.informative[mask].any() == (area in carried)
    table = strong.areas_table().set_index("area")
    assert len(table) == 31
    assert table.loc["V1", "carries"] == "contrast"
    assert table.loc["MT", "carries"] == "nothing"
    assert table.loc["MT", "median noise ceiling, single trial"] == 0
    assert table["vertices"].sum() == 8921


def test_silent_areas_carry_nothing(strong, repeated):
    """Halves of the repeats agree where something is planted and nowhere else."""
    halves = repeated.mean(axis=2).reshape(2, 4, *repeated.shape[1:2], -1).mean(axis=1)
    # what all vertices share is noise of the trial, too: independent between the halves
    centred = halves - halves.mean(axis=1, keepdims=True)
    scale = np.sqrt((centred**2).sum(axis=1))
    r = (centred[0] * centred[1]).sum(axis=0) / (scale[0] * scale[1])
    assert abs(r[~strong.informative].mean()) < 0.08  # SD of one r is 0.21, few are independent
    assert np.median(r[strong.informative]) > 0.9


@pytest.mark.parametrize("individual", [0.0, 0.5, 0.8])
def test_two_subjects_share_the_stated_tuning(reference, individual):
    one, other = (
        plant_subject(reference, subject=subject, individual=individual) for subject in (1, 2)
    )
    for family in ("shape", "category"):
        inside = (one.weights[family] != 0).any(axis=0)
        a, b = one.weights[family][:, inside], other.weights[family][:, inside]
        cosine = (a * b).sum(0) / np.linalg.norm(a, axis=0) / np.linalg.norm(b, axis=0)
        # 16 to 24 weights a vertex, neighbours alike: about 100 independent vertices
        assert cosine.mean() == pytest.approx(1 - individual, abs=0.06), family
    same = np.array_equal(one.weights["contrast"], other.weights["contrast"])
    assert same == (individual == 0.0)
    assert np.array_equal(one.amplitude, other.amplitude) == (individual == 0.0)


def test_a_feature_that_the_reference_lacks_does_not_explode():
    """A corner of the picture that is blank in all reference objects but one edge later."""
    rng = np.random.default_rng(0)
    views = np.full((20, 4, 64, 64), 255, np.uint8)
    dark = rng.integers(20, 255, (20, 1, 1, 1))
    views[:, :, 16:48, 16:48] = 255 - dark * rng.random((20, 4, 32, 32))
    grids = rng.random((20, 32, 32, 32)) < 0.3
    space = FeatureSpace(views, grids, ["a", "b"] * 10)
    drawn = views[:1].copy()
    drawn[:, :, :8, :8] = rng.integers(0, 255, (1, 4, 8, 8))  # as dark as anything known
    assert np.abs(space(drawn, grids[:1], ["a"]).contrast).max() < 100  # not 300,000
    own = space(views, grids, ["a", "b"] * 10)
    np.testing.assert_allclose(own.shape[:, :19].std(axis=0), 1, atol=1e-3)
    assert own.category.std() > 0.9
    assert not own.contrast[:, 0].any()  # the blank corner tells nothing


def test_unseen_objects_excite_as_much_as_known_ones(study):
    planted, unseen = study.subject(1), study.split == "unseen"
    for family in ("contrast", "shape"):  # three known categories span too little of the third
        inside = (planted.weights[family] != 0).any(axis=0)
        signal = getattr(study.features, family) @ planted.weights[family][:, inside]
        assert signal[unseen].std() < 2, family
        assert signal[unseen].std() > 0.5, family


# ------------------------------------------------------------------------------------ trials


def test_noise_of_a_trial_is_its_own(study, strong, reference):
    shown = study.ids("train")

    def of(names, repeats=1, subject=strong):
        rows = [shown.index(name) for name in names]
        features = type(reference)(
            reference.contrast[rows], reference.shape[rows], reference.category[rows]
        )
        return record(subject, features, names, split="train", repeats=repeats)

    some = of(shown[:4], repeats=2)
    other = of([shown[3], shown[7], shown[0]])  # other neighbours, other order, fewer repeats
    np.testing.assert_array_equal(other.data[0], some.data[3])
    np.testing.assert_array_equal(other.data[2], some.data[0])
    assert (some.trials["repeat"] == [1] * 4 + [2] * 4).all()
    noise = some.data[4] - some.data[0]  # another repeat, the same signal
    # 8,921 smooth values: the common part differs, so compare within frames
    assert noise.std() > 1.2
    elsewhere = of(shown[:1], subject=replace(strong, subject=2))  # the same tuning, another name
    difference = elsewhere.data[0] - some.data[0]
    assert difference.std() > 1.2


def test_noise_has_unit_variance_and_the_measured_common_share(repeated):
    noise = repeated - repeated.mean(axis=0)
    assert noise.var() * 8 / 7 == pytest.approx(1, abs=0.03)
    common = noise.mean(axis=-1).var() * 8 / 7
    assert common == pytest.approx(MEASURED_COMMON_SHARE, rel=0.2)


def test_recording_says_what_it_is(study):
    recording = study.record("test", repeats=2)
    assert recording.simulated
    assert recording.data.shape == (2 * 6, 10, 8921)
    assert recording.data[0].dtype == np.float32
    assert recording.data[[3, 1]].shape == (2, 10, 8921)
    assert set(recording.trials["subject"]) == {"sim-01"}
    assert recording.to_image(recording.data[0][0]).shape == (256, 256)
    assert recording.roi("V1").n_features == recording.rois["V1"].sum()


def test_splits_do_not_mix(study):
    ids = {name: study.ids(name) for name in ("train", "test", "unseen")}
    assert [len(v) for v in ids.values()] == [24, 6, 6]
    assert len(set().union(*ids.values())) == 36
    category = dict(zip(study.bank.ids, study.bank.categories, strict=True))
    assert {category[i] for i in ids["train"]} == {category[i] for i in ids["test"]}
    assert {category[i] for i in ids["train"]} == set(CATEGORIES[:3])
    assert {category[i] for i in ids["unseen"]} == set(HELD_OUT_CATEGORIES)
    assert not set(CATEGORIES) & set(HELD_OUT_CATEGORIES)
    runs, splits = {}, {}
    for name, repeats in (("train", 3), ("test", 2), ("unseen", 2)):
        trials = study.record(name, repeats=repeats).trials
        runs[name], splits[name] = set(trials["run"]), set(trials["split"])
        assert trials.groupby("run").size().max() <= TRIALS_A_RUN
        assert splits[name] == {name}
    assert len(runs["train"]) == 2  # 72 trials
    assert not runs["train"] & runs["test"]
    assert not runs["test"] & runs["unseen"]


def test_features_are_scaled_on_training_objects_alone(study):
    train = study.split == "train"
    np.testing.assert_allclose(study.features.shape[train].mean(axis=0), 0, atol=1e-3)
    bank = study.bank
    known = [c for c, t in zip(bank.categories, train, strict=True) if t]
    again = FeatureSpace(bank.views[train], bank.grid[train], known)(
        bank.views, bank.grid, list(bank.categories)
    )
    np.testing.assert_array_equal(again.shape, study.features.shape)


def test_factors_are_those_of_the_objects(study):
    names = study.ids("test")[:2]
    table = factor_table(names, study.stimuli)
    objects = {o.id: o for o in make_objects(20, seed=0, categories=CATEGORIES[:1])}
    for name in names:
        stated = table.loc[name].dropna().to_dict()
        assert stated == pytest.approx(objects[name].factors)


def test_workers_do_not_change_the_objects(tmp_path):
    objects = make_objects(2, seed=4, categories=CATEGORIES[:3])
    one = bank_from_objects(objects, seed=4, workers=1, size=2)
    two = bank_from_objects(objects, seed=4, workers=2, size=2)
    assert one.ids == tuple(o.id for o in objects)
    assert one.fingerprint() == two.fingerprint()
    # and an object's arrays do not depend on the others
    assert (
        bank_from_objects(objects[3:4], seed=4).fingerprint()
        == one.select([objects[3].id]).fingerprint()
    )
    assert bank_from_objects(objects, seed=5, workers=1).fingerprint() != one.fingerprint()


# ---------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"median_ceiling": 0.0}, "median_ceiling is 0"),
        ({"median_ceiling": 1.0}, "median_ceiling is 1"),
        ({"individual": 1.5}, "individual is 1.5"),
        ({"individual": -0.1}, "individual is -0.1"),
    ],
)
def test_impossible_subjects_are_refused(reference, options, message):
    with pytest.raises(UsageError, match=message):
        plant_subject(reference, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_categories": 0}, "n_categories is 0"),
        ({"n_categories": 13}, "1 to 12"),
        ({"train_per_category": 0}, "at least two"),
        ({"test_per_category": -1}, "no count below 0"),
    ],
)
def test_impossible_studies_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        make_study(StudySettings(**options), workers=1)


def test_impossible_recordings_are_refused(study, strong, reference):
    with pytest.raises(UsageError, match="no split 'valid'; there are test, train, unseen"):
        study.record("valid")
    with pytest.raises(UsageError, match="1 stimuli, but features of 24"):
        record(strong, reference, ["a"], split="train")
    with pytest.raises(UsageError, match="shown 0 times"):
        study.record("test", repeats=0)
    with pytest.raises(UsageError, match="nothing to simulate"):
        bank_from_objects([], workers=1)


# ------------------------------------------------------------------------------- real objects


def meshes_with_table(folder):
    import trimesh

    folder.mkdir()
    rows = ["file,name,class"]
    for k, (name, size) in enumerate({"light": 0.5, "other": 2.0}.items()):
        trimesh.creation.box(extents=(1.0, size, 1.0)).export(folder / f"{k:03d}.ply")
        rows.append(f"{k:03d}.ply,A {name},{name}")
    (folder / "objects.csv").write_text("\n".join(rows))
    return folder


def test_other_objects_are_seen_on_the_scale_of_the_study(study, tmp_path):
    from neurodiff.datasets.simulated.real_objects import real_stimuli
    from neurodiff.geometry.bank import bank_from_stimuli

    stimuli = real_stimuli(meshes_with_table(tmp_path / "f"))
    assert stimuli.ids == ["real-000", "real-001"]
    assert stimuli.categories() == ["lamp", "other"]  # a light is the simulated lamp
    bank = bank_from_stimuli(stimuli, n_queries=64)
    planted = study.subject(1, ceiling=0.999)
    recording = study.record_others(bank, ceiling=0.999)
    assert recording.trials["split"].tolist() == ["others"] * 2
    assert recording.trials["run"].min() > 3000
    assert recording.simulated
    signal = planted.signal(study.space(bank.views, bank.grid, list(bank.categories)))
    peak = recording.data[:][:, int(haemodynamic_response().argmax())]
    loud = planted.informative
    assert np.corrcoef(peak[:, loud].ravel(), signal[:, loud].ravel())[0, 1] > 0.95


def test_objects_of_the_study_are_no_others(study):
    with pytest.raises(UsageError, match="is an object of the study"):
        study.record_others(study.bank.select(study.ids("test")[:1]))


def test_folders_of_objects_that_are_not_whole_are_refused(tmp_path):
    from neurodiff.core.errors import DataError, MissingDataError
    from neurodiff.datasets.simulated.real_objects import real_stimuli

    with pytest.raises(MissingDataError, match="is not a folder"):
        real_stimuli(tmp_path / "none")
    folder = meshes_with_table(tmp_path / "f")
    (folder / "001.ply").unlink()
    with pytest.raises(MissingDataError, match=r"1 of 2 meshes .* first 001\.ply"):
        real_stimuli(folder)
    (folder / "objects.csv").write_text("file,name,class\n000.ply,A,\n")
    with pytest.raises(DataError, match="no class in some rows"):
        real_stimuli(folder)


@pytest.mark.shared_data
def test_the_real_furniture_is_seen_by_a_simulated_subject(study, shared_data):
    from neurodiff.datasets.simulated.real_objects import real_stimuli
    from neurodiff.geometry.bank import bank_from_stimuli

    stimuli = real_stimuli(shared_data / "furniture_cc0")
    assert len(stimuli) == 175
    counts = {name: stimuli.categories().count(name) for name in ("chair", "sofa", "lamp")}
    assert counts == {"chair": 17, "sofa": 6, "lamp": 7}  # 13 chairs and 4 armchairs; 7 lights
    closed = ["real-006", "real-031", "real-034"]  # most others take seconds to be made so
    bank = bank_from_stimuli(stimuli.select(closed), n_surface=256, n_queries=64)
    recording = study.record_others(bank)
    assert recording.data.shape == (3, 10, 8921)
    assert np.isfinite(recording.data[:]).all()
    # three different objects are three different signals
    planted = study.subject(1)
    signal = planted.signal(study.space(bank.views, bank.grid, list(bank.categories)))
    assert np.abs(np.corrcoef(signal[:, planted.informative]))[np.triu_indices(3, 1)].max() < 0.95
