"""When a case of the fuzzer takes too long, on however busy a machine."""

import signal
from types import FrameType

HANG_S = 60  # of processor time; ends a case that would never end
STUCK_S = 900  # on the wall, however busy the machine; ends one that only waits


class HangError(BaseException):
    """A case took too long."""


class Clock:
    """Ends what takes too long, and remembers that it did."""

    def __init__(self) -> None:
        self.rang = False

    def _ring(self, number: int, frame: FrameType | None) -> None:
        self.rang = True
        raise HangError

    def __enter__(self) -> "Clock":
        self.rang = False
        for number in (signal.SIGPROF, signal.SIGALRM):
            signal.signal(number, self._ring)
        set_timers(HANG_S, STUCK_S)
        return self

    def __exit__(self, *raised: object) -> None:
        set_timers(0, 0)
        if self.rang:  # the command itself takes it for a bug of its own
            raise HangError


def set_timers(processor_s: float, wall_s: int) -> None:
    """Signal this process after so much processor time, and so much time; 0: never."""
    signal.setitimer(signal.ITIMER_PROF, processor_s)
    signal.alarm(wall_s)
