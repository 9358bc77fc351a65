"""What writes each kind of report in each format: the others are not even imported."""

import io
import json
from typing import Any, TextIO

from step_cli.render.console import console_for
from step_cli.reports import Report, VerifyReport


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


def text(report: Report, format: str, *, verbose: bool) -> str:
    """The report in ``format``; only `verify-nm` has others than table and json."""
    if format == "table" or not isinstance(report, VerifyReport):
        out = io.StringIO()
        draw(report, out, verbose=verbose)
        return out.getvalue()
    if format == "jsonl":
        return _json_lines(report)
    if format == "markdown":
        from step_cli.render import markdown

        return markdown.text(report, verbose=verbose)
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
