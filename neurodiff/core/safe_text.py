"""JSON and YAML: bounded in size, depth and what aliases expand to; no objects."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from neurodiff.core.atomic import YAML_FLOAT
from neurodiff.core.errors import DataError
from neurodiff.core.safe_limits import existing_file, first_line

_TEXT_LIMIT = 256 * 2**20  # bytes; a JSON or YAML file above this is not one of ours
_JSON_VALUES = 20_000_000
_YAML_NODES = 1_000_000
_YAML_LIMIT = 4 * 2**20  # characters: its parser takes seconds for each million
_YAML_MERGED = 1_000  # keys that << may bring into one mapping


def read_json(path: str | os.PathLike[str]) -> Any:
    """Content of a JSON file (UTF-8).

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : empty, not text, not JSON, or nested beyond reason.
    """
    path = existing_file(path)
    text = _text(path)
    if text.count(",") + text.count("[") + text.count("{") > _JSON_VALUES:
        raise DataError(f"{path} has over {_JSON_VALUES} values; a JSON file of ours has fewer")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}); "
            "repair it or make it again"
        ) from None
    except RecursionError:
        raise DataError(f"{path} is nested too deeply for a JSON file of ours") from None
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"{path} holds no sound number ({first_line(error)})") from None


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Content of a YAML file by the safe loader; repeated keys are refused.

    Numbers such as ``1e-4`` are numbers, as in YAML 1.2.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : empty, not text, not YAML, a repeated key, a tag that asks for a Python object, or
        aliases that expand without end.
    """
    path = existing_file(path)
    return parse_yaml(_text(path), where=str(path))


def parse_yaml(text: str, *, where: str) -> Any:
    """Value of a YAML text, with the rules of :func:`read_yaml`; ``where`` begins the error."""
    import yaml

    if len(text) > _YAML_LIMIT:
        raise DataError(f"{where} has {len(text)} characters; a YAML file of ours is far shorter")
    try:
        loader = _yaml_loader()(text)
    except yaml.YAMLError as error:  # characters that YAML does not have
        raise DataError(f"{where} is not valid YAML ({first_line(error)})") from None
    try:
        value = loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise DataError(f"{where} is not valid YAML ({place}{problem}); correct it there") from None
    except (ValueError, RecursionError, TypeError, OverflowError, KeyError, IndexError,
            AttributeError) as error:  # fmt: skip
        first = first_line(error)
        raise DataError(f"{where} is not valid YAML ({first}); correct it there") from None
    finally:
        loader.dispose()
    pending, seen = [value], 0
    while pending:
        node = pending.pop()
        seen += 1
        if seen > _YAML_NODES:
            raise DataError(f"{where} expands to over {_YAML_NODES} values; write it out without *")
        if isinstance(node, dict):
            pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(node)
    return value


def _text(path: Path) -> str:
    size = path.stat().st_size
    if size > _TEXT_LIMIT:
        raise DataError(f"{path} has {size} bytes; a text file of ours has at most {_TEXT_LIMIT}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text; save it again as UTF-8") from None
    if not text.strip():
        raise DataError(f"{path} holds only blanks; copy or make it again")
    return text


def _yaml_loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        def flatten_mapping(self, node: Any) -> None:
            own = len(node.value)
            for key, value in node.value:
                if key.tag == "tag:yaml.org,2002:merge" and len(value.value) > _YAML_MERGED:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"<< brings over {_YAML_MERGED} parts", node.start_mark
                    )
            super().flatten_mapping(node)
            if len(node.value) - own > _YAML_MERGED:
                raise yaml.constructor.ConstructorError(
                    None, None, f"<< brings over {_YAML_MERGED} keys", node.start_mark
                )

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                if key_node.tag == "tag:yaml.org,2002:merge":
                    continue
                key = self.construct_object(key_node, deep=True)
                if isinstance(key, str | int | float | bool) and key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} is there twice", key_node.start_mark
                    )
                seen.add(key if isinstance(key, str | int | float | bool) else id(key_node))
            return super().construct_mapping(node, deep=deep)

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", YAML_FLOAT, list("-+.0123456789"))
    return Loader
