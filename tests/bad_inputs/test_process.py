"""Rows W01, W05 and W11-W18: outputs, pipes, environments, bugs."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import forks
import numpy as np
import pytest
from attacks.onnx_attacks import linear
from bad_inputs.console import Run, promised, state, step_cli
from bad_inputs.sound import broken, put, put_bytes

FORMATS = ("table", "json", "jsonl", "markdown", "junit", "sarif", "github")
STEP_CLI = [sys.executable, "-m", "step_cli"]


def refused(folder: Path, code: int, words: str, *arguments: object) -> Run:
    """Run; nothing in the folder may change."""
    before = state(folder)
    run = step_cli(*arguments)
    assert (run.code, len(run.errors)) == (code, 1), run.err
    assert re.search(words, run.errors[0]), run.err
    assert state(folder) == before
    promised(run)
    return run


def test_W01_an_output_that_has_no_place_is_found_before_any_work(
    tmp_path: Path,
) -> None:
    path, output = put(tmp_path / "m.safetensors"), tmp_path / "no" / "r.json"
    words = "no such directory: .*no, create it"
    for format in FORMATS:
        arguments = ["verify-nm", path, "--format", format, "--output", output]
        run = refused(tmp_path, 5, words, *arguments)
        assert "m.safetensors" not in run.out  # before any work
    arguments = ["verify-nm", path, "--json", "--output", output]
    assert refused(tmp_path, 5, words, *arguments).json["error"]["exit"] == 5


@pytest.mark.skipif(os.geteuid() == 0, reason="root ignores modes")
def test_R01_W01_modes_are_kept(tmp_path: Path) -> None:
    path = put(tmp_path / "m.safetensors")
    (tmp_path / "d").mkdir(mode=0o500)
    output = tmp_path / "d" / "r.json"
    refused(tmp_path, 5, "not writable", "verify-nm", path, "--output", output)
    path.chmod(0)
    refused(tmp_path, 4, "permission denied", "verify-nm", path)


@pytest.mark.parametrize("format", FORMATS)
def test_W02_a_full_disk_is_exit_5_in_every_format(format: str, tmp_path: Path) -> None:
    path, old = put(tmp_path / "m.safetensors", broken()), tmp_path / "r.txt"
    put_bytes(old, b"old")
    before = state(tmp_path)
    words = ["prlimit", "--fsize=100", *STEP_CLI, "verify-nm", str(path)]
    words += ["--format", format, "--output", str(old)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert done.stderr.count("error: ") == 1
    assert state(tmp_path) == before


def test_W05_what_an_output_may_replace(tmp_path: Path) -> None:
    path = put(tmp_path / "m.safetensors")
    (tmp_path / "directory").mkdir()
    locked = put_bytes(tmp_path / "locked", b"old")
    locked.chmod(0o444)
    arguments = ["verify-nm", path, "--format", "json", "--output"]
    refused(tmp_path, 5, "is a directory", *arguments, tmp_path / "directory")
    refused(tmp_path, 5, "is read-only", *arguments, locked)
    refused(tmp_path, 2, "output is the input", *arguments, path)
    behind, link = put_bytes(tmp_path / "behind", b"old"), tmp_path / "link"
    link.symlink_to("behind")
    assert step_cli(*arguments, link).code == 0
    assert os.readlink(link) == "behind"
    assert json.loads(behind.read_text())["ok"] is True


def piped(path: Path, tail: str, *options: str) -> subprocess.CompletedProcess[str]:
    words = " ".join([*STEP_CLI, "verify-nm", str(path), *options])
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {words} {tail}"],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("format", FORMATS)
def test_W11_a_stdout_that_is_closed_or_full(format: str, tmp_path: Path) -> None:
    path = put(tmp_path / "m.safetensors", broken())
    closed = piped(path, "| true", "--format", format)
    assert (closed.returncode, closed.stderr) == (1, "")
    full = piped(path, "> /dev/full", "--format", format)
    assert full.returncode == 5
    assert full.stderr.count("error: cannot write to stdout") == 1


def test_W12_json_is_one_document_while_libraries_print(tmp_path: Path) -> None:
    path = put(tmp_path / "m.safetensors", broken() * np.float32(np.nan))
    code = (
        "import os, sys, warnings\n"
        "from step_cli.commands.verify import run as verify_nm\n"
        "real = verify_nm.open_checkpoint\n"
        "def noisy(path, key):\n"
        "    print('printed'); os.write(1, b'written\\n'); warnings.warn('warned')\n"
        "    return real(path, key)\n"
        "verify_nm.open_checkpoint = noisy\n"
        "from step_cli.cli.app import main; main()"
    )
    words = [sys.executable, "-c", code, "verify-nm", str(path), "--json"]
    done = forks.run(words, torch=False, capture_output=True, text=True)
    assert done.returncode == 7
    assert json.loads(done.stdout)["error"]["exit"] == 7
    assert {"printed", "written"} <= set(done.stderr.splitlines())


def test_W13_a_bug_is_exit_70_without_local_values(tmp_path: Path) -> None:
    path = put(tmp_path / "m.safetensors")
    code = (
        "from step_cli.commands.verify import run as verify_nm\n"
        "def broken(*arguments):\n"
        "    secret = 'hunter2'; raise RuntimeError('boom')\n"
        "verify_nm.open_checkpoint = broken\n"
        "from step_cli.cli.app import main; main()"
    )
    for options, traceback in (([], False), (["--debug"], True), (["--json"], False)):
        words = [sys.executable, "-c", code, "verify-nm", str(path), *options]
        done = forks.run(words, torch=False, capture_output=True, text=True)
        assert done.returncode == 70
        assert "a bug in step-cli: RuntimeError: boom" in done.stderr
        assert "--debug" in done.stderr
        assert ("Traceback" in done.stderr) is traceback
        assert "secret = 'hunter2'" not in done.stdout + done.stderr or traceback
        if "--json" in options:
            assert json.loads(done.stdout)["error"]["exit"] == 70


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify-nm", "--no-such"], "no such option --no-such"),
        (["verify-nm", "x", "--basline", "y"], "did you mean --baseline"),
        (["verify-mn"], "no such command 'verify-mn'; did you mean verify-nm"),
        (["verify-nm"], "checkpoint"),
        (["verify-nm", "x", "--format", "yaml"], "--format"),
        ([], "missing command"),
    ],
    ids=str,
)
def test_W14_wrong_usage_is_one_line(words: list[str], message: str) -> None:
    run = step_cli(*words)
    assert run.code == 2
    assert len(run.errors) == 1 and run.err.count("\n") == 1
    assert message in run.errors[0].lower()
    promised(run)


def test_W15_no_network_is_needed_or_looked_for(tmp_path: Path) -> None:
    path = put(tmp_path / "m.safetensors")
    dead = "http://127.0.0.1:9"
    env = {name: dead for name in ("http_proxy", "https_proxy", "ALL_PROXY")}
    run = step_cli("verify-nm", path, env=env)
    assert run.code == 0
    promised(run)  # no socket


@pytest.mark.parametrize(
    "env",
    [
        {"NO_COLOR": "1"},
        {"CI": "true"},
        {"TERM": "dumb"},
        {"NO_COLOR": "1", "FORCE_COLOR": "1"},
        {"FORCE_COLOR": "1"},
    ],
    ids=str,
)
def test_W16_no_escape_byte_reaches_a_pipe_or_a_plain_terminal(
    env: dict[str, str], tmp_path: Path
) -> None:
    path = put(tmp_path / "m.safetensors", broken())
    run = step_cli("verify-nm", path, env=env)
    assert run.code == 1 and "\x1b" not in run.out + run.err
    if env != {"FORCE_COLOR": "1"}:
        assert "\x1b" not in on_a_terminal(path, env)


def on_a_terminal(path: Path, env: dict[str, str]) -> str:
    """What the command writes when its stdout is a terminal."""
    leader, follower = os.openpty()
    words = [*STEP_CLI, "verify-nm", str(path)]
    environment = {"TERM": "xterm", **os.environ, **env}
    with forks.Popen(words, torch=False, stdout=follower, env=environment) as child:
        os.close(follower)
        written = b""
        while True:
            try:
                piece = os.read(leader, 4096)
            except OSError:  # the other end was closed
                break
            if not piece:
                break
            written += piece
    os.close(leader)
    assert child.returncode == 1 and b"FAILED" in written
    return written.decode()


def test_W17_odd_environments_and_names(tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff\n\x1b[31m.safetensors"
    path = put(tmp_path / "m.safetensors", broken())
    os.rename(path, odd)
    shut = tmp_path / "shut"
    shut.mkdir(mode=0o555)
    env = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "HOME": "/nonexistent"}
    for format in FORMATS:
        words = ["verify-nm", os.fsdecode(odd), "--format", format]
        run = step_cli(*words, env=env, cwd=shut)
        assert run.code == 1, run.err
        assert "\x1b" not in run.out + run.err
        promised(run)


BLOCKED = (
    "import sys\n"
    "class Refuse:\n"
    "    def find_spec(self, name, path=None, target=None):\n"
    "        if name.split('.')[0] in {blocked!r}:\n"
    "            raise RuntimeError(name + ' was imported')\n"
    "sys.meta_path.insert(0, Refuse())\n"
    "from step_cli.cli.app import main; main()"
)


def without(blocked: tuple[str, ...], *words: object) -> Callable[[], int]:
    command = [sys.executable, "-c", BLOCKED.format(blocked=blocked)]

    def run() -> int:
        return subprocess.run(
            [*command, *map(str, words)], capture_output=True, check=False
        ).returncode

    return run


def test_W18_what_needs_no_library_imports_none(tmp_path: Path) -> None:
    path = put(tmp_path / "m.safetensors")
    model = put_bytes(tmp_path / "m.onnx", linear().SerializeToString())
    both = ("torch", "onnx")
    assert without(both, "--help")() == 0
    assert without(both, "verify-nm", "--help")() == 0
    assert without(both, "verify-nm", "--no-such")() == 2
    assert without(both, "verify-nm", path)() == 0
    assert without(both, "verify-nm", model, "--tensorrt")() == 1
