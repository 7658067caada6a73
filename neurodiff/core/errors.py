"""The errors that neurodiff raises on purpose.

A message is one clear sentence: what was found, where, what was expected, what to do. The command
line prints the sentence without a traceback and ends with the class's ``exit_code``. Each class is
also the builtin that a caller would expect, so ``except ValueError`` works as well.

Examples
--------
>>> suggest("V1x", ["V1", "V2", "FFC"])
" Did you mean 'V1' or 'V2'?"
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable


class NeurodiffError(Exception):
    """Any failure that neurodiff can put into one sentence; exit code 1."""

    exit_code = 1


class UsageError(NeurodiffError, ValueError):
    """A wrong argument, name, recipe or combination of them; exit code 2."""

    exit_code = 2


class DataError(NeurodiffError, ValueError):
    """Data or weights that are broken or not what they should be; exit code 3."""

    exit_code = 3


class MissingDataError(DataError, FileNotFoundError):
    """Data or weights that are not there; exit code 3."""


_OF_THE_USER = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT,
        errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG,
    }
)  # fmt: skip


def file_error(error: OSError) -> DataError | None:
    """The sentence for a file that rights, space or its place do not allow; else None.

    For the outermost caller: what knows more about a file says more about it before.

    Examples
    --------
    >>> file_error(PermissionError(13, "Permission denied", "runs/a"))
    DataError('runs/a: Permission denied; check the place, its rights and its free space')
    >>> file_error(OSError("a fault of ours")) is None
    True
    """
    if error.errno not in _OF_THE_USER or error.filename is None:
        return None
    named = os.fsdecode(error.filename) if not isinstance(error.filename, int) else "a file"
    why = error.strerror or type(error).__name__
    return DataError(f"{named}: {why}; check the place, its rights and its free space")


def suggest(name: object, known: Iterable[object]) -> str:
    """End of an error sentence that names the nearest known names.

    Parameters
    ----------
    name : what the user wrote.
    known : the names that exist; compared without regard to case, ``-`` and ``_``.

    Returns
    -------
    ``" Did you mean 'a', 'b' or 'c'?"`` with at most three names, nearest first, or ``""``.
    """
    plain: dict[str, str] = {}
    for candidate in known:
        plain.setdefault(_plain(candidate), str(candidate))
    near = difflib.get_close_matches(
        _plain(name), list(plain), n=3, cutoff=0.4 if len(str(name)) <= 4 else 0.6
    )
    if not near:
        return ""
    quoted = [repr(plain[key]) for key in near]
    listed = quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"
    return f" Did you mean {listed}?"


def _plain(name: object) -> str:
    return str(name).lower().replace("-", "_")
