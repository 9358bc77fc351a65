"""The configuration file as a document: TOML, then ``--set``, its paths absolute."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from step_cli.config.data import is_name_of_data
from step_cli.errors import InputError, UsageError

# Keys that hold a path, or a SPEC, which may name a file.
PATHS = (
    ("model", "source"),
    ("model", "weights"),
    ("sparsity", "plan"),
    ("distill", "teacher"),
    ("distill", "teacher_model"),
    ("data", "source"),
    ("data", "held_out"),
    ("data", "tokenizer"),
)


def read_document(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Read a TOML file, then apply ``section.key=value`` overrides.

    Raises:
        InputError: The file cannot be read.
        UsageError: It is not TOML, or an override names no key.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or (
            "not UTF-8 text"
            if isinstance(error, UnicodeDecodeError)
            else "no such file or directory"
        )
        raise InputError(f"{reason.lower()}; give a TOML file", file=path) from None
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"not TOML: {error}", file=path) from None
    except RecursionError:
        raise UsageError("nested too deeply", file=path) from None
    _anchor(document, path.parent.resolve())
    for override in overrides:
        _apply(document, override)
    _anchor(document, Path.cwd())
    return document


def _anchor(document: dict[str, Any], base: Path) -> None:
    """Make relative paths absolute, so that the resolved configuration can move.

    Paths of the file are relative to it, paths typed in the shell to the directory
    they were typed in.
    """
    for section, key in PATHS:
        table = document.get(section)
        if not isinstance(table, dict) or not isinstance(table.get(key), str):
            continue
        value = table[key]
        if not value or (section == "data" and is_name_of_data(key, value, base)):
            continue
        is_spec = key == "teacher_model" or (section, key) == ("model", "source")
        table[key] = absolute_spec(value, base) if is_spec else str(base / value)


def absolute_spec(spec: str, base: Path | None = None) -> str:
    """The SPEC of a model that does not depend on the working directory.

    Args:
        spec: As in ``[model] source``.
        base: What a path is relative to; the working directory by default.
    """
    # sample:NAME and module:function are no paths, and nothing else has a colon.
    place, colon, _ = spec.rpartition(":")
    if colon and not place.endswith(".py"):
        return spec
    return str((base or Path.cwd()) / spec)


def _apply(document: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    sections = key.strip().split(".")
    if not equals or not all(sections):
        raise UsageError(f"--set: expected section.key=value, got '{override}'")
    place = document
    for section in sections[:-1]:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise UsageError(f"--set: {section} in '{override}' is not a section")
    place[sections[-1]] = _toml_value(value.strip())


def _toml_value(text: str) -> Any:
    """Read a TOML value; what is none is taken as text, so quotes can be left out."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
