"""A few lines on the terminal that are drawn anew while a command works.

Only where stderr is a terminal for it; elsewhere a command logs plain lines of what it
does. Drawing happens in a thread of its own, so work never waits.
"""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator

from rich.console import RenderableType
from rich.live import Live

from step_cli.render import status_line
from step_cli.render.rich_console import TerminalConsole

REFRESH_PER_S = 4


@contextlib.contextmanager
def showing(draw: Callable[[], RenderableType]) -> Iterator[None]:
    """Show what ``draw`` returns, below all that is logged, until the block ends.

    Args:
        draw: Called in another thread: it reads plain values and waits for nothing.
    """
    shown = Live(
        get_renderable=draw,
        console=TerminalConsole(sys.stderr),
        refresh_per_second=REFRESH_PER_S,
        transient=True,
        redirect_stdout=False,
    )
    with contextlib.suppress(OSError):  # the terminal is gone; the work is not
        shown.start()
        shown.console.show_cursor(True)  # a killed process could not bring it back
    handlers = [
        handler
        for handler in logging.getLogger("step_cli").handlers
        if isinstance(handler, logging.StreamHandler)
    ]
    streams = [handler.setStream(sys.stderr) for handler in handlers]
    try:
        with status_line.hidden():
            yield
    finally:
        with contextlib.suppress(OSError):
            shown.stop()
        for handler, stream in zip(handlers, streams, strict=True):
            if stream is not None:
                handler.setStream(stream)
