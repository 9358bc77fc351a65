"""The one place that prints results: a report as a table for people, or as JSON.

Tables are drawn by `render.tables`, one function for each kind of report.
"""

import json
import math
from typing import Any, TextIO

from step_cli.render.text import one_line
from step_cli.reports import ErrorDetail, Report


def show(report: Report, out: TextIO, *, as_json: bool, verbose: bool) -> None:
    """Write ``report`` to ``out``, as its JSON document or for people."""
    if as_json:
        out.write(document(report) + "\n")
        return
    from step_cli.render import tables

    tables.draw(report, out, verbose=verbose)


def document(report: Report) -> str:
    """The JSON document of a report, its schema first; non-finite values are null."""
    body = _finite(report.model_dump(mode="json", by_alias=True))
    # ASCII, as names from files may hold what UTF-8 cannot say.
    return json.dumps({"schema": report.schema_id, **body}, indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def failure(detail: ErrorDetail, command: str, out: TextIO) -> None:
    """Write the JSON document of a command that could not give a verdict."""
    body = {
        "schema": f"step-cli/{command}/1",
        "ok": False,
        "error": detail.model_dump(),
    }
    out.write(json.dumps(body, indent=2) + "\n")
    out.flush()


def error_line(detail: ErrorDetail) -> str:
    """``error: FILE: TENSOR: message`` on one line, names escaped."""
    parts = [detail.file, detail.tensor, detail.message]
    return "error: " + ": ".join(one_line(part) for part in parts if part)


def version(*, verbose: bool) -> str:
    """The version; when verbose, those of what is installed, importing nothing."""
    from importlib import metadata
    from platform import platform, python_version

    lines = [f"step-cli {metadata.version('step-cli')}"]
    if verbose:
        lines += [f"Python {python_version()}", platform()]
        for name in INSTALLED:
            try:
                lines.append(f"{name} {metadata.version(name)}")
            except metadata.PackageNotFoundError:
                lines.append(f"{name} not installed")
    return "\n".join(lines)


INSTALLED = (
    "torch",
    "numpy",
    "safetensors",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "transformers",
)
