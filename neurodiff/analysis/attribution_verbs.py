"""The verb `attribute`: which regions carry what a fitted run decodes, with maps and a page.

    run's model + test trials + regions -> a stage of the run a method -> maps, page, table

Each method is a stage of the run's folder, so what is finished is not computed again: the same
command goes on after a kill, and another list of methods computes the new ones only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis.attribution import (
    DEFAULT,
    Attribution,
    checked_methods,
    facts_of,
    make_problem,
    run_method,
    warnings_of,
)
from neurodiff.analysis.attribution_files import open_result, save_result
from neurodiff.analysis.attribution_maps import BrainMap, brain_maps, write_maps
from neurodiff.analysis.attribution_pictures import picture, template
from neurodiff.analysis.attribution_problem import MethodResult, Problem
from neurodiff.analysis.attribution_regions import regions_of
from neurodiff.analysis.attribution_statistics import checked_metric
from neurodiff.analysis.attribution_views import interactive
from neurodiff.analysis.ceilings import ceiling_text
from neurodiff.analysis.ceilings import ceilings as ceilings_of
from neurodiff.analysis.decoding import own_source
from neurodiff.analysis.kinds import IMAGES, SCANS, pipeline_of_run
from neurodiff.analysis.page_attribution import FILES, PageData, findings, to_json, write_page
from neurodiff.analysis.sources import OBJECTS, Source, chosen_source, trials_of
from neurodiff.core.atomic import write_csv, write_json
from neurodiff.core.errors import NeurodiffError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.provenance import package_version
from neurodiff.core.recording import Recording
from neurodiff.core.run import MODEL, Run
from neurodiff.datasets.opening import resolve
from neurodiff.datasets.simulated.opening import study_of, subject_number
from neurodiff.datasets.simulated.scene_opening import SCENE_SIZES, scenes_of
from neurodiff.datasets.simulated.scene_subject import SceneFeatureSpace, plant_scene_subject
from neurodiff.datasets.simulated.subject import DEFAULT_CEILING
from neurodiff.geometry.bank import grey_views

VERSION = 2
"""Of what a stage holds."""
PLANTED = (OBJECTS, "simulated_scenes")
"""Readers of simulations that tell what was planted where."""
MOST_PICTURES = 48
"""Maps that the page shows; all are files."""


@dataclass(frozen=True, kw_only=True)
class AttributeOptions:
    """What `attribute_run` is told besides regions, methods, metric and seed.

    Parameters
    ----------
    data, root, subject : decode other data than the run's own, or where its files are now.
    draws : of permutations and bootstrap.
    options : method -> keyword arguments.
    task, space_label : for the names of files; see `write_maps`.
    views : write views that turn, one a method.
    budget_mb : of the page, above which its pictures are files.
    """

    data: str | None = None
    root: Path | None = None
    subject: int | str | None = None
    draws: int = 1000
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    task: str = ""
    space_label: str | None = None
    views: bool = True
    budget_mb: float = 25.0


def attribute_run(
    run: str | Path,
    out: str | Path | None = None,
    rois: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    metric: str = "auto",
    seed: int = 0,
    *,
    more: AttributeOptions | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Attribute what a run of `neurodiff fit` decodes to regions; returns the page.

    Parameters
    ----------
    run : folder of a run of MinD-3D, Brain-Diffuser or LDAE (regions of scans occluded: see
        `attribution_scans`).
    out : folder of page, maps and table; by default ``attribution`` in the run's folder.
    rois : names of the recording's regions, or files with regions (NIfTI, GIfTI, CIFTI); None for
        all that the recording has.
    methods : names of `attribution.METHODS`, a variant after a colon; None for the default ones.
    metric, seed : of the attribution.

    Raises
    ------
    UsageError : no such region, method or metric; no test trials.
    DataError : no model, data missing or broken.
    """
    more = more or AttributeOptions()
    opened = Run.open(run)
    kind = pipeline_of_run(opened.folder)
    target = opened.folder / "attribution" if out is None else Path(out)
    if kind == SCANS:
        from neurodiff.analysis.attribution_scans import attribute_scans

        return attribute_scans(
            opened, target, rois, methods=methods, seed=seed, more=more, progress=progress
        )
    methods = checked_methods(DEFAULT if methods is None else methods)  # before the data are read
    checked_metric(metric)
    source, own = chosen_source(own_source(opened), more.data, more.root, more.subject)
    recording, stimuli = source.open(progress)
    test = regions_of(trials_of(recording, "test") if own else recording, rois)
    train = replace(trials_of(recording, "train"), rois={}) if own else None
    pipe, model = _model(opened, kind)
    shown: Any = stimuli
    if kind != IMAGES:
        ids = recording.trials["stimulus"] if own else test.trials["stimulus"]
        shown = Embeddings(pipe, stimuli, source.bank(list(dict.fromkeys(ids)), progress), ids)
    problem = make_problem(
        pipe, test, shown, None, metric, train=train, seed=seed, draws=more.draws,
        progress=progress,
    )  # fmt: skip
    inputs = [model, str(opened.inputs.get("recording", "")) if own else "no training trials"]
    inputs += [test.fingerprint(), digest(problem.rois)]
    failed: dict[str, str] = {}
    results = run_stages(
        opened, problem, methods, inputs, options=more.options, progress=progress, failed=failed
    )
    notes = (*warnings_of(problem), *(f"{m} was not done: {why}." for m, why in failed.items()))
    found = Attribution(results=tuple(results), facts=facts_of(problem), notes=notes)
    truth = planted_truth(source) if test.simulated else None
    page = write_attribution(
        found,
        problem.test,
        target,
        rois=problem.rois,
        more=more,
        ceiling_table=ceilings_of(problem.test, rois=problem.rois),
        ceilings=[*ceiling_text(recording if own else test).splitlines(), *_planted_ceiling(truth)],
        truth=truth,
        provenance={
            "run": opened.folder.name,
            "data": source.label,
            "model": model[:16],
            "neurodiff": package_version() or "unknown",
        },
        progress=progress,
    )
    if failed:
        told = "; ".join(f"{method}: {why}" for method, why in failed.items())
        raise NeurodiffError(
            f"{len(failed)} of {len(methods)} methods were not done ({told}); the others: {page}"
        )
    return page


class Embeddings(Mapping[str, np.ndarray]):
    """Embeddings of the views of stimuli as MinD-3D was fitted to them, made when asked for.

    Parameters
    ----------
    pipe : a fitted `MinD3D`.
    stimuli : with meshes; read where ``bank`` has no shape at hand.
    bank : of the stimuli, or None.
    ids : names of the stimuli.
    """

    def __init__(self, pipe: Any, stimuli: Any, bank: Any, ids: Any) -> None:
        self._pipe, self._stimuli = pipe, stimuli
        self._ids = list(dict.fromkeys(map(str, ids)))
        self._made: dict[str, np.ndarray] = {}
        if bank is not None:
            rows = np.asarray(pipe.embedding(bank.views))[bank.rows(self._ids)]
            self._made = dict(zip(self._ids, rows, strict=True))

    @property
    def shapes(self) -> Any:
        """The stimuli with the meshes that drawn ones are compared with."""
        return self._stimuli

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._made:
            if name not in self._ids:
                raise KeyError(name)
            views = grey_views(self._stimuli[name].mesh())
            self._made[name] = np.asarray(self._pipe.embedding(views[None]))[0]
        return self._made[name]

    def __iter__(self) -> Any:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


def run_stages(
    run: Run,
    problem: Problem,
    methods: Sequence[str],
    inputs: Sequence[str],
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Progress = SILENT,
    failed: dict[str, str] | None = None,
) -> list[MethodResult]:
    """Results of methods, each a stage of the run: read where it is finished, else computed.

    failed : a method that cannot be done on these data is put there with its reason, and the rest
        goes on as long as one can; None ends with the first.
    """
    made: list[MethodResult] = []
    for number, method in enumerate(methods, start=1):
        given = dict((options or {}).get(method, {}))
        settings = {
            "method": method, "metric": problem.metric, "seed": problem.seed,
            "draws": problem.draws, "confidence": problem.confidence, "options": given,
        }  # fmt: skip
        stage = run.stage(f"attribution-{method}", settings, inputs, version=VERSION)
        label = f"attribution {number}/{len(methods)}: {method}"
        if stage.done:
            progress.say(f"{label}: done before")
        else:
            progress.say(label)
            try:
                result = run_method(problem, method, **given)
            except NeurodiffError as error:
                last = number == len(methods) and not made
                if failed is None or last:
                    raise
                failed[method] = str(error).rstrip(".")
                progress.say(f"  not done: {error}")
                continue
            save_result(result, stage.path("table.csv").parent)
            stage.finish({"method": result.method, "rows": len(result.table)})
        made.append(MethodResult(**open_result(stage.folder)._asdict()))
    run.touch()
    return made


def write_attribution(
    found: Attribution,
    recording: Recording,
    out: Path,
    *,
    rois: Mapping[str, np.ndarray],
    more: AttributeOptions | None = None,
    ceiling_table: pd.DataFrame | None = None,
    ceilings: Sequence[str] = (),
    truth: pd.DataFrame | None = None,
    provenance: Mapping[str, str] | None = None,
    below: Any = None,
    progress: Progress = SILENT,
) -> Path:  # fmt: skip
    """Maps, views, page and JSON of an attribution in one folder; returns the page.

    Parameters
    ----------
    recording : of the test trials, in the space of the masks.
    ceiling_table, ceilings : noise ceilings, as `ceilings.ceilings` gives them and in words.
    truth : table of what was planted, for simulated recordings.
    below : image to draw voxels on; by default the template where they are in MNI space.
    """
    more = more or AttributeOptions()
    if below is None and (more.space_label or "").startswith("MNI"):
        below = template()
    progress.say("maps: writing")
    written = write_maps(
        found, recording, out, rois=rois, task=more.task, space_label=more.space_label
    )
    maps = brain_maps(found.results, rois, recording.n_features)
    told = [one for one in maps if not one.is_probability and np.isfinite(one.values).any()]
    shown = told[:MOST_PICTURES]
    pictures, links = {}, {}
    if len(written.files) > 2:  # more than description and table: features have a place
        for one in progress.over(shown, "pictures"):
            key = (one.method, one.subject, one.stage, one.statistic)
            pictures[key] = picture(one, recording.space, rois=rois, below=below)
        links = _views(shown, recording, out, below, progress) if more.views else {}
    links["table of all numbers (TSV)"] = "attribution.tsv"
    claimed = found.claims
    if len(claimed):
        write_csv(out / "attribution.claims.csv", claimed)
        links["claims (CSV)"] = "attribution.claims.csv"
    left = len(told) - len(shown)
    notes = [*found.notes, *written.notes]
    if left > 0:
        notes.append(f"{left} further maps are not drawn; they are among the files")
    data = PageData(
        results=found.results,
        simulated=recording.simulated,
        subtitle=f"{found.facts.get('pipeline', '')}, {recording.name}".strip(", "),
        facts=_facts(found),
        pictures=pictures,
        maps=maps,
        ceilings=ceiling_table,
        ceiling_notes=ceilings,
        truth=truth,
        links=links,
        notes=notes,
        provenance=provenance or {},
    )
    page = write_page(data, out / "attribution.html", budget_mb=more.budget_mb)
    write_json(out / "attribution.json", to_json(data))
    for line in findings(data):
        progress.say(f"  {line}")
    return page


def planted_truth(source: Source) -> pd.DataFrame | None:
    """Areas and what was planted in them; None where the data are not such a simulation."""
    reader, _, options = resolve(source.data, source.root or ".")
    if reader not in PLANTED:
        return None
    number = subject_number(1 if source.subject is None else source.subject)
    size, seed = options.get("size", "demo"), int(options.get("seed", 0))
    ceiling = float(options.get("ceiling", DEFAULT_CEILING))
    if reader == OBJECTS:
        return study_of(size, seed).subject(number, ceiling=ceiling).areas_table()
    categories = SCENE_SIZES[size].categories
    train = scenes_of(size, seed)["train"]
    return plant_scene_subject(
        SceneFeatureSpace(train, categories)(train),
        categories=categories,
        subject=number,
        seed=seed,
        median_ceiling=ceiling,
    ).areas_table()


def digest(rois: Mapping[str, np.ndarray]) -> str:
    """Identity of regions, by name and mask."""
    hashed = hashlib.sha256()
    for name, mask in sorted(rois.items()):
        hashed.update(name.encode() + b"\0" + np.packbits(np.asarray(mask, bool)).tobytes())
    return hashed.hexdigest()[:16]


def _model(run: Run, kind: str) -> tuple[Any, str]:
    """The fitted pipeline of a run, and the hash of all that decides what it predicts."""
    folder = run.folder / MODEL
    if kind == IMAGES:
        from neurodiff.pipelines.brain_diffuser import BrainDiffuser
        from neurodiff.pipelines.brain_diffuser_files import model_fingerprint

        return BrainDiffuser.from_pretrained(folder), model_fingerprint(folder)
    from neurodiff.pipelines.mind3d import MinD3D
    from neurodiff.pipelines.mind3d_files import model_fingerprint as fingerprint_of

    return MinD3D.from_pretrained(folder), fingerprint_of(folder)


def _planted_ceiling(truth: pd.DataFrame | None) -> list[str]:
    """The ceiling of a simulated subject in words, where the table of what was planted tells it."""
    column = "median noise ceiling, single trial"
    if truth is None or column not in truth:
        return []
    loaded = truth.loc[truth["carries"] != "nothing", column]
    return [
        f"planted noise ceiling of a single trial, known in closed form: {loaded.min():.3f} to "
        f"{loaded.max():.3f} (median of each of the {len(loaded)} loaded areas), 0 in the others"
    ]


def _facts(found: Attribution) -> dict[str, str]:
    """What the page says first, in words."""
    facts = dict(found.facts)
    regions = facts.pop("regions", {})
    people = facts.pop("subjects", [])
    out = {}
    for name, value in facts.items():
        words = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        out[name] = {"True": "yes", "False": "no"}.get(words, words)
    out["subjects"] = ", ".join(map(str, people[:24])) + (" ..." if len(people) > 24 else "")
    out["regions"] = f"{len(regions)}: " + ", ".join(f"{k} ({v})" for k, v in regions.items())
    return out


def _views(
    maps: Sequence[BrainMap], recording: Recording, out: Path, below: Any, progress: Progress
) -> dict[str, str]:
    """One view that turns for each method, of its first map."""
    links: dict[str, str] = {}
    done: set[str] = set()
    for one in maps:
        if one.method in done:
            continue
        done.add(one.method)
        name = f"view-{len(done):02d}.html"
        try:
            interactive(one, recording.space, out / FILES / name, below=below)
        except UsageError as error:  # a space without a view
            progress.say(f"  no view that turns: {error}")
            return {}
        links[f"{one.title}, turn it ({one.subject})"] = f"{FILES}/{name}"
    return links
