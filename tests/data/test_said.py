"""What is found in data is said: classes, their counts, and what looks wrong."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from data.written import (
    write_cifar10,
    write_images,
    write_jsonl,
    write_tokenizer,
    write_tsv,
    write_wikitext,
    write_wmt,
)

from step_cli.config.data import DataSection
from step_cli.data.batch import Dataset
from step_cli.data.load import load_data
from step_cli.data.model_fit import name_classes, say_misfits
from step_cli.data.said import found_in
from step_cli.errors import InputError, UsageError

Log = pytest.LogCaptureFixture


def load(path: Path, **more: Any) -> Dataset:
    return load_data(DataSection.model_validate({"source": str(path), **more}))


def table(folder: Path, train: list[Any], held_out: list[Any]) -> Path:
    """Rows with these labels, each with a text of its own."""
    for name, labels in (("train", train), ("dev", held_out)):
        rows = [{"text": f"{name} {i}", "label": x} for i, x in enumerate(labels)]
        write_jsonl(folder / f"{name}.jsonl", rows)
    return folder


@pytest.fixture
def log(caplog: Log) -> Log:
    caplog.set_level(logging.INFO, "step_cli")
    return caplog


def warnings(log: Log) -> list[str]:
    return [r.getMessage() for r in log.records if r.levelno == logging.WARNING]


def test_classes_and_counts_are_said_and_reported(tmp_path: Path, log: Log) -> None:
    dataset = load(table(tmp_path, ["no", "yes", "no"], ["yes", "no"]))
    line = "3 samples to train on (no: 2, yes: 1); 2 samples held out (no: 1, yes: 1)"
    assert f"{tmp_path}: {line}" in log.text
    found = {name: part.model_dump() for name, part in found_in(dataset).items()}
    assert found["train"] == {"samples": 3, "classes": {"no": 2, "yes": 1}}
    assert not warnings(log)


def test_folders_cifar_and_many_classes_are_said(tmp_path: Path, log: Log) -> None:
    load(write_images(tmp_path / "images"))
    assert "6 samples to train on (n01: 3, n02: 3)" in log.text
    dataset = load(write_cifar10(tmp_path / "cifar"))
    classes = found_in(dataset)["train"].classes
    assert classes is not None and sum(classes.values()) == 24
    load(table(tmp_path / "many", [*range(12)] * 2, [*range(12)]))
    assert "24 samples to train on (12 classes of 2 to 2)" in log.text
    load(write_wmt(tmp_path / "wmt"), languages=["de", "en"])
    assert f"{tmp_path / 'wmt'}: 20 samples to train on; 20 samples held" in log.text


@pytest.mark.parametrize(
    ("train", "held_out", "words"),
    [
        ([0, 1, 2], [0, 1], "no held-out sample is of class 2: metrics"),
        ([0, 1], [0, 1, 2], "no sample to train on is of class 2, which is held out"),
        ([1, 1], [1], "all samples to train on are of one class, 1: there is nothing"),
        ([1, 2, 1], [1, 2], "labels begin at 1, and classes count from 0: no sample"),
        ([0, 2, 0], [2, 0], "no sample is of class 1; number classes without gaps"),
        ([0, 10**9], [0], "class 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 999999989 more"),
        ([*range(40)], [*range(40)], "40 classes for 40 samples to train on"),
        ([f"n{i}" for i in range(40)], ["n1"], "the label may be a number of the row"),
        (["Yes", "yes", "no"], ["yes", "no", "Yes"], "'Yes' and 'yes' differ by case"),
        (["a b", "a_b"], ["a b", "a_b"], "'a b' and 'a_b' differ by case or blanks"),
        (["NA", "yes"], ["yes", "NA"], "a class is called 'NA': if that means"),
        ([1.0, 0.0, 1.0], [0.0], "labels such as 0.0, 1.0 have a decimal point"),
        (["1.0", "0", "1"], [0], "labels such as 0.0, 1.0 have a decimal point"),
        ([0.5, 0.5], [0.5], "all labels to train on are 0.5: there is nothing"),
    ],
)
def test_what_looks_wrong_is_said(
    tmp_path: Path, log: Log, train: list[Any], held_out: list[Any], words: str
) -> None:
    load(table(tmp_path, train, held_out))
    assert any(words in said for said in warnings(log)), warnings(log)


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ([0, 1, 2], [2, 1, 0]),
        (["a", "b"], ["b", "a"]),
        ([0.5, 1.0, 2.25], [7.5]),
        ([True, False], [False, True]),
        (["a-b", "ab"], ["ab", "a-b"]),
    ],
)
def test_nothing_is_said_of_data_as_they_should_be(
    tmp_path: Path, log: Log, train: list[Any], held_out: list[Any]
) -> None:
    load(table(tmp_path, train, held_out))
    assert not warnings(log)


def test_held_out_samples_that_are_trained_on_are_counted(
    tmp_path: Path, log: Log
) -> None:
    rows = [(f"text {i}", i % 2) for i in range(6)]
    write_tsv(tmp_path / "train.tsv", ("text", "label"), rows)
    write_tsv(tmp_path / "dev.tsv", ("text", "label"), [*rows[:2], ("other", 1)])
    load(tmp_path)
    assert "2 of 3 held-out samples are trained on as well" in log.text
    images = write_images(tmp_path / "images")
    log.clear()
    load(images)
    assert not warnings(log)
    source = images / "train" / "n01" / "n01_0.JPEG"
    (images / "val" / "n01" / "n01_0.JPEG").write_bytes(source.read_bytes())
    load(images)
    assert "1 of 6 held-out samples are trained on as well" in log.text


def test_texts_that_are_cut_or_empty_are_counted(tmp_path: Path, log: Log) -> None:
    rows = [{"text": "x" * n, "label": n % 2} for n in (6, 7, 8, 0)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "dev.jsonl", [{"text": "ab", "label": 0},
                                         {"text": "cd", "label": 1}])  # fmt: skip
    load(tmp_path, length=8)
    assert "train.jsonl: 2 of 4 texts are cut to 8 tokens" in log.text
    assert "train.jsonl: the text of 1 of 4 rows is empty" in log.text
    assert "dev.jsonl" not in log.text


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([1, -1, 1], "line 2: label -1 is no class: they count from 0; write -1, 1 as"),
        ([-2, 0, 2], "line 1: label -2 is no class: they count from 0; write -2, 0, 2"),
        ([0, 1, -1], "or set data.skip_bad_rows if -1 means no label"),
        (["1,5", "2,5"], "line 1: label '1,5' has a decimal comma; write a point"),
        (
            ["yes", 1],
            "label 1 among such as 'yes': all are names, or all are numbers; "
            "mend it, or set data.skip_bad_rows",
        ),
        ([" ", 1], "line 1: no label; mend it, or set data.skip_bad_rows"),
    ],
)
def test_labels_get_advice_that_is_right_for_them(
    tmp_path: Path, labels: list[Any], words: str
) -> None:
    with pytest.raises(InputError) as error:
        load(table(tmp_path, labels, [0]))
    assert words in error.value.message
    assert error.value.file == str(tmp_path / "train.jsonl")
    # Leaving out rows is no advice where it would leave out a class.
    advised = "data.skip_bad_rows" in error.value.message
    assert advised == ("data.skip_bad_rows" in words)


def test_negative_numbers_of_a_regression_are_taken(tmp_path: Path) -> None:
    batch = load(table(tmp_path, [-1, 2, 0.5], [-3])).train[torch.arange(3)]
    assert batch.labels.tolist() == [-1.0, 2.0, 0.5]


def test_blanks_around_a_label_are_no_part_of_it(tmp_path: Path) -> None:
    dataset = load(table(tmp_path, ["positive ", "negative", " positive"], [
        "positive", "negative\t"]))  # fmt: skip
    assert dataset.train[torch.arange(3)].labels.tolist() == [1, 0, 1]
    dataset = load(table(tmp_path / "n", [" 1", "\ufeff0 "], ["1", "0"]))
    assert dataset.train[torch.arange(2)].labels.tolist() == [1, 0]


def test_a_held_out_name_that_is_spelled_otherwise_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="differs from 'pos' by case or blanks alone"):
        load(table(tmp_path, ["pos", "neg"], ["Pos"]))


def test_columns_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    for more, words in (
        ({"text_columns": ["a", "b"], "label_column": "b"}, "is one of text_columns"),
        ({"text_columns": ["a", "a"]}, "text_columns names 'a' twice"),
        ({"languages": ["de", "de"]}, "languages names 'de' twice"),
    ):
        with pytest.raises((ValueError, UsageError), match=words):
            load(tmp_path, **more)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([str(n) for n in range(11)], "'10' is class 2, as names are sorted as text"),
        (["1", "2"], "'1' is class 0, as names are sorted as text; number from 0"),
        (["00", "01", "02"], None),
        (["1990", "1991"], None),
    ],
)
def test_folders_that_are_numbers_are_classes_by_their_place(
    tmp_path: Path, log: Log, names: list[str], words: str | None
) -> None:
    load(write_images(tmp_path, names, count=1))
    assert [words in said for said in warnings(log)] == ([True] if words else [])


def test_texts_that_no_model_learns_from_are_told(tmp_path: Path, log: Log) -> None:
    for name in ("train", "dev"):
        rows = [{"text": "the same", "label": i % 2} for i in range(4)]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    load(tmp_path)
    assert "all samples to train on read the same: there is nothing" in log.text


def test_a_tokenizer_of_another_language_is_doubted(tmp_path: Path, log: Log) -> None:
    tokenizer = str(write_tokenizer(tmp_path / "t"))
    data = table(tmp_path / "d", [0, 1, 0], [1, 0])  # no text has a word it knows
    load(data, tokenizer=tokenizer)
    assert "train.jsonl: the tokenizer does not know 6 of 12 tokens" in log.text
    log.clear()
    load(write_wikitext(tmp_path / "w"), tokenizer=tokenizer, length=8)
    assert not warnings(log)


def test_joined_files_and_columns_that_change_are_told(
    tmp_path: Path, log: Log
) -> None:
    header = ("text", "label")
    path = write_tsv(tmp_path / "a.tsv", header, [("x", "no"), header, ("y", "yes")])
    with pytest.raises(InputError, match="line 3: the header again"):
        load(path, held_out=0.5)
    load(path, held_out=0.5, skip_bad_rows=True)
    assert "reads text 'text', label 'label'" in log.text
    other = write_tsv(tmp_path / "b.tsv", ("text", "score"), [("x", "no")])
    load(path, held_out=str(other), skip_bad_rows=True)
    assert "b.tsv: reads text 'text', label 'score', others are text" in log.text


def test_copies_are_no_translation_and_utf_16_no_bytes(
    tmp_path: Path, log: Log
) -> None:
    folder = write_wmt(tmp_path / "wmt")
    (folder / "train.de").write_bytes((folder / "train.en").read_bytes())
    load(folder, languages=["de", "en"])
    assert "both sides are the same in 20 of 20 pairs" in log.text
    wide = tmp_path / "wide.txt"
    wide.write_text("some text " * 50, encoding="utf-16")
    load(wide, held_out=0.5)
    assert "wide.txt: begins as UTF-16 does, and is read as single bytes" in log.text


def test_text_that_is_a_copy_is_a_leak(tmp_path: Path, log: Log) -> None:
    folder = write_wikitext(tmp_path)
    load(folder, length=32)
    assert not warnings(log)
    train = (folder / "wiki.train.tokens").read_bytes()
    (folder / "wiki.valid.tokens").write_bytes(train)
    count = len(load(folder, length=32).held_out)
    assert f"{count} of {count} held-out samples are trained on as well" in log.text


@pytest.mark.parametrize(
    ("label2id", "words"),
    [
        ({"NEUTRAL": 0, "YES": 1, "NO": 2}, "class 'no' is 1 here, and 2 in the conf"),
        ({"no": 1, "Yes": 2, "neutral": 0}, None),
        ({"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}, None),
        ({"yes": 0, "no": 1}, None),
        (None, None),
    ],
)
def test_a_model_that_numbers_the_classes_otherwise_is_told(
    tmp_path: Path, log: Log, label2id: object, words: str | None
) -> None:
    names = ["no", "neutral", "yes"]
    dataset = load(table(tmp_path, names, names))
    config = type("Config", (), {"label2id": label2id})()
    say_misfits(dataset, "here", config)
    say_misfits(dataset, "here", None)
    assert [words in said for said in warnings(log)] == ([True] if words else [])


@pytest.mark.parametrize(
    ("known", "words"),
    [
        (30_522, "the tokenizer has 259 tokens, and the model knows 30522, so it may"),
        (128, "the tokenizer has 259 tokens, and the model knows 128, so it may"),
        (259, None),
        (1024, None),  # filled up
        (None, None),
    ],
)
def test_a_model_that_knows_other_tokens_is_told(
    tmp_path: Path, log: Log, known: int | None, words: str | None
) -> None:
    config = type("Config", (), {"vocab_size": known})()
    path = write_wikitext(tmp_path / "w")
    for dataset in (
        load(table(tmp_path / "t", ["a", "b"], ["a", "b"])),
        load(path, length=8),
        load(write_wmt(tmp_path / "wmt"), languages=["de", "en"]),
    ):
        log.clear()
        say_misfits(dataset, "here", config)
        assert [words in said for said in warnings(log)] == ([True] if words else [])


@pytest.mark.parametrize(("positions", "told"), [(8, True), (11, True), (12, False)])
def test_samples_longer_than_the_model_takes_are_told(
    tmp_path: Path, log: Log, positions: int, told: bool
) -> None:
    config = type("Config", (), {"n_positions": positions})()
    rows = table(tmp_path / "t", ["a", "b"], ["a", "b"])  # begin, "train 0", end, ...
    for dataset, most in (
        (load(rows, length=64), 9),
        (load(write_wikitext(tmp_path / "w"), length=12), 12),
        (load(write_wmt(tmp_path / "wmt"), languages=["de", "en"], length=12), 12),
    ):
        log.clear()
        say_misfits(dataset, "here", config)
        line = (
            f"here: samples have up to {most} tokens, and the configuration of the "
            f"model has {positions} positions: set data.length = {positions}"
        )
        expected = [line] if told and most > positions else []
        assert warnings(log) == expected


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (["LABEL_0", "LABEL_1"], True),
        (["bad", "good"], False),
        (["LABEL_0", "LABEL_1", "LABEL_2"], False),
    ],
)
def test_classes_that_a_model_only_numbers_are_named(
    labels: list[str], named: bool
) -> None:
    config = type("Config", (), {"id2label": dict(enumerate(labels))})()
    name_classes(("no", "yes"), config)
    expected = {0: "no", 1: "yes"} if named else dict(enumerate(labels))
    assert config.id2label == expected
    numbers = {"no": 0, "yes": 1} if named else None
    assert getattr(config, "label2id", None) == numbers
    name_classes(("no", "yes"), None)
