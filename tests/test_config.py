"""Settings: strict types, no unknown keys, every problem at once with its place."""

import dataclasses
import datetime
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from neurodiff.core import config
from neurodiff.core.errors import MissingDataError, UsageError
from neurodiff.core.safe_io import read_yaml, write_yaml


@dataclass(frozen=True, kw_only=True)
class Bridge:
    steps: int = 100
    rate: float = 1e-3
    head: Literal["x0", "eps"] = "x0"
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; expected at least 1")


@dataclass(frozen=True, kw_only=True)
class Ridge:
    alphas: list[float] = field(default_factory=lambda: [1.0])


@dataclass(frozen=True, kw_only=True)
class Recipe:
    data: str
    bridge: Bridge = field(default_factory=Bridge)
    other: Bridge | Ridge | None = None
    stages: list[Bridge] = field(default_factory=list)
    named: dict[str, Bridge] = field(default_factory=dict)
    folder: Path | None = None
    use_ema: bool = False


def recipe_file(folder, text):
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


GOOD = """
data: fmri_shape
bridge: {steps: 5, rate: 1, betas: [0.5, 1e-1]}
other: {alphas: [1, 10.5]}
stages: [{head: eps}, {}]
named: {a: {steps: 2}}
folder: out/here
use_ema: true
"""


def test_a_recipe_becomes_dataclasses(tmp_path):
    found = config.load(recipe_file(tmp_path, GOOD), Recipe)
    assert found == Recipe(
        data="fmri_shape",
        bridge=Bridge(steps=5, rate=1.0, betas=(0.5, 0.1)),
        other=Ridge(alphas=[1.0, 10.5]),
        stages=[Bridge(head="eps"), Bridge()],
        named={"a": Bridge(steps=2)},
        folder=Path("out/here"),
        use_ema=True,
    )
    assert isinstance(found.bridge.rate, float)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.data = "x"


def test_dump_writes_every_default_and_comes_back(tmp_path):
    found = config.load(recipe_file(tmp_path, GOOD), Recipe, ["bridge.rate=1e-5"])
    plain = config.dump(found)
    assert plain["stages"][1] == {"steps": 100, "rate": 1e-3, "head": "x0", "betas": [0.9, 0.95]}
    assert plain["folder"] == "out/here"
    write_yaml(tmp_path / "resolved.yaml", plain)
    assert read_yaml(tmp_path / "resolved.yaml") == plain
    assert config.load(tmp_path / "resolved.yaml", Recipe) == found
    with pytest.raises(UsageError, match="dict is not a dataclass"):
        config.dump({})


BAD = """
bridge: {steps: "5", rates: 3, head: x1, betas: [0.5]}
stages: [{steps: 2}, {steps: 2.5, extra: {}}]
named: {a: {rate: fast}}
use_ema: 1
colour: red
"""


def test_all_problems_are_listed_with_their_places(tmp_path):
    path = recipe_file(tmp_path, BAD)
    with pytest.raises(UsageError) as error:
        config.load(path, Recipe)
    assert error.value.exit_code == 2
    first, *lines = str(error.value).splitlines()
    assert first == f"{path} has 10 problems:"
    starts = [
        "  bridge.betas[1]: missing",
        "  bridge.head: 'x1' given; expected 'x0' or 'eps'. Did you mean 'x0'",
        "  bridge.rates: unknown key. Did you mean 'rate'",
        "  bridge.steps: '5' (text) given; expected",
        "  colour: unknown key. Known: data, bridge, other, stages, named, folder, use_ema",
        "  data: missing; give a value",
        "  named.a.rate: 'fast' (text) given; expected",
        "  stages[1].extra: unknown key.",
        "  stages[1].steps: 2.5 (a number) given; expected",
        "  use_ema: 1 (a whole number) given; expected",
    ]
    for line, start in zip(sorted(lines), starts, strict=True):
        assert line.startswith(start), line


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("data: 3", "data: 3 (a whole number) given; expected"),
        ("data: a\nbridge: {steps: true}", "bridge.steps: True (yes or no) given; expected"),
        ("data: a\nbridge: {rate: '1'}", "bridge.rate: '1' (text) given; expected"),
        ("data: a\nbridge: null", "bridge: None (nothing) given; expected"),
        ("data: a\nbridge: [1]", "bridge: [1] (a list) given; expected"),
        ("data: a\nbridge: {steps: 0}", "bridge: steps is 0; expected at least 1"),
        ("data: a\nother: {alpha: [1]}", "other.alpha: unknown key. Did you mean 'alphas'"),
        ("data: a\nother: {alphas: [x]}", "other.alphas[0]: 'x' (text) given; expected"),
        ("data: 2026-01-02", "data: datetime.date(2026, 1, 2) is a date; expected text"),
        ("data: a\nnamed: {a: {head: 2026-01-02}}", "named.a.head: datetime.date(2026, 1, 2)"),
    ],
)
def test_one_problem(tmp_path, text, problem):
    with pytest.raises(UsageError) as error:
        config.load(recipe_file(tmp_path, text), Recipe)
    assert f"\n  {problem}" in str(error.value)


@pytest.mark.parametrize("text", ["- 1", "just words", "3"])
def test_a_recipe_that_is_no_mapping(tmp_path, text):
    with pytest.raises(UsageError, match="expected keys and values"):
        config.load(recipe_file(tmp_path, text), Recipe)


@pytest.mark.parametrize(
    "text", ["", "data: [", "data: a\ndata: b", "data: !!python/name:os.system"]
)
def test_a_recipe_that_is_no_yaml_is_wrong_usage(tmp_path, text):
    with pytest.raises(UsageError, match=r"recipe\.yaml"):
        config.load(recipe_file(tmp_path, text), Recipe)


# ---------------------------------------------------------------------------------- overrides


def test_overrides_are_yaml_and_reach_inside(tmp_path):
    path = recipe_file(tmp_path, "data: a")
    overrides = [
        "bridge.steps=7",
        "bridge.rate = 1e-4",
        "bridge.betas=[0.1, 0.2]",
        "data=b=c",
        "other={alphas: [2]}",
        "named.x.head=eps",
        "use_ema=true",
        "folder=null",
    ]
    assert config.load(path, Recipe, overrides) == Recipe(
        data="b=c",
        bridge=Bridge(steps=7, rate=1e-4, betas=(0.1, 0.2)),
        other=Ridge(alphas=[2.0]),
        named={"x": Bridge(head="eps")},
        use_ema=True,
    )
    found = config.load(path, Recipe, {"bridge.steps": 7, "bridge.betas": (0.1, 0.2)})
    assert found.bridge == Bridge(steps=7, betas=(0.1, 0.2))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("bridge.steps", "is not key=value"),
        ("=3", "is not key=value"),
        ("bridge=[1", r"override 'bridge=\[1' is not valid YAML"),
        ("data.x=1", "data is text and has no keys in it"),
        ("bridge.step=1", r"bridge\.step: unknown key\. Did you mean 'steps'"),
        ("bridge.steps='1'", r"bridge\.steps: '1' \(text\)"),
        ("data=!!python/name:os.system", "is not valid YAML"),
    ],
)
def test_overrides_that_cannot_be(tmp_path, override, sentence):
    with pytest.raises(UsageError, match=sentence):
        config.load(recipe_file(tmp_path, "data: a"), Recipe, [override])


def test_overrides_are_a_list_and_not_a_text(tmp_path):
    with pytest.raises(UsageError, match="give a list of key=value"):
        config.load(recipe_file(tmp_path, "data: a"), Recipe, "data=b")


def test_check_takes_plain_values_only():
    assert config.check({"steps": 4}, Bridge) == Bridge(steps=4)
    with pytest.raises(UsageError, match=r"steps: datetime\.date\(2026, 1, 1\) is a date"):
        config.check({"steps": datetime.date(2026, 1, 1)}, Bridge)


# ------------------------------------------------------------------------------- shared files


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """A source tree with one recipe."""
    package = tmp_path / "source" / "neurodiff"
    (package / "core").mkdir(parents=True)
    (tmp_path / "source" / "pyproject.toml").write_text("")
    (tmp_path / "source" / "pipelines").mkdir()
    recipe = tmp_path / "source" / "pipelines" / "mind3d_tiny.yaml"
    recipe.write_text("data: shared")
    monkeypatch.setattr(config, "__file__", str(package / "core" / "config.py"))
    return recipe


def test_a_name_is_found_beside_the_project_and_an_existing_path_wins(
    shared, tmp_path, monkeypatch
):
    assert config.find_shared("pipelines", "mind3d_tiny") == shared
    assert config.find_shared("pipelines", "mind3d_tiny.yaml") == shared
    assert config.load("mind3d_tiny", Recipe).data == "shared"
    monkeypatch.chdir(tmp_path)
    Path("mind3d_tiny.yaml").write_text("data: mine")
    assert config.load("mind3d_tiny.yaml", Recipe).data == "mine"
    assert config.load("mind3d_tiny", Recipe).data == "shared"


def test_a_name_that_is_not_there_lists_what_is(shared, tmp_path):
    with pytest.raises(UsageError) as error:
        config.find_shared("pipelines", "mind3d-tinny")
    assert "'mind3d-tinny' is neither a file nor one of pipelines" in str(error.value)
    assert "Did you mean 'mind3d_tiny'?" in str(error.value)
    for name in ("../pipelines/mind3d_tiny", str(tmp_path / "absent.yaml"), "."):
        with pytest.raises(UsageError, match="neither a file nor"):
            config.find_shared("pipelines", name)
    with pytest.raises(UsageError, match="no kind 'recipes'"):
        config.find_shared("recipes", "x")


def test_the_shared_folders_of_this_project_are_found():
    for kind in config.KINDS:
        assert all(folder.is_dir() for folder in config._shared_folders(kind))
        assert config._shared_folders(kind)


def test_a_file_that_vanishes_is_missing_data(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "find_shared", lambda kind, name: tmp_path / "gone.yaml")
    with pytest.raises(MissingDataError):
        config.load("x", Recipe)


# --------------------------------------------------------------------------------- light imports


def test_core_imports_nothing_heavy():
    heavy = ["torch", "pydantic", "nibabel", "nilearn", "trimesh", "safetensors", "PIL", "yaml"]
    code = (
        "import sys\n"
        "from neurodiff.core import config, errors, recording, run, safe_io, seeds, stimuli\n"
        f"print([name for name in {heavy} if name in sys.modules])\n"
        "print(sorted({name.split('.')[1] for name in sys.modules"
        " if name.startswith('neurodiff.')}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "['core']"]
