"""A training that is killed, stopped or preempted ends in the weights of one that was not."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from neurodiff.core.errors import DataError, NeurodiffError, UsageError
from neurodiff.core.training import HASH, TrainingSettings, train
from neurodiff.jobs_site import Site
from neurodiff.jobs_training import launcher, run_training, submit_training, training_command
from neurodiff.jobs_worker import Stop

SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
import torch
from neurodiff.core.training import TrainingSettings, train

folder, kill_at, wait = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
torch.manual_seed(0)
model = torch.nn.Linear(4, 2)
items = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))

def loss(model, rows, generator):
    noise = 0.1 * torch.randn(len(rows), 2, generator=generator)
    return {"loss": (model(items[rows]) - items[rows, :2] * 3 - noise).square().mean()}

def after(step):
    (folder / "at").write_text(str(step))
    time.sleep(wait)
    if step == kill_at and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)

folder.mkdir(exist_ok=True)
how = TrainingSettings(steps=40, batch_size=8, learning_rate=0.05, warmup=1, checkpoint_every=5)
train(model, loss, n_items=24, settings=how, seed=0, stage="x", folder=folder, after_step=after)
if os.environ.get("RANK", "0") == "0":
    (folder / "weights.json").write_text(json.dumps([p.tolist() for p in model.parameters()]))
"""


@pytest.fixture
def script(tmp_path, monkeypatch, repository):
    monkeypatch.setenv("PYTHONPATH", str(repository))
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)

    def command(name, kill_at=-1, wait=0.0):
        return [sys.executable, str(path), str(tmp_path / name), str(kill_at), str(wait)]

    return command


def weights(folder):
    return json.loads((folder / "weights.json").read_text())


@pytest.mark.slow
def test_a_killed_training_ends_in_the_same_weights(script, tmp_path):
    assert run_training(script("whole")) == 0
    assert run_training(script("killed", 23), restarts=1) == 0
    assert (tmp_path / "killed" / "killed").exists()
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert len(list((tmp_path / "killed").glob("checkpoint-*"))) == 2
    # without a restart the death is told, as a shell would
    assert run_training(script("dead", 23)) == 128 + signal.SIGKILL


@pytest.mark.slow
def test_a_stopped_training_asks_for_another_start_and_goes_on(script, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("neurodiff.jobs_training.requeue", lambda: asked.append(1) or True)
    stop = Stop()

    def later():
        end = time.monotonic() + 60
        while time.monotonic() < end and not list((tmp_path / "stopped").glob("checkpoint-*")):
            time.sleep(0.02)
        stop.ask()

    thread = threading.Thread(target=later)
    thread.start()
    assert run_training(script("stopped", wait=0.1), stop=stop) == 143
    thread.join()
    assert asked == [1]
    assert not (tmp_path / "stopped" / "weights.json").exists()
    reached = int((tmp_path / "stopped" / "at").read_text())
    time.sleep(0.3)
    assert int((tmp_path / "stopped" / "at").read_text()) == reached  # nothing is left running
    assert run_training(script("stopped")) == 0
    assert run_training(script("whole")) == 0
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


@pytest.mark.slow
def test_several_processes_are_started_by_accelerate(script, tmp_path):
    """Two processes on this machine's CPU; one death ends them all, and the job begins again."""
    command = [*launcher(2), *script("two")[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for _ in range(3):  # torch's own threads abort a process of a group at exit now and then
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=200, check=False
        )
        if "terminate called" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "two" / "weights.json").exists()


def test_a_checkpoint_with_a_slip_of_the_disk_is_passed_over(tmp_path):
    """Its numbers would load without an error."""
    items = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
    how = TrainingSettings(steps=20, batch_size=8, warmup=1, checkpoint_every=5)

    def fit(after=None):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 2)

        def loss(model, rows, generator):
            return {"loss": (model(items[rows]) - items[rows, :2]).square().mean()}

        options = {"settings": how, "seed": 0, "stage": "x", "folder": tmp_path}
        return train(model, loss, n_items=24, after_step=after, **options)

    whole = fit().weight
    newest = sorted(tmp_path.glob("checkpoint-*"))[-1]
    assert newest.name == "checkpoint-0000015"
    data = bytearray((newest / "state.pt").read_bytes())
    state = torch.load(newest / "state.pt", weights_only=True)  # noqa: TID251
    place = data.find(state["model"]["bias"].numpy().tobytes())
    data[place + 3] ^= 0x01  # one bit of an exponent
    (newest / "state.pt").write_bytes(data)
    steps = []
    assert torch.equal(fit(steps.append).weight, whole)
    assert steps[0] == 10
    newest = sorted(tmp_path.glob("checkpoint-*"))[-1]
    spoiled = bytearray((newest / "state.pt").read_bytes())
    spoiled[place + 3] ^= 0x01
    (newest / "state.pt").write_bytes(spoiled)
    (newest / HASH).unlink()  # the twin: without a hash it is taken, and the weights are others
    assert not torch.equal(fit().weight, whole)


def test_the_command_and_the_script():
    one = training_command(["ldae_demo", "--out", "runs"])
    assert one == [
        *(sys.executable, "-P", "-m", "neurodiff.cli", "fit"), *("ldae_demo", "--out", "runs"),
    ]  # fmt: skip
    two = training_command(["ldae_demo"], 4)
    assert two[two.index("--num_processes") + 1] == "4"
    assert two[two.index("--max_restarts") + 1] == "0"
    assert two[-4:] == ["-m", "neurodiff.cli", "fit", "ldae_demo"]
    for arguments, n in (([], 1), (["--out"], 1), (["x"], 0), (["x", "--on=slurm"], 1)):
        with pytest.raises(UsageError):
            training_command(arguments, n)
    text = submit_training(["a recipe.yaml"], on="script", site=Site(gres="gpu:4"), processes=4)
    assert "#SBATCH --requeue" in text
    assert "#SBATCH --gres=gpu:4" in text
    assert text.rstrip().endswith("fit 'a recipe.yaml'")
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    with pytest.raises(UsageError, match="on is"):
        submit_training(["x"], on="moon")
    with pytest.raises(UsageError, match="--on is of the job; write it before the recipe"):
        submit_training(["x", "--on", "script"])


@pytest.mark.parametrize(("code", "kind"), [(1, NeurodiffError), (2, UsageError), (3, DataError)])
def test_a_training_that_fails_keeps_its_kind_of_error(monkeypatch, code, kind):
    monkeypatch.setattr("neurodiff.jobs_training.run_training", lambda *_, **__: code)
    with pytest.raises(NeurodiffError) as error:
        submit_training(["x"])
    assert type(error.value) is kind
