"""The README does what it says: its code runs, its names and files exist."""

import ast
import re
import subprocess
import sys

import pytest

FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECTION = "Your own data"


@pytest.fixture(name="readme", scope="module")
def _readme(repository):
    return (repository / "README.md").read_text(encoding="utf-8")


def _section(text: str, heading: str) -> str:
    match = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert match, f"README.md has no section {heading!r}"
    return match[1]


def test_own_data_runs(readme, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = FENCE.findall(_section(readme, SECTION))
    code = "\n".join(blocks)
    for constructor in ["from_arrays", "from_masker", "from_csv", "from_folder"]:
        assert f".{constructor}(" in code
    names: dict = {}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"README.md, {SECTION}, block {number}", "exec"), names)


def test_diffusion_block_runs(readme):
    (block,) = FENCE.findall(_section(readme, "Diffusion on its own"))
    names: dict = {}
    exec(compile(block, "README.md, Diffusion on its own", "exec"), names)
    assert names["loss"].requires_grad
    assert names["drawn"].shape == (4, 8)
    assert names["drawn"].isfinite().all()


def test_every_python_block_is_python(readme):
    blocks = FENCE.findall(readme)
    assert len(blocks) >= 5
    for block in blocks:
        ast.parse(block)


def test_public_names_exist(readme):
    import neurodiff

    used = set(re.findall(r"\bnd\.([A-Za-z]\w*)", readme))
    assert used
    assert used <= set(neurodiff.__all__)


def test_linked_files_exist(readme, repository):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", readme)
    assert links
    assert not [link for link in links if not (repository / link).exists()]


def test_verbs_of_the_readme_are_those_of_the_command_line(readme, tmp_path):
    shown = set(re.findall(r"^neurodiff (\w+) ?", _section(readme, "On the command line"), re.M))
    help_text = subprocess.run(
        [sys.executable, "-m", "neurodiff.cli", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    verbs = set(re.findall(r"^  (\w+) {2,}\S", help_text.split("Commands:")[1], re.M))
    assert shown == verbs


def test_targets_of_the_readme_are_in_the_makefile(readme, repository):
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.M))
    in_blocks = re.findall(r"^(make\b[^#\n]*)", readme, re.M)
    in_lines = re.findall(r"`(make\b[^`]*)`", readme)
    used = {
        word
        for command in in_blocks + in_lines
        for word in re.sub(r'\w+=("[^"]*"|\S+)', "", command).split()[1:]
    }
    assert {"demo", "test", "test-fast"} <= used <= targets
