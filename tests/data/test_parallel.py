"""Parallel text: what the decoder sees is what it has said so far."""

from pathlib import Path
from typing import Any

import pytest
import torch
from data.written import write_jsonl, write_parquet, write_tokenizer, write_wmt

from step_cli.config.data import DataSection
from step_cli.data.batch import IGNORED, Dataset, Split
from step_cli.data.load import load_data
from step_cli.errors import InputError, UsageError

PAD, BEGIN, END = 256, 257, 258


def load(path: Path, **more: Any) -> Dataset:
    section = {"source": str(path), "languages": ["de", "en"], **more}
    return load_data(DataSection.model_validate(section))


def pairs_of(split: Split) -> list[tuple[str, str]]:
    batch = split[torch.arange(len(split))]
    both = (batch.inputs["input_ids"].tolist(), batch.labels.tolist())
    texts = [
        [bytes(t for t in row if 0 <= t < 256).decode() for row in x] for x in both
    ]
    return list(zip(*texts, strict=True))


def test_wmt_files(tmp_path: Path) -> None:
    dataset = load(write_wmt(tmp_path))
    lines = [(tmp_path / f"train.{x}").read_text().splitlines() for x in ("de", "en")]
    assert pairs_of(dataset.train) == list(zip(*lines, strict=True))
    assert len(dataset.held_out) == 20


def test_labels_are_one_ahead_of_what_the_decoder_sees(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("ab\tABC\nabcd\tA\n")
    held = tmp_path / "v.tsv"
    held.write_text("x\ty\n")
    batch = load(tmp_path / "t.tsv", held_out=str(held)).train[torch.tensor([0, 1])]
    a, b, c, d = b"abcd"
    assert batch.inputs["input_ids"].tolist() == [
        [a, b, END, PAD, PAD],
        [a, b, c, d, END],
    ]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    a, b, c = b"ABC"
    assert batch.labels.tolist() == [[a, b, c, END], [a, END, IGNORED, IGNORED]]
    assert batch.inputs["decoder_input_ids"].tolist() == [
        [BEGIN, a, b, c],
        [BEGIN, a, END, PAD],
    ]


def test_the_direction_is_that_of_the_languages(tmp_path: Path) -> None:
    write_wmt(tmp_path)
    forth, back = (
        pairs_of(load(tmp_path).train),
        pairs_of(load(tmp_path, languages=["en", "de"]).train),
    )
    assert [pair[::-1] for pair in forth] == back
    with pytest.raises(
        UsageError, match=r"data\.languages is missing: .*\[\"de\", \"en\"\]"
    ):
        load(tmp_path, languages=None, kind="parallel")


@pytest.mark.parametrize("form", ["header", "columns", "translation", "parquet"])
def test_tables_of_two_languages(tmp_path: Path, form: str) -> None:
    wanted = [("Käse", "cheese"), ("Hund", "dog")]
    rows = [{"id": i, "en": en, "de": de} for i, (de, en) in enumerate(wanted)]
    for name in ("train", "validation"):
        if form == "header":
            lines = ["en\tde", *(f"{row['en']}\t{row['de']}" for row in rows)]
            (tmp_path / f"{name}.tsv").write_text("\n".join(lines), encoding="utf-8")
        elif form == "columns":
            write_jsonl(tmp_path / f"{name}.jsonl", rows)
        else:
            nested = [{"translation": row} for row in rows]
            write = write_parquet if form == "parquet" else write_jsonl
            suffix = "parquet" if form == "parquet" else "jsonl"
            write(tmp_path / f"{name}.{suffix}", nested)
    dataset = load(tmp_path)
    assert pairs_of(dataset.train) == pairs_of(dataset.held_out) == wanted


def test_long_texts_are_cut_and_still_end(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text(("x" * 30 + "\t" + "y" * 30 + "\n") * 2)
    batch = load(tmp_path / "t.tsv", length=8, held_out=0.5).train[torch.tensor([0])]
    assert batch.inputs["input_ids"].tolist() == [[*b"xxxxxxx", END]]
    assert batch.labels.tolist() == [[*b"yyyyyyy", END]]


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    text = "one\u2028two\x0b\x85\rthree\r\nfour\n"
    for name in ("train", "valid"):
        for language in ("de", "en"):
            path = tmp_path / f"{name}.{language}"
            path.write_bytes(text.encode())
    found = pairs_of(load(tmp_path).train)
    assert [pair[0] for pair in found] == ["one\u2028two\x0b\x85\rthree", "four"]


def test_a_tokenizer_without_a_begin_uses_its_mark(tmp_path: Path) -> None:
    write_wmt(tmp_path)
    tokenizer = write_tokenizer(tmp_path / "t")
    batch = load(tmp_path, tokenizer=str(tokenizer)).train[torch.arange(3)]
    assert batch.inputs["decoder_input_ids"][:, 0].tolist() == [2, 2, 2]
    assert (batch.labels == 3).sum(1).tolist() == [1, 1, 1]
    seen = batch.inputs["decoder_input_ids"]
    later = batch.labels[:, 1:] != IGNORED
    assert torch.equal(seen[:, 1:][later], batch.labels[:, :-1][later])


def test_pairs_with_an_empty_side_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_wmt(tmp_path)
    (tmp_path / "train.de").write_text("a\n\nb\n  \n")
    (tmp_path / "train.en").write_text("A\nB\nC\nD\n")
    assert pairs_of(load(tmp_path).train) == [("a", "A"), ("b", "C")]
    assert "left out 2 of 4 pairs" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train.en", b"one\ntwo\n", "has 20 lines, train.en has 2"),
        ("train.de", b"one\n" * 21, "has 21 lines, train.en has 20"),
        ("valid.en", b"caf\xe9\n" * 20, "line 1, byte 4 is not UTF-8"),
        (
            "valid.en",
            None,
            "one held-out file that ends in .en is needed, there is none",
        ),
        ("train.de", None, "has no .tsv"),
        ("train.en", None, "one train file that ends in .en is needed, there is none"),
        ("other.train.de", b"x\n", "there is other.train.de, train.de"),
    ],
)
def test_files_that_do_not_fit_each_other_are_told(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    write_wmt(tmp_path)
    if name == "train.de" and content is None:
        (tmp_path / "valid.de").unlink()
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        load(tmp_path)
    assert words in error.value.message


def test_files_without_a_pair_are_told(tmp_path: Path) -> None:
    write_wmt(tmp_path)
    for language in ("de", "en"):
        (tmp_path / f"train.{language}").write_text("\n\n")
    with pytest.raises(InputError, match="has no pair of texts"):
        load(tmp_path)
    for language in ("de", "en"):
        (tmp_path / f"valid.{language}").rename(tmp_path / f"newstest2014.{language}")
        (tmp_path / f"train.{language}").write_text("text\n")
    with pytest.raises(InputError, match="has no file named valid"):
        load(tmp_path)
    dataset = load(tmp_path, held_out=str(tmp_path / "newstest2014"))
    assert (len(dataset.train), len(dataset.held_out)) == (1, 20)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a\tA\nb\n", "line 2: 1 fields, a text and its translation"),
        ("en\tde\nA\ta\nB\tb\tc\n", "line 3: 3 fields, the header has 2"),
    ],
)
def test_bad_rows_are_told(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "t.tsv").write_text(content)
    with pytest.raises(InputError, match=words):
        load(tmp_path / "t.tsv", held_out=0.5)


def test_a_table_without_a_language_is_told(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "t.jsonl", [{"de": "a", "fr": "b"}] * 2)
    with pytest.raises(InputError, match="line 1: no column 'en'"):
        load(tmp_path / "t.jsonl", held_out=0.5)
