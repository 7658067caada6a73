"""What is missing is said with size, licence and place; offline, a connection raises."""

import contextlib
import os
import socket
import subprocess
import sys

import pytest

from neurodiff.core.doctor import MISSING, NOTE, OK, summary
from neurodiff.core.errors import MissingDataError, UsageError
from neurodiff.core.preflight import (
    Need,
    OfflineError,
    missing,
    need_of_card,
    offline,
    room,
    snapshot_folder,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_what_is_missing_has_size_licence_and_place(tmp_path):
    need = Need(
        name="judge", place=tmp_path / "judge", gigabytes=0.1, licence="MIT", get="Ask its authors."
    )
    (finding,) = missing([need])
    assert finding.status == MISSING
    for part in ("0.1 GB", "licence: MIT", str(tmp_path / "judge"), "Ask its authors"):
        assert part in str(finding)
    assert summary([finding])[1] == 3


def test_files_inside_a_folder_and_optional_needs(tmp_path):
    need = Need(name="n", place=tmp_path, files=("config.json", "*.safetensors"), optional=True)
    (tmp_path / "config.json").write_text("{}")
    (finding,) = missing([need])
    assert finding.status == NOTE
    assert "*.safetensors" in finding.value
    assert "config.json" not in finding.value
    (tmp_path / "w.safetensors").write_bytes(b"x")
    assert missing([need])[0].status == OK
    (tmp_path / "empty").write_bytes(b"")
    assert "(empty)" in missing([Need(name="e", place=tmp_path / "empty")])[0].value


def test_a_card_states_licence_size_and_source(tmp_path):
    card = {"name": "x", "licence": "CC0.", "get": "From there, about 39 GB a\n subject, 2.5 MB."}
    need = need_of_card(card, tmp_path / "absent")
    assert (need.size, need.licence) == ("39 GB, 2.5 MB", "CC0")
    assert "From there" in missing([need])[0].advice


def test_room(tmp_path):
    assert room(tmp_path / "a" / "b", 0.0).status == OK
    assert room(tmp_path, 1e12).advice


# ------------------------------------------------------------------------------------- offline


@pytest.fixture
def listener():
    """A server of this machine that would answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()


def test_the_same_connection_works_without_the_guard(listener):
    with socket.create_connection(listener, timeout=5):
        pass


@pytest.mark.parametrize("how", ["create", "connect", "connect_ex", "sendto", "lookup"])
def test_a_connection_trips_the_guard(listener, how):
    def reach():
        if how == "create":
            socket.create_connection(listener, timeout=5).close()
        elif how == "lookup":
            socket.getaddrinfo("localhost", 80)
        else:
            kind = socket.SOCK_DGRAM if how == "sendto" else socket.SOCK_STREAM
            with socket.socket(socket.AF_INET, kind) as one:
                arguments = (b"x", listener) if how == "sendto" else (listener,)
                getattr(one, how)(*arguments)

    before = socket.getaddrinfo
    with pytest.raises(OfflineError, match="--offline"), offline():
        reach()
    assert socket.getaddrinfo is before
    reach()  # as before, once the block is left


def test_an_attempt_that_was_swallowed_still_fails_the_block(listener):
    def quietly():
        with contextlib.suppress(Exception):
            socket.create_connection(listener)

    with pytest.raises(OfflineError, match=r"127\.0\.0\.1"), offline() as tried:
        quietly()
    assert len(tried) == 1


def test_urllib_and_the_hub_are_stopped_and_switches_come_back(monkeypatch):
    import urllib.request

    monkeypatch.delenv("HF_HUB_OFFLINE")
    switches = []

    def fetch():
        switches.append(os.environ["HF_HUB_OFFLINE"])
        with contextlib.suppress(OSError):
            urllib.request.urlopen("http://127.0.0.1:9/", timeout=5)

    with pytest.raises(OfflineError), offline():
        fetch()
    assert switches == ["1"]
    assert "HF_HUB_OFFLINE" not in os.environ


def test_workers_of_this_machine_may_talk():
    with offline() as tried:
        a, b = socket.socketpair()
        a.sendall(b"x")
        assert b.recv(1) == b"x"
        a.close()
        b.close()
    assert tried == []


def test_forbidding_lasts_for_the_process(repository, listener):
    code = (
        "import socket; from neurodiff.core.preflight import forbid_network; forbid_network()\n"
        f"socket.create_connection({listener!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )
    assert done.returncode == 1
    assert "OfflineError" in done.stderr


# ----------------------------------------------------------------------------------- snapshots


@pytest.fixture
def cache(tmp_path):
    """A hub's cache, made by hand."""
    for kind in ("models", "datasets"):
        folder = tmp_path / f"{kind}--group--name"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(COMMIT)
        place = folder / "snapshots" / COMMIT
        (place / "part").mkdir(parents=True)
        (place / "part" / "w.safetensors").write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_pinned_snapshot_is_found_without_a_network(cache, kind):
    with offline() as tried:
        found = snapshot_folder(
            "group/name", COMMIT, kind=kind, cache=cache, files=("part/*.safetensors",)
        )
    assert tried == []
    assert (found / "part" / "w.safetensors").is_file()
    assert found.name == COMMIT


def test_snapshots_that_are_not_there(cache):
    with offline():
        with pytest.raises(MissingDataError, match=r"group/name at ffffffffff is not in"):
            snapshot_folder("group/name", "f" * 40, cache=cache)
        with pytest.raises(MissingDataError, match="hf download other/name"):
            snapshot_folder("other/name", COMMIT, cache=cache)
        with pytest.raises(MissingDataError, match=r"lacks config\.json"):
            snapshot_folder("group/name", COMMIT, cache=cache, files=("config.json",))


@pytest.mark.parametrize(
    ("repo", "revision", "kind"),
    [("group/name", "main", "model"), ("../name", COMMIT, "model"), ("a/b", COMMIT, "space")],
)
def test_names_that_are_not_pinned(cache, repo, revision, kind):
    with pytest.raises(UsageError):
        snapshot_folder(repo, revision, kind=kind, cache=cache)
