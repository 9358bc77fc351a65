"""From a config model to a command line: each option is declared once, in the model."""

import functools
import inspect
import json
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from step_cli.config.types import Config
from step_cli.errors import UsageError
from step_cli.nm.pattern import NMPattern

C = TypeVar("C", bound=Config)
R = TypeVar("R")

# Shown in every --help; `cli.global_options` reads them from the arguments themselves,
# so that a usage error too is shown as they require.
JSON = typer.Option("--json", help="Print one JSON document")
VERBOSE = typer.Option("--verbose", "-v", help="Print more details")
QUIET = typer.Option("--quiet", "-q", help="Print only errors and failed checks")
DEBUG = typer.Option("--debug", help="Show tracebacks")
GLOBAL_OPTIONS = {"json_": JSON, "verbose": VERBOSE, "quiet": QUIET, "debug": DEBUG}

# What is expected instead, where pydantic's messages name types of Python and of ours.
EXPECTED = {
    "model_type": "a section",
    "dict_type": "a table",
    "tuple_type": "a list",
    "list_type": "a list",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "too_long": "fewer values",
    "missing": "more values",
}


def options_from(
    model: type[C],
) -> Callable[[Callable[[C], R]], Callable[..., R]]:
    """Turn a function of a config into a Typer command with the config's options.

    Required fields become arguments, the others options. Typer only collects the
    text; the model checks it, so a bad value is refused in the model's own words.

    Raises:
        UsageError: A value is refused by the model (when the command is called).
    """

    def decorate(function: Callable[[C], R]) -> Callable[..., R]:
        @functools.wraps(function)
        def command(**given: Any) -> R:
            for name in GLOBAL_OPTIONS:
                given.pop(name)
            return function(_validated(model, given))

        parameters = [_parameter(*item) for item in model.model_fields.items()]
        parameters += [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=False,
                annotation=typing.Annotated[bool, declared],
            )
            for name, declared in GLOBAL_OPTIONS.items()
        ]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        del command.__wrapped__
        return command

    return decorate


def _validated(model: type[C], given: dict[str, Any]) -> C:
    """Check what was typed; what was not typed keeps the model's default."""
    typed = {name: value for name, value in given.items() if value not in (None, [])}
    try:
        return model(**typed)
    except ValidationError as error:
        detail = error.errors()[0]
        name = str(detail["loc"][0]) if detail["loc"] else ""
        shown = ""
        if name:
            required = model.model_fields[name].is_required()
            shown = (name.upper() if required else _flag(name)) + ": "
        raise UsageError(shown + message_of(detail)) from None


def message_of(detail: ErrorDetails) -> str:
    """One sentence on what pydantic found; our own messages stay as they are."""
    kind = detail["type"]
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    expected = EXPECTED.get(kind, detail["msg"].removeprefix("Input should be "))
    found = f"expected {expected}, got {detail['input']!r:.80}"
    if expected == "a list" and isinstance(detail["input"], str):
        found += f": write {json.dumps([detail['input'][:80]], ensure_ascii=False)}"
    return found


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    kind = _without_none(field.annotation)
    repeatable = get_origin(kind) is list
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    metavar = extra.get("metavar") or _metavar(
        get_args(kind)[0] if repeatable else kind
    )
    text = f"{field.description}{_default_shown(field)}"
    declared: Any
    if field.is_required():
        declared = typer.Argument(
            help=text, metavar=name.upper() + ("..." if repeatable else "")
        )
        collected: Any = list[str] if repeatable else str
        default: Any = inspect.Parameter.empty
    elif kind is bool:
        declared, collected, default = typer.Option(_flag(name), help=text), bool, False
    else:
        declared = typer.Option(
            _flag(name), help=text, metavar=str(metavar), show_default=False
        )
        collected = list[str] if repeatable else str
        default = None
    annotation = collected if default is inspect.Parameter.empty else collected | None
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=typing.Annotated[bool if kind is bool else annotation, declared],
    )


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (types.UnionType, typing.Union):
        kinds = (kind for kind in get_args(annotation) if kind is not type(None))
        annotation = next(kinds)
    if get_origin(annotation) is typing.Annotated:  # with a validator
        return get_args(annotation)[0]
    return annotation


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(str(choice) for choice in get_args(kind))
    names = {int: "INTEGER", float: "NUMBER", Path: "PATH", NMPattern: "N:M"}
    return names.get(kind, "TEXT")


def _default_shown(field: FieldInfo) -> str:
    default = field.default  # undefined where a factory makes it
    if default in (None, False, PydanticUndefined, ""):
        return ""
    return f" [default: {default}]"
