"""The plan as text: which tensor has which pattern, ``step-cli/plan/1``.

Beside safetensors and torch files it holds their digests, as they cannot show damage.
"""

import json
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from step_cli.errors import InputError
from step_cli.formats.files.json_text import json_object, read_json
from step_cli.formats.files.mapped_file import sha256
from step_cli.nm.pattern import NMPattern, NMSpec, Plan
from step_cli.nm.threads import in_order

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
    return plan_of(json_object(text, "the plan", file=file), file=file)


def read_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        InputError: As `parse_plan`, or the file cannot be read.
    """
    return plan_of(read_document(path), file=path)


def read_document(path: Path) -> dict[str, Any]:
    """The JSON object in a plan file, for the fields beside the layers."""
    return read_json(path, "the plan", limit_bytes=LARGEST)


def plan_of(document: dict[str, Any], *, file: object) -> Plan:
    """The plan in its JSON object."""
    _check_schema(document.get("schema"), file)
    layers = document.get("layers")
    if not isinstance(layers, dict):
        raise InputError("the plan has no object 'layers'", file=file)
    return {name: _layer(name, layer, file) for name, layer in layers.items()}


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


def digests(paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """The field ``files`` of a plan: size in bytes and sha256 of each file, by name."""
    found = sorted(paths)
    sums = in_order((partial(sha256, p) for p in found), threads=len(found) > 1)
    return {
        path.name: {"size": path.stat().st_size, "sha256": digest}
        for path, digest in zip(found, sums, strict=True)
    }


def check_digest(path: Path, document: dict[str, Any], plan: Path) -> bool:
    """Compare a file with what was recorded of it; False if nothing was.

    Raises:
        InputError: It has another size or digest.
    """
    recorded = document.get("files")
    entry = recorded.get(path.name) if isinstance(recorded, dict) else None
    wanted = entry.get("sha256") if isinstance(entry, dict) else None
    if wanted is None:
        return False
    if wanted != sha256(path):
        raise InputError(
            f"its sha256 differs from the one in {plan.name}: damaged, or from "
            "another run; remove that entry if the change was meant",
            file=path,
        )
    return True


def _check_schema(schema: object, file: object) -> None:
    match = re.fullmatch(r"step-cli/plan/([0-9]{1,9})", str(schema))
    if match is None:
        raise InputError(f"not a plan: its schema is {schema!r:.60}", file=file)
    if int(match[1]) > MAJOR:
        raise InputError(
            f"the plan was written by a newer step-cli ({schema}), update step-cli",
            file=file,
        )


def _layer(name: str, layer: object, file: object) -> NMSpec:
    if not isinstance(layer, dict):
        raise InputError("its plan is not an object", file=file, tensor=name)
    pattern, axis = layer.get("pattern"), layer.get("axis")
    if not isinstance(pattern, str):
        raise InputError("its plan has no 'pattern'", file=file, tensor=name)
    if type(axis) is not int:
        raise InputError(
            f"its plan has axis {axis!r:.40}, expected 0, 1, ...",
            file=file,
            tensor=name,
        )
    try:
        return NMSpec(NMPattern.parse(pattern), axis)
    except ValueError as error:
        raise InputError(f"its plan: {error}", file=file, tensor=name) from None
