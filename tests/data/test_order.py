"""The batch of a step follows from the seed and its number alone."""

import pytest
import torch

from step_cli.data.batch import TensorSplit
from step_cli.data.order import batch_at, batches_of
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
