"""A module of ours in a process of its own: a JSON request in, a JSON answer out.

For what may crash, hang, grow without bound, or spoil the process that it runs in.
"""

import contextlib
import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Answer:
    """What the child returned, and what it and its libraries wrote to stderr."""

    document: dict[str, Any]
    stderr: str


class ChildDiedError(Exception):
    """The child ended without an answer.

    Attributes:
        signal: What ended it; 0 if it ended on its own.
        stderr: All that it wrote there.
    """

    def __init__(self, returncode: int, stderr: str) -> None:
        lines = stderr.strip().splitlines() or [f"exit {returncode}"]
        super().__init__(lines[-1])
        self.signal, self.stderr = max(0, -returncode), stderr


def ask(
    module: str, request: Mapping[str, Any], *, limit_s: float | None = None
) -> Answer:
    """Run a module that calls `answer`, and wait for what it returns.

    The child is killed if this process is interrupted.

    Args:
        module: Its dotted name.
        request: What it is given.
        limit_s: Processor time for its work, in seconds; not time on a clock, as a
            busy machine is no fault of the request.

    Raises:
        ChildDiedError: It ended without an answer.
        TimeoutError: It took too long.
    """
    # -P: the working directory may hold anything and is no place to import from.
    command = [sys.executable, "-P", "-m", module]
    given = json.dumps({"limit_s": limit_s, "request": request}).encode()
    done = subprocess.run(command, input=given, capture_output=True)
    if limit_s is not None and -done.returncode == signal.SIGXCPU:
        raise TimeoutError(f"took more than {limit_s:.0f} s of processor time")
    stderr = done.stderr.decode(errors="replace")
    try:
        return Answer(dict(json.loads(done.stdout)), stderr)
    except ValueError:
        raise ChildDiedError(done.returncode, stderr) from None


def answer(work: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """In the child: do the work that is requested, and return the result.

    What is printed meanwhile, by native libraries too, is dropped.
    """
    _end_with_the_parent()
    given = json.load(sys.stdin)
    if given["limit_s"] is not None:
        _limit_processor_time(given["limit_s"])
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        json.dump(work(given["request"]), out)


def _limit_processor_time(seconds: float) -> None:
    try:
        import resource
    except ImportError:
        return  # no Unix: nothing ends it
    limit = math.ceil(time.process_time() + seconds)
    allowed = resource.getrlimit(resource.RLIMIT_CPU)[1]  # by whoever started us
    if allowed != resource.RLIM_INFINITY:
        limit = min(limit, allowed)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, allowed))


def _end_with_the_parent() -> None:
    """Nobody waits for the answer once the parent is gone, even if it was killed."""
    with contextlib.suppress(Exception):  # Linux alone knows how
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
