"""Batches: plan, submit, status, resume, retry, collect.

>>> import neurodiff.jobs as jobs                                          # doctest: +SKIP
>>> manifest = jobs.plan(run, "reconstruct", samples=4)                    # doctest: +SKIP
>>> jobs.submit(run, shards=40, on="slurm", site="our_cluster.yaml")       # doctest: +SKIP
>>> print(jobs.status(run))                                                # doctest: +SKIP

A batch is a list of items (`jobs_manifest`) of a task (`jobs_tasks`). Its items are written by
workers (`jobs_worker`) under leases (`jobs_lease`) wherever a back end starts them, and what is
done is told by the run's own files (`jobs_ledger`). So everything here may be killed at any moment
and called again, with another number of shards or another back end.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd

from neurodiff.core.errors import UsageError, suggest
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.provenance import now
from neurodiff.core.run import Run
from neurodiff.jobs_backends import run_inline, run_local, script_text
from neurodiff.jobs_lease import PATIENCE
from neurodiff.jobs_ledger import Status, note_submission, rows_in, states_of, status_of, tidy
from neurodiff.jobs_manifest import (
    Manifest,
    batches,
    checked_shard,
    find_batch,
    read_manifest,
    row_of,
    write_manifest,
)
from neurodiff.jobs_pack import alone, pack_shard, packed_keys, unpack_all
from neurodiff.jobs_site import Site, read_site
from neurodiff.jobs_tasks import Selection, task_of

__all__ = ["Manifest", "Status", "collect", "plan", "resume", "retry", "status", "submit"]

Where = Literal["local", "inline", "slurm", "script"]
RunLike = Run | str | os.PathLike[str]


def plan(
    run: RunLike,
    task: str,
    *,
    subjects: Collection[str] | None = None,
    stimuli: Collection[str] | None = None,
    samples: int = 1,
    settings: Mapping[str, Any] | None = None,
) -> Manifest:
    """Which items a task means for these subjects, stimuli and samples; written, nothing is done.

    Planning the same again finds the same batch.

    Parameters
    ----------
    task : "reconstruct", "attribute", "encode", "evaluate", or "rehearsal" to try a cluster.
    subjects, stimuli : names; None means all of them.
    settings : of the task, see its docstring.

    Raises
    ------
    UsageError : no such task or setting, or nothing fits.
    DataError : no model, data missing or broken.
    """
    opened = _opened(run)
    chosen = Selection(
        subjects=None if subjects is None else frozenset(map(str, subjects)),
        stimuli=None if stimuli is None else frozenset(map(str, stimuli)),
        samples=samples,
    )
    planned = task_of(task).plan(opened, dict(settings or {}), chosen)
    chosen.require_known()
    rows = [row_of(item, extra) for item, extra in planned.items]
    kind = planned.items[0][0].task if planned.items else task
    manifest = write_manifest(opened, task, kind, planned.settings, planned.digests, rows)
    opened.plan(item for item, _ in planned.items)
    return manifest


def submit(
    run: RunLike,
    shards: int = 1,
    on: Where = "local",
    site: Site | str | os.PathLike[str] | None = None,
    *,
    batch: str | None = None,
    workers: int | None = None,
    patience: float = PATIENCE,
    progress: Progress = SILENT,
) -> Status | str:
    """Start a batch's workers; what is done is left alone.

    Parameters
    ----------
    shards : parts of the batch; each is a worker's, and a job's on a cluster.
    on : "local" (processes here), "inline" (this process), "slurm" (an array of jobs; returns at
        once), or "script" (returns the text of an array script for a scheduler).
    site : a profile, or the path of one (see `jobs_site.Site`).
    batch : name or beginning of it, where a run has several.
    workers : processes at a time, with "local".
    patience : seconds without a heartbeat after which another machine's worker is gone.

    Returns
    -------
    The status afterwards; with "script" the script.

    Raises
    ------
    UsageError : no such back end, batch or profile, fewer than one shard.
    MissingDataError : the run has no batch, or the site has no Slurm.
    """
    if on not in get_args(Where):
        known = get_args(Where)
        raise UsageError(f"on is {on!r}; expected {', '.join(known)}.{suggest(on, known)}")
    checked_shard(0, shards)
    opened = _opened(run)
    profile = site if isinstance(site, Site) else read_site(site)
    manifest = read_manifest(find_batch(opened, batch))
    shards = min(shards, len(manifest))
    if on == "script":
        (manifest.folder / "logs").mkdir(exist_ok=True)  # sbatch makes no folders
        return script_text(manifest, shards, profile)
    record = {"time": now(), "on": on, "shards": shards}
    if on == "slurm":
        from neurodiff.jobs_slurm import submit_array

        record["jobs"] = submit_array(manifest, shards, profile, patience=patience)
        note_submission(manifest.folder, record)
        progress.say(f"{shards} shards are submitted as job {record['jobs'][0].partition('_')[0]}")
    elif on == "inline":
        note_submission(manifest.folder, record)
        run_inline(manifest, shards, site=profile, progress=progress, patience=patience)
    else:
        note_submission(manifest.folder, record)
        run_local(manifest, shards, site=profile, workers=workers, patience=patience)
    return status(opened, batch=manifest.name)


def status(
    run: RunLike, *, batch: str | None = None, verify: str = "none", scheduler: bool = False
) -> Status:
    """How far a batch is, from its files.

    Parameters
    ----------
    verify : "none", or "size" and "hash" to compare every file with what was written down.
    scheduler : also ask Slurm in which state its jobs are.
    """
    opened = _opened(run)
    manifest = read_manifest(find_batch(opened, batch))
    found = status_of(opened, manifest, verify=verify)
    if scheduler:
        from neurodiff.jobs_slurm import scheduler_states

        found = replace(found, scheduler=scheduler_states(manifest.folder))
    return found


def statuses(run: RunLike) -> list[Status]:
    """Of every batch of a run."""
    return [status(run, batch=folder.name) for folder in batches(_opened(run))]


def resume(run: RunLike, shards: int = 1, on: Where = "local", **options: Any) -> Status | str:
    """Do what is not done, failed items included unless they are in quarantine; as `submit`."""
    return submit(run, shards, on, **options)


def retry(run: RunLike, *, batch: str | None = None) -> int:
    """Forget the failures of a batch, so that `resume` tries its items again; how many."""
    opened = _opened(run)
    manifest = read_manifest(find_batch(opened, batch))
    rows = rows_in(manifest, opened, ("failed", "quarantined"))
    return sum(manifest.item(opened, row).forgive() for row in rows)


def collect(
    run: RunLike,
    pack: bool = False,
    *,
    batch: str | None = None,
    shards: int = 1,
    patience: float = PATIENCE,
) -> pd.DataFrame:
    """One row an item: key, subject, stimulus, sample, state; removes what dead workers left.

    Tasks whose items make one table (encode, evaluate, attribute) write it into the batch's folder:
    of the finished items, whatever their number.

    Parameters
    ----------
    pack : put the finished items into one file a shard, and remove their folders (file systems
        that count files). `unpack` brings them back, which `evaluate` and `report` need.
    shards : number of packs.
    patience : seconds for which a worker of another machine is watched before it counts as gone.

    Raises
    ------
    UsageError : items are to be packed or unpacked, and a worker of the batch is alive.
    """
    opened = _opened(run)
    manifest = read_manifest(find_batch(opened, batch))
    tidy(manifest)
    gather = getattr(task_of(manifest.task), "gather", None)
    if gather is not None and (rows := rows_in(manifest, opened, ("done",))):
        if packed_keys(manifest.folder):
            with alone(manifest.folder, patience=patience):
                unpack_all(opened, manifest.folder)
        items = [manifest.item(opened, row) for row in rows]
        gather(opened, manifest.settings, items, manifest.folder)
    if pack:
        with alone(manifest.folder, patience=patience):
            for k in range(shards):
                name, keys = f"shard-{k}-of-{shards}", [r.key for r in manifest.shard(k, shards)]
                pack_shard(opened, manifest.folder, keys, name)
        tidy(manifest)
    states = states_of(opened, manifest)
    table = pd.DataFrame(
        [(r.key, r.subject, r.stimulus, r.sample) for r in manifest.rows],
        columns=["key", "subject", "stimulus", "sample"],
    )
    table["state"] = states
    return table


def unpack(run: RunLike, *, batch: str | None = None) -> int:
    """Bring packed items back into their folders; how many."""
    opened = _opened(run)
    folder = find_batch(opened, batch)
    with alone(folder):
        return unpack_all(opened, folder)


def _opened(run: RunLike) -> Run:
    return run if isinstance(run, Run) else Run.open(Path(run))
