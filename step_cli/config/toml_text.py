"""TOML written out, as Python reads it but does not write it."""

import json
import re
from collections.abc import Mapping
from typing import Any


def toml_of(document: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of a document of sections.

    A table in a section becomes a section of its own, as does each table of a list;
    what lies deeper stands on one line.
    """
    lines: list[str] = []
    for section, values in document.items():
        lines += _table(section, values)
    return "\n".join(lines)


def _table(name: str, values: Mapping[str, Any]) -> list[str]:
    lines = [f"[{name}]"]
    tables: list[str] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            tables += [f"[{name}.{key}]", *_pairs(value), ""] if value else []
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for item in value:
                tables += [f"[[{name}.{key}]]", *_pairs(item), ""]
        else:
            lines += _pairs({key: value})
    return [*lines, "", *tables]


def _pairs(values: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_toml(value)}" for key, value in values.items()]


def _key(key: str) -> str:
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else _toml(key)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(_pairs(value))}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    # JSON's strings, numbers and booleans are TOML as they stand, but for its escapes
    # of large characters, and DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
