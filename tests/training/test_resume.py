"""Stopping and going on: the same bits as if nothing had happened."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import forks
import pytest
from stopped_run import stopping_at

from step_cli.config.samples import sample_directory
from step_cli.config.train import TrainConfig, load_config
from step_cli.errors import INTERRUPTED, InputError, NonFiniteError, StoppedError
from step_cli.formats.open import open_checkpoint
from step_cli.formats.plan import read_plan
from step_cli.training import run as run_module
from step_cli.training.run import train

CONFIG = sample_directory("digits-resnet") / "config.toml"
STEPS, SWITCH = 14, 7
RESULTS = ("model/model.safetensors", "metrics.jsonl", "variance.jsonl")

# Dropout draws from torch's generator at every step.
NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16),
                         nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 12))
"""


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    net = tmp_path / "net" / "net.py"
    net.parent.mkdir()
    net.write_text(NET)
    return configured(net)


def configured(net: Path, *more: str) -> TrainConfig:
    overrides = [
        f"model.source={net}:build", f"train.steps={STEPS}", "train.warmup_steps=3",
        "train.batch_size=16", "train.log_every=3", "train.eval_every=5",
        "train.checkpoint_every=4", "train.betas=[0.9, 0.8]", "switch.eps=1e-30",
        "switch.t_min=2", f"switch.t_max={SWITCH - 1}", *more,
    ]  # fmt: skip
    return load_config(CONFIG, overrides)


@pytest.mark.parametrize("step", [1, 4, SWITCH - 1, SWITCH, SWITCH + 1, STEPS - 1])
def test_a_stopped_run_ends_with_the_same_bits(
    config: TrainConfig, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(run_module.Trainer, "run", stopping_at(step, signal.SIGTERM))
        with pytest.raises(StoppedError, match=f"stopped at step {step}") as stopped:
            train(config, tmp_path / "cut")
    assert stopped.value.exit_code == 75
    assert not (tmp_path / "cut" / "model").exists()
    report = train(config, tmp_path / "cut", resume=True)
    assert report.switch is not None and report.switch.step == SWITCH
    for name in RESULTS:
        one, other = (tmp_path / run / name for run in ("whole", "cut"))
        assert one.read_bytes() == other.read_bytes(), name


def test_without_the_random_state_the_bits_differ(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(run_module.Trainer, "run", stopping_at(5, signal.SIGTERM))
        with pytest.raises(StoppedError):
            train(config, tmp_path / "cut")
    name = "step_cli.training.process_state.restore_random_states"
    monkeypatch.setattr(name, lambda states, device: None)
    train(config, tmp_path / "cut", resume=True)
    one, other = (tmp_path / run / RESULTS[0] for run in ("whole", "cut"))
    assert one.read_bytes() != other.read_bytes()


# Noise from a generator of the model's own, and as much from torch's.
NOISY = """
import torch
from torch import nn

class Noise(nn.Module):
    def __init__(self, own):
        super().__init__()
        self.generator = torch.Generator().manual_seed(1) if own else None
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if not self.training:
            return x
        self.calls += 1
        return x + self.calls * torch.randn(x.shape, generator=self.generator)

def build(own):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), Noise(own), nn.Linear(16, 12))
"""


@pytest.mark.parametrize("own", [True, False])
def test_a_generator_of_the_model_s_own_is_not_carried(
    tmp_path: Path, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = tmp_path / "net.py"
    net.write_text(NOISY)
    config = configured(net, f"model.options.own={str(own).lower()}")
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(run_module.Trainer, "run", stopping_at(5, signal.SIGTERM))
        with pytest.raises(StoppedError):
            train(config, tmp_path / "cut")
    train(config, tmp_path / "cut", resume=True)
    one, other = (tmp_path / run / RESULTS[0] for run in ("whole", "cut"))
    assert (one.read_bytes() == other.read_bytes()) == (not own)


def test_ctrl_c_ends_with_130(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module.Trainer, "run", stopping_at(2, signal.SIGINT))
    with pytest.raises(StoppedError) as stopped:
        train(config, tmp_path / "cut")
    assert stopped.value.exit_code == INTERRUPTED


def test_the_newest_checkpoints_are_kept(config: TrainConfig, tmp_path: Path) -> None:
    train(config, tmp_path / "run")
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-00000008", "step-00000012"]


@pytest.fixture
def stopped(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A run that was stopped after step 9, with checkpoints of steps 8 and 9."""
    with monkeypatch.context() as patch:
        patch.setattr(run_module.Trainer, "run", stopping_at(9, signal.SIGTERM))
        with pytest.raises(StoppedError):
            train(config, tmp_path / "run")
    return tmp_path / "run"


def test_a_checkpoint_without_its_end_is_passed_over(
    config: TrainConfig, stopped: Path, tmp_path: Path
) -> None:
    (stopped / "checkpoints" / "step-00000009" / "state.json").unlink()
    train(config, stopped, resume=True)
    train(config, tmp_path / "whole")
    for name in RESULTS:
        assert (stopped / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors"])
def test_a_changed_checkpoint_is_refused(
    config: TrainConfig, stopped: Path, file: str
) -> None:
    path = stopped / "checkpoints" / "step-00000009" / file
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(InputError, match="sha256 differs"):
        train(config, stopped, resume=True)


def test_another_configuration_is_refused_with_its_keys(
    config: TrainConfig, stopped: Path, tmp_path: Path
) -> None:
    other = configured(tmp_path / "net" / "net.py", "train.lr=0.5", "train.seed=3")
    with pytest.raises(InputError) as refused:
        train(other, stopped, resume=True)
    assert "train.lr is 0.5, was 0.001" in refused.value.message
    assert "train.seed is 3, was 0" in refused.value.message


def test_patterns_that_were_searched_are_not_searched_again(
    tmp_path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(tmp_path / "net" / "net.py", "sparsity.recipe=domino-search")
    with monkeypatch.context() as patch:
        patch.setattr(run_module.Trainer, "run", stopping_at(9, signal.SIGTERM))
        with pytest.raises(StoppedError):
            train(config, tmp_path / "run")
    plan = read_plan(tmp_path / "run" / "nm_plan.json")
    assert {str(layer.pattern) for layer in plan.values()} != {"2:4"}

    def searched_again(*given: object) -> None:
        raise AssertionError

    monkeypatch.setattr("step_cli.training.setup.find_patterns", searched_again)
    train(config, tmp_path / "run", resume=True)
    written = open_checkpoint(tmp_path / "run").plan
    assert written == plan


def test_nothing_to_resume_is_an_error(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to resume"):
        train(config, tmp_path / "none", resume=True)
    train(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(InputError, match="nothing to resume"):
        train(config, tmp_path / "run", resume=True)


def test_a_failure_keeps_the_last_good_checkpoint(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from step_cli.training.trainer import Trainer

    real = Trainer._step

    def failing(self: Trainer, step: int, *rest: Any, **more: Any) -> float:
        if step == 6:
            raise NonFiniteError("step 6: the loss is nan")
        return real(self, step, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", failing)
        with pytest.raises(NonFiniteError):
            train(config, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == [
        "step-00000004"
    ]
    assert train(config, tmp_path / "run", resume=True).ok


def start(config_path: Path, run_dir: Path, *more: str) -> "subprocess.Popen[bytes]":
    words = [sys.executable, "-m", "step_cli", "train", str(config_path)]
    words += ["--run-dir", str(run_dir), *more]
    return forks.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def newest(run_dir: Path) -> int:
    found = [int(p.name[5:]) for p in run_dir.glob("checkpoints/step-*")]
    return max(found, default=0)


def wait_for_checkpoint(
    run_dir: Path, step: int, child: "subprocess.Popen[bytes]"
) -> None:
    """Wait for a checkpoint of ``step`` or later: only the newest are kept."""
    deadline = time.monotonic() + 600
    while newest(run_dir) < step:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def test_kill_9_and_a_second_trainer(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    path = tmp_path / "c.toml"
    path.write_text(
        f'[model]\nsource = "{tmp_path}/net.py:build"\n[data]\nsource = "digits"\n'
        "[train]\nsteps = 100000\ncheckpoint_every = 5\n[switch]\nt_max = 0.9\n"
    )
    child = start(path, tmp_path / "run")
    wait_for_checkpoint(tmp_path / "run", 10, child)
    second = start(path, tmp_path / "run", "--resume")
    _, said = second.communicate(timeout=600)
    assert second.returncode == 5 and b"is being written by process" in said
    child.kill()
    child.communicate()
    reached = newest(tmp_path / "run")
    third = start(path, tmp_path / "run", "--resume")
    wait_for_checkpoint(tmp_path / "run", reached + 10, third)
    third.send_signal(signal.SIGTERM)
    _, said = third.communicate(timeout=600)
    assert third.returncode == 75
    assert b"go on with --resume" in said and b"Traceback" not in said


def test_what_a_trainer_left_that_died_while_saving_goes(
    config: TrainConfig, stopped: Path
) -> None:
    folder, dead = stopped / "checkpoints", 2**22 + 1  # no process has this number
    (folder / ".step-00000009.lock").write_text(f"{dead} host")
    (folder / f".step-00000012.tmp-{dead}").mkdir()
    (folder / ".step-00000012.lock").write_text(f"{dead} host")
    train(config, stopped, resume=True)
    assert all(path.name.startswith("step-") for path in folder.iterdir())
