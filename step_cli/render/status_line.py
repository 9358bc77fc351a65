"""One line on the terminal that names what a command works on, and for how long.

Only where stderr is a terminal for it, and only for work of more than a second. It is
drawn in a thread of its own, and is gone before anything else is printed. What changes
while a run is trained is shown by `live_display` instead; this starts without rich.
"""

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TextIO

from step_cli.render.console import is_plain
from step_cli.render.text import duration, one_line

SHOWN_AFTER_S = 1.0
EVERY_S = 0.25
ERASE = "\r\x1b[2K"


def is_possible() -> bool:
    """Whether stderr can show it, and notes are not silenced by --quiet."""
    notes = logging.getLogger("step_cli").isEnabledFor(logging.INFO)
    return notes and not is_plain(sys.stderr)


@dataclass(eq=False)
class _Work:
    """What is worked on, and since when, in seconds of the monotonic clock."""

    name: str
    since: float


@dataclass
class _Line:
    """The line of this process; ``works`` are nested, the last is the innermost."""

    works: list[_Work] = field(default_factory=list)
    stream: TextIO | None = None
    hidden: int = 0
    drawn: bool = False
    thread: threading.Thread | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)

    def draw(self) -> None:
        """Draw what takes long, or nothing."""
        work = self.long_enough()
        if work is None or self.hidden:
            self.erase()
            return
        took = f"  {duration(time.monotonic() - work.since)}"
        width = max(_columns(self.stream) - len(took) - 1, 0)
        name = one_line(work.name, max(width - len("..."), 0))[:width]
        self.write(f"{ERASE}{name}{took}")
        self.drawn = True

    def long_enough(self) -> _Work | None:
        """The innermost work that has taken long enough to be named."""
        now = time.monotonic()
        old = [work for work in self.works if now - work.since >= SHOWN_AFTER_S]
        return old[-1] if old else None

    def erase(self) -> None:
        """Remove it, so that the next output begins an empty line."""
        if self.drawn:
            self.write(ERASE)
            self.drawn = False

    def write(self, text: str) -> None:
        """Write to the terminal, if it is still there."""
        if self.stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self.stream.write(text)
                self.stream.flush()

    def keep_drawing(self) -> None:
        """Draw until nothing is worked on any more."""
        while True:
            time.sleep(EVERY_S)
            with self.lock:
                if not self.works:
                    self.thread = None
                    return
                self.draw()


_line = _Line()


@contextlib.contextmanager
def working_on(name: str) -> Iterator[Callable[[str], None]]:
    """Name what is worked on in the block, or in the function that this decorates.

    Args:
        name: Such as ``reading model.safetensors``.

    Yields:
        A function that gives the work another name.
    """
    if not _line.works and not is_possible():
        yield lambda name: None
        return
    work = _Work(name, time.monotonic())
    with _line.lock:
        if not _line.works:  # what silences libraries replaces sys.stderr later
            _line.stream = sys.stderr
        _line.works.append(work)
        if _line.thread is None:
            _line.thread = threading.Thread(target=_line.keep_drawing, daemon=True)
            _line.thread.start()
    try:
        yield lambda name: setattr(work, "name", name)
    finally:
        with _line.lock:
            _line.works.remove(work)
            _line.erase()


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Keep the line away while something else is printed."""
    with _line.lock:
        _line.hidden += 1
        _line.erase()
    try:
        yield
    finally:
        with _line.lock:
            _line.hidden -= 1


def current() -> str | None:
    """What has been worked on for more than a second, for another display."""
    with _line.lock:
        work = _line.long_enough()
        return None if work is None else one_line(work.name)


def _columns(stream: TextIO | None) -> int:
    try:
        assert stream is not None
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
