"""A signal at the first and the last moment of a process: a code, no traceback."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

# Sends itself a signal where the moment says so, as no clock could hit it.
SENDING = """
import atexit, os, signal, sys
send = lambda: os.kill(os.getpid(), signal.{name})
class Finder:
    def find_spec(self, module, path=None, target=None):
        if module == {at!r}:
            send()
sys.meta_path.insert(0, Finder())
if {at!r} == "exit":
    atexit.register(send)
from step_cli.__main__ import main
main()
"""
CODES = {"SIGINT": 130, "SIGTERM": 75}


@pytest.fixture
def sparse_file(tmp_path: Path) -> Path:
    weight = np.tile(np.float32([1, 0, 2, 0]), (4, 2))
    save_file({"fc.weight": weight}, tmp_path / "sparse.safetensors")
    return tmp_path / "sparse.safetensors"


def signalled(name: str, at: str, *words: object) -> "subprocess.CompletedProcess[str]":
    code = SENDING.format(name=name, at=at)
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("at", ["step_cli.cli.app", "typer", "step_cli.commands"])
def test_a_signal_while_modules_are_imported_is_told_in_one_line(
    name: str, at: str, sparse_file: Path
) -> None:
    done = signalled(name, at, "verify-nm", sparse_file, "--json")
    assert done.returncode == CODES[name]
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert json.loads(done.stdout)["error"]["exit"] == CODES[name]


@pytest.mark.parametrize("name", CODES)
def test_a_signal_after_the_result_ends_quietly(name: str, sparse_file: Path) -> None:
    done = signalled(name, "exit", "verify-nm", sparse_file, "--json")
    assert (done.returncode, done.stderr) == (CODES[name], "")
    assert json.loads(done.stdout)["ok"]


def test_a_signal_after_an_error_does_not_change_its_code(tmp_path: Path) -> None:
    done = signalled("SIGTERM", "exit", "verify-nm", tmp_path / "none.safetensors")
    assert done.returncode == 4
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_without_a_signal_the_verdict_stands(sparse_file: Path) -> None:
    done = signalled("SIGTERM", "never", "verify-nm", sparse_file, "--json")
    assert (done.returncode, done.stderr) == (0, "")


SWALLOWED = """
import os, signal, sys
from step_cli.commands.verify import run as verify_nm
def swallow(config):
    try:
        os.kill(os.getpid(), signal.{name})
        signal.sigtimedwait([], 5)
    except BaseException:
        raise ValueError("what a library makes of it") from None
verify_nm.run = swallow
from step_cli.__main__ import main
main()
"""


@pytest.mark.parametrize("name", CODES)
def test_a_stop_that_a_library_swallows_is_a_stop(name: str, sparse_file: Path) -> None:
    """As torch does when it comes in the middle of an import."""
    command = [sys.executable, "-c", SWALLOWED.format(name=name), "verify-nm"]
    done = subprocess.run(
        [*command, str(sparse_file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == CODES[name], done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
