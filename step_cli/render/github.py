"""`--format github`: annotations of a workflow run.

Source: GitHub, "Workflow commands for GitHub Actions". A step shows ten annotations of
each level.
"""

from collections.abc import Iterator

from step_cli.render.text import one_line
from step_cli.render.verify_words import failing, unchecked, why_unchecked
from step_cli.reports import CheckpointVerdict, VerifyReport

MOST = 10  # annotations of one level


def text(report: VerifyReport) -> str:
    """A line for each finding; of each level the first ten, and how many more."""
    found: dict[str, list[str]] = {"error": [], "warning": []}
    for checkpoint in report.shown:
        for level, title, message in _findings(checkpoint):
            found[level].append(_command(level, checkpoint.path, title, message))
    lines = []
    for level, commands in found.items():
        lines += commands[:MOST]
        if commands[MOST:]:
            # A notice, as the eleventh of a level is not shown.
            more = f"and {len(commands) - MOST} more"
            lines.append(f"::notice title=verify-nm {level}s::{more}")
    return "".join(line + "\n" for line in lines)


def _findings(checkpoint: CheckpointVerdict) -> Iterator[tuple[str, str, str]]:
    layers = failing(checkpoint)
    for layer in layers:
        yield "error", layer.name, layer.message or ""
    for tensor in unchecked(checkpoint):
        level = "warning" if tensor.ok else "error"
        yield level, tensor.name, why_unchecked(tensor)
    if checkpoint.error is not None and not layers:
        yield "error", checkpoint.error.tensor or "verify-nm", checkpoint.error.message


def _command(level: str, path: str, title: str, message: str) -> str:
    where = f"file={in_property(path)},title={in_property(one_line(title, 120))}"
    return (
        f"::{level} {where}::{in_data(one_line(title))}: {in_data(one_line(message))}"
    )


def in_data(text: str) -> str:
    """Text of a command, on one line."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def in_property(text: str) -> str:
    """The value of a property, which ends at a colon or comma."""
    escaped = in_data(one_line(text))
    return escaped.replace(":", "%3A").replace(",", "%2C")
