"""Occlusion of regions: an encoder that reads one region only, and the null of matched blobs."""

import nibabel
import numpy as np
import pandas as pd
import pytest

from neurodiff.analysis.attribution_problem import COLUMNS
from neurodiff.analysis.probe_regions import template_regions
from neurodiff.analysis.region_occlusion import (
    Occlusion,
    matched_blobs,
    occlude_regions,
    read_atlas,
)
from neurodiff.bridges.probes import LogisticProbe, RidgeProbe
from neurodiff.core.errors import DataError, MissingDataError, UsageError

GRID = (10, 12, 10)


def box(i, j, k, size=3):
    mask = np.zeros(GRID, bool)
    mask[i : i + size, j : j + size, k : k + size] = True
    return mask


ATLAS = {"read": box(1, 1, 1), "near": box(1, 1, 6), "far": box(6, 8, 6)}


class OneRegion:
    """Codes: the mean of the region that is read, its square, and a constant."""

    def __init__(self, mask):
        self.mask = mask

    def codes(self, volumes):
        level = volumes[:, 0, self.mask].mean(axis=1)
        return np.stack([level, level**2, np.ones(len(level))], axis=1)


@pytest.fixture(scope="module")
def cohort():
    """20 people with two scans each; how bright the read region is, is their age."""
    rng = np.random.default_rng(0)
    volumes = rng.uniform(0.4, 0.6, (40, 1, *GRID)).astype(np.float32)
    level = np.repeat(rng.uniform(0.2, 0.9, 20), 2).astype(np.float32)
    volumes[:, 0, ATLAS["read"]] = level[:, None]
    scans = pd.DataFrame({"subject": np.repeat([f"p{k:02d}" for k in range(20)], 2)})
    return volumes, scans, level


HOW = Occlusion(matched=19, draws=200)


@pytest.mark.parametrize("replacement", ["mean", "blurred", "inpainted"])
def test_the_region_that_is_read_is_found(cohort, replacement):
    volumes, scans, _ = cohort
    how = Occlusion(matched=19, draws=200, replacement=replacement)
    found = occlude_regions(
        OneRegion(ATLAS["read"]),
        volumes,
        scans,
        ATLAS,
        mean=volumes.mean(axis=(0, 1)),
        how=how,
    )
    table = found.table.set_index("roi")
    assert tuple(found.table.columns[: len(COLUMNS)]) == COLUMNS
    assert table.loc["read", "p"] == pytest.approx(1 / 20)
    assert table.loc["read", "low"] > 0.01
    for other in ("near", "far"):
        assert table.loc[other, "value"] == 0
        assert table.loc[other, "p"] == 1
    assert table["null_mean"].sum() > 0  # some blobs of the others meet the region that is read
    assert np.nanargmax(found.maps["code"]) == np.flatnonzero(ATLAS["read"].ravel())[0]
    assert len(found.items) == 3 * 20


def test_a_linear_code_has_its_closed_form(cohort):
    volumes, scans, level = cohort
    mean = volumes.mean(axis=(0, 1))

    class Level:
        def codes(self, v):
            return v[:, 0, ATLAS["read"]].mean(axis=1, keepdims=True)

    age = {"age": lambda codes: 50 + 40 * codes[:, 0]}
    found = occlude_regions(Level(), volumes, scans, ATLAS, mean=mean, probe=age, how=HOW)
    rows = found.table.set_index(["stage", "roi"])
    change = level - mean[ATLAS["read"]].mean()
    assert rows.loc[("age", "read"), "value"] == pytest.approx(40 * np.abs(change).mean(), rel=1e-4)
    assert rows.loc[("age", "read"), "signed"] == pytest.approx(40 * change.mean(), abs=1e-3)
    assert rows.loc[("code", "read"), "value"] == pytest.approx(
        (np.abs(change) / level).mean(), rel=1e-4
    )
    assert rows.loc[("age", "read"), "n_people"] == 20


def test_fitted_probes_are_asked_for_logit_and_number(cohort):
    volumes, scans, level = cohort
    pipe = OneRegion(ATLAS["read"])
    codes = pipe.codes(volumes).astype(float)[:, :2]
    logistic = LogisticProbe().fit(codes, level > 0.55, groups=scans["subject"])
    ridge = RidgeProbe().fit(codes, level.astype(float), groups=scans["subject"])

    class Two:
        def codes(self, v):
            return pipe.codes(v)[:, :2]

    found = occlude_regions(
        Two(), volumes, scans, {"read": ATLAS["read"]},
        probe={"bright": logistic, "level": ridge}, how=HOW, mean=volumes.mean(axis=(0, 1)),
    )  # fmt: skip
    rows = found.table.set_index("stage")
    assert rows.loc["level", "value"] == pytest.approx(np.abs(level - level.mean()).mean(), rel=0.1)
    assert rows.loc["bright", "p"] == pytest.approx(1 / 20)


def test_a_batch_and_the_order_change_nothing(cohort):
    volumes, scans, _ = cohort
    order = np.random.default_rng(1).permutation(40)
    mean, pipe = volumes.mean(axis=(0, 1)), OneRegion(ATLAS["read"])
    one, two = (
        occlude_regions(pipe, volumes[these], scans.iloc[these], ATLAS, mean=mean, how=HOW)
        for these in (np.arange(40), order)
    )
    pd.testing.assert_frame_equal(one.table, two.table, rtol=1e-5)


def test_blobs_are_compact_and_as_large_as_the_region():
    brain = np.zeros(GRID, bool)
    brain[1:-1, 1:-1, 1:-1] = True
    blobs = matched_blobs(ATLAS["read"], brain, 30, seed=0, name="read")
    for blob in blobs:
        assert blob.sum() == ATLAS["read"].sum()
        assert not (blob & ATLAS["read"]).any()
        assert not (blob & ~brain).any()
        places = np.argwhere(blob)
        assert np.ptp(places, axis=0).max() <= 8
    assert len({blob.tobytes() for blob in blobs}) > 20
    again = matched_blobs(ATLAS["read"], brain, 30, seed=0, name="read")
    assert all(np.array_equal(a, b) for a, b in zip(blobs, again, strict=True))
    with pytest.raises(DataError, match="no place for a blob"):
        matched_blobs(ATLAS["read"], ATLAS["read"], 1, seed=0, name="read")


def test_an_atlas_is_read_at_the_grid_of_the_scans(tmp_path):
    labels = np.zeros((20, 24, 20), np.int16)
    labels[2:8, 2:8, 2:8], labels[12:18, 16:22, 12:18] = 4, 7
    place = np.diag([2.0, 2, 2, 1])
    nibabel.save(nibabel.Nifti1Image(labels, place), tmp_path / "atlas.nii.gz")
    (tmp_path / "names.csv").write_text("index,name\n0,Background\n4,hippocampus\n7,amygdala\n")
    at = {"affine": np.diag([4.0, 4, 4, 1]), "shape": GRID}
    found = read_atlas(tmp_path / "atlas.nii.gz", tmp_path / "names.csv", **at)
    assert list(found) == ["hippocampus", "amygdala"]
    assert np.array_equal(found["hippocampus"], ATLAS["read"])
    assert list(read_atlas(tmp_path / "atlas.nii.gz", **at)) == ["4", "7"]
    (tmp_path / "more.csv").write_text("label,name\n4,hippocampus\n9,thalamus\n")
    with pytest.raises(DataError, match=r"'thalamus' \(label 9"):
        read_atlas(tmp_path / "atlas.nii.gz", tmp_path / "more.csv", **at)
    (tmp_path / "twice.csv").write_text("label,name\n4,a\n7,a\n")
    with pytest.raises(DataError, match="names 'a' twice"):
        read_atlas(tmp_path / "atlas.nii.gz", tmp_path / "twice.csv", **at)
    nibabel.save(nibabel.Nifti1Image(labels + 0.5, place), tmp_path / "half.nii")
    with pytest.raises(DataError, match="no whole numbers"):
        read_atlas(tmp_path / "half.nii", **at)
    with pytest.raises(MissingDataError):
        read_atlas(tmp_path / "none.nii", **at)


def test_refusals(cohort):
    volumes, scans, _ = cohort
    pipe, mean = OneRegion(ATLAS["read"]), volumes.mean(axis=(0, 1))
    with pytest.raises(UsageError, match="give mean="):
        occlude_regions(pipe, volumes, scans, ATLAS)
    with pytest.raises(DataError, match="'empty' has no voxel"):
        occlude_regions(pipe, volumes, scans, {"empty": np.zeros(GRID, bool)}, mean=mean)
    with pytest.raises(DataError, match="give booleans on their grid"):
        occlude_regions(pipe, volumes, scans, {"other": np.ones((2, 2, 2), bool)}, mean=mean)
    with pytest.raises(DataError, match="one person"):
        occlude_regions(pipe, volumes, scans.assign(subject="p00"), ATLAS, mean=mean)
    with pytest.raises(DataError, match="with the column subject"):
        occlude_regions(pipe, volumes, scans.iloc[:3], ATLAS, mean=mean)
    with pytest.raises(UsageError, match="is int"):
        occlude_regions(pipe, volumes, scans, ATLAS, mean=mean, probe={"age": 3})
    with pytest.raises(DataError, match="expected one number each"):
        occlude_regions(pipe, volumes, scans, ATLAS, mean=mean, probe={"age": lambda c: c})
    with pytest.raises(UsageError, match="replacement is 'noise'"):
        Occlusion(replacement="noise")
    with pytest.raises(UsageError, match="matched is 0"):
        Occlusion(matched=0)


@pytest.mark.slow  # reads the template
def test_an_ldae_reads_the_regions_of_the_template():
    from neurodiff.pipelines.ldae import LDAE

    pipe = LDAE.from_recipe("ldae_tiny")
    grid = pipe.size.grid
    affine = np.diag([6.0, 6, 6, 1])
    affine[:3, 3] = [-(n - 1) * 3.0 for n in grid]
    affine[1, 3] -= 18
    volumes = np.random.default_rng(0).uniform(0.2, 0.8, (2, 1, *grid)).astype(np.float32)
    atlas = template_regions(affine, grid)
    found = occlude_regions(
        pipe, volumes, pd.DataFrame({"subject": ["a", "b"]}), atlas,
        how=Occlusion(matched=1, draws=20, replacement="inpainted"),
    )  # fmt: skip
    assert set(found.table["roi"]) == set(atlas)
    assert (found.table["value"] > 0).all()
