"""The batch of a step follows from the seed and its number, read ahead or not."""

import threading

import pytest
import torch

from step_cli.data.batch import Batch, TensorSplit
from step_cli.data.order import ReadAhead, batch_at, batches_of
from step_cli.errors import InputError


def numbered(length: int) -> TensorSplit:
    numbers = torch.arange(length)
    return TensorSplit({"x": numbers * 10}, numbers)


def seen(split: TensorSplit, indices: range, seed: int = 0) -> list[int]:
    batches = [batch_at(split, index=i, size=4, seed=seed) for i in indices]
    return [int(label) for batch in batches for label in batch.labels]


def test_an_epoch_sees_each_sample_once_and_the_next_in_another_order() -> None:
    split = numbered(12)
    first, second = seen(split, range(3)), seen(split, range(3, 6))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_a_batch_is_the_same_in_whatever_order_it_is_asked_for() -> None:
    split = numbered(13)
    forth = [seen(split, range(i, i + 1)) for i in range(9)]
    back = [seen(split, range(i, i + 1)) for i in reversed(range(9))]
    assert forth == back[::-1]
    assert seen(split, range(3), seed=1) != seen(split, range(3), seed=2)


def test_inputs_stay_with_their_labels() -> None:
    batch = batch_at(numbered(9), index=5, size=4, seed=3)
    assert torch.equal(batch.inputs["x"], batch.labels * 10)
    assert len(batch) == 4


def test_a_split_smaller_than_a_batch_is_told() -> None:
    with pytest.raises(InputError, match="has 3 samples to train on, a batch needs 4"):
        batch_at(numbered(3), index=0, size=4, seed=0)


def evaluated(
    length: int, rank: int = 0, count: int = 1
) -> list[tuple[list[int], bool]]:
    batches = batches_of(numbered(length), 4, (rank, count))
    return [(batch.labels.tolist(), counts) for batch, counts in batches]


def test_all_samples_are_evaluated_in_order() -> None:
    assert evaluated(10) == [([0, 1, 2, 3], True), ([4, 5, 6, 7], True), ([8, 9], True)]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 3, 4, 5, 9, 12, 17, 24])
def test_processes_share_what_is_evaluated(length: int, count: int) -> None:
    shares = [evaluated(length, rank, count) for rank in range(count)]
    assert len({len(share) for share in shares}) == 1  # each is as often at work
    counted = [n for share in shares for numbers, counts in share if counts
               for n in numbers]  # fmt: skip
    assert sorted(counted) == list(range(length))
    assert all(numbers for share in shares for numbers, _ in share)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_a_batch(count: int) -> None:
    split = numbered(13)
    for index in range(7):
        whole = batch_at(split, index=index, size=4, seed=1)
        parts = [
            batch_at(split, index=index, size=4, seed=1, share=(rank, count))
            for rank in range(count)
        ]
        assert torch.equal(whole.labels, torch.cat([part.labels for part in parts]))
        assert {len(part) for part in parts} == {4 // count}


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
