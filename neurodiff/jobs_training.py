"""Training as a job that may be ended at any moment: it goes on from its newest whole checkpoint.

`core.training` writes checkpoints that are whole or absent, with a hash, and keeps two; its batches
and noise follow from the number of the step alone. So a job needs nothing but to be started again,
by Slurm on its own account. Several GPUs are several processes of one job, started by accelerate's
launcher without restarts of its own: after the death of one of them its others were seen to hang.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neurodiff.core.errors import UsageError
from neurodiff.jobs_backends import sbatch_lines
from neurodiff.jobs_site import Site
from neurodiff.jobs_worker import STOPPED, Stop, requeue

_PATIENCE = 20.0  # seconds that a training process has to end by itself


_OF_THE_JOB = ("--on", "--site", "--processes", "--logs")  # what follows the recipe goes to fit


def training_command(arguments: Sequence[str], processes: int = 1) -> list[str]:
    """The command of ``neurodiff fit`` with these arguments, on several processes of this node.

    Examples
    --------
    >>> training_command(["ldae_demo", "--out", "runs"], 2)[2:7]
    ['-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2']

    Raises
    ------
    UsageError : no recipe, or less than one process.
    """
    if not arguments or arguments[0].startswith("-"):
        raise UsageError("name a recipe, as after `neurodiff fit`")
    for word in arguments:
        if (option := word.partition("=")[0]) in _OF_THE_JOB:
            raise UsageError(f"{option} is of the job; write it before the recipe's name")
    return [*launcher(processes), "-m", "neurodiff.cli", "fit", *arguments]


def launcher(processes: int) -> list[str]:
    """What stands before a script, or before ``-m`` and a module, to run it on several processes.

    Everything that a user's own file of accelerate might say otherwise is said here; precision is
    the recipe's.
    """
    if processes < 1:
        raise UsageError(f"processes is {processes}; give at least 1")
    if processes == 1:
        return [sys.executable, "-P"]
    how = {
        "num_processes": str(processes),
        "num_machines": "1",
        "max_restarts": "0",
        "mixed_precision": "no",
        "dynamo_backend": "no",
        "main_process_port": "0",  # any that is free
    }
    options = [part for name, value in how.items() for part in (f"--{name}", value)]
    return [sys.executable, "-P", "-m", "accelerate.commands.launch", "--multi_gpu", *options]


def run_training(command: Sequence[str], *, stop: Stop | None = None, restarts: int = 0) -> int:
    """Run a training command; on a signal end it and ask Slurm to start the job again.

    Parameters
    ----------
    restarts : times that the command is started again here when a signal ended it.

    Returns
    -------
    Its exit code; 143 when it was stopped.
    """
    stop = Stop() if stop is None else stop
    with stop.on_signals():
        while True:
            # a session of its own: what is sent to the job is for us to pass on
            process = subprocess.Popen(list(command), start_new_session=True)
            try:
                while (code := process.poll()) is None and not stop:
                    time.sleep(0.05)
            finally:
                end_group(process)
            if code is None:
                if requeue():
                    print("the job will be started again", flush=True)
                return STOPPED
            # accelerate's launcher says 1 when one of its processes was killed
            if code >= 0 or restarts <= 0:
                return code if code >= 0 else 128 - code
            restarts -= 1


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process with everything that it started, kindly first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end and process.poll() is None:
            time.sleep(0.05)
    process.wait()


@dataclass(frozen=True, kw_only=True)
class TrainingCall:
    """What a job calls: a training command."""

    command: tuple[str, ...]

    def __call__(self) -> str:
        if code := run_training(self.command):
            sys.exit(code)
        return "trained"


def submit_training(
    arguments: Sequence[str],
    *,
    on: str = "local",
    site: Site | None = None,
    processes: int = 1,
    logs: Path = Path("jobs"),
) -> str:
    """Fit a recipe here, as a job of Slurm, or as a printed script; what happened, in a sentence.

    Raises
    ------
    UsageError : no recipe, or no such back end.
    NeurodiffError : the training failed (its own error is above), or Slurm refused the job.
    """
    from neurodiff.core.errors import DataError, NeurodiffError

    profile, command = site or Site(), training_command(arguments, processes)
    if on == "script":
        line = " ".join(shlex.quote(part) for part in command)
        inner = f"{shlex.quote(sys.executable)} -P -m neurodiff.jobs_training {line}"
        head = [f"#SBATCH --job-name=fit-{Path(arguments[0]).stem}", *sbatch_lines(profile)]
        return "\n".join(["#!/bin/bash", *head, *profile.setup, f"exec {inner}", ""])
    if on == "slurm":
        from neurodiff.jobs_slurm import submit_calls

        name = f"fit-{Path(arguments[0]).stem}"
        [job] = submit_calls([TrainingCall(command=tuple(command))], logs, name, profile)
        return f"submitted as job {job}; its log is in {logs}"
    if on not in ("local", "inline"):
        raise UsageError(f"on is {on!r}; expected local, slurm or script")
    code = run_training(command, restarts=3)
    if code == STOPPED:
        return "stopped; the same command goes on from the newest checkpoint"
    if code:
        kind = {2: UsageError, 3: DataError}.get(code, NeurodiffError)
        raise kind(f"the training ended with code {code}; its error is above")
    return "trained"


if __name__ == "__main__":
    sys.exit(run_training(sys.argv[1:]))
