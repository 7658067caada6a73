"""Do attribution methods find the areas that carry something? Area under the ROC curve over noise.

    python benchmarks/attribution_roc.py [--levels 0.0003 0.001 0.003 0.01 0.03 0.1 0.3]
        [--subjects 4] [--train 1000] [--test 300] [--metric correlation] [--design own]
        [--methods leave_one_out:mean leave_one_out:permuted leave_one_out:noise roi_only shapley
        encoding] [--matched 0] [--seed 0] [--out FILE.csv]

Simulated subjects on the real visual cortex, a ridge from responses to features. Design "own": 16
of 31 areas carry a block of features each, 15 carry nothing. The level is the median single-trial
noise ceiling of the informative vertices (default 0.1, hard case 0.03). An area's score is the
method's value; AUC is the share of pairs in which the informative area has the higher one, chance
0.5; mean over subjects, and the lowest. The oracle knows every read-out and the law of the noise,
and ranks areas by the likelihood ratio of the test trials: no method can do better on average.
Design "shared" prints what each method says of each area beside the truth. --matched 0 leaves the
random sets of leave-one-out and ROI-only out, which the values do not need.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pandas as pd

METHODS = [
    "leave_one_out:mean",
    "leave_one_out:permuted",
    "leave_one_out:noise",
    "roi_only",
    "shapley",
    "encoding",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    levels = [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3]
    parser.add_argument("--levels", type=float, nargs="+", default=levels)
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--metric", default="correlation")
    parser.add_argument("--design", choices=("own", "shared"), default="own")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--matched", type=int)
    parser.add_argument("--samples", type=int, help="orders of areas drawn for Shapley values")
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    from neurodiff.analysis.attribution_calibration import detection, planted_problem, run_methods
    from neurodiff.core.progress import Progress
    from neurodiff.datasets.simulated.attribution_expectations import SENTENCES, oracle_evidence
    from neurodiff.datasets.simulated.attribution_subjects import attribution_subject

    progress = Progress.to_stdout(every=30)
    given: dict[str, dict] = {}
    if options.matched is not None:
        given = {name: {"matched": options.matched} for name in ("leave_one_out", "roi_only")}
    if options.samples is not None:
        given["shapley"] = {"samples": options.samples}
    rows, areas, subject = [], [], None
    jobs = [(level, number) for level in options.levels for number in range(options.subjects)]
    for level, number in progress.over(jobs, f"{options.design} information"):
        subject = attribution_subject(
            options.design, median_ceiling=level, subject=number + 1, seed=options.seed
        )
        problem = planted_problem(
            subject,
            train=options.train,
            test=options.test,
            metric=options.metric,
            draws=options.draws,
            seed=options.seed,
        )
        found = {"oracle": oracle_evidence(subject, problem.test).to_dict()}
        seconds = {"oracle": float("nan")}
        for method in options.methods:
            start = time.perf_counter()
            (result,) = run_methods(problem, [method], given)
            seconds[method] = time.perf_counter() - start
            found[method] = result.table.groupby("roi")["value"].mean().to_dict()
        for method, values in found.items():
            auc = detection(values, subject.informative)
            kind = subject.truth.set_index("area")["carries"].to_dict()
            rows.append(
                {
                    "level": level,
                    "subject": number + 1,
                    "method": method,
                    "AUC": auc,
                    "seconds": seconds[method],
                }
            )
            areas += [
                {"level": level, "subject": number + 1, "method": method, "area": area}
                | {"carries": kind[area], "value": value}
                for area, value in values.items()
            ]
    table = pd.DataFrame(rows)
    print(
        f"\nsimulated; {options.design} information, {options.subjects} subjects, {options.train} "
        f"training and {options.test} test trials, metric {options.metric}, seed {options.seed}"
    )
    print("AUC of informative above empty areas, mean over subjects (lowest); chance 0.500")
    shown = table.groupby(["method", "level"], sort=False)["AUC"].agg(["mean", "min"])
    text = shown.apply(lambda row: f"{row['mean']:.3f} ({row['min']:.3f})", axis=1)
    print(text.unstack("level").to_string())
    print(table.groupby("method", sort=False)["seconds"].mean().round(2).to_string())
    if options.design == "shared":
        print("\nvalue by what an area carries, as a share of the unique areas' (mean, subjects)")
        means = pd.DataFrame(areas).groupby(["method", "level", "carries"])["value"].mean()
        wide = means.unstack("carries")
        print(wide.div(wide["unique"], axis=0).round(3).to_string())
        for method, sentence in SENTENCES["shared"].items():
            print(f"{method}: {sentence}")
    if options.out is not None:
        pd.DataFrame(areas).to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
