"""Do a run again from its recipe: the part of ``report verify`` that runs in a process of its own.

``python -m neurodiff.analysis.benchmark_replay PLAN.json`` fits, decodes and scores as the plan
says, in the folder of the plan, and prints the folder of the new run on its last line. It reads
nothing of the old run but the plan.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neurodiff.analysis.decoding import own_source
from neurodiff.analysis.kinds import IMAGES, SCANS, pipeline_of_run
from neurodiff.core.atomic import write_yaml
from neurodiff.core.errors import NeurodiffError, UsageError
from neurodiff.core.run import Run
from neurodiff.core.safe_io import read_json

STAGES = ("fit", "reconstruct", "evaluate")
_MADE_ELSEWHERE = ("targets", "codes", "weights")  # inputs of a published stage's fit


def plan_of(run: Run, *, weights: Path | None = None) -> dict[str, Any]:
    """What to do again, as plain JSON: recipe, data, seed, the items that were decoded, protocol.

    Raises
    ------
    UsageError : a run that a recipe alone does not make: a demonstration, a published stage, or a
        model of several people.
    """
    source = own_source(run)
    pipeline = pipeline_of_run(run.folder)
    if source is None:
        raise UsageError(
            f"{run.folder} does not say where its data are (demonstrations do not): run its own "
            f"command again: {' '.join(run.info.get('command') or [])}"
        )
    if any(name in run.inputs for name in _MADE_ELSEWHERE) or "subjects" in run.inputs:
        raise UsageError(
            f"{run.folder} was made from files or people beyond its recipe; run its own command "
            f"again in another folder and compare with `neurodiff report diff`: "
            f"{' '.join(run.info.get('command') or [])}"
        )
    return {
        "pipeline": pipeline,
        "recipe": run.recipe,
        "data": source.data,
        "root": source.root,
        "subject": run.inputs.get("subject", source.subject),
        "seed": run.seed,
        "decoded": _decoded(run, pipeline),
        "protocol": _protocol(run),
        "full": _full(run, pipeline),
        "weights": None if weights is None else str(weights.resolve()),
    }


def replay(plan: dict[str, Any], folder: Path, start: Path | None = None) -> Path:
    """Fit, decode and score; returns the new run's folder.

    Parameters
    ----------
    start : a run that is fitted, or decoded: only what it lacks is done, in it.
    """
    place = start if start is not None else _fit(plan, folder)
    pipeline, own = plan["pipeline"], (plan["data"], plan["root"])
    if pipeline == SCANS:
        from neurodiff.analysis.ldae_run import evaluate_cohort_run

        print(evaluate_cohort_run(Run.open(place)))
        return place
    for group in plan["decoded"]:
        named = (group["data"], group["root"]) == own
        data, root = (None, None) if named else (group["data"], _path(group["root"]))
        subject = None if named else group["subject"]
        if pipeline == IMAGES:
            from neurodiff.analysis.image_verbs import reconstruct_image_run

            print(
                reconstruct_image_run(
                    place, data, root, subject, group["samples"], average=group["averaged"]
                )
            )
        else:
            from neurodiff.analysis.verbs import reconstruct_run

            print(reconstruct_run(place, data, root, subject, group["samples"]))
    if plan["protocol"] is None:
        return place
    if pipeline == IMAGES:
        from neurodiff.analysis.image_verbs import evaluate_image_run

        print(evaluate_image_run(place, plan["protocol"], _path(plan["weights"])))
    else:
        from neurodiff.analysis.verbs import evaluate_run

        print(evaluate_run(place, plan["full"], plan["protocol"], _path(plan["weights"])))
    return place


def commands(plan: dict[str, Any], recipe: str = "recipe.yaml") -> list[str]:
    """The same as lines to type, for a page."""
    words = ["neurodiff", "fit", recipe, "--data", str(plan["data"])]
    words += ["--root", str(plan["root"])] if plan["root"] else []
    words += ["--subject", str(plan["subject"])] if plan["subject"] is not None else []
    lines = [" ".join([*words, "--seed", str(plan["seed"])])]
    for group in plan["decoded"]:
        own = (group["data"], group["root"]) == (plan["data"], plan["root"])
        line = "neurodiff reconstruct RUN" + ("" if own else f" --data {group['data']}")
        line += f" --samples {group['samples']}" if group["samples"] > 1 else ""
        lines.append(line + (" --single-trials" if group.get("averaged") is False else ""))
    if plan["protocol"] is not None:
        protocol = f" --protocol {plan['protocol']}" if plan["protocol"] else ""
        lines.append("neurodiff evaluate RUN" + protocol + (" --full" if plan["full"] else ""))
    return lines


def fit_recipe(
    pipeline: str,
    recipe: str,
    overrides: Sequence[str],
    out: Path,
    data: str | None,
    root: Path | None,
    subject: int | str | None,
    seed: int,
) -> Path:
    """Fit a recipe of any pipeline below ``out``; goes on where it was interrupted."""
    if pipeline == IMAGES:
        from neurodiff.analysis.image_fit import fit_images as fit
    elif pipeline == SCANS:
        from neurodiff.analysis.ldae_fit import fit_cohort as fit
    else:
        from neurodiff.analysis.verbs import fit
    return Path(fit(recipe, list(overrides), out, data, root, subject, seed, False))


def _fit(plan: dict[str, Any], folder: Path) -> Path:
    recipe = folder / f"{plan['recipe'].get('name', 'recipe')}.yaml"
    write_yaml(recipe, plan["recipe"])
    root = _path(plan["root"])
    place = (folder / "runs", plan["data"], root, plan["subject"], plan["seed"])
    return fit_recipe(plan["pipeline"], str(recipe), (), *place)


def _decoded(run: Run, pipeline: str) -> list[dict[str, Any]]:
    """Groups of decoded items: data, root, subject, samples, averaged (None of shapes)."""
    if pipeline == SCANS:
        return []
    if pipeline == IMAGES:
        from neurodiff.analysis.image_items import stored_pictures

        pictures = stored_pictures(run)
        found: list[tuple] = [(one.source, one.picture.sample, one.averaged) for one in pictures]
    else:
        from neurodiff.analysis.decoding import stored_results

        found = [(one.source, one.result.sample, None) for one in stored_results(run)]
    groups: dict[tuple, int] = {}
    for source, sample, averaged in found:
        key = (source.data, source.root, source.subject, averaged)
        groups[key] = max(groups.get(key, 0), sample + 1)
    names = ("data", "root", "subject", "averaged")
    return [dict(zip(names, key, strict=True)) | {"samples": n} for key, n in groups.items()]


def _protocol(run: Run) -> str | None:
    """Of the scores; None where nothing was scored."""
    if not run.scores_path.is_file():
        return None
    table = run.read_scores()
    return str(table["protocol"].iloc[0]) if "protocol" in table and len(table) else "neurodiff-1"


def _full(run: Run, pipeline: str) -> bool:
    """Whether shapes were scored with the metrics that take minutes."""
    if pipeline in (IMAGES, SCANS) or not run.scores_path.is_file():
        return False
    return "EMD" in run.read_scores()


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text).expanduser()


def main(arguments: list[str]) -> int:
    """Read a plan, do it, print the run's folder; 1 and a sentence where that fails."""
    plan = read_json(arguments[0])
    start = _path(plan.get("start"))
    try:
        place = replay(plan["plan"], Path(plan["folder"]), start)
    except NeurodiffError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(place)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
