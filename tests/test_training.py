"""The training loop: closed forms, and the same weights after a kill as without one."""

import errno
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.training import (
    TrainingSettings,
    batch_indices,
    learning_rate_at,
    remove_checkpoints,
    train,
)

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
Y = X @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.3


class Killed(Exception):
    """Stands for whatever ends a process."""


class Net(nn.Module):
    """A line behind dropout, with a buffer that counts calls."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.line, self.dropout = nn.Linear(3, 1), nn.Dropout(dropout)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        nn.init.constant_(self.line.weight, 0.1)
        nn.init.zeros_(self.line.bias)

    def forward(self, x):
        self.calls += 1
        return self.line(self.dropout(x))


def squared_error(model, rows, generator):
    noise = 0.1 * torch.randn(len(rows), 3, generator=generator)
    return {"loss": ((model(X[rows] + noise) - Y[rows]) ** 2).mean()}


def without_noise(model, rows, generator):
    return {"loss": ((model(X[rows]) - Y[rows]) ** 2).mean()}


def fit(model=None, loss=squared_error, *, folder=None, n_items=20, seed=0, **settings):
    settings = {"steps": 30, "batch_size": 4, "warmup": 3, "checkpoint_every": 5} | settings
    model = Net() if model is None else model
    return train(
        model,
        loss,
        n_items=n_items,
        settings=TrainingSettings(**settings),
        seed=seed,
        stage="line",
        folder=folder,
    )


def dies_at(step, loss=squared_error):
    calls = iter(range(10**6))

    def dying(model, rows, generator):
        if next(calls) == step:
            raise Killed
        return loss(model, rows, generator)

    return dying


def assert_equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


# ---------------------------------------------------------------------------- batches, rates


@pytest.mark.parametrize(("n_items", "batch"), [(10, 5), (7, 3), (3, 8)])
def test_every_item_comes_once_an_epoch(n_items, batch):
    steps = 3 * n_items  # whole epochs: 3 * batch of them
    rows = np.concatenate([batch_indices(k, n_items, batch, 0, "s") for k in range(steps)])
    epochs = rows.reshape(-1, n_items)
    np.testing.assert_array_equal(
        np.sort(epochs, axis=1), np.tile(np.arange(n_items), (3 * batch, 1))
    )
    assert len(np.unique(epochs, axis=0)) > 1  # each epoch is shuffled anew


def test_batches_follow_from_seed_stage_and_step():
    def rows(step=5, seed=1, stage="a"):
        return batch_indices(step, 100, 20, seed, stage).tolist()

    assert rows() == rows()
    assert rows() != rows(seed=2)
    assert rows() != rows(stage="b")
    assert rows() != rows(step=10)  # the same place in the next epoch


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"steps": -5}, "steps is -5; expected at least 1"),
        ({"steps": 5, "batch_size": 0}, "batch_size is 0"),
        ({"steps": 5, "accumulate": 0}, "accumulate is 0"),
        ({"steps": 5, "checkpoint_every": 0}, "checkpoint_every is 0"),
        ({"steps": 5, "learning_rate": 0.0}, "learning_rate is 0"),
        ({"steps": 5, "learning_rate": math.nan}, "learning_rate is nan"),
    ],
)
def test_a_training_that_cannot_be_is_refused_before_anything_is_made(wrong, says):
    with pytest.raises(UsageError, match=says):
        TrainingSettings(**wrong)


def test_learning_rate_end_points():
    settings = TrainingSettings(steps=110, warmup=10, learning_rate=0.5)
    rates = [learning_rate_at(step, settings) for step in range(111)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[9] == rates[10] == pytest.approx(0.5)
    assert rates[60] == pytest.approx(0.5 * 0.51)  # half of the cosine
    assert rates[110] == pytest.approx(0.01)  # 2 % of the peak
    assert np.all(np.diff(rates[:10]) > 0)
    assert np.all(np.diff(rates[10:]) < 0)
    assert learning_rate_at(0, TrainingSettings(steps=5, warmup=0, learning_rate=2.0)) == 2.0


# ------------------------------------------------------------------------------ optimisation


def test_least_squares_reaches_its_closed_form():
    model = fit(loss=without_noise, steps=400, batch_size=20, learning_rate=0.05, weight_decay=0.0)
    design = np.column_stack([X.numpy(), np.ones(len(X))])
    wanted = np.linalg.lstsq(design, Y.numpy(), rcond=None)[0].ravel()
    got = np.append(model.line.weight.detach().numpy(), model.line.bias.item())
    np.testing.assert_allclose(got, wanted, atol=1e-3)
    assert not model.training


@pytest.mark.parametrize(("batch", "parts"), [(8, 2), (7, 3)])
def test_accumulated_parts_equal_the_whole_batch(batch, parts):
    options = {"loss": without_noise, "batch_size": batch, "steps": 12, "clip_norm": 0.5}
    whole, in_parts = fit(**options), fit(**options, accumulate=parts)
    torch.testing.assert_close(in_parts.line.weight, whole.line.weight, rtol=1e-5, atol=1e-7)
    assert (whole.calls, in_parts.calls) == (12, 12 * parts)
    other = fit(**(options | {"batch_size": batch - 2}))
    assert not torch.allclose(other.line.weight, whole.line.weight, rtol=1e-4)


def test_gradient_is_clipped_to_the_stated_norm():
    seen = []

    class Keeps(torch.optim.AdamW):
        def step(self, closure=None):
            values = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
            seen.append(float(torch.cat(values).norm()))
            return super().step(closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", Keeps)
        fit(loss=without_noise, steps=3, clip_norm=0.01)
    assert seen == pytest.approx([0.01] * 3, rel=1e-3)


def test_moving_average_has_its_closed_form():
    """Weights of one step of size r each: the average is sum over steps of (1 - d) d^k."""
    path = []

    def straight(model, rows, generator):
        path.append(model.line.weight.detach().clone())
        return {"loss": model.line.weight.sum()}

    model = fit(loss=straight, steps=6, ema_decay=0.7, clip_norm=1e9)
    last = fit(loss=straight, steps=6, clip_norm=1e9).line.weight
    average = path[1]
    for weight in [*path[2:6], last]:
        average = 0.7 * average + 0.3 * weight
    torch.testing.assert_close(model.line.weight, average)
    assert not torch.allclose(model.line.weight, last)


def test_only_the_named_parameters_learn():
    model = Net()
    train(
        model,
        squared_error,
        n_items=20,
        settings=TrainingSettings(steps=3, batch_size=4),
        seed=0,
        stage="line",
        parameters=[model.line.bias],
    )
    assert torch.equal(model.line.weight, Net().line.weight)
    assert model.line.bias.item() != 0


def test_stages_of_different_precision_follow_each_other():
    seen = []

    def loss(model, rows, generator):
        out = model.line(X[rows])  # not through forward: autocast of the loop alone
        seen.append(out.dtype)
        return {"loss": ((out.float() - Y[rows]) ** 2).mean()}

    model = fit(loss=loss, steps=2, precision="bf16")
    assert set(seen) == {torch.bfloat16}
    assert model(X).dtype == torch.float32
    torch.testing.assert_close(model(X), model.line(X), rtol=0, atol=0)  # no autocast left behind
    seen.clear()
    fit(loss=loss, steps=2)
    assert set(seen) == {torch.float32}


def test_global_random_state_is_left_alone():
    model = Net(dropout=0.5)
    before = torch.get_rng_state()
    fit(model, steps=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_follows_from_the_seed():
    torch.manual_seed(1)
    one = fit(Net(dropout=0.5))
    torch.manual_seed(2)
    assert_equal(one, fit(Net(dropout=0.5)))
    assert not torch.equal(one.line.weight, fit(Net(dropout=0.5), seed=1).line.weight)


# ----------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_at_its_step(bad):
    calls = iter(range(100))

    def loss(model, rows, generator):
        value = squared_error(model, rows, generator)["loss"]
        return {"loss": value * bad if next(calls) == 7 else value}

    with pytest.raises(DataError, match=r"line: the loss became (nan|inf) at step 7"):
        fit(loss=loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_items": 0}, "0 items: nothing to train on"),
        ({"accumulate": 5}, "batch of 4 cannot be accumulated from 5"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        fit(**options)


def test_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    real = os.fsync

    def full(descriptor):
        if len(list(tmp_path.glob("checkpoint-*"))) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"disk full: .*checkpoint-0000010"):
        fit(folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-0000005"]
    monkeypatch.undo()
    assert_equal(fit(folder=tmp_path), fit())


def test_disk_that_fills_while_writing(tmp_path, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self):
            pass

    import builtins

    real = builtins.open
    monkeypatch.setattr(
        builtins,
        "open",
        lambda file, *a, **k: (
            Full(real(file, *a, **k)) if str(file).endswith("state.pt") else real(file, *a, **k)
        ),
    )
    with pytest.raises(DataError, match="disk full"):
        fit(folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_training_ends_in_the_same_weights(tmp_path, ema, accumulate):
    options = {"ema_decay": ema, "accumulate": accumulate}
    whole = fit(Net(dropout=0.3), **options)
    with pytest.raises(Killed):
        fit(Net(dropout=0.3), dies_at(17 * accumulate), folder=tmp_path, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint-0000010",
        "checkpoint-0000015",
    ]
    calls = []

    def counted(model, rows, generator):
        calls.append(rows)
        return squared_error(model, rows, generator)

    assert_equal(fit(Net(dropout=0.3), counted, folder=tmp_path, **options), whole)
    assert len(calls) == 15 * accumulate  # from step 15, not from the beginning


@pytest.mark.parametrize("kept", [0, 3, 200, 0.5, 0.99])
def test_a_truncated_checkpoint_falls_back_to_the_one_before(tmp_path, kept):
    with pytest.raises(Killed):
        fit(loss=dies_at(17), folder=tmp_path)
    newest = tmp_path / "checkpoint-0000015" / "state.pt"
    content = newest.read_bytes()
    newest.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    steps = []

    def counted(model, rows, generator):
        steps.append(rows)
        return squared_error(model, rows, generator)

    assert_equal(fit(loss=counted, folder=tmp_path), fit())
    assert len(steps) == 20


def test_what_a_kill_leaves_behind_is_removed(tmp_path):
    (tmp_path / ".partial-abc").mkdir(parents=True)
    (tmp_path / ".partial-abc" / "state.pt").write_bytes(b"half")
    (tmp_path / "checkpoint-0000025").mkdir()  # without a file
    assert_equal(fit(folder=tmp_path), fit())
    assert not (tmp_path / ".partial-abc").exists()
    remove_checkpoints(tmp_path)
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
from torch import nn
from neurodiff.core.training import TrainingSettings, train

x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))

def run(folder=None, die=""):
    model = nn.Linear(3, 1)
    nn.init.constant_(model.weight, 0.1)
    nn.init.zeros_(model.bias)
    calls = iter(range(1000))
    if die == "saving":
        whole = torch.save
        def half(state, file):
            whole(state, file)
            if state["step"] == 15:
                file.truncate(file.tell() // 2)
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        torch.save = half
    def loss(model, rows, generator):
        if next(calls) == 17 and die == "step":
            os.kill(os.getpid(), signal.SIGKILL)
        noisy = x[rows] + torch.randn(len(rows), 3, generator=generator)
        return {"loss": ((model(noisy) - noisy.sum(1, keepdim=True)) ** 2).mean()}
    settings = TrainingSettings(steps=30, batch_size=4, ema_decay=0.9, checkpoint_every=5)
    return train(model, loss, n_items=20, settings=settings, seed=3, stage="killed",
                 folder=folder)

if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2])
"""


@pytest.mark.parametrize(("die", "newest"), [("step", 15), ("saving", 10)])
def test_killed_process_goes_on_with_the_same_result(tmp_path, die, newest):
    script, folder = tmp_path / "killed.py", tmp_path / "checkpoints"
    script.write_text(SCRIPT)
    process = subprocess.run(
        [sys.executable, str(script), str(folder), die], capture_output=True, timeout=120
    )
    assert process.returncode == -9, process.stderr
    found = sorted(folder.glob("checkpoint-*"))
    assert found[-1].name == f"checkpoint-{newest:07d}"
    assert len(list(folder.glob(".partial-*"))) == (die == "saving")
    space = {"__name__": "killed"}
    exec(SCRIPT, space)
    assert_equal(space["run"](folder), space["run"]())
