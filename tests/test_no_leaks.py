"""Nothing of the machine on which a file was written is in the repository."""

import re
import subprocess

import pytest

TEXT = {
    "", ".cff", ".cfg", ".csv", ".html", ".ini", ".ipynb", ".jinja", ".js", ".json", ".md",
    ".py", ".sh", ".toml", ".txt", ".yaml", ".yml",
}  # fmt: skip

# Written in parts, so that this file does not find itself.
PLACES = ["work", "home", "root", "Users", "tmp", "mnt", "scratch", "opt", "var"]
ABSOLUTE = re.compile(rf"(?<![\w.~/}}\])])/(?:{'|'.join(PLACES)})/[\w.]")

# No leaks: what systems have in the same place everywhere, and the invented user of tests.
KNOWN = ["/usr/bin/env", "/dev/null", "/home/ada"]


def _leaks(line):
    for known in KNOWN:
        line = line.replace(known, "")
    return bool(ABSOLUTE.search(line))


def _text_files(repository):
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=repository,
        capture_output=True,
        check=False,
    )
    if listing.returncode or not (repository / ".git").exists():
        pytest.skip("not a git checkout: which files belong to the repository is not known")
    for name in sorted(set(listing.stdout.decode().split("\0")) - {""}):
        file = repository / name
        if file.is_file() and file.suffix in TEXT:
            yield name, file.read_text(encoding="utf-8")


def test_no_absolute_path_of_a_machine(repository):
    found = []
    for name, text in _text_files(repository):
        for number, line in enumerate(text.splitlines(), start=1):
            if _leaks(line):
                found.append(f"{name}:{number}: {line.strip()[:120]}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "leaks"),
    [
        ("path = '/{}/someone/data.npy'".format("home"), True),
        ("see /{}/main/README.md".format("work"), True),
        ('copied from "/{}/ada/x" to "/{}/bob/x"'.format("home", "home"), True),
        ('root="/data/fMRI-Shape"', False),
        ("https://example.org/{}/page".format("home"), False),
        ("a relative/{}/folder".format("work"), False),
    ],
)
def test_the_pattern_tells_leaks_from_other_text(line, leaks):
    assert _leaks(line) is leaks
