"""A share that is held out: the same from each class, and the same every time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from data.written import write_images, write_jsonl

from step_cli.config.data import DataSection
from step_cli.data.batch import Dataset, TensorSplit, fingerprint_of
from step_cli.data.held_out import drawn, set_aside
from step_cli.data.load import load_data
from step_cli.errors import InputError
from step_cli.training.run_directory import record_data, refuse_other_data


def split_of(labels: list[int]) -> TensorSplit:
    return TensorSplit({"x": torch.arange(len(labels))}, torch.tensor(labels))


def numbers(dataset: Dataset) -> tuple[list[int], list[int]]:
    return tuple(  # type: ignore[return-value]
        split[torch.arange(len(split))].inputs["x"].tolist()
        for split in (dataset.train, dataset.held_out)
    )


@pytest.mark.parametrize("period", [2, 4, 5, 10])
def test_no_pattern_of_rows_decides_what_is_held_out(period: int) -> None:
    """Rows that repeat with a period: evenly spaced ones would be of one class."""
    labels = [i % period for i in range(1000)]
    dataset = set_aside(split_of(labels), 1 / period, Path("x"))
    held = dataset.held_out[torch.arange(len(dataset.held_out))].labels
    counts = np.bincount(held, minlength=period)
    assert counts.sum() == 1000 // period and counts.max() - counts.min() <= 1


@pytest.mark.parametrize(
    ("sizes", "count", "given"),
    [
        ([90, 10], 10, [9, 1]),
        ([97, 3], 10, [9, 1]),  # one of a class of three, though its share is a third
        ([96, 2, 2], 90, [88, 1, 1]),
        ([99, 1], 10, [10, 0]),  # the only one is trained on
        ([1, 1, 1, 1], 2, [1, 1, 0, 0]),
        ([10, 10, 10], 1, [1, 0, 0]),
        ([2, 2], 3, [2, 1]),
    ],
)
def test_each_class_has_its_share(
    sizes: list[int], count: int, given: list[int]
) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    chosen = drawn(labels, count)
    assert len(set(chosen.tolist())) == count
    assert np.bincount(labels[chosen], minlength=len(sizes)).tolist() == given


def test_a_share_is_the_same_each_time_and_looks_random() -> None:
    first, second = (numbers(set_aside(split_of([0] * 200), 0.25, Path("x")))
                     for _ in range(2))  # fmt: skip
    assert first == second
    train, held_out = first
    assert sorted([*train, *held_out]) == list(range(200))
    gaps = np.diff(held_out)
    assert len(held_out) == 50 and len({*gaps.tolist()}) > 5
    assert 15 <= sum(n < 100 for n in held_out) <= 35


def test_regression_and_text_pairs_are_drawn_alike(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": i / 2 + 0.25} for i in range(20)]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    dataset = load_data(DataSection(source=str(path), held_out=0.2))
    assert (len(dataset.train), len(dataset.held_out)) == (16, 4)


def test_the_order_of_files_on_disk_decides_nothing(tmp_path: Path) -> None:
    def held(folder: Path) -> list[str]:
        section = DataSection(source=str(folder), held_out=0.3, image_size=8)
        split = load_data(section).held_out
        return sorted(split.split.paths[i].name for i in split.index)  # type: ignore[attr-defined]

    one = write_images(tmp_path / "one", count=10)
    other = tmp_path / "other"
    for path in sorted(one.rglob("*.JPEG"), reverse=True):
        target = other / path.relative_to(one)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    assert held(one) == held(other)


def test_a_run_does_not_go_on_with_another_share(tmp_path: Path) -> None:
    split = TensorSplit({"x": torch.zeros(100)}, torch.tensor([0, 1] * 50))
    begun = set_aside(split, 0.2, Path("x"))
    record_data(tmp_path, begun)
    refuse_other_data(tmp_path, set_aside(split, 0.2, Path("x")))
    # All samples look alike, so the numbers alone tell the shares apart.
    index = torch.arange(100)
    other = Dataset(
        type(begun.train)(split, index[20:]), type(begun.held_out)(split, index[:20])
    )
    assert fingerprint_of(begun) != fingerprint_of(other)
    with pytest.raises(InputError, match="another version of step-cli chose the share"):
        refuse_other_data(tmp_path, other)
