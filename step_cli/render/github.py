"""`--format github`: annotations of a workflow run, and the summary page of a job.

Source: GitHub, "Workflow commands for GitHub Actions". A step shows ten annotations of
each level, and a summary that is larger than 1 MiB is dropped.
"""

import logging
import os
from collections.abc import Iterator

from step_cli.render import markdown
from step_cli.render.text import one_line
from step_cli.render.verify_words import failing, unchecked, why_unchecked
from step_cli.reports import CheckpointVerdict, VerifyReport

log = logging.getLogger(__name__)

MOST = 10  # annotations of one level
LARGEST_SUMMARY = 1 << 20  # bytes
SHORTENED = "\n\nshortened: see the log of the job\n"


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
    if checkpoint.shortfall is not None:
        yield "error", "coverage", checkpoint.shortfall
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


def append_summary(report: VerifyReport) -> None:
    """Add the report to the file that the runner names; a failure is a warning."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    try:
        with open(path, "ab") as file:
            room = LARGEST_SUMMARY - 1 - file.tell()
            text = markdown.text(report, verbose=False) + "\n"
            file.write(_within(text.encode(), room))
    except OSError as error:
        log.warning("cannot write the summary to %s: %s", path, error.strerror)


def _within(text: bytes, room: int) -> bytes:
    """Cut at the end of a line, so no character is cut in two."""
    if len(text) <= room:
        return text
    kept = text[: max(0, room - len(SHORTENED))]
    return kept[: kept.rfind(b"\n") + 1] + SHORTENED.encode()[: max(0, room)]
