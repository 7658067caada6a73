"""Settings from files: one loader that checks everything at the door.

Settings are frozen, keyword-only dataclasses from the standard library; recipes are YAML. Unknown
keys are refused, types are strict (``"3"`` is not a number, but 3 may stand for 3.0), and all
problems are listed at once, each with its place.

Examples
--------
>>> @dataclasses.dataclass(frozen=True, kw_only=True)
... class Bridge:
...     steps: int = 100
>>> check({"steps": 5}, Bridge)
Bridge(steps=5)
>>> check({"step": 5}, Bridge, where="recipe")
Traceback (most recent call last):
neurodiff.core.errors.UsageError: recipe has 1 problem:
  step: unknown key. Did you mean 'steps'?
"""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from neurodiff.core.errors import DataError, MissingDataError, UsageError, suggest
from neurodiff.core.safe_io import parse_yaml, read_yaml

KINDS = ("pipelines", "datasets", "analysis")

Settings = TypeVar("Settings")


def load(
    path_or_name: str | os.PathLike[str],
    cls: type[Settings],
    overrides: Iterable[str] | Mapping[str, Any] | None = None,
    *,
    kind: str = "pipelines",
) -> Settings:
    """Settings ``cls`` from a recipe, with overrides.

    Parameters
    ----------
    path_or_name : a YAML file, or the name of a shared one (see :func:`find_shared`).
    cls : a dataclass.
    overrides : ``["bridge.steps=50"]``, whose values are read as YAML, or ``{"bridge.steps": 50}``.
    kind : folder in which a name is looked up.

    Raises
    ------
    UsageError : no such recipe, not YAML, or any problem with its keys and values.
    """
    path = find_shared(kind, path_or_name)
    try:
        values = read_yaml(path)
    except MissingDataError:
        raise
    except DataError as error:
        raise UsageError(str(error)) from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds {_kind_of(values)}; expected keys and values")
    for key, value in parse_overrides(overrides or {}).items():
        _put(values, key, value)
    return check(values, cls, where=str(path))


def check(values: Mapping[str, Any], cls: type[Settings], *, where: str = "settings") -> Settings:
    """``cls`` made of plain ``values``; one UsageError lists every problem with its place."""
    import pydantic

    for part in _dataclasses_of(cls):
        if "__pydantic_config__" not in vars(part):
            part.__pydantic_config__ = pydantic.ConfigDict(  # type: ignore[attr-defined]
                extra="forbid", strict=True
            )
    try:
        text = json.dumps(values)
    except (TypeError, ValueError, RecursionError):
        place, value = _not_plain(values)
        raise UsageError(
            f"{where} has 1 problem:\n  {place}: {value!r} is {_kind_of(value)}; "
            "expected text, a number, yes or no, a list or keys: put it in quotes"
        ) from None
    try:
        return pydantic.TypeAdapter(cls).validate_json(text)
    except pydantic.ValidationError as error:
        problems = list(dict.fromkeys(_sentence(entry, values, cls) for entry in error.errors()))
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    raise UsageError(f"{where} has {count}:\n  " + "\n  ".join(problems))


def dump(settings: Any) -> dict[str, Any]:
    """Plain dictionary of a dataclass with every default written out, ready for YAML and JSON."""
    if not dataclasses.is_dataclass(settings) or isinstance(settings, type):
        raise UsageError(f"{type(settings).__name__} is not a dataclass; give settings")
    return {f.name: _plain(getattr(settings, f.name)) for f in dataclasses.fields(settings)}


def parse_overrides(overrides: Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
    """``["a.b=3"]`` as ``{"a.b": 3}``; values are YAML: ``null``, ``[1, 2]``, ``1e-4``."""
    if isinstance(overrides, Mapping):
        return dict(overrides)
    if isinstance(overrides, str):
        raise UsageError(f"overrides is the text {overrides!r}; give a list of key=value")
    parsed: dict[str, Any] = {}
    for entry in overrides:
        key, sign, text = entry.partition("=")
        if not sign or not key.strip():
            raise UsageError(f"the override {entry!r} is not key=value, such as bridge.steps=50")
        try:
            value = parse_yaml(text, where=f"the value of override {entry!r}")
        except DataError as error:
            raise UsageError(str(error)) from None
        parsed[key.strip()] = value
    return parsed


def find_shared(kind: str, name: str | os.PathLike[str]) -> Path:
    """Path of a recipe, card or specification.

    An existing path wins; then the folder ``kind`` beside pyproject.toml; then the copy in the
    installed package.

    Raises
    ------
    UsageError : there is none; lists what there is.
    """
    if kind not in KINDS:
        raise UsageError(f"there is no kind {kind!r}; expected {', '.join(KINDS)}")
    given = Path(name)
    if given.is_file():
        return given
    folders = _shared_folders(kind)
    if given.name == str(name):
        for folder in folders:
            for candidate in (given.name, f"{given.name}.yaml"):
                if (folder / candidate).is_file():
                    return folder / candidate
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise UsageError(
        f"{str(name)!r} is neither a file nor one of {kind}: "
        f"{', '.join(known) or 'none there'}.{suggest(given.stem, known)}"
    )


def _shared_folders(kind: str) -> list[Path]:
    package = Path(__file__).resolve().parents[1]
    folders = []
    if (package.parent / "pyproject.toml").is_file():
        folders.append(package.parent / kind)
    # as installed; not by importlib.resources, whose answer for a folder of no code is no path
    folders.append(package / "shared" / kind)
    return [folder for folder in folders if folder.is_dir()]


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for depth, part in enumerate(parents):
        inner = values.get(part)
        if inner is None:
            inner = values[part] = {}
        if not isinstance(inner, dict):
            place = ".".join(parents[: depth + 1])
            raise UsageError(f"override {key}: {place} is {_kind_of(inner)} and has no keys in it")
        values = inner
    values[last] = value


def _dataclasses_of(cls: Any, seen: dict[Any, None] | None = None) -> list[Any]:
    """``cls`` and every dataclass among the types of its fields."""
    seen = {} if seen is None else seen
    for argument in typing.get_args(cls):
        _dataclasses_of(argument, seen)
    if isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls not in seen:
        seen[cls] = None
        for hint in typing.get_type_hints(cls).values():
            _dataclasses_of(hint, seen)
    return list(seen)


def _sentence(entry: Mapping[str, Any], values: Any, cls: Any) -> str:
    """One problem as ``place: what is wrong``."""
    place, parent_keys = _place(entry["loc"], values)
    kind, found = entry["type"], entry.get("input")
    last = entry["loc"][-1] if entry["loc"] else ""
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _fields_at(parent_keys, cls)
        return f"{place}: unknown key.{suggest(last, known) or f' Known: {_listed(known)}'}"
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{place}: missing; give a value"
    message = entry["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind == "value_error":
        return f"{place}: {message}"
    if kind == "literal_error":
        wanted = entry["ctx"]["expected"]
        choices = [part.strip("' ") for part in wanted.replace(" or ", ", ").split(",")]
        return f"{place}: {found!r} given; expected {wanted}.{suggest(found, choices)}".rstrip(".")
    expected = message.removeprefix("Input should be ").removeprefix("a valid ")
    return f"{place}: {_short(found)} ({_kind_of(found)}) given; expected {expected}"


def _place(loc: Sequence[Any], values: Any) -> tuple[str, list[Any]]:
    """Dotted place of a problem, and the keys above it, without pydantic's names of types."""
    kept: list[Any] = []
    for position, part in enumerate(loc):
        is_last = position == len(loc) - 1
        if isinstance(values, Mapping) and (part in values or is_last):
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and (is_last or part < len(values)):
            values = values[part] if part < len(values) else None
        else:  # a member of a union, by pydantic's name for it
            continue
        kept.append(part)
    text = ""
    for part in kept:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "(top)", kept[:-1]


def _fields_at(keys: Sequence[Any], cls: Any) -> list[str]:
    """Names of the fields of the dataclasses that may stand below ``keys`` of ``cls``."""
    current = [cls]
    for key in keys:
        below: list[Any] = []
        for candidate in current:
            for part in _unwrapped(candidate):
                if dataclasses.is_dataclass(part) and isinstance(part, type):
                    hints = typing.get_type_hints(part)
                    below += [hints[key]] if key in hints else []
                else:
                    below += typing.get_args(part)
        current = below
    found = [part for candidate in current for part in _unwrapped(candidate)]
    classes = [part for part in found if isinstance(part, type) and dataclasses.is_dataclass(part)]
    return [f.name for part in classes for f in dataclasses.fields(part) if f.init]


def _unwrapped(hint: Any) -> list[Any]:
    """Members of a union; any other type as it is."""
    import types

    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [part for member in typing.get_args(hint) for part in _unwrapped(member)]
    return [hint]


def _not_plain(values: Any, place: str = "(top)") -> tuple[str, Any]:
    """Place and value of the first thing that JSON has no type for."""
    entries: Iterable[tuple[Any, Any]] = ()
    if isinstance(values, Mapping):
        entries = values.items()
    elif isinstance(values, list | tuple):
        entries = enumerate(values)
    elif not isinstance(values, str | int | float | bool | None):
        return place, values
    for key, value in entries:
        inner = str(key) if place == "(top)" else f"{place}.{key}"
        found, culprit = _not_plain(value, inner)
        if found != "(none)":
            return found, culprit
    return "(none)", None


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dump(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def _kind_of(value: Any) -> str:
    names = {dict: "keys and values", list: "a list", str: "text", bool: "yes or no"}
    names |= {int: "a whole number", float: "a number", type(None): "nothing"}
    return names.get(type(value), f"a {type(value).__name__}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
