"""What the names of files tell about how they are read."""

import os
from pathlib import Path
from typing import Any

import pytest
from data.written import (
    write_cifar10,
    write_cifar100,
    write_images,
    write_parquet,
    write_sst2,
    write_wikitext,
    write_wmt,
)

from step_cli.config.data import DataSection
from step_cli.data.files import kind_of
from step_cli.data.load import load_data
from step_cli.errors import InputError, UsageError


def kind(path: Path, **more: Any) -> str:
    return kind_of(DataSection(source=str(path), **more))


def write_hub(folder: Path) -> Path:
    write_parquet(folder / "data" / "train-00000-of-00001.parquet", [{"text": "x"}])
    (folder / "README.md").write_text("# A data set")
    return folder


def write_tokens(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name in ("train", "val"):
        (folder / f"{name}.bin").write_bytes(bytes(100))
    return folder


@pytest.mark.parametrize(
    ("write", "wanted"),
    [
        (write_cifar10, "cifar10"),
        (write_cifar100, "cifar100"),
        (write_images, "images"),
        (write_sst2, "table"),
        (write_hub, "table"),
        (write_wikitext, "text"),
        (write_tokens, "text"),
        (write_wmt, "parallel"),
    ],
)
def test_a_directory_is_known_by_its_files(
    tmp_path: Path, write: Any, wanted: str
) -> None:
    path = write(tmp_path / "data")
    assert kind(path) == wanted
    (path / ".DS_Store").write_bytes(b"\0")
    (path / "LICENSE").write_text("terms")
    assert kind(path) == wanted


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("a.tsv", "table"), ("a.csv", "table"), ("a.jsonl", "table"), ("a.json", "table"),
     ("a.parquet", "table"), ("a.txt", "text"), ("a.raw", "text"), ("a.bin", "text")],
)  # fmt: skip
def test_a_file_is_known_by_its_suffix(tmp_path: Path, name: str, wanted: str) -> None:
    (tmp_path / name).write_text("x")
    assert kind(tmp_path / name) == wanted
    if wanted == "table":
        assert kind(tmp_path / name, languages=("de", "en")) == "parallel"


def test_what_cannot_be_told_is_said_with_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "weights.npz").write_bytes(b"x")
    for path in (tmp_path, tmp_path / "weights.npz"):
        with pytest.raises(InputError, match="its kind is not clear") as error:
            kind(path)
        assert error.value.file == str(path)
        assert "\n" not in error.value.message and "parallel" in error.value.message
    assert kind(tmp_path, kind="text") == "text"
    with pytest.raises(InputError, match="no such file or directory"):
        kind(tmp_path / "none", kind="text")


@pytest.mark.parametrize("kind", ["table", "text", "parallel", "cifar10", "images"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "pipe.tsv")
    (tmp_path / "loop.tsv").symlink_to("loop.tsv")
    for name in ("pipe.tsv", "loop.tsv", "none.tsv", "n" * 5000, "nul\0byte"):
        more = {"languages": ("de", "en")} if kind == "parallel" else {}
        held_out = {} if kind == "cifar10" else {"held_out": 0.5}
        section = DataSection(
            source=str(tmp_path / name), kind=kind, **more, **held_out
        )  # type: ignore[arg-type]
        with pytest.raises(InputError):
            load_data(section)


def test_a_key_that_does_not_apply_to_what_was_found_is_told(tmp_path: Path) -> None:
    write_wikitext(tmp_path)
    assert kind(tmp_path, length=64) == "text"
    with pytest.raises(
        UsageError, match=r"data\.augment does not apply to kind 'text', a"
    ):
        kind(tmp_path, augment=True)
