"""Files a second of an index of CT, and seconds of reading a series of 140 slices.

    python benchmarks/ct_index.py                       synthetic headers of 140 attributes
    python benchmarks/ct_index.py --like FILE.dcm       headers copied from a file of yours
    python benchmarks/ct_index.py --files 20000 --workers 2

Headers alone count: the index stops before the pixels, so files of 64 x 64 stand for any size.
Beside ours, `pydicom.dcmread` of the same files, which is the least that any index on pydicom
costs, and `dcmread` with the pixels, as a plain script does. The disk's cache is warm in all rows;
"CPU" is of this process and, with workers, of its children.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset

from neurodiff.datasets.ct_index import index_ct
from neurodiff.datasets.ct_series import read_series


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--like", type=Path, help="a CT file whose header is copied")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--slices", type=int, default=140, help="of 512 x 512, to be read; or 0")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        archive(root / "archive", options.files, options.like)
        paths = sorted((root / "archive").rglob("*.dcm"))
        size = sum(path.stat().st_size for path in paths) / 1e6
        print(f"{len(paths)} files, {size:.0f} MB, {options.workers} processes")
        print(f"{'':44}{'wall s':>8}{'CPU s':>8}{'files/s':>9}")
        out = root / "index.parquet"
        row("ours, everything new", len(paths), lambda: index(root, out, options.workers))
        row("ours, nothing changed", len(paths), lambda: index(root, out, options.workers))
        row("pydicom, header alone", len(paths), lambda: plain(paths, stop=True))
        row("pydicom, with pixels", len(paths), lambda: plain(paths, stop=False))
        if options.slices:
            volume(root / "series", options.slices, options.seed)
            print(f"\n{options.slices} slices of 512 x 512")
            row(
                "ours, HU in order with padding",
                options.slices,
                lambda: read_series(root / "series"),
            )


def index(root: Path, out: Path, workers: int) -> None:
    table = index_ct(root / "archive", out, workers=workers, key="a key for a benchmark")
    assert (table["status"] == "slice").all()


def plain(paths: list[Path], *, stop: bool) -> None:
    for path in paths:
        dataset = pydicom.dcmread(path, stop_before_pixels=stop)
        dataset.get("ConvolutionKernel")


def row(name: str, files: int, do: Callable[[], Any]) -> None:
    wall, cpu = time.perf_counter(), cpu_seconds()
    do()
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    print(f"{name:44}{wall:8.2f}{cpu:8.2f}{files / wall:9.0f}")


def cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def archive(folder: Path, files: int, like: Path | None) -> None:
    """Series of 100 files."""
    model = pydicom.dcmread(like, stop_before_pixels=True) if like else header()
    model.Rows = model.Columns = 64
    model.PixelData = bytes(64 * 64 * 2)
    model["PixelData"].VR = "OW"
    for number in range(files):
        series = folder / f"{number // 100:04d}"
        series.mkdir(parents=True, exist_ok=True)
        model.SeriesInstanceUID = f"1.2.826.0.1.3680043.8.498.{number // 100 + 1}"
        model.SOPInstanceUID = f"1.2.826.0.1.3680043.8.498.9.{number + 1}"
        model.ImagePositionPatient = [0.0, 0.0, float(number % 100)]
        model.save_as(series / f"{number % 100:04d}.dcm", enforce_file_format=True)


def volume(folder: Path, slices: int, seed: int) -> None:
    model = header()
    generator = np.random.default_rng(seed)
    folder.mkdir()
    for number in range(slices):
        values = generator.integers(-1000, 1000, (512, 512), np.int16)
        model.Rows, model.Columns = values.shape
        model.ImagePositionPatient = [0.0, 0.0, float(number)]
        model.SOPInstanceUID = f"1.2.826.0.1.3680043.8.498.9.{number + 1}"
        model.PixelData = values.tobytes()
        model["PixelData"].VR = "OW"
        model.save_as(folder / f"{slices - number:04d}.dcm", enforce_file_format=True)


def header() -> Dataset:
    """A header of the size that scanners write: what a reader needs, and 60 private attributes."""
    model = Dataset()
    model.file_meta = FileMetaDataset()
    model.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    model.SOPClassUID = model.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    model.file_meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.8.498.9.1"
    model.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.8"
    model.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    model.FrameOfReferenceUID = "1.2.826.0.1.3680043.8.498.7"
    for keyword in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"):
        setattr(model, keyword, "20200101")
    for keyword in ("StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime"):
        setattr(model, keyword, "101112.5")
    for keyword in (
        "AccessionNumber", "Manufacturer", "InstitutionName", "StationName", "StudyDescription",
        "SeriesDescription", "ManufacturerModelName", "PatientID", "BodyPartExamined",
        "SoftwareVersions", "ProtocolName", "DeviceSerialNumber", "StudyID",
    ):  # fmt: skip
        setattr(model, keyword, "BENCHMARK")
    model.PatientName, model.Modality, model.ImageType = "A^B", "CT", "ORIGINAL\\PRIMARY\\AXIAL"
    for keyword in (
        "KVP", "SliceThickness", "DataCollectionDiameter", "ReconstructionDiameter",
        "DistanceSourceToDetector", "DistanceSourceToPatient", "TableHeight", "GantryDetectorTilt",
        "SpacingBetweenSlices", "WindowCenter", "WindowWidth", "SliceLocation",
    ):  # fmt: skip
        setattr(model, keyword, "0" if keyword == "GantryDetectorTilt" else "1.5")
    for keyword in ("ExposureTime", "XRayTubeCurrent", "Exposure", "GeneratorPower",
                    "SeriesNumber", "AcquisitionNumber", "InstanceNumber"):  # fmt: skip
        setattr(model, keyword, 100)
    model.ConvolutionKernel, model.FilterType, model.RotationDirection = "B30f", "WEDGE", "CW"
    model.PatientPosition, model.SpiralPitchFactor, model.CTDIvol = "HFS", 0.9, 7.5
    model.ImagePositionPatient, model.PixelSpacing = [0.0, 0.0, 0.0], [0.7, 0.7]
    model.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    model.SamplesPerPixel, model.PhotometricInterpretation = 1, "MONOCHROME2"
    model.BitsAllocated, model.BitsStored, model.HighBit = 16, 16, 15
    model.PixelRepresentation = 1
    model.RescaleSlope, model.RescaleIntercept, model.RescaleType = "1", "0", "HU"
    block = model.private_block(0x0019, "BENCHMARK", create=True)
    for number in range(60):
        block.add_new(number, "LO", f"value {number}")
    return model


if __name__ == "__main__":
    main()
