"""Pairs of CT series and phantom scans made into filters, with what was checked on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neurodiff.bridges.ct_filter import (
    LOCKED,
    Estimate,
    Hold,
    RadialFilter,
    bin_edges,
    cross_spectra,
    filter_from_spectra,
)
from neurodiff.bridges.ct_profile import fit_taps, thicken
from neurodiff.core.errors import DataError, UsageError
from neurodiff.pipelines.ct_mapping import Rule, vendor_key
from neurodiff.pipelines.ct_support import shift_of

_SLACK = 0.1  # share by which slices may be thinner or thicker than the fitted ones
BODY = -900.0  # HU above which a pixel of the softer image belongs to the body


@dataclass(frozen=True, kw_only=True)
class FitReport:
    """What a fit found.

    Attributes
    ----------
    slices, series : pairs of slices and of series behind it.
    rmse_before, rmse_after : HU in the body, each slice filtered by a fit on the others (even
        and odd slices in turn).
    coherence_limit : lp/cm; infinity where the coherence holds over the whole range.
    sharpens : the target is sharper than the source.
    shift_hu : mean of target minus source inside soft tissue, which the filter does not undo; None
        where the pairs hold too little of it.
    warnings : a sentence each.
    """

    slices: int
    series: int
    rmse_before: float
    rmse_after: float
    coherence_limit: float
    sharpens: bool
    shift_hu: float | None
    warnings: tuple[str, ...] = ()


def fit_pairs(
    pairs: Sequence[tuple[Any, Any]],
    *,
    bins: int = 96,
    estimate: Estimate = "wiener",
    lock: float = LOCKED,
    hold: Hold = "band",
    coherence: float = 0.5,
) -> tuple[Rule, RadialFilter, FitReport]:
    """One rule with its filter from series pairs of one scanner and two kernels.

    Parameters
    ----------
    pairs : (source, target) series of the same raw data, all of one vendor, model and kernel pair.
    bins, estimate, lock, hold : see :func:`neurodiff.bridges.ct_filter.fit_filter`.
    coherence : below it nothing of the target is recovered.

    Raises
    ------
    UsageError : no pairs, or fewer than two slice pairs in all.
    DataError : pairs that are not of the same scan, scanner or kernels.
    """
    if not pairs:
        raise UsageError("there are no pairs; give at least two slices in two kernels")
    for source, target in pairs:
        _check_pair(source, target)
    first, warnings = pairs[0], _check_alike(pairs)
    slices = sum(len(source.hu) for source, _ in pairs)
    if slices < 2:
        raise UsageError(
            "there is one slice pair; a fit needs two or more, so that one can test what the other "
            "was fitted on"
        )
    edges = bin_edges([source.spacing for source, _ in pairs], bins)
    halves = [
        _spectra([(source, target) for source, target in pairs], edges, part) for part in (0, 1)
    ]
    found = filter_from_spectra(halves[0] + halves[1], estimate=estimate, lock=lock, hold=hold)
    before, after = [], []
    for part in (0, 1):
        one = filter_from_spectra(halves[1 - part], estimate=estimate, lock=lock, hold=hold)
        for source, target, padding in _parts(pairs, part):
            chosen = _chosen(pairs, source, part)
            softer = min(source.hu, target.hu, key=lambda hu: float(hu[~padding].std()))
            body = (softer > BODY)[chosen] & ~padding[chosen]
            made = one.apply(source.hu[chosen], source.spacing, padding[chosen])
            before.append((target.hu[chosen] - source.hu[chosen])[body])
            after.append((target.hu[chosen] - made)[body])
    facts, wanted = first[0].facts, first[1].facts
    if (facts.iterative or None) != (wanted.iterative or None):
        warnings.append(
            f"iterative reconstruction is {facts.iterative or 'not stated'} in the source and "
            f"{wanted.iterative or 'not stated'} in the target; it is not linear, and the filter "
            "is the linear part of the change"
        )
    limit = found.limit(coherence)
    if found.sharpens():
        warnings.append(
            "the target is sharper than the source"
            + (f"; beyond {limit:.1f} lp/cm it is not recovered" if np.isfinite(limit) else "")
        )
    thickness = [s.facts.thickness_mm for s, _ in pairs if s.facts.thickness_mm]
    rule = Rule(
        vendor=facts.vendor or "",
        model=facts.model or "*",
        kernel=facts.kernel[0],
        thickness_mm=(
            round(min(thickness) * (1 - _SLACK), 4),
            round(max(thickness) * (1 + _SLACK), 4),
        )
        if thickness
        else None,
        filter=filter_name(facts.kernel[0], wanted.kernel[0]),
        iterative=facts.iterative or None,
        spacings=tuple(sorted({tuple(map(float, source.spacing)) for source, _ in pairs})),
    )
    report = FitReport(
        slices=slices,
        series=len(pairs),
        rmse_before=_rms(before),
        rmse_after=_rms(after),
        coherence_limit=limit,
        sharpens=found.sharpens(),
        shift_hu=_shift_between(pairs),
        warnings=tuple(warnings),
    )
    return rule, found, report


def fit_thickness(thin: Any, thick: Any, *, taps: int = 7) -> tuple[Rule, RadialFilter, FitReport]:
    """The rule that makes slices as thick as those of another reconstruction of the same scan.

    Parameters
    ----------
    thin, thick : series of one scanner and kernel over the same pixels; thin slices evenly spaced.
    taps : odd number of thin slices that a thick one may hold.

    Returns
    -------
    A rule with ``taps``, a filter that changes nothing in the plane, and what was found: each
    half of the thick slices by the weights of the other half.

    Raises
    ------
    DataError : series that do not belong together, or fewer than four thick slices whose thin
        neighbours are all there.
    """
    a, b = thin.facts, thick.facts
    if vendor_key(a.vendor) != vendor_key(b.vendor) or (a.model, a.kernel) != (b.model, b.kernel):
        raise DataError(
            f"thin and thick slices are of {a.vendor} {a.model} {a.kernel} and {b.vendor} "
            f"{b.model} {b.kernel}; the thickness alone may differ"
        )
    if not thin.stack.even or thin.hu.shape[1:] != thick.hu.shape[1:] or len(thin.hu) < taps:
        raise DataError(
            f"the thin series has {thin.hu.shape} evenly spaced slices or not, the thick one "
            f"{thick.hu.shape}; give at least {taps} thin slices, evenly spaced, of the same pixels"
        )
    distance = np.abs(thick.positions_mm[:, None] - thin.positions_mm[None])
    centres, half = distance.argmin(axis=1), taps // 2
    step = float(thin.stack.step)
    used = (distance.min(axis=1) < 0.05 * step) & (centres >= half)
    used = np.flatnonzero(used & (centres < len(thin.hu) - half))
    if len(used) < 4:
        raise DataError(
            f"{len(used)} thick slices lie on thin ones with {half} on each side; four are needed, "
            "so that half of them can test the weights"
        )
    padding = thin.padding if thin.padding.any() else None
    before, after = [], []
    for part in (0, 1):
        other, tested = used[1 - part :: 2], used[part::2]
        weights = fit_taps(thin.hu, thick.hu[other], centres[other], taps=taps, padding=padding)
        made, outside = thicken(thin.hu, weights, centres[tested], padding=padding)
        body = (thick.hu[tested] > BODY) & ~outside & ~thick.padding[tested]
        before.append((thick.hu[tested] - thin.hu[centres[tested]])[body])
        after.append((thick.hu[tested] - made)[body])
    weights = fit_taps(thin.hu, thick.hu[used], centres[used], taps=taps, padding=padding)
    source = f"slice profile of {len(used)} thick slices"
    rule = Rule(
        vendor=a.vendor or "",
        model=a.model or "*",
        kernel=a.kernel[0] if a.kernel else "",
        thickness_mm=None
        if a.thickness_mm is None
        else (round(0.9 * a.thickness_mm, 4), round(1.1 * a.thickness_mm, 4)),
        filter=filter_name("thickness", f"{b.thickness_mm or 0:g} mm"),
        iterative=a.iterative or None,
        taps=tuple(float(weight) for weight in weights),
        step_mm=step,
    )
    report = FitReport(
        slices=len(used),
        series=1,
        rmse_before=_rms(before),
        rmse_after=_rms(after),
        coherence_limit=float("inf"),
        sharpens=False,
        shift_hu=None,
    )
    return rule, RadialFilter.from_gain([0.0, 20.0], [1.0, 1.0], source=source), report


def filter_name(source: str, target: str) -> str:
    """File name of the filter between two kernels.

    Examples
    --------
    >>> filter_name("FC51", "Br 40/3")
    'fc51_br_40_3.json'
    """
    plain = [
        "".join(letter if letter.isalnum() else "_" for letter in name.lower())
        for name in (source, target)
    ]
    return f"{plain[0]}_{plain[1]}.json"


def _spectra(pairs: Sequence[tuple[Any, Any]], edges: np.ndarray, part: int) -> Any:
    """Cross-spectra of every other slice, counted through all pairs."""
    total = None
    for source, target, padding in _parts(pairs, part):
        chosen = _chosen(pairs, source, part)
        one = cross_spectra(
            source.hu[chosen],
            target.hu[chosen],
            source.spacing,
            edges=edges,
            padding=padding[chosen],
        )
        total = one if total is None else total + one
    return total


def _parts(pairs: Sequence[tuple[Any, Any]], part: int) -> list[tuple[Any, Any, np.ndarray]]:
    """The pairs that have slices in a half, with their common padding."""
    return [
        (source, target, source.padding | target.padding)
        for source, target in pairs
        if len(_chosen(pairs, source, part))
    ]


def _chosen(pairs: Sequence[tuple[Any, Any]], source: Any, part: int) -> np.ndarray:
    before = 0
    for other, _ in pairs:
        if other is source:
            break
        before += len(other.hu)
    index = np.arange(len(source.hu))
    return index[(index + before) % 2 == part]


def _check_pair(source: Any, target: Any) -> None:
    for name, series in (("source", source), ("target", target)):
        facts = series.facts
        if not facts.kernel:
            raise DataError(
                f"the {name} {series.name or 'series'} names no kernel; a filter leads from one "
                "named kernel to another"
            )
    if source is target or source.facts.kernel == target.facts.kernel:
        raise DataError(
            f"both series of a pair are of kernel {source.facts.kernel[0]}; nothing is to be fitted"
        )
    a, b = source.facts, target.facts
    if vendor_key(a.vendor) != vendor_key(b.vendor) or (a.model or "") != (b.model or ""):
        raise DataError(
            f"a pair has series of {a.vendor} {a.model} and {b.vendor} {b.model}; a filter holds "
            "between reconstructions of one scanner's raw data"
        )
    same = source.hu.shape == target.hu.shape and np.allclose(
        source.spacing, target.spacing, rtol=1e-3
    )
    if not same or not np.allclose(source.positions_mm, target.positions_mm, atol=0.05):
        raise DataError(
            f"the series {source.name or 'source'} {source.hu.shape} and {target.name or 'target'} "
            f"{target.hu.shape} are not the same slices; pairs are reconstructions of one scan at "
            "the same positions and pixels"
        )


def _check_alike(pairs: Sequence[tuple[Any, Any]]) -> list[str]:
    """Warnings of a set of pairs; DataError where they do not belong together."""
    kinds = {
        (
            vendor_key(s.facts.vendor),
            s.facts.model,
            s.facts.kernel,
            t.facts.kernel,
            s.facts.iterative,
            t.facts.iterative,
        )
        for s, t in pairs
    }
    if len(kinds) > 1:
        raise DataError(
            f"the pairs are of {len(kinds)} kinds (vendor, model, kernels, iterative "
            "reconstruction); fit one kind at a time"
        )
    warnings = []
    if len(pairs) == 1:
        warnings.append(
            "one pair of series: neighbouring slices of one scan are not independent, so the error "
            "on held-out slices is optimistic"
        )
    if any(
        s.facts.mas and t.facts.mas and abs(s.facts.mas / t.facts.mas - 1) > 0.02 for s, t in pairs
    ):
        warnings.append("source and target differ in mAs; are they of the same raw data?")
    return warnings


def _shift_between(pairs: Sequence[tuple[Any, Any]]) -> float | None:
    shifts = [
        shift_of(source.hu, target.hu, source.padding | target.padding, source.spacing)["soft"]
        for source, target in pairs
    ]
    known = [shift for shift in shifts if shift is not None]
    return float(np.mean(known)) if known else None


def _rms(parts: list[np.ndarray]) -> float:
    values = np.concatenate(parts)
    return (
        float(np.sqrt(np.square(values, dtype=np.float64).mean())) if len(values) else float("nan")
    )
