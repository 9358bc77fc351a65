"""Tasks on threads give what they give one by one, and stop when nobody listens."""

import threading
import time
from functools import partial

import pytest

from step_cli.nm.groups import Scratch
from step_cli.nm.threads import in_order, own_scratch, workers


def late(number: int) -> int:
    time.sleep(0.001 * (number % 3))
    return number


@pytest.mark.parametrize("threads", [False, True])
def test_results_come_in_the_order_of_their_tasks(threads: bool) -> None:
    tasks = (partial(late, number) for number in range(40))
    assert list(in_order(tasks, threads=threads)) == list(range(40))


def test_tasks_are_taken_only_a_little_ahead() -> None:
    taken = []

    def tasks():  # type: ignore[no-untyped-def]
        for number in range(1000):
            taken.append(number)
            yield partial(late, number)

    results = in_order(tasks())
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert len(taken) <= 3 + 2 * workers()
    results.close()


def test_an_error_reaches_the_caller_in_its_place() -> None:
    def fail() -> int:
        raise ValueError("no")

    results = in_order([partial(late, 1), fail, partial(late, 3)])
    assert next(results) == 1
    with pytest.raises(ValueError, match="no"):
        next(results)


def test_each_thread_has_a_scratch_of_its_own() -> None:
    mine, others = own_scratch(), list[Scratch]()
    thread = threading.Thread(target=lambda: others.append(own_scratch()))
    thread.start()
    thread.join()
    assert own_scratch() is mine and others[0] is not mine
