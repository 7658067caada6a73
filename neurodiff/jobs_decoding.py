"""The task "reconstruct": trials of a run's data set, decoded one by one as `reconstruct` does.

The items are those of the verb, with the same keys, so that the verb, its evaluation and its report
find what a batch made, and the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from neurodiff.analysis.sources import Source, chosen_source, trials_of
from neurodiff.core.errors import DataError, UsageError, suggest
from neurodiff.core.progress import SILENT
from neurodiff.core.recording import Recording
from neurodiff.core.run import Item, Run, fingerprint
from neurodiff.jobs_tasks import Place, Planned, Selection

MODEL = "model"
STATISTICS = "statistics"
_WORDS = {"cohort", "data", "device", "metric", "protocol", "root", "subject", "weights"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoding:
    """What a worker holds: the model, its recording and where that comes from."""

    run: Run
    kind: str
    pipe: Any
    recording: Recording
    source: Source
    model: str
    average: bool
    statistics: str
    together: Any = None  # features of every trial, where they are brought to scale together


class Reconstruct:
    """Settings: ``data``, ``root``, ``subject`` as of the verb; ``average`` (pictures: repeats of a
    stimulus are averaged first, True), ``together`` (trials decoded at once, 1: what a kill loses,
    and what a GPU gains; results agree to rounding, noise exactly)."""

    name = "reconstruct"
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "data": None,
        "root": None,
        "subject": None,
        "average": True,
        "together": 1,
    }

    def plan(self, run: Run, settings: Mapping[str, Any], chosen: Selection) -> Planned:
        full = known_settings(self.name, settings, self.DEFAULTS)
        whole_number(full, "together")
        state = _opened(run, full, Path)
        items = []
        for trial in range(state.recording.n_trials):
            row = state.recording.trials.iloc[trial]
            if not chosen.wants(row["subject"], row["stimulus"]):
                continue
            try:
                key = _settings(state, trial)
            except DataError:  # the worker writes down why, and the others go on
                key = _settings(state, trial, readable=False)
            for sample in range(chosen.samples):
                item = run.item(_task(state.kind), row["subject"], row["stimulus"], sample, key)
                items.append((item, {"trial": trial}))
        full |= {"model": state.model, STATISTICS: state.statistics}
        digests = {"model": state.model, "recording": state.recording.fingerprint()}
        return Planned(items=items, settings=full, digests=digests)

    def prepare(self, run: Run, settings: Mapping[str, Any], place: Place) -> Decoding:
        return _opened(run, settings, place)

    def do(
        self, state: Decoding, item: Item, folder: Path, extra: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        [record] = self.do_many(state, [item], [folder], [extra])
        return record

    def do_many(
        self,
        state: Decoding,
        items: Sequence[Item],
        folders: Sequence[Path],
        extras: Sequence[Mapping[str, Any]],
    ) -> list[Mapping[str, Any]]:
        """Decode trials in one batch for each sample."""
        trials = [int(extra["trial"]) for extra in extras]
        for item, trial in zip(items, trials, strict=True):
            if not 0 <= trial < state.recording.n_trials:
                raise DataError(f"the recording has no trial {trial} any more; plan again")
            if _settings(state, trial) != item.settings:
                raise DataError(
                    f"trial {trial} is not what it was when the batch was planned; plan it again"
                )
        for sample in dict.fromkeys(item.sample for item in items):
            at = [k for k, item in enumerate(items) if item.sample == sample]
            part = [trials[k] for k in at], [folders[k] for k in at]
            (_pictures if state.kind == "images" else _objects)(state, sample, *part)
        rows = state.recording.trials
        return [{"repeat": int(rows["repeat"].iloc[trial])} for trial in trials]


def known_settings(
    task: str, settings: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings with their defaults; UsageError for one that the task does not have."""
    unknown = sorted(set(settings) - set(defaults))
    if unknown:
        raise UsageError(
            f"{task} has no setting {', '.join(unknown)}; it has {', '.join(defaults)}."
            f"{suggest(unknown[0], defaults)}"
        )
    full = {**defaults, **settings}
    for name in _WORDS & set(full):
        value = full[name]
        if isinstance(value, bool | list | tuple | dict):
            raise UsageError(f"{name} is {value!r}; give one word or path")
        full[name] = None if value is None else str(value)  # a subject may be a number
    return full


def whole_number(settings: Mapping[str, Any], name: str) -> None:
    """UsageError where a setting is no whole number from 1: told when planned, not by a worker."""
    value = settings[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} is {value!r}; give a whole number from 1")


def decoded_recording(run: Run, settings: Mapping[str, Any]) -> tuple[Recording, Source]:
    """The test trials of the run's own data set, or every trial of another one."""
    from neurodiff.analysis.decoding import own_source

    root = None if settings["root"] is None else Path(settings["root"])
    subject = settings["subject"]
    source, is_own = chosen_source(own_source(run), settings["data"], root, subject)
    recording, _ = source.open(SILENT)
    return (trials_of(recording, "test") if is_own else recording), source


def kind_of(run: Run) -> str:
    """``"objects"`` or ``"images"``; UsageError for a run of scans, which are no recordings."""
    from neurodiff.analysis import kinds

    kind = kinds.pipeline_of_run(run.folder)
    if kind == kinds.SCANS:
        raise UsageError("a run of scans has no recordings to decode; its task is encode")
    return "images" if kind == kinds.IMAGES else "objects"


def _opened(run: Run, settings: Mapping[str, Any], place: Place) -> Decoding:
    kind = kind_of(run)
    folder = place(run.folder / MODEL)
    average = bool(settings["average"])
    recording, source = decoded_recording(run, settings)
    statistics, together = "", None
    if kind == "images":
        from neurodiff.analysis.image_items import trial_hash
        from neurodiff.pipelines.brain_diffuser import BrainDiffuser, averaged
        from neurodiff.pipelines.brain_diffuser_files import model_fingerprint

        pipe: Any = BrainDiffuser.from_pretrained(folder)
        model = model_fingerprint(folder)
        recording = averaged(recording) if average else recording
        if pipe.recipe.decoder.standardise == "test":
            hashes = [trial_hash(recording, trial) for trial in range(recording.n_trials)]
            statistics = fingerprint({"trials": hashes})
            together = pipe.predict_features(recording)
    else:
        from neurodiff.analysis.decoding import brain_of
        from neurodiff.analysis.verbs import PUBLISHED_UNITS
        from neurodiff.pipelines.mind3d import MinD3D
        from neurodiff.pipelines.mind3d_files import model_fingerprint as fingerprint_of

        pipe = MinD3D.from_pretrained(folder)
        model = fingerprint_of(folder)
        own = run.info.get("data")
        reader = Source.from_plain(own).reader if isinstance(own, dict) and own.get("data") else ""
        if reader not in PUBLISHED_UNITS and source.reader in PUBLISHED_UNITS:
            source = Source(source.data, source.root, source.subject, "trial")
            recording, _ = source.open(SILENT)
        recording = brain_of(pipe).accept(recording)
    if settings.get("model", model) != model:
        raise DataError(
            f"the model in {run.folder / MODEL} is not the one that the batch was planned for; "
            "plan it again"
        )
    return Decoding(
        run=run,
        kind=kind,
        pipe=pipe,
        recording=recording,
        source=source,
        model=model,
        average=average,
        statistics=statistics,
        together=together,
    )


def _task(kind: str) -> str:
    from neurodiff.analysis import decoding, image_items

    return image_items.TASK if kind == "images" else decoding.TASK


def _settings(state: Decoding, trial: int, *, readable: bool = True) -> str:
    if state.kind != "images":
        from neurodiff.analysis.decoding import trial_settings as of_object

        return of_object(state.recording, trial, state.model, readable=readable)
    from neurodiff.analysis.image_items import trial_hash, trial_settings

    values = trial_hash(state.recording, trial) if readable else f"unreadable trial {trial}"
    return trial_settings(
        state.recording,
        trial,
        state.model,
        values=values,
        average=state.average,
        statistics=state.statistics,
    )


def _objects(state: Decoding, sample: int, trials: list[int], folders: list[Path]) -> None:
    from neurodiff.analysis.decoding import decoded, write_result

    part = state.recording.select(trials)
    found = decoded(state.pipe, part, sample=sample, seed=state.run.seed)
    for trial, folder, result in zip(trials, folders, found, strict=True):
        row = state.recording.trials.iloc[trial]
        write_result(folder, result, row, state.source, state.recording.simulated)


def _pictures(state: Decoding, sample: int, trials: list[int], folders: list[Path]) -> None:
    from neurodiff.analysis.image_items import about_trial, write_picture

    if state.together is None:
        features = state.pipe.predict_features(state.recording.select(trials))
    else:
        features = state.together.take(trials)
    about = [
        about_trial(row, state.source, state.recording.simulated, state.average)
        for row in (state.recording.trials.iloc[trial] for trial in trials)
    ]
    keys = [(one["subject"], one["stimulus"], int(one["repeat"])) for one in about]
    found = state.pipe.generate(features, keys, sample=sample, seed=state.run.seed)
    for folder, picture, one in zip(folders, found, about, strict=True):
        write_picture(folder, picture, one)
