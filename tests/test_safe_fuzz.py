"""What the fuzzer found once is read again; the fuzzer itself notices a reader that breaks."""

import importlib.util
import json
import random
import warnings
from pathlib import Path

import pytest


def _load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TESTS = Path(__file__).parent
fuzz = _load("fuzz_readers", TESTS / "fuzz" / "fuzz_readers.py")
hostile = _load("hostile_files", TESTS / "hostile_files.py")
FINDS = fuzz.read_finds()


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    return folder, hostile.valid_files(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("k", range(len(FINDS)))
def test_finds_are_repaired(sound, tmp_path, k):
    folder, readers = sound
    name, edits = FINDS[k]
    path = tmp_path / name
    path.write_bytes(fuzz.apply_edits((folder / name).read_bytes(), edits))
    found, text = hostile.outcome(readers[name], path)
    assert not fuzz.bad(found, text, path), (found, text)


@pytest.mark.filterwarnings("ignore")
def test_a_hundred_new_mutations(sound, tmp_path):
    folder, readers = sound
    dice = random.Random(77)
    for k in range(100):
        name = sorted(readers)[k % len(readers)]
        (tmp_path / str(k)).mkdir()
        path = tmp_path / str(k) / name
        data = (folder / name).read_bytes()
        path.write_bytes(fuzz.apply_edits(data, fuzz.draw_edits(data, dice)))
        found, text = hostile.outcome(readers[name], path)
        assert not fuzz.bad(found, text, path), (name, found, text)


def test_a_reader_without_checks_is_a_find(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("{")
    monkeypatch.setitem(hostile.READERS, "json", lambda one: json.loads(one.read_text()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, text = hostile.outcome("json", path)
    assert fuzz.bad(found, text, path)


def test_edits_are_repeatable():
    data = bytes(range(256))
    first = [fuzz.draw_edits(data, random.Random(3)) for _ in range(2)]
    assert first[0] == first[1]
    assert fuzz.apply_edits(data, first[0]) == fuzz.apply_edits(data, first[1]) != data
