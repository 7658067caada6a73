"""Surroundings of a run: what changes numbers is there, nothing that names a person."""

import getpass
import json
import socket

from neurodiff.core.environment import environment
from neurodiff.core.run import Run


def test_what_changes_numbers_is_there(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    found = environment()
    assert found["variables"]["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert found["variables"]["OMP_NUM_THREADS"] == "1"
    assert found["threads"]["cpus"] >= 1
    assert {"numpy", "torch", "scipy"} <= set(found["packages"])
    assert len(found["lock"]) == 64
    assert "hidden" not in json.dumps(found)


def test_nothing_names_the_user_or_the_host():
    text = json.dumps(environment()).lower()
    host = socket.gethostname().lower()
    assert len(host) < 4 or host not in text
    user = getpass.getuser().lower()
    assert len(user) < 5 or user not in text


def test_a_run_keeps_its_surroundings(tmp_path):
    run = Run.create(tmp_path / "run", {"name": "x"}, {}, command="neurodiff", seed=0)
    stored = Run.open(run.folder).info["environment"]
    assert stored["packages"] == environment()["packages"]
    assert stored["variables"]["OMP_NUM_THREADS"] == "1"
    again = environment()
    again["packages"].clear()
    assert environment()["packages"]  # an answer is the caller's own
