"""CIFAR's binary files: what is read, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from data.written import cifar_records, write_cifar10, write_cifar100

from step_cli.config.data import DataSection
from step_cli.data.batch import Dataset
from step_cli.data.cifar import crop_and_flip
from step_cli.data.load import load_data
from step_cli.data.order import batch_at
from step_cli.errors import InputError


def load(path: Path, **more: object) -> Dataset:
    return load_data(DataSection(source=str(path), **more))  # type: ignore[arg-type]


def test_cifar10_gives_labels_and_scaled_planes(tmp_path: Path) -> None:
    dataset = load(write_cifar10(tmp_path / "cifar"))
    assert (len(dataset.train), len(dataset.held_out)) == (24, 8)
    raw = np.frombuffer(cifar_records(12, 1, 10, 2), np.uint8).reshape(-1, 3073)
    batch = dataset.train[torch.tensor([3, 12, 23])]  # the last two of the second file
    assert batch.labels.tolist()[1:] == [raw[0, 0], raw[11, 0]]
    pixels = batch.inputs["pixel_values"]
    assert pixels.shape == (3, 3, 32, 32) and pixels.dtype == torch.float32
    green = (raw[11, 1 + 1024 : 1 + 2048].reshape(32, 32) / 255 - 0.4822) / 0.2435
    np.testing.assert_allclose(pixels[2, 1].numpy(), green, rtol=1e-4, atol=1e-6)


def test_cifar100_has_the_fine_label(tmp_path: Path) -> None:
    dataset = load(write_cifar100(tmp_path / "cifar"))
    raw = np.frombuffer(cifar_records(12, 2, 100, 1), np.uint8).reshape(-1, 3074)
    assert dataset.train[torch.arange(12)].labels.tolist() == raw[:, 1].tolist()
    assert len(dataset.held_out) == 8


def test_training_sees_crops_that_follow_from_seed_and_step(tmp_path: Path) -> None:
    path = write_cifar10(tmp_path / "cifar")
    plain, varied = load(path, augment=False).train, load(path).train
    one, again, other = (
        batch_at(split, index=5, size=8, seed=seed).inputs["pixel_values"]
        for split, seed in ((varied, 1), (load(path).train, 1), (varied, 2))
    )
    assert torch.equal(one, again) and not torch.equal(one, other)
    still = batch_at(plain, index=5, size=8, seed=1).inputs["pixel_values"]
    assert not torch.equal(one, still)
    index = torch.arange(8)
    seen = (varied[index].inputs["pixel_values"], plain[index].inputs["pixel_values"])
    assert torch.equal(*seen)  # what is measured is never varied


def test_a_crop_is_a_window_of_the_padded_image_or_its_mirror() -> None:
    pixels = torch.arange(1, 1 + 40 * 3 * 6 * 6).view(40, 3, 6, 6)
    cropped = crop_and_flip(pixels, 2, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(pixels, (2, 2, 2, 2))
    seen = set()
    for image, crop in zip(padded, cropped, strict=True):
        windows = {
            (top, left, flip): window.flip(-1) if flip else window
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
            for window in [image[:, top : top + 6, left : left + 6]]
        }
        seen |= {
            place for place, window in windows.items() if torch.equal(window, crop)
        }
    assert {flip for *_, flip in seen} == {False, True}
    assert {top for top, *_ in seen} == {left for _, left, _ in seen} == {*range(5)}


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("data_batch_2.bin", lambda raw: raw[:-1], "36875 bytes are not a whole"),
        ("data_batch_1.bin", lambda raw: b"", "file is empty"),
        ("test_batch.bin", lambda raw: raw[:3073] + b"\x0a" + raw[3074:],
         "record 1: label 10 is none of 0 to 9"),
        ("test_batch.bin", None, "no such file"),
    ],
)  # fmt: skip
def test_damaged_files_are_told(
    tmp_path: Path, name: str, change: object, words: str
) -> None:
    file = write_cifar10(tmp_path / "cifar") / name
    if callable(change):
        file.write_bytes(change(file.read_bytes()))
    else:
        file.unlink()
    with pytest.raises(InputError, match=words) as error:
        load(tmp_path / "cifar")
    assert error.value.file == str(file)


def test_cifar100_read_as_cifar10_is_told(tmp_path: Path) -> None:
    path = write_cifar100(tmp_path / "cifar")
    with pytest.raises(InputError, match=r"has no data_batch_1\.bin"):
        load(path, kind="cifar10")
