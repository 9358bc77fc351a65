"""`--format markdown`: tables for a job's summary page or a pull request."""

import re

from step_cli.render.text import one_line
from step_cli.render.verify_words import (
    COLUMNS,
    cells,
    messages,
    summary,
    worst_first,
)
from step_cli.reports import CheckpointVerdict, VerifyReport

MOST_ROWS = 50


def text(report: VerifyReport, *, verbose: bool) -> str:
    """One section for each checkpoint, the worst layers first."""
    most = None if verbose else MOST_ROWS
    return "\n".join(_section(verdict, most) for verdict in report.shown)


def _section(checkpoint: CheckpointVerdict, most: int | None) -> str:
    word = "ok" if checkpoint.ok else "FAILED"
    lines = [f"### verify-nm: {escaped(checkpoint.path)}: {word}", ""]
    lines += [escaped(summary(checkpoint)), ""]
    if checkpoint.error is not None:
        lines += [f"- {escaped(checkpoint.error.message)}"]
    found = messages(checkpoint)[:most]
    lines += [f"- {escaped(name)}: {escaped(text)}" for name, text in found]
    lines += [""] if lines[-1] else []
    return "\n".join(lines + _table(checkpoint, most)) + "\n"


def _table(checkpoint: CheckpointVerdict, most: int | None) -> list[str]:
    if not checkpoint.layers:
        return []
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|--:|--:|--:|--:|---|"]
    for layer in worst_first(checkpoint.layers)[:most]:
        name, *others = cells(layer)
        lines.append("| " + " | ".join([escaped(name), *others]) + " |")
    hidden = len(checkpoint.layers) - len(lines) + 2
    return lines + (["", f"and {hidden} more layers"] if hidden else [])


def escaped(text: str) -> str:
    """Text without a meaning in Markdown or HTML: what could have one is an entity."""
    return re.sub(r"[^\w .,;:/()'=-]|_|:(?![0-9 ])", _entity, one_line(text))


def _entity(match: re.Match[str]) -> str:
    return f"&#{ord(match[0])};"
