"""What a user gets from an install: packages, cards, light imports, a small repository."""

import importlib.metadata
import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

CARD_FOLDERS = ["analysis", "datasets", "pipelines"]
HEAVY = ["torch", "monai", "diffusers", "open3d", "nilearn", "pandas", "numpy"]
MEGABYTE = 2**20


def _files(repository: Path) -> list[Path]:
    """Every file that belongs to the repository: known to git or not ignored by it."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=repository,
        capture_output=True,
        check=False,
    )
    if listing.returncode or not (repository / ".git").exists():
        pytest.skip("not a git checkout: which files belong to the repository is not known")
    names = {name for name in listing.stdout.decode().split("\0") if name}
    return [repository / name for name in sorted(names) if (repository / name).is_file()]


def _pyproject(repository: Path) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("folder", CARD_FOLDERS)
def test_card_folders_are_no_packages(repository, folder):
    # an importable top-level `datasets` would break the Hugging Face libraries
    assert (repository / folder).is_dir()
    assert not list((repository / folder).rglob("*.py"))


def test_every_package_is_listed(repository):
    listed = _pyproject(repository)["tool"]["setuptools"]["packages"]
    found = {
        ".".join(file.parent.relative_to(repository).parts)
        for file in (repository / "neurodiff").rglob("*.py")
    }
    shared = {f"neurodiff.shared.{folder}" for folder in CARD_FOLDERS}
    assert set(listed) == found | shared


def test_every_folder_with_modules_is_a_package(repository):
    for module in (repository / "neurodiff").rglob("*.py"):
        assert (module.parent / "__init__.py").is_file(), module.parent


def test_tests_are_no_package(repository):
    assert not list((repository / "tests").rglob("__init__.py"))


def test_pinned_versions_satisfy_the_requirements(repository):
    from packaging.requirements import Requirement

    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    project = _pyproject(repository)["project"]
    for line in project["dependencies"] + project["optional-dependencies"]["dev"]:
        requirement = Requirement(line)
        assert requirement.name in pins, f"constraints.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(pins[requirement.name]), line


@pytest.mark.parametrize("statement", ["import neurodiff", "import neurodiff.cli"])
def test_import_is_light(tmp_path, statement):
    code = (
        f"import json, sys\n{statement}\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True
    )
    assert json.loads(loaded.stdout) == []


def test_repository_is_small(repository):
    sizes = {file: file.stat().st_size for file in _files(repository)}
    assert sizes, "git lists no file"
    large = {str(file): size for file, size in sizes.items() if size > 2 * MEGABYTE}
    assert not large
    assert sum(sizes.values()) < 8 * MEGABYTE  # text: sources, tests and golden numbers


def _copy_sources(repository: Path, target: Path) -> None:
    """The files that the wheel is made of; apart, so that a build leaves nothing behind."""
    for name in ["pyproject.toml", "README.md", "LICENSE", "NOTICE"]:
        (target / name).write_bytes((repository / name).read_bytes())
    for folder in ["neurodiff", *CARD_FOLDERS]:
        for file in (repository / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                copy = target / file.relative_to(repository)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())


@pytest.mark.slow
def test_wheel_carries_the_cards(repository, tmp_path):
    try:
        setuptools = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("setuptools is not installed")
    if int(setuptools.split(".")[0]) < 77:
        pytest.skip(f"setuptools {setuptools} is too old to build the wheel; needs 77")
    sources, wheels = tmp_path / "sources", tmp_path / "wheels"
    sources.mkdir()
    _copy_sources(repository, sources)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(wheels)]
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(sources)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = wheels.glob("neurodiff-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    cards = {
        f"neurodiff/shared/{card.relative_to(repository).as_posix()}"
        for folder in CARD_FOLDERS
        for card in (repository / folder).glob("*.yaml")
    }
    modules = {
        module.relative_to(repository).as_posix()
        for module in (repository / "neurodiff").rglob("*.py")
    }
    templates = {
        template.relative_to(repository).as_posix()
        for template in (repository / "neurodiff").rglob("*.jinja")
    }
    assert cards, "the repository has no card"
    assert cards | modules | templates | {"neurodiff/py.typed"} <= names
    # and from there they are found, with no repository around
    place = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(place)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from neurodiff.core.config import find_shared\n"
        "print(find_shared('datasets', 'simulated_tiny'))\n"
        "print(find_shared('pipelines', 'mind3d_tiny'))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(place)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert all(line.startswith(str(place)) for line in found.stdout.split()), found.stdout
    tops = {name.split("/")[0] for name in names}
    assert all(top == "neurodiff" or top.endswith(".dist-info") for top in tops), tops
    licences = {name.rsplit("/", 1)[-1] for name in names if "/licenses/" in name}
    assert licences == {"LICENSE", "NOTICE"}
