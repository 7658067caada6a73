"""A folder is replaced as a whole or not at all."""

import pytest

from neurodiff.core import atomic
from neurodiff.core.atomic import replaced_folder


@pytest.fixture
def old(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a.txt").write_text("old")
    (folder / "only-old.txt").write_text("old")
    return folder


def _fill(new, text="new"):
    (new / "sub").mkdir(parents=True)
    (new / "a.txt").write_text(text)
    (new / "sub" / "b.txt").write_text(text)


def _names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_new_folder_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "model"
    with replaced_folder(target) as new:
        _fill(new)
        assert new.parent == tmp_path
        assert not target.exists()
    assert _names(tmp_path) == ["model/a.txt", "model/sub/b.txt"]


def test_an_old_folder_gives_way_with_all_its_files(old, tmp_path):
    with replaced_folder(old) as new:
        _fill(new)
        assert (old / "a.txt").read_text() == "old"
    assert _names(old) == ["a.txt", "sub/b.txt"]
    assert (old / "a.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_error_it_is_the_old_one(old, tmp_path, error):
    def broken(target):
        with replaced_folder(target) as new:
            _fill(new)
            raise error

    with pytest.raises(error):
        broken(old)
    assert _names(old) == ["a.txt", "only-old.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("fails", [1, 2])
def test_a_rename_that_fails_leaves_the_old_one(old, tmp_path, monkeypatch, fails):
    """The first moves the old folder away, the second the new one to its place."""
    real, calls = atomic.os.replace, []

    def replace(source, target):
        calls.append(source)
        if len(calls) == fails:
            raise OSError("no")
        return real(source, target)

    monkeypatch.setattr(atomic.os, "replace", replace)
    with pytest.raises(OSError, match="no"), replaced_folder(old) as new:
        _fill(new)
    assert _names(old) == ["a.txt", "only-old.txt"]
    assert (old / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_nothing_written_is_an_error_and_keeps_the_old_one(old, tmp_path):
    with pytest.raises(FileNotFoundError), replaced_folder(old):
        pass
    assert _names(old) == ["a.txt", "only-old.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
