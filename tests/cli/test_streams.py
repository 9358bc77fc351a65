"""Closed, full and odd standard streams: no traceback, the right code, no lost output.

A shell starts the commands, as only a new process can begin with a closed stream.
"""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from step_cli.cli.streams import log_to_stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    weight = np.zeros((8, 16), np.float32)
    weight[:, ::2] = 1.0
    save_file({"fc.weight": weight}, tmp_path / "sparse.safetensors")
    weight[3, :4] = 1.0
    save_file({"fc.weight": weight}, tmp_path / "bad.safetensors")
    return tmp_path


def in_shell(folder: Path, words: str) -> "subprocess.CompletedProcess[str]":
    line = words.replace("step-cli", f"{sys.executable} -m step_cli")
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False, cwd=folder
    )


@pytest.mark.parametrize(("name", "code"), [("sparse", 0), ("bad", 1), ("none", 4)])
@pytest.mark.parametrize("streams", [">&-", ">&- 2>&-", "<&- >&- 2>&-", "2>&-"])
def test_a_verdict_stands_without_streams(
    folder: Path, name: str, code: int, streams: str
) -> None:
    done = in_shell(folder, f"step-cli verify-nm {name}.safetensors {streams}")
    assert done.returncode == code
    assert "Traceback" not in done.stderr and "step-cli" not in done.stderr


@pytest.mark.parametrize(
    "words", ["prune bad.safetensors out.safetensors", "--version"]
)
def test_other_results_are_not_worked_for_if_nobody_can_get_them(
    folder: Path, words: str
) -> None:
    before = sorted(folder.iterdir())
    done = in_shell(folder, f"step-cli {words} >&-")
    assert done.returncode == 5
    said = "error: stdout is closed; send it to a file or to /dev/null\n"
    assert done.stderr == said
    assert sorted(folder.iterdir()) == before


def test_an_output_never_gets_the_number_of_a_closed_stream(folder: Path) -> None:
    words = "step-cli prune bad.safetensors out.safetensors <&- >/dev/null 2>&-"
    assert in_shell(folder, words).returncode == 0
    kept = load_file(folder / "out.safetensors")["fc.weight"]
    assert np.count_nonzero(kept[3, :4]) == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_stdout_says_what_is_complete_all_the_same(folder: Path) -> None:
    done = in_shell(folder, "step-cli prune bad.safetensors out.safetensors >/dev/full")
    assert done.returncode == 5
    words = (
        "cannot write to stdout: no space left on device; out.safetensors is complete"
    )
    assert done.stderr.endswith(f"error: {words}\n")
    assert in_shell(folder, "step-cli verify-nm out.safetensors").returncode == 0
    dry = "step-cli prune bad.safetensors o2.safetensors --dry-run >/dev/full"
    assert in_shell(folder, dry).stderr.endswith("no space left on device\n")


@pytest.mark.parametrize(
    ("quiet", "verbose", "levels"),
    [
        (False, False, ["note", "warning"]),
        (True, False, []),
        (False, True, ["note", "note", "warning"]),
    ],
)
def test_one_line_each_at_the_level_asked_for(
    quiet: bool, verbose: bool, levels: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    log_to_stderr(quiet=quiet, verbose=verbose)
    log = logging.getLogger("step_cli.commands.verify.run")
    for tell in (log.debug, log.info, log.warning):
        tell("%s: read", "a\n::error::\x1b[31m")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == levels
    assert all(line.endswith(": a\\n::error::\\x1b[31m: read") for line in lines)
