"""Only results reach stdout, whatever libraries print; any stream may be closed."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO


class ClosedStdout(io.StringIO):
    """Stands for a stdout that was closed before the process began."""


@contextlib.contextmanager
def results_only_on_stdout() -> Iterator[TextIO]:
    """Yield the real stdout, and send to stderr whatever libraries print.

    Native libraries write to descriptor 1 directly, so the descriptor itself moves.
    """
    was_closed = _open_what_is_closed()
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is not None:
        sys.stdout.flush()
    out: TextIO = ClosedStdout()
    if not was_closed:
        out = open(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    os.dup2(2, 1)
    # Typer prints help and version itself; whatever else is printed is no result.
    shows = {"--help", "-h", "--version"}.intersection(sys.argv[1:])
    python_stdout, sys.stdout = sys.stdout, out if shows else sys.stderr
    try:
        yield out
    finally:
        sys.stdout = python_stdout
        with contextlib.suppress(OSError):  # met and judged when the result was written
            out.close()


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
