"""The task "attribute": which regions a decoder draws on, a subject and method at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from neurodiff.core.atomic import write_csv
from neurodiff.core.errors import DataError, UsageError, suggest
from neurodiff.core.progress import SILENT
from neurodiff.core.recording import Recording
from neurodiff.core.run import Item, Run, fingerprint
from neurodiff.core.stimuli import Stimuli
from neurodiff.jobs_decoding import MODEL, decoded_recording, kind_of, known_settings, whole_number
from neurodiff.jobs_scores import gather_tables
from neurodiff.jobs_tasks import Place, Planned, Selection

VERSION = 1
TABLE = "attribution.csv"


@dataclass(frozen=True, kw_only=True, eq=False)
class Attributing:
    """What a worker holds."""

    run: Run
    pipe: Any
    model: str
    recording: Recording
    train: Recording | None
    stimuli: Stimuli
    settings: Mapping[str, Any]


class Attribute:
    """Settings: ``methods`` (names; None: the usual ones), ``rois`` (names; None: all), ``metric``
    ("auto"), ``draws`` (1000); ``data``, ``root``, ``subject`` as of the verb reconstruct.

    An item's stimulus is the method's name: the test trials of a subject are one question.
    """

    name = "attribute"
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "methods": None,
        "rois": None,
        "metric": "auto",
        "draws": 1000,
        "data": None,
        "root": None,
        "subject": None,
    }

    def plan(self, run: Run, settings: Mapping[str, Any], chosen: Selection) -> Planned:
        from neurodiff.analysis import attribution
        from neurodiff.analysis.attribution_statistics import METRICS

        full = known_settings(self.name, settings, self.DEFAULTS)
        whole_number(full, "draws")
        methods = _names(full["methods"]) or list(attribution.DEFAULT)
        full["rois"] = _names(full["rois"])
        for method in methods:
            if not {method, method.partition(":")[0]} & set(attribution.METHODS):
                known = list(attribution.METHODS)
                raise UsageError(
                    f"there is no method {method!r}; expected {', '.join(known)}."
                    f"{suggest(method, known)}"
                )
        full["methods"] = methods
        chosen.require_one_sample(self.name)
        metric = full["metric"]
        if metric != "auto" and metric not in METRICS:
            raise UsageError(
                f"there is no metric {metric!r}; expected auto, {', '.join(METRICS)}."
                f"{suggest(metric, METRICS)}"
            )
        state = self.prepare(run, full, Path)
        _require_regions(state.recording, full["rois"])
        items = []
        for subject in dict.fromkeys(map(str, state.recording.trials["subject"])):
            for method in methods:
                if chosen.wants(subject, method):
                    key = _settings(state, subject)
                    items.append((run.item(self.name, subject, method, 0, key), {}))
        full["model"] = state.model
        return Planned(items=items, settings=full, digests={"model": state.model})

    def prepare(self, run: Run, settings: Mapping[str, Any], place: Place) -> Attributing:
        pipe, model = _model(kind_of(run), place(run.folder / MODEL))
        if settings.get("model", model) != model:
            raise DataError(
                f"the model in {run.folder / MODEL} is not the one that the batch was planned for; "
                "plan it again"
            )
        recording, source = decoded_recording(run, settings)
        whole, stimuli = source.open(SILENT)
        is_train = (whole.trials["split"] == "train").to_numpy()
        return Attributing(
            run=run,
            pipe=pipe,
            model=model,
            recording=recording,
            train=whole.select(is_train) if is_train.any() else None,
            stimuli=_shown(pipe, stimuli, source, whole),
            settings=settings,
        )

    def do(
        self, state: Attributing, item: Item, folder: Path, extra: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        from neurodiff.analysis.attribution import attribute_rois

        if _settings(state, item.subject) != item.settings:
            raise DataError(
                f"the trials of subject {item.subject} are not what they were when the batch was "
                "planned; plan it again"
            )
        found = attribute_rois(
            state.pipe,
            _of_subject(state.recording, item.subject),
            state.stimuli,
            rois=state.settings["rois"],
            metric=state.settings["metric"],
            methods=[item.stimulus],
            seed=state.run.seed,
            train=None if state.train is None else _of_subject(state.train, item.subject),
            draws=int(state.settings["draws"]),
        )
        found.save(folder / "attribution")
        write_csv(folder / TABLE, found.table)
        return {"rows": len(found.table)}

    def gather(self, run: Run, settings: Mapping[str, Any], items: list[Item], out: Path) -> Path:
        """One table of every subject and method."""
        return gather_tables(items, TABLE, out / TABLE)


def _model(kind: str, folder: Path) -> tuple[Any, str]:
    if kind == "images":
        from neurodiff.pipelines.brain_diffuser import BrainDiffuser
        from neurodiff.pipelines.brain_diffuser_files import model_fingerprint

        return BrainDiffuser.from_pretrained(folder), model_fingerprint(folder)
    from neurodiff.pipelines.mind3d import MinD3D
    from neurodiff.pipelines.mind3d_files import model_fingerprint as fingerprint_of

    return MinD3D.from_pretrained(folder), fingerprint_of(folder)


def _names(given: Any) -> list[str] | None:
    """A list, from one or from words with commas between them, as the command line gives."""
    if given is None or given in ("", [], ()):
        return None
    words = given.split(",") if isinstance(given, str) else given
    if not isinstance(words, list | tuple):
        raise UsageError(f"{given!r} is no list of names; give names with commas between them")
    return [str(word).strip() for word in words]


def _shown(pipe: Any, stimuli: Any, source: Any, recording: Recording) -> Any:
    """What a decoder compares with: for MinD-3D embeddings of training stimuli too."""
    if type(pipe).__name__ != "MinD3D":
        return stimuli
    from neurodiff.analysis.attribution_verbs import Embeddings

    ids = recording.trials["stimulus"]
    return Embeddings(pipe, stimuli, source.bank(list(dict.fromkeys(ids)), SILENT), ids)


def _require_regions(recording: Recording, names: list[str] | None) -> None:
    """UsageError for a region that the recording does not have: once, not by each item."""
    own = list(recording.rois)
    if not own:
        raise UsageError("the recording names no region, so that there is nothing to attribute to")
    if missing := [name for name in names or () if name not in own]:
        raise UsageError(
            f"rois: the recording has no region {missing[0]!r}; it has {', '.join(own)}."
            f"{suggest(missing[0], own)}"
        )


def _of_subject(recording: Recording, subject: str) -> Recording:
    return recording.select((recording.trials["subject"].astype(str) == subject).to_numpy())


def _settings(state: Attributing, subject: str) -> str:
    wanted = {name: state.settings[name] for name in ("rois", "metric", "draws")}
    own = _of_subject(state.recording, subject).fingerprint()
    return fingerprint({**wanted, "model": state.model, "trials": own, "version": VERSION})
