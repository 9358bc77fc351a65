"""docs/data.md: every kind with its keys, and examples that work as they stand."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from data.written import (
    write_cifar10,
    write_images,
    write_sst2,
    write_tokenizer,
    write_wikitext,
    write_wmt,
)

from step_cli.config.data import BUILT_IN, KEYS_OF
from step_cli.config.train import load_config
from step_cli.data.files import HELD_OUT, kind_of
from step_cli.data.load import load_data
from step_cli.data.order import batches_of
from step_cli.data.table import LABEL_COLUMNS, TEXT_COLUMNS, Labels
from step_cli.data.tokens import LENGTH, ByteTokenizer

TEXT = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S))


def section(kind: str) -> str:
    return next(t for name, t in SECTIONS.items() if kind in name.split())


@pytest.mark.parametrize("kind", KEYS_OF)
def test_every_kind_has_its_keys_and_no_others(kind: str) -> None:
    told = re.findall(r"^\* `(\w+)`", section(kind), re.M)
    assert sorted(told) == sorted(KEYS_OF[kind])  # type: ignore[index]


def test_names_and_numbers_are_those_of_the_code() -> None:
    (told,) = re.findall(r"sample\s+model\s+\((.*?)\)", TEXT, re.S)
    assert set(re.findall(r"`(.*?)`", told)) <= set(BUILT_IN)
    for word in HELD_OUT:
        assert f"`{word}`" in TEXT
    assert f"`length` ({LENGTH})" in section("table")
    assert f"{ByteTokenizer.end + 1} tokens" in section("table")
    for column in {*sum(TEXT_COLUMNS, ()), *LABEL_COLUMNS} - {"#1 String", "#2 String"}:
        assert f"`{column}`" in section("table"), column
    assert Labels().read("3") == 3


def write_wmt17(folder: Path) -> None:
    for file in write_wmt(folder).glob("valid.*"):
        file.rename(folder.parent / f"newstest2014{file.suffix}")


@pytest.mark.parametrize(
    ("kind", "write"),
    [
        ("cifar10", write_cifar10),
        ("images", write_images),
        ("table", write_sst2),
        ("text", write_wikitext),
        ("parallel", write_wmt17),
    ],
)
def test_the_examples_read_what_they_are_for(
    tmp_path: Path, kind: str, write: Any
) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", section(kind), re.S)
    data = tomllib.loads(example)["data"]
    write(tmp_path / data["source"])
    if "tokenizer" in data:
        write_tokenizer(tmp_path / data["tokenizer"])
    if kind == "text":
        example = example.replace("length = 512", "length = 64")  # the text is short
    config = tmp_path / "c.toml"
    config.write_text(
        '[model]\nsource = "net.py:build"\n[train]\nsteps = 1\n' + example
    )
    settings = load_config(config).data
    assert kind_of(settings) == kind
    dataset = load_data(settings)
    for split in (dataset.train, dataset.held_out):
        assert sum(len(batch) for batch, _ in batches_of(split, 4)) == len(split) > 0
