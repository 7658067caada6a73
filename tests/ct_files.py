"""Small CT files for tests: slices whose values say where they lie."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset

CT = "1.2.840.10008.5.1.4.1.1.2"
NAME, PATIENT = "Secret^Person", "SECRET-ID-77"
ROOT = "1.2.826.0.1.3680043.8.498."


def slice_values(k, shape=(16, 12)):
    """HU of slice k: 200 k + 12 row + column, so that no two pixels of a series are alike."""
    row, column = np.indices(shape)
    return (200 * k + 12 * row + column).astype(np.int16)


def ct_slice(k=0, *, values=None, step=2.0, **changes):
    """A CT image at ``z = step * k``; ``changes`` set attributes, None takes one away."""
    values = slice_values(k) if values is None else np.asarray(values, np.int16)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.PatientName, dataset.PatientID = NAME, PATIENT
    dataset.PatientBirthDate, dataset.PatientSex = "19500102", "F"
    dataset.StudyDate, dataset.StudyTime = "20200304", "101112"
    dataset.AccessionNumber, dataset.StudyID = "SECRET-ACC", "1"
    dataset.ReferringPhysicianName, dataset.InstitutionName = "Secret^Doctor", "Secret Hospital"
    dataset.SOPClassUID = CT
    dataset.SOPInstanceUID = f"{ROOT}1.{k + 1}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = ROOT + "2", ROOT + "3"
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = ROOT + "4", ""
    dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = "CT", 5, k + 1
    dataset.AcquisitionNumber = 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Manufacturer, dataset.ManufacturerModelName = "SIEMENS", "Force"
    dataset.ConvolutionKernel, dataset.KVP = "B30f", "120"
    dataset.SliceThickness, dataset.Exposure = "2.0", 100
    dataset.BodyPartExamined, dataset.PatientPosition = "CHEST", "HFS"
    dataset.SeriesDescription, dataset.ImageComments = "THORAX", "Secret comment"
    dataset.PixelSpacing = [0.5, 0.8]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [-3.0, -4.0, float(step * k)]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = values.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 1
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, 0, "HU"
    dataset.add_new("PixelData", "OW", values.astype("<i2").tobytes())
    dataset.add_new((0x0009, 0x0010), "LO", "SECRET PRIVATE")
    for name, value in changes.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


def save(dataset, path):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_slices(folder, numbers=range(5), **changes):
    """Files whose names run against the order of the slices."""
    return [save(ct_slice(k, **changes), Path(folder) / f"{90 - k:02d}.dcm") for k in numbers]


def enhanced(frames=3, step=2.0):
    """An Enhanced CT image: every frame with a slope and intercept of its own, in reverse order."""
    dataset = ct_slice(0)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CT + ".1"
    for name in (
        "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope",
        "RescaleIntercept", "RescaleType", "SliceThickness", "KVP", "ConvolutionKernel",
    ):  # fmt: skip
        delattr(dataset, name)
    measures, turned, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.8], 2.0
    turned.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    made, beam = Dataset(), Dataset()
    made.ConvolutionKernel, beam.KVP = "FC13", 120.0
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [turned]
    shared.CTReconstructionSequence, shared.CTXRayDetailsSequence = [made], [beam]
    groups, values = [], []
    for k in reversed(range(frames)):
        group, place, transform = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [-3.0, -4.0, step * k]
        transform.RescaleSlope, transform.RescaleIntercept = k + 1, -10 * k
        transform.RescaleType = "HU"
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [place], [transform]
        groups.append(group)
        values.append(slice_values(k))
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.NumberOfFrames = frames
    dataset.PixelData = np.stack(values).astype("<i2").tobytes()
    return dataset
