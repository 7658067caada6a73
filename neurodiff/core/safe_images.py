"""Images: what NIfTI, CIFTI, GIfTI, MGH and picture files promise is compared with their bytes.

Checks read a header, never the values. `load_image` runs the check that fits and then nibabel.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.core.safe_archives import require_gzip
from neurodiff.core.safe_limits import (
    existing_file,
    first_bytes,
    first_line,
    require_budget,
    require_ratio,
)

_GIFTI_TYPES = {"NIFTI_TYPE_UINT8": 1, "NIFTI_TYPE_INT32": 4, "NIFTI_TYPE_FLOAT32": 4}
_PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_PICTURE_PIXELS = 2**27
_MGH_SIZES = {0: 1, 1: 4, 3: 4, 4: 2}


def load_image(path: str | os.PathLike[str], *, whole: bool = True) -> Any:
    """A nibabel image whose header fits its file; values are not read yet.

    Parameters
    ----------
    whole : hold all its values against the memory budget; False for a file read in blocks.

    Raises
    ------
    MissingDataError : there is no such file, or not the other half of its pair.
    DataError : another format, a damaged header, fewer bytes than it promises, over the budget.
    """
    import nibabel

    path = existing_file(path)
    check_image(path, whole=whole)
    try:
        return nibabel.load(path)
    except FileNotFoundError as error:
        other = Path(os.fsdecode(error.filename)).name if error.filename else "the other file"
        raise MissingDataError(f"{path} lacks the other half of its pair, {other}") from None
    except DataError:
        raise
    except Exception as error:  # nibabel and its XML parser raise what they find
        raise DataError(
            f"{path} is damaged or no image ({first_line(error)}); copy it again"
        ) from None


def check_image(path: str | os.PathLike[str], *, whole: bool = True) -> None:
    """Compare what the header of an image promises with the size of the file.

    Raises
    ------
    MissingDataError, DataError : as `load_image`; files of unknown formats pass.
    """
    path = existing_file(path)
    name = path.name.lower()
    if name.endswith((".gii", ".gii.gz")):
        _check_gifti(path)
    elif name.endswith((".mgh", ".mgz")):
        _check_mgh(path, whole)
    else:
        _check_nifti(path, whole)


def _check_nifti(path: Path, whole: bool) -> None:
    header = _header_of(path)
    head = first_bytes(header, 540)
    if len(head) < 348:
        raise DataError(
            f"{header} is damaged or no image, not a readable NIfTI file ({len(head)} bytes, a "
            "header alone has 348); copy it again"
        )
    for order in ("<", ">"):
        (size,) = struct.unpack(order + "i", head[:4])
        if size == 348:
            dims = struct.unpack(order + "8h", head[40:56])
            (bits,) = struct.unpack(order + "h", head[72:74])
            (offset,) = struct.unpack(order + "f", head[108:112])
            single = head[344:347] == b"n+1"
            break
        if size == 540 and len(head) == 540:
            dims = struct.unpack(order + "8q", head[16:80])
            (bits,) = struct.unpack(order + "h", head[14:16])
            (offset,) = struct.unpack(order + "q", head[168:176])
            single = head[4:7] == b"n+2"
            break
    else:
        return  # another format: nibabel says which, or that it is none
    count = dims[0]
    if not 1 <= count <= 7 or any(length < 0 for length in dims[1 : count + 1]):
        raise DataError(f"{path} declares the dimensions {dims}, which cannot be; copy it again")
    if not math.isfinite(offset) or offset < 0 or bits < 0:
        raise DataError(f"{path} has data at byte {offset}, which cannot be; copy it again")
    wanted = math.prod(dims[1 : count + 1]) * bits // 8
    data = path if single or header != path else _partner(path)
    if data is None:
        return
    start = int(offset) if single else 0
    _require_bytes(data, start + wanted, whole)


def _header_of(path: Path) -> Path:
    """The file with the header: of a pair, the other half of the data."""
    name = path.name
    for ending in (".img", ".img.gz"):
        if name.lower().endswith(ending):
            stem = name[: len(name) - len(ending)]
            for other in (f"{stem}.hdr", f"{stem}.hdr.gz", f"{stem}.HDR"):
                if path.with_name(other).is_file():
                    return path.with_name(other)
            raise MissingDataError(f"{path} lacks the other half of its pair, {stem}.hdr")
    return path


def _partner(path: Path) -> Path | None:
    name = path.name
    for ending in (".gz", ".bz2", ""):
        if name.lower().endswith(".hdr" + ending) and ending is not None:
            stem = name[: len(name) - len(".hdr" + ending)]
            for other in (f"{stem}.img", f"{stem}.img.gz"):
                if path.with_name(other).is_file():
                    return path.with_name(other)
    return path if ".img" in name.lower() else None


def _require_bytes(path: Path, wanted: int, whole: bool) -> None:
    size = path.stat().st_size
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    if packed:
        require_ratio(str(path), wanted, size, start=2**30)  # no more than that is unpacked
    elif size < wanted:
        raise DataError(
            f"{path} is cut off, or its header is wrong: {size} bytes where {wanted} are declared; "
            "copy it again"
        )
    if whole:
        require_budget(str(path), wanted, what="all of its values")


def _check_mgh(path: Path, whole: bool) -> None:
    head = first_bytes(path, 284)
    if len(head) < 284:
        raise DataError(f"{path} has {len(head)} bytes; an MGH file has a header of 284")
    version, *shape, kind = struct.unpack(">6i", head[:24])
    if version != 1 or min(shape) < 1 or kind not in _MGH_SIZES:
        raise DataError(
            f"{path} is not a readable image (MGH version {version}, shape {tuple(shape)}, type "
            f"{kind}); copy it again"
        )
    _require_bytes(path, 284 + math.prod(shape) * _MGH_SIZES[kind], whole)


# --------------------------------------------------------------------------------------- GIfTI


def _check_gifti(path: Path) -> None:
    """Arrays unpack to exactly what they declare; no entities, no data in other files."""
    import xml.parsers.expat

    if path.name.lower().endswith(".gz"):
        require_gzip(path, start=2**28)
    require_budget(str(path), 4 * path.stat().st_size)
    parser = xml.parsers.expat.ParserCreate()
    state: dict[str, Any] = {"array": None, "data": None, "depth": 0}

    def start(tag: str, attributes: dict[str, str]) -> None:
        state["depth"] += 1
        if state["depth"] > 64:
            raise DataError(f"{path} is nested too deeply for a GIfTI file; copy it again")
        if tag == "DataArray":
            state["array"] = attributes
        elif tag == "Data":
            state["data"] = []

    def end(tag: str) -> None:
        state["depth"] -= 1
        if tag == "Data" and state["data"] is not None:
            _check_gifti_array(path, state["array"] or {}, "".join(state["data"]))
            state["data"] = None
        elif tag == "DataArray":
            state["array"] = None

    def text(words: str) -> None:
        if state["data"] is not None:
            state["data"].append(words)

    def entity(*_: Any) -> None:
        raise DataError(f"{path} defines XML entities, which GIfTI does not need; it is refused")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = text
    parser.EntityDeclHandler = entity
    try:
        gz = path.name.lower().endswith(".gz")
        with gzip.open(path, "rb") if gz else open(path, "rb") as file:
            parser.ParseFile(file)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({first_line(error)}); copy it again") from None
    except (xml.parsers.expat.ExpatError, LookupError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} is not a whole GIfTI file ({first_line(error)}); copy it again"
        ) from None


def _check_gifti_array(path: Path, about: dict[str, str], data: str) -> None:
    if about.get("ExternalFileName") or "External" in about.get("Encoding", ""):
        raise DataError(
            f"{path} has its values in another file, which is not read; save it as one file"
        )
    try:
        count = int(about.get("Dimensionality", "1"))
        dims = [int(about.get(f"Dim{k}", "1")) for k in range(min(max(count, 0), 6))]
    except ValueError:
        dims = [-1]
    width = _GIFTI_TYPES.get(about.get("DataType", ""), 8)
    wanted = math.prod(dims) * width
    if any(length < 0 for length in dims):
        raise DataError(f"{path} has an array of dimensions that cannot be; copy it again")
    require_budget(str(path), wanted, what="an array")
    encoding = about.get("Encoding", "")
    if encoding == "ASCII":
        sound = wanted // width <= len(data)
    else:
        try:
            found = base64.b64decode(data)
            if encoding == "GZipBase64Binary":
                found = zlib.decompressobj().decompress(found, wanted + 1)
        except (binascii.Error, ValueError, zlib.error):
            raise DataError(f"{path} has an array that is damaged; copy it again") from None
        sound = len(found) == wanted
    if not sound:
        raise DataError(f"{path} has an array of another size than it declares; copy it again")


# ------------------------------------------------------------------------------------ pictures


def open_picture(path: str | os.PathLike[str]) -> Any:
    """A picture as RGB (PIL).

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : no PNG, JPEG, WebP, BMP, GIF or TIFF, cut off, or over 134 million pixels.
    """
    import warnings

    import PIL.Image

    path = existing_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PIL.Image.open(path, formats=_PICTURE_FORMATS) as image:
                if image.width * image.height > _PICTURE_PIXELS:
                    raise DataError(
                        f"{path} declares {image.width} x {image.height} pixels; at most "
                        f"{_PICTURE_PIXELS} are read: make it smaller"
                    )
                require_budget(str(path), 8 * image.width * image.height)
                return image.convert("RGB")
    except DataError:
        raise
    except Exception as error:  # decoders raise what they find
        raise DataError(
            f"{path} is damaged or no picture ({first_line(error)}); copy it again"
        ) from None


def fresh_header(image: Any) -> Any:
    """The image with nothing of its header but grid, place, type and unit.

    Description, auxiliary and data base names, intent names and extensions, where scanners and
    converters leave names of people, are not taken over.

    Parameters
    ----------
    image : a nibabel image (NIfTI-1).
    """
    import nibabel

    values = np.asanyarray(image.dataobj)
    fresh = nibabel.Nifti1Image(values, image.affine)
    fresh.header.set_xyzt_units("mm")
    return fresh
