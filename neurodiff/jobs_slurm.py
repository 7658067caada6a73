"""Slurm as a transport: submitit writes and submits the array; what is done is not its business.

submitit's own view of a job (pickled results, `sacct`, its handlers of signals) is not used: it
fails where a site gives no grace time, and calls a job unknown for ever where there is no
accounting. The worker replaces the handlers, asks Slurm itself to be started again, and the ledger
tells what is done. The state of jobs is asked for as people ask: `squeue` and `scontrol` first.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurodiff.core.errors import MissingDataError, UsageError
from neurodiff.jobs_lease import PATIENCE
from neurodiff.jobs_ledger import submissions_of
from neurodiff.jobs_manifest import Manifest
from neurodiff.jobs_site import Site

SIGNAL_DELAY = 90  # seconds before the time limit at which Slurm sends SIGUSR2


@dataclass(frozen=True, kw_only=True)
class ShardCall:
    """What one task of the array calls: a shard, by names only, so that nothing else is pickled."""

    folder: str
    k: int
    n: int
    patience: float = PATIENCE
    local_disk: str | None = None

    def __call__(self) -> str:
        from neurodiff.jobs_worker import HELD, run_shard

        code = run_shard(
            Path(self.folder), self.k, self.n, patience=self.patience, local_disk=self.local_disk
        )
        if code not in (0, HELD):
            sys.exit(code)  # SystemExit: submitit writes no result
        return f"shard {self.k} of {self.n}"


def submit_array(
    manifest: Manifest, shards: int, site: Site, *, patience: float = PATIENCE
) -> list[str]:
    """One array with a task a shard; ids such as "1234_0".

    Raises
    ------
    MissingDataError : there is no ``sbatch`` here.
    UsageError : Slurm refused the job, with its reason.
    """
    calls = [
        ShardCall(
            folder=str(manifest.folder.resolve()),
            k=k,
            n=shards,
            patience=patience,
            local_disk=site.local_disk,
        )
        for k in range(shards)
    ]
    return submit_calls(calls, manifest.folder / "slurm", manifest.name, site)


def submit_calls(calls: Sequence[Any], logs: Path, name: str, site: Site) -> list[str]:
    """Calls without arguments as the tasks of one array; ids of the tasks."""
    if shutil.which("sbatch") is None:
        raise MissingDataError(
            "there is no sbatch on this machine; submit from a login node, or take "
            "--on local or --on script"
        )
    if site.container:
        raise UsageError("a container goes with --on script; submitit starts this Python itself")
    import submitit

    executor = submitit.SlurmExecutor(folder=str(logs), max_num_timeout=1000)
    executor.update_parameters(**slurm_parameters(name, site))
    try:
        with _outside_an_allocation(), executor.batch():
            jobs = [executor.submit(call) for call in calls]
        return [job.job_id for job in jobs]
    except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError) as error:
        text = str(error).strip().splitlines()
        said = text[-1] if text else str(error)
        many = any(word in str(error) for word in ("job array", "MaxSubmit", "MaxArraySize"))
        raise UsageError(
            f"Slurm refused the job: {said}; "
            + (
                f"{len(calls)} tasks may be too many: give fewer --shards"
                if many
                else "check the site profile"
            )
        ) from None


@contextlib.contextmanager
def _outside_an_allocation() -> Iterator[None]:
    """Without what Slurm tells of the job that one stands in: sbatch would pass it on to the tasks.

    Where the cluster is stays known.
    """
    kept = {"SLURM_CONF", "SLURM_CLUSTERS"}
    inner = {n: v for n, v in os.environ.items() if n.startswith("SLURM_") and n not in kept}
    for name in inner:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(inner)


def slurm_parameters(name: str, site: Site) -> dict[str, Any]:
    """Names of submitit for what a site's profile says."""
    given: dict[str, Any] = {
        "job_name": name,
        "account": site.account,
        "qos": site.qos,
        "partition": site.partition,
        "gres": site.gres,
        "constraint": site.constraint,
        "mem": site.memory_gb,
        "cpus_per_task": site.cpus,
        "time": site.minutes,
        "array_parallelism": site.at_once,
        "setup": ["export PYTHONSAFEPATH=1", *site.setup],
        "signal_delay_s": SIGNAL_DELAY,
        "stderr_to_stdout": True,
        "wckey": "neurodiff",
    }
    more: dict[str, Any] = {"requeue": True, **site.more}
    found = {key: value for key, value in given.items() if value is not None}
    return {**found, "additional_parameters": more}


def scheduler_states(batch: Path) -> dict[str, int]:
    """State -> number of tasks of the batch's newest array, as Slurm tells it; empty if it does
    not. For people: nothing depends on it."""
    arrays = [r["jobs"] for r in submissions_of(batch) if r.get("jobs")]
    if not arrays:
        return {}
    job = str(arrays[-1][0]).partition("_")[0]
    if not job.isdecimal():
        return {}
    for ask in (_by_scontrol, _by_sacct):
        if states := ask(job):
            return dict(Counter(states))
    return {}


def cancel(batch: Path) -> list[str]:
    """Cancel every array of a batch that Slurm still knows; their ids. What is done stays."""
    found = []
    for record in submissions_of(batch):
        for one in record.get("jobs") or []:
            job = str(one).partition("_")[0]
            if job.isdecimal() and job not in found and _answer(["scancel", job]) is not None:
                found.append(job)
    return found


def _by_scontrol(job: str) -> list[str]:
    text = _answer(["scontrol", "-o", "show", "job", job]) or ""
    states = []
    for line in text.splitlines():
        fields: Mapping[str, str] = dict(p.split("=", 1) for p in line.split() if "=" in p)
        if "JobState" in fields:
            states += [fields["JobState"]] * _tasks(fields.get("ArrayTaskId", ""))
    return states


def _tasks(text: str) -> int:
    """Number of tasks in a text such as "3", "4-7%2" or "1,3-5"."""
    count = 0
    for part in text.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last.isdecimal() or not last):
            count += int(last or first) - int(first) + 1
    return max(1, count)


def _by_sacct(job: str) -> list[str]:
    text = _answer(["sacct", "-X", "-n", "-P", "-o", "State", "-j", job]) or ""
    return [line.split()[0] for line in text.splitlines() if line.strip()]


def _answer(command: Sequence[str]) -> str | None:
    """What a command prints, or None where it is not there, fails, or does not come back."""
    environment = {**os.environ, "SLURM_TIME_FORMAT": "standard"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=30, check=True, env=environment
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
