"""The linear anchor: one radial filter between two kernels, on real pairs.

    python benchmarks/ct_linear.py [--data ../shared/data/ct] [--inside 0.5] [--seed 0]
        [--samples 1000]

Toshiba FC51 and FC13 (2 slices of a chest phantom): fitted on one slice, tested on the other, both
ways, body RMSE of each fold in turn. Philips YA and UB (32 slices of a skull phantom, iterative
reconstruction on the side of UB): odd and even slices in turn. Both directions. Regions: squares of
32 x 32 pixels without overlap of which half (``--inside``) is above -300 HU in the softer image and
none is padding; 93 features as pyradiomics names them (bins of 25 HU, in plane, no resampling).
Intervals by bootstrap over slices.

"unlocked" is the plain radial Wiener fit (Hann window, 96 bins); "ours" holds everything below
0.5 lp/cm as it was; "smooth" is 1 at 0 alone and reaches the fit at 0.5 lp/cm; "power" is the ratio
of power spectra. "Gaussian" has the width that fits best in the fold's training slices.
"standardizer" is what CTStandardizer gives, with its limits.

Zero-shot FC51 to FC13, fitted on nothing of the pair that is tested: see the lines' own words. A
scan with two slices carries its phantom facts from the other slice.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np

ROI = 32
FAMILIES = ("stat", "ih", "cm", "rlm", "szm", "ngt", "ngl")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="../shared/data/ct", type=Path)
    parser.add_argument("--inside", default=0.5, type=float)
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--samples", default=1000, type=int)
    options = parser.parse_args()
    from neurodiff.datasets.ct_series import read_series

    names = ("toshiba_fc51", "toshiba_fc13", "philips_ya_1mm", "philips_ub_1mm")
    series = {name: read_series(options.data / name) for name in names}
    bootstrap = (options.samples, 0.95, options.seed)
    for source, target, soft in (
        ("toshiba_fc51", "toshiba_fc13", "toshiba_fc13"),
        ("toshiba_fc13", "toshiba_fc51", "toshiba_fc13"),
        ("philips_ya_1mm", "philips_ub_1mm", "philips_ub_1mm"),
        ("philips_ub_1mm", "philips_ya_1mm", "philips_ub_1mm"),
    ):
        pair = Comparison(series[source], series[target], series[soft], options.inside, bootstrap)
        print(
            f"\n{source} -> {target}: {len(pair.places)} regions, {pair.slices} slices, 1 phantom"
        )
        pair.line("untouched", lambda hu, part: hu)
        for name, how in (
            ("Gaussian", None),
            ("unlocked", {"lock": 0.0}),
            ("ours", {}),
            ("smooth", {"hold": "smooth"}),
            ("power", {"estimate": "power"}),
        ):
            if name == "Gaussian" and source != "toshiba_fc51" and soft != target:
                continue  # no Gaussian sharpens
            pair.line(name, pair.fitted(how))
        if pair.slices > 2:
            pair.line("standardizer", pair.standardizer())
        if source == "toshiba_fc51":
            zero_shot(pair, options.seed)


class Comparison:
    """Scores of conversions of one pair, slices in two folds: even and odd."""

    def __init__(
        self, source: Any, target: Any, soft: Any, inside: float, bootstrap: tuple
    ) -> None:
        self.source, self.target, self.spacing = source, target, source.spacing
        self.padding, self.bootstrap = source.padding | target.padding, bootstrap
        self.slices = len(source.hu)
        self.body = (soft.hu > -900) & ~self.padding
        self.places = regions(soft.hu, self.padding, inside)
        self.truth = self.features(target.hu)

    def features(self, hu: np.ndarray) -> Any:
        import pandas as pd

        from neurodiff.metrics.radiomics import RadiomicsSettings, as_pyradiomics, radiomics

        settings = RadiomicsSettings(
            bin_width=25.0, bin_origin="multiple", aggregation=("2_5D_avg",), families=FAMILIES
        )
        everywhere = np.ones((1, ROI, ROI), bool)
        rows = []
        for k, r, c in self.places:
            square = hu[k : k + 1, r : r + ROI, c : c + ROI].astype(np.float64)
            found = as_pyradiomics(radiomics(square, everywhere, (1.0, *self.spacing), settings))
            rows.append({name.removeprefix("original_"): value for name, value in found.items()})
        return pd.DataFrame(rows)

    def line(self, name: str, convert: Callable[[np.ndarray, int], np.ndarray]) -> None:
        """Convert each fold and print RMSE by fold, CCC with its interval, and CCC by class."""
        from neurodiff.metrics.agreement import agreement_table

        made = np.zeros_like(self.source.hu)
        for part in (0, 1):
            made[part::2] = convert(self.source.hu[part::2], part)
        rmse = [
            np.sqrt(np.square((made - self.target.hu)[part::2][self.body[part::2]]).mean())
            for part in (0, 1)
        ]
        slices = np.array([k for k, _, _ in self.places])
        found = agreement_table(
            self.features(made),
            self.truth,
            slices,
            subjects=np.zeros(len(slices), int),
            phantom=np.ones(len(slices), bool),
            bootstrap=self.bootstrap,
            class_of=lambda feature: feature.split("_")[0],
        )
        table = found.classes.set_index("feature_class")
        whole = table.loc["all"]
        classes = " ".join(
            f"{kind} {row.ccc:.3f}" for kind, row in table.iterrows() if kind != "all"
        )
        print(
            f"  {name:34} RMSE {rmse[0]:6.1f} {rmse[1]:6.1f} HU   CCC {whole.ccc:.3f} "
            f"({whole.ccc_low:.3f} to {whole.ccc_high:.3f})   {int(whole.above_085):2} of "
            f"{int(whole.features)} at 0.85   {classes}",
            flush=True,
        )

    def fitted(self, how: dict[str, Any] | None) -> Callable[[np.ndarray, int], np.ndarray]:
        """Each fold by a filter that was fitted on the other; None is a Gaussian."""

        def convert(hu: np.ndarray, part: int) -> np.ndarray:
            other = slice(1 - part, None, 2)
            given = (self.source.hu[other], self.target.hu[other], self.spacing)
            padding = self.padding[other]
            found = (
                best_gaussian(*given, padding, self.body[other])
                if how is None
                else fit_filter(*given, padding=padding, **how)
            )
            return found.apply(hu, self.spacing, self.padding[part::2])

        from neurodiff.bridges.ct_filter import fit_filter

        return convert

    def standardizer(self) -> Callable[[np.ndarray, int], np.ndarray]:
        """Fitted and applied as a user does, coherence limit and all."""
        from dataclasses import replace

        from neurodiff.datasets.ct_series import CTSeries
        from neurodiff.pipelines.ct_standardizer import CTStandardizer

        def part_of(series: CTSeries, part: int) -> CTSeries:
            stack = replace(series.stack, origins=series.stack.origins[part::2])
            return replace(
                series,
                hu=series.hu[part::2],
                padding=series.padding[part::2],
                stack=stack,
                sources=series.sources[part::2],
            )

        def convert(hu: np.ndarray, part: int) -> np.ndarray:
            pair = part_of(self.source, 1 - part), part_of(self.target, 1 - part)
            done = CTStandardizer().fit([pair]).apply(part_of(self.source, part))
            if not part:
                print(f"    said: {'; '.join(done.report['warnings'])}")
            return done.hu

        return convert


def regions(soft: np.ndarray, padding: np.ndarray, inside: float) -> list[tuple[int, int, int]]:
    """(slice, row, column) of the squares that lie in tissue."""
    found = []
    for k, r, c in np.ndindex(len(soft), soft.shape[1] // ROI, soft.shape[2] // ROI):
        square = np.s_[k, r * ROI : (r + 1) * ROI, c * ROI : (c + 1) * ROI]
        if not padding[square].any() and (soft[square] > -300).mean() >= inside:
            found.append((k, r * ROI, c * ROI))
    return found


def best_gaussian(
    source: np.ndarray, target: np.ndarray, spacing: tuple, padding: np.ndarray, body: np.ndarray
) -> Any:
    """The Gaussian of least body RMSE."""
    from scipy.optimize import minimize_scalar

    from neurodiff.bridges.ct_filter import gaussian_filter

    def error(width: float) -> float:
        made = gaussian_filter(width, highest=20.0).apply(source, spacing, padding)
        return float(np.square((made - target)[body]).mean())

    found = minimize_scalar(error, bounds=(0.05, 1.5), method="bounded", options={"xatol": 5e-3})
    return gaussian_filter(float(found.x), highest=20.0)


def zero_shot(pair: Comparison, seed: int) -> None:
    """FC51 to FC13 by what was not fitted to it, and by the entry that was."""
    from neurodiff.bridges.ct_filter import RadialFilter, gaussian_filter
    from neurodiff.bridges.ct_phantom import (
        filter_from_noise,
        match_noise,
        noise_spectrum,
        uniform_regions,
    )
    from neurodiff.datasets.simulated.scanners import draw_kernel_change, kernel_library

    library, seen = kernel_library(), "toshiba_fc51_fc13"
    philips = library["philips_ya_ub"]
    other = RadialFilter.from_gain(philips.frequency, philips.gain, source=philips.name)
    squares = [uniform_regions(pair.target.hu[k : k + 1], count=4) for k in (0, 1)]

    def noise(series: Any, part: int) -> Any:
        # facts of the slice that is not tested
        return noise_spectrum(series.hu[1 - part : 2 - part], squares[1 - part], pair.spacing)

    def with_filter(make: Callable[[int], Any]) -> Callable[[np.ndarray, int], np.ndarray]:
        return lambda hu, part: make(part).apply(hu, pair.spacing, pair.padding[part::2])

    def matched(shape: Any) -> Callable[[np.ndarray, int], np.ndarray]:
        return with_filter(
            lambda part: match_noise(
                shape,
                noise(pair.source, part),
                float(np.sqrt(noise(pair.target, part).variance)),
            )
        )

    print(" zero-shot, the Toshiba pair left out of the library:")
    pair.line("library entry of another vendor", with_filter(lambda part: other))
    for number in range(3):
        drawn = draw_kernel_change(seed + number, leave_out=(seen,))
        change = RadialFilter.from_gain(drawn.frequency, drawn.gain)
        pair.line(f"random change, seed {seed + number}", with_filter(lambda part, c=change: c))
    pair.line("that entry, strength by noise SDs", matched(other))
    pair.line("Gaussian, width by noise SDs", matched(gaussian_filter(0.5, highest=20.0)))
    print(" not zero-shot:")
    pair.line(
        "phantom: ratio of noise spectra",
        with_filter(
            lambda part: filter_from_noise(noise(pair.source, part), noise(pair.target, part))
        ),
    )
    entry = library[seen]
    own = RadialFilter.from_gain(entry.frequency, entry.gain)
    pair.line("library entry of this pair", with_filter(lambda part: own))


if __name__ == "__main__":
    main()
