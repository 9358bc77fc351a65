"""Stopping on request: the step is finished, then the run can be resumed."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from step_cli.errors import INTERRUPTED, StoppedError
from step_cli.training.distributed import Processes

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGUSR1", "SIGINT")
    if hasattr(signal, name)
)


@dataclass
class StopRequest:
    """Whether a signal to stop came, to this process or any of those it trains with.

    All see it at the same step. What has come is exchanged while a step
    computes, so that none waits for it; a request counts one step later then.

    Attributes:
        processes: The processes.
        signal_number: What came, to any process once all know.
    """

    processes: Processes
    signal_number: int | None = None
    _pending: Callable[[], int] | None = None
    _agreed: bool = False

    def __call__(self) -> bool:
        """Whether the loop is to end after this step; to be called once a step."""
        if self.processes.size == 1 or self._agreed:
            return self.signal_number is not None
        heard = self._pending() if self._pending else 0
        if heard:
            self.signal_number, self._agreed = heard, True
            return True
        self._pending = self.processes.begin_max(self.signal_number or 0)
        return False

    def stopped_at(self, step: int) -> StoppedError:
        """What the command ends with."""
        return self.stopped(f"stopped at step {step}, go on with --resume")

    def stopped(self, message: str) -> StoppedError:
        """The same in other words."""
        code = INTERRUPTED if self.signal_number == signal.SIGINT else None
        return StoppedError(message, code)


@contextlib.contextmanager
def stop_on_request(processes: Processes) -> Iterator[StopRequest]:
    """Let a first signal only be noted; a second one ends the process at once."""
    request = StopRequest(processes)
    before: dict[int, Any] = {}

    def restore() -> None:
        for each, handler in before.items():
            signal.signal(each, handler)

    def note(number: int, frame: FrameType | None) -> None:
        request.signal_number = number
        for each in before:
            signal.signal(each, end)

    def end(number: int, frame: FrameType | None) -> None:
        restore()
        request.signal_number = number
        raise request.stopped(
            "stopped at once, within a step; --resume goes on from "
            "the last checkpoint if there is one"
        )

    with contextlib.suppress(ValueError):  # not the main thread: no signals here
        for each in SIGNALS:
            before[each] = signal.signal(each, note)
    try:
        yield request
    finally:
        restore()
