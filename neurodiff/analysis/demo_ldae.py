"""LDAE on simulated brains: a longitudinal cohort, three stages, probes, edits, filling in, a page.

    cohort -> training, validation and held-out people -> autoencoder -> trunk -> codes and shift
    -> held-out people scored beside baselines, chance, ceilings and an oracle -> report.html

Every stage of the training is one of the run folder: what is done is not done again.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurodiff.core.progress import Progress
from neurodiff.core.run import Run

if TYPE_CHECKING:
    from neurodiff.analysis.ldae_evaluation import LDAEEvaluation
    from neurodiff.core.cohort import Cohort
    from neurodiff.pipelines.ldae import LDAE

SHARES = {"demo": {"train": 0.70, "validation": 0.05, "test": 0.25}}
SHARES["tiny"] = {"train": 0.62, "validation": 0.08, "test": 0.30}
PEOPLE = {"demo": 560, "tiny": 24}
AT_ONCE = 16  # scans that go through a network together
MODEL = "model"


@dataclass
class CohortOutcome:
    """All that the page is made from."""

    run: Run
    pipe: LDAE
    parts: dict[str, Cohort]
    found: LDAEEvaluation
    seconds: dict[str, float] = field(default_factory=dict)


def run_ldae_demo(out: str | Path, seed: int, size: str) -> str:
    """Run or continue the demo in the folder ``out``; returns what to tell the user.

    Raises
    ------
    UsageError : a folder that holds something else.
    """
    from neurodiff.core.config import dump, load
    from neurodiff.pipelines.ldae_settings import LDAERecipe

    progress = Progress.to_stdout(every=15)
    recipe = load(f"ldae_{size}", LDAERecipe, [])
    run = Run.create(
        out,
        dump(recipe),
        {
            "data": "simulated_brains",
            "simulated": True,
            "brains": asdict(brain_settings(size, recipe.size.grid)),
            "shares": SHARES[size],
        },
        command=sys.argv,
        seed=seed,
    )
    page = run.stage("report", {"seed": seed}, [run.fingerprint], version=1)
    if page.done and run.report_path.is_file():
        return f"done before, nothing repeated\n{closing(run, page.metrics)}"
    progress.say(f"run folder: {run.folder} (interrupt at any time; the same command goes on)")
    outcome = fit_and_evaluate(run, recipe, size, seed, progress)

    from neurodiff.analysis.page_ldae import write_ldae_page

    began = time.monotonic()
    findings = write_ldae_page(outcome, progress)
    outcome.seconds["report"] = time.monotonic() - began
    run.touch()
    page.finish({"findings": findings, "seconds": outcome.seconds})
    return closing(run, page.metrics)


def fit_and_evaluate(
    run: Run, recipe: Any, size: str, seed: int, progress: Progress
) -> CohortOutcome:
    """The training and everything that is asked of it."""
    from neurodiff.analysis.demo import Clock
    from neurodiff.analysis.ldae_evaluation import evaluate_ldae
    from neurodiff.datasets.simulated.brains import SimulatedBrains
    from neurodiff.pipelines.ldae import LDAE

    clock = Clock()
    brains = SimulatedBrains(brain_settings(size, recipe.size.grid), seed=seed)
    parts = brains.cohort(keep=True).split(SHARES[size], seed=seed)
    told = ", ".join(f"{len(part.subjects)} {name}" for name, part in parts.items())
    progress.say(f"simulated brains: {told} (people)")
    pipe = LDAE(recipe).fit(
        parts["train"], parts["validation"], seed=seed, run=run, progress=progress
    )
    pipe.save_pretrained(run.folder / MODEL)
    clock("training")
    pipe.at_once = AT_ONCE
    found = evaluate_ldae(
        pipe,
        parts["test"],
        parts["train"],
        plan=demo_plan(size),
        seed=seed,
        truth=lambda subject, months: brains.truth(subject, months).data,
        progress=progress,
    )
    clock("evaluation")
    run.write_scores(scores_of(found))
    return CohortOutcome(run, pipe, parts, found, clock.seconds)


def brain_settings(size: str, grid: tuple[int, int, int]) -> Any:
    """People and grid of the simulated cohort; people cost little, and codes need many."""
    from neurodiff.datasets.simulated.brain_opening import BRAIN_SIZES

    return replace(BRAIN_SIZES[size], subjects=PEOPLE[size], shape=tuple(grid))


def demo_plan(size: str) -> Any:
    """How much of the evaluation each size does."""
    from neurodiff.analysis.ldae_evaluation import EvaluationPlan

    if size == "tiny":
        return EvaluationPlan(
            people=3, edited=2, amounts=(-1.0, 1.0), folds=2, bootstrap=50, gaps=(12.0, 24.0),
            generation=False,
        )  # fmt: skip
    return EvaluationPlan(
        people=16, edited=8, cnn=True, tasks=("AD vs CN", "age", "conversion within 24 months")
    )


def scores_of(found: LDAEEvaluation) -> Any:
    """Every score of a single scan, edit or triple, one row each, with the part it is of."""
    import pandas as pd

    tables = {
        "reconstruction": found.reconstruction,
        "clamp": found.clamp,
        "interpolation": found.interpolation,
        **{f"edit {name}": table for name, table in found.editing.items()},
    }
    frames = [one.table.assign(part=name) for name, one in tables.items() if one is not None]
    if found.probes is not None:
        frames.append(found.probes.predictions.assign(part="probes"))
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"part": []})
    return table[["part", *(c for c in table if c != "part")]]


def closing(run: Run, measured: dict) -> str:
    """The findings, and where the page is."""
    return "\n".join([*measured.get("findings", []), f"report: {run.report_path}"])
