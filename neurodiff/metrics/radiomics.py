"""Radiomic features after IBSI-1, by its names, with the names of pyradiomics beside them.

One call takes an image and a region of interest through the whole chain. Which choices were made
is all in ``RadiomicsSettings``; a table of features without them cannot be compared with another.

References
----------
Zwanenburg et al. 2020, Radiology 295:328-338; Image Biomarker Standardisation Initiative,
reference manual (arXiv 1612.07003). Checked against every value of its digital phantom that
belongs to a family here (all but the two enclosing bodies that have no value).

Examples
--------
>>> cube = np.arange(27.0).reshape(3, 3, 3)
>>> settings = RadiomicsSettings(bin_count=4, families=("stat",))
>>> features = radiomics(cube, np.ones((3, 3, 3), dtype=bool), (1.0, 1.0, 1.0), settings)
>>> features["stat_mean"], features["stat_range"]
(13.0, 26.0)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from neurodiff.core.errors import DataError, UsageError, suggest
from neurodiff.metrics import (
    radiomics_dependence,
    radiomics_glcm,
    radiomics_histogram,
    radiomics_intensity,
    radiomics_morphology,
    radiomics_ngtdm,
    radiomics_runs,
    radiomics_zones,
)
from neurodiff.metrics.radiomics_chain import Region, prepare
from neurodiff.metrics.radiomics_names import PYRADIOMICS, feature_class, reason

__all__ = [
    "AGGREGATIONS",
    "FAMILIES",
    "PYRADIOMICS",
    "Features",
    "RadiomicsSettings",
    "as_pyradiomics",
    "feature_class",
    "radiomics",
]

FAMILIES = (
    "morph", "loc", "stat", "ih", "ivh", "cm", "rlm", "szm", "dzm", "ngt", "ngl"
)  # fmt: skip
AGGREGATIONS = ("2D_avg", "2D_comb", "2_5D_avg", "2_5D_comb", "3D_avg", "3D_comb")


@dataclass(frozen=True, kw_only=True)
class RadiomicsSettings:
    """Every choice of the chain.

    Attributes
    ----------
    slice_axis : axis of the image across slices: 0 for (slices, rows, columns), 2 for (i, j, k).
        The spacing follows the image's axes.
    spacing_mm : isotropic spacing to interpolate to; three numbers (slices, rows, columns), where
        None keeps an axis as it is; or None: no interpolation.
    interpolator : of the image; the mask is always interpolated linearly and cut at one half.
    interpolation : "always" interpolates even where the spacing is the wanted one already.
    round_levels : round to whole numbers after interpolation, as IBSI asks of HU.
    resegment_range : lowest and highest intensity that stay in the intensity mask, or None.
    outlier_sd : how many standard deviations from the mean stay, or None. IBSI uses 3.
    bin_width, bin_count : discretisation by one of them; without either the intensities must be
        grey levels already (whole, from 1).
    bin_origin : where bins of a given width begin: "lowest" (IBSI: at the range's lower end, or
        at the region's minimum where there is no range) or "multiple" (pyradiomics: at the
        multiple of the width at or below the minimum).
    aggregation : IBSI's aggregations of directions and slices, any of ``AGGREGATIONS``. Families
        without directions are computed for 2D, 2.5D and 3D as these name them.
    families : any of ``FAMILIES``.
    distance : voxels between the two of a co-occurring pair, and reach of the dependence.
    dependence_coarseness : levels by which dependent neighbours may differ (IBSI's alpha).
    ivh_step : bin of the intensity-volume histogram, in units of intensity.

    Raises
    ------
    UsageError : a value outside what is named above.
    """

    slice_axis: int = 0
    spacing_mm: Any = None
    interpolator: Literal["linear", "cubic"] = "linear"
    interpolation: Literal["needed", "always"] = "needed"
    round_levels: bool = False
    resegment_range: tuple[float | int, float | int] | None = None
    outlier_sd: float | int | None = None
    bin_width: float | int | None = 25.0
    bin_count: int | None = None
    bin_origin: Literal["lowest", "multiple"] = "lowest"
    aggregation: tuple[str, ...] = ("3D_avg",)
    families: tuple[str, ...] = FAMILIES
    distance: int = 1
    dependence_coarseness: int = 0
    ivh_step: float | int = 1.0

    def __post_init__(self) -> None:
        if self.bin_count is not None and self.bin_width == RadiomicsSettings.bin_width:
            object.__setattr__(self, "bin_width", None)  # the default gives way to a count
        checks = (
            ("slice_axis", self.slice_axis in (0, 1, 2), "0, 1 or 2"),
            ("interpolator", self.interpolator in ("linear", "cubic"), "'linear' or 'cubic'"),
            ("interpolation", self.interpolation in ("needed", "always"), "'needed' or 'always'"),
            ("bin_width", self.bin_width is None or _positive(self.bin_width), "above 0"),
            (
                "bin_width",
                self.bin_width is None or self.bin_count is None,
                "None where bin_count is given",
            ),
            ("bin_count", self.bin_count is None or self.bin_count >= 1, "a count from 1"),
            ("bin_origin", self.bin_origin in ("lowest", "multiple"), "'lowest' or 'multiple'"),
            ("outlier_sd", self.outlier_sd is None or _positive(self.outlier_sd), "above 0"),
            ("distance", self.distance >= 1, "1 or more"),
            ("dependence_coarseness", self.dependence_coarseness >= 0, "0 or more"),
            ("ivh_step", _positive(self.ivh_step), "above 0"),
            (
                "resegment_range",
                self.resegment_range is None or self.resegment_range[0] < self.resegment_range[1],
                "two numbers, the lower first",
            ),
        )
        for name, good, wanted in checks:
            if not good:
                raise UsageError(f"{name} is {getattr(self, name)!r}; give {wanted}")
        for name, given, known in (
            ("aggregation", self.aggregation, AGGREGATIONS),
            ("families", self.families, FAMILIES),
        ):
            if isinstance(given, str) or not given:
                raise UsageError(f"{name} is {given!r}; give a tuple of {', '.join(known)}")
            for one in given:
                if one not in known:
                    raise UsageError(
                        f"{name} names {one!r}; there are {', '.join(known)}.{suggest(one, known)}"
                    )

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> RadiomicsSettings:
        """Settings from a recipe: the names above, lists where they are tuples.

        Raises
        ------
        UsageError : a name that is none of the settings, or a value that does not fit.
        """
        known = cls.__dataclass_fields__
        for name in given:
            if name not in known:
                raise UsageError(
                    f"{name!r} is no setting of radiomics; there are {', '.join(known)}."
                    f"{suggest(name, known)}"
                )
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})

    @classmethod
    def pyradiomics(
        cls, *, bin_width: float | int = 25.0, in_plane: bool = False
    ) -> RadiomicsSettings:
        """Give what pyradiomics computes by default; ``in_plane`` is its force2D."""
        return cls(
            bin_width=bin_width,
            bin_origin="multiple",
            aggregation=("2_5D_avg",) if in_plane else ("3D_avg",),
        )

    def spacing_on_axes(self, spacing: tuple[float, float, float]) -> tuple[float, float, float]:
        """Spacing (slices, rows, columns) after interpolation."""
        wanted = self.spacing_mm
        if wanted is None:
            return spacing
        three = tuple(wanted) if isinstance(wanted, Sequence) else (wanted,) * 3
        if len(three) != 3 or not all(w is None or _positive(w) for w in three):
            raise UsageError(
                f"spacing_mm is {wanted!r}; give one spacing above 0, or three (slices, rows, "
                "columns) of which None keeps an axis"
            )
        a, b, c = (
            old if new is None else float(new) for old, new in zip(spacing, three, strict=True)
        )
        return a, b, c

    def range_or(self, low: float, high: float) -> tuple[float, float]:
        """Give the range of re-segmentation, or where there is none, these two."""
        if self.resegment_range is None:
            return low, high
        return float(self.resegment_range[0]), float(self.resegment_range[1])


class Features(dict[str, float]):
    """Features by name, in a fixed order; ``reasons`` says why one is NaN."""

    reasons: dict[str, str]

    def __init__(self, values: dict[str, float], reasons: dict[str, str]) -> None:
        super().__init__(values)
        self.reasons = reasons


def radiomics(
    image: np.ndarray,
    mask: np.ndarray,
    spacing_mm: Any,
    settings: RadiomicsSettings | None = None,
    roi_name: str = "ROI",
) -> Features:
    """Compute the features of one region of interest.

    Parameters
    ----------
    image : (slices, rows, columns), or the axes that ``settings.slice_axis`` names; HU for CT.
    mask : same shape, True (or 1) in the region.
    spacing_mm : voxel size along the axes of the image, mm.
    settings : the choices; without, the defaults: bins of 25, 3D averaged, no interpolation.
    roi_name : stands in messages.

    Returns
    -------
    Features by IBSI's names (``stat_mean``, ``cm_contrast_3D_avg``, ``szm_sze_3D``), computed on
    the region after the chain. NaN where a feature is not defined for this region, with a reason.

    Raises
    ------
    DataError : the mask lies on another grid, is empty or holds something else than 0 and 1; the
        spacing is not positive; an intensity of the region is NaN; nothing is left of the region.
    """
    settings = settings or RadiomicsSettings()
    spacing = _checked(image, mask, spacing_mm, roi_name)
    image, mask = (np.moveaxis(x, settings.slice_axis, 0) for x in (image, mask))
    first = spacing[settings.slice_axis]
    rest = tuple(s for axis, s in enumerate(spacing) if axis != settings.slice_axis)
    region = prepare(image, mask.astype(bool), (first, rest[0], rest[1]), settings, roi_name)
    return _features(region, settings)


def as_pyradiomics(features: dict[str, float]) -> dict[str, float]:
    """Name features as pyradiomics does, with its own numbers.

    The 107 names of its default extraction, as far as their features are there. Kurtosis becomes
    that of pyradiomics, IBSI's and 3; axes those of a covariance over n, not n - 1. Of several
    aggregations the first one computed is taken.

    Examples
    --------
    >>> as_pyradiomics({"stat_kurt": -0.5, "cm_contrast_3D_avg": 2.0})
    {'original_firstorder_Kurtosis': 2.5, 'original_glcm_Contrast': 2.0}
    """
    stems: dict[str, float] = {}
    for name, value in features.items():
        stems.setdefault(_stem(name), value)
    result = {alias: stems[own] for alias, own in PYRADIOMICS.items() if own in stems}
    if "original_firstorder_Kurtosis" in result:
        result["original_firstorder_Kurtosis"] += 3.0
    voxels = features.get("morph_voxels", 0.0)
    for alias in ("Major", "Minor", "Least"):
        if voxels and f"original_shape_{alias}AxisLength" in result:
            result[f"original_shape_{alias}AxisLength"] *= math.sqrt((voxels - 1) / voxels)
    return result


def _features(region: Region, settings: RadiomicsSettings) -> Features:
    families, ways = settings.families, settings.aggregation
    dimensions = tuple(dict.fromkeys(way.rsplit("_", 1)[0] for way in ways))
    values: dict[str, float] = {}
    if "morph" in families:
        values |= radiomics_morphology.morphology(region)
    if "loc" in families:
        values |= radiomics_intensity.local_peaks(region)
    if "stat" in families:
        values |= radiomics_intensity.statistics(region)
    if "ih" in families:
        values |= radiomics_histogram.histogram(region)
    if "ivh" in families:
        values |= radiomics_histogram.volume_histogram(region, settings.ivh_step)
    if "cm" in families:
        values |= radiomics_glcm.cooccurrence(region, ways, settings.distance)
    if "rlm" in families:
        values |= radiomics_runs.run_lengths(region, ways)
    if "szm" in families or "dzm" in families:
        values |= radiomics_zones.zones(region, dimensions, families)
    if "ngt" in families:
        values |= radiomics_ngtdm.tone_differences(region, dimensions)
    if "ngl" in families:
        values |= radiomics_dependence.dependence(
            region,
            dimensions,
            distance=settings.distance,
            coarseness=settings.dependence_coarseness,
        )
    reasons = {n: reason(n, region) for n, v in values.items() if not math.isfinite(v)}
    return Features(values, reasons)


def _stem(name: str) -> str:
    for end in (*AGGREGATIONS, "2D", "2_5D", "3D"):
        if name.endswith(f"_{end}"):
            return name[: -len(end) - 1]
    return name


def _checked(
    image: np.ndarray, mask: np.ndarray, spacing_mm: Any, roi_name: str
) -> tuple[float, float, float]:
    if image.ndim != 3:
        raise DataError(
            f"the image has shape {image.shape}; radiomics takes three axes, such as (slices, "
            "rows, columns)"
        )
    if mask.shape != image.shape:
        raise DataError(
            f"the mask of ROI {roi_name!r} lies on a grid of {mask.shape}, the image on "
            f"{image.shape}; resample the mask onto the image first"
        )
    if mask.dtype != bool and not np.isin(np.unique(mask), (0, 1)).all():
        raise DataError(
            f"the mask of ROI {roi_name!r} holds {np.unique(mask)[:4].tolist()}; it must be True "
            "or 1 inside and False or 0 outside: compare a label map with the label first"
        )
    if not mask.any():
        raise DataError(f"ROI {roi_name!r} is empty; give a mask with at least one voxel")
    spacing = tuple(float(s) for s in spacing_mm)
    if len(spacing) != 3 or not all(_positive(s) for s in spacing):
        raise DataError(
            f"the spacing of the image is {spacing} mm; give three numbers above 0, one an axis"
        )
    return spacing[0], spacing[1], spacing[2]


def _positive(value: Any) -> bool:
    return math.isfinite(value) and value > 0
