"""A processed CT series as DICOM that belongs to its study and says what was done.

    write_series(series, hu, "out/scan_001", description="UB to YA, linear", provenance={...})

Each slice is a new object of a new series: ImageType DERIVED, the sources referenced, the software
named. The acquired ConvolutionKernel is kept, because the target kernel was never acquired; the
descriptions name it. Only attributes of a list are copied; private ones and free text never are.

References
----------
DICOM PS3.3 A.3 (CT Image), C.7.6.1.1.2 (Image Type), C.12.4.1.1 (new identifiers); PS3.15 E.
"""

from __future__ import annotations

import datetime
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neurodiff.core.atomic import replaced_folder, write_error, write_json
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.provenance import package_version
from neurodiff.datasets.ct_headers import CT_IMAGE, number, quiet, read_header, text, value
from neurodiff.datasets.ct_identity import Identity, identity_of
from neurodiff.datasets.ct_series import CTSeries, SliceSource

ACQUISITION = (
    "BodyPartExamined", "PatientPosition", "Manufacturer", "ManufacturerModelName",
    "SoftwareVersions", "ScanOptions", "KVP", "DataCollectionDiameter", "ReconstructionDiameter",
    "DistanceSourceToDetector", "DistanceSourceToPatient", "GantryDetectorTilt", "TableHeight",
    "RotationDirection", "ExposureTime", "XRayTubeCurrent", "Exposure", "FilterType",
    "GeneratorPower", "FocalSpots", "ConvolutionKernel", "RevolutionTime",
    "SingleCollimationWidth", "TotalCollimationWidth", "TableSpeed", "TableFeedPerRotation",
    "SpiralPitchFactor", "ExposureModulationType", "CTDIvol",
    "AcquisitionNumber", "WindowCenter", "WindowWidth", "LossyImageCompression",
    "LossyImageCompressionRatio", "LossyImageCompressionMethod", "SpacingBetweenSlices",
)  # fmt: skip
"""Attributes that are copied in both modes: how the scan was made, and nothing about the person."""

ROUNDING = 0.5
"""HU: the largest difference between what was given and what is stored (whole HU)."""


def write_series(
    series: CTSeries,
    hu: np.ndarray,
    folder: str | Path,
    *,
    mode: Literal["link", "deidentify"] = "link",
    description: str = "",
    provenance: Mapping[str, Any] | None = None,
    key: str | bytes | None = None,
    dates: Literal["remove", "shift"] = "remove",
) -> list[Path]:
    """Write a derived series, all of it or nothing.

    Parameters
    ----------
    series : what was processed.
    hu : (slices, rows, columns) like ``series.hu``; rounded to whole HU (error at most 0.5 HU).
        Padding gets the value back that it had.
    folder : a new or empty one; ``slice_0001.dcm`` ... and ``provenance.json`` are put there.
    mode : ``"link"`` keeps patient and study, for the archive that the source lies in;
        ``"deidentify"`` replaces them.
    description : what was done, in at most 64 characters: SeriesDescription, and the beginning of
        DerivationDescription.
    provenance : written to ``provenance.json``; ``model`` (name or hash) also into the objects.
    key : secret from which identifiers are made in ``"deidentify"``; the same key gives one person,
        study and object the same new identifiers in every run.
    dates : in ``"deidentify"``, leave dates out or shift them by a number of days of the person's.

    Returns
    -------
    Paths of the slices, in order.

    Raises
    ------
    UsageError : another shape, a description that is too long, no key, a folder that holds files.
    DataError : NaN, values beyond 16 bits, a source that is no longer there, a full disk.
    """
    folder = Path(folder)
    identity = identity_of(mode, key, dates)
    _check(series, hu, folder, description)
    import pydicom

    made = datetime.datetime.now(datetime.UTC)
    common = {
        "series": pydicom.uid.generate_uid(prefix=None),
        "description": description or "Processed by neurodiff",
        "model": str((provenance or {}).get("model", "")),
        "made": made,
        "headers": {},
    }
    names = [f"slice_{number_ + 1:04d}.dcm" for number_ in range(len(series.sources))]
    record = []
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with replaced_folder(folder) as new, quiet():
            new.mkdir()
            for k, name in enumerate(names):
                dataset = _slice(series, hu[k], k, identity, common)
                # in memory first: a disk that is full fails in our write, with a plain error
                content = io.BytesIO()
                dataset.save_as(content, enforce_file_format=True)
                (new / name).write_bytes(content.getbuffer())
                sources = [identity.uid(s.sop_instance) for s in _origins(series.sources, k)]
                record.append({"file": name, "sources": sources})
            about = {
                "description": common["description"],
                "mode": mode,
                "made": made.isoformat(timespec="seconds"),
                "software": f"neurodiff {package_version()}",
                "rounding_hu": ROUNDING,
                "warnings": list(write_warnings(series)),
                "notes": [note for note in series.notes if not note.startswith("left out")],
                "slices": record,
                "provenance": dict(provenance or {}),
            }
            write_json(new / "provenance.json", about)
    except OSError as error:
        if isinstance(error, DataError):
            raise
        raise write_error(folder, error) from None
    return [folder / name for name in names]


def write_warnings(series: CTSeries) -> tuple[str, ...]:
    """What leaving names out of headers cannot do; shown to whoever passes images on."""
    warnings = []
    if series.facts.burned_in:
        warnings.append("the header says that text is burned into the pixels; look at them")
    else:
        warnings.append("text that is burned into pixels is not looked for or removed")
    part = (series.facts.body_part or "").upper()
    if not part or any(
        word in part for word in ("HEAD", "BRAIN", "SKULL", "NECK", "WHOLE", "FACE")
    ):
        warnings.append("a face may be recognised in slices of the head; it is not removed")
    return tuple(warnings)


def _check(series: CTSeries, hu: np.ndarray, folder: Path, description: str) -> None:
    hu = np.asarray(hu)
    if hu.shape != series.hu.shape:
        raise UsageError(
            f"hu has shape {hu.shape} and the series {series.hu.shape}; give one value a pixel, "
            "for a volume by series.back"
        )
    if not all(source.path or source.interpolated for source in series.sources):
        raise UsageError(
            "the series was made from an array, so that there are no headers to derive from; write "
            "NIfTI by write_nifti"
        )
    if len(description) > 64 or not description.isprintable() or "\\" in description:
        raise UsageError(
            f"the description has {len(description)} characters; expected at most 64 printable "
            "ones without a backslash"
        )
    if not np.isfinite(hu).all():
        raise DataError("the values to write hold NaN or infinity; a pixel needs a number of HU")
    low, high = float(hu.min()), float(hu.max())
    if low < -32768 or high > 32767:
        raise DataError(
            f"the values to write go from {low:g} to {high:g} HU; 16 bits hold -32768 to 32767"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} holds files already; give a new folder for the derived series")


def _origins(sources: tuple[SliceSource, ...], k: int) -> list[SliceSource]:
    """The slice itself, or the two that an interpolated one lies between."""
    if not sources[k].interpolated:
        return [sources[k]]
    before = next(s for s in reversed(sources[:k]) if not s.interpolated)
    after = next(s for s in sources[k:] if not s.interpolated)
    return [before, after]


def _slice(
    series: CTSeries, image: np.ndarray, k: int, identity: Identity, common: dict[str, Any]
) -> Any:
    """The dataset of one derived slice."""
    import pydicom

    origins = _origins(series.sources, k)
    path = origins[0].path
    if path not in common["headers"]:  # the frames of one file share its header
        common["headers"] = {path: read_header(path)}
    source = common["headers"][path]
    made = common["made"]
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SpecificCharacterSet = "ISO_IR 192"
    _acquisition(dataset, source, series)
    identity.person(dataset, source, origins[0])
    dataset.SOPClassUID = CT_IMAGE
    dataset.SOPInstanceUID = pydicom.uid.generate_uid(prefix=None)
    dataset.Modality = "CT"
    dataset.SeriesInstanceUID = common["series"]
    dataset.SeriesNumber = int(number(source, "SeriesNumber") or 0) % 10**6 + 10**6
    dataset.SeriesDescription = common["description"]
    dataset.InstanceNumber = k + 1
    for what in ("Series", "Content", "InstanceCreation"):
        setattr(dataset, f"{what}Date", made.strftime("%Y%m%d"))
        setattr(dataset, f"{what}Time", made.strftime("%H%M%S"))
    words = (text(source, "ImageType") or "").split("\\")
    third = words[2].strip() if len(words) > 2 and words[2].strip() in ("AXIAL",) else "AXIAL"
    dataset.ImageType = ["DERIVED", "SECONDARY", third]
    _derivation(dataset, origins, identity, common, interpolated=series.sources[k].interpolated)
    _place(dataset, series, k)
    _pixels(dataset, image, series.padding[k], series.sources[k].padding_hu)
    return dataset


def _acquisition(dataset: Any, source: Any, series: CTSeries) -> None:
    """How the scan was made; what a multi-frame source holds elsewhere comes from the facts."""
    for keyword in ACQUISITION:
        found = value(source, keyword)
        if found is not None:
            setattr(dataset, keyword, found)
    facts = series.facts
    filled = {
        "KVP": facts.kvp,
        "ConvolutionKernel": list(facts.kernel) or None,
        "ReconstructionDiameter": facts.diameter_mm,
        "CTDIvol": facts.ctdivol,
        "SpiralPitchFactor": facts.pitch,
    }
    for keyword, known in filled.items():
        if known is not None and keyword not in dataset:
            setattr(dataset, keyword, known)
    for keyword in ("KVP", "AcquisitionNumber", "Manufacturer", "PatientPosition"):  # type 2
        if keyword not in dataset:
            setattr(dataset, keyword, None)
    if "BodyPartExamined" not in dataset:
        dataset.Laterality = ""  # type 2C: of a paired part of the body, which nothing excludes
    if facts.contrast:
        dataset.ContrastBolusAgent = "CONTRAST"  # mode link puts the agent's name there


def _derivation(
    dataset: Any,
    origins: list[SliceSource],
    identity: Identity,
    common: dict[str, Any],
    *,
    interpolated: bool,
) -> None:
    import pydicom

    model = f"; model {common['model']}" if common["model"] else ""
    between = "; slice interpolated between its neighbours" if interpolated else ""
    dataset.DerivationDescription = f"{common['description']}{between}{model}"[:1024]
    dataset.DerivationCodeSequence = [_code("113062", "Pixel by pixel calculation")]
    references = []
    for origin in origins:
        item = pydicom.Dataset()
        item.ReferencedSOPClassUID = origin.sop_class or CT_IMAGE
        item.ReferencedSOPInstanceUID = identity.uid(origin.sop_instance)
        if origin.sop_class not in ("", CT_IMAGE):
            item.ReferencedFrameNumber = origin.frame + 1
        item.PurposeOfReferenceCodeSequence = [
            _code("121322", "Source image for image processing operation")
        ]
        item.SpatialLocationsPreserved = "NO" if interpolated else "YES"
        references.append(item)
    dataset.SourceImageSequence = references
    equipment = pydicom.Dataset()
    equipment.PurposeOfReferenceCodeSequence = [_code("109102", "Processing Equipment")]
    equipment.Manufacturer = "neurodiff"
    equipment.ManufacturerModelName = "neurodiff"
    equipment.SoftwareVersions = f"neurodiff {package_version()}"
    equipment.ContributionDateTime = common["made"].strftime("%Y%m%d%H%M%S+0000")
    equipment.ContributionDescription = f"{common['description']}{model}"[:1024]
    dataset.ContributingEquipmentSequence = [equipment]


def _code(number_: str, meaning: str) -> Any:
    import pydicom

    item = pydicom.Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = number_, "DCM", meaning
    return item


def _place(dataset: Any, series: CTSeries, k: int) -> None:
    from pydicom.valuerep import format_number_as_ds

    def lengths(numbers: Any) -> list[str]:
        return [format_number_as_ds(float(v)) for v in numbers]

    stack, source = series.stack, series.sources[k]
    dataset.ImagePositionPatient = lengths(stack.origins[k])
    dataset.ImageOrientationPatient = lengths([*stack.across, *stack.down])
    dataset.PixelSpacing = lengths(stack.spacing)
    thickness = source.thickness_mm or series.facts.thickness_mm
    dataset.SliceThickness = None if thickness is None else format_number_as_ds(float(thickness))


def _pixels(dataset: Any, image: np.ndarray, padding: np.ndarray, padding_hu: float | None) -> None:
    """Signed 16 bits, slope 1, intercept 0; padding as it was, declared."""
    stored = np.rint(np.asarray(image, np.float64)).astype(np.int16)
    if padding.any():
        fill = int(np.clip(np.rint(-1024 if padding_hu is None else padding_hu), -32768, 32767))
        real = set(np.unique(stored[~padding]).tolist())
        while fill in real and fill > -32768:  # a measured pixel must not be read as padding
            fill -= 1
        stored[padding] = fill
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 1
    if padding.any():
        dataset.add_new("PixelPaddingValue", "SS", fill)
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "HU"
    dataset.add_new("PixelData", "OW", stored.astype("<i2").tobytes())
