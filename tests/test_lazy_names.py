"""The public names of `neurodiff`: listed once in each place, and loaded when first used."""

import ast
import importlib.metadata

import pytest

import neurodiff


def _type_checking_imports(repository):
    tree = ast.parse((repository / "neurodiff" / "__init__.py").read_text(encoding="utf-8"))
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    return {
        alias.name: node.module
        for node in imports
        if node.module.startswith("neurodiff.")
        for alias in node.names
    }


def test_the_three_lists_agree(repository):
    assert set(neurodiff.__all__) == set(neurodiff._PLACES) | {"__version__"}
    assert _type_checking_imports(repository) == neurodiff._PLACES
    assert len(neurodiff.__all__) <= 30


@pytest.mark.parametrize("name", sorted(neurodiff._PLACES))
def test_every_name_loads(name):
    assert getattr(neurodiff, name).__name__ == name


def test_version_is_the_installed_one():
    assert neurodiff.__version__ == importlib.metadata.version("neurodiff")


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'Recordin'"):
        _ = neurodiff.Recordin


def test_error_classes_are_the_same_object():
    from neurodiff.core.errors import NeurodiffError

    assert neurodiff.NeurodiffError is NeurodiffError
