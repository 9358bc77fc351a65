"""A run goes on with the data it began with, wherever they are, and with no others."""

import json
import shutil
from pathlib import Path

import pytest
from data.written import write_cifar10

from step_cli.config.data import DataSection
from step_cli.data.batch import Dataset
from step_cli.data.load import load_data
from step_cli.errors import InputError
from step_cli.training.run_directory import DATA_FILE, record_data, refuse_other_data


def load(path: Path) -> Dataset:
    return load_data(DataSection(source=str(path)))


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    path = write_cifar10(tmp_path / "cifar")
    record_data(tmp_path, load(path))
    return path


def test_the_same_data_elsewhere_are_taken(tmp_path: Path, cifar: Path) -> None:
    refuse_other_data(tmp_path, load(cifar))
    refuse_other_data(tmp_path, load(shutil.copytree(cifar, tmp_path / "moved")))
    assert json.loads((tmp_path / DATA_FILE).read_text())["train"]["samples"] == 24


def test_another_number_of_samples_is_told(tmp_path: Path, cifar: Path) -> None:
    file = cifar / "data_batch_1.bin"
    file.write_bytes(file.read_bytes()[:3073])
    with pytest.raises(InputError, match="13 samples to train on, were 24") as error:
        refuse_other_data(tmp_path, load(cifar))
    assert error.value.file == str(tmp_path)


def test_other_samples_are_told(tmp_path: Path, cifar: Path) -> None:
    file = cifar / "test_batch.bin"
    raw = bytearray(file.read_bytes())
    raw[5] ^= 1
    file.write_bytes(raw)
    with pytest.raises(InputError, match="the 8 samples held out are others than they"):
        refuse_other_data(tmp_path, load(cifar))


@pytest.mark.parametrize("content", ["{", '{"train": 3}', None])
def test_a_damaged_record_is_told(
    tmp_path: Path, cifar: Path, content: str | None
) -> None:
    if content is None:
        (tmp_path / DATA_FILE).unlink()
    else:
        (tmp_path / DATA_FILE).write_text(content)
    with pytest.raises(InputError):
        refuse_other_data(tmp_path, load(cifar))
