"""`train` on every kind of data, from the command line, for two steps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data.written import (
    sentences,
    write_cifar10,
    write_images,
    write_jsonl,
    write_sst2,
    write_tokenizer,
    write_wikitext,
    write_wmt,
)

Run = Callable[..., Any]

NETS = """
import torch
from torch import nn

def images():
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 12))

class Texts(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.embed = nn.Embedding(259, 16)
        self.head = nn.Linear(16, outputs)

    def forward(self, input_ids, attention_mask=None, decoder_input_ids=None):
        if decoder_input_ids is not None:
            mean = self.embed(input_ids).mean(1, keepdim=True)
            return self.head(self.embed(decoder_input_ids) + mean)
        x = self.embed(input_ids)
        return self.head(x if attention_mask is None else x.mean(1))

def classes():
    return Texts(2)

class Marked(Texts):
    def forward(self, input_ids, attention_mask, token_type_ids):
        return super().forward(input_ids, attention_mask)

def marked():
    return Marked(2)

def number():
    return Texts(1)

def tokens():
    return Texts(259)
"""


def write_scores(folder: Path) -> Path:
    for name, seed in (("train", 0), ("validation", 1)):
        rows = [
            {"sentence1": s, "sentence2": s[::-1], "label": len(s) / 7}
            for s in sentences(12, seed)
        ]
        write_jsonl(folder / f"{name}.jsonl", rows)
    return folder


def configured(folder: Path, function: str, data: Path, *more: str) -> Path:
    (folder / "net.py").write_text(NETS)
    config = folder / "c.toml"
    config.write_text(
        f'[model]\nsource = "net.py:{function}"\n[data]\nsource = "{data}"\n'
        + "".join(line + "\n" for line in more)
        + "[train]\nsteps = 2\nbatch_size = 4\n[sparsity]\nrecipe = 'ste'\n"
        + "include = ['*']\n"
    )
    return config


@pytest.mark.parametrize(
    ("write", "function", "more", "metrics"),
    [
        (write_cifar10, "images", [], {"eval_accuracy"}),
        (write_images, "images", ["image_size = 32"], {"eval_accuracy"}),
        (write_sst2, "classes", ["length = 32"],
         {"eval_accuracy", "eval_f1", "eval_matthews"}),
        (write_scores, "number", [], {"eval_pearson"}),
        (write_wikitext, "tokens", ["length = 32"],
         {"eval_accuracy", "eval_perplexity"}),
        (write_wmt, "tokens", ['languages = ["de", "en"]'],
         {"eval_accuracy", "eval_perplexity"}),
    ],
    ids=["cifar10", "images", "table", "scores", "text", "parallel"],
)  # fmt: skip
def test_every_kind_trains_and_twice_the_same(
    step_cli: Run,
    tmp_path: Path,
    write: Any,
    function: str,
    more: list[str],
    metrics: set[str],
) -> None:
    data = write(tmp_path / "data")
    config = configured(tmp_path, function, data, *more)
    whole = step_cli("train", config, "--run-dir", tmp_path / "whole", "--json")
    assert whole.code == 0, whole.err
    assert set(whole.json["metrics"]) == metrics | {"eval_loss"}
    assert set(whole.json["dense_metrics"]) == set(whole.json["metrics"])
    again = step_cli("train", config, "--run-dir", tmp_path / "again", "--json")
    assert again.json["metrics"] == whole.json["metrics"]
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["eval_loss"] == whole.json["metrics"]["eval_loss"]


@pytest.mark.parametrize(
    ("function", "more", "code", "words"),
    [
        (
            "classes",
            ["augment = true"],
            2,
            "data.augment does not apply to kind 'table'",
        ),
        ("classes", ["lenght = 9"], 2, "unknown key data.lenght; did you mean length"),
        ("classes", ['kind = "parallel"'], 2, "data.languages is missing"),
        ("classes", ['held_out = "none.tsv"'], 4, "none.tsv: no such file"),
        ("classes", ['text_columns = ["x"]'], 4, "train.tsv: no column 'x'"),
        ("images", [], 4, "the model does not fit the data: TypeError"),
    ],
)
def test_mistakes_are_told_with_the_file_they_are_in(
    step_cli: Run, tmp_path: Path, function: str, more: list[str], code: int, words: str
) -> None:
    config = configured(tmp_path, function, write_sst2(tmp_path / "data"), *more)
    outcome = step_cli("train", config, "--run-dir", tmp_path / "run")
    assert outcome.code == code
    assert words in outcome.error
    if code == 2:
        assert str(config) in outcome.error
    assert not (tmp_path / "run").exists()


def test_an_image_that_breaks_during_training_is_told(
    step_cli: Run, tmp_path: Path
) -> None:
    data = write_images(tmp_path / "data", count=4)
    broken = data / "train" / "n02" / "n02_3.JPEG"
    broken.write_bytes(b"no image")
    config = configured(tmp_path, "images", data, "image_size = 32")
    outcome = step_cli("train", config, "--run-dir", tmp_path / "run")
    assert outcome.code == 4
    assert f"{broken}: is no image that can be decoded" in outcome.error
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_resumed_on_other_data(step_cli: Run, tmp_path: Path) -> None:
    data = write_sst2(tmp_path / "data")
    config = configured(tmp_path, "classes", data)
    words = ("train", config, "--run-dir", tmp_path / "run",
             "--set", "train.checkpoint_every=1")  # fmt: skip
    assert step_cli(*words).code == 0
    assert step_cli(*words, "--resume").code == 0
    rows = (data / "train.tsv").read_text().splitlines(keepends=True)
    (data / "train.tsv").write_text("".join([rows[0], *reversed(rows[1:])]))
    outcome = step_cli(*words, "--resume")
    assert outcome.code == 4
    assert "not the data the run began with" in outcome.error


def test_the_tokenizer_of_the_data_goes_with_the_model(
    step_cli: Run, tmp_path: Path
) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    data = write_sst2(tmp_path / "data")
    config = configured(tmp_path, "marked", data, 'tokenizer = "tokenizer"')
    assert step_cli("train", config, "--run-dir", tmp_path / "run").code == 0
    copied = tmp_path / "run" / "model" / "tokenizer.json"
    assert copied.read_bytes() == (tokenizer / "tokenizer.json").read_bytes()


def test_a_training_split_smaller_than_a_batch_is_told(
    step_cli: Run, tmp_path: Path
) -> None:
    config = configured(tmp_path, "classes", write_sst2(tmp_path / "data"))
    words = ("train", config, "--set", "train.batch_size=21")
    outcome = step_cli(*words, "--run-dir", tmp_path / "run")
    assert outcome.code == 4
    assert "has 20 samples to train on, a batch needs 21" in outcome.error


def test_the_saved_model_knows_the_names_of_the_classes(
    step_cli: Run, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=259, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64, num_labels=2,
    )  # fmt: skip
    source = tmp_path / "bert"
    transformers.BertForSequenceClassification(config).save_pretrained(source)
    for name in ("train", "dev"):
        rows = [{"text": f"{name} {i}", "label": "ab"[i % 2]} for i in range(8)]
        write_jsonl(tmp_path / "data" / f"{name}.jsonl", rows)
    (tmp_path / "c.toml").write_text(
        f'[model]\nsource = "{source}"\n[data]\nsource = "data"\nlength = 32\n'
        "[train]\nsteps = 2\nbatch_size = 4\n[sparsity]\nrecipe = 'ste'\n"
    )
    ran = step_cli("train", tmp_path / "c.toml", "--run-dir", tmp_path / "run")
    assert ran.code == 0, ran.err
    saved = json.loads((tmp_path / "run/model/config.json").read_text())
    assert saved["id2label"] == {"0": "a", "1": "b"}
    assert saved["label2id"] == {"a": 0, "b": 1}
