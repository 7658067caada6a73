"""A run survives kills, partial files and company, and knows from its files what is done."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from neurodiff.core import provenance
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.run import Run, fingerprint
from neurodiff.core.safe_io import sha256_of, write_json
from neurodiff.core.seeds import item_seed

RECIPE = {"bridge": {"steps": 100, "rate": 1e-5, "shape": (2, 3)}, "name": "1e-4"}
INPUTS = {"data": "abc", "files": []}


def create(folder, recipe=RECIPE, inputs=INPUTS, seed=0):
    return Run.create(folder, recipe, inputs, command=["neurodiff", "demo"], seed=seed)


@pytest.fixture
def run(tmp_path):
    return create(tmp_path / "run")


def make(item, text="a mesh"):
    with item.write_dir() as folder:
        (folder / "mesh.glb").write_text(text)
        (folder / "views").mkdir()
        (folder / "views" / "0.png").write_text("picture")


def temporaries(folder):
    return [path for path in Path(folder).rglob("*") if path.name.startswith(".tmp-")]


# ---------------------------------------------------------------------------------- the folder


def test_create_writes_what_a_reader_needs(run):
    info = json.loads((run.folder / "run.json").read_text())
    assert set(info) == {
        "fingerprint",
        "seed",
        "command",
        "created",
        "neurodiff",
        "git",
        "versions",
        "platform",
        "device",
        "environment",
        "wall_s",
        "peak_memory_mb",
    }
    assert info["seed"] == 0
    assert info["command"] == ["neurodiff", "demo"]
    assert info["created"].endswith("+00:00")
    assert info["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert info["peak_memory_mb"] > 1
    assert run.recipe == {"bridge": {"steps": 100, "rate": 1e-5, "shape": [2, 3]}, "name": "1e-4"}
    assert run.inputs == INPUTS
    assert temporaries(run.folder) == []


def test_the_same_run_is_reopened_and_keeps_its_start(run):
    before = (run.folder / "run.json").read_bytes()
    again = Run.create(run.folder, RECIPE, INPUTS, command="other words", seed=0)
    assert again.fingerprint == run.fingerprint
    assert (run.folder / "run.json").read_bytes() == before
    assert Run.open(run.folder).seed == 0


def test_another_run_is_refused_by_the_keys_that_differ(run):
    other = {"bridge": {"steps": 5, "rate": 1e-5, "shape": [2, 3]}, "name": "1e-4", "extra": True}
    with pytest.raises(UsageError) as error:
        create(run.folder, other, {"data": "xyz", "files": []}, seed=1)
    text = str(error.value)
    for part in (
        "recipe.bridge.steps (there 100, now 5)",
        "recipe.extra (there 'absent', now True)",
        "inputs.data (there 'abc', now 'xyz')",
        "seed (there 0, now 1)",
    ):
        assert part in text
    for same in ("bridge.rate", "bridge.shape", "recipe.name", "inputs.files"):
        assert same not in text
    with pytest.raises(UsageError, match=r"recipe\.bridge\.steps \(there 100, now 100\.5\)"):
        create(run.folder, RECIPE | {"bridge": RECIPE["bridge"] | {"steps": 100.5}})


@pytest.mark.parametrize("name", ["recipe.yaml", "inputs.json"])
def test_a_run_that_was_copied_in_part_is_told(run, name):
    (run.folder / name).unlink()
    with pytest.raises(MissingDataError, match=f"no {name}: the run was copied in part"):
        Run.open(run.folder)


def test_a_creation_that_was_cut_off_is_completed(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("bridge: {ste")
    (folder / ".tmp-1-abc-inputs.json").write_text("{")
    with pytest.raises(MissingDataError, match="is not a run"):
        Run.open(folder)
    assert create(folder).recipe["bridge"]["steps"] == 100
    assert Run.open(folder).remove_leftovers() == 0  # too young: its writer may be alive
    assert Run.open(folder).remove_leftovers(older_than_s=-1) == 1
    assert temporaries(folder) == []


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"is no run and holds thesis\.tex"):
        create(tmp_path)
    with pytest.raises(UsageError, match="name a new folder"):
        create(tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"seed": 1}'])
def test_broken_run_files_are_named(run, content):
    (run.folder / "run.json").write_text(content)
    with pytest.raises(DataError, match=r"run\.json"):
        Run.open(run.folder)


def test_names_and_fingerprints():
    print_ = fingerprint({"b": [1, 2.5], "a": {"x": None}})
    assert print_ == fingerprint({"a": {"x": None}, "b": (1, 2.5)})
    assert len(print_) == 10
    assert int(print_, 16) >= 0
    assert print_ != fingerprint({"b": [2.5, 1], "a": {"x": None}})
    assert Run.folder_name("mind3d_small", "../my data", "0123456789") == (
        "mind3d_small-my_data-0123456789"
    )


def test_touch_adds_up_over_sessions(run, monkeypatch):
    clock = {"now": 100.0}
    monkeypatch.setattr(time, "monotonic", lambda: clock["now"])
    first = Run.open(run.folder)
    clock["now"] = 107.0
    first.touch()
    clock["now"] = 110.0
    first.touch()
    second = Run.open(run.folder)
    clock["now"] = 115.0
    second.touch()
    assert Run.open(run.folder).info["wall_s"] == 15.0
    assert Run.open(run.folder).info["peak_memory_mb"] >= first.info["peak_memory_mb"] > 0


# --------------------------------------------------------------------------------- provenance


def test_no_home_folder_and_no_host_in_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    command = ["/home/ada/venv/bin/neurodiff", "fit", "--root=/home/ada/data", "/home/adam/x"]
    assert provenance.command_text(command) == [
        "neurodiff",
        "fit",
        "--root=~/data",
        "/home/adam/x",
    ]
    assert provenance.command_text("neurodiff demo --out /home/ada") == [
        "neurodiff",
        "demo",
        "--out",
        "~",
    ]
    run = Run.create(tmp_path / "run", {}, {}, command=command, seed=0)
    text = (run.folder / "run.json").read_text()
    assert "/home/ada/" not in text
    assert os.uname().nodename not in provenance.platform_text().split()


def test_git_state_of_a_checkout_and_of_an_installed_package(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    module = tmp_path / "neurodiff" / "core" / "provenance.py"
    module.parent.mkdir(parents=True)
    module.write_text("x")
    monkeypatch.setattr(provenance, "__file__", str(module))
    assert provenance.git_state() == {"commit": None, "dirty": None}
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert provenance.git_state() == {"commit": commit, "dirty": False}
    module.write_text("y")
    assert provenance.git_state() == {"commit": commit, "dirty": True}


# -------------------------------------------------------------------------------------- stages


def test_stage_hash_covers_settings_inputs_and_version(run):
    def stage(name="bridge", settings=RECIPE["bridge"], inputs=("a",), version=1):
        return run.stage(name, settings, list(inputs), version)

    reordered = dict(reversed(RECIPE["bridge"].items()))
    assert stage().hash == stage(settings=reordered).hash
    others = [
        stage(),
        stage(name="tokenizer"),
        stage(settings={}),
        stage(inputs=("b",)),
        stage(inputs=("a", "b")),
        stage(version=2),
    ]
    assert len({other.hash for other in others}) == len(others)
    assert stage().folder == run.folder / "stages" / f"bridge-{stage().hash}"


def test_stage_is_done_only_with_whole_files(run):
    stage = run.stage("bridge", {"steps": 3}, ["abc"], 1)
    assert not stage.done
    assert stage.metrics == {}
    stage.path("weights.safetensors").write_bytes(b"weights")
    stage.path("checkpoint-0000100/state.pt").write_bytes(b"state")
    stage.log({"step": 1, "loss": 0.5})
    stage.finish({"cosine": 0.8, "bad": float("nan")})
    again = run.stage("bridge", {"steps": 3}, ["abc"], 1)
    assert again.done
    assert again.metrics == {"cosine": 0.8, "bad": None}
    record = json.loads((stage.folder / "done.json").read_text())
    assert list(record["files"]) == ["weights.safetensors"]
    assert record["files"]["weights.safetensors"]["sha256"] == sha256_of(
        stage.path("weights.safetensors")
    )
    assert (record["settings"], record["inputs"], record["version"]) == ({"steps": 3}, ["abc"], 1)
    stage.log({"step": 2, "loss": 0.4})  # a log may grow afterwards
    assert again.done
    stage.path("weights.safetensors").write_bytes(b"WEIGHTS")  # the same size
    assert not again.done
    assert again.is_done("size")
    stage.path("weights.safetensors").write_bytes(b"weight")
    assert not again.is_done("size")
    stage.path("weights.safetensors").unlink()
    assert not again.is_done("size")


def test_hashes_of_large_files_are_read_when_asked_for(run, monkeypatch):
    monkeypatch.setattr("neurodiff.core.sealed.HASH_LIMIT", 4)
    stage = run.stage("bridge", {}, [], 1)
    stage.path("large.bin").write_bytes(b"12345")
    stage.finish({})
    stage.path("large.bin").write_bytes(b"54321")
    assert stage.done
    assert not stage.is_done("hash")


def test_finish_refuses_files_that_are_not_there(run):
    stage = run.stage("bridge", {}, [], 1)
    with pytest.raises(UsageError, match=r"it has no file weights\.safetensors"):
        stage.finish({}, files=["weights.safetensors"])
    assert not stage.done


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"files": []}', '{"files": {"mesh.glb": 3}}']
)
def test_a_broken_done_file_is_not_done(run, content):
    item = run.item("decode", "1", "cup", 0, "abc")
    make(item)
    assert item.done
    (item.folder / "done.json").write_text(content)
    assert not item.done
    make(item)
    assert item.done


def test_log_survives_a_line_that_was_cut_off(run):
    stage = run.stage("bridge", {}, [], 1)
    assert stage.read_log() == []
    stage.log({"step": 1})
    with open(stage.path("metrics.jsonl"), "a") as file:
        file.write('{"step": 2, "lo')
    stage.log({"step": 3, "loss": float("inf")})
    stage.log({"step": 4})
    assert stage.read_log() == [{"step": 1}, {"step": 3, "loss": None}, {"step": 4}]


# --------------------------------------------------------------------------------------- items


def test_key_and_seed_follow_from_what_the_item_is(run, tmp_path):
    identity = ("decode", "1", "cup", 0, "abc")
    item = run.item(*identity)
    assert item.key == run.item("decode", 1, "cup", 0, "abc").key
    assert item.folder == run.folder / "items" / item.key[:2] / item.key
    assert item.seed == item_seed(0, subject="1", stimulus="cup", sample=0, stage="decode")
    for position, other in enumerate(("edit", "2", "mug", 1, "xyz")):
        changed = list(identity)
        changed[position] = other
        assert run.item(*changed).key != item.key
    other_run = create(tmp_path / "other", seed=5)
    assert other_run.item(*identity).key == item.key
    assert other_run.item(*identity).seed != item.seed


def test_write_dir_makes_an_item(run):
    item = run.item("decode", "1", "cup", 0, "abc")
    with item.write_dir({"points": 5}) as folder:
        (folder / "mesh.glb").write_text("a mesh")
        assert not item.folder.joinpath("mesh.glb").exists()
        assert not item.done
    assert item.done
    assert item.record["points"] == 5
    assert item.record["seed"] == item.seed
    assert item.record["seconds"] >= 0
    assert item.record["stimulus"] == "cup"
    assert list(item.record["files"]) == ["mesh.glb"]
    assert temporaries(run.folder) == []


def test_an_error_while_writing_leaves_the_item_as_it_was(run):
    item = run.item("decode", "1", "cup", 0, "abc")
    make(item, "first")
    with pytest.raises(KeyError), item.write_dir() as folder:  # noqa: PT012
        (folder / "mesh.glb").write_text("half")
        raise KeyError("stop")
    assert item.done
    assert item.path("mesh.glb").read_text() == "first"
    assert temporaries(run.folder) == []


def test_an_item_without_files_is_not_finished(run):
    item = run.item("decode", "1", "cup", 0, "abc")
    with pytest.raises(UsageError, match="no file to finish with"), item.write_dir():
        pass
    with pytest.raises(UsageError, match="no file to finish with"):
        item.finish(1.0)
    assert not item.done


def test_disk_full_at_the_end_of_an_item(run, monkeypatch):
    item = run.item("decode", "1", "cup", 0, "abc")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DataError, match="disk full"):
            make(item)
    assert not item.done
    assert temporaries(run.folder) == []
    make(item)
    assert item.done


def test_fail_then_done(run):
    item = run.item("decode", "1", "cup", 0, "abc")
    item.fail("stimulus 'cup' has no mesh")
    assert item.error == "stimulus 'cup' has no mesh"
    assert run.status()["failed"] == 1
    assert run.items_table().iloc[0][["status", "error", "stimulus"]].tolist() == [
        "failed",
        "stimulus 'cup' has no mesh",
        "cup",
    ]
    make(item)
    assert item.error is None
    assert run.status()["failed"] == 0
    item.path("extra.txt").write_text("by hand")
    item.finish(2.5, 9, {"note": "x"})
    assert (item.record["seconds"], item.record["seed"], item.record["note"]) == (2.5, 9, "x")
    assert list(item.record["files"]) == ["extra.txt", "mesh.glb", "views/0.png"]


def test_status_is_counted_from_files(run):
    assert run.status() == {
        "items": 0,
        "done": 0,
        "failed": 0,
        "pending": 0,
        "stages": {},
        "scores": False,
        "report": False,
    }
    items = [run.item("decode", "01", name, 0, "abc") for name in ("NA", "007", "cup", "mug")]
    run.plan(items[:2])
    run.plan(items[1:3])
    run.plan(items[:1])
    make(items[0])
    make(items[3])  # never planned, but there
    items[1].fail("no")
    run.stage("bridge", {}, [], 1).path("half").write_text("x")
    finished = run.stage("tokenizer", {}, [], 1)
    finished.path("w").write_text("x")
    finished.finish()
    run.write_scores(pd.DataFrame({"key": ["01"], "cd": [0.5]}))
    run.write_report_html("<p>ü</p>")
    status = Run.open(run.folder).status()
    assert {key: status[key] for key in ("items", "done", "failed", "pending")} == {
        "items": 4,
        "done": 2,
        "failed": 1,
        "pending": 1,
    }
    assert {name.split("-")[0]: done for name, done in status["stages"].items()} == {
        "bridge": False,
        "tokenizer": True,
    }
    assert status["scores"]
    assert status["report"]
    table = run.items_table().set_index("stimulus")
    assert table["status"].to_dict() == {
        "NA": "done",
        "007": "failed",
        "cup": "pending",
        "mug": "done",
    }
    assert table.loc["NA", "subject"] == "01"
    assert (run.folder / table.loc["mug", "folder"] / "mesh.glb").is_file()
    listed = pd.read_csv(run.folder / "items.csv", dtype=str, keep_default_na=False)
    assert sorted(listed["stimulus"]) == ["007", "NA", "cup"]


def test_scores_and_report_round_trip(run):
    with pytest.raises(MissingDataError, match=r"scores\.csv"):
        run.read_scores()
    table = pd.DataFrame({"key": ["01", "02"], "cd": [0.1 + 0.2, 1e-9]})
    run.write_scores(table)
    pd.testing.assert_frame_equal(run.read_scores(), table, check_exact=True)
    run.write_report_json({"cd": {"mean": 0.5, "interval": (0.1, float("nan"))}})
    assert run.read_report_json() == {"cd": {"mean": 0.5, "interval": [0.1, None]}}
    assert run.logs.is_dir()


# ------------------------------------------------------------------------------ company and kills


def test_many_writers_of_one_item_do_no_harm(run):
    item = run.item("decode", "1", "cup", 0, "abc")
    errors = []

    def work():
        try:
            for _ in range(5):
                make(run.item("decode", "1", "cup", 0, "abc"))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert item.is_done("hash")
    assert temporaries(run.folder) == []
    assert run.status()["done"] == 1


WORKER = """
import os, signal, sys
from neurodiff.core import run_items as module
from neurodiff.core.run import Run
folder, point = sys.argv[1:]
run = Run.create(folder, {"x": 1}, {}, command="worker", seed=0)
items = [run.item("decode", "1", str(i), 0, "abc") for i in range(12)]
run.plan(items)
made = 0

def kill_at(here):
    if point == here and made == 4:
        os.kill(os.getpid(), signal.SIGKILL)

with_files = module.with_files
module.with_files = lambda *rest: (kill_at("before done.json"), with_files(*rest))[1]
for item in items:
    if not item.done:
        with item.write_dir() as target:
            (target / "mesh.glb").write_bytes(str(item.seed).encode() * 1000)
            kill_at("half an item")
            (target / "extra.json").write_text("{}")
        made += 1
print("made", made)
"""


def test_kills_then_resume(tmp_path):
    folder = tmp_path / "run"

    def work(point):
        command = [sys.executable, "-c", WORKER, str(folder), point]
        return subprocess.run(command, capture_output=True, text=True)

    assert work("half an item").returncode == -signal.SIGKILL
    run = Run.open(folder)
    assert (run.status()["done"], run.status()["pending"]) == (4, 8)
    before = {p: p.stat().st_mtime_ns for p in folder.glob("items/??/*/done.json")}
    assert work("before done.json").returncode == -signal.SIGKILL
    assert (run.status()["done"], run.status()["pending"]) == (8, 4)
    assert len(temporaries(folder)) == 2
    in_place = [p for p in folder.glob("items/??/*/mesh.glb") if p.parent.name[0] != "."]
    assert len(in_place) == 8  # an item comes into its place as a whole
    assert work("never").stdout == "made 4\n"
    assert (run.status()["done"], run.status()["pending"]) == (12, 0)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert run.remove_leftovers(older_than_s=-1) == 2
    assert temporaries(folder) == []
    for item in (run.item("decode", "1", str(i), 0, "abc") for i in range(12)):
        assert item.is_done("hash")
        assert item.path("mesh.glb").read_bytes() == str(item.seed).encode() * 1000


def test_a_done_file_that_names_files_elsewhere_is_only_compared(run, tmp_path):
    item = run.item("decode", "1", "cup", 0, "abc")
    make(item)
    write_json(item.folder / "done.json", {"files": {"../../../../absent": {"size": 1}}})
    assert not item.done
