"""Simulated CT series written as DICOM, as an archive would hold them.

The people in it do not exist; their names are there so that it can be tested that none gets out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neurodiff.core.errors import UsageError

VENDOR, MODEL = "SIMULATED", "Digital chest"
_ROOT = "1.2.826.0.1.3680043.8.498."


@dataclass(frozen=True, kw_only=True)
class SimulatedHeader:
    """What the header of a simulated series says; None leaves the attribute out.

    ``patient`` is a number; ``study`` and ``series`` count within the patient.
    """

    patient: int
    series: int = 1
    study: int = 1
    vendor: str = VENDOR
    model: str = MODEL
    kernel: str | None = "SHARP"
    iterative: str | None = None
    thickness_mm: float = 1.0
    mas: float = 100.0
    modality: str = "CT"


def write_simulated_series(
    folder: str | Path,
    hu: np.ndarray,
    spacing: tuple[float, float],
    header: SimulatedHeader,
    *,
    step_mm: float = 1.0,
    padding: np.ndarray | None = None,
    leave_out: tuple[int, ...] = (),
    prefix: str = "",
) -> list[Path]:
    """Write slices as CT images whose file names do not tell their order.

    Parameters
    ----------
    hu : (slices, rows, columns), rounded to whole HU.
    spacing : (row_mm, column_mm).
    step_mm : distance of slices.
    padding : bool like ``hu``; stored as -2000 with PixelPaddingValue.
    leave_out : numbers of slices that are not written.
    prefix : of the file names.
    """
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset

    if hu.ndim != 3:
        raise UsageError(f"hu has shape {hu.shape}; expected (slices, rows, columns)")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored = np.rint(np.clip(hu, -1500, 30000)).astype("<i2")
    if padding is not None:
        stored[padding] = -2000
    own = f"{header.patient}.{header.study}"
    paths = []
    for k, values in enumerate(stored):
        if k in leave_out:
            continue
        one = Dataset()
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        one.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        one.SOPInstanceUID = f"{_ROOT}9.{own}.{header.series}.{k + 1}"
        one.StudyInstanceUID = f"{_ROOT}7.{own}"
        one.SeriesInstanceUID = f"{_ROOT}8.{own}.{header.series}"
        one.FrameOfReferenceUID, one.PositionReferenceIndicator = f"{_ROOT}6.{own}", ""
        one.PatientName = f"Simulated^Person{header.patient:04d}"
        one.PatientID, one.PatientSex = f"SIM-{header.patient:04d}", "O"
        one.PatientBirthDate, one.StudyDate, one.StudyTime = "19500101", "20200101", "120000"
        one.StudyID, one.AccessionNumber, one.ReferringPhysicianName = "1", "", ""
        one.Modality, one.SeriesNumber, one.InstanceNumber = header.modality, header.series, k + 1
        one.AcquisitionNumber = 1
        one.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        one.Manufacturer, one.ManufacturerModelName = header.vendor, header.model
        if header.kernel is not None:
            one.ConvolutionKernel = header.kernel
        if header.iterative is not None:
            one.SeriesDescription = header.iterative
        one.KVP, one.Exposure = "120", int(header.mas)
        one.SliceThickness = f"{header.thickness_mm:g}"
        one.BodyPartExamined, one.PatientPosition = "CHEST", "HFS"
        one.PixelSpacing = [f"{spacing[0]:.8g}", f"{spacing[1]:.8g}"]
        one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        one.ImagePositionPatient = ["-175", "-175", f"{k * step_mm:g}"]
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.Rows, one.Columns = values.shape
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
        one.RescaleSlope, one.RescaleIntercept, one.RescaleType = 1, 0, "HU"
        if padding is not None:
            one.add_new("PixelPaddingValue", "SS", -2000)
        one.add_new("PixelData", "OW", values.tobytes())
        name = hashlib.sha256(f"{own}.{header.series}.{k}".encode()).hexdigest()[:8]
        path = folder / f"{prefix}{name}.dcm"
        one.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths
