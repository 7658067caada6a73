"""Names: the 107 features of pyradiomics and what IBSI calls them; why a feature is NaN."""

from __future__ import annotations

from neurodiff.metrics.radiomics_chain import Region


def _table(prefix: str, own: str, pairs: str) -> dict[str, str]:
    words = pairs.split()
    return {
        f"original_{prefix}_{alias}": f"{own}_{name}"
        for alias, name in zip(words[::2], words[1::2], strict=True)
    }


# pyradiomics' name -> ours, without the aggregation. Entropy and uniformity of its first order
# class are those of the discretised intensities, which IBSI counts as histogram.
PYRADIOMICS: dict[str, str] = {
    **_table(
        "shape",
        "morph",
        """MeshVolume volume VoxelVolume vol_approx SurfaceArea area_mesh SurfaceVolumeRatio av
        Sphericity sphericity Maximum3DDiameter diam Maximum2DDiameterSlice diam_slice
        Maximum2DDiameterRow diam_row Maximum2DDiameterColumn diam_column
        MajorAxisLength pca_maj_axis MinorAxisLength pca_min_axis LeastAxisLength pca_least_axis
        Elongation pca_elongation Flatness pca_flatness""",
    ),
    **_table(
        "firstorder",
        "stat",
        """Energy energy TotalEnergy total_energy Minimum min 10Percentile p10 90Percentile p90
        Maximum max Mean mean Median median InterquartileRange iqr Range range
        MeanAbsoluteDeviation mad RobustMeanAbsoluteDeviation rmad RootMeanSquared rms
        Skewness skew Kurtosis kurt Variance var""",
    ),
    **_table("firstorder", "ih", "Entropy entropy Uniformity uniformity"),
    **_table(
        "glcm",
        "cm",
        """Autocorrelation auto_corr JointAverage joint_avg ClusterProminence clust_prom
        ClusterShade clust_shade ClusterTendency clust_tend Contrast contrast Correlation corr
        DifferenceAverage diff_avg DifferenceEntropy diff_entr DifferenceVariance diff_var
        JointEnergy energy JointEntropy joint_entr Imc1 info_corr1 Imc2 info_corr2
        Idm inv_diff_mom Idmn inv_diff_mom_norm Id inv_diff Idn inv_diff_norm
        InverseVariance inv_var MaximumProbability joint_max MCC mcc SumAverage sum_avg
        SumEntropy sum_entr SumSquares joint_var""",
    ),
    **_table(
        "glrlm",
        "rlm",
        """ShortRunEmphasis sre LongRunEmphasis lre GrayLevelNonUniformity glnu
        GrayLevelNonUniformityNormalized glnu_norm RunLengthNonUniformity rlnu
        RunLengthNonUniformityNormalized rlnu_norm RunPercentage r_perc
        GrayLevelVariance gl_var RunVariance rl_var RunEntropy rl_entr
        LowGrayLevelRunEmphasis lgre HighGrayLevelRunEmphasis hgre
        ShortRunLowGrayLevelEmphasis srlge ShortRunHighGrayLevelEmphasis srhge
        LongRunLowGrayLevelEmphasis lrlge LongRunHighGrayLevelEmphasis lrhge""",
    ),
    **_table(
        "glszm",
        "szm",
        """SmallAreaEmphasis sze LargeAreaEmphasis lze GrayLevelNonUniformity glnu
        GrayLevelNonUniformityNormalized glnu_norm SizeZoneNonUniformity zsnu
        SizeZoneNonUniformityNormalized zsnu_norm ZonePercentage z_perc
        GrayLevelVariance gl_var ZoneVariance zs_var ZoneEntropy zs_entr
        LowGrayLevelZoneEmphasis lgze HighGrayLevelZoneEmphasis hgze
        SmallAreaLowGrayLevelEmphasis szlge SmallAreaHighGrayLevelEmphasis szhge
        LargeAreaLowGrayLevelEmphasis lzlge LargeAreaHighGrayLevelEmphasis lzhge""",
    ),
    **_table(
        "gldm",
        "ngl",
        """SmallDependenceEmphasis lde LargeDependenceEmphasis hde GrayLevelNonUniformity glnu
        DependenceNonUniformity dcnu DependenceNonUniformityNormalized dcnu_norm
        GrayLevelVariance gl_var DependenceVariance dc_var DependenceEntropy dc_entr
        LowGrayLevelEmphasis lgce HighGrayLevelEmphasis hgce
        SmallDependenceLowGrayLevelEmphasis ldlge SmallDependenceHighGrayLevelEmphasis ldhge
        LargeDependenceLowGrayLevelEmphasis hdlge LargeDependenceHighGrayLevelEmphasis hdhge""",
    ),
    **_table(
        "ngtdm",
        "ngt",
        """Coarseness coarseness Contrast contrast Busyness busyness Complexity complexity
        Strength strength""",
    ),
}


def feature_class(name: str) -> str:
    """Class of a feature by its IBSI name, or by the name that pyradiomics gives it.

    Examples
    --------
    >>> feature_class("cm_contrast_3D_avg"), feature_class("original_glcm_Contrast")
    ('cm', 'glcm')
    """
    parts = name.split("_")
    return parts[1] if parts[0] == "original" and len(parts) > 1 else parts[0]


def reason(name: str, region: Region) -> str:
    """Say in a sentence why a feature of this region has no value."""
    voxels = int(region.intensity.sum())
    if voxels == 1:
        return "the region is a single voxel; this feature needs more than one"
    own = region.values[region.intensity]
    if own.min() == own.max():
        return f"every voxel of the region is {own[0]:g}; this feature needs intensities that vary"
    if name.startswith(("morph_moran", "morph_geary")):
        return (
            f"the region's box of {' x '.join(map(str, region.values.shape))} voxels is too large "
            "for a sum over all pairs; interpolate to a coarser spacing"
        )
    if name.startswith("morph"):
        return "the region's voxels lie in one plane or on one line, or its weights sum to zero"
    if region.bins == 1 or not (region.levels > 1).any():
        return "every voxel has the same grey level after discretisation; give narrower bins"
    if name.startswith(("cm", "ngt")):
        return "no two voxels of the region are neighbours, or all pairs have one grey level"
    return "the divisor of this ratio is zero for this region"
