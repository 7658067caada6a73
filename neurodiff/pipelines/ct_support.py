"""What a source supports of a filter, and what the filter did to the mean of each tissue."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from neurodiff.bridges.ct_filter import LOCKED, Estimate, Hold, RadialFilter, fitted_range
from neurodiff.bridges.ct_profile import thicken
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.radial_gain import nyquist
from neurodiff.datasets.ct_headers import SeriesFacts
from neurodiff.datasets.ct_series import CTSeries
from neurodiff.pipelines.ct_mapping import CTMapping, Decision, Rule

#: classes of HU in which a shift of the mean is reported
TISSUES = {"air": (-1100.0, -920.0), "lung": (-920.0, -500.0), "soft": (-200.0, 200.0)}
TISSUES |= {"bone": (300.0, 3000.0)}
_REPORTED = 8  # slices, evenly spread, on which the shift is measured
_LEAST_MM2 = 400.0  # area of a tissue below which its mean is not reported
_INNER_MM = 5.0  # width of the smoothing, and of the rim that an inner pixel has around it


@dataclass(frozen=True, kw_only=True)
class StandardizerSettings:
    """Choices of the linear mode.

    Attributes
    ----------
    bins : rings of a fit.
    estimate : "wiener" (least squared error) or "power" (keeps the noise spectrum).
    lock, hold : lp/cm below which the image is kept, and how: "band" to the digit, "smooth" with a
        gain that leaves 1 slowly, better where strong edges are near (see `RadialFilter.locked`).
    coherence : a frequency counts as recovered from this coherence on.
    least : share of the Nyquist frequency that has to be recovered where the target is sharper;
        below it a scan is refused, above it the report says what is not recovered.
    amplify : highest gain; a filter that was fitted to pairs is held there, others are refused.
    workers : threads.
    """

    bins: int = 96
    estimate: Estimate = "wiener"
    lock: float = LOCKED
    hold: Hold = "band"
    coherence: float = 0.5
    least: float = 0.25
    amplify: float = 30.0
    workers: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.coherence < 1 or not 0 <= self.least <= 1:
            raise UsageError(
                f"coherence is {self.coherence:g} and least {self.least:g}; both are shares"
            )
        if self.workers < 1 or not self.amplify >= 1:
            raise UsageError(f"workers is {self.workers} and amplify {self.amplify:g}; at least 1")


def supported(
    decision: Decision,
    mapping: CTMapping,
    spacing: tuple[float, float],
    settings: StandardizerSettings,
    called: str,
) -> tuple[RadialFilter, list[str]]:
    """The filter of a decision as far as the source supports it, and what is to be said of it.

    Raises
    ------
    DataError : the target is sharper and the source supports too little of it.
    """
    found, rule, highest = decision.filter, decision.rule, nyquist(spacing)
    if found is None or rule is None:
        raise DataError(f"{called} is {decision.status}: {decision.reason}")
    warnings = []
    if decision.status == "extrapolation":
        warnings.append("extrapolation: the filter was made on another vendor or model")
    outside = fitted_range(spacing, list(rule.spacings)) if rule.spacings else ""
    if outside:
        warnings.append(outside)
    if (rule.iterative or "").casefold() != (mapping.standard.iterative or "").casefold():
        warnings.append(
            "iterative reconstruction is on one side of this filter; what is not linear in it "
            "stays as it is"
        )
    if found.frequency[-1] < 0.9 * highest:
        warnings.append(
            f"the filter is known up to {found.frequency[-1]:.1f} lp/cm and the pixels hold "
            f"{highest:.1f}; its last value is held"
        )
    if not found.sharpens():
        return found, warnings
    limit = found.limit(settings.coherence)
    if limit < settings.least * highest:
        raise DataError(
            f"{called} cannot be brought to the standard: the target is sharper, and of the "
            f"{highest:.1f} lp/cm of these pixels the source supports {limit:.1f}"
        )
    peak = float(found.gain[found.frequency <= highest].max())
    if peak > settings.amplify and not found.slices:
        raise DataError(
            f"{called} cannot be brought to the standard: the filter would amplify {peak:.0f} "
            f"times (at most {settings.amplify:g}); fit it on pairs, whose noise limits it"
        )
    gain = np.minimum(found.gain, settings.amplify)
    if limit < highest:
        # beyond the limit the target's texture is not in the source: leave what is there
        fade = np.clip((found.frequency - limit) / (0.1 * limit), 0, 1)
        gain = gain + fade * (np.minimum(gain, 1.0) - gain)
        warnings.append(
            f"the target is sharper than the source supports: beyond {limit:.1f} of {highest:.1f} "
            "lp/cm nothing is recovered, and nothing is amplified"
        )
    else:
        warnings.append("the target is sharper than the source: its noise is amplified as well")
    return replace(found, gain=gain), warnings


def check_thicknesses(
    mapping: CTMapping, series: CTSeries, facts: SeriesFacts, *, any_model: bool = False
) -> None:
    """DataError where slices of several thicknesses would not all go by one rule.

    The facts of a series name one thickness, and a rule that fits it may not fit the others.
    """
    thick = sorted({source.thickness_mm for source in series.sources} - {None})
    if len(thick) < 2:
        return
    decisions = [
        mapping.decide(replace(facts, thickness_mm=one), any_model=any_model) for one in thick
    ]
    if len({(d.status, d.rule and d.rule.filter) for d in decisions}) > 1:
        lost = next((d for d in decisions if d.filter is None), decisions[0])
        raise DataError(
            f"{series.name or 'the scan'} has slices of {' and '.join(f'{one:g}' for one in thick)}"
            f" mm, which do not all go by one rule: {lost.reason}"
        )


def thickened(
    hu: np.ndarray,
    rule: Rule,
    step_mm: float | None,
    padding: np.ndarray | None,
    called: str,
) -> np.ndarray:
    """Every slice as a weighted mean over its neighbours; as it was where one of them is padding.

    Raises
    ------
    DataError : slices at uneven or other distances than the weights were fitted at.
    """
    if step_mm is None or rule.step_mm is None or abs(step_mm / rule.step_mm - 1) > 0.02:
        given = "unevenly spaced" if step_mm is None else f"{step_mm:g} mm apart"
        raise DataError(
            f"{called} has slices {given}; the slice profile was fitted at {rule.step_mm:g} mm"
        )
    made, _ = thicken(hu, rule.taps, np.arange(len(hu)), padding=padding)
    return made


def shift_of(
    before: np.ndarray,
    after: np.ndarray,
    padding: np.ndarray | None,
    spacing: tuple[float, float],
) -> dict[str, float | None]:
    """Mean change, HU, of all that was measured and inside each tissue; None where there is
    less than 4 cm² of it.

    Inside: the mean of both images over 5 mm, and its lowest and highest value over another 5 mm,
    lie in the class. At edges a sharper image moves HU from one class to another without any shift.
    """
    from scipy.ndimage import maximum_filter, minimum_filter, uniform_filter

    chosen = np.unique(np.linspace(0, len(before) - 1, _REPORTED).astype(int))
    before, after = before[chosen], after[chosen]
    measured = np.ones(before.shape, bool) if padding is None else ~padding[chosen]
    change = after - before
    result: dict[str, float | None] = {"all": _mean(change, measured, 1)}
    size = (1, *(max(1, round(_INNER_MM / side)) for side in spacing))
    smooth = uniform_filter((before + after) / 2, size)
    low, high = minimum_filter(smooth, size), maximum_filter(smooth, size)
    if not measured.all():
        wide = tuple(2 * side if side > 1 else 1 for side in size)
        measured &= ~maximum_filter(~measured, wide)  # the smoothing reached into the padding there
    least = _LEAST_MM2 / (spacing[0] * spacing[1])
    for tissue, (lowest, highest) in TISSUES.items():
        result[tissue] = _mean(change, measured & (low > lowest) & (high < highest), least)
    return result


def _mean(change: np.ndarray, chosen: np.ndarray, least: float) -> float | None:
    return float(change[chosen].mean(dtype=np.float64)) if chosen.sum() >= least else None
