"""What `train` says of data and weights that would end in a wrong model unseen."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from data.written import write_jsonl  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

NET = """
from torch import nn
import width_beside

class Bag(nn.Module):
    def __init__(self, scores):
        super().__init__()
        self.words = nn.Embedding(259, width_beside.WIDTH)
        self.head = nn.Linear(width_beside.WIDTH, scores)

    def forward(self, input_ids, attention_mask):
        return self.head(self.words(input_ids).mean(1))

def build(scores=2):
    return Bag(scores)
"""
Run = Callable[..., Any]


@pytest.fixture
def train(tmp_path: Path, step_cli: Run) -> Run:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "width_beside.py").write_text("WIDTH = 8\n")

    def run(labels: list[Any], *sets: str, run: str = "run") -> Any:
        rows = [{"text": f"text {i}", "label": x} for i, x in enumerate(labels)]
        data = write_jsonl(tmp_path / "t.jsonl", rows)
        config = tmp_path / "c.toml"
        config.write_text(
            f"[model]\nsource = 'net.py:build'\n[data]\nsource = '{data}'\n"
            "held_out = 0.25\n[train]\nsteps = 2\nbatch_size = 4\n"
            "[sparsity]\nrecipe = 'ste'\ninclude = ['head*']\n"
        )
        more = [word for each in sets for word in ("--set", each)]
        return step_cli("train", config, "--run-dir", tmp_path / run, "--json", *more)

    return run


def test_classes_are_said_at_the_start_and_reported(train: Run, tmp_path: Path) -> None:
    outcome = train(["no", "yes"] * 8)
    assert outcome.code == 0, outcome.err
    assert "12 samples to train on (no: 6, yes: 6); 4 samples held out" in outcome.err
    found = {"samples": 4, "classes": {"no": 2, "yes": 2}}
    assert outcome.json["data"]["held_out"] == found
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["data"] == outcome.json["data"]


@pytest.mark.parametrize(
    ("labels", "scores", "words"),
    [
        ([0.5, 1.0] * 8, 2, "write labels as whole numbers without a decimal point"),
        ([0, 1] * 8, 1, "a model of one score is for numbers: write labels with a"),
        ([1, 2] * 8, 2, "classes count from 0: subtract 1 from each label"),
    ],
)
def test_labels_of_another_kind_than_the_model_get_advice(
    train: Run, labels: list[Any], scores: int, words: str
) -> None:
    outcome = train(labels, f"model.options.scores={scores}")
    assert outcome.code == 4
    assert words in outcome.error


def test_start_weights_with_a_prefix_or_with_nan(
    train: Run, step_cli: Run, tmp_path: Path
) -> None:
    assert train([0, 1] * 8).code == 0
    state = load_file(tmp_path / "run" / "model" / "model.safetensors")
    prefixed = {f"module.{name}": value for name, value in state.items()}
    path = tmp_path / "w.safetensors"
    save_file(prefixed, path)
    evaluate = ("train", tmp_path / "c.toml", "--evaluate", path, "--json")
    outcome = step_cli(*evaluate)
    assert outcome.code == 0, outcome.err
    assert "read without 'module.' in its names" in outcome.err
    assert outcome.json["data"]["train"]["samples"] == 12
    prefixed["module.head.bias"][0] = float("nan")
    save_file(prefixed, path)
    said = "module.head.bias: 1 of its 2 numbers are NaN or infinite at step 0"
    for ended in (step_cli(*evaluate), train([0, 1] * 8, f"model.weights={path}",
                                             run="other")):  # fmt: skip
        assert ended.code == 7
        assert said in ended.error and str(path) in ended.error
    assert not (tmp_path / "other").exists()
