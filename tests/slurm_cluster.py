"""A real Slurm on this machine, for tests: one node with two pretend GPUs, on loopback only.

It needs root and the Debian packages slurmctld, slurmd, slurm-client, munge and
slurm-wlm-basic-plugins. Nothing listens outside of this machine, and nothing outlives `stop`.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel", "sinfo")

_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.log
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
MailProg=/bin/true
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
SlurmctldParameters=preempt_send_user_signal
ReturnToService=2
KillWait=5
MinJobAge=600
SlurmctldTimeout=30
SlurmdTimeout=30
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 Boards=1 SocketsPerBoard=1 CoresPerSocket=4 \
ThreadsPerCore=1 RealMemory=2000 Gres=gpu:2 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=0 \
MaxTime=60 State=UP
PartitionName=lowgrace Nodes=ALL Default=NO PriorityTier=1 PreemptMode=REQUEUE GraceTime=5 \
MaxTime=60 State=UP
PartitionName=high Nodes=ALL Default=NO PriorityTier=10 PreemptMode=OFF MaxTime=60 State=UP
"""


def why_not():
    """Why Slurm cannot be started here; empty where it can."""
    if os.geteuid() != 0:
        return "Slurm is started by root only"
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return (
            f"no {', '.join(missing)}; apt-get install slurmctld slurmd slurm-client munge "
            "slurm-wlm-basic-plugins"
        )
    try:
        local = socket.gethostbyname(socket.gethostname()).startswith("127.")
    except OSError:
        local = False
    return "" if local else "this machine's name does not lead to loopback (/etc/hosts)"


class Cluster:
    """A started Slurm; ``environment`` is what its commands need."""

    def __init__(self):
        # outside of pytest's folders: munged wants one that every user can pass through
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.folder.chmod(0o711)
        self.host = socket.gethostname().partition(".")[0]
        self.environment = {
            **os.environ,
            "PATH": _path(),
            "SLURM_CONF": str(self.folder / "slurm.conf"),
        }
        self._started = {}

    def start(self):
        """Start munge, the controller and the node; waits until the node is idle."""
        for name in ("munge", "state", "spool", "log"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "munge").chmod(0o711)  # munged refuses a socket that others cannot reach
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        port, node_port = _free_ports(2)
        text = _CONFIGURATION.format(
            host=self.host, port=port, node_port=node_port, folder=self.folder
        )
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "gres.conf").write_text(
            f"AutoDetect=off\nNodeName={self.host} Name=gpu File=/dev/tty[0-1]\n"
        )
        munge = self.folder / "munge"
        self._spawn(
            "munged", "--foreground", f"--key-file={key}", f"--socket={munge}/sock",
            f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
        )  # fmt: skip
        _until(lambda: (munge / "sock").exists(), 10, "munged")
        self.start_controller()
        self.start_node()
        _until(lambda: self.ask("sinfo", "-h", "-o", "%T").strip() == "idle", 30, "the node")
        return self

    def start_controller(self):
        """(Re)start slurmctld."""
        self._spawn("slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))

    def start_node(self):
        """(Re)start slurmd."""
        self._spawn("slurmd", "-D", "-f", str(self.folder / "slurm.conf"))

    def kill(self, name):
        """kill -9 of munged, slurmctld or slurmd."""
        process = self._started[name]
        process.kill()
        process.wait()

    def ask(self, *command):
        """What a command of Slurm prints; empty where it fails."""
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=30, env=self.environment, check=False
        )
        return done.stdout if done.returncode == 0 else ""

    def submit(self, script, *options):
        """Number of a job that runs a line of shell."""
        done = subprocess.run(
            ["sbatch", "--parsable", "--output=/dev/null", *options, f"--wrap={script}"],
            capture_output=True, text=True, timeout=30, env=self.environment, check=True,
        )  # fmt: skip
        return done.stdout.strip()

    def jobs(self, number):
        """One dictionary of Slurm's fields a task of a job."""
        text = self.ask("scontrol", "-o", "show", "job", str(number).partition("_")[0])
        return [
            dict(part.split("=", 1) for part in line.split() if "=" in part)
            for line in text.splitlines()
            if "JobState=" in line
        ]

    def states(self, number):
        """States of a job's tasks."""
        return [job["JobState"] for job in self.jobs(number)]

    def wait(self, number, wanted, seconds=60):
        """Wait until every task of a job is in one of the ``wanted`` states."""

        def reached():
            found = self.states(number)
            return bool(found) and set(found) <= set(wanted)

        _until(reached, seconds, f"job {number}", lambda: self.states(number))

    def cancel_all(self):
        """Cancel every job and wait until none is left."""
        self.ask("scancel", "--user=root")
        with contextlib.suppress(AssertionError):
            _until(lambda: not self.ask("squeue", "-h").strip(), 15, "the queue")

    def processes(self, word):
        """Numbers of processes below this cluster whose command line holds ``word``."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                environment = (path / "environ").read_bytes()
                if word in command and str(self.folder).encode() in environment:
                    found.append(int(path.name))
        return found

    def stop(self):
        """Jobs first, since their steps would wait for a controller that is gone."""
        with contextlib.suppress(Exception):
            self.cancel_all()
        for name in ("slurmd", "slurmctld", "munged"):
            process = self._started.get(name)
            if process is None:
                continue
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for number in self.processes(""):
            if number != os.getpid() and self._is_ours(number):
                with contextlib.suppress(OSError):
                    os.kill(number, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _is_ours(self, number):
        """Whether a process is a step or a payload of this cluster, not one of the tests."""
        try:
            environment = Path(f"/proc/{number}/environ").read_bytes()
            command = Path(f"/proc/{number}/cmdline").read_bytes()
        except OSError:
            return False
        return b"SLURM_JOB_ID=" in environment or b"slurmstepd" in command

    def _spawn(self, name, *arguments):
        with open(self.folder / "log" / f"{name}.out", "ab") as log:
            self._started[name] = subprocess.Popen(
                [shutil.which(name, path=_path()), *arguments], stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, env=self.environment, start_new_session=True,
            )  # fmt: skip


def _path():
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _until(reached, seconds, what, tell=lambda: ""):
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, f"{what} not ready within {seconds} s {tell()}"
        time.sleep(0.1)
