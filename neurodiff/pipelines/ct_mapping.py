"""Which scan gets which filter: rules over vendor, model, kernel and thickness.

A mapping has one standard and a list of rules. Every scan is decided before anything is applied::

    standard: {vendor: TOSHIBA, kernel: FC13}
    aliases: {FC51: [FC51-H]}
    rules:
    - {vendor: TOSHIBA, model: Aquilion PRIME, kernel: FC51, thickness_mm: [0.8, 1.2],
       filter: fc51_fc13.json}
    - {vendor: TOSHIBA, kernel: FC30, refuse: no pair of this kernel yet}

The first rule that fits decides. A scan that no rule fits is uncovered; nothing is guessed. A
filter holds between reconstructions of one vendor's raw data: a rule for another vendor than the
standard's is refused unless it says ``extrapolation: true``, and its results then carry that mark.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from neurodiff.bridges.ct_filter import RadialFilter
from neurodiff.core.atomic import write_json, write_yaml
from neurodiff.core.config import check
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.safe_io import read_json, read_yaml

Status = Literal["standard", "mapped", "extrapolation", "refused", "uncovered"]

#: statuses whose scans are filtered
APPLIED = ("mapped", "extrapolation")
#: other spellings of a vendor, in lower case, by the first word that identifies it
_VENDORS = {"canon": "toshiba", "gems": "ge", "general": "ge", "picker": "philips"}


@dataclass(frozen=True, kw_only=True)
class Standard:
    """What every scan is to look like; ``"*"`` where it does not matter.

    ``iterative`` is how its header names iterative reconstruction, None where it names none.
    """

    vendor: str
    kernel: str
    model: str = "*"
    thickness_mm: tuple[float, float] | None = None
    iterative: str | None = None


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One row of a mapping.

    Attributes
    ----------
    vendor, model, kernel : of the scan; ``"*"`` fits any model.
    thickness_mm : lowest and highest slice thickness; None fits any.
    filter : name of a JSON file beside the mapping, as written by `CTMapping.save`.
    refuse : why scans of this kind are not standardized; instead of a filter.
    extrapolation : the filter was made on another vendor or model, on purpose.
    iterative : how the headers of the fitted scans name iterative reconstruction, or None.
    spacings : (row_mm, column_mm) of the fitted scans.
    taps, step_mm : weights of thin slices in a thicker one and the distance they were fitted at.
    """

    vendor: str
    kernel: str
    model: str = "*"
    thickness_mm: tuple[float, float] | None = None
    filter: str = ""
    refuse: str = ""
    extrapolation: bool = False
    iterative: str | None = None
    spacings: tuple[tuple[float, float], ...] = ()
    taps: tuple[float, ...] = ()
    step_mm: float | None = None

    def __post_init__(self) -> None:
        if bool(self.filter) == bool(self.refuse):
            raise UsageError(
                f"the rule for {self.vendor} {self.kernel} needs either a filter or a reason to "
                "refuse, and not both"
            )
        if self.taps and (len(self.taps) % 2 == 0 or self.step_mm is None):
            raise UsageError(
                f"the rule for {self.vendor} {self.kernel} has {len(self.taps)} taps at a step of "
                f"{self.step_mm} mm; give an odd number and the step"
            )


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What happens to a scan, why, and by which filter."""

    status: Status
    reason: str
    rule: Rule | None = None
    filter: RadialFilter | None = None


@dataclass(frozen=True, kw_only=True)
class _File:
    standard: Standard
    rules: tuple[Rule, ...]
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class CTMapping:
    """A standard, rules and their filters.

    Attributes
    ----------
    standard : of every result.
    rules : tried in order.
    filters : by the name that a rule gives.
    aliases : kernel name to its other spellings; case, blanks and ``-`` never matter.

    Examples
    --------
    >>> mapping = CTMapping(
    ...     standard=Standard(vendor="TOSHIBA", kernel="FC13"),
    ...     rules=(Rule(vendor="TOSHIBA", kernel="FC30", refuse="no pair yet"),),
    ... )
    >>> scan = {"vendor": "Toshiba", "kernel": "FC30"}
    >>> mapping.decide(scan).status, mapping.decide(scan | {"kernel": "FC13"}).status
    ('refused', 'standard')
    """

    standard: Standard
    rules: tuple[Rule, ...] = ()
    filters: Mapping[str, RadialFilter] = field(default_factory=dict)
    aliases: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = [r.filter for r in self.rules if r.filter and r.filter not in self.filters]
        if missing:
            raise DataError(f"the mapping's rules name filters that are not there: {missing}")
        other = {
            _plain(spelling): _plain(name)
            for name, spellings in self.aliases.items()
            for spelling in spellings
        }
        object.__setattr__(self, "_spellings", other)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CTMapping:
        """Read ``mapping.yaml`` and the filters beside it.

        Raises
        ------
        UsageError : unknown keys or values of the wrong kind, all listed at once.
        DataError : no YAML, or a filter that is missing or no filter.
        """
        path = Path(path)
        values = read_yaml(path)
        if not isinstance(values, dict):
            raise UsageError(f"{path} is no mapping; expected keys standard and rules")
        content = check(values, _File, where=str(path))
        filters = {}
        for rule in content.rules:
            if rule.filter and rule.filter not in filters:
                if Path(rule.filter).name != rule.filter:
                    raise UsageError(
                        f"{path}: the filter {rule.filter!r} is not a plain name; filters lie in "
                        "the folder of the mapping"
                    )
                filters[rule.filter] = RadialFilter.from_dict(read_json(path.parent / rule.filter))
        return cls(
            standard=content.standard,
            rules=content.rules,
            filters=filters,
            aliases=content.aliases,
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the YAML file and, beside it, the filters as JSON."""
        path = Path(path)
        for name, one in self.filters.items():
            write_json(path.parent / name, one.to_dict())
        content: dict[str, Any] = {"standard": _written(self.standard)}
        if self.aliases:
            content["aliases"] = {name: list(other) for name, other in self.aliases.items()}
        content["rules"] = [_written(rule) for rule in self.rules]
        write_yaml(path, content)
        return path

    def decide(self, facts: Any, *, any_model: bool = False) -> Decision:
        """What happens to a scan.

        Parameters
        ----------
        facts : a series' facts, or a mapping (a row of an index): vendor, model, kernel,
            thickness_mm, iterative. A kernel may be one name or several values.
        any_model : rules hold for other models of their vendor too; such a scan is an
            extrapolation.
        """
        vendor, model = (_text(_get(facts, key)) for key in ("vendor", "model"))
        kernel, thickness = self._kernel(_get(facts, "kernel")), _number(facts, "thickness_mm")
        iterative = _text(_get(facts, "iterative")) or None
        if not kernel:
            return Decision(status="uncovered", reason="the header names no kernel")
        if not vendor:
            return Decision(status="uncovered", reason="the header names no vendor")
        if self._is_standard(vendor, model, kernel, thickness, iterative):
            return Decision(status="standard", reason="it is the standard already")
        near = []
        for rule in self.rules:
            known = self._same_scanner(rule, vendor, model)
            other = any_model and vendor_key(rule.vendor) == vendor_key(vendor)
            if not (known or other) or self._kernel(rule.kernel) != kernel:
                continue
            if not _within(thickness, rule.thickness_mm):
                low, high = rule.thickness_mm or (0, 0)
                given = "no thickness" if thickness is None else f"{thickness:g} mm slices"
                near.append(f"{given}; the rule holds from {low:g} to {high:g} mm")
                continue
            if rule.refuse:
                return Decision(status="refused", reason=rule.refuse, rule=rule)
            if _plain(rule.iterative) != _plain(iterative):
                near.append(
                    f"iterative reconstruction is {iterative or 'not stated'}; the filter was made "
                    f"with {rule.iterative or 'none stated'}"
                )
                continue
            return self._by_filter(rule, vendor, known)
        if not near and vendor_key(vendor) != vendor_key(self.standard.vendor):
            return Decision(status="refused", reason=self._no_raw_data(vendor))
        reason = near[0] if near else f"no rule for {vendor} {model} {_shown(facts)}".strip()
        return Decision(status="uncovered", reason=reason)

    def table(self, scans: Any) -> pd.DataFrame:
        """One row a scan, before anything is applied: what it is, its status and the reason.

        Parameters
        ----------
        scans : a DataFrame (an index of an archive) or a sequence of facts.
        """
        rows = scans.to_dict("records") if isinstance(scans, pd.DataFrame) else list(scans)
        names = (
            [str(name) for name in scans.index]
            if isinstance(scans, pd.DataFrame)
            else range(len(rows))
        )
        result = []
        for name, facts in zip(names, rows, strict=True):
            decision = self.decide(facts)
            result.append(
                {
                    "scan": name,
                    "vendor": _text(_get(facts, "vendor")),
                    "model": _text(_get(facts, "model")),
                    "kernel": _shown(facts),
                    "thickness_mm": _number(facts, "thickness_mm"),
                    "status": decision.status,
                    "filter": decision.rule.filter if decision.rule else "",
                    "reason": decision.reason,
                }
            )
        columns = [
            "scan",
            "vendor",
            "model",
            "kernel",
            "thickness_mm",
            "status",
            "filter",
            "reason",
        ]
        return pd.DataFrame(result, columns=columns)

    def with_rule(self, rule: Rule, one: RadialFilter | None = None) -> CTMapping:
        """The mapping with one more rule, tried first."""
        filters = dict(self.filters) | ({rule.filter: one} if one is not None else {})
        return CTMapping(
            standard=self.standard,
            rules=(rule, *self.rules),
            filters=filters,
            aliases=self.aliases,
        )

    # ------------------------------------------------------------------------------- parts

    def _by_filter(self, rule: Rule, vendor: str, known: bool) -> Decision:
        across = vendor_key(vendor) != vendor_key(self.standard.vendor)
        if across and not rule.extrapolation:
            return Decision(status="refused", reason=self._no_raw_data(vendor), rule=rule)
        status: Status = "mapped" if known and not rule.extrapolation else "extrapolation"
        found = self.filters[rule.filter]
        return Decision(status=status, reason=found.source, rule=rule, filter=found)

    def _no_raw_data(self, vendor: str) -> str:
        return (
            f"scanners of {vendor} and {self.standard.vendor} share no raw data, so no filter "
            "between them was ever measured; a rule that says extrapolation: true overrides this"
        )

    def _kernel(self, value: Any) -> str:
        """Plain name of a kernel; of several values the first, which names it."""
        if not isinstance(value, str | float | type(None)):
            value = next(iter(value), None)
        name = _plain(_text(value).split("\\")[0])
        return self._spellings.get(name, name)  # type: ignore[attr-defined]

    def _same_scanner(self, rule: Rule | Standard, vendor: str, model: str) -> bool:
        same = rule.model == "*" or _plain(rule.model) == _plain(model)
        return same and vendor_key(rule.vendor) == vendor_key(vendor)

    def _is_standard(
        self,
        vendor: str,
        model: str,
        kernel: str,
        thickness: float | None,
        iterative: str | None,
    ) -> bool:
        return (
            self._same_scanner(self.standard, vendor, model)
            and kernel == self._kernel(self.standard.kernel)
            and _within(thickness, self.standard.thickness_mm)
            and _plain(iterative) == _plain(self.standard.iterative)
        )


def vendor_key(vendor: Any) -> str:
    """What two spellings of one vendor share.

    Examples
    --------
    >>> vendor_key("GE MEDICAL SYSTEMS"), vendor_key("Canon Medical"), vendor_key("TOSHIBA_MEC")
    ('ge', 'toshiba', 'toshiba')
    """
    words = _text(vendor).lower().replace("_", " ").split()
    first = words[0] if words else ""
    return _VENDORS.get(first, first)


def _plain(text: Any) -> str:
    return _text(text).casefold().replace(" ", "").replace("-", "").replace("_", "")


def _text(value: Any) -> str:
    """Text of a cell; empty for None and NaN."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return str(value).strip()


def _get(facts: Any, key: str) -> Any:
    return facts.get(key) if isinstance(facts, Mapping) else getattr(facts, key, None)


def _shown(facts: Any) -> str:
    value = _get(facts, "kernel")
    if isinstance(value, str | float | type(None)):
        return _text(value)
    return "\\".join(str(part) for part in value)


def _number(facts: Any, key: str) -> float | None:
    value = _get(facts, key)
    if value is None or not np.isfinite(float(value)):
        return None
    return float(value)


def _within(value: float | None, limits: tuple[float, float] | None) -> bool:
    return limits is None or (value is not None and limits[0] - 1e-6 <= value <= limits[1] + 1e-6)


def _written(settings: Any) -> dict[str, Any]:
    """Fields that differ from their defaults, as YAML holds them."""
    import dataclasses

    result: dict[str, Any] = {}
    for one in dataclasses.fields(settings):
        value = getattr(settings, one.name)
        if one.default is not dataclasses.MISSING and value == one.default:
            continue
        if isinstance(value, tuple):
            value = [list(part) if isinstance(part, tuple) else part for part in value]
        result[one.name] = value
    return result
