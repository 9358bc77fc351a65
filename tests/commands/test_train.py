"""`train` on the digits sample: short runs of the whole path."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from small_run import NET as SMALL_NET
from small_run import set_words

from step_cli import verify
from step_cli.config.samples import sample_directory

Run = Callable[..., Any]
CONFIG = sample_directory("digits-resnet") / "config.toml"
SHORT = ("train.steps=24", "train.warmup_steps=0", "train.eval_every=12",
         "train.betas=[0.9, 0.8]", "train.log_every=4")  # fmt: skip


def settings(*more: str) -> list[str]:
    return [word for item in (*SHORT, *more) for word in ("--set", item)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short STEP run, made once, with its curves."""
    from step_cli.config.train import load_config
    from step_cli.training import curves, page
    from step_cli.training.run import train

    run_dir = tmp_path_factory.mktemp("runs") / "step"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "draw_curves", curves.draw_curves)
        assert train(load_config(CONFIG, SHORT), run_dir).ok
    return run_dir


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_model_written_is_two_four(finished: Path) -> None:
    report = verify(finished)
    assert report.ok
    assert report.checkpoints[0].totals.layers == 8
    assert report.checkpoints[0].totals.density == 0.5
    assert verify(finished / "model" / "model.safetensors").ok


def test_the_plan_is_stored_with_the_weights(finished: Path) -> None:
    with safe_open(finished / "model/model.safetensors", "numpy") as file:
        plan = json.loads(file.metadata()["step_cli.plan"])
    assert plan["schema"] == "step-cli/plan/1"
    assert plan["layers"]["blocks.0.conv1.weight"] == {"pattern": "2:4", "axis": 1}
    assert "head.weight" not in plan["layers"] and "stem.weight" not in plan["layers"]


def test_one_weight_more_breaks_the_verdict(finished: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    with safe_open(finished / "model/model.safetensors", "numpy") as file:
        metadata = file.metadata()
    tensors = load_file(finished / "model/model.safetensors")
    weight = tensors["blocks.1.conv2.weight"]
    weight[np.unravel_index(int(np.argmax(weight == 0)), weight.shape)] = 1.0
    save_file(tensors, tmp_path / "broken.safetensors", metadata)
    report = verify(tmp_path / "broken.safetensors")
    assert not report.ok
    assert report.checkpoints[0].totals.violations == 1


def test_the_records_tell_the_run(finished: Path) -> None:
    header, *variance = lines(finished / "variance.jsonl")
    metrics = lines(finished / "metrics.jsonl")
    report = json.loads((finished / "report.json").read_text())
    switch = report["switch"]
    assert header["beta2"] == 0.8 and header["steps"] == 24
    # One line for each step in which the variance was updated: up to the switch.
    assert [line["step"] for line in variance] == list(range(1, switch["step"] + 1))
    assert [line["step"] for line in metrics] == [1, 4, 8, 12, 16, 20, 24]
    for line in metrics:
        learning = line["step"] >= switch["step"]
        assert line["phase"] == ("mask-learning" if learning else "precondition")
        measured = line["step"] <= switch["step"]
        assert (line["variance_change"] is not None) == measured
        for watched in ("flip_rate", "pruned_update_share"):
            assert (line[watched] is not None) == (line["step"] > switch["step"])
        assert 0 < (line["pruned_update_share"] or 0.5) < 1
    assert metrics[-1]["eval_accuracy"] == report["metrics"]["eval_accuracy"]
    assert report["metrics"]["eval_accuracy"] > 0.3
    assert report["dense_metrics"]["eval_accuracy"] > 0.3
    curves = (finished / "curves.svg").read_text()
    assert curves.startswith("<?xml") and "switch after" in curves


@pytest.mark.draws
def test_the_resolved_config_alone_reproduces_the_run(
    finished: Path, tmp_path: Path
) -> None:
    from step_cli.config.train import load_config
    from step_cli.training.run import train

    assert tomllib.loads((finished / "config.toml").read_text())["train"]["steps"] == 24
    train(load_config(finished / "config.toml"), tmp_path / "again")
    for name in ("model/model.safetensors", "metrics.jsonl", "variance.jsonl",
                 "curves.svg"):  # fmt: skip
        again = (tmp_path / "again" / name).read_bytes()
        assert again == (finished / name).read_bytes(), name


def test_another_seed_gives_another_run(finished: Path, tmp_path: Path) -> None:
    from step_cli.config.train import load_config
    from step_cli.training.run import train

    overrides = [*SHORT, "train.seed=1"]
    train(load_config(CONFIG, overrides), tmp_path / "other")
    other = (tmp_path / "other/model/model.safetensors").read_bytes()
    assert other != (finished / "model/model.safetensors").read_bytes()


def test_evaluate_gives_the_metrics_of_the_run(step_cli: Run, finished: Path) -> None:
    before = sorted(finished.rglob("*"))
    outcome = step_cli("train", CONFIG, "--evaluate", finished, "--json")
    report = json.loads((finished / "report.json").read_text())
    assert outcome.code == 0
    assert outcome.json["metrics"] == report["metrics"]
    assert outcome.json["density"] == 0.5
    assert sorted(finished.rglob("*")) == before


def test_training_can_start_from_a_checkpoint(
    step_cli: Run, finished: Path, tmp_path: Path
) -> None:
    start = finished / "model" / "model.safetensors"
    outcome = step_cli(
        "train", CONFIG, "--run-dir", tmp_path / "asp", "--json",
        *settings("sparsity.recipe=asp", f"model.weights={start}"),
    )  # fmt: skip
    assert outcome.code == 0
    assert outcome.json["switch"] == {
        "step": 0, "reason": "fixed", "criterion": "fixed",
    }  # fmt: skip
    before, after = (
        load_file(p) for p in (start, tmp_path / "asp/model/model.safetensors")
    )
    name = "blocks.2.conv1.weight"
    assert np.array_equal(before[name] != 0, after[name] != 0)
    assert not np.array_equal(before[name], after[name])


def test_the_pruned_twin_is_what_prune_makes(step_cli: Run, tmp_path: Path) -> None:
    net, run_dir = tmp_path / "net.py", tmp_path / "run"
    net.write_text(SMALL_NET)
    words = set_words(net)  # evaluates and saves after step 8, and switches after 12
    assert step_cli("train", CONFIG, "--run-dir", run_dir, *words).code == 0
    (told,) = (line for line in lines(run_dir / "metrics.jsonl") if line["step"] == 8)
    assert told["phase"] == "precondition"
    dense = run_dir / "checkpoints" / "step-00000008" / "model.safetensors"
    pruned = tmp_path / "pruned.safetensors"
    assert step_cli("prune", dense, pruned).code == 0
    for path, prefix in ((dense, ""), (pruned, "pruned_")):
        found = step_cli("train", CONFIG, *words, "--evaluate", path, "--json").json
        for name, value in found["metrics"].items():
            assert told[prefix + name] == pytest.approx(value, rel=1e-6)
    assert told["pruned_eval_loss"] != told["eval_loss"]


def test_a_dense_run_has_no_plan_and_records_every_step(
    step_cli: Run, tmp_path: Path
) -> None:
    run_dir = tmp_path / "dense"
    outcome = step_cli(
        "train", CONFIG, "--run-dir", run_dir, "--json",
        *settings("sparsity.recipe=dense"),
    )  # fmt: skip
    assert outcome.code == 0
    assert outcome.json["pattern"] is None and outcome.json["switch"] is None
    assert outcome.json["dense_metrics"] is None
    assert len(lines(run_dir / "variance.jsonl")) == 25
    with safe_open(run_dir / "model/model.safetensors", "numpy") as file:
        assert "step_cli.plan" not in file.metadata()
    assert step_cli("verify-nm", run_dir).code == 1


def test_the_switch_never_reached_is_exit_1_and_no_model(
    step_cli: Run, tmp_path: Path
) -> None:
    outcome = step_cli(
        "train", CONFIG, "--run-dir", tmp_path / "run",
        *settings("switch.t_max=1.0", "switch.eps=1e-30"),
    )  # fmt: skip
    assert outcome.code == 1
    assert "switch was never reached in 24 steps" in " ".join(outcome.out.split())
    assert not (tmp_path / "run" / "model").exists()


def test_a_loss_that_explodes_is_exit_7_and_leaves_nothing(
    step_cli: Run, tmp_path: Path
) -> None:
    outcome = step_cli(
        "train", CONFIG, "--run-dir", tmp_path / "run",
        *settings("train.lr=1e38", "train.optimizer=sgd", "sparsity.recipe=sr-ste"),
    )  # fmt: skip
    assert outcome.code == 7
    assert "step" in outcome.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "code", "words"),
    [
        ("sparsity.recipe=stepp", 2, "did you mean step"),
        ("model.source=sample:digit-resnet", 2, "did you mean digits-resnet"),
        ("model.source=nothing", 2, "names no model"),
        ("data.source=digit", 2, "no such data"),
        ("sparsity.pattern=2:5", 3, "can hold 2:5"),
        ('sparsity.include=["nothing.*"]', 3, "matches no tensor"),
        ("train.batch_size=5000", 4, "a batch needs 5000"),
        ("model.weights=missing.safetensors", 4, "no such file"),
        ("sparsity.plan=missing.json", 4, "no such file"),
    ],
)
def test_what_cannot_work_is_told_and_nothing_is_written(
    step_cli: Run, tmp_path: Path, override: str, code: int, words: str
) -> None:
    outcome = step_cli(
        "train", CONFIG, "--run-dir", tmp_path / "run", *settings(override)
    )
    assert outcome.code == code
    assert words in outcome.error
    assert list(tmp_path.iterdir()) == []


def test_an_old_run_comes_back_if_the_new_one_fails(
    step_cli: Run, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "report.json").write_text("old")
    words = ("train", CONFIG, "--run-dir", run_dir, "--force")
    outcome = step_cli(*words, *settings("train.lr=1e38", "train.optimizer=sgd",
                                         "sparsity.recipe=ste"))  # fmt: skip
    assert outcome.code == 7
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (run_dir / "report.json").read_text() == "old"
    assert step_cli(*words, *settings()).code == 0
    assert json.loads((run_dir / "report.json").read_text())["ok"]


@pytest.mark.parametrize(
    "more", [(), ("--recipes", "asp"), ("--recipes", "asp", "--dry-run")]
)
def test_a_directory_that_holds_the_configuration_is_not_replaced(
    step_cli: Run, tmp_path: Path, more: tuple[str, ...]
) -> None:
    mine = tmp_path / "mine"
    (mine / "deep").mkdir(parents=True)
    (mine / "deep" / "c.toml").write_bytes(CONFIG.read_bytes())
    (tmp_path / "link.toml").symlink_to(mine / "deep" / "c.toml")
    for config in (mine / "deep" / "c.toml", tmp_path / "link.toml"):
        words = ("train", config, "--run-dir", mine, *settings(), *more)
        outcome = step_cli(*words, "--force")
        assert outcome.code == 2 and "output holds the input" in outcome.error
        assert step_cli(*words).code == 5
    assert [path.name for path in mine.iterdir()] == ["deep"]


NET = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 12))

def number():
    return 3

def broken():
    raise RuntimeError("no such luck")

def narrow():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))

def large():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 12))
"""


@pytest.mark.parametrize(
    ("function", "code", "words"),
    [
        ("build", 0, ""),
        ("biuld", 2, "did you mean build"),
        ("number", 4, "returned int, not a torch module"),
        ("broken", 4, "RuntimeError: no such luck"),
        ("narrow", 4, "is none of its 8 classes, 0 to 7"),
        ("large", 4, "the model does not fit the data: RuntimeError: mat1 and mat2"),
    ],
)
def test_a_model_of_the_user_is_trained(
    step_cli: Run, tmp_path: Path, function: str, code: int, words: str
) -> None:
    (tmp_path / "net.py").write_text(NET)
    config = tmp_path / "c.toml"
    config.write_text(
        f'[model]\nsource = "net.py:{function}"\n[data]\nsource = "digits"\n'
        "[train]\nsteps = 4\n[switch]\ncriterion = 'fixed'\nstep = 2\n"
    )
    outcome = step_cli("train", config, "--run-dir", tmp_path / "run")
    assert outcome.code == code
    if code:
        assert words in outcome.error
        assert not (tmp_path / "run").exists()
    else:
        assert verify(tmp_path / "run").ok


@pytest.mark.parametrize("recipe", ["ste", "sr-ste", "step"])
def test_bf16_accumulation_and_clipping_train_too(
    step_cli: Run, tmp_path: Path, recipe: str
) -> None:
    outcome = step_cli(
        "train", CONFIG, "--run-dir", tmp_path / "run", "--json",
        *settings("train.precision=bf16", "train.grad_accumulation=2",
                  "train.grad_clip=1.0", f"sparsity.recipe={recipe}",
                  "train.steps=8", "train.batch_size=32"),
    )  # fmt: skip
    assert outcome.code == 0
    assert outcome.json["density"] == 0.5


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "inverse-sqrt"])
def test_the_learning_rate_warms_up_and_falls(schedule: str) -> None:
    from step_cli.config.train import TrainSection
    from step_cli.training.trainer import lr_at

    train = TrainSection(steps=100, lr=2.0, schedule=schedule, warmup_steps=10)  # type: ignore[arg-type]
    rates = [lr_at(step, train) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([0.2 * step for step in range(1, 11)])
    assert rates[10] == pytest.approx(2.0, rel=0.05)
    if schedule == "constant":
        assert set(rates[10:]) == {2.0}
    elif schedule == "inverse-sqrt":
        assert rates[39] == pytest.approx(1.0)
    else:
        assert rates[10:] == sorted(rates[10:], reverse=True)
        assert 0 < rates[-1] < 0.05
    if schedule == "linear":
        assert rates[55] == pytest.approx(1.0)


def test_labels_are_smoothed_in_training_alone(tmp_path: Path) -> None:
    from step_cli.config.train import load_config
    from step_cli.training.run import train

    losses, held_out = [], []
    for smoothing in (0.0, 0.5):
        changes = ["train.steps=1", "train.lr=1e-9", "train.label_smoothing="]
        config = load_config(CONFIG, [*SHORT, *changes[:2], changes[2] + f"{smoothing}",
                                      "sparsity.recipe=dense"])  # fmt: skip
        run_dir = tmp_path / str(smoothing)
        held_out.append(train(config, run_dir).metrics["eval_loss"])
        losses.append(lines(run_dir / "metrics.jsonl")[0]["loss"])
    assert losses[0] != losses[1]
    assert held_out[0] == pytest.approx(held_out[1], abs=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_learning_rate_ends_where_it_is_told_to(schedule: str) -> None:
    from step_cli.config.train import TrainSection
    from step_cli.training.trainer import lr_at

    train = TrainSection(steps=1000, lr=2.0, lr_end=0.5, schedule=schedule)  # type: ignore[arg-type]
    assert lr_at(1, train) == pytest.approx(2.0)
    assert lr_at(501, train) == pytest.approx(1.25)
    assert lr_at(1000, train) == pytest.approx(0.5, abs=0.01)
    with pytest.raises(ValueError, match="exceeds lr"):
        TrainSection(steps=10, lr=1.0, lr_end=2.0)
