"""The task "evaluate": scores of a run's reconstructions, a subject and sample at a time.

Identification compares items with each other, so that an item here is not one reconstruction but
all of a subject's of one data set. Baselines and the ceiling, which need the training data, are
those of the verb ``evaluate``; its ``scores.csv`` is not written here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from neurodiff.core.atomic import write_csv
from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.core.run import Item, Run, fingerprint
from neurodiff.core.safe_io import read_csv
from neurodiff.jobs_decoding import kind_of, known_settings
from neurodiff.jobs_tasks import Place, Planned, Selection

VERSION = 1
TABLE = "scores.csv"
Group = tuple[str, str, int]  # data set, subject, sample


@dataclass(frozen=True, kw_only=True, eq=False)
class Scoring:
    """What a worker holds: the stored results by group, and how they are scored."""

    kind: str
    groups: Mapping[Group, list[Any]]
    settings: Mapping[str, Any]


class Evaluate:
    """Settings: ``protocol`` ("neurodiff-1"), ``full`` (objects: also what takes minutes),
    ``weights`` (folder of the networks' weights)."""

    name = "evaluate"
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "protocol": "neurodiff-1",
        "full": False,
        "weights": None,
    }

    def plan(self, run: Run, settings: Mapping[str, Any], chosen: Selection) -> Planned:
        full = known_settings(self.name, settings, self.DEFAULTS)
        state = self.prepare(run, full, Path)
        if state.kind == "images":
            from neurodiff.analysis.image_protocols import image_protocol_of as protocol_of
        else:
            from neurodiff.analysis.protocols import protocol_of
        protocol_of(str(full["protocol"]))  # a name that there is not is refused here
        if not state.groups:
            raise MissingDataError(
                f"{run.folder} holds no reconstruction; run `neurodiff batch submit {run.folder} "
                "--task reconstruct` first"
            )
        items = []
        for (data, subject, sample), group in sorted(state.groups.items()):
            if chosen.wants(subject, data):
                key = _settings(full, group)
                items.append((run.item(self.name, subject, data, sample, key), {}))
        return Planned(items=items, settings=full)

    def prepare(self, run: Run, settings: Mapping[str, Any], place: Place) -> Scoring:
        from neurodiff.analysis.decoding import stored_results
        from neurodiff.analysis.image_items import stored_pictures

        kind = kind_of(run)
        groups: dict[Group, list[Any]] = defaultdict(list)
        for one in stored_pictures(run) if kind == "images" else stored_results(run):
            result = one.picture if kind == "images" else one.result
            groups[one.source.label, result.subject, result.sample].append(one)
        return Scoring(kind=kind, groups=dict(groups), settings=settings)

    def do(
        self, state: Scoring, item: Item, folder: Path, extra: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        group = state.groups.get((item.stimulus, item.subject, item.sample), [])
        if _settings(state.settings, group) != item.settings:
            raise DataError(
                f"the reconstructions of subject {item.subject} are not those that were there when "
                "the batch was planned; plan it again"
            )
        stimuli, weights = group[0].source.stimuli(), state.settings["weights"]
        protocol = str(state.settings["protocol"])
        if state.kind == "images":
            from neurodiff.analysis.image_evaluation import evaluate_images
            from neurodiff.analysis.image_networks import find_image_networks

            networks = find_image_networks(None if weights is None else Path(weights))
            pictures = [one.picture for one in group]
            table = evaluate_images(pictures, stimuli, protocol, networks=networks).table
        else:
            from neurodiff.analysis.evaluation import evaluate

            results, full = [one.result for one in group], bool(state.settings["full"])
            table = evaluate(results, stimuli, protocol, full=full, weights=weights).table
        table.insert(0, "key", [one.key for one in group])
        table.insert(1, "data", item.stimulus)
        write_csv(folder / TABLE, table)
        return {"rows": len(table)}

    def gather(self, run: Run, settings: Mapping[str, Any], items: list[Item], out: Path) -> Path:
        """One table of the scores of finished items: ``scores.csv`` in the batch's folder."""
        return gather_tables(items, TABLE, out / TABLE)


def gather_tables(items: list[Item], name: str, path: Path) -> Path:
    """Tables of items below each other."""
    text = {"key": str, "subject": str, "stimulus": str}
    parts = [read_csv(item.folder / name, dtype=text) for item in items]
    write_csv(path, pd.concat(parts, ignore_index=True))
    return path


def _settings(settings: Mapping[str, Any], group: list[Any]) -> str:
    wanted = {name: settings[name] for name in ("protocol", "full")}
    return fingerprint({**wanted, "of": [one.key for one in group], "version": VERSION})
