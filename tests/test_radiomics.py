"""Radiomics as a whole: every IBSI value of the digital phantom, names, and what is refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from neurodiff.core.errors import DataError, UsageError
from neurodiff.metrics.radiomics import (
    AGGREGATIONS,
    FAMILIES,
    PYRADIOMICS,
    RadiomicsSettings,
    as_pyradiomics,
    feature_class,
    radiomics,
)

PHANTOM = json.loads(
    (Path(__file__).parent / "golden" / "ibsi_digital_phantom.json").read_text(encoding="utf-8")
)
REFERENCE = PHANTOM["reference"]
ONE_MM = (1.0, 1.0, 1.0)
PLAIN = RadiomicsSettings(bin_width=None, aggregation=AGGREGATIONS)


@pytest.fixture(scope="module")
def phantom():
    image, mask = (np.array(PHANTOM[name]) for name in ("image", "mask"))
    return image.astype(np.float64), mask.astype(bool)


@pytest.fixture(scope="module")
def computed(phantom):
    return radiomics(*phantom, PHANTOM["spacing_mm"], PLAIN)


def noise(seed: int, shape=(9, 11, 13)) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    image = gaussian_filter(generator.normal(size=shape), 1) * 300
    mask = gaussian_filter(generator.normal(size=shape), 2)
    return image, mask > np.percentile(mask, 60)


def assert_same(a, b, rtol=1e-9):
    assert list(a) == list(b)
    np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=rtol, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_reference_value_of_the_digital_phantom_is_met(computed, family):
    """Within the tolerance of the table and half a unit of its last digit (three are given)."""
    rows = [row for row in REFERENCE if feature_class(row[0]) == family]
    assert rows
    for tag, text, tolerance in rows:
        value = float(text)
        digit = 10.0 ** (math.floor(math.log10(abs(value))) - 2) if value else 1e-3
        assert abs(computed[tag] - value) <= tolerance + digit / 2 * (1 + 1e-9), tag


def test_the_table_has_482_values_and_none_is_left_over(computed):
    assert len(REFERENCE) == 482
    assert {feature_class(tag) for tag, _, _ in REFERENCE} == {f for f in FAMILIES}  # all of them
    assert not computed.reasons


def test_pyradiomics_names_are_its_107(computed):
    named = as_pyradiomics(computed)
    assert len(PYRADIOMICS) == len(named) == 107
    assert len(set(PYRADIOMICS.values())) == 107
    assert named["original_firstorder_Kurtosis"] == computed["stat_kurt"] + 3
    per_class = {c: sum(f"_{c}_" in n for n in named) for c in ("shape", "glcm", "gldm", "glrlm")}
    assert per_class == {"shape": 14, "glcm": 24, "gldm": 14, "glrlm": 16}


def test_the_slice_axis_is_whatever_the_settings_say():
    image, mask = noise(1)
    spacing = (3.0, 0.7, 0.9)
    usual = radiomics(image, mask, spacing, RadiomicsSettings(aggregation=("2D_avg", "3D_comb")))
    settings = RadiomicsSettings(slice_axis=2, aggregation=("2D_avg", "3D_comb"))
    turned = radiomics(np.moveaxis(image, 0, 2), np.moveaxis(mask, 0, 2), (0.7, 0.9, 3.0), settings)
    assert_same(usual, turned)


def test_what_lies_outside_the_mask_changes_nothing_but_the_local_peak():
    image, mask = noise(2)
    families = tuple(f for f in FAMILIES if f != "loc")
    settings = RadiomicsSettings(families=families)
    other = np.where(mask, image, 1e4)
    assert_same(radiomics(image, mask, ONE_MM, settings), radiomics(other, mask, ONE_MM, settings))
    wide = (slice(2, 11), slice(1, 12), slice(3, 16))
    larger, frame = np.zeros((12, 14, 17)), np.zeros((12, 14, 17), dtype=bool)
    larger[wide], frame[wide] = image, mask
    assert_same(
        radiomics(image, mask, ONE_MM, settings), radiomics(larger, frame, ONE_MM, settings)
    )


def test_mirrored_images_have_the_same_features():
    image, mask = noise(3)
    a = radiomics(image, mask, (2.0, 1.0, 1.0), RadiomicsSettings(aggregation=AGGREGATIONS))
    b = radiomics(
        image[::-1, ::-1], mask[::-1, ::-1], (2.0, 1.0, 1.0),
        RadiomicsSettings(aggregation=AGGREGATIONS),
    )  # fmt: skip
    # the mesh may turn an ambiguous corner the other way
    skip = ("morph_volume", "morph_area", "morph_av", "morph_comp", "morph_sph", "morph_as",
            "morph_vol_dens", "morph_integ")  # fmt: skip
    names = [n for n in a if not n.startswith(skip)]
    np.testing.assert_allclose([a[n] for n in names], [b[n] for n in names], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_any_number_type_of_the_image_gives_the_same(dtype):
    image, mask = noise(4)
    image = np.rint(image)
    assert_same(
        radiomics(image, mask, ONE_MM), radiomics(image.astype(dtype), mask.astype("u1"), ONE_MM)
    )


def test_a_single_voxel_gives_nan_with_a_reason():
    image = np.arange(27.0).reshape(3, 3, 3) + 100
    mask = np.zeros((3, 3, 3), dtype=bool)
    mask[1, 1, 1] = True
    features = radiomics(image, mask, ONE_MM, RadiomicsSettings(aggregation=AGGREGATIONS))
    assert features["stat_mean"] == 113
    assert features["morph_vol_approx"] == 1
    for name in ("morph_moran_i", "cm_contrast_3D_avg", "cm_corr_2D_comb", "ngt_coarseness_3D"):
        assert math.isnan(features[name]), name
        assert "single voxel" in features.reasons[name]
    assert set(features.reasons) == {n for n, v in features.items() if not math.isfinite(v)}


def test_a_flat_region_has_defined_texture_or_a_reason():
    image, mask = np.full((4, 5, 6), 40.0), np.ones((4, 5, 6), dtype=bool)
    features = radiomics(image, mask, ONE_MM)
    assert features["stat_var"] == features["stat_skew"] == features["stat_kurt"] == 0
    assert features["cm_contrast_3D_avg"] == features["cm_joint_entr_3D_avg"] == 0
    assert features["cm_joint_max_3D_avg"] == 1
    assert features["ngt_coarseness_3D"] == 1e6
    assert features["ngt_busyness_3D"] == features["ngt_strength_3D"] == 0
    assert features["szm_z_perc_3D"] == 1 / 120
    assert features["ih_entropy"] == 0
    for name in ("cm_corr_3D_avg", "cm_info_corr1_3D_avg", "cm_mcc_3D_avg", "morph_moran_i"):
        assert math.isnan(features[name]), name
        assert "vary" in features.reasons[name]


def test_a_region_of_one_slice_works():
    image, mask = noise(5, (1, 20, 20))
    features = radiomics(image, mask, (5.0, 1.0, 1.0), RadiomicsSettings.pyradiomics(in_plane=True))
    textures = [n for n in features if n.startswith(("cm", "rlm", "szm", "ngl", "ngt", "stat"))]
    assert np.isfinite([features[n] for n in textures]).all()
    assert math.isnan(features["morph_vol_dens_aee"])
    assert "one plane" in features.reasons["morph_vol_dens_aee"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"mask": np.ones((3, 4, 4), dtype=bool)}, r"'tumour' lies on a grid of \(3, 4, 4\)"),
        ({"mask": np.zeros((4, 4, 4), dtype=bool)}, "'tumour' is empty"),
        ({"mask": np.full((4, 4, 4), 2)}, "label map"),
        ({"spacing_mm": (0.0, 1.0, 1.0)}, "three numbers above 0"),
        ({"spacing_mm": (1.0, float("nan"), 1.0)}, "three numbers above 0"),
        ({"spacing_mm": (1.0, 1.0)}, "three numbers above 0"),
        ({"image": np.full((4, 4, 4), np.nan)}, "64 of 64 voxels of ROI 'tumour' are NaN"),
        ({"image": np.zeros((4, 4))}, "three axes"),
        ({"settings": RadiomicsSettings(bin_width=1e-5)}, "grey levels"),
        ({"settings": RadiomicsSettings(bin_width=None)}, "without discretisation"),
        ({"settings": RadiomicsSettings(resegment_range=(500.0, 600.0))}, "no voxel of ROI"),
    ],
)
def test_bad_input_is_one_sentence(change, match):
    image = np.random.default_rng(0).normal(size=(4, 4, 4))
    given = {
        "image": image,
        "mask": np.ones((4, 4, 4), dtype=bool),
        "spacing_mm": ONE_MM,
        "settings": None,
        "roi_name": "tumour",
    }
    with pytest.raises(DataError, match=match):
        radiomics(**given | change)


def test_settings_come_from_a_recipe():
    given = {"bin_width": 25, "aggregation": ["2D_avg"], "resegment_range": [-1000, 400]}
    settings = RadiomicsSettings.from_dict(given)
    assert settings == RadiomicsSettings(
        bin_width=25.0, aggregation=("2D_avg",), resegment_range=(-1000, 400)
    )
    with pytest.raises(UsageError, match=r"'binwidth' is no setting .* Did you mean 'bin_width'"):
        RadiomicsSettings.from_dict({"binwidth": 25})


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"families": ("glcm",)}, "families names 'glcm'"),
        ({"aggregation": ("3D_average",)}, "Did you mean '3D_avg'"),
        ({"aggregation": ()}, "give a tuple"),
        ({"bin_width": 0.0}, "bin_width is 0.0"),
        ({"bin_width": 10.0, "bin_count": 32}, "None where bin_count is given"),
        ({"bin_count": 0}, "a count from 1"),
        ({"resegment_range": (5.0, 5.0)}, "the lower first"),
        ({"outlier_sd": -1.0}, "outlier_sd"),
        ({"slice_axis": 3}, "0, 1 or 2"),
        ({"distance": 0}, "1 or more"),
    ],
)
def test_settings_refuse_what_they_do_not_know(given, match):
    with pytest.raises(UsageError, match=match):
        RadiomicsSettings(**given)
