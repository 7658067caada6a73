"""Who a scan is of, in what is written: kept, or replaced by a keyed hash.

The hash is HMAC-SHA256 with a secret key, so that a name or number cannot be found by trying all
of them; one key gives the same person, study and object the same new identifiers everywhere.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
from typing import Any, Protocol

from neurodiff.core.errors import UsageError
from neurodiff.datasets.ct_headers import text, value
from neurodiff.datasets.ct_series import SliceSource

STUDY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "StudyInstanceUID",
    "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber",
    "ReferringPhysicianName", "AcquisitionDate", "AcquisitionTime", "PositionReferenceIndicator",
    "ContrastBolusAgent",
)  # fmt: skip
"""What ``link`` copies, so that the derived series lies in the study of its source."""

EMPTY_ALLOWED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "StudyID", "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator",
)  # fmt: skip
"""Attributes that an object must have, and that may be empty (type 2)."""

TEXT = ("PN", "LO", "SH", "ST", "LT", "UT", "UC")
SHIFT_DAYS = 3650


class Identity(Protocol):
    """How to write a person."""

    def person(self, dataset: Any, source: Any, origin: SliceSource) -> None:
        """Put patient, study and frame of reference into ``dataset``."""

    def uid(self, uid: str) -> str:
        """The identifier to write for one of the source."""


class Kept:
    """Identifiers as they are (mode ``link``)."""

    def person(self, dataset: Any, source: Any, origin: SliceSource) -> None:
        for keyword in STUDY:
            found = value(source, keyword)
            if found is not None:
                element = source[keyword]
                setattr(dataset, keyword, str(found) if element.VR in TEXT else found)
        removed = text(source, "PatientIdentityRemoved")
        if removed == "YES":
            dataset.PatientIdentityRemoved = "YES"
            how = text(source, "DeidentificationMethod") or "not stated by the source"
            dataset.DeidentificationMethod = how.split("\\")[0][:64]
        dataset.FrameOfReferenceUID = origin.frame_of_reference
        _fill(dataset)

    def uid(self, uid: str) -> str:
        return uid


class Remapped:
    """Identifiers by a keyed hash (mode ``deidentify``)."""

    def __init__(self, key: bytes, *, shift: bool) -> None:
        self.key, self.shift = key, shift

    def person(self, dataset: Any, source: Any, origin: SliceSource) -> None:
        who = text(source, "PatientID") or text(source, "PatientName") or ""
        dataset.PatientID = pseudonym(who, self.key)
        dataset.PatientName = dataset.PatientID.replace("-", "^")
        dataset.StudyInstanceUID = self.uid(origin.study)
        dataset.FrameOfReferenceUID = self.uid(origin.frame_of_reference)
        dataset.PatientIdentityRemoved = "YES"
        dataset.DeidentificationMethod = "neurodiff: listed attributes only, keyed hash of UIDs"
        dataset.LongitudinalTemporalInformationModified = "MODIFIED" if self.shift else "REMOVED"
        if self.shift:
            days = int.from_bytes(self._digest("days", who)[:4], "big") % SHIFT_DAYS + 1
            for keyword in ("StudyDate", "AcquisitionDate"):
                moved = earlier(text(source, keyword), days)
                if moved:
                    setattr(dataset, keyword, moved)
        _fill(dataset)

    def uid(self, uid: str) -> str:
        """``2.25.`` and 122 bits of the hash; an empty one stays empty."""
        if not uid:
            return uid
        bits = int.from_bytes(self._digest("uid", uid)[:16], "big") >> 6
        return f"2.25.{bits}"

    def _digest(self, what: str, of: str) -> bytes:
        return keyed(self.key, what, of)


def identity_of(mode: str, key: str | bytes | None, dates: str = "remove") -> Identity:
    """How a mode of `write_series` writes a person.

    Raises
    ------
    UsageError : another mode, or a key that is missing or short.
    """
    if mode not in ("link", "deidentify"):
        raise UsageError(f"mode is {mode!r}; expected 'link' or 'deidentify'")
    if dates not in ("remove", "shift"):
        raise UsageError(f"dates is {dates!r}; expected 'remove' or 'shift'")
    if mode == "link":
        return Kept()
    secret = key.encode() if isinstance(key, str) else key
    if secret is None or len(secret) < 16:
        raise UsageError(
            "deidentify needs a key of at least 16 characters, from which identifiers are made; "
            "keep it secret, and use the same one for all series of a study"
        )
    return Remapped(secret, shift=dates == "shift")


def pseudonym(patient: str, key: bytes) -> str:
    """``"anon-"`` and 16 hexadecimal digits that only the key leads to."""
    return f"anon-{keyed(key, 'patient', patient).hex()[:16]}"


def keyed(key: bytes, what: str, of: str) -> bytes:
    """HMAC-SHA256 of a word of purpose ``what`` and text ``of``."""
    return hmac.new(key, f"neurodiff {what}\0{of}".encode(), hashlib.sha256).digest()


def earlier(date: str | None, days: int) -> str | None:
    """A DICOM date (YYYYMMDD) moved back; None where it is none."""
    try:
        there = datetime.datetime.strptime(date or "", "%Y%m%d")
    except ValueError:
        return None
    return (there - datetime.timedelta(days=days)).strftime("%Y%m%d")


def _fill(dataset: Any) -> None:
    for keyword in EMPTY_ALLOWED:
        if keyword not in dataset:
            setattr(dataset, keyword, "")
