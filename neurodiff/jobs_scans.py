"""The task "encode": semantic codes of the scans of a cohort, one by one, then one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from neurodiff.analysis import kinds
from neurodiff.core.atomic import write_json, write_npy
from neurodiff.core.cohort import Cohort
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.run import Item, Run, fingerprint
from neurodiff.core.safe_io import read_json, read_npy
from neurodiff.jobs_decoding import MODEL, known_settings
from neurodiff.jobs_tasks import Place, Planned, Selection

if TYPE_CHECKING:
    from neurodiff.pipelines.ldae import LDAE

VERSION = 1
CODE, ABOUT = "code.npy", "scan.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoding:
    """What a worker holds."""

    pipe: LDAE
    scans: Cohort


class Encode:
    """Settings: ``cohort`` (a data set, a folder of scans or a CSV; None: the run's own), ``root``,
    ``device`` ("cpu")."""

    name = "encode"
    DEFAULTS: ClassVar[Mapping[str, Any]] = {"cohort": None, "root": None, "device": "cpu"}

    def plan(self, run: Run, settings: Mapping[str, Any], chosen: Selection) -> Planned:
        full = known_settings(self.name, settings, self.DEFAULTS)
        if kinds.pipeline_of_run(run.folder) != kinds.SCANS:
            raise UsageError("a run of recordings has no scans to encode; its task is reconstruct")
        chosen.require_one_sample(self.name)
        state = self.prepare(run, full, Path)
        items = []
        for number, scan in enumerate(state.scans.ids):
            row = state.scans.row(number)
            if not chosen.wants(row["subject"], scan):
                continue
            key = _settings(state.pipe.identity, _source(state.scans, number))
            items.append((run.item(self.name, row["subject"], scan, 0, key), {}))
        full["model"] = state.pipe.identity
        return Planned(items=items, settings=full, digests={"model": state.pipe.identity})

    def prepare(self, run: Run, settings: Mapping[str, Any], place: Place) -> Encoding:
        from neurodiff.analysis.ldae_scans import Walk, open_model

        pipe = open_model(place(run.folder / MODEL), Walk(device=str(settings["device"])))
        if settings.get("model", pipe.identity) != pipe.identity:
            raise DataError(
                f"the model in {run.folder / MODEL} is not the one that the batch was planned for; "
                "plan it again"
            )
        return Encoding(pipe=pipe, scans=_scans(run, settings))

    def do(
        self, state: Encoding, item: Item, folder: Path, extra: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        from neurodiff.analysis.ldae_encoding import encoded_row

        if item.stimulus not in state.scans.ids:
            raise DataError(f"scan {item.stimulus} is not there any more; plan the batch again")
        number = state.scans.ids.index(item.stimulus)
        source = _source(state.scans, number)
        if _settings(state.pipe.identity, source) != item.settings:
            raise DataError(
                f"scan {item.stimulus} is not what it was when the batch was planned; plan it again"
            )
        known, code = encoded_row(state.pipe, state.scans.row(number), state.scans[number], source)
        write_npy(folder / CODE, np.asarray(code, np.float32))
        write_json(folder / ABOUT, known)
        return {}

    def gather(self, run: Run, settings: Mapping[str, Any], items: list[Item], out: Path) -> Path:
        """One table of the codes of finished items, as the verb ``encode`` writes it."""
        import pandas as pd

        from neurodiff.analysis.ldae_encoding import TABLE, about_codes
        from neurodiff.core.code_table import CodeTable, write_codes

        state = self.prepare(run, settings, Path)
        rows = [read_json(item.folder / ABOUT) for item in items]
        codes = np.stack([read_npy(item.folder / CODE) for item in items])
        about = about_codes(state.pipe, state.scans)
        table = CodeTable(scans=pd.DataFrame(rows), codes=codes, about=about)
        write_codes(out / TABLE, table)
        return out / TABLE


def _scans(run: Run, settings: Mapping[str, Any]) -> Cohort:
    from neurodiff.analysis.decoding import own_source
    from neurodiff.analysis.ldae_scans import open_scans

    if settings["cohort"] is not None:
        return open_scans(settings["cohort"], settings["root"])
    own = own_source(run)
    if own is None:
        raise MissingDataError(
            f"{run.folder} does not say where its scans are; name them with --set cohort=DIR"
        )
    opened = open_scans(own.data, settings["root"] or own.root)
    if not len(opened):
        raise UsageError("the cohort has no scan")
    return opened


def _source(scans: Cohort, number: int) -> str:
    from neurodiff.analysis.ldae_scans import source_of

    return source_of(scans.row(number)) or scans[number].fingerprint()


def _settings(model: str, source: str) -> str:
    return fingerprint({"model": model, "source": source, "version": VERSION})
