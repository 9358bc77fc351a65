"""Stopped at random steps by SIGTERM and kill -9, a run ends with the same bits."""

import hashlib
import os
import random
import sys
from pathlib import Path

import forks
import pytest

STEPS, SWITCH, EVERY, ROUNDS = 24, 12, 4, 20
CALLS = 110  # that touch a file of a checkpoint, in a run: there are a few more
RESULTS = ("model/model.safetensors", "metrics.jsonl", "variance.jsonl", "layers.jsonl")
CODES = {"SIGTERM": 75, "SIGKILL": -9}

# The model sends the signal itself, as no clock hits a step, nor a call while saving.
NET = """
import os, signal, sys
import torch
from torch import nn

KILL_AT = int(os.environ.get("KILL_AT", 0))  # a step, or a call that touches a file
NUMBER = getattr(signal, os.environ.get("KILL_BY", "SIGTERM"))
calls = 0

def hit():
    os.kill(os.getpid(), NUMBER)

def on_call(event, arguments):
    global calls
    if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"):
        if "checkpoints" in str(arguments[0]):
            calls += 1
            if calls == KILL_AT:
                hit()

if os.environ.get("KILL_IN") == "save":
    sys.addaudithook(on_call)

class Net(nn.Sequential):
    taken = 0

    def forward(self, x):
        if self.training:
            self.taken += 1
            if self.taken == KILL_AT and os.environ.get("KILL_IN") == "step":
                hit()
            if self.taken == 1 and os.environ.get("RESEED"):
                torch.manual_seed(12345)
        return super().forward(x)

def build():
    return Net(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Tanh(),
               nn.Dropout(0.3), nn.Linear(16, 12))
"""
CONFIG = f"""
[model]
source = "net.py:build"
[data]
source = "digits"
[train]
steps = {STEPS}
batch_size = 16
betas = [0.9, 0.8]
log_every = 3
eval_every = 6
checkpoint_every = {EVERY}
[switch]
eps = 1e-30
t_min = 2
t_max = {SWITCH - 1}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rounds")
    (folder / "net.py").write_text(NET)
    (folder / "c.toml").write_text(CONFIG)
    return folder / "c.toml"


def train(config: Path, run_dir: Path, *more: str, **signals: object) -> int:
    words = [sys.executable, "-m", "step_cli", "train", str(config)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env |= {name: str(value) for name, value in signals.items()}
    done = forks.run(
        [*words, "--run-dir", str(run_dir), *more],
        capture_output=True,
        env=env,
        timeout=600,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    return done.returncode


def digests(run_dir: Path) -> dict[str, str]:
    return {
        name: hashlib.sha256((run_dir / name).read_bytes()).hexdigest()
        for name in RESULTS
    }


@pytest.fixture(scope="module")
def whole(config: Path) -> dict[str, str]:
    run_dir = config.parent / "whole"
    assert train(config, run_dir) == 0
    return digests(run_dir)


def complete(run_dir: Path) -> list[int]:
    """The steps whose checkpoints have their end."""
    return sorted(
        int(path.parent.name[5:])
        for path in run_dir.glob("checkpoints/step-*/state.json")
    )


def go_on(config: Path, run_dir: Path) -> None:
    """Resume, or begin again where no checkpoint was reached."""
    if complete(run_dir):
        assert train(config, run_dir, "--resume") == 0
        return
    if run_dir.exists():
        assert train(config, run_dir, "--resume") == 4
    assert train(config, run_dir, "--force") == 0


def steps_to_hit(seed: int) -> list[int]:
    """Before, at and after the switch, and anywhere else."""
    around = [SWITCH - 1, SWITCH, SWITCH + 1]
    others = random.Random(seed).choices(range(1, STEPS), k=ROUNDS - len(around))
    return around + others


@pytest.mark.slow
@pytest.mark.parametrize("name", CODES)
def test_stopped_at_random_steps(
    config: Path, whole: dict[str, str], tmp_path: Path, name: str
) -> None:
    for number, step in enumerate(steps_to_hit(seed=1)):
        run_dir = tmp_path / f"{number}-step-{step}"
        code = train(config, run_dir, KILL_AT=step, KILL_BY=name, KILL_IN="step")
        assert code == CODES[name], step
        reached = max(complete(run_dir), default=0)
        # A step that was under way is finished for SIGTERM, and lost with kill -9.
        lost = step - 1 - (step - 1) % EVERY
        assert reached == (step if name == "SIGTERM" else lost), step
        go_on(config, run_dir)
        assert digests(run_dir) == whole, step


@pytest.mark.slow
def test_killed_while_saving(
    config: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    calls, alive = random.Random(2).sample(range(1, CALLS), ROUNDS), 0
    for call in calls:
        run_dir = tmp_path / f"call-{call}"
        code = train(config, run_dir, KILL_AT=call, KILL_BY="SIGKILL", KILL_IN="save")
        assert code in (-9, 0), call
        if code == 0:
            continue
        alive += 1
        go_on(config, run_dir)
        assert digests(run_dir) == whole, call
        left = [path.name for path in (run_dir / "checkpoints").iterdir()]
        assert all(name.startswith("step-") for name in left), call
    assert alive >= 0.8 * ROUNDS  # else the rounds show nothing


@pytest.mark.slow
def test_the_comparison_can_fail(
    config: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    code = train(config, run_dir, KILL_AT=9, KILL_BY="SIGTERM", KILL_IN="step")
    assert code == CODES["SIGTERM"]
    assert train(config, run_dir, "--resume", RESEED="1") == 0
    assert digests(run_dir) != whole
