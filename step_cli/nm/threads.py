"""Tasks on all cores, results in order. NumPy frees the interpreter as it works."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from step_cli.nm.groups import Scratch

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

R = TypeVar("R")
_own = threading.local()


def workers() -> int:
    """How many threads work at a time."""
    return min(8, os.cpu_count() or 1)


def in_order(tasks: Iterable[Callable[[], R]], *, threads: bool = True) -> Iterator[R]:
    """Run tasks a few ahead of the one whose result is due.

    Args:
        tasks: Taken from one by one, as they are started.
        threads: Whether there is enough to do for threads to pay.
    """
    if not threads:
        yield from (task() for task in tasks)
        return
    ahead: deque[Future[R]] = deque()
    try:
        for task in tasks:
            ahead.append(_pool().submit(task))
            if len(ahead) > 2 * workers():
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        for waiting in ahead:
            waiting.cancel()


def own_scratch() -> Scratch:
    """The scratch of this thread, kept from one task to the next."""
    if not hasattr(_own, "scratch"):
        _own.scratch = Scratch()
    scratch: Scratch = _own.scratch
    return scratch


@cache
def _pool() -> "ThreadPoolExecutor":
    from concurrent.futures import ThreadPoolExecutor  # takes 10 ms

    return ThreadPoolExecutor(workers())
