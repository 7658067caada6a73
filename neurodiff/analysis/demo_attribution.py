"""ROI attribution on simulated subjects of whom it is known which area carries what.

    two subjects   "own": every loaded area has something that no other area tells
                   "shared": several areas tell the same
    -> a ridge from responses to stimulus features -> methods -> a page each, beside the truth

In the first every method should find the loaded areas; in the second they disagree, and the page
tells why.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from neurodiff.analysis.attribution import Attribution, facts_of
from neurodiff.analysis.attribution_calibration import planted_problem
from neurodiff.analysis.attribution_decoders import RidgeDecoder
from neurodiff.analysis.attribution_problem import Problem
from neurodiff.analysis.attribution_verbs import (
    AttributeOptions,
    digest,
    run_stages,
    write_attribution,
)
from neurodiff.analysis.page_attribution import PageData, detection
from neurodiff.core.errors import UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.run import Run
from neurodiff.datasets.simulated.attribution_subjects import (
    AttributionSubject,
    attribution_subject,
)

DESIGNS = ("own", "shared")
METHODS = ("leave_one_out:mean", "roi_only", "shapley", "encoding")
OPTIONS: dict[str, dict[str, Any]] = {
    "leave_one_out:mean": {"matched": 49},
    "roi_only": {"matched": 20},
}


class DemoSize(NamedTuple):
    """Stimuli, draws, and areas (None: all 31) of a demonstration."""

    train: int
    test: int
    draws: int
    areas: tuple[str, ...] | None
    methods: tuple[str, ...] = METHODS


SIZES = {
    "demo": DemoSize(1000, 300, 1000, None),
    "tiny": DemoSize(
        60, 24, 49, ("V2", "V3", "V4", "V3A", "MT", "FFC"), ("leave_one_out:mean", "encoding")
    ),
}


def run_attribution_demo(
    out: str | Path, seed: int = 0, size: str = "demo", *, progress: Progress | None = None
) -> str:
    """Run or continue the demonstration in a folder; returns what to tell the user.

    Raises
    ------
    UsageError : no such size; a folder that holds something else.
    """
    if size not in SIZES:
        raise UsageError(f"there is no size {size!r}; there are {', '.join(SIZES)}")
    progress = progress or Progress.to_stdout(every=15)
    sizes = SIZES[size]
    run = Run.create(
        out,
        {"name": f"attribution_{size}", "pipeline": "ridge", **sizes._asdict()},
        {"data": "simulated attribution subjects", "designs": list(DESIGNS), "simulated": True},
        command=sys.argv,
        seed=seed,
    )
    said = []
    for design in DESIGNS:
        said += _design(run, design, sizes, progress)
    run.touch()
    return "\n".join(said)


def _design(run: Run, design: str, sizes: DemoSize, progress: Progress) -> list[str]:
    subject = attribution_subject(design, areas=sizes.areas, seed=run.seed)
    progress.say(f"simulated subject, {design} information: {len(subject.areas)} areas")
    problem = ridge_problem(subject, sizes, seed=run.seed, progress=progress)
    results = run_stages(
        run, problem, sizes.methods, [design, problem.test.fingerprint(), digest(problem.rois)],
        options=OPTIONS, progress=progress,
    )  # fmt: skip
    truth = subject.truth.drop(columns=["next to"])
    page = write_attribution(
        Attribution(results=tuple(results), facts=facts_of(problem)),
        problem.test,
        run.folder / f"attribution_{design}",
        rois=problem.rois,
        more=AttributeOptions(task="simulated", views=False),
        ceilings=ceiling_lines(truth),
        truth=truth,
        provenance={"command": "neurodiff demo attribution", "seed": str(run.seed)},
        progress=progress,
    )
    return [*closing(design, results, truth), f"page: {page}"]


def ridge_problem(
    subject: AttributionSubject, sizes: DemoSize, *, seed: int, progress: Progress = SILENT
) -> Problem:
    """The subject's recordings and a ridge that was fitted on the training trials."""
    made = planted_problem(
        subject, train=sizes.train, test=sizes.test, draws=sizes.draws, seed=seed
    )
    ids = list(dict.fromkeys([*made.train.trials["stimulus"], *made.test.trials["stimulus"]]))  # type: ignore[union-attr]
    features = dict(zip(ids, subject.features(ids), strict=True))
    decoder: Any = RidgeDecoder(made.decoder.model, features)  # type: ignore[attr-defined]
    return replace(made, decoder=decoder, progress=progress)


def ceiling_lines(truth: pd.DataFrame) -> list[str]:
    """The planted ceiling in words."""
    loaded = truth[truth["carries"] != "none"]["noise ceiling"]
    return [
        "single-trial noise ceiling, planted and known in closed form: median "
        f"{loaded.median():.3f} over the {len(loaded)} loaded areas ({loaded.min():.3f} to "
        f"{loaded.max():.3f}), 0 in the empty ones; see the table of what was planted"
    ]


def closing(design: str, results: Any, truth: pd.DataFrame) -> list[str]:
    """How well each method told loaded areas from empty ones, one line a method."""
    found = detection(PageData(results=results, simulated=True, truth=truth))
    lines = [f"{design} information (simulated): area under the ROC, loaded against empty areas"]
    width = max(len(name) for name in found["method"])
    for row in found.to_dict("records"):
        own = f", own information {row['auc_own']:.3f}" if row["auc_own"] == row["auc_own"] else ""
        lines.append(
            f"  {row['method']:<{width}} {row['auc']:.3f}{own}; {row['found']} of {row['loaded']} "
            f"loaded found, {row['false']} of {row['regions'] - row['loaded']} empty"
        )
    return lines
