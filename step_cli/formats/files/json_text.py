"""JSON from files, read strictly: no name twice, no endless nesting."""

import json
import re
from pathlib import Path
from typing import Any

from step_cli.errors import InputError
from step_cli.formats.files.mapped_file import in_units, map_file

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def json_object(text: str | bytes, what: str, *, file: object) -> dict[str, Any]:
    """Parse ``text`` as one JSON object.

    Args:
        text: The document.
        what: What it is, for messages: ``header``, ``the plan``.
        file: Where it stands, for messages.

    Raises:
        InputError: It is no JSON object, nested too deep, or has a name twice.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode()
        document = json.loads(
            text, object_pairs_hook=_without_repeats, parse_constant=_refuse
        )
        if _SURROGATE.search(text):
            _refuse_lone_surrogates(document)
    except RecursionError:
        raise InputError(f"{what} is nested too deep", file=file) from None
    except ValueError as error:
        raise InputError(f"{what} is not JSON: {error}", file=file) from None
    if not isinstance(document, dict):
        raise InputError(f"{what} is not a JSON object", file=file)
    return document


def read_json(path: Path, what: str, *, limit_bytes: int) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        InputError: As `json_object`, or it cannot be read, or is over the limit.
    """
    file = map_file(path)
    if file.size > limit_bytes:
        raise InputError(
            f"{what} has {in_units(file.size)}, limit {in_units(limit_bytes)}",
            file=path,
        )
    return json_object(file.head(file.size), what, file=path)


def record_of_step(line: str) -> dict[str, Any] | None:
    """The object in a line of a log of steps; None where it is none or is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_record = isinstance(record, dict) and type(record.get("step")) is int
    return record if is_record else None


def _refuse(constant: str) -> None:
    """NaN and infinity are Python's own; no other reader takes them."""
    raise ValueError(f"{constant} is no JSON number")


def _refuse_lone_surrogates(document: object) -> None:
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("a lone surrogate, which is not text") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Python's json keeps the last of two equal names without a word."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"duplicate tensor name or key {name!r}")
            seen.add(name)
    return found
