"""Do attribution methods find the areas that carry something? Area under the ROC curve over noise.

    python benchmarks/attribution_roc.py [--quick] [--levels 0.003 0.01 0.03 0.1 0.3]
        [--shared-levels 0.1] [--subjects 2] [--train 400] [--test 300] [--metric correlation]
        [--methods ...] [--samples 16] [--draws 199] [--seed 0] [--out FOLDER]

Simulated subjects on the real visual cortex, a ridge from responses to features. Design "own": 16
of 31 areas carry a block of features each, 15 carry nothing. The level is the median single-trial
noise ceiling of the informative vertices (default 0.1, hard case 0.03). An area's score is the
method's value, or a claim's strength (`attribution_claims`); AUC is the share of pairs in which the
informative area has the higher one, chance 0.5; mean over subjects, and the lowest. The oracle
knows every read-out and the law of the noise, and ranks areas by the likelihood ratio of the test
trials: no method can do better on average. Design "shared" prints what each method says of each
kind of area.

Finished subjects lie in the folder of --out; the same command goes on from there, and the table so
far is printed after every level. --quick is a try of the whole; without it, one core takes about 5
minutes.
"""

from __future__ import annotations

import argparse
import os
import time
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
]
PATTERN_DRAWS = 9  # its values need none
QUICK_AREAS = ["V8", "V3CD", "LO2", "V7", "V6A", "PHA2", "MT", "FFC", "VVC", "V3A", "IPS1", "PHA3"]


def rows_of(design: str, level: float, number: int, options: argparse.Namespace) -> pd.DataFrame:
    """One row an area and method of one subject."""
    from neurodiff.analysis.attribution_calibration import claim_rows, planted_problem, run_methods
    from neurodiff.datasets.simulated.attribution_expectations import oracle_evidence
    from neurodiff.datasets.simulated.attribution_subjects import attribution_subject

    subject = attribution_subject(
        design, areas=options.areas, median_ceiling=level, subject=number + 1, seed=options.seed
    )
    problem = planted_problem(
        subject,
        train=options.train,
        test=options.test,
        metric=options.metric,
        draws=options.draws,
        seed=options.seed,
    )
    given: dict[str, Any] = {name: {"matched": 0} for name in ("leave_one_out", "roi_only")}
    given["shapley"] = {"samples": options.samples}
    oracle = oracle_evidence(subject, problem.test)
    parts = [pd.DataFrame({"method": "oracle", "roi": oracle.index, "value": oracle.to_numpy()})]
    results = []
    for method in options.methods:
        asks = replace(problem, draws=PATTERN_DRAWS) if method == "patterns" else problem
        start = time.perf_counter()
        results += run_methods(asks, [method], given)
        spent = time.perf_counter() - start
        table = results[-1].table[["roi", "value"]]
        parts.append(table.assign(method=method, seconds=spent))
    there = [result.method for result in results]
    pairs = [(a, b) for a, b in PAIRS if a in there and b in there]
    if len(claimed := claim_rows(results, pairs)):
        parts.append(claimed[["method", "roi", "value", "claim"]])
    table = pd.concat(parts, ignore_index=True)
    kind = subject.truth.set_index("area")["carries"]
    who = {"design": design, "level": level, "subject": number + 1}
    return table.assign(carries=table["roi"].map(kind), **who)


def tell_own(table: pd.DataFrame, options: argparse.Namespace) -> None:
    from neurodiff.analysis.attribution_calibration import detection

    rows = []
    for (method, level, subject), part in table.groupby(["method", "level", "subject"], sort=False):
        loaded = (part.set_index("roi")["carries"] != "none").to_dict()
        auc = detection(part.set_index("roi")["value"].to_dict(), loaded)
        rows.append({"method": method, "level": level, "subject": subject, "AUC": auc})
    print(
        f"\nsimulated; own information, {table['subject'].nunique()} subjects, {options.train} "
        f"training and {options.test} test trials, metric {options.metric}, seed {options.seed}"
    )
    print("AUC of informative above empty areas, mean over subjects (lowest); chance 0.500")
    shown = pd.DataFrame(rows).groupby(["method", "level"], sort=False)["AUC"].agg(["mean", "min"])
    text = shown.apply(lambda row: f"{row['mean']:.3f} ({row['min']:.3f})", axis=1)
    print(text.unstack("level").reindex(list(dict.fromkeys(table["method"]))).to_string())
    if "claim" in table:
        claimed = table[table["claim"].notna()]
        told = claimed["claim"] == "carries"
        print("areas called 'carries' (q <= 0.05), of the informative / of the empty ones")
        share = told.groupby(
            [claimed["method"], claimed["level"], claimed["carries"]], sort=False
        ).agg(lambda hits: f"{int(hits.sum())}/{len(hits)}")
        print(share.unstack("carries").to_string())
    print(table.groupby("method", sort=False)["seconds"].mean().round(2).to_string(), flush=True)


def tell_shared(table: pd.DataFrame) -> None:
    from neurodiff.datasets.simulated.attribution_expectations import SENTENCES

    print("\nsimulated; shared information: value by what an area carries, as a share of the")
    print("unique areas' (mean over areas and subjects)")
    wide = table.groupby(["method", "level", "carries"], sort=False)["value"].mean()
    wide = wide.unstack("carries")
    print(wide.div(wide["unique"], axis=0).round(3).to_string())
    if "claim" in table:
        claimed = table[table["claim"].notna()]
        print(pd.crosstab([claimed["method"], claimed["carries"]], claimed["claim"]).to_string())
    for method, sentence in SENTENCES["shared"].items():
        print(f"{method}: {sentence}")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="12 areas, one subject, small fits")
    levels = [0.003, 0.01, 0.03, 0.1, 0.3]
    parser.add_argument("--levels", type=float, nargs="*", default=levels)
    parser.add_argument("--shared-levels", type=float, nargs="*", default=[0.1])
    parser.add_argument("--subjects", type=int)
    parser.add_argument("--areas", nargs="+", help="by default all 31")
    parser.add_argument("--train", type=int)
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--metric", default="correlation")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--samples", type=int, default=16, help="orders for Shapley values")
    parser.add_argument("--draws", type=int, default=199)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    subjects = options.subjects or (1 if options.quick else 2)
    options.train = options.train or (200 if options.quick else 400)
    if options.quick and options.areas is None:
        options.areas = QUICK_AREAS

    from neurodiff.core.atomic import write_csv, write_json
    from neurodiff.core.errors import UsageError
    from neurodiff.core.progress import Progress
    from neurodiff.core.safe_io import read_json

    counted = {"quick", "levels", "shared_levels", "subjects", "out"}
    mine = {k: v for k, v in vars(options).items() if k not in counted}
    if options.out is not None:
        file = options.out / "settings.json"
        if file.is_file() and read_json(file) != mine:
            raise UsageError(f"{options.out} holds subjects of other settings; name a new folder")
        write_json(file, mine)
    jobs = [("own", level, k) for level in options.levels for k in range(subjects)]
    jobs += [("shared", level, k) for level in options.shared_levels for k in range(subjects)]
    found: dict[str, list[pd.DataFrame]] = {"own": [], "shared": []}
    for design, level, k in Progress.to_stdout(every=30).over(jobs, "subjects", len(jobs)):
        name = f"{design}-{level:g}-{k:03d}.csv"
        file = None if options.out is None else options.out / name
        if file is not None and file.is_file():
            rows = pd.read_csv(file)
        else:
            rows = rows_of(design, level, k, options)
            if file is not None:
                write_csv(file, rows)
        found[design].append(rows)
        if k == subjects - 1 and design == "own":
            tell_own(pd.concat(found["own"], ignore_index=True), options)
    if found["shared"]:
        tell_shared(pd.concat(found["shared"], ignore_index=True))


if __name__ == "__main__":
    main()
