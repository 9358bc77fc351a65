"""The steps of the GitHub action, run as its runner runs them."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from bad_inputs.sound import broken, put

ROOT = Path(__file__).parents[1]


def scripts() -> list[str]:
    """The `run` of each step, in order."""
    text = (ROOT / "action.yml").read_text()
    found = re.findall(r"^      run: \|\n((?:        .*\n|\n)+)", text, re.M)
    return [textwrap.dedent(script) for script in found]


@pytest.fixture
def runner(tmp_path: Path) -> dict[str, str]:
    """A runner on which the first step has installed this checkout."""
    home = tmp_path / "runner" / "step-cli" / "bin"
    home.mkdir(parents=True)
    shim = home / "step-cli"
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m step_cli "$@"\n')
    shim.chmod(0o755)
    own = {"RUNNER_TEMP": str(tmp_path / "runner"), "GITHUB_ACTIONS": "true"}
    own["GITHUB_STEP_SUMMARY"] = str(tmp_path / "summary.md")
    empty = dict.fromkeys(("NM", "FORMAT", "OUTPUT", "OPTIONS"), "")
    return {**os.environ, **own, **empty}


def verify(
    folder: Path, env: dict[str, str], **inputs: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", scripts()[1]],
        cwd=folder,
        env=env | inputs,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_pass_and_a_failure(tmp_path: Path, runner: dict[str, str]) -> None:
    put(tmp_path / "a b.safetensors")
    put(tmp_path / "bad.safetensors", broken())
    assert verify(tmp_path, runner, PATHS="a b.safetensors\n\n").returncode == 0
    both = verify(tmp_path, runner, PATHS="a b.safetensors\nbad.safetensors", NM="2:4")
    assert both.returncode == 1
    assert "::error file=bad.safetensors" in both.stdout
    assert "bad.safetensors" in (tmp_path / "summary.md").read_text()


def test_inputs_are_words_and_never_script(
    tmp_path: Path, runner: dict[str, str]
) -> None:
    hostile = "$(touch marker);`touch marker`.safetensors"
    put(tmp_path / hostile)
    put(tmp_path / "--help")
    done = verify(tmp_path, runner, PATHS=f"{hostile}\n--help")
    assert done.returncode == 4  # a file called --help is no checkpoint
    assert not (tmp_path / "marker").exists()


def test_options_and_a_report(tmp_path: Path, runner: dict[str, str]) -> None:
    put(tmp_path / "bad.safetensors", broken())
    inputs = {"FORMAT": "junit", "OUTPUT": "nm.xml", "OPTIONS": "--exclude\nfc.*\n"}
    done = verify(tmp_path, runner, PATHS="bad.safetensors", **inputs)
    assert done.returncode == 3, done.stderr  # all are excluded
    assert (tmp_path / "nm.xml").read_text().startswith("<testsuites ")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ("--exclude fc.*", 3),
        ("--exclude 'fc.*' --strict", 3),  # as a message of verify-nm has it
        ('--include "no such"', 3),
        ("--exclude 'nothing.*'", 1),
        ("--exclude 'fc.*", 1),  # xargs refuses it: no option is lost in silence
    ],
)
def test_options_are_words_as_in_a_shell(
    options: str, code: int, tmp_path: Path, runner: dict[str, str]
) -> None:
    put(tmp_path / "bad.safetensors", broken())
    done = verify(tmp_path, runner, PATHS="bad.safetensors", OPTIONS=options)
    assert done.returncode == code, done.stderr
    assert ("unmatched" in done.stderr) == (options == "--exclude 'fc.*")


def test_patterns_of_paths(tmp_path: Path, runner: dict[str, str]) -> None:
    put(tmp_path / "a b.safetensors")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    put(tmp_path / "deep" / "er" / "bad.safetensors", broken())
    put(tmp_path / "[a].safetensors", broken())
    put(tmp_path / "a.safetensors")
    assert verify(tmp_path, runner, PATHS="  a*.safetensors \n").returncode == 0
    both = verify(tmp_path, runner, PATHS="**/*.safetensors")
    assert both.returncode == 1
    assert "::error file=deep/er/bad.safetensors" in both.stdout
    itself = verify(tmp_path, runner, PATHS="[a].safetensors")
    assert itself.returncode == 1
    none = verify(tmp_path, runner, PATHS="*.onnx\na.safetensors")
    assert none.returncode == 4
    assert "*.onnx: no such file or directory; a shell" in none.stderr
    empty = verify(tmp_path, runner, PATHS="\n")
    assert empty.returncode == 2
    assert "paths is empty" in empty.stdout


@pytest.mark.slow
def test_the_first_step_installs_the_checkout(tmp_path: Path) -> None:
    env = {"RUNNER_TEMP": str(tmp_path), "GITHUB_ACTION_PATH": str(ROOT)}
    script = ["bash", "-eo", "pipefail", "-c", scripts()[0]]
    subprocess.run(script, env={**os.environ, **env}, check=True)
    good = put(tmp_path / "m.safetensors")
    words = [tmp_path / "step-cli" / "bin" / "step-cli", "verify-nm", good]
    assert subprocess.run(words, check=False).returncode == 0
