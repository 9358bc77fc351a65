"""Trackers hear of the configuration, each logged step, the switch and the results."""

import json
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands.compare.comparisons import runs as finished_runs
from commands.compare.comparisons import words
from conftest import Outcome
from integration.ranks import Ranks
from small_run import CONFIG, NET, overrides, small_config
from stopped_run import stopping_at
from training import parallel_work as work
from training.told_trackers import FAKES, REAL, Runs, Told, fail

from step_cli.config.train import TrainConfig
from step_cli.errors import MissingError, OutputError, StoppedError, UsageError
from step_cli.training import run as run_module
from step_cli.training.callbacks import tag_of
from step_cli.training.run import train
from step_cli.training.trackers.tracking import require_trackers

NAMES = [*FAKES]
TINY = (
    "train.steps=6", "train.eval_every=3", "train.checkpoint_every=2",
    "switch.criterion=fixed", "switch.step=2", "switch.t_min=0", "switch.t_max=4",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_NAME", "WANDB_PROJECT",
                 "WANDB_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME",
                 "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_NAME", "TRACKIO_SPACE_ID",
                 "TRACKIO_SERVER_URL"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    # Set for the libraries where the user has not; the test leaves them as they were.
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Runs]:
    """Stand-ins for the three libraries, and what they were told."""
    told: dict[str, Runs] = {name: {} for name in NAMES}
    for name, make in FAKES.items():
        for each, module in make(told[name]).items():
            monkeypatch.setitem(sys.modules, each, module)
    return told


def tracked(folder: Path, *names: str) -> TrainConfig:
    return small_config(folder, f"train.trackers={','.join(names)}", *TINY)


def stopped_and_resumed(config: TrainConfig, run_dir: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module.Trainer, "run", stopping_at(4, signal.SIGTERM))
        with pytest.raises(StoppedError):
            train(config, run_dir)
    return train(config, run_dir, resume=True)


def holds_the_run(told: Told, config: TrainConfig, run_dir: Path, report: Any) -> None:
    assert str(told.config["train.steps"]) == "6"
    assert str(told.config["sparsity.recipe"]) == "step"
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for key in ("loss", "lr", "flip_rate", "eval_loss", "pruned_eval_accuracy"):
        recorded = {r["step"]: r[key] for r in records if r.get(key) is not None}
        if key != "pruned_eval_accuracy":
            assert recorded, key
        heard = told.numbers.get(tag_of(key), {})
        assert heard == pytest.approx(recorded), key
    assert told.numbers["switch/switched"] == {1: 0.0, 2: 1.0, 3: 1.0, 4: 1.0, 6: 1.0}
    known = told.facts | {tag: max(v.items())[1] for tag, v in told.numbers.items()}
    assert known["switch/step"] == 2 and known["switch/reason"] == "fixed"
    assert known["final/density"] == pytest.approx(report.density)
    assert known["final/eval_loss"] == pytest.approx(report.metrics["eval_loss"])
    assert known["final/dense_eval_loss"] == pytest.approx(
        report.dense_metrics["eval_loss"]
    )
    assert known["final/steps"] == 6


@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_and_resumed_run_is_one_run_of_the_tracker(
    name: str,
    runs: dict[str, Runs],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, run_dir = tracked(tmp_path, name), tmp_path / "run"
    report = stopped_and_resumed(config, run_dir)
    assert capsys.readouterr().out == ""  # the report goes there
    ((known_as, told),) = runs[name].items()
    holds_the_run(told, config, run_dir, report)
    kept = json.loads((run_dir / "trackers.json").read_text())
    assert kept == {"schema": "step-cli/trackers/1", "runs": {name: known_as}}
    ends = ["ended", "ended"] if name == "trackio" else ["stopped", "finished"]
    assert told.states == ends
    assert told.facts["project"] == "step-cli"
    assert known_as.startswith("run-") or told.facts["name"] == "run"
    assert not (run_dir / "tensorboard").exists()  # only what was asked for


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_the_library_itself_keeps_a_resumed_run_as_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip(name)
    config, run_dir = tracked(tmp_path, name), tmp_path / "run"
    report = stopped_and_resumed(config, run_dir)
    ((known_as, told),) = REAL[name](run_dir).items()
    holds_the_run(told, config, run_dir, report)
    kept = json.loads((run_dir / "trackers.json").read_text())["runs"]
    assert kept == {name: known_as}
    assert told.states in ([], ["finished"])


def test_tensorboard_gets_the_configuration_and_the_results_too(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from training.test_callbacks import events, points

    config, run_dir = tracked(tmp_path, "tensorboard"), tmp_path / "run"
    report = stopped_and_resumed(config, run_dir)
    found = events(run_dir)
    (text,) = found.Tensors("config/text_summary")
    assert b"train.steps = 6" in text.tensor_proto.string_val[0]
    assert points(found, "final/density") == [(6, pytest.approx(report.density))]


def test_no_tracker_is_one_too(tmp_path: Path) -> None:
    assert train(small_config(tmp_path, "train.trackers=[]", *TINY), tmp_path / "r").ok
    assert not (tmp_path / "r" / "tensorboard").exists()
    assert not (tmp_path / "r" / "trackers.json").exists()


@pytest.mark.parametrize("name", ["tensorboard", *NAMES])
def test_a_missing_library_is_exit_6_and_says_what_to_install(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step_cli: Callable[..., Outcome],
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    argv = words(tmp_path, f"train.trackers={name}", *TINY)
    done = step_cli(*argv, "--run-dir", tmp_path / "run")
    assert done.code == 6
    assert f"{name} is not installed: pip install" in done.error
    assert not (tmp_path / "run").exists()


def test_another_process_than_the_first_needs_no_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    started = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "MASTER_PORT": 1}
    for key, value in {**started, "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(key, str(value))
    require_trackers(["wandb"])
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(MissingError):
        require_trackers(["wandb"])


def test_a_library_without_a_part_names_the_part(
    monkeypatch: pytest.MonkeyPatch, runs: dict[str, Runs], tmp_path: Path
) -> None:
    def lacking(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'sqlalchemy'", name="sqlalchemy")

    monkeypatch.setattr(sys.modules["mlflow"], "MlflowClient", lacking)
    with pytest.raises(MissingError, match="mlflow lacks sqlalchemy: pip install ml"):
        train(tracked(tmp_path, "mlflow"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("names", ["nothing", "wandb,wandb", "wandb,"])
def test_a_wrong_list_is_told(names: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.trackers"):
        tracked(tmp_path, names)


def test_a_tracker_that_cannot_begin_refuses_a_new_run(
    monkeypatch: pytest.MonkeyPatch,
    runs: dict[str, Runs],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sys.modules["wandb"], "init", fail)
    with pytest.raises(OutputError, match="Biases cannot begin a run: the server went"):
        train(tracked(tmp_path, "trackio", "wandb", "mlflow"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (told,) = runs["trackio"].values()
    assert told.states == ["ended"] and not runs["mlflow"]
    assert said(caplog) == []


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_a_run_goes_on_without_a_tracker_that_does_not(
    monkeypatch: pytest.MonkeyPatch,
    runs: dict[str, Runs],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(run_module.Trainer, "run", stopping_at(4, signal.SIGTERM))
        with pytest.raises(StoppedError):
            train(tracked(tmp_path, "wandb"), tmp_path / "run")
    kept = (tmp_path / "run" / "trackers.json").read_text()
    monkeypatch.setattr(sys.modules["wandb"], "init", fail)
    assert train(tracked(tmp_path, "wandb"), tmp_path / "run", resume=True).ok
    assert said(caplog) == ["no more Weights & Biases events: the server went away"]
    assert (tmp_path / "run" / "trackers.json").read_text() == kept


def test_a_tracker_that_fails_is_said_once_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch,
    runs: dict[str, Runs],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = sys.modules["mlflow"].MlflowClient
    monkeypatch.setattr(client, "set_tag", fail)  # at the switch
    monkeypatch.setattr(sys.modules["trackio"], "finish", fail)  # at the end
    assert train(tracked(tmp_path, *NAMES), tmp_path / "run").ok
    assert said(caplog) == [
        "no more MLflow events: the server went away",
        "no more Trackio events: the server went away",
    ]
    (wandb,), (mlflow,) = runs["wandb"].values(), runs["mlflow"].values()
    assert wandb.states == ["finished"] and mlflow.states == []
    assert max(wandb.numbers["train/loss"]) == 6
    assert max(mlflow.numbers["train/loss"]) == 1


def test_a_damaged_file_of_ids_begins_a_new_run_of_the_tracker(
    runs: dict[str, Runs], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, run_dir = tracked(tmp_path, "wandb"), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module.Trainer, "run", stopping_at(4, signal.SIGTERM))
        with pytest.raises(StoppedError):
            train(config, run_dir)
    (run_dir / "trackers.json").write_text("[")
    train(config, run_dir, resume=True)
    assert len(runs["wandb"]) == 2
    assert "new runs of trackers are begun" in said(caplog)[0]


def test_each_run_of_a_comparison_is_a_run_of_the_tracker(
    runs: dict[str, Runs],
    step_cli: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = (*TINY, "train.trackers=wandb")
    argv = [*words(tmp_path, *asked), "--recipes", "asp,sr-ste", "--run-dir"]
    assert step_cli(*argv, tmp_path / "runs").code == 0
    names = [told.facts["name"] for told in runs["wandb"].values()]
    assert sorted(names) == finished_runs(tmp_path / "runs")
    assert all(told.states == ["finished"] for told in runs["wandb"].values())
    monkeypatch.setitem(sys.modules, "wandb", None)
    refused = step_cli(*argv, tmp_path / "others")
    assert refused.code == 6 and "wandb is not installed" in refused.error
    assert not (tmp_path / "others").exists()


def test_only_the_first_of_two_processes_tells_a_tracker(
    ranks: Ranks, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(NET)
    given = [*overrides(tmp_path / "net.py"), "train.trackers=wandb", *TINY]
    heard = ranks.run(work.train_tracked, CONFIG, given, tmp_path / "run")
    assert heard == [[6], []]
