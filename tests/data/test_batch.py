"""Other data are noticed, the same data elsewhere are not."""

import shutil
from pathlib import Path

import torch
from data.written import write_cifar10, write_sst2, write_tokenizer

from step_cli.config.data import DataSection
from step_cli.data.batch import (
    FINGERPRINT_SAMPLES,
    Dataset,
    TensorSplit,
    fingerprint_of,
)
from step_cli.data.load import load_data


def load(path: Path, **more: object) -> Dataset:
    return load_data(DataSection.model_validate({"source": str(path), **more}))


def test_the_same_data_at_another_place_are_the_same(tmp_path: Path) -> None:
    here = write_cifar10(tmp_path / "here")
    shutil.copytree(here, tmp_path / "there")
    assert fingerprint_of(load(here)) == fingerprint_of(load(tmp_path / "there"))
    assert fingerprint_of(load(here))["train"]["samples"] == 24


def test_another_pixel_label_or_sample_is_seen(tmp_path: Path) -> None:
    path = write_cifar10(tmp_path / "cifar")
    begun = fingerprint_of(load(path))
    raw = bytearray((path / "data_batch_1.bin").read_bytes())
    raw[100] ^= 1
    (path / "data_batch_1.bin").write_bytes(raw)
    assert fingerprint_of(load(path))["train"] != begun["train"]
    assert fingerprint_of(load(path))["held_out"] == begun["held_out"]
    (path / "test_batch.bin").write_bytes((path / "test_batch.bin").read_bytes()[:3073])
    assert fingerprint_of(load(path))["held_out"]["samples"] == 1


def test_another_tokenizer_is_seen(tmp_path: Path) -> None:
    path, tokenizer = write_sst2(tmp_path / "sst2"), write_tokenizer(tmp_path / "t")
    assert fingerprint_of(load(path)) == fingerprint_of(load(path, tokenizer="bytes"))
    other = load(path, tokenizer=str(tokenizer))
    assert fingerprint_of(load(path)) != fingerprint_of(other)


def test_large_splits_are_looked_at_in_a_few_places() -> None:
    class Counted(TensorSplit):
        looked_at = 0

        def __getitem__(self, index: torch.Tensor):  # type: ignore[no-untyped-def]
            Counted.looked_at += len(index)
            return super().__getitem__(index)

    split = Counted({"x": torch.arange(10_000)}, torch.zeros(10_000))
    identity = fingerprint_of(Dataset(split, TensorSplit({}, torch.zeros(1))))
    assert identity["train"]["samples"] == 10_000
    assert Counted.looked_at == FINGERPRINT_SAMPLES
