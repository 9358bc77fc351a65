"""docs/tutorial.md: its commands run one after the other, in a shorter training."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
FILE = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", re.M | re.S)
SHOWN = re.compile(r"^```\n(\$ .*?)^```$", re.M | re.S)
SHORTER = {"steps = 200": "steps = 40", "train.steps=300": "train.steps=10",
           "warmup_steps = 20": "warmup_steps = 2"}  # fmt: skip
NUMBER = re.compile(r"\d[\d.,]*(?:e[-+]\d+)?")


def shown() -> list[tuple[str, str]]:
    """Each command of the page, with the last line of what it prints."""
    found = []
    for block in SHOWN.findall(PAGE):
        text = re.sub(r" *\\\n *", " ", block)
        for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.M):
            found.append((command, (output.splitlines() or [""])[-1]))
    return found


def like(line: str) -> str:
    """A line without its numbers, which a shorter training changes."""
    return NUMBER.sub("#", line).strip()


def test_the_page_shows_files_and_commands() -> None:
    assert [name for name, _ in FILE.findall(PAGE)] == [
        "make_checkpoint.py", "config.toml", "load.py",
    ]  # fmt: skip
    verbs = [command.split()[1] for command, _ in shown() if "step-cli" in command]
    assert set(verbs) == {"train", "verify-nm", "prune", "export"}


@pytest.mark.slow
@pytest.mark.tensorrt
def test_the_commands_run_and_end_as_shown(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    own = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200"}
    for name, text in FILE.findall(PAGE):
        for long, short in SHORTER.items():
            text = text.replace(long, short)
        (tmp_path / name).write_text(text, "utf-8")
    code = 0
    for command, last in shown():
        for long, short in SHORTER.items():
            command = command.replace(long, short)
        if command == "echo $?":
            assert code == int(last)
            continue
        if command.startswith("cp "):
            subprocess.run(command, shell=True, cwd=tmp_path, check=True)
            continue
        program, *words = shlex.split(command)
        module = ["-m", "step_cli"] if program == "step-cli" else []
        done = subprocess.run(
            [sys.executable, *module, *words],
            cwd=tmp_path, env=own, capture_output=True, text=True, check=False,
        )  # fmt: skip
        code = done.returncode
        assert code == (1 if last.startswith("FAILED") else 0), done.stderr
        assert like(done.stdout.splitlines()[-1] if last else "") == like(last), command
