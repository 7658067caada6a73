"""Which regions carry the information? One call over every fMRI pipeline.

    pipe + recording + stimuli + regions  ->  attribute_rois  ->  Attribution
                                                                  .table   a row a method, subject,
                                                                           stage and region
                                                                  .results maps, items, notes

No method answers the question alone, and they disagree for reasons, which each result's notes tell:
leave-one-out asks what is lost, region-alone what is there, Shapley divides what is shared,
encoding maps ask of the brain rather than of the decoder, and gradients of the decoder at a point.

Examples
--------
>>> rng = np.random.default_rng(0)
>>> betas = rng.standard_normal((40, 6)).astype(np.float32)
>>> names = [f"object {k}" for k in range(40)]
>>> shown = Recording.from_arrays(betas, pd.DataFrame({"stimulus": names}))
>>> from sklearn.linear_model import Ridge
>>> features = dict(zip(names, betas[:, :3] @ rng.standard_normal((3, 9)), strict=True))
>>> ridge = Ridge().fit(betas, np.stack([features[n] for n in names]))
>>> rois = {"tells": np.arange(6) < 3, "silent": np.arange(6) >= 3}
>>> found = attribute_rois(ridge, shown, features, rois, methods=["shapley"], draws=99)
>>> found.table.set_index("roi")["value"].idxmax()
'tells'
"""

from __future__ import annotations

import html
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis.attribution_claims import claims
from neurodiff.analysis.attribution_decoders import decoder_for
from neurodiff.analysis.attribution_problem import MethodResult, Problem
from neurodiff.analysis.attribution_statistics import checked_metric
from neurodiff.core.atomic import atomic_write, replaced_folder, write_csv, write_json
from neurodiff.core.errors import DataError, UsageError, suggest
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording
from neurodiff.core.safe_io import read_csv, read_json, read_npy

METHODS: dict[str, str] = {
    "leave_one_out": "neurodiff.analysis.attribution_ablation:leave_one_out",
    "roi_only": "neurodiff.analysis.attribution_ablation:roi_only",
    "shapley": "neurodiff.analysis.attribution_shapley:shapley",
    "reconstruction": "neurodiff.analysis.attribution_through:reconstruction_loss",
    "gradient_x_input": "neurodiff.analysis.attribution_gradients:gradients",
    "integrated_gradients": "neurodiff.analysis.attribution_gradients:integrated_gradients",
    "frames": "neurodiff.analysis.attribution_frames:frame_maps",
    "encoding": "neurodiff.analysis.encoding_maps:encoding_maps",
    "patterns": "neurodiff.analysis.pattern_maps:patterns",
    "variance_partition": "neurodiff.analysis.variance_partition:variance_partition",
    "rsa": "neurodiff.analysis.representational:rsa",
    "searchlight": "neurodiff.analysis.searchlight:searchlight",
}
"""Name -> "module:function" of a `Problem`, imported when it is asked for. A variant may follow a
name: "leave_one_out:permuted", "roi_only:refit"."""
DEFAULT = ("leave_one_out", "roi_only", "shapley", "encoding")
VARIANTS = {
    "leave_one_out": {
        **{v: {"replacement": v} for v in ("mean", "permuted", "noise")},
        "refit": {"refit": True},
    },
    "roi_only": {"refit": {"refit": True}},
    "reconstruction": {v: {"replacement": v} for v in ("mean", "permuted", "noise")},
}
FORMAT = "neurodiff-attribution-1"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Attribution:
    """What the methods found of one problem; ``claims`` sets two of them side by side.

    Attributes
    ----------
    results : one a method, in the order asked for.
    facts : pipeline, metric, seed, draws, counts of trials, subjects and features.
    notes : sentences on the whole.
    """

    results: tuple[MethodResult, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def table(self) -> pd.DataFrame:
        """All tables, one under the other."""
        return pd.concat([r.table for r in self.results], ignore_index=True)

    @property
    def claims(self) -> pd.DataFrame:
        """What may be claimed of each region, see `attribution_claims.claims`."""
        return claims(self.results)

    def __getitem__(self, method: str) -> MethodResult:
        for result in self.results:
            if method in (result.method, result.method.partition(":")[0]):
                return result
        there = [r.method for r in self.results]
        raise UsageError(f"there is no result of {method!r}; there are {', '.join(there)}")

    def save(self, folder: str | Path) -> Path:
        """Tables as CSV, maps as .npy, the rest as JSON; an earlier result there is replaced.

        Raises
        ------
        UsageError : the folder holds something else.
        """
        target = Path(folder)
        other = target.exists() and not (target / "attribution.json").is_file()
        if other and (target.is_file() or any(target.iterdir())):
            raise UsageError(f"{target} exists and is no attribution; name a new folder")
        with replaced_folder(target) as new:
            listed = []
            for number, result in enumerate(self.results):
                name = f"{number:02d}-{result.method.replace(':', '-')}"
                write_csv(new / f"{name}.csv", result.table)
                if result.items is not None:
                    write_csv(new / f"{name}-items.csv", result.items)
                maps = list(result.maps)
                if maps:
                    with atomic_write(new / f"{name}.npy") as file:
                        np.save(file, np.stack([result.maps[m] for m in maps]).astype(np.float64))
                listed.append(
                    {"method": result.method, "file": name, "maps": maps,
                     "items": result.items is not None, "notes": list(result.notes)}
                )  # fmt: skip
            write_json(
                new / "attribution.json",
                {"format": FORMAT, "facts": dict(self.facts), "notes": list(self.notes),
                 "results": listed},
            )  # fmt: skip
        return target

    @classmethod
    def open(cls, folder: str | Path) -> Attribution:
        """What `save` wrote.

        Raises
        ------
        MissingDataError, DataError : no such folder, a file missing or broken.
        """
        place = Path(folder)
        index = read_json(place / "attribution.json")
        if not isinstance(index, dict) or index.get("format") != FORMAT:
            raise DataError(
                f"{place / 'attribution.json'} is no {FORMAT}; run the attribution again"
            )
        try:
            results = tuple(_opened(place, one) for one in index["results"])
            return cls(results=results, facts=dict(index["facts"]), notes=tuple(index["notes"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{place / 'attribution.json'} lacks what it should hold ({error}); run the "
                "attribution again"
            ) from None

    def __repr__(self) -> str:
        names = ", ".join(r.method for r in self.results)
        return f"<Attribution of {self.facts.get('pipeline', '?')}: {names}>"

    def _repr_html_(self) -> str:
        shown = self.table[["method", "subject", "stage", "roi", "value", "low", "high", "p", "q"]]
        shown_first = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        notes = "".join(
            f"<li><b>{html.escape(r.method)}</b>: {html.escape(' '.join(r.notes))}</li>"
            for r in self.results
        )
        table = shown.to_html(index=False, float_format="{:.3g}".format)
        return f"{shown_first}{table}<ul>{notes}</ul>"


def _opened(place: Path, one: Mapping[str, Any]) -> MethodResult:
    """One result of a folder by its line in attribution.json."""
    text = {"subject": str, "roi": str, "stage": str, "stimulus": str}
    name, maps = str(one["file"]), list(one["maps"])
    if Path(name).name != name:
        raise DataError(f"{place / 'attribution.json'} names a file outside of its folder")
    values = read_npy(place / f"{name}.npy", finite=False) if maps else np.zeros((0, 0))
    if len(values) != len(maps):
        raise DataError(
            f"{place / name}.npy holds {len(values)} maps and attribution.json names {len(maps)}; "
            "run the attribution again"
        )
    items = read_csv(place / f"{name}-items.csv", dtype=text) if one["items"] else None
    return MethodResult(
        method=str(one["method"]),
        table=read_csv(place / f"{name}.csv", dtype=text),
        maps=dict(zip(maps, values, strict=True)),
        items=items,
        notes=tuple(one["notes"]),
    )


def attribute_rois(
    pipe: Any,
    recording: Recording,
    stimuli: Any,
    rois: Mapping[str, Any] | Sequence[str] | None = None,
    metric: str = "auto",
    methods: Sequence[str] = DEFAULT,
    **settings: Any,
) -> Attribution:
    """How much each region carries for a fitted pipeline, by several methods.

    Parameters
    ----------
    pipe : `MinD3D`, `BrainDiffuser`, a fitted regression, or a decoder of one's own
        (`attribution_problem.Decoder`).
    recording : test trials; with a split "train" beside "test", both are used.
    stimuli : `Stimuli`, or name -> features for a regression.
    rois : masks by name, names of the recording's own, or None for all that hold features.
    metric : "auto", or of `attribution_statistics.METRICS`.
    methods : of :data:`METHODS`, with a variant after a colon.
    settings : ``seed`` (0), ``draws`` (1000), ``confidence`` (0.95), ``train`` (a recording),
        ``stages``, ``options`` (method -> keyword arguments), ``progress``.

    Raises
    ------
    UsageError : no such method, metric or region; under 10 test stimuli; overlap in Shapley.
    DataError : a region without features, a stimulus without features, NaN.
    """
    if isinstance(methods, str):
        methods = (methods,)
    options = dict(settings.get("options") or {})
    stages = settings.get("stages")
    methods = checked_methods(methods)  # before the first of them takes its minutes
    if strange := [name for name in options if name not in methods]:
        raise UsageError(
            f"options are given for {strange[0]!r}, which is not run; methods are "
            f"{', '.join(methods)}.{suggest(strange[0], methods)}"
        )
    problem = make_problem(pipe, recording, stimuli, rois, metric, **_of_problem(settings))
    results = [
        run_method(problem, name, stages=stages, **options.get(name, {})) for name in methods
    ]
    return Attribution(results=tuple(results), facts=facts_of(problem), notes=warnings_of(problem))


def make_problem(
    pipe: Any,
    recording: Recording,
    stimuli: Any,
    rois: Mapping[str, Any] | Sequence[str] | None = None,
    metric: str = "auto",
    *,
    train: Recording | None = None,
    seed: int = 0,
    draws: int = 1000,
    confidence: float = 0.95,
    progress: Progress = SILENT,
) -> Problem:
    """The problem that `attribute_rois` poses; see there."""
    splits = set(recording.trials["split"])
    if train is None and {"train", "test"} <= splits:
        train, recording = recording.split()
    elif "test" in splits and len(splits) > 1:
        recording = recording.select((recording.trials["split"] == "test").to_numpy())
    decoder, recording = decoder_for(pipe, recording, stimuli)
    if train is not None and train.space.fingerprint() != recording.space.fingerprint():
        train = decoder_for(pipe, train, stimuli)[1]
    masks = _masks(recording, rois)
    truth = decoder.truth(list(recording.trials["stimulus"].astype(str)))
    widths = {s: np.asarray(v).reshape(len(v), -1).shape[1] for s, v in truth.items()}
    for stage in decoder.stages:
        checked_metric(metric, widths[stage])
    return Problem(
        decoder=decoder, test=recording, train=train, truth=truth, rois=masks, metric=metric,
        seed=seed, draws=draws, confidence=confidence, progress=progress,
    )  # fmt: skip


def run_method(problem: Problem, method: str, **options: Any) -> MethodResult:
    """One method of :data:`METHODS` on a problem; options that are None are left out.

    Raises
    ------
    UsageError : no such method or variant.
    """
    call, variant = _callable_of(method)
    known = inspect.signature(call).parameters
    given = {k: v for k, v in options.items() if v is not None} | variant
    if "stages" in given and "stages" not in known:
        del given["stages"]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())
    if not open_ended and (strange := [k for k in given if k not in known]):
        there = list(known)[1:]
        raise UsageError(
            f"{method} has no option {strange[0]!r}; there are {', '.join(there) or 'none'}."
            f"{suggest(strange[0], there)}"
        )
    return call(problem, **given)


def checked_methods(methods: Sequence[str]) -> tuple[str, ...]:
    """The methods, each once: a name without a variant is the same as its default one.

    Raises
    ------
    UsageError : no such method or variant, or none at all.
    """
    once: dict[tuple[str, str], str] = {}
    for name in methods:
        call, variant = _callable_of(name)
        known = inspect.signature(call).parameters
        options = {k: p.default for k, p in known.items() if p.default is not p.empty} | variant
        once.setdefault((name.partition(":")[0], repr(sorted(options.items()))), name)
    if not once:
        raise UsageError(f"no method was named; there are {', '.join(METHODS)}")
    return tuple(once.values())


def _callable_of(method: str) -> tuple[Callable[..., MethodResult], dict[str, Any]]:
    """The function of a method, and the options that its variant stands for."""
    name, _, variant = method.partition(":")
    if name not in METHODS:
        raise UsageError(
            f"there is no method {name!r}; there are {', '.join(METHODS)}.{suggest(name, METHODS)}"
        )
    known = VARIANTS.get(name, {})
    if variant and variant not in known:
        there = ", ".join(known) or "none"
        raise UsageError(f"{name} has no variant {variant!r}; there are: {there}")
    module, _, function = METHODS[name].partition(":")
    call = getattr(importlib.import_module(module), function)
    return call, dict(known[variant]) if variant else {}


def warnings_of(problem: Problem) -> tuple[str, ...]:
    """Sentences on what makes every number of a problem doubtful; empty where all is well."""
    found = []
    test, train = problem.test.trials, problem.train
    marked = set(test["split"].astype(str))
    if marked == {"train"}:
        found.append(
            "No trial is marked as test: if the pipeline was fitted on these trials, every score "
            "and every region's share is too high."
        )
    if train is not None:
        seen = set(train.trials["stimulus"].astype(str)) & set(test["stimulus"].astype(str))
        if seen:
            found.append(
                f"{len(seen)} test stimuli were shown in training too (first: {sorted(seen)[0]}): "
                "what a region tells of them may be memory of the fit."
            )
    if len(problem.rois) == 1:
        found.append("There is one region: q and p_max correct for nothing.")
    return tuple(found)


def facts_of(problem: Problem) -> dict[str, Any]:
    """What a page says first of a problem."""
    test, train = problem.test, problem.train
    return {
        "pipeline": problem.decoder.name,
        "stages": list(problem.decoder.stages),
        "metric": problem.metric,
        "seed": problem.seed,
        "draws": problem.draws,
        "confidence": problem.confidence,
        "recording": test.name,
        "simulated": test.simulated,
        "subjects": problem.subjects,
        "test trials": test.n_trials,
        "test stimuli": int(test.trials["stimulus"].nunique()),
        "training trials": 0 if train is None else train.n_trials,
        "features": test.n_features,
        "space": test.space.name,
        "regions": {name: int(np.asarray(mask).sum()) for name, mask in problem.rois.items()},
    }


def _of_problem(settings: Mapping[str, Any]) -> dict[str, Any]:
    own = {"train", "seed", "draws", "confidence", "progress"}
    if strange := sorted(set(settings) - own - {"stages", "options"}):
        raise UsageError(
            f"attribute_rois has no setting {strange[0]!r}; there are "
            f"{', '.join(sorted(own | {'stages', 'options'}))}"
        )
    return {k: v for k, v in settings.items() if k in own}


def _masks(
    recording: Recording, rois: Mapping[str, Any] | Sequence[str] | None
) -> dict[str, np.ndarray]:
    if isinstance(rois, Mapping):
        return {str(name): np.asarray(mask) for name, mask in rois.items()}
    own = {name: np.asarray(mask) for name, mask in recording.rois.items()}
    if rois is None:
        if not own:
            raise UsageError("the recording names no region; give rois=, name -> boolean mask")
        return {name: mask for name, mask in own.items() if mask.any()}
    if missing := [name for name in rois if name not in own]:
        raise UsageError(
            f"the recording has no region {missing[0]!r}; it has {', '.join(own) or 'none'}."
            f"{suggest(missing[0], own)}"
        )
    return {name: own[name] for name in rois}
