"""The one place that prints results: a report as a table for people, or as JSON.

What writes each kind of report in each format is chosen here: the others are not even
imported.
"""

import io
import json
from pathlib import Path
from typing import Any, TextIO

from step_cli.render.console import console_for
from step_cli.render.text import one_line
from step_cli.reports import ErrorDetail, Report, VerifyReport


def show(
    report: Report,
    out: TextIO,
    *,
    format: str | None = None,
    file: Path | None = None,
    as_json: bool = False,
    verbose: bool = False,
    quiet: bool = False,
) -> None:
    """Write ``report`` to ``out``, and to a file where one is named.

    Args:
        report: What to show.
        out: Gets the report in ``format``; with a file, the table.
        format: That of ``--format``, or None: a table.
        file: Replaced as a whole, or left as it was.
        as_json: Whether both are to be JSON.
        verbose: Whether to list everything.
        quiet: Whether to write no table unless a check failed.

    Raises:
        OutputError: The file cannot be written.
    """
    shown = "json" if as_json else format
    unasked = not as_json and (format is None or file is not None)
    if file is not None:
        from step_cli.formats.files.staged import staged

        body = text(report, shown or "table", verbose=verbose)
        with staged(file, force=True) as path:
            path.write_text(body, encoding="utf-8", errors="backslashreplace")
        shown = "json" if as_json else "table"
    if quiet and unasked and report.exit_code == 0:
        return
    if shown in (None, "table"):
        draw(report, out, verbose=verbose, annotate=shown is None)
    else:
        out.write(text(report, shown, verbose=verbose))


def text(report: Report, format: str, *, verbose: bool) -> str:
    """The report in one of the formats that are text, a line end at its end.

    Only `verify-nm` has others than table and json; of those, one module is imported.
    """
    if format == "json":
        # A name must not be able to start a command of GitHub's runner.
        return report.document().replace("##[", "\\u0023#[") + "\n"
    if format == "table" or not isinstance(report, VerifyReport):
        out = io.StringIO()
        draw(report, out, verbose=verbose)
        return out.getvalue()
    if format == "jsonl":
        return _json_lines(report)
    if format == "markdown":
        from step_cli.render import markdown

        return markdown.text(report, verbose=verbose)
    if format == "html":
        from step_cli.render import verify_page

        return verify_page.text(report, verbose=verbose)
    if format == "junit":
        from step_cli.render import junit

        return junit.text(report)
    if format == "sarif":
        from step_cli.render import sarif

        return sarif.text(report)
    from step_cli.render import github

    return github.text(report)


def _json_lines(report: VerifyReport) -> str:
    """One JSON object a line, for tools that read streams.

    Lines of kind ``layer`` and ``skipped`` for tensors, then ``checkpoint`` for a file.
    """
    lines = []
    for checkpoint in report.shown:
        body = checkpoint.model_dump(mode="json")
        layers, skipped = body.pop("layers"), body.pop("skipped")
        path = body["path"]
        lines += [_json_line("layer", {"path": path, **layer}) for layer in layers]
        lines += [_json_line("skipped", {"path": path, **one}) for one in skipped]
        lines.append(_json_line("checkpoint", body))
    return "".join(lines)


def _json_line(kind: str, body: dict[str, Any]) -> str:
    line = json.dumps({"kind": kind, **body}, allow_nan=False)
    return line.replace("##[", "\\u0023#[") + "\n"


def draw(report: Report, out: TextIO, *, verbose: bool, annotate: bool = False) -> None:
    """Write ``report`` to ``out`` as tables, coloured on a terminal only.

    With ``annotate``, a report that has annotations adds them where GitHub's runner
    reads them.
    """
    if isinstance(report, VerifyReport):
        from step_cli.render import verify_table

        verify_table.draw(report, out, verbose=verbose, annotate=annotate)
        return
    from step_cli.render import result_tables

    result_tables.draw(report, console_for(out), verbose=verbose)


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
