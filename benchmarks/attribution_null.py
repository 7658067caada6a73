"""Calibration of attribution methods: false alarms and intervals where nothing is to be found.

    python benchmarks/attribution_null.py [--subjects 1000] [--train 150] [--test 150]
        [--methods leave_one_out:mean leave_one_out:permuted leave_one_out:noise roi_only
        roi_only:refit shapley encoding] [--metric correlation] [--draws 999] [--matched 0]
        [--areas LO1 LO2] [--first 1] [--neighbour 200] [--fwhm 2.3 6.0] [--seed 0] [--out FILE.csv]

First table: null subjects, in whom no area carries anything; a ridge is fitted to noise. Each
subject counts once, with an area that goes round, so that the counts are binomial: rejections at
0.05 and 0.01, and 95 % intervals that hold the true value (0: no area can take or give anything).
Second table: subjects with two loaded areas and three empty ones, of which VMV3 touches both loaded
ones, VMV2 one, and MT none, under noise of the fitted smoothness and of a greater one: share of
subjects in which the empty area is called informative. With 999 draws p can be exactly 0.05 and
0.01. Leave-one-out with permuted trials may call an empty neighbour under very smooth noise: the
decoder subtracts the loaded area's noise by it, so the loss is real (`population_correlations`).
--matched is the number of random sets, which p does not need; --first parts the subjects over
several calls.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pandas as pd

METHODS = [
    "leave_one_out:mean",
    "leave_one_out:permuted",
    "leave_one_out:noise",
    "roi_only",
    "roi_only:refit",
    "shapley",
    "encoding",
]


def asked(subjects: Iterable[Any], methods: Sequence[str], given: dict, **sizes: Any):
    """Rows of every method for every subject; a true value of 0 belongs to empty areas."""
    from neurodiff.analysis.attribution_calibration import planted_problem, run_methods

    tables = []
    for subject in subjects:
        problem = planted_problem(subject, **sizes)
        for method, result in zip(methods, run_methods(problem, methods, given), strict=True):
            tables.append(result.table.assign(method=method))
    table = pd.concat(tables, ignore_index=True)
    return table.assign(true=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--subjects", type=int, default=1000)
    parser.add_argument("--first", type=int, default=1, help="number of the first null subject")
    parser.add_argument("--train", type=int, default=150)
    parser.add_argument("--test", type=int, default=150)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--metric", default="correlation")
    parser.add_argument("--draws", type=int, default=999)
    parser.add_argument("--matched", type=int, default=0)
    parser.add_argument("--areas", nargs="+", help="of the null subjects; default: six areas")
    parser.add_argument("--neighbour", type=int, default=200)
    parser.add_argument("--fwhm", type=float, nargs="+", default=[2.3, 6.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    from neurodiff.analysis.attribution_calibration import calibration, one_area_each
    from neurodiff.core.progress import Progress
    from neurodiff.core.seeds import item_seed
    from neurodiff.datasets.simulated.attribution_subjects import attribution_subject, null_subjects

    progress = Progress.to_stdout(every=30)
    given = {name: {"matched": options.matched} for name in ("leave_one_out", "roi_only")}
    sizes = {
        "train": options.train,
        "test": options.test,
        "metric": options.metric,
        "draws": options.draws,
    }

    def own_seed(k: int) -> int:
        """Other stimuli for each subject, or their features' sample would be the same in all."""
        return item_seed(options.seed, subject="neighbour", stimulus=k, stage="subject")

    kept = []
    if options.subjects:
        subjects = null_subjects(
            options.subjects, areas=options.areas, seed=options.seed, first=options.first
        )
        over = progress.over(subjects, "null subjects", options.subjects)
        table = asked(over, options.methods, given, **sizes)
        kept.append(table.assign(design="null subjects"))
        print(
            f"\nsimulated; {options.subjects} null subjects, {options.train} training and "
            f"{options.test} test trials, metric {options.metric}, seed {options.seed}"
        )
        print(calibration(one_area_each(table)).round(4).to_string(index=False))
    for fwhm in options.fwhm if options.neighbour else []:
        subjects = (
            attribution_subject("neighbour", subject=k + 1, seed=own_seed(k), fwhm_mm=fwhm)
            for k in range(options.neighbour)
        )
        over = progress.over(subjects, f"empty neighbours, {fwhm} mm", options.neighbour)
        table = asked(over, options.methods, given, **sizes)
        kept.append(table.assign(design=f"neighbour, {fwhm} mm"))
        print(
            f"\nsimulated; {options.neighbour} subjects with two loaded areas, noise of {fwhm} mm; "
            "rejections of empty areas at 0.05 and 0.01"
        )
        empty = table[table["roi"].isin(["VMV3", "VMV2", "MT"])]
        named = empty.assign(method=empty["method"] + ", " + empty["roi"], low=float("nan"))
        print(calibration(named).round(4).to_string(index=False))
        loaded = table[table["roi"].isin(["VVC", "PHA3"])]
        power = (loaded["p"] <= 0.05).groupby(loaded["method"], sort=False).mean()
        print("loaded areas called informative at 0.05:")
        print(power.round(3).to_string())
    if options.out is not None:
        pd.concat(kept, ignore_index=True).to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
