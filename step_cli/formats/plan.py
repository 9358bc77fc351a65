"""The plan as text: which tensor has which pattern, ``step-cli/plan/1``."""

import json
import re
from pathlib import Path
from typing import Any

from step_cli.core.pattern import NMPattern
from step_cli.core.plan import LayerPlan, Plan
from step_cli.errors import InputError
from step_cli.formats.mapped_file import map_file

KEY = "step_cli.plan"  # in safetensors metadata and ONNX metadata_props
FILE = "nm_plan.json"  # in a directory; FILE.nm_plan.json beside a .pt
MAJOR = 1
SCHEMA = f"step-cli/plan/{MAJOR}"
LARGEST = 64 << 20  # bytes; 200,000 layers need about 20 MiB


def parse_plan(text: str | bytes, *, file: object) -> Plan:
    """Read a plan; unknown fields of the same major version are ignored.

    Args:
        text: The JSON document.
        file: Where it stands, for messages.

    Raises:
        InputError: It is not a plan, or one of a newer major version.
    """
    return _layers(document_of(text, file=file), file)


def document_of(text: str | bytes, *, file: object) -> dict[str, Any]:
    """The JSON object of a plan, its schema checked, its layers not yet."""
    try:
        document = json.loads(text, object_pairs_hook=_without_repeats)
    except RecursionError:
        raise InputError("the plan is nested too deep", file=file) from None
    except ValueError as error:
        raise InputError(f"the plan is not JSON: {error}", file=file) from None
    if not isinstance(document, dict):
        raise InputError("the plan is not a JSON object", file=file)
    _check_schema(document.get("schema"), file)
    return document


def read_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        InputError: As `parse_plan`, or the file cannot be read.
    """
    return parse_plan(read_text(path), file=path)


def read_text(path: Path) -> bytes:
    """The bytes of a plan file, at most 64 MiB."""
    file = map_file(path)
    if file.size > LARGEST:
        raise InputError("more than 64 MiB, too large for a plan", file=path)
    return file.head(file.size)


def plan_json(plan: Plan, *, indent: int | None = None, **extra: object) -> str:
    """Write a plan: names sorted, so that the same plan is the same text.

    Args:
        plan: What each tensor promises.
        indent: Spaces for people, or None for one line.
        extra: Further fields of the document; readers ignore those they do not know.
    """
    layers = {
        name: {"pattern": str(layer.pattern), "axis": layer.axis}
        for name, layer in sorted(plan.items())
    }
    return json.dumps({"schema": SCHEMA, "layers": layers, **extra}, indent=indent)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"'{repeated}' stands in it twice")
    return found


def _check_schema(schema: object, file: object) -> None:
    match = re.fullmatch(r"step-cli/plan/([0-9]{1,9})", str(schema))
    if match is None:
        raise InputError(f"not a plan: its schema is {schema!r:.60}", file=file)
    if int(match[1]) > MAJOR:
        raise InputError(
            f"the plan was written by a newer step-cli ({schema}), update step-cli",
            file=file,
        )


def _layers(document: dict[str, Any], file: object) -> Plan:
    layers = document.get("layers")
    if not isinstance(layers, dict):
        raise InputError("the plan has no object 'layers'", file=file)
    return {name: _layer(name, layer, file) for name, layer in layers.items()}


def _layer(name: str, layer: object, file: object) -> LayerPlan:
    if not isinstance(layer, dict):
        raise InputError("its plan is not an object", file=file, tensor=name)
    pattern, axis = layer.get("pattern"), layer.get("axis")
    if not isinstance(pattern, str):
        raise InputError("its plan has no 'pattern'", file=file, tensor=name)
    if type(axis) is not int:
        raise InputError(
            f"its plan says axis {axis!r:.40}, expected 0, 1, ...",
            file=file,
            tensor=name,
        )
    try:
        return LayerPlan(NMPattern.parse(pattern), axis)
    except ValueError as error:
        raise InputError(f"its plan: {error}", file=file, tensor=name) from None
