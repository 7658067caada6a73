"""What makes a run or a stage the same one: a hash of what went in, and where two differ."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from neurodiff.core.run_items import canonical

_MISSING = object()


def fingerprint(value: Mapping[str, Any]) -> str:
    """First 10 hex digits of the SHA-256 of a dictionary; order of keys does not matter.

    Examples
    --------
    >>> fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": (2,), "a": 1})
    True
    """
    return hashlib.sha256(canonical(value)).hexdigest()[:10]


def slug(text: str) -> str:
    """``text`` as a part of a folder's name: runs of other signs than letters, digits, ``_`` and
    ``.`` become one ``_``."""
    return re.sub(r"[^A-Za-z0-9_.]+", "_", str(text)).strip("._") or "unnamed"


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A phrase for each key, however deep, whose value is another; compared as JSON holds them.

    Examples
    --------
    >>> differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}})
    ['a.c (there 2, now 3)']
    """
    own, new = _flat(there), _flat(json.loads(canonical(now)))
    return [
        f"{key} (there {own.get(key, 'absent')!r}, now {new.get(key, 'absent')!r})"
        for key in sorted({*own, *new})
        if not _same(own.get(key, _MISSING), new.get(key, _MISSING))
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with keys joined by dots."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return found


def _same(one: Any, other: Any) -> bool:
    if one is _MISSING or other is _MISSING:
        return one is other
    return canonical([one]) == canonical([other])
