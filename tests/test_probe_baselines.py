"""Baselines: fold-safe components, volumes read from scans, a network that learns."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from neurodiff.analysis.probe_baselines import (
    intensity_statistics,
    oracle_volumes,
    pca_features,
    probe_baselines,
    random_projection,
)
from neurodiff.analysis.probe_cnn import CNNSettings, SmallCNN, cnn_features
from neurodiff.analysis.probe_folds import FoldFeatures, cross_predicted
from neurodiff.analysis.probe_regions import (
    REGION_NAMES,
    label_volumes,
    regional_volumes,
    template_regions,
    tissue_shares,
)
from neurodiff.analysis.probe_tasks import probe_tasks, task_scans
from neurodiff.analysis.probes import evaluate_probes
from neurodiff.bridges.probes import group_folds
from neurodiff.core.errors import DataError, UsageError
from neurodiff.datasets.simulated.brains import BrainSettings, SimulatedBrains


@pytest.fixture(scope="module")
def brains():
    settings = BrainSettings(subjects=24, months=(0.0, 24.0), shape=(20, 24, 20))
    cohort = SimulatedBrains(settings, seed=0).cohort()
    return cohort, cohort.array(), cohort[0].affine


def noise(n=12, shape=(6, 7, 5), seed=0):
    return np.random.default_rng(seed).random((n, 1, *shape)).astype(np.float32) + 0.1


def test_components_of_a_fold_are_those_of_its_training_voxels():
    volumes = noise()
    feature = pca_features(volumes, 4)
    train = np.arange(12) < 8
    ours = feature.model.fit(feature.values[train]).transform(feature.values)
    flat = volumes.reshape(12, -1).astype(np.float64)
    theirs = PCA(4, svd_solver="full").fit(flat[train]).transform(flat)
    signs = np.sign((ours * theirs).sum(axis=0))
    assert np.allclose(ours * signs, theirs, atol=1e-8)
    few = pca_features(volumes, 100)
    assert few.model.fit(few.values[train]).transform(few.values).shape == (12, 7)


def test_statistics_are_of_the_brain_alone():
    volumes = noise(3)
    volumes[:, :, :2] = 0
    wide = np.zeros((3, 1, 12, 7, 5), np.float32)
    wide[:, :, 6:] = volumes
    assert np.array_equal(intensity_statistics(volumes), intensity_statistics(wide))
    values = volumes[0][volumes[0] > 0].astype(np.float64)
    row = intensity_statistics(volumes)[0]
    assert row[0] == pytest.approx(values.mean())
    assert row[6] == pytest.approx(np.median(values))
    assert row[11:].sum() == pytest.approx(1)


def test_a_random_projection_keeps_distances_and_needs_no_other_scan():
    volumes = noise(6, (16, 17, 16))
    out = random_projection(volumes, 800, seed=1)
    flat = volumes.reshape(6, -1).astype(np.float64)
    true = np.linalg.norm(flat[:, None] - flat[None], axis=2)[np.triu_indices(6, 1)]
    kept = np.linalg.norm(out[:, None] - out[None], axis=2)[np.triu_indices(6, 1)]
    assert np.abs(kept / true - 1).max() < 0.15
    assert np.allclose(random_projection(volumes[3:4], 800, seed=1), out[3:4])
    assert not np.allclose(random_projection(volumes, 800, seed=2), out)


def test_three_tissues_are_told_apart_in_any_contrast():
    truth = np.repeat([0, 1, 2], 200).reshape(6, 10, 10)
    rng = np.random.default_rng(0)
    for levels in ((0.2, 0.55, 0.8), (0.3, 0.4, 0.45)):
        volume = np.array(levels)[truth] + 0.003 * rng.normal(size=truth.shape)
        for number, share in enumerate(tissue_shares(volume)):
            assert share[truth == number].mean() > 0.95
            assert share[truth != number].mean() < 0.05
    total = sum(tissue_shares(volume))
    assert np.allclose(total, 1)


def test_regions_read_from_scans_follow_the_true_volumes(brains):
    cohort, volumes, affine = brains
    found = regional_volumes(volumes, affine)
    assert found.shape == (len(cohort), len(REGION_NAMES))
    ventricles = found[:, 0] + found[:, 1]
    true = cohort.scans["true_ventricles_ml"].to_numpy()
    assert np.corrcoef(ventricles, true)[0, 1] > 0.7
    brain = found[:, REGION_NAMES.index("brain")]
    assert np.abs(brain / cohort.scans["true_brain_ml"].to_numpy() - 1).max() < 0.15
    # of one person two years apart: fluid grows as the ventricles do
    first = cohort.scans["session"].to_numpy() == 0
    growth = np.log(ventricles[~first] / ventricles[first])
    grown = np.log(true[~first] / true[first])
    assert (growth > 0).mean() > 0.8
    assert np.corrcoef(growth, grown)[0, 1] > 0.34  # the one-sided 5 % of 24 people


def test_regions_lie_on_both_sides_and_apart(brains):
    _, volumes, affine = brains
    regions = template_regions(affine, volumes.shape[2:])
    x = (affine[0, 0] * np.arange(volumes.shape[2]) + affine[0, 3])[:, None, None]
    for name, mask in regions.items():
        side = -1 if "left" in name else 1
        assert (np.broadcast_to(x, mask.shape)[mask] * side > -affine[0, 0]).all(), name
    assert not (regions["ventricles left"] & regions["hippocampus left"]).any()
    with pytest.raises(DataError, match="MNI space"):
        template_regions(affine + 500 * np.outer(np.eye(4)[0], np.eye(4)[3]), volumes.shape[2:])


def test_labels_are_counted_in_millilitres():
    labels = np.zeros((2, 4, 4, 4), np.int16)
    labels[0, :2] = 3
    labels[1, 0, 0, 0] = 7
    affine = np.diag([5.0, 5.0, 4.0, 1.0])  # 0.1 ml a voxel
    assert np.allclose(label_volumes(labels, affine), [[3.2, 0], [0, 0.1]])
    with pytest.raises(DataError, match="whole numbers"):
        label_volumes(labels.astype(float), affine)
    with pytest.raises(DataError, match="labels above 0"):
        label_volumes(labels * 0, affine)


def test_the_oracle_is_named_and_only_for_simulated_scans(brains):
    cohort, volumes, affine = brains
    sets = probe_baselines(cohort, volumes, affine=affine, dimension=5)
    assert list(sets) == [
        "PCA 5",
        "regional volumes",
        "intensity statistics",
        "random projection 5",
        "true volumes (oracle)",
    ]
    assert oracle_volumes(cohort).shape == (len(cohort), 4)
    plain = cohort.scans.drop(columns=[c for c in cohort.scans if c.startswith("true_")])
    real = type(cohort)(plain, opener=cohort.opener)
    assert "true volumes (oracle)" not in probe_baselines(real, volumes, affine=affine, dimension=5)
    report = evaluate_probes(sets, cohort.scans, tasks=["AD vs CN"], bootstrap=20)
    auc = {name: report.value("AD vs CN", name, "AUC", design="features") for name in sets}
    assert auc["true volumes (oracle)"] > 0.75
    assert set(report.differences["a"]) >= {"PCA 5"}


def test_the_network_learns_what_is_planted_and_is_fitted_on_one_fold(brains):
    scans = brains[0].scans
    data = task_scans(probe_tasks(["age"])[0], scans)
    volumes = 0.2 * noise(len(scans), (8, 8, 8))
    old = ((scans["age"] - 60) / 60).to_numpy(np.float32)
    volumes[:, 0, 2:6, 2:6, 2:6] += old[:, None, None, None]
    settings = CNNSettings(widths=(4, 8), steps=80, batch_size=16, learning_rate=1e-2)
    name, feature = cnn_features(volumes, settings)
    assert name == "small supervised CNN, 1,017 parameters, first fold"
    assert SmallCNN(settings).parameter_count == 1017  # 4 x 27 + 4 + 8, 8 x 4 x 27 + 8 + 16, 8 + 1
    fold = group_folds(data.subjects, data.strata, 3, seed=0)
    guess = cross_predicted(feature, data, fold)
    assert np.isfinite(guess).sum() == (fold == 0).sum()
    known = np.isfinite(guess)
    assert np.corrcoef(guess[known], data.truth[known])[0, 1] > 0.8
    again = cross_predicted(feature, data, fold)
    assert np.array_equal(guess, again, equal_nan=True)


def test_the_network_gives_probabilities_for_a_class(brains):
    volumes = 0.1 * noise(20, (8, 8, 8))
    ill = np.arange(20) % 2 == 0
    volumes[ill, :, 2:6, 2:6, 2:6] += 0.5
    model = SmallCNN(CNNSettings(widths=(4, 8), steps=60, batch_size=8, learning_rate=1e-2))
    values = model.fit(volumes, ill).scores(volumes)
    assert ((values > 0.5) == ill).all()
    assert (values > 0).all()
    assert (values < 1).all()


def test_bad_input_gets_a_sentence(brains):
    cohort, volumes, affine = brains
    with pytest.raises(DataError, match="48 scans"):
        probe_baselines(cohort, volumes[:3], affine=affine, dimension=4)
    with pytest.raises(DataError, match=r"\(n, 1, i, j, k\)"):
        intensity_statistics(volumes[:, 0])
    bad = volumes[:3].copy()
    bad[1, 0, 3, 3, 3] = np.nan
    with pytest.raises(DataError, match="first number 1"):
        random_projection(bad, 4)
    with pytest.raises(DataError, match="scan 2 has no value"):
        intensity_statistics(np.stack([*noise(2), np.zeros((1, 6, 7, 5), np.float32)]))
    with pytest.raises(DataError, match="scan 0: the volume has no brain"):
        regional_volumes(volumes[:1] * 0, affine)
    with pytest.raises(UsageError, match="0 components"):
        pca_features(volumes, 0)
    with pytest.raises(DataError, match="the same"):
        pca_features(np.ones((3, 1, 4, 4, 4), np.float32), 2)
    assert isinstance(pca_features(volumes, 2), FoldFeatures)
