"""What the header of one DICOM file says: no pixel is read here.

Nothing below puts a patient's name, number or date into a message; files are named by the path
that the user gave.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.core.safe_limits import require_deflated

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
LEGACY_ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.2"
DEFLATED = b"1.2.840.10008.1.2.1.99"
MULTI_FRAME = (ENHANCED_CT, LEGACY_ENHANCED_CT)
DICOMDIR = "1.2.840.10008.1.3.10"

NOT_SLICES = re.compile(
    r"LOCALI[SZ]ER|SCOUT|SURVIEW|TOPOGRAM|PATIENT_INFO|SCREEN ?SAVE|PROTOCOL|DOSE_INFO|SR_",
    re.IGNORECASE,
)
"""Words of ImageType that tell an overview or a screen save from a slice."""

ITERATIVE = re.compile(
    r"iDose\S*|IMR\b|ASIR-?V?\b|VEO\b|TrueFidelity|DLIR\S*|SAFIRE|ADMIRE|IRIS\b|QIR\b|"
    r"AIDR\S*|FIRST\b|AiCE|PIQE",
    re.IGNORECASE,
)
"""Names under which vendors sell iterative and learned reconstruction."""


_TEXT_VRS = ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "PN", "SH", "TM", "UI")


@dataclass(frozen=True, kw_only=True)
class SeriesFacts:
    """How a series was made; None where the header does not say.

    Attributes
    ----------
    vendor, model, software : of the scanner.
    kernel : values of ConvolutionKernel, as written; empty where there are none.
    iterative : how the header names iterative reconstruction. None is "not stated", never "no".
    kvp, mas, ctdivol, pitch : kV, mAs, mGy, unitless.
    thickness_mm : SliceThickness (not the distance of slices).
    spacing_mm : from one pixel to the next, (down the rows, along the columns) = (y, x).
    diameter_mm : of the reconstruction.
    slices : how many.
    contrast : whether an agent is named; None where the header has no such attribute.
    tilt_degrees : between the slices' normal and the way from slice to slice, measured from
        positions; the sign is that of the shift along the image's columns (down is positive).
    body_part : BodyPartExamined.
    derived, lossy, burned_in : ImageType says DERIVED; compressed with loss; annotation in pixels.
    """

    vendor: str | None = None
    model: str | None = None
    software: str | None = None
    kernel: tuple[str, ...] = ()
    iterative: str | None = None
    kvp: float | None = None
    mas: float | None = None
    ctdivol: float | None = None
    pitch: float | None = None
    thickness_mm: float | None = None
    spacing_mm: tuple[float, float] = (1.0, 1.0)
    diameter_mm: float | None = None
    slices: int = 0
    contrast: bool | None = None
    tilt_degrees: float = 0.0
    body_part: str | None = None
    derived: bool = False
    lossy: bool = False
    burned_in: bool | None = None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """pydicom without its warnings of values that break the rules; what matters is checked here."""
    import pydicom

    settings = pydicom.config.settings
    before = settings.reading_validation_mode
    settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        settings.reading_validation_mode = before


def read_header(path: str | Path, *, pixels: bool = False, tags: Sequence[Any] = ()) -> Any:
    """The pydicom dataset of a file, by default without its pixels.

    Parameters
    ----------
    path : the file.
    pixels : read the pixels as well.
    tags : only these; empty is all.

    Raises
    ------
    MissingDataError : no such file.
    DataError : not DICOM, encrypted, or cut off inside the header.
    """
    import pydicom

    path = Path(path)
    try:
        with open(path, "rb") as file:
            start = file.read(2048)
    except FileNotFoundError:
        raise MissingDataError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its rights") from None
    if not start:
        raise DataError(f"{path} is empty (0 bytes); copy it again")
    if DEFLATED in start:
        require_deflated(path)
    bare = start[128:132] != b"DICM"
    if bare and start[:2] != b"\x08\x00":
        raise DataError(
            f"{path} is no DICOM file, or is encrypted as a whole (its mark DICM is not there); "
            "decrypt it, or give the folder of the series"
        )
    try:
        with quiet():
            return pydicom.dcmread(
                path,
                force=bare,
                stop_before_pixels=not pixels,
                specific_tags=list(tags) or None,
            )
    except Exception as error:  # pydicom raises what its parser happens to meet
        raise DataError(
            f"{path} is damaged or cut off in its header ({type(error).__name__}); copy it again"
        ) from None


def value(dataset: Any, keyword: str, default: Any = None) -> Any:
    """A value, or ``default`` where it is absent, empty or cannot be read."""
    try:
        found = dataset[_tag(keyword)].value
    except Exception:  # absent, or a value that its type of representation cannot hold
        return default
    if found is None or (hasattr(found, "__len__") and len(found) == 0):
        return default
    return found


@cache
def _tag(keyword: str) -> Any:
    """The tag of a keyword: looking it up once makes an index twice as fast."""
    import pydicom

    return pydicom.tag.Tag(keyword)


def text(dataset: Any, keyword: str) -> str | None:
    """A value as text without surrounding blanks; several are joined by ``\\``."""
    words = _plain(dataset, keyword)
    if words is not None:
        return words or None
    found = value(dataset, keyword)
    if found is None:
        return None
    many = not isinstance(found, str) and hasattr(found, "__iter__")
    words = "\\".join(str(part).strip() for part in found) if many else str(found)
    return words.strip().strip("\0") or None


def number(dataset: Any, keyword: str) -> float | None:
    """A finite number, the first of several, or None."""
    numbers_found = numbers(dataset, keyword)
    return numbers_found[0] if numbers_found else None


def numbers(dataset: Any, keyword: str) -> tuple[float, ...]:
    """All numbers of a value; empty where one of them is none."""
    words = _plain(dataset, keyword)
    parts: Any
    if words is not None:
        parts = words.split("\\") if words else ()
    else:
        found = value(dataset, keyword)
        if found is None:
            return ()
        parts = [found] if isinstance(found, str | int | float) else list(found)
    try:
        result = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        return ()
    return result if all(abs(part) < float("inf") for part in result) else ()


def _plain(dataset: Any, keyword: str) -> str | None:
    """ASCII text of an element that pydicom has not looked at yet, "" where there is none.

    None where pydicom is to interpret it. This is five times as fast, which is what an index of
    an archive spends its time on.
    """
    get = getattr(dataset, "get_item", None)
    if get is None:
        return None
    element = get(_tag(keyword))
    if element is None:
        return ""
    raw = element.value if getattr(element, "is_raw", True) else None
    if not isinstance(raw, bytes) or element.VR not in _TEXT_VRS:
        return None
    if not raw.isascii() or b"\x1b" in raw:  # other alphabets, also those that begin by escape
        return None
    return "\\".join(part.strip(" \0") for part in raw.decode("ascii").split("\\")).strip("\n\r")


def first(dataset: Any, keyword: str) -> Any:
    """The first item of a sequence, or an empty mapping, which is only ever read."""
    items = value(dataset, keyword)
    return items[0] if items else {}


def image_type(dataset: Any) -> tuple[str, ...]:
    """ImageType in capitals."""
    words = text(dataset, "ImageType") or ""
    return tuple(word.strip().upper() for word in words.split("\\")) if words else ()


def why_not_a_slice(dataset: Any) -> str | None:
    """Why a file is left out of a series, as the end of "left out: ..."; None for a CT slice."""
    sop = text(dataset, "SOPClassUID")
    kind = text(dataset, "Modality")
    if sop == DICOMDIR:
        return "a directory of files (DICOMDIR)"
    if kind is not None and kind != "CT":
        return f"of modality {kind}, not CT"
    if sop is not None and sop not in (CT_IMAGE, *MULTI_FRAME):
        return "no CT image (another kind of object, such as a screen save)"
    if kind is None and sop is None:
        return "without modality and kind of object, so that nothing says it is CT"
    words = image_type(dataset)
    if any(NOT_SLICES.search(word) for word in words):
        return f"no slice ({chr(92).join(words[:4])})"
    samples = number(dataset, "SamplesPerPixel")
    if samples is not None and samples != 1:
        return "a picture in colour"
    if any(word in ("SECONDARY",) for word in words[1:2]) and "ORIGINAL" in words:
        return "a secondary capture"
    return None


def is_derived(dataset: Any) -> bool:
    """Whether ImageType says that the image was computed from others."""
    return image_type(dataset)[:1] == ("DERIVED",)


def header_facts(dataset: Any, frame: Any = None) -> dict[str, Any]:
    """Values of `SeriesFacts` that one header holds; ``frame`` is a frame's functional groups."""
    frame = dataset if frame is None else frame
    exposure = first(frame, "CTExposureSequence")
    details = first(frame, "CTAcquisitionDetailsSequence")
    beam = first(frame, "CTXRayDetailsSequence")
    made = first(frame, "CTReconstructionSequence")
    measures = first(frame, "PixelMeasuresSequence")
    kernel = text(made, "ConvolutionKernel") or text(dataset, "ConvolutionKernel") or ""
    lossy = text(dataset, "LossyImageCompression")
    burned = text(dataset, "BurnedInAnnotation")
    return {
        "vendor": text(dataset, "Manufacturer"),
        "model": text(dataset, "ManufacturerModelName"),
        "software": text(dataset, "SoftwareVersions"),
        "kernel": tuple(word.strip() for word in kernel.split("\\") if word.strip()),
        "iterative": iterative(dataset, made, kernel),
        "kvp": number(dataset, "KVP") or number(beam, "KVP"),
        "mas": _mas(dataset, exposure),
        "ctdivol": number(dataset, "CTDIvol") or number(exposure, "CTDIvol"),
        "pitch": number(dataset, "SpiralPitchFactor")
        or number(first(frame, "CTTableDynamicsSequence"), "SpiralPitchFactor"),
        "thickness_mm": number(measures, "SliceThickness") or number(dataset, "SliceThickness"),
        "diameter_mm": number(dataset, "ReconstructionDiameter")
        or number(made, "ReconstructionDiameter"),
        "contrast": contrast(dataset),
        "body_part": text(dataset, "BodyPartExamined")
        or text(
            first(first(frame, "FrameAnatomySequence"), "AnatomicRegionSequence"), "CodeMeaning"
        ),
        "derived": is_derived(dataset),
        "lossy": lossy in ("01", "1"),
        "burned_in": None if burned is None else burned.upper() == "YES",
        "tilt_header": number(dataset, "GantryDetectorTilt")
        or number(details, "GantryDetectorTilt"),
    }


def iterative(dataset: Any, made: Any, kernel: str) -> str | None:
    """How iterative reconstruction is named in a header; None where nothing says so.

    The names come from the kernel, the series' and protocol's descriptions and
    ReconstructionAlgorithm; for Siemens also from kernels such as ``I30f`` with a strength after
    them. Only the matched name is returned, never the rest of a free text.
    """
    for words in (
        kernel,
        text(dataset, "SeriesDescription"),
        text(dataset, "ProtocolName"),
        text(dataset, "FilterType"),
        text(dataset, "ReconstructionDescription"),
    ):
        match = ITERATIVE.search(words or "")
        if match:
            return match.group(0)
    algorithm = text(made, "ReconstructionAlgorithm") or text(dataset, "ReconstructionAlgorithm")
    if algorithm and "ITERATIVE" in algorithm.upper():
        return algorithm
    if (text(dataset, "Manufacturer") or "").lower().startswith("siemens"):
        parts = kernel.split("\\")
        if re.match(r"[IJQ]\d\d", parts[0]) or (len(parts) > 1 and parts[1].strip().isdigit()):
            return f"strength {parts[1].strip()}" if len(parts) > 1 else "yes"
    return None


def contrast(dataset: Any) -> bool | None:
    """Whether a contrast agent is named."""
    agent = text(dataset, "ContrastBolusAgent")
    if agent is not None:
        return agent.upper() not in ("NONE", "NO", "N", "WITHOUT", "0")
    return True if value(dataset, "ContrastBolusAgentSequence") else None


def _mas(dataset: Any, exposure: Any) -> float | None:
    for where in (dataset, exposure):
        for keyword, factor in (
            ("Exposure", 1.0), ("ExposureInmAs", 1.0), ("ExposureInuAs", 1e-3),
        ):  # fmt: skip
            found = number(where, keyword)
            if found:
                return found * factor
        current = number(where, "XRayTubeCurrent") or number(where, "XRayTubeCurrentInmA")
        duration = number(where, "ExposureTime") or number(where, "ExposureTimeInms")
        if current and duration:
            return current * duration / 1000  # mA x ms
    return None
