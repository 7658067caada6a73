"""Where shards are done: in this process, in processes of this machine, or by a printed script.

The cluster's back end is `jobs_slurm`. All of them start the same worker.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from neurodiff.core.errors import DataError, NeurodiffError, UsageError
from neurodiff.core.progress import Progress
from neurodiff.core.run import Run
from neurodiff.jobs_lease import PATIENCE, newest_lease
from neurodiff.jobs_ledger import tidy
from neurodiff.jobs_manifest import Manifest, read_manifest
from neurodiff.jobs_site import Site, staging
from neurodiff.jobs_worker import HELD, REQUEUES, STOPPED, Stop, count_failure, work

RESTARTS = 100  # of dead workers in one submission; an item that kills is in quarantine after 8


def run_inline(
    manifest: Manifest, shards: int, *, site: Site, progress: Progress, patience: float = PATIENCE
) -> str:
    """Every shard, one after the other, in this process; returns why it ended."""
    stop = Stop()
    place, why = staging(site.local_disk), "finished"
    with stop.on_signals():
        for k in range(shards):
            part = read_manifest(manifest.folder, shard=(k, shards))
            outcome = work(
                part, k, shards, stop=stop, place=place, patience=patience, progress=progress
            )
            if outcome.why != "finished":
                why = outcome.why
            if outcome.why == "stopped":
                break
    tidy(read_manifest(manifest.folder))
    return why


def run_local(
    manifest: Manifest,
    shards: int,
    *,
    site: Site,
    workers: int | None = None,
    patience: float = PATIENCE,
) -> str:
    """Every shard in a process of its own, ``workers`` at a time; returns why it ended.

    A worker that a signal ended is started again. Its death is counted against the item at which
    it was: here nobody preempts, so that the item is the likely cause. After eight of them it is
    left alone.
    """
    run = Run(manifest.run_folder)
    todo, alive = list(range(shards)), {}
    atonce, restarts, why = workers or shards, 0, "finished"
    stop, broken = Stop(), {}
    with stop.on_signals():
        try:
            while todo or alive:
                while todo and len(alive) < atonce and not stop:
                    k = todo.pop(0)
                    alive[k] = _start(manifest, k, shards, site, patience)
                time.sleep(0.02)
                for k, process in list(alive.items()):
                    code = process.poll()
                    if code is None:
                        continue
                    del alive[k]
                    if code < 0 and not stop:
                        _blame(run, manifest, k, shards, -code)
                        restarts += 1
                        if restarts > RESTARTS:
                            raise UsageError(
                                f"workers died {restarts} times; look at "
                                f"{manifest.folder / 'logs'} and resume"
                            )
                        todo.insert(0, k)
                    elif code == STOPPED:
                        why = "stopped"
                    elif code not in (0, 1, HELD):
                        broken[k] = code
                if stop:
                    why = "stopped"
                    todo.clear()
                    for process in alive.values():
                        with contextlib.suppress(ProcessLookupError):
                            process.send_signal(signal.SIGTERM)
                    for process in alive.values():
                        process.wait()
                    alive.clear()
        finally:
            for process in alive.values():
                process.kill()
                process.wait()
    tidy(read_manifest(manifest.folder))
    if broken:
        raise _told_by(manifest, shards, *next(iter(broken.items())))
    return why


def script_text(manifest: Manifest, shards: int, site: Site) -> str:
    """A plain array script for ``sbatch``, which other schedulers understand with their own head.

    For sites that forbid anything else. Nothing in it knows submitit.
    """
    head = sbatch_lines(site)
    inner = [
        "python" if site.container else sys.executable,
        "-P",  # not from the folder that one happens to stand in, which may be one of data
        "-m",
        "neurodiff.jobs_worker",
        str(manifest.run_folder.resolve()),
        manifest.name,
    ]
    command = " ".join(shlex.quote(part) for part in inner)
    local = f" --local-disk {shlex.quote(site.local_disk)}" if site.local_disk else ""
    command = f'{command} "$k" {shards}{local}'
    start = [
        "# exec: the scheduler's signals reach the worker, which then asks to be started again",
        f"exec {command}",
    ]
    if site.container:
        place = shlex.quote(str(manifest.run_folder.resolve()))
        exec_in = f"apptainer exec --nv --bind {place} {shlex.quote(site.container)}"
        start = [f"{exec_in} {command} &", *_AROUND_A_CONTAINER]
    logs = manifest.folder.resolve() / "logs"
    return "\n".join(
        [
            "#!/bin/bash",
            f"#SBATCH --job-name={manifest.name}",
            f"#SBATCH --array=0-{shards - 1}%{min(shards, site.at_once)}",
            f"#SBATCH --output={_in_sbatch(str(logs).replace('%', '%%') + '/%A_%a.out')}",
            *head,
            "# LSF: bsub -J 'x[1-N]'; SGE: qsub -t 1-N; PBS: qsub -J 0-(N-1)",
            "k=${SLURM_ARRAY_TASK_ID:-${PBS_ARRAY_INDEX:-}}",
            'if [ -z "$k" ]; then k=$(( ${LSB_JOBINDEX:-${SGE_TASK_ID:?no index}} - 1 )); fi',
            f"mkdir -p {shlex.quote(str(logs))}",
            *site.setup,
            *start,
            "",
        ]
    )


# The image has no scontrol, so that the script asks for its job; see `jobs_worker.requeue`.
_AROUND_A_CONTAINER = f"""\
worker=$! stop= code=0
trap 'stop=1; kill -TERM "$worker" 2>/dev/null' TERM INT USR2
wait "$worker" || code=$?
while [ -n "$stop" ]; do
  stop= again=0
  wait "$worker" 2>/dev/null || again=$?
  [ "$again" = 127 ] || code=$again
done
if [ "$code" = {STOPPED} ] && [ -n "${{SLURM_JOB_ID:-}}" ] \\
    && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {REQUEUES} ] \\
    && scontrol -o show job "$SLURM_JOB_ID" \\
    | grep -q "^JobId=$SLURM_JOB_ID .*JobState=RUNNING"; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"\
""".splitlines()


def sbatch_lines(site: Site) -> list[str]:
    """The head that every job of ours has: may be started again, and says so before its end."""
    given = {
        "account": site.account,
        "qos": site.qos,
        "partition": site.partition,
        "gres": site.gres,
        "constraint": site.constraint,
        "mem": None if site.memory_gb is None else f"{round(site.memory_gb * 1024)}M",
        "cpus-per-task": site.cpus,
        "time": site.minutes,
        "signal": "B:USR2@90",
        "open-mode": "append",
        **site.more,
    }
    lines = [
        f"#SBATCH --{name}={_in_sbatch(value)}"
        for name, value in given.items()
        if value is not None
    ]
    return [*lines, "#SBATCH --requeue"]


def _in_sbatch(value: object) -> str:
    """A value as sbatch reads it in a line of a script: within quotes where it has a space."""
    text = str(value)
    if any(sign in text for sign in '"\n\r'):
        raise UsageError(f"{text!r} cannot stand in a script of sbatch: it has quotes or line ends")
    return f'"{text}"' if any(sign in text for sign in " \t#'") else text


def _start(
    manifest: Manifest, k: int, n: int, site: Site, patience: float
) -> subprocess.Popen[bytes]:
    logs = manifest.folder / "logs"
    logs.mkdir(exist_ok=True)
    command: Sequence[str] = [
        sys.executable,
        "-P",  # not from the folder that one happens to stand in, which may be one of data
        "-m",
        "neurodiff.jobs_worker",
        str(manifest.run_folder),
        manifest.name,
        str(k),
        str(n),
        "--parent",
        str(os.getpid()),
        "--patience",
        str(patience),
    ]
    if site.local_disk:
        command = [*command, "--local-disk", site.local_disk]
    with open(logs / f"shard-{k}-of-{n}.log", "ab") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            # a worker here must not ask Slurm to start the job again in which a person works
            env={name: value for name, value in os.environ.items() if name != "SLURM_JOB_ID"},
            # Ctrl-C goes to the parent, which asks its workers to stop one item later
            start_new_session=True,
        )  # fmt: skip


def _told_by(manifest: Manifest, n: int, k: int, code: int) -> NeurodiffError:
    """The error of a worker that could not even begin, from its log."""
    path = manifest.folder / "logs" / f"shard-{k}-of-{n}.log"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    said = next((one for one in reversed(lines) if one.startswith("error: ")), f"code {code}")
    kind = {2: UsageError, 3: DataError}.get(code, NeurodiffError)
    return kind(f"the worker of shard {k} ended: {said.removeprefix('error: ')} (see {path})")


def _blame(run: Run, manifest: Manifest, k: int, n: int, number: int) -> None:
    """Count a worker's death against the item at which it was."""
    seen = newest_lease(manifest.folder / "leases", f"shard-{k}-of-{n}")
    if seen is None or not seen.item:
        return
    for row in read_manifest(manifest.folder, shard=(k, n)).rows:
        item = manifest.item(run, row)
        if row.key == seen.item and not item.done:
            name = signal.Signals(number).name
            count_failure(item, f"its worker was ended by {name}", death=True, kind=name)
