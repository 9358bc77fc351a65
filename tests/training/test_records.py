"""Each layer's flips are recorded, add up to the total, and survive a resume."""

import json
import signal
from pathlib import Path

import pytest
from small_run import small_config
from stopped_run import stopping_at

from step_cli.errors import StoppedError
from step_cli.training import run as run_module
from step_cli.training.records import PlannedLayer, read_layers
from step_cli.training.run import train


def test_the_flips_of_all_layers_add_up(tmp_path: Path) -> None:
    train(small_config(tmp_path, "train.lr=0.02"), tmp_path / "run")
    history = read_layers(tmp_path / "run")
    assert history.layers == [
        PlannedLayer("1.weight", [16, 64], "2:4", 1),
        PlannedLayer("3.weight", [12, 16], "2:4", 1),
    ]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    total = {r["step"]: r["flip_rate"] for r in map(json.loads, lines)}
    assert history.steps == [14, 16, 18, 20, 22, 24]  # the switch is after step 12
    assert history.steps == [step for step, rate in total.items() if rate is not None]
    first, second = history.of(0), history.of(1)
    assert max(first) > 0 and max(second) > 0
    for step, one, other in zip(history.steps, first, second, strict=True):
        whole = (one * 16 * 64 + other * 12 * 16) / (16 * 64 + 12 * 16)
        assert whole == pytest.approx(total[step], rel=1e-3)


def test_a_dense_run_has_layers_and_no_flips(tmp_path: Path) -> None:
    train(small_config(tmp_path, "sparsity.recipe=dense"), tmp_path / "run")
    history = read_layers(tmp_path / "run")
    assert len(history.layers) == 2 and history.steps == []


def test_a_resumed_run_records_the_same_flips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(tmp_path)
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(run_module.Trainer, "run", stopping_at(19, signal.SIGTERM))
        with pytest.raises(StoppedError):
            train(config, tmp_path / "cut")
    (tmp_path / "cut/checkpoints/step-00000019/state.json").unlink()
    with (tmp_path / "cut" / "layers.jsonl").open("a") as file:
        file.write('{"step": 20, "fl')  # torn by a crash
    assert read_layers(tmp_path / "cut").steps == [14, 16, 18]
    train(config, tmp_path / "cut", resume=True)
    one, other = (tmp_path / run / "layers.jsonl" for run in ("whole", "cut"))
    assert one.read_bytes() == other.read_bytes()
