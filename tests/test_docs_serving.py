"""docs/serving.md: its files and commands run, or the page says why not."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "serving.md").read_text("utf-8")
FENCE = re.compile(
    r"(?:^<!-- (file|not run): (.+?) -->\n)?^```(\w*)\n(.*?)^```$", re.M | re.S
)
NUMBER = re.compile(r"\d[\d.,]*(?:e[-+]\d+)?")
FILES = {what: text for kind, what, _, text in FENCE.findall(PAGE) if kind == "file"}
# What a command needs beside the project's own extras, and how that is seen.
LM_EVAL, ENGINES = "lm_eval", "tensorrt_rtx"


@dataclass(frozen=True)
class Shown:
    """A command of the page, and the lines that it prints there."""

    command: str
    output: list[str]

    @property
    def needs(self) -> str | None:
        words = shlex.split(self.command)
        text = FILES.get(words[-1], "") if words[0] == "python" else ""
        if words[0] == "lm-eval" or LM_EVAL in text:
            return LM_EVAL
        return ENGINES if "tensorrt" in words else None


def shown() -> list[Shown]:
    found = []
    for kind, _, _, body in FENCE.findall(PAGE):
        if not kind:
            text = re.sub(r" *\\\n *", " ", body)
            for command, output in re.findall(
                r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.M
            ):
                found.append(Shown(command, output.splitlines()))
    return found


def like(line: str) -> str:
    """A line without its numbers and the width of its columns."""
    return " ".join(NUMBER.sub("#", line).split())


def run(one: Shown, folder: Path) -> list[str]:
    """The lines that a command prints, as a user of another terminal sees them."""
    words = shlex.split(one.command)
    module = {"step-cli": "step_cli", "lm-eval": LM_EVAL}.get(words[0])
    words[:1] = [sys.executable, *(["-m", module] if module else [])]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    own = {
        **os.environ,
        "PYTHONPATH": path,
        "NO_COLOR": "1",
        "COLUMNS": "200",
        "CUDA_VISIBLE_DEVICES": "",  # the page shows what the CPU prints
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "cache"),
    }
    done = subprocess.run(
        words, cwd=folder, env=own, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.strip()]


def check(one: Shown, folder: Path) -> None:
    printed = [like(line) for line in run(one, folder)]
    expected = [like(line) for line in one.output]
    if "..." in expected:  # all that stands behind the dots, and nothing less
        expected = expected[len(expected) - expected[::-1].index("...") :]
        printed = printed[len(printed) - len(expected) :]
    assert printed == expected, one.command


def test_every_block_is_a_file_or_is_run_or_says_why_not() -> None:
    for kind, what, _, body in FENCE.findall(PAGE):
        assert kind or body.startswith("$ "), body
        assert what or not kind
    assert [name for name in FILES if name.endswith(".py")] == [
        "make_model.py", "generate.py", "swap.py", "ort.py", "evaluate.py",
    ]  # fmt: skip
    assert {one.needs for one in shown()} == {None, LM_EVAL, ENGINES}
    commands = " ".join(one.command for one in shown())
    assert all(name in commands for name in FILES if name.endswith(".py"))


def test_what_is_not_run_is_called_so_in_the_text() -> None:
    """A comment is not seen on the site."""
    reasons = re.findall(r"^<!-- not run: (needs .+) -->$", PAGE, re.M)
    assert len(reasons) == PAGE.count("(*not run here*)") > 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands ran that need nothing else."""
    folder = tmp_path_factory.mktemp("serving")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    for one in shown():
        if one.needs is None:
            check(one, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "library", [None, LM_EVAL, pytest.param(ENGINES, marks=pytest.mark.tensorrt)]
)
def test_the_commands_print_what_is_shown(folder: Path, library: str | None) -> None:
    if library is None:
        return  # they ran when the folder was made
    pytest.importorskip(library)
    for one in shown():
        if one.needs == library:
            check(one, folder)
