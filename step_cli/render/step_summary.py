"""The report on the summary page of a GitHub workflow run."""

import logging
import os

from step_cli.render import markdown
from step_cli.reports import VerifyReport

log = logging.getLogger(__name__)

LARGEST = 1 << 20  # bytes; GitHub drops a summary that is larger
SHORTENED = "\n\nshortened: see the log of the job\n"


def append(report: VerifyReport) -> None:
    """Add the report to the file that the runner names; a failure is a warning."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    try:
        with open(path, "ab") as file:
            room = LARGEST - 1 - file.tell()
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
