"""The one place that prints results: a report as a table for people, or as JSON.

Tables are drawn by `render.tables`, one function for each kind of report.
"""

import json
from typing import TextIO

from step_cli.render.text import one_line
from step_cli.reports import ErrorDetail, Report


def show(report: Report, out: TextIO, *, as_json: bool, verbose: bool) -> None:
    """Write ``report`` to its file, if it has one, and to ``out``.

    The file has the format asked for; what is shown beside it is the table.

    Raises:
        OutputError: The file cannot be written.
    """
    asked = "json" if as_json else report.asked_format
    if report.asked_file is not None:
        from step_cli.render import files

        files.replace(
            report.asked_file, text(report, asked or "table", verbose=verbose)
        )
        asked = "json" if as_json else "table"
    if asked in (None, "table"):
        from step_cli.render.draw import draw

        draw(report, out, verbose=verbose, forge=asked is None)
    else:
        out.write(text(report, asked, verbose=verbose))


def text(report: Report, format: str, *, verbose: bool) -> str:
    """The report in one of the formats that are text, a line end at its end."""
    if format == "json":
        # A name must not be able to start a command of GitHub's runner.
        return report.document().replace("##[", "\\u0023#[") + "\n"
    from step_cli.render import formats

    return formats.text(report, format, verbose=verbose)


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
