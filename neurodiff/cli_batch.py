"""Commands of batches: plan, submit, status, resume, retry, cancel, collect; `cli` names them."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Many items on a cluster or on this machine; any command may be killed and called again.",
    no_args_is_help=True,
)


class Where(enum.StrEnum):
    """Back ends."""

    local = "local"
    inline = "inline"
    slurm = "slurm"
    script = "script"


RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task", metavar="NAME", help="reconstruct, attribute, encode, evaluate or rehearsal."
    ),
]
Subjects = Annotated[
    list[str] | None, typer.Option("--subject", metavar="NAME", help="Repeatable; default all.")
]
Stimuli = Annotated[
    list[str] | None, typer.Option("--stimulus", metavar="NAME", help="Repeatable; default all.")
]
Samples = Annotated[int, typer.Option("--samples", metavar="K", min=1, help="Of each stimulus.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="A setting of the task; repeatable."),
]
Batch = Annotated[
    str | None, typer.Option("--batch", metavar="NAME", help="Where a run has several.")
]
Shards = Annotated[int, typer.Option("--shards", metavar="N", min=1, help="Workers or jobs.")]
On = Annotated[Where, typer.Option("--on", help="Where the workers run.")]
SiteFile = Annotated[
    Path | None, typer.Option("--site", metavar="FILE", help="Site profile (YAML).")
]
Workers = Annotated[
    int | None, typer.Option("--workers", metavar="N", min=1, help="Local: processes at a time.")
]


@app.command()
def plan(
    run: RunFolder,
    task: Annotated[str, typer.Option("--task", metavar="NAME", help="See submit.")],
    subjects: Subjects = None,
    stimuli: Stimuli = None,
    samples: Samples = 1,
    settings: Settings = None,
) -> None:
    """Write down which items there are; nothing is computed."""
    made = _plan(run, task, subjects, stimuli, samples, settings)
    typer.echo(f"{len(made)} items, {made.folder}")


@app.command()
def submit(
    run: RunFolder,
    task: TaskName = None,
    shards: Shards = 1,
    on: On = Where.local,
    site: SiteFile = None,
    batch: Batch = None,
    workers: Workers = None,
    subjects: Subjects = None,
    stimuli: Stimuli = None,
    samples: Samples = 1,
    settings: Settings = None,
) -> None:
    """Plan (with --task) and start workers. Exit code 1 when items failed."""
    if task is not None:
        batch = _plan(run, task, subjects, stimuli, samples, settings).name
    _start(run, shards, on, site, batch, workers)


@app.command()
def resume(
    run: RunFolder,
    shards: Shards = 1,
    on: On = Where.local,
    site: SiteFile = None,
    batch: Batch = None,
    workers: Workers = None,
) -> None:
    """Do what is not done; another number of shards or another place is fine."""
    _start(run, shards, on, site, batch, workers)


@app.command()
def status(
    run: RunFolder,
    batch: Batch = None,
    watch: Annotated[
        float | None, typer.Option("--watch", metavar="S", min=1.0, help="Again every S seconds.")
    ] = None,
    scheduler: Annotated[
        bool, typer.Option("--scheduler", help="Also ask Slurm for the state of its jobs.")
    ] = False,
    verify: Annotated[
        str, typer.Option("--verify", help="none, size, or hash: read every file again.")
    ] = "none",
) -> None:
    """How far each batch is, counted from the files of its items."""
    import time

    import neurodiff.jobs as jobs
    from neurodiff.core.errors import UsageError
    from neurodiff.core.run import Run
    from neurodiff.jobs_manifest import batches, find_batch

    if verify not in ("none", "size", "hash"):
        raise UsageError(f"--verify {verify}: expected none, size or hash")
    opened = Run.open(run)
    while True:
        find_batch(opened, batch) if batch or not batches(opened) else None
        names = [path.name for path in batches(opened) if not batch or path.name.startswith(batch)]
        found = [
            jobs.status(opened, batch=name, verify=verify, scheduler=scheduler) for name in names
        ]
        for one in found:
            typer.echo(str(one))
        if watch is None or all(one.finished for one in found):
            return
        time.sleep(watch)


@app.command()
def retry(run: RunFolder, batch: Batch = None) -> None:
    """Forget failures, so that resume tries those items again."""
    import neurodiff.jobs as jobs

    typer.echo(f"{jobs.retry(run, batch=batch)} items will be tried again by resume")


@app.command()
def cancel(run: RunFolder, batch: Batch = None) -> None:
    """Cancel the batch's jobs in Slurm; what is done stays."""
    from neurodiff.core.run import Run
    from neurodiff.jobs_manifest import find_batch
    from neurodiff.jobs_slurm import cancel as cancel_jobs

    found = cancel_jobs(find_batch(Run.open(run), batch))
    typer.echo(f"cancelled: {', '.join(found) or 'no job that Slurm knows'}")


@app.command()
def collect(
    run: RunFolder,
    batch: Batch = None,
    pack: Annotated[
        bool, typer.Option("--pack", help="One file a shard instead of a folder an item.")
    ] = False,
    shards: Annotated[int, typer.Option("--shards", metavar="N", min=1, help="Packs.")] = 1,
    unpack: Annotated[bool, typer.Option("--unpack", help="Bring packed items back.")] = False,
) -> None:
    """Gather what is done: tables of the task, a list of items, and with --pack few files."""
    import neurodiff.jobs as jobs
    from neurodiff.core.atomic import write_csv
    from neurodiff.core.errors import UsageError
    from neurodiff.core.run import Run
    from neurodiff.jobs_manifest import find_batch

    if pack and unpack:
        raise UsageError("give --pack or --unpack, not both")
    folder = find_batch(Run.open(run), batch)
    if unpack:
        typer.echo(f"{jobs.unpack(run, batch=folder.name)} items are back in their folders")
    table = jobs.collect(run, pack, batch=folder.name, shards=shards)
    write_csv(folder / "items.csv", table)
    counts = table["state"].value_counts()
    typer.echo(", ".join(f"{n} {state}" for state, n in counts.items()))
    typer.echo(str(folder))


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def fit(
    arguments: Annotated[
        list[str], typer.Argument(metavar="RECIPE ...", help="As after neurodiff fit.")
    ],
    on: On = Where.local,
    site: SiteFile = None,
    processes: Annotated[
        int, typer.Option("--processes", metavar="N", min=1, help="Of one node, one a GPU.")
    ] = 1,
    logs: Annotated[Path, typer.Option("--logs", metavar="DIR", help="Slurm's.")] = Path("jobs"),
) -> None:
    """Fit a recipe as a job that goes on from its newest checkpoint when it is started again."""
    from neurodiff.jobs_site import read_site
    from neurodiff.jobs_training import submit_training

    said = submit_training(
        arguments, on=on.value, site=read_site(site), processes=processes, logs=logs
    )
    typer.echo(said)


@app.command()
def apptainer(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Else it is printed.")
    ] = None,
) -> None:
    """A definition file by which Apptainer builds an image of this version."""
    from neurodiff.core.atomic import atomic_write
    from neurodiff.jobs_container import apptainer_definition

    if out is None:
        typer.echo(apptainer_definition())
        return
    with atomic_write(out) as file:
        file.write(apptainer_definition().encode())
    typer.echo(str(out))


def _plan(
    run: Path,
    task: str,
    subjects: list[str] | None,
    stimuli: list[str] | None,
    samples: int,
    settings: list[str] | None,
) -> Any:
    import neurodiff.jobs as jobs
    from neurodiff.core.config import parse_overrides

    return jobs.plan(
        run,
        task,
        subjects=subjects or None,
        stimuli=stimuli or None,
        samples=samples,
        settings=parse_overrides(settings or []),
    )


def _start(
    run: Path, shards: int, on: Where, site: Path | None, batch: str | None, workers: int | None
) -> None:
    import neurodiff.jobs as jobs
    from neurodiff.core.errors import NeurodiffError
    from neurodiff.core.progress import Progress

    progress = Progress(None) if on is Where.script else Progress.to_stdout()
    found = jobs.submit(
        run, shards, on.value, site, batch=batch, workers=workers, progress=progress
    )
    typer.echo(str(found))
    if on in (Where.local, Where.inline) and isinstance(found, jobs.Status):
        bad = found.failed + found.quarantined
        if found.pending:
            raise NeurodiffError(
                f"{found.pending} items are left: stopped, or held by workers elsewhere; resume "
                "goes on"
            )
        if bad:
            raise NeurodiffError(
                f"{bad} of {found.items} items failed; mend the cause and resume, or retry those "
                "in quarantine"
            )
