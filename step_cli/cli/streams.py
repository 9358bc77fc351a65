"""Only results reach stdout, logs go to stderr, and any stream may be closed."""

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import TextIO

from typing_extensions import override

from step_cli.render import status_line
from step_cli.render.text import one_line


class ClosedStdout(io.StringIO):
    """Stands for a stdout that was closed before the process began."""


@contextlib.contextmanager
def results_only_on_stdout(quiet: bool = False) -> Iterator[TextIO]:
    """Yield the real stdout, and send to stderr whatever libraries print.

    Native libraries write to descriptor 1 directly, so the descriptor itself moves.

    Args:
        quiet: Drop what libraries print, and their warnings.
    """
    was_closed = _open_what_is_closed()
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is not None:
        sys.stdout.flush()
    out: TextIO = ClosedStdout()
    if not was_closed:
        out = open(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    prints = _dropped() if quiet else sys.stderr
    os.dup2(prints.fileno() if quiet else 2, 1)
    # Typer prints help and version itself; whatever else is printed is no result.
    shows = {"--help", "-h", "--version"}.intersection(sys.argv[1:])
    python_stdout, sys.stdout = sys.stdout, out if shows else prints
    try:
        yield out
    finally:
        sys.stdout = python_stdout
        with contextlib.suppress(OSError):  # met and judged when the result was written
            out.close()


def _dropped() -> TextIO:
    """Silence the warnings of libraries; return what drops all that is written."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    return open(os.devnull, "w", encoding="utf-8")


def _open_what_is_closed() -> bool:
    """Give each closed standard descriptor a file, or the next output would get it.

    Returns:
        Whether stdout was closed.
    """
    closed = []
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            closed.append(descriptor)
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    return 1 in closed


class OneLine(logging.Formatter):
    """``level: message`` on one line, as names come from files; tracebacks stay."""

    @override
    def formatMessage(self, record: logging.LogRecord) -> str:
        return f"{record.levelname}: {one_line(record.message)}"


class Handler(logging.StreamHandler[TextIO]):
    """Writes lines where the status line stood."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        with status_line.hidden():
            super().emit(record)


def log_to_stderr(*, quiet: bool, verbose: bool) -> None:
    """Show what step-cli logs: errors only, notes too, or everything."""
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO
    logging.addLevelName(logging.WARNING, "warning")
    logging.addLevelName(logging.INFO, "note")
    logging.addLevelName(logging.DEBUG, "note")
    logging.addLevelName(logging.ERROR, "error")
    handler = Handler(sys.stderr)
    handler.setFormatter(OneLine())
    logger = logging.getLogger("step_cli")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level)
