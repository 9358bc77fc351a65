"""Runs the commands that a document shows, and compares how they end."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", re.M | re.S)
SHOWN = re.compile(r"^```\n(\$ .*?)^```$", re.M | re.S)
NUMBER = re.compile(r"\d[\d.,]*(?:e[-+]\d+)?")


def shown(page: str) -> list[tuple[str, str]]:
    """Each command of a page, with the last line that is shown of its output."""
    found = []
    for block in SHOWN.findall(page):
        text = re.sub(r" *\\\n *", " ", block)
        for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.M):
            lines = output.removesuffix("...\n").splitlines()
            found.append((command, (lines or [""])[-1]))
    return found


def like(line: str) -> str:
    """A line without its numbers, which another machine or training changes."""
    return NUMBER.sub("#", line).strip()


def write_files(page: str, folder: Path, shorter: Mapping[str, str]) -> None:
    """The files that a page shows, with the words of ``shorter`` replaced."""
    for name, text in FILE.findall(page):
        for long, short in shorter.items():
            text = text.replace(long, short)
        (folder / name).write_text(text, "utf-8")


def run_shown(page: str, folder: Path, shorter: Mapping[str, str]) -> None:
    """Run each command in ``folder``: exit codes and last lines are as shown."""
    own = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200"}
    code = 0
    for command, last in shown(page):
        for long, short in shorter.items():
            command = command.replace(long, short)
        if command == "echo $?":
            assert code == int(last)
            continue
        if command.startswith("cp "):
            subprocess.run(command, shell=True, cwd=folder, check=True)
            continue
        program, *words = shlex.split(command)
        module = ["-m", "step_cli"] if program == "step-cli" else []
        done = subprocess.run(
            [sys.executable, *module, *words],
            cwd=folder, env=own, capture_output=True, text=True, check=False,
        )  # fmt: skip
        code = done.returncode
        assert code == (1 if last.startswith("FAILED") else 0), done.stderr
        printed = [like(line) for line in done.stdout.splitlines()]
        assert not last or like(last) in printed, command
