"""Hostile and broken files through every reader: the right error, in time, in little memory."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

AT_LEAST = 60


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, repository):
    """[kind, reader, path, outcome, text, seconds] of each file, read in one limited process."""
    folder = tmp_path_factory.mktemp("hostile")
    done = subprocess.run(
        [sys.executable, str(repository / "tests" / "hostile_files.py"), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": str(repository), "NEURODIFF_FILE_MEMORY_GB": "0.25"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return folder, rows


def test_sound_files_are_read(outcomes):
    sound = [row for row in outcomes[1] if row[0] == "sound"]
    assert len(sound) > 30
    assert [row for row in sound if row[3] != "read"] == []


def test_every_hostile_file_ends_in_one_sentence_that_names_it(outcomes):
    folder, rows = outcomes
    hostile = [row for row in rows if row[0] == "hostile"]
    assert len(hostile) >= AT_LEAST
    for _, reader, path, found, text, seconds in hostile:
        what = (reader, path, found, text, seconds)
        assert found in ("DataError", "MissingDataError"), what
        assert os.path.basename(path) in text or "alone" in path, what
        assert "\n" not in text, what
        assert len(text) < 700, what
    kinds = Counter(row[1] for row in hostile)
    assert min(kinds.values()) >= 3, kinds  # of each reader
    assert not (folder / "ran-code").exists()


def test_nothing_was_written_outside(outcomes):
    folder, _ = outcomes
    assert not (folder / "out.txt").exists()
    assert not os.path.exists("/hostile-out.txt")


def test_memory_stays_under_a_gigabyte(outcomes):
    peak = next(row[3] for row in outcomes[1] if row[0] == "peak GiB")
    assert peak < 1.0
