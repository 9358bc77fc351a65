"""What a user sees of `torchrun`: one voice, one run, and an end where one ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from step_cli import verify

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
TORCHRUN += ["--nproc-per-node", "2", "-m", "step_cli", "train"]

# Each process leaves its number, so that a test can reach it.
NET = """
import os
from pathlib import Path
from torch import nn

rank = os.environ["RANK"]
(Path(__file__).parent / f"{rank}.pid").write_text(str(os.getpid()))

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 12))

def build_but_not_on_the_second():
    if rank == "1":
        raise RuntimeError("no such luck")
    return build()
"""
CONFIG = """
[model]
source = "net.py:build"
[data]
source = "digits"
[train]
steps = {steps}
batch_size = 16
checkpoint_every = 5
betas = [0.9, 0.8]
[switch]
criterion = "fixed"
step = 8
t_min = 0
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    return written(tmp_path, steps=12)


def written(folder: Path, *, steps: int) -> Path:
    path = folder / f"{steps}.toml"
    path.write_text(CONFIG.format(steps=steps))
    return path


def start(*words: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*TORCHRUN, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def told(child: "subprocess.Popen[str]") -> tuple[str, list[str]]:
    """What it printed, and its error lines, of whichever process."""
    out, err = child.communicate(timeout=600)
    return out, [line for line in err.splitlines() if line.startswith("error: ")]


def codes(err: str) -> set[int]:
    """The exit codes of the processes, as `torchrun` reports them."""
    return {int(code) for code in re.findall(r"exitcode  : (-?\d+)", err)}


def wait_for(what: Callable[[], bool], child: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 600
    while not what():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("kind", ["auto", "fsdp"])
def test_a_run_of_two_is_told_by_one(config: Path, kind: str) -> None:
    run_dir = config.parent / "run"
    child = start(
        config, "--run-dir", run_dir, "--set", f"train.parallel={kind}", "--json"
    )
    out, err = child.communicate(timeout=600)
    assert child.returncode == 0 and "error: " not in err, err
    report = json.loads(out)  # one document
    assert report["parallel"] == {"auto": "ddp"}.get(kind, kind)
    assert report["processes"] == 2 and report["switch"]["step"] == 8
    assert report == json.loads((run_dir / "report.json").read_text())
    assert verify(run_dir).ok
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ("model.source=net.py:build_but_not_on_the_second", 4, "no such luck"),
        ("train.stepz=3", 2, "did you mean steps"),
        ("train.batch_size=15", 2, "does not divide among 2"),
        ("train.parallel=none", 2, "2 processes were started"),
    ],
    ids=["one", "before-torch", "share", "none"],
)
def test_an_error_is_told_once_and_ends_all(
    config: Path, more: str, code: int, words: str
) -> None:
    run_dir = config.parent / "run"
    more = more.replace("net.py", str(config.parent / "net.py"))
    child = start(config, "--run-dir", run_dir, "--set", more)
    out, err = child.communicate(timeout=600)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert child.returncode == 1 and out == ""  # torchrun's own code
    assert len(errors) == 1 and words in errors[0]
    # That of the others, unless torchrun was faster than their first line of Python.
    assert code in codes(err) and codes(err) <= {code, 75, -signal.SIGTERM}
    assert not run_dir.exists()


def test_a_process_that_is_killed_ends_the_others_and_the_run_goes_on(
    config: Path,
) -> None:
    folder = config.parent
    run_dir, long = folder / "run", written(folder, steps=4000)

    def going() -> bool:
        return len(list(run_dir.glob("checkpoints/step-*"))) > 1

    child = start(long, "--run-dir", run_dir)
    wait_for(going, child)
    os.kill(int((folder / "1.pid").read_text()), signal.SIGKILL)
    _, errors = told(child)
    assert child.returncode == 1
    # None where torchrun was faster than the other process's notice.
    assert len(errors) <= 1
    assert all("another process of this run ended" in error for error in errors)

    child = start(long, "--run-dir", run_dir, "--resume")
    reached = max(run_dir.glob("checkpoints/step-*"))
    wait_for(lambda: max(run_dir.glob("checkpoints/step-*")) > reached, child)
    os.kill(int((folder / "1.pid").read_text()), signal.SIGTERM)
    _, err = child.communicate(timeout=600)
    said = re.findall(r"^error: stopped at step (\d+), go on with --resume", err, re.M)
    assert codes(err) == {75} and len(said) == 1
    assert (run_dir / "checkpoints" / f"step-{int(said[0]):08d}").is_dir()
    assert "Traceback" not in err.partition("torch/distributed/elastic")[0]
