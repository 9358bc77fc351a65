"""Ctrl-C and SIGTERM, from the first moment of a process to its last.

While modules are imported a signal is only noted: an exception there comes out as
something else. Then it raises; and once it has, or the result is shown, a signal ends
the process at once and prints nothing.
"""

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from step_cli.errors import INTERRUPTED, STOPPED, StoppedError

CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: STOPPED}
if hasattr(signal, "SIGUSR1"):  # sent by batch systems when time is up
    CODES[signal.SIGUSR1] = STOPPED
_noted: list[int] | None = None  # None: the process is not ours, but a caller's
_raised: BaseException | None = None


def note() -> None:
    """Only remember signals, until :func:`let_raise`."""
    global _noted
    if _noted is None:
        _noted = []
        _handle(lambda number, frame: _noted.append(number))


def let_raise() -> None:
    """Let signals raise from now on, one that was noted too.

    Raises:
        KeyboardInterrupt: Ctrl-C came before.
        StoppedError: SIGTERM came before.
    """
    if _noted is not None:
        _handle(_raise)
        if _noted:
            _raise(_noted[0], None)


def raised() -> BaseException | None:
    """What a signal has raised, or None.

    A library may have caught it, and ended in an error of its own.
    """
    return _raised


def let_end() -> None:
    """Let a signal end the process from now on; nothing is left to be shown."""
    if _noted is not None:
        _handle(lambda number, frame: os._exit(CODES[signal.Signals(number)]))


def let_finish() -> None:
    """Let no request to stop change the exit code of a process that has failed.

    While Python ends it has no handlers, and a signal would kill the process: the
    second one of a scheduler, or the one of `torchrun` to all that still run.
    """
    if _noted is not None:
        for number in CODES.keys() - {signal.SIGINT}:
            signal.signal(number, signal.SIG_IGN)


def _raise(number: int, frame: FrameType | None) -> None:
    global _raised
    let_end()
    if number == signal.SIGINT:
        _raised = KeyboardInterrupt()
    else:
        _raised = StoppedError("stopped on request, nothing written; run it again")
    raise _raised


def _handle(handler: Callable[[int, FrameType | None], Any]) -> None:
    for number in CODES:
        signal.signal(number, handler)
