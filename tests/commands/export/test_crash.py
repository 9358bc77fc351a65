"""`export` killed, stopped, or out of disk: the target is the old or the new file."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import forks
import numpy as np
import pytest
from safetensors.numpy import save_file

from step_cli.commands.export import run as export
from step_cli.config.commands import ExportConfig

OLD = b"the old target"
Command = list[str]


def sparse_checkpoint(path: Path, rows: int = 4096) -> Path:
    rng = np.random.default_rng(0)
    weight = rng.integers(1, 100, (rows, 1024)).astype(np.float16)
    weight.reshape(-1, 4)[:, ::2] = 0
    save_file({"fc.weight": weight}, path)
    return path


class Case:
    """One export over an old target, and what it must leave."""

    def __init__(self, folder: Path, name: str, *more: str) -> None:
        self.source = folder / "m.safetensors"
        self.folder = folder / "out"
        self.folder.mkdir()
        self.target = self.folder / name
        self.kind = "onnx" if name.endswith(".onnx") else "compressed"
        self.words = [str(self.source), str(self.target), "--to", self.kind, *more]
        self.before = self.source.read_bytes()
        self.target.write_bytes(OLD)
        self.finish()
        self.new = self.target.read_bytes()

    @property
    def command(self) -> Command:
        words = [*self.words, "--force"]
        return [sys.executable, "-m", "step_cli", "export", *words]

    def finish(self) -> None:
        """A run that nothing disturbs; it clears up what others left."""
        given = dict(zip(self.words[4::2], self.words[5::2], strict=True))
        assert export.run(
            ExportConfig(
                checkpoint=self.source,
                out=self.target,
                to=self.kind,
                force=True,
                model=given.get("--model"),
                input=[given["--input"]] if "--input" in given else [],
            )
        ).ok
        assert self.left() == []

    def reset(self) -> None:
        self.target.write_bytes(OLD)

    def left(self) -> list[str]:
        """Staging that is still there; locks of dead runs do not matter."""
        names = sorted(path.name for path in self.folder.iterdir())
        return [n for n in names if n != self.target.name and not n.endswith(".lock")]

    def check(self) -> None:
        assert self.target.read_bytes() in (OLD, self.new)
        assert self.source.read_bytes() == self.before
        self.finish()
        assert self.target.read_bytes() == self.new
        self.reset()


def in_its_write(case: Case, number: int, rounds: int, seed: int = 0) -> list[int]:
    """Signal runs within their write until so many ended by it; return all codes.

    On a busy machine more have ended before, or end before the signal is looked at.
    """
    writes_s, rng, codes = seconds_of_the_write(case), random.Random(seed), []
    by_it = 75 if number == signal.SIGTERM else -number
    while codes.count(by_it) < rounds:
        assert len(codes) < 10 * rounds, codes
        case.reset()
        child = started(case)
        time.sleep(rng.uniform(0, 0.5 * writes_s))
        if child.poll() is None:
            os.kill(child.pid, number)
        codes.append(child.wait())
        if codes[-1] == -signal.SIGTERM:  # Python itself was ending: too late to tell
            assert case.target.read_bytes() == case.new
        case.check()
    return codes


def started(case: Case) -> "subprocess.Popen[bytes]":
    """A run that has begun to write."""
    nowhere = subprocess.DEVNULL
    torch = case.kind == "onnx"
    child = forks.Popen(case.command, torch=torch, stdout=nowhere, stderr=nowhere)
    while child.poll() is None and not case.left():
        time.sleep(0.0005)
    return child


def seconds_of_the_write(case: Case) -> float:
    child = started(case)
    began = time.perf_counter()
    assert child.poll() is None, "no staging was seen"
    while case.left():
        time.sleep(0.0005)
    child.wait()
    return time.perf_counter() - began


@pytest.fixture
def compressed(tmp_path: Path) -> Case:
    sparse_checkpoint(tmp_path / "m.safetensors")
    return Case(tmp_path, "c.safetensors")


@pytest.fixture
def onnx(net: Path, tmp_path: Path) -> Case:
    for module in ("torch", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    shutil.copy(net / "m.safetensors", tmp_path)
    model = ["--model", f"{net / 'net.py'}:build", "--input", "x:float32:2x16"]
    return Case(tmp_path, "m.onnx", *model)


def test_a_kill_leaves_the_old_or_the_new_file(compressed: Case) -> None:
    codes = in_its_write(compressed, signal.SIGKILL, 5)
    assert set(codes) <= {-signal.SIGKILL, 0}


def test_a_stop_is_told_and_leaves_the_old_file(compressed: Case) -> None:
    codes = in_its_write(compressed, signal.SIGTERM, 3)
    assert set(codes) <= {75, -signal.SIGTERM, 0}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["compressed", "onnx"])
def test_many_kills_and_stops(
    request: pytest.FixtureRequest, kind: str, number: int
) -> None:
    case: Case = request.getfixturevalue(kind)
    codes = in_its_write(case, number, 30 if kind == "compressed" else 10)
    told = 75 if number == signal.SIGTERM else -number
    assert set(codes) <= {told, -number, 0}


def limited(case: Case, size: int) -> "subprocess.CompletedProcess[str]":
    limit = f"import resource as r; r.setrlimit(r.RLIMIT_FSIZE, ({size}, {size}))\n"
    code = f"{limit}from step_cli.__main__ import main; main()"
    command = [sys.executable, "-c", code, *case.command[3:]]
    torch = case.kind == "onnx"
    return forks.run(command, torch=torch, capture_output=True, text=True)


def refused(case: Case, sizes: Callable[[int], list[int]]) -> None:
    for size in sizes(len(case.new)):
        case.reset()
        done = limited(case, size)
        assert done.returncode == 5, done.stderr
        assert done.stderr.count("error: ") == 1
        assert case.target.read_bytes() == OLD
        assert case.left() == []
    assert limited(case, 100 * len(case.new)).returncode == 0


def test_a_full_disk_at_any_byte_leaves_the_old_file(compressed: Case) -> None:
    refused(compressed, lambda size: [0, 1, 4096, size // 2, size - 1])


def test_a_full_disk_leaves_no_part_of_an_onnx_file(onnx: Case) -> None:
    refused(onnx, lambda size: [size // 2])
