"""Tables of text: GLUE's files as they are shipped, and every way a row can be bad."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from data.written import (
    sentences,
    write_jsonl,
    write_parquet,
    write_sst2,
    write_tokenizer,
    write_tsv,
)

from step_cli.config.data import DataSection
from step_cli.data.batch import Dataset
from step_cli.data.load import load_data
from step_cli.errors import InputError, UsageError

BEGIN, END, PAD = 257, 258, 256


def load(path: Path, **more: Any) -> Dataset:
    return load_data(DataSection.model_validate({"source": str(path), **more}))


def texts_of(dataset: Dataset) -> list[str]:
    batch = dataset.train[torch.arange(len(dataset.train))]
    masks = batch.inputs["attention_mask"].bool()
    return [
        bytes(t for t in row[mask].tolist() if t < 256).decode()
        for row, mask in zip(batch.inputs["input_ids"], masks, strict=True)
    ]


def test_sst2_as_glue_ships_it(tmp_path: Path) -> None:
    dataset = load(write_sst2(tmp_path / "SST-2"))
    assert (len(dataset.train), len(dataset.held_out)) == (20, 8)
    assert texts_of(dataset) == sentences(20, 0)
    batch = dataset.train[torch.tensor([4, 7])]
    assert batch.labels.tolist() == [0, 1]
    tokens, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    assert set(batch.inputs) == {"input_ids", "attention_mask"}
    assert tokens[0, 0] == BEGIN and tokens[0][mask[0] == 1][-1] == END
    assert torch.equal(tokens == PAD, mask == 0)
    longest = max(len(s) for s in (sentences(20, 0)[4], sentences(20, 0)[7]))
    assert tokens.shape == (2, longest + 2)


def test_cola_has_no_header(tmp_path: Path) -> None:
    rows = [("gj04", 1, "", 'He "left.'), ("gj04", 0, "*", "Left he."),
            ("cj99", 1, "", "They left.")]  # fmt: skip
    for name in ("train", "dev"):
        write_tsv(tmp_path / "CoLA" / f"{name}.tsv", (), rows)
    dataset = load(tmp_path / "CoLA")
    assert texts_of(dataset) == ['He "left.', "Left he.", "They left."]
    assert dataset.train[torch.arange(3)].labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("header", "row", "texts", "label"),
    [
        (("index", "question", "sentence", "label"), (0, "Who?", "He.", "entailment"),
         ("Who?", "He."), 0),
        (("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
         (1, 2, 3, "How?", "Why?", 1), ("How?", "Why?"), 1),
        (("index", "genre", "sentence1", "sentence2", "score"),
         (0, "news", "A.", "B.", "3.800"), ("A.", "B."), pytest.approx(3.8)),
        (("\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
         (1, 7, 8, "A.", "B."), ("A.", "B."), 1),
        (("index", "sentence1_parse", "sentence1", "sentence2", "label1", "gold_label"),
         (0, "(A)", "A.", "B.", "neutral", "neutral"), ("A.", "B."), 0),
    ],
    ids=["QNLI", "QQP", "STS-B", "MRPC", "MNLI"],
)  # fmt: skip
def test_pairs_of_glue_are_found_by_their_columns(
    tmp_path: Path, header: Any, row: Any, texts: tuple[str, str], label: Any
) -> None:
    for name in ("train", "dev"):
        write_tsv(tmp_path / f"{name}.tsv", header, [row])
    batch = load(tmp_path).train[torch.tensor([0])]
    assert batch.labels.tolist() == [label]
    one, other = (list(text.encode()) for text in texts)
    assert batch.inputs["input_ids"].tolist() == [[BEGIN, *one, END, *other, END]]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_files_of_the_hub(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"premise": s, "hypothesis": s[::-1], "label": i % 3, "idx": i}
        for i, s in enumerate(sentences(6))
    ]
    write = write_jsonl if suffix == "jsonl" else write_parquet
    write(tmp_path / "data" / f"train-00000-of-00002.{suffix}", rows[:4])
    write(tmp_path / "data" / f"train-00001-of-00002.{suffix}", rows[4:])
    write(tmp_path / "data" / f"validation-00000-of-00001.{suffix}", rows[:2])
    write(tmp_path / "data" / f"test-00000-of-00001.{suffix}", [{"premise": "x"}])
    dataset = load(tmp_path)
    assert texts_of(dataset) == [row["premise"] + row["hypothesis"] for row in rows]
    assert dataset.train[torch.arange(6)].labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert len(dataset.held_out) == 2


def test_csv_quotes_hold_commas_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    path.write_text('label,text\n1,"one, ""two""\nthree"\n0,four\n', encoding="utf-8")
    dataset = load(path, held_out=0.5)
    assert texts_of(dataset) == ['one, "two"\nthree']
    assert dataset.held_out[torch.tensor([0])].labels.tolist() == [0]


def test_columns_can_be_named(tmp_path: Path) -> None:
    rows = [{"a": "x", "b": "y", "sentence": "no", "label": 0, "c": 1}] * 4
    write_jsonl(tmp_path / "t.jsonl", rows)
    chosen = {"text_columns": ["b", "a"], "label_column": "c", "held_out": 0.25}
    dataset = load(tmp_path / "t.jsonl", **chosen)
    assert texts_of(dataset) == ["yx"] * 3
    assert dataset.train[torch.tensor([0])].labels.tolist() == [1]


def test_a_tokenizer_of_hugging_face_marks_pairs_and_parts(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "bert")
    write_jsonl(tmp_path / "t.jsonl", [
        {"sentence1": "the cat", "sentence2": "sat on mat", "label": 0},
        {"sentence1": "a " * 40, "sentence2": "xyz", "label": 1},
    ] * 2)  # fmt: skip
    batch = load(
        tmp_path / "t.jsonl", tokenizer=str(tokenizer), length=12, held_out=0.25
    ).train[torch.tensor([0, 1])]
    assert batch.inputs["input_ids"].tolist() == [
        [2, 4, 6, 3, 8, 10, 12, 3, 0, 0, 0, 0],
        [2, *[5] * 8, 3, 1, 3],
    ]
    assert (
        batch.inputs["token_type_ids"][0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1] + [0] * 4
    )
    assert batch.inputs["attention_mask"].sum(1).tolist() == [8, 12]


def test_the_longer_of_two_texts_is_cut_first(tmp_path: Path) -> None:
    rows = [{"sentence1": "abc", "sentence2": "x" * 50, "label": 0}] * 2
    write_jsonl(tmp_path / "t.jsonl", rows)
    dataset = load(tmp_path / "t.jsonl", length=16, held_out=0.5)
    assert texts_of(dataset) == ["abc" + "x" * 10]


def test_names_become_classes_in_their_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [("a", "no"), ("b", "maybe"), ("c", "yes"), ("d", "no")]
    write_tsv(tmp_path / "train.tsv", ("sentence", "label"), rows)
    write_tsv(tmp_path / "dev.tsv", ("sentence", "label"), [("e", "yes"), ("f", "no")])
    with caplog.at_level(logging.INFO, "step_cli"):
        dataset = load(tmp_path)
    assert dataset.train[torch.arange(4)].labels.tolist() == [1, 0, 2, 1]
    assert dataset.held_out[torch.arange(2)].labels.tolist() == [2, 1]
    assert "maybe = 0, no = 1, yes = 2" in caplog.text


def test_one_decimal_point_makes_it_a_regression(tmp_path: Path) -> None:
    rows = [("a", "5"), ("b", "2.5"), ("c", "-1.0")]
    write_tsv(tmp_path / "train.tsv", ("sentence", "score"), rows)
    write_tsv(tmp_path / "dev.tsv", ("sentence", "score"), [("d", "3")])
    dataset = load(tmp_path)
    labels = [
        split[torch.tensor([0])].labels for split in (dataset.train, dataset.held_out)
    ]
    assert [label.dtype for label in labels] == [torch.float32] * 2
    assert [label.tolist() for label in labels] == [[5.0], [3.0]]


BAD = [
    ("train.tsv", "sentence\tlabel\na\t1\nb\n", "line 3: 1 fields, the header has 2"),
    ("train.tsv", "sentence\tlabel\na\t1\nb\t\n", "line 3: no label"),
    ("train.tsv", "sentence\tlabel\na\t1\nb\tyes\n", "line 3: label 'yes' among such"),
    ("train.tsv", "sentence\tlabel\na\t1\nb\t-1\n", "line 3: label -1 is no class"),
    ("train.tsv", "sentence\tlabel\na\t1\nb\tnan\n", "line 3: label nan is not finite"),
    ("train.jsonl", '{"text": "a", "label": 1}\n{"text": ', "line 2: not JSON: Expec"),
    ("train.jsonl", '{"text": "a", "label": 1}\n[1]\n', "line 2: not a JSON object"),
    ("train.jsonl", '{"text": "a", "label": 1}\n{"label": 1}\n', "no column 'text'"),
    ("train.jsonl", '{"text": "a", "label": 1}\n{"text": 3, "label": 1}\n',
     "line 2: text is int, not text"),
    ("train.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": null}\n',
     "line 2: no label"),
    ("train.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": [1]}\n',
     "line 2: the label is a list"),
    ("train.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": 1e999}\n',
     "line 2: label inf is not finite"),
    ("train.jsonl", f'{{"text": "a", "label": 1}}\n{{"text": "b", "label": {10**30}}}',
     "line 2: label 1000"),
    ("train.jsonl", f'{{"text": "a", "label": 1}}\n{"[" * 100_000}', "without end"),
    ("train.jsonl", '{"text": "a", "label": 1}\n{"text": "\\ud800", "label": 1}\n',
     "line 2: text is not valid Unicode"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "words"), BAD, ids=range(len(BAD)))
def test_a_bad_row_is_told_or_left_out_and_counted(
    tmp_path: Path,
    name: str,
    content: str,
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    held_out = write_jsonl(
        tmp_path / "v.jsonl", [{"text": "v", "sentence": "v", "label": 0}]
    )
    with pytest.raises(InputError) as error:
        load(path, held_out=str(held_out))
    assert error.value.message.startswith(words) or words in error.value.message
    assert error.value.file == str(path)
    assert len(load(path, held_out=str(held_out), skip_bad_rows=True).train) == 1
    assert "left out 1 bad rows, first " in caplog.text


def held_out_text(text: str) -> str:
    return f"sentence\tlabel\n{text}\n"


@pytest.mark.parametrize(
    ("train", "held_out", "words"),
    [
        ("a\tyes\nb\tno", "c\tperhaps", "label 'perhaps' is none of the training data"),
        ("a\t0\nb\t1", "c\t0.5", "label 0.5 where the training data has classes"),
        ("a\t0\nb\t1", "c\tno", "label 'no' among such as 0"),
    ],
)
def test_held_out_labels_are_of_the_kind_trained_on(
    tmp_path: Path, train: str, held_out: str, words: str
) -> None:
    (tmp_path / "train.tsv").write_text(held_out_text(train))
    (tmp_path / "dev.tsv").write_text(held_out_text(held_out))
    with pytest.raises(InputError, match=words) as error:
        load(tmp_path)
    assert error.value.file == str(tmp_path / "dev.tsv")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train.tsv", b"sentence\tlabel\nna\xefve\t1\n", "line 2, byte 3 is not UTF-8"),
        ("train.tsv", b"", "has no rows"),
        ("train.tsv", b"sentence\tlabel\n", "has no rows"),
        ("train.tsv", b"text\ttext\nx\ty\n", "names the column 'text' twice"),
        (
            "train.tsv",
            b"words\tlabel\nx\t1\n",
            "give data.text_columns, there are 'words'",
        ),
        (
            "train.csv",
            b"width,height,target\n1.5,2,0\n",
            "its columns hold numbers, and a table is read as text; train on numbers",
        ),
        (
            "train.csv",
            b"width,words,target\n1.5,x,0\n",
            "give data.text_columns and data.label_column, there are 'width', 'words'",
        ),
        (
            "train.tsv",
            b"text\tclass\nx\t1\n",
            "give data.label_column, there are 'text'",
        ),
        (
            "train.tsv",
            b"words\tclass\nx\t1\n",
            "give data.text_columns and data.label_column, there are 'words', 'class'",
        ),
        ("train.csv", b'text,label\n"x,1\n', "line 2: unexpected end of data"),
        ("train.parquet", b"PAR1 and no more", "cannot be read as parquet"),
    ],
)
def test_files_that_are_no_tables_are_told(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    write_tsv(tmp_path / "dev.tsv", ("text", "label"), [("v", 1)])
    with pytest.raises(InputError) as error:
        load(tmp_path)
    assert words in error.value.message
    assert error.value.file == str(tmp_path / name)


def test_a_wrong_column_is_answered_with_the_nearest(tmp_path: Path) -> None:
    write_sst2(tmp_path)
    with pytest.raises(InputError, match="no column 'sentense'; did you mean sentence"):
        load(tmp_path, text_columns=["sentense"])
    with pytest.raises(InputError, match="no column 'lable'; did you mean label"):
        load(tmp_path, label_column="lable")


def test_which_files_are_held_out_must_be_clear(tmp_path: Path) -> None:
    header, rows = ("sentence", "label"), [("a", 0), ("b", 1)]
    train = write_tsv(tmp_path / "train.tsv", header, rows)
    with pytest.raises(InputError, match="has no file named valid"):
        load(tmp_path)
    one = write_tsv(tmp_path / "dev_matched.tsv", header, rows)
    assert len(load(tmp_path).held_out) == 2
    write_tsv(tmp_path / "dev_mismatched.tsv", header, rows)
    with pytest.raises(
        InputError, match=r"dev_matched.* are different data; give data\.h"
    ):
        load(tmp_path)
    assert len(load(tmp_path, held_out=str(one)).held_out) == 2
    with pytest.raises(UsageError, match="is trained on as well"):
        load(tmp_path, held_out=str(train))
    with pytest.raises(InputError, match="is one file; give data"):
        load(train)
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path, held_out=str(tmp_path / "none.tsv"))


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_share_that_leaves_nothing_is_told(tmp_path: Path, share: float) -> None:
    rows = [(str(i), i % 2) for i in range(4)]
    path = write_tsv(tmp_path / "train.tsv", ("sentence", "label"), rows)
    with pytest.raises(
        InputError, match=r"of 4 samples is [04]; nothing would be left"
    ):
        load(path, held_out=share)
    dataset = load(path, held_out=0.5)
    held = [int(label) for label in dataset.held_out[torch.arange(2)].labels]
    assert len(dataset.train) == len(dataset.held_out) == len(held) == 2


@pytest.mark.parametrize("content", [None, "{}", "not json"])
def test_a_directory_without_a_tokenizer_is_told(
    tmp_path: Path, content: str | None
) -> None:
    pytest.importorskip("transformers")
    folder = tmp_path / "tokenizer"
    if content is not None:
        folder.mkdir()
        (folder / "tokenizer.json").write_text(content)
    with pytest.raises(InputError) as error:
        load(write_sst2(tmp_path / "sst"), tokenizer=str(folder))
    assert error.value.file == str(folder)
    assert "tokenizer" in error.value.message


def test_a_tokenizer_without_an_end_is_told(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "plain", marks=())
    with pytest.raises(InputError, match="no token that ends a text"):
        load(write_sst2(tmp_path / "sst"), tokenizer=str(folder))
