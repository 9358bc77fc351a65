"""model/README.md: what a run says of its model, and what of others it keeps."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import load_file, save_file
from small_run import small_config

from step_cli import prune
from step_cli.config.train import TrainConfig
from step_cli.formats.huggingface.model_card import (
    BEGIN,
    END,
    OURS,
    has_other_metadata,
    read_card,
    with_section,
    without_section,
)
from step_cli.render.model_card import quoted
from step_cli.training.run import train

Cli = Callable[..., Any]
THEIRS = "---\nlicense: mit\nmodel-index: []\n---\n# Their model\n\nWords of theirs.\n"


def run(folder: Path, *more: str) -> tuple[TrainConfig, Path]:
    config = small_config(folder, "train.lr=0.02", *more)
    train(config, folder / "run")
    return config, folder / "run" / "model"


def metadata(card: str) -> dict[str, Any]:
    found = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(found, dict)
    return found


def test_a_run_tells_pattern_recipe_numbers_and_how_to_verify(
    tmp_path: Path, step_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(tmp_path, "train.lr=0.02")
    report = train(config, tmp_path / "run")
    model = tmp_path / "run" / "model"
    card = (model / "README.md").read_text("utf-8")
    assert "# run\n" in card and card.count(BEGIN) == card.count(END) == 1
    for row in ("| pattern | 2:4 in 2 layers |", "| recipe | step |",
                "| dense until the switch | after step 12 (autoswitch, t_max) |",
                "| density of these layers | 0.5000 |",
                "| model | net.py&#58;build |"):  # fmt: skip
        assert row in card, row
    assert report.dense_metrics is not None
    numbers = [report.metrics["eval_accuracy"], report.dense_metrics["eval_accuracy"]]
    assert "| accuracy | {:.4f} | {:.4f} |".format(*numbers) in card
    assert "304 groups, of which 0 break" in card
    assert str(tmp_path) not in card
    found = metadata(card)
    assert found["tags"] == ["step-cli", "sparsity", "2:4"]
    (result,) = found["model-index"][0]["results"]
    assert result["dataset"]["name"] == "digits"
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values["accuracy"] == pytest.approx(numbers[0], abs=1e-6)

    command = re.findall(r"^step-cli .*$", card, re.M)
    assert len(command) == 1
    monkeypatch.chdir(model)
    words = shlex.split(command[0])[1:]
    assert step_cli(*words).code == 0
    arrays = load_file("model.safetensors")
    arrays["1.weight"][3, :4] = 1
    save_file(arrays, "model.safetensors")
    assert step_cli(*words, "--nm", "2:4").code == 1


def test_the_hub_can_read_it(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    _, model = run(tmp_path)
    data = ModelCard.load(model / "README.md").data
    assert data.library_name == "step-cli"
    assert [one.metric_type for one in data.eval_results] == ["loss", "accuracy"]
    assert data.eval_results[0].task_type == "image-classification"


def test_a_dense_run_claims_no_pattern(tmp_path: Path) -> None:
    _, model = run(tmp_path, "sparsity.recipe=dense")
    card = (model / "README.md").read_text("utf-8")
    assert "| pattern | none, dense |" in card and "verify-nm" not in card
    assert metadata(card)["tags"] == ["step-cli"]


def test_a_card_at_the_start_is_kept_and_ours_is_replaced(tmp_path: Path) -> None:
    _, start = run(tmp_path, "sparsity.recipe=dense")
    (start / "README.md").write_text(THEIRS)
    config = small_config(tmp_path, f"model.weights={start.parent}")
    train(config, tmp_path / "two")
    card = (tmp_path / "two" / "model" / "README.md").read_text("utf-8")
    assert card.startswith(THEIRS.rstrip()) and "| recipe | step |" in card
    assert "are those of the model that the training started from" in card

    weights = f"model.weights={tmp_path / 'two' / 'model'}"
    train(small_config(tmp_path, weights, "sparsity.recipe=ste"), tmp_path / "three")
    card = (tmp_path / "three" / "model" / "README.md").read_text("utf-8")
    assert card.startswith(THEIRS.rstrip()) and card.count(BEGIN) == 1
    assert "| recipe | ste |" in card and "| recipe | step |" not in card


def test_pruning_leaves_out_what_is_no_longer_true(tmp_path: Path) -> None:
    _, model = run(tmp_path, "sparsity.recipe=dense")
    (model / "README.md").write_text(
        with_section(THEIRS, "a: 1\n", "x", "numbers of the run")
    )
    prune(model, tmp_path / "24", nm="2:4")
    assert (tmp_path / "24" / "README.md").read_text() == THEIRS
    (model / "README.md").write_text(with_section("", "a: 1\n", "x", "numbers"))
    prune(model, tmp_path / "other", nm="2:4")
    assert (tmp_path / "other" / "README.md").read_text() == "\n# x\n"
    prune(tmp_path / "run", tmp_path / "again", nm="2:4")
    assert (tmp_path / "again/model/README.md").read_text() == "\n# x\n"
    (model / "README.md").write_text(THEIRS)
    prune(model, tmp_path / "theirs", nm="2:4")
    assert (tmp_path / "theirs" / "README.md").read_text() == THEIRS


@pytest.mark.parametrize(
    "card",
    [
        "",
        "words\n",
        THEIRS,
        "---\nnot closed\n",
        "words\n---\nno metadata\n---\n",
        f"---\n{OURS}\nold: 1\n---\n\n# T\n\n{BEGIN}\nold section\n{END}\nafter\n",
        f"{BEGIN}\nold, not closed\n",
        f"{END}\n{BEGIN}\n",
        "---\r\nlicense: mit\r\n---\r\nwords\r\n",
        BEGIN * 30_000,
    ],
    ids=range(10),
)
def test_a_section_is_put_in_once_and_taken_out_again(card: str) -> None:
    once = with_section(card, "tags:\n- a\n", "title", "new")
    assert f"{BEGIN}\nnew\n{END}" in once and "old section" not in once
    assert with_section(once, "tags:\n- a\n", "title", "new") == once
    front = once.split("---")[1]
    assert ("license: mit" in front) if has_other_metadata(card) else (OURS in front)
    rest = without_section(once)
    assert f"{BEGIN}\nnew" not in rest and without_section(rest) == rest
    for line in card.replace("\r", "").split("\n"):
        ours = (BEGIN, END, OURS, "old: 1", "old section", "---")
        assert line in ours or line in rest


@pytest.mark.parametrize(
    "name", ["<b>|x", 'a"b: c\n- d', "\u202e\uffff\U0001f600", "#", ""]
)
def test_names_cannot_change_its_form(name: str, tmp_path: Path) -> None:
    assert quoted(name).isascii() and yaml.safe_load(quoted(name)) is not None
    if name and name.isprintable():
        assert yaml.safe_load(quoted(name)) == name


def test_the_name_of_a_run_is_data(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    train(config, tmp_path / '"<b>|[x](y)')
    card = (tmp_path / '"<b>|[x](y)' / "model" / "README.md").read_text("utf-8")
    assert metadata(card)["model-index"][0]["name"] == '"<b>|[x](y)'
    assert "<b>" not in card.split("---\n")[2] and "[x](" not in card.split("---\n")[2]


def test_a_card_that_cannot_be_kept_is_no_reason_to_fail(tmp_path: Path) -> None:
    assert read_card(tmp_path) == ""
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    assert read_card(tmp_path) == ""
    (tmp_path / "README.md").write_text("x" * (1 << 21))
    assert read_card(tmp_path) == ""
    (tmp_path / "README.md").unlink()
    (tmp_path / "model").mkdir()
    (tmp_path / "out.md").write_text("secret")
    (tmp_path / "model" / "README.md").symlink_to(tmp_path / "out.md")
    assert read_card(tmp_path / "model") == ""
    (tmp_path / "README.md").write_text("kept\r\n", newline="")
    assert read_card(tmp_path) == "kept\r\n"
