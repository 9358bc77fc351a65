"""Reading ahead changes when a batch is read, and nothing else."""

import threading

import pytest
import torch

from step_cli.data.ahead import ReadAhead
from step_cli.data.batch import Batch
from step_cli.errors import InputError


class Reads:
    """Remembers what was read, and in which thread."""

    def __init__(self, broken: int | None = None) -> None:
        self.seen: list[tuple[int, bool]] = []
        self.broken = broken
        self.done = threading.Event()

    def __call__(self, index: int) -> Batch:
        here = threading.current_thread() is threading.main_thread()
        self.seen.append((index, here))
        if index == self.broken:
            raise InputError(f"sample {index} is bad")
        return Batch({"x": torch.tensor([index])}, torch.tensor([index]))


def test_batches_in_order_are_read_once_and_all_but_the_first_ahead() -> None:
    reads = Reads()
    with ReadAhead(reads) as batches:
        assert [int(batches[i].labels) for i in range(5, 9)] == [5, 6, 7, 8]
    assert reads.seen[0] == (5, True)
    assert [index for index, _ in reads.seen[1:4]] == [6, 7, 8]
    assert not any(here for _, here in reads.seen[1:])


def test_a_jump_gives_the_batch_that_was_asked_for() -> None:
    with ReadAhead(Reads()) as batches:
        assert [int(batches[i].labels) for i in (3, 10, 0, 1, 1)] == [3, 10, 0, 1, 1]


def test_an_error_is_raised_where_its_batch_is_asked_for() -> None:
    with ReadAhead(Reads(broken=2)) as batches:
        assert int(batches[0].labels) == 0
        assert int(batches[1].labels) == 1
        with pytest.raises(InputError, match="sample 2 is bad"):
            batches[2]
        assert int(batches[3].labels) == 3


def test_a_batch_that_is_never_asked_for_raises_nothing() -> None:
    with ReadAhead(Reads(broken=1)) as batches:
        assert int(batches[0].labels) == 0
