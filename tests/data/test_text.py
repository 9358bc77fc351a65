"""Running text: every token is trained on once, and its label is the next one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.written import write_jsonl, write_parquet, write_tokenizer, write_wikitext

from step_cli.config.data import DataSection
from step_cli.data.batch import Dataset, Split
from step_cli.data.load import load_data
from step_cli.errors import InputError, UsageError


def load(path: Path, **more: Any) -> Dataset:
    section = {"source": str(path), "length": 16, **more}
    return load_data(DataSection.model_validate(section))


def all_of(split: Split) -> tuple[list[int], list[int]]:
    batch = split[torch.arange(len(split))]
    return batch.inputs["input_ids"].flatten().tolist(), batch.labels.flatten().tolist()


def test_wikitext_as_bytes(tmp_path: Path) -> None:
    dataset = load(write_wikitext(tmp_path / "wikitext-2"))
    for split, name in ((dataset.train, "train"), (dataset.held_out, "valid")):
        raw = (tmp_path / "wikitext-2" / f"wiki.{name}.tokens").read_bytes()
        count = (len(raw) - 1) // 16
        tokens, labels = all_of(split)
        assert len(split) == count > 1
        assert bytes(tokens) == raw[: 16 * count]
        assert bytes(labels) == raw[1 : 16 * count + 1]


def test_a_batch_has_the_samples_asked_for(tmp_path: Path) -> None:
    split = load(write_wikitext(tmp_path)).train
    batch = split[torch.tensor([5, 2])]
    assert batch.inputs["input_ids"].shape == batch.labels.shape == (2, 16)
    assert batch.labels.dtype == torch.int64
    assert torch.equal(batch.labels[1], split[torch.tensor([2])].labels[0])
    assert batch.labels.is_contiguous()


def test_a_tokenizer_sees_lines_with_their_ends(tmp_path: Path) -> None:
    write_wikitext(tmp_path)
    tokenizer = write_tokenizer(tmp_path / "t")
    dataset = load(tmp_path, tokenizer=str(tokenizer))
    text = (tmp_path / "wiki.train.tokens").read_text()
    tokens, labels = all_of(dataset.train)
    from data.written import WORDS

    known = {word: 4 + i for i, word in enumerate(WORDS)}
    wanted = [known.get(word, 1) for word in text.split()]
    assert tokens == wanted[: len(tokens)] and labels == wanted[1 : len(tokens) + 1]
    assert len(wanted) - len(tokens) <= 16


@pytest.mark.parametrize(
    "names", [["a.txt", "b.txt"], ["train-1.txt", "train-2.txt"], ["only.raw"]]
)
def test_files_are_joined_by_name_and_a_share_is_the_end(
    tmp_path: Path, names: list[str]
) -> None:
    for name in reversed(names):
        (tmp_path / name).write_text(f"{name:40}")
    (tmp_path / "test.txt").write_text("never read")
    dataset = load(tmp_path, held_out=0.45)
    whole = "".join(f"{name:40}" for name in names).encode()
    kept = len(whole) - round(len(whole) * 0.45)
    assert bytes(all_of(dataset.train)[0]) == whole[: 16 * ((kept - 1) // 16)]
    assert bytes(all_of(dataset.held_out)[0]).startswith(whole[kept : kept + 16])


def test_tokens_that_are_numbers_already(tmp_path: Path) -> None:
    numbers = np.arange(1000, dtype="<u2") * 60
    numbers.tofile(tmp_path / "train.bin")
    numbers[:100].tofile(tmp_path / "val.bin")
    dataset = load(tmp_path)
    assert all_of(dataset.train)[0] == numbers[: 62 * 16].tolist()
    assert len(dataset.held_out) == 6
    (tmp_path / "train.bin").write_bytes(b"odd")
    with pytest.raises(InputError, match="3 bytes are no whole number of 16-bit"):
        load(tmp_path)
    with pytest.raises(UsageError, match=r"does not apply to \.bin"):
        load(tmp_path, tokenizer="bytes")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_column_of_a_table(tmp_path: Path, suffix: str) -> None:
    write = write_jsonl if suffix == "jsonl" else write_parquet
    write(
        tmp_path / f"train.{suffix}", [{"text": "Some words.\n"}, {"text": "More"}] * 5
    )
    write(tmp_path / f"validation.{suffix}", [{"text": "x" * 40}])
    dataset = load(tmp_path, kind="text")
    wanted = b"Some words.\nMore\n" * 5
    assert bytes(all_of(dataset.train)[0]) == wanted[: 16 * 5]
    with pytest.raises(InputError, match=r"(row|line) 1: no column 'body'"):
        load(tmp_path, kind="text", text_columns=["body"])
    with pytest.raises(UsageError, match="running text is in one column"):
        load(tmp_path, kind="text", text_columns=["a", "b"])


def test_text_that_is_too_short_is_told(tmp_path: Path) -> None:
    write_wikitext(tmp_path)
    with pytest.raises(
        InputError, match=r"has \d+ tokens to train on, one sample needs"
    ):
        load(tmp_path, length=100_000)
    (tmp_path / "wiki.valid.tokens").write_text("short")
    with pytest.raises(
        InputError, match="has 5 tokens to measure on, one sample needs 17"
    ):
        load(tmp_path)
    (tmp_path / "wiki.valid.tokens").write_text("")
    with pytest.raises(InputError, match="file is empty"):
        load(tmp_path)
    (tmp_path / "wiki.train.tokens").unlink()
    with pytest.raises(InputError, match=r"has no \.txt.* file to train on"):
        load(tmp_path)


def test_text_that_is_not_utf8_is_told_where_a_tokenizer_reads_it(
    tmp_path: Path,
) -> None:
    write_wikitext(tmp_path)
    bad = b" good \n caf\xe9 \n"
    (tmp_path / "wiki.train.tokens").write_bytes(bad * 9)
    assert bytes(all_of(load(tmp_path).train)[0]).startswith(bad)
    tokenizer = write_tokenizer(tmp_path / "t")
    with pytest.raises(InputError, match="line 2, byte 5 is not UTF-8"):
        load(tmp_path, tokenizer=str(tokenizer))
