"""A GPT-2 trained by `torchrun` on two processes, DDP and FSDP2, as by one."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import forks
import pytest

from step_cli import verify
from step_cli.config.samples import sample_directory

CONFIG = sample_directory("stdlib-gpt") / "config.toml"
STEPS, WINDOW, EPS = 100, 20, 8.45e-8
SETTINGS = [
    f"train.steps={STEPS}", "train.warmup_steps=10", "train.batch_size=8",
    f"train.eval_every={STEPS}", "model.options={layers=2}", f"switch.eps={EPS}",
]  # fmt: skip
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def trained(run_dir: Path, *more: str, launcher: tuple[str, ...] = ()) -> Any:
    words = [sys.executable, *launcher, "-m", "step_cli", "train", str(CONFIG)]
    words += ["--run-dir", str(run_dir), "--json"]
    for setting in (*SETTINGS, *more):
        words += ["--set", setting]
    done = forks.run(
        words,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("transformers")
    # The halves of each batch one after the other: the same sums in the same order.
    halves = "train.batch_size=4", "train.grad_accumulation=2"
    return trained(tmp_path_factory.mktemp("alone") / "run", *halves)


def criterion(run_dir: Path) -> dict[int, float]:
    """AutoSwitch's windowed mean at each step that has one."""
    lines = (run_dir / "variance.jsonl").read_text().splitlines()[1:]
    changes = [json.loads(line) for line in lines]
    values = [each["dv_l1"] / each["d"] for each in changes]
    return {
        step: sum(values[step - WINDOW : step]) / WINDOW
        for step in range(WINDOW, len(values) + 1)
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_end_where_one_does(
    alone: Any, kind: str, tmp_path: Path
) -> None:
    found = trained(
        tmp_path / "run", f"train.parallel={kind}", launcher=tuple(TORCHRUN)
    )
    values, switch = criterion(Path(alone["run_dir"])), alone["switch"]["step"]
    assert alone["switch"]["reason"] == "threshold"
    # Else rounding could decide, and an equal step would be luck.
    assert all(abs(values[step] / EPS - 1) > 0.01 for step in (switch - 1, switch))
    assert found["switch"] == alone["switch"]
    for metrics in ("metrics", "dense_metrics"):
        one, other = alone[metrics]["eval_loss"], found[metrics]["eval_loss"]
        assert other == pytest.approx(one, abs=1e-6)
    assert (found["parallel"], found["processes"]) == (kind, 2)
    assert verify(tmp_path / "run").ok


@pytest.mark.slow
def test_another_batch_is_another_run(alone: Any, tmp_path: Path) -> None:
    other = trained(tmp_path / "run", "train.batch_size=16")
    difference = other["metrics"]["eval_loss"] - alone["metrics"]["eval_loss"]
    assert abs(difference) > 1e-3
