"""Trackers: what they hear of a run, and that they cannot harm it."""

import sys
import types

import pytest

from neurodiff.core.errors import UsageError
from neurodiff.core.run import Run
from neurodiff.core.tracking import TensorBoardTracker, tell, tracked, tracker_named


class Heard:
    def __init__(self):
        self.lines, self.closed = [], 0

    def begin(self, stage, settings):
        self.lines.append((stage, dict(settings)))

    def log(self, stage, values, step):
        self.lines.append((stage, step, dict(values)))

    def close(self):
        self.closed += 1


class Broken(Heard):
    def log(self, stage, values, step):
        raise OSError("the disk of the tracker is full")


def stage_of(tmp_path):
    run = Run.create(tmp_path / "run", {"name": "x"}, {"data": "y"}, command="test", seed=0)
    return run.stage("bridge", {"width": 3}, [], version=1)


def test_a_stage_tells_its_log_within_the_block_only(tmp_path):
    stage, heard = stage_of(tmp_path), Heard()
    with tracked(heard):
        stage.log({"step": 5, "loss": 0.25, "note": "words are not numbers", "done": True})
    stage.log({"step": 6, "loss": 0.2})
    assert heard.lines == [("bridge", 5, {"loss": 0.25})]
    assert heard.closed == 1
    assert [line["step"] for line in stage.read_log()] == [5, 6]


def test_a_tracker_that_fails_stops_nothing(tmp_path, caplog):
    stage, heard = stage_of(tmp_path), Heard()
    with tracked(Broken(), heard):
        stage.log({"step": 1, "loss": 1.0})
    assert "training goes on" in caplog.text
    assert heard.lines == [("bridge", 1, {"loss": 1.0})]
    assert len(stage.read_log()) == 1


def test_tensorboard_gets_a_folder_a_stage(tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder):
            self.folder = folder

        def add_scalar(self, name, value, step):
            written.append((self.folder, name, value, step))

        def add_text(self, name, text):
            written.append((self.folder, name, text))

        def close(self):
            written.append((self.folder, "closed"))

    fake = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    with tracked(tracker_named("tensorboard", tmp_path / "logs")):
        tell("trunk", {"step": 3, "loss": 0.5})
    place = str(tmp_path / "logs" / "trunk")
    assert written == [(place, "loss", 0.5, 3), (place, "closed")]


def test_what_is_no_tracker_and_what_is_not_installed(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="begin, log and close"), tracked(object()):
        pass
    with pytest.raises(UsageError, match="no tracker 'tensorbord'"):
        tracker_named("tensorbord", tmp_path)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match="need the package tensorboard"):
        TensorBoardTracker(tmp_path)
