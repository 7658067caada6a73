"""Errors are also the builtin a caller expects, carry exit codes, and suggest near names."""

import pytest

from neurodiff.core.errors import (
    DataError,
    MissingDataError,
    NeurodiffError,
    UsageError,
    suggest,
)


@pytest.mark.parametrize(
    ("error", "builtin", "exit_code"),
    [
        (NeurodiffError, Exception, 1),
        (UsageError, ValueError, 2),
        (DataError, ValueError, 3),
        (MissingDataError, FileNotFoundError, 3),
    ],
)
def test_exit_codes_and_builtins(error, builtin, exit_code):
    assert issubclass(error, builtin)
    assert issubclass(error, NeurodiffError)
    assert error.exit_code == exit_code
    assert str(error("one sentence")) == "one sentence"


def test_missing_data_is_broken_data():
    with pytest.raises(DataError, match="no such file"):
        raise MissingDataError("no such file")


def test_suggest_orders_by_nearness_and_keeps_spelling():
    assert suggest("V1x", ["FFC", "V2", "V1"]) == " Did you mean 'V1' or 'V2'?"
    assert suggest("Mind3D-small", ["mind3d_small", "ldae"]) == " Did you mean 'mind3d_small'?"


def test_suggest_is_silent_without_a_near_name():
    assert suggest("steps", ["colour", "width"]) == ""
    assert suggest("steps", []) == ""
