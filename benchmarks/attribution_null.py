"""Calibration of attribution methods: false alarms and intervals where nothing is to be found.

    python benchmarks/attribution_null.py [--quick] [--subjects 1000] [--neighbour 200]
        [--train 100] [--test 100] [--neighbour-trials 150] [--draws 499] [--fwhm 2.3 6.0]
        [--areas LO1 LO2 LO3] [--methods ...] [--pattern-draws 99] [--metric correlation]
        [--seed 0] [--out FOLDER]

First table: null subjects, in whom no area carries anything; a ridge is fitted to noise. Each
subject counts once, with an area that goes round, so that the counts are binomial: rejections at
0.05 and 0.01, and 95 % intervals that hold the true value (0: no area can take or give anything).
Further tables: subjects with two loaded areas and three empty ones, of which VMV3 touches both
loaded ones, VMV2 one, and MT none, under noise of the fitted smoothness and of a greater one: share
of subjects in which the empty area is found, by each method and by each claim
(`attribution_claims`). Leave-one-out may find an empty neighbour under very smooth noise: the
decoder subtracts the loaded area's noise by it, so the loss is real (with 100 training trials its
penalty is too large for that, with 150 not). The claim may not.

With 499 or 99 draws p can be exactly 0.05 and 0.01. Finished parts lie in the folder of --out; the
same command goes on from there. The table so far is printed after every tenth part. --quick is a
try of the whole in a minute; without it, one core takes about 10 minutes.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pandas as pd

METHODS = [
    "leave_one_out:mean",
    "leave_one_out:permuted",
    "leave_one_out:noise",
    "leave_one_out:refit",
    "roi_only",
    "roi_only:refit",
    "shapley",
    "encoding",
    "patterns",
]
PAIRS = [
    ("leave_one_out:mean", "encoding"),
    ("leave_one_out:permuted", "encoding"),
    ("leave_one_out:refit", "encoding"),
    ("leave_one_out:permuted", "roi_only"),
]
"""Reliance and information of the region itself that are set side by side."""
EMPTY, LOADED = ["VMV3", "VMV2", "MT"], ["VVC", "PHA3"]
PART = 10


def asked(subject: Any, options: argparse.Namespace) -> pd.DataFrame:
    """Rows of every method and claim for a subject; a true value of 0 belongs to empty areas."""
    from neurodiff.analysis.attribution_calibration import claim_rows, planted_problem, run_methods

    problem = planted_problem(
        subject,
        train=options.train,
        test=options.test,
        metric=options.metric,
        draws=options.draws,
    )
    given = {name: {"matched": 0} for name in ("leave_one_out", "roi_only")}
    results = []
    for method in options.methods:
        # its null fits a ridge a draw, penalty included
        few = method == "patterns"
        asks = replace(problem, draws=options.pattern_draws) if few else problem
        results += run_methods(asks, [method], given)
    tables = [
        one.table.assign(method=method, true=float("nan") if method == "patterns" else 0.0)
        for method, one in zip(options.methods, results, strict=True)
    ]
    if subject.carriers:  # of nulls a claim asks for two false alarms at once: nothing to count
        there = [result.method for result in results]
        pairs = [(a, b) for a, b in PAIRS if a in there and b in there]
        tables.append(claim_rows(results, pairs).assign(true=0.0))
    table = pd.concat(tables, ignore_index=True)
    return table.reindex(
        columns=["method", "subject", "roi", "value", "low", "high", "p", "true", "claim"]
    )


def in_parts(
    make: Callable[[int], Any],
    name: str,
    count: int,
    options: argparse.Namespace,
    tell: Callable[[pd.DataFrame, int], None],
) -> pd.DataFrame:
    """Rows of ``count`` subjects, some at a time; parts that are in the folder are read."""
    from neurodiff.core.atomic import write_csv
    from neurodiff.core.progress import Progress

    progress, parts = Progress.to_stdout(every=30), []
    for start in progress.over(range(0, count, PART), name, -(-count // PART)):
        stop = min(start + PART, count)
        file = None if options.out is None else options.out / f"{name}-{start:05d}-{stop:05d}.csv"
        if file is not None and file.is_file():
            parts.append(pd.read_csv(file))
        else:
            rows = pd.concat([asked(make(k), options) for k in range(start, stop)])
            parts.append(rows)
            if file is not None:
                write_csv(file, rows)
            if stop % (10 * PART) == 0 and stop < count:
                tell(pd.concat(parts), stop)
    return pd.concat(parts, ignore_index=True)


def null_maker(options: argparse.Namespace) -> Callable[[int], Any]:
    """Null subject number k."""
    from neurodiff.datasets.simulated.attribution_subjects import null_subjects

    def make(k: int) -> Any:
        made: Iterator[Any] = null_subjects(1, areas=options.areas, seed=options.seed, first=k + 1)
        return next(made)

    return make


def neighbour_maker(options: argparse.Namespace, fwhm: float) -> Callable[[int], Any]:
    """Subject number k with loaded areas beside empty ones."""
    from neurodiff.core.seeds import item_seed
    from neurodiff.datasets.simulated.attribution_subjects import attribution_subject

    def make(k: int) -> Any:
        # other stimuli for each, or their features' sample would be the same in all
        seed = item_seed(options.seed, subject="neighbour", stimulus=k, stage="subject")
        return attribution_subject("neighbour", subject=k + 1, seed=seed, fwhm_mm=fwhm)

    return make


def tell_nulls(table: pd.DataFrame, count: int, options: argparse.Namespace) -> None:
    from neurodiff.analysis.attribution_calibration import calibration, one_area_each

    print(
        f"\nsimulated; {count} null subjects, areas {' '.join(options.areas)}, {options.train} "
        f"training and {options.test} test trials, metric {options.metric}, {options.draws} draws "
        f"(patterns {options.pattern_draws}), seed {options.seed}"
    )
    print(calibration(one_area_each(table)).round(4).to_string(index=False), flush=True)


def tell_neighbours(table: pd.DataFrame, count: int, fwhm: float, trials: int) -> None:
    from neurodiff.analysis.attribution_calibration import calibration
    from neurodiff.analysis.attribution_claims import MEANING

    print(
        f"\nsimulated; {count} subjects with two loaded areas, noise of {fwhm} mm, {trials} "
        "training and test trials; rejections of empty areas at 0.05 and 0.01"
    )
    empty = table[table["roi"].isin(EMPTY)]
    named = empty.assign(method=empty["method"] + ", " + empty["roi"], low=float("nan"))
    print(calibration(named).round(4).to_string(index=False))
    loaded = table[table["roi"].isin(LOADED)]
    power = (loaded["p"] <= 0.05).groupby(loaded["method"], sort=False).mean()
    print("loaded areas found at 0.05:")
    print(power.round(3).to_string())
    claimed = table[table["claim"].notna()]
    if len(claimed):
        print("areas by claim (q <= 0.05 over the five areas of a subject), share of subjects:")
        shares = pd.crosstab(
            [claimed["method"], claimed["roi"]], claimed["claim"], normalize="index"
        )
        print(shares.reindex(columns=list(MEANING), fill_value=0.0).round(3).to_string())
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="30 null subjects, 10 neighbours")
    parser.add_argument("--subjects", type=int)
    parser.add_argument("--neighbour", type=int)
    parser.add_argument("--train", type=int, default=100)
    parser.add_argument("--test", type=int, default=100)
    parser.add_argument("--neighbour-trials", type=int, default=150, help="training and test")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--metric", default="correlation")
    parser.add_argument("--draws", type=int, default=499)
    parser.add_argument("--pattern-draws", type=int, default=99)
    parser.add_argument("--areas", nargs="+", default=["LO1", "LO2", "LO3"], help="of the nulls")
    parser.add_argument("--fwhm", type=float, nargs="+", default=[2.3, 6.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sizes = (30, 10) if options.quick else (1000, 200)
    subjects = sizes[0] if options.subjects is None else options.subjects
    neighbours = sizes[1] if options.neighbour is None else options.neighbour
    if options.out is not None:
        same_settings(options)

    if subjects:
        told = lambda table, n: tell_nulls(table, n, options)  # noqa: E731
        told(in_parts(null_maker(options), "null-subjects", subjects, options, told), subjects)
    near = argparse.Namespace(**vars(options))
    near.train = near.test = options.neighbour_trials
    for fwhm in options.fwhm if neighbours else []:
        told = lambda table, n, mm=fwhm: tell_neighbours(table, n, mm, near.train)  # noqa: E731
        make = neighbour_maker(options, fwhm)
        told(in_parts(make, f"neighbours-{fwhm}mm", neighbours, near, told), neighbours)


def same_settings(options: argparse.Namespace) -> None:
    """Write what decides a row into the folder, or refuse a folder of other settings."""
    from neurodiff.core.atomic import write_json
    from neurodiff.core.errors import UsageError
    from neurodiff.core.safe_io import read_json

    counted = {"quick", "subjects", "neighbour", "fwhm", "out"}
    mine = {k: v for k, v in vars(options).items() if k not in counted}
    file = options.out / "settings.json"
    if file.is_file() and read_json(file) != mine:
        raise UsageError(f"{options.out} holds parts of other settings; name a new folder")
    write_json(file, mine)


if __name__ == "__main__":
    main()
