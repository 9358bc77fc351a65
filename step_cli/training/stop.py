"""Stopping on request: the step is finished, then the run can be resumed."""

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from step_cli.errors import INTERRUPTED, StoppedError

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGUSR1", "SIGINT")
    if hasattr(signal, name)
)


@dataclass
class StopRequest:
    """Which signal asked to stop, if one did."""

    signal_number: int | None = None

    def __call__(self) -> bool:
        """Whether the loop is to end after this step."""
        return self.signal_number is not None

    def stopped_at(self, step: int) -> StoppedError:
        """What the command ends with."""
        code = INTERRUPTED if self.signal_number == signal.SIGINT else None
        return StoppedError(f"stopped at step {step}, go on with --resume", code)


@contextlib.contextmanager
def stop_on_request() -> Iterator[StopRequest]:
    """Let a first signal only be noted; a second one ends the process at once."""
    request = StopRequest()
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        request.signal_number = number
        for each, handler in before.items():
            signal.signal(each, handler)

    with contextlib.suppress(ValueError):  # not the main thread: no signals here
        for each in SIGNALS:
            before[each] = signal.signal(each, note)
    try:
        yield request
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
