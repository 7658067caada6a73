"""Regions of interest: from every format onto the same pixels, or refused in a sentence."""

import importlib.util
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset

from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.core.volume import Volume
from neurodiff.datasets.ct_rois import STRUCTURES, read_rois
from neurodiff.datasets.ct_series import read_series


def _load(name):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


files = _load("ct_files")


@pytest.fixture
def series(tmp_path):
    files.write_slices(tmp_path / "in")
    return read_series(tmp_path / "in")


def box(series):
    """Two regions: one of slices 1 and 2, one of a single pixel."""
    mask = np.zeros(series.hu.shape, np.uint8)
    mask[1:3, 4:9, 2:7] = 1
    mask[4, 15, 11] = 2
    return mask


def as_volume(mask, affine):
    return Volume.from_array(mask.transpose(2, 1, 0), affine)


# ------------------------------------------------------------------------------ NIfTI


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SPL"])
def test_nifti_in_any_order_of_axes(series, tmp_path, codes):
    mask = box(series)
    as_volume(mask, series.affine).reoriented(codes).save(tmp_path / "m.nii.gz")
    found = read_rois(tmp_path / "m.nii.gz", series)
    assert sorted(found) == ["1", "2"]
    np.testing.assert_array_equal(found["1"], mask == 1)
    np.testing.assert_array_equal(found["2"], mask == 2)
    as_volume(mask == 1, series.affine).save(tmp_path / "nodule.nii")
    assert list(read_rois(tmp_path / "nodule.nii", series)) == ["nodule"]


def test_another_grid_is_refused_unless_asked_for(series, tmp_path):
    fine = np.kron(box(series) == 1, np.ones((1, 2, 2)))  # pixels of half the size
    affine = series.affine @ np.diag([0.5, 0.5, 1, 1])
    affine[:3, 3] = (series.affine @ [-0.25, -0.25, 0, 1])[:3]
    as_volume(fine, affine).save(tmp_path / "m.nii")
    with pytest.raises(DataError, match=r"another grid \(24 x 32 x 5\).*resample=True"):
        read_rois(tmp_path / "m.nii", series)
    found = read_rois(tmp_path / "m.nii", series, resample=True)["m"]
    np.testing.assert_array_equal(found, box(series) == 1)
    # the same number of voxels, aside by a third of a pixel
    aside = series.affine.copy()
    aside[0, 3] += 0.25
    as_volume(box(series), aside).save(tmp_path / "aside.nii")
    with pytest.raises(DataError, match="another grid"):
        read_rois(tmp_path / "aside.nii", series)


def test_a_mask_elsewhere_or_of_fractions(series, tmp_path):
    away = series.affine.copy()
    away[:3, 3] += 500
    as_volume(box(series), away).save(tmp_path / "m.nii")
    with pytest.raises(DataError, match="does not meet"):
        read_rois(tmp_path / "m.nii", series, resample=True)
    as_volume(box(series) * 0.5, series.affine).save(tmp_path / "half.nii")
    with pytest.raises(DataError, match="whole numbers"):
        read_rois(tmp_path / "half.nii", series)
    as_volume(box(series) * 0, series.affine).save(tmp_path / "none.nii")
    with pytest.raises(DataError, match="no region"):
        read_rois(tmp_path / "none.nii", series)
    with pytest.raises(MissingDataError, match="does not exist"):
        read_rois(tmp_path / "nowhere.nii", series)
    with pytest.raises(DataError, match="neither a DICOM SEG nor an RTSTRUCT"):
        read_rois(series.sources[0].path, series)


def test_a_tilted_series_takes_a_sheared_mask(tmp_path):
    angle = np.radians(20)
    down = [0.0, float(np.cos(angle)), float(-np.sin(angle))]
    for k in range(5):
        file = files.ct_slice(k, ImageOrientationPatient=[1, 0, 0, *down])
        files.save(file, tmp_path / "in" / f"{k}.dcm")
    series = read_series(tmp_path / "in")
    assert not series.regular
    as_volume(box(series), series.affine).save(tmp_path / "m.nii")
    np.testing.assert_array_equal(read_rois(tmp_path / "m.nii", series)["1"], box(series) == 1)


# ------------------------------------------------------------------------------ SEG


def segmentation(series, mask, kind="BINARY"):
    highdicom = pytest.importorskip("highdicom")
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes

    sources = [pydicom.dcmread(source.path) for source in series.sources]
    for source in sources:
        source.StudyID = "1"
    described = [
        SegmentDescription(
            segment_number=k + 1, segment_label=label,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Nodule,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for k, label in enumerate(["nodule", "spot"])
    ]  # fmt: skip
    pixels = np.stack([mask == 1, mask == 2], -1)
    pixels = pixels.astype(float if kind == "FRACTIONAL" else np.uint8)
    return Segmentation(
        source_images=sources, pixel_array=pixels,
        segmentation_type=kind, segment_descriptions=described,
        series_instance_uid=files.ROOT + "50", series_number=50,
        sop_instance_uid=files.ROOT + "51", instance_number=1, manufacturer="m",
        manufacturer_model_name="n", software_versions="1", device_serial_number="1",
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL"])
def test_dicom_seg(series, tmp_path, kind):
    segmentation(series, box(series), kind).save_as(tmp_path / "seg.dcm")
    found = read_rois(tmp_path / "seg.dcm", series)
    np.testing.assert_array_equal(found["nodule"], box(series) == 1)
    np.testing.assert_array_equal(found["spot"], box(series) == 2)


def test_dicom_seg_of_another_scan(series, tmp_path):
    file = segmentation(series, box(series))
    file.FrameOfReferenceUID = files.ROOT + "77"
    file.save_as(tmp_path / "frame.dcm")
    with pytest.raises(DataError, match="another frame of reference"):
        read_rois(tmp_path / "frame.dcm", series)
    file = segmentation(series, box(series))
    for group in file.PerFrameFunctionalGroupsSequence:
        x, y, z = group.PlanePositionSequence[0].ImagePositionPatient
        group.PlanePositionSequence[0].ImagePositionPatient = [x, y, z + 1.0]
    file.save_as(tmp_path / "between.dcm")
    with pytest.raises(DataError, match="1 mm from the nearest slice"):
        read_rois(tmp_path / "between.dcm", series)
    file = segmentation(series, box(series))
    for group in file.PerFrameFunctionalGroupsSequence:
        x, y, z = group.PlanePositionSequence[0].ImagePositionPatient
        group.PlanePositionSequence[0].ImagePositionPatient = [x + 0.8, y, z]
    file.save_as(tmp_path / "aside.dcm")
    with pytest.raises(DataError, match="another grid"):
        read_rois(tmp_path / "aside.dcm", series)
    moved = read_rois(tmp_path / "aside.dcm", series, resample=True)["nodule"]
    np.testing.assert_array_equal(moved, np.roll(box(series) == 1, 1, axis=2))


# ------------------------------------------------------------------------------ RTSTRUCT


def structures(series, contours, frame=files.ROOT + "4"):
    """RTSTRUCT of {name: [(slice, [(row, column), ...]), ...]}."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = STRUCTURES, files.ROOT + "60"
    dataset.Modality = "RTSTRUCT"
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, parts) in enumerate(contours.items(), start=1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, frame
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for k, corners in parts:
            contour = Dataset()
            index = [[k, *corner] for corner in corners]
            points = series.position_of(index) * [-1, -1, 1]
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [f"{v:.6g}" for v in points.ravel()]
            drawn.ContourSequence.append(contour)
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(drawn)
    return dataset


def square(top, left, bottom, right):
    return [(top, left), (top, right), (bottom, right), (bottom, left)]


def test_contours_are_filled_with_their_holes(series, tmp_path):
    parts = {
        "ring": [(2, square(1.5, 1.5, 12.5, 9.5)), (2, square(3.5, 3.5, 8.5, 6.5))],
        "two": [(0, square(0.5, 0.5, 3.5, 3.5)), (0, square(5.5, 5.5, 7.5, 7.5)),
                (3, square(0.5, 0.5, 3.5, 3.5))],
    }  # fmt: skip
    files.save(structures(series, parts), tmp_path / "rt.dcm")
    found = read_rois(tmp_path / "rt.dcm", series)
    ring = np.zeros(series.hu.shape, bool)
    ring[2, 2:13, 2:10] = True
    ring[2, 4:9, 4:7] = False
    np.testing.assert_array_equal(found["ring"], ring)
    assert [int(part.sum()) for part in found["two"]] == [13, 0, 0, 9, 0]


def test_the_area_of_a_circle(series, tmp_path):
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    circle = [(7.5 + 6 * np.sin(a), 5.5 + 4 * np.cos(a)) for a in angle]
    files.save(structures(series, {"disc": [(1, circle)]}), tmp_path / "rt.dcm")
    disc = read_rois(tmp_path / "rt.dcm", series)["disc"]
    row, column = np.indices(disc.shape[1:])
    inside = ((row - 7.5) / 6) ** 2 + ((column - 5.5) / 4) ** 2 < 1
    assert (disc[1] != inside).sum() <= 2
    assert not disc[[0, 2, 3, 4]].any()


def test_contours_of_another_scan_or_across_slices(series, tmp_path):
    drawn = {"a": [(1, square(1, 1, 9, 9))]}
    files.save(structures(series, drawn, frame=files.ROOT + "77"), tmp_path / "frame.dcm")
    with pytest.raises(DataError, match="another frame of reference"):
        read_rois(tmp_path / "frame.dcm", series)
    dataset = structures(series, drawn)
    contour = dataset.ROIContourSequence[0].ContourSequence[0]
    data = [float(v) for v in contour.ContourData]
    contour.ContourData = [v + 1.0 if n % 3 == 2 else v for n, v in enumerate(data)]
    files.save(dataset, tmp_path / "between.dcm")
    with pytest.raises(DataError, match="from the nearest slice"):
        read_rois(tmp_path / "between.dcm", series)
    contour.ContourData = [v + n if n % 3 == 2 else v for n, v in enumerate(data)]
    files.save(dataset, tmp_path / "across.dcm")
    with pytest.raises(DataError, match="does not lie in a slice"):
        read_rois(tmp_path / "across.dcm", series)
    contour.ContourData = data[:5]
    files.save(dataset, tmp_path / "short.dcm")
    with pytest.raises(DataError, match="three or more points"):
        read_rois(tmp_path / "short.dcm", series)
    empty = structures(series, {})
    files.save(empty, tmp_path / "empty.dcm")
    with pytest.raises(DataError, match="no region"):
        read_rois(tmp_path / "empty.dcm", series)
