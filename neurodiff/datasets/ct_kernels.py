"""One name for a reconstruction kernel that headers write in several ways (``ct_kernels.yaml``)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from neurodiff.core.config import find_shared
from neurodiff.core.errors import DataError
from neurodiff.core.safe_io import read_yaml

CLASSES = ("soft", "medium", "sharp", "bone")


def kernel_name(
    vendor: str | None, kernel: Sequence[str], aliases: str | Path | None = None
) -> tuple[str | None, str | None]:
    """Name and class of a kernel.

    Parameters
    ----------
    vendor : Manufacturer, as the header has it.
    kernel : values of ConvolutionKernel.
    aliases : a YAML of one's own; by default that of the package.

    Returns
    -------
    The common name, and ``"soft"``, ``"medium"``, ``"sharp"`` or ``"bone"``. A kernel that is not
    listed keeps its first value and has no class; (None, None) where there is no kernel.

    Examples
    --------
    >>> kernel_name("SIEMENS", ("B30f",)), kernel_name("TOSHIBA", ("FC99",))
    (('B30', 'medium'), ('FC99', None))
    """
    if not kernel:
        return None, None
    known = _aliases(None if aliases is None else str(aliases))
    maker = (vendor or "").lower()
    for name, table in known.items():
        if maker.startswith(name):
            return table.get(_plain(kernel[0]), (kernel[0], None))
    return kernel[0], None


def _plain(word: str) -> str:
    return "".join(word.split()).lower()


@lru_cache(maxsize=8)
def _aliases(path: str | None) -> dict[str, dict[str, tuple[str, str]]]:
    file = find_shared("datasets", "ct_kernels") if path is None else Path(path)
    content: Any = read_yaml(file)
    result: dict[str, dict[str, tuple[str, str]]] = {}
    for vendor, kernels in (content or {}).items() if isinstance(content, dict) else ():
        table: dict[str, tuple[str, str]] = {}
        for name, entry in (kernels or {}).items():
            right = isinstance(entry, dict) and set(entry) == {"class", "also"}
            if not right or entry["class"] not in CLASSES:
                raise DataError(
                    f"{file} gives {vendor} {name} as {entry!r}; expected "
                    "{class: soft | medium | sharp | bone, also: [names]}"
                )
            for word in (name, *entry["also"]):
                place = table.setdefault(_plain(str(word)), (str(name), entry["class"]))
                if place[0] != str(name):
                    raise DataError(f"{file} lists {word} under {place[0]} and under {name}")
        result[str(vendor).lower()] = table
    if not result:
        raise DataError(f"{file} lists no kernel; expected vendor: name: {{class, also}}")
    return result
