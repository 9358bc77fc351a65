"""The batch of a step follows from the seed and its number alone."""

import pytest
import torch

from step_cli.data import TensorSplit, batch_at, batches_of
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


def test_all_samples_are_evaluated_in_order() -> None:
    sizes, labels = [], []
    for batch in batches_of(numbered(10), 4):
        sizes.append(len(batch))
        labels += batch.labels.tolist()
    assert sizes == [4, 4, 2] and labels == list(range(10))
