"""The command line: one clear line and the right exit code, whatever goes wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import forks
import numpy as np
import pytest
import typer
from safetensors.numpy import save_file

from step_cli.cli import app as cli
from step_cli.cli.app import app
from step_cli.config import samples

Run = Callable[..., "object"]
CONFIG = samples.sample_directory("digits-resnet") / "config.toml"


@pytest.fixture
def sparse_file(tmp_path: Path) -> Path:
    path = tmp_path / "sparse.safetensors"
    weight = np.zeros((8, 16), np.float32)
    weight[:, ::2] = 1.0
    save_file({"fc.weight": weight}, path)
    return path


@pytest.fixture
def corrupt_file(tmp_path: Path) -> Path:
    path = tmp_path / "corrupt.safetensors"
    path.write_bytes(b"\xff" * 64)
    return path


def commands() -> list[str]:
    return [
        (command.name or command.callback.__name__.replace("_", "-"))  # type: ignore[union-attr]
        for command in app.registered_commands
    ]


def test_the_five_commands_exist() -> None:
    assert set(commands()) == {
        "train", "autoswitch-profile", "prune", "verify-nm", "export",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "missing command"),
        (["trian"], "did you mean train"),
        (["verify-nm"], "missing parameter"),
        (["train", "x.toml", "--forc"], "did you mean --force"),
        (["prune", "a.safetensors"], "missing parameter"),
        (["verify-nm", "x", "--nm", "5:4"], "--nm: expected N:M"),
        (["verify-nm", "x", "--nm", "24"], "got '24'"),
        (["export", "a", "b"], "--to"),
        (["export", "a", "b", "--to", "onxn"], "--to: expected"),
        (["autoswitch-profile", "x", "--beta2", "1"], "--beta2: expected less than 1"),
        (["autoswitch-profile", "x", "--t-min", "1.5"], "--t-min: expected a step"),
        (["autoswitch-profile", "x", "--criterion", "autoswich"], "did you mean"),
        (["autoswitch-profile", "x", "--plot", "a.pdf"], "--plot"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(
    step_cli: Run, arguments: list[str], words: str
) -> None:
    outcome = step_cli(*arguments)
    assert outcome.code == 2
    assert words in outcome.error
    assert outcome.out == ""


MISSING = {
    "verify-nm": ["{0}"],
    "prune": ["{0}", "{out}"],
    "train": ["{0}", "--run-dir", "{out}"],
    "autoswitch-profile": ["{0}"],
    "export": ["{0}", "{out}", "--to", "compressed"],
}


@pytest.mark.parametrize("command", MISSING)
def test_a_missing_file_is_exit_4(step_cli: Run, tmp_path: Path, command: str) -> None:
    missing, out = tmp_path / "missing.safetensors", tmp_path / "out.safetensors"
    words = [word.format(missing, out=out) for word in MISSING[command]]
    outcome = step_cli(command, *words)
    assert outcome.code == 4
    assert "no such file" in outcome.error and str(missing) in outcome.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", MISSING)
def test_a_corrupt_file_is_refused_and_nothing_written(
    step_cli: Run, tmp_path: Path, corrupt_file: Path, command: str
) -> None:
    words = [
        word.format(corrupt_file, out=tmp_path / "out.safetensors")
        for word in MISSING[command]
    ]
    outcome = step_cli(command, *words)
    assert outcome.code == 4
    assert str(corrupt_file) in outcome.error
    assert list(tmp_path.iterdir()) == [corrupt_file]


@pytest.mark.parametrize("command", ["prune", "export", "train"])
def test_an_existing_output_is_exit_5_and_stays(
    step_cli: Run, tmp_path: Path, sparse_file: Path, command: str
) -> None:
    out = tmp_path / "out.safetensors"
    out.write_text("precious")
    source = CONFIG if command == "train" else sparse_file
    words = [word.format(source, out=out) for word in MISSING[command]]
    outcome = step_cli(command, *words)
    assert outcome.code == 5
    assert "--force" in outcome.error
    assert out.read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {out.name, sparse_file.name}


@pytest.mark.parametrize(
    "words",
    [
        ["prune", "{0}", "{1}/"],
        ["export", "{0}", "{1}/", "--to", "compressed"],
        ["verify-nm", "{0}", "--output", "{1}/"],
        ["autoswitch-profile", "{0}", "--plot", "{1}.svg/"],
    ],
)
def test_a_file_is_not_written_where_a_directory_is_named(
    step_cli: Run, tmp_path: Path, sparse_file: Path, words: list[str]
) -> None:
    given = [word.format(sparse_file, tmp_path / "out") for word in words]
    outcome = step_cli(*given)
    assert outcome.code == 5
    assert "names a directory, and a file is to be written" in outcome.error
    assert list(tmp_path.iterdir()) == [sparse_file]


def test_a_directory_may_be_named_like_one(step_cli: Run, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    weights = {"fc.weight": np.ones((8, 16), np.float32)}
    save_file(weights, tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "config.json").write_text("{}")
    assert step_cli("prune", f"{tmp_path}/model/", f"{tmp_path}/out/").code == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("command", MISSING)
def test_json_is_one_document_on_failure_too(
    step_cli: Run, tmp_path: Path, command: str
) -> None:
    words = [
        word.format(tmp_path / "missing.safetensors", out=tmp_path / "out.safetensors")
        for word in MISSING[command]
    ]
    document = json.loads(step_cli(command, *words, "--json").out)
    assert document["schema"] == f"step-cli/{command}/1"
    assert document["ok"] is False
    assert document["error"]["exit"] == 4
    assert step_cli(command, *words, "--json").error


def test_a_bug_is_exit_70_and_shows_its_traceback_on_request_only(
    step_cli: Run, monkeypatch: pytest.MonkeyPatch, sparse_file: Path
) -> None:
    def broken(config: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr("step_cli.commands.verify.run.run", broken)
    outcome = step_cli("verify-nm", sparse_file)
    assert outcome.code == 70
    assert "a bug in step-cli" in outcome.error
    assert "Traceback" in step_cli("--debug", "verify-nm", sparse_file).err


def test_ctrl_c_is_exit_130(
    step_cli: Run, monkeypatch: pytest.MonkeyPatch, sparse_file: Path
) -> None:
    def interrupted(config: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("step_cli.commands.verify.run.run", interrupted)
    assert step_cli("verify-nm", sparse_file).code == 130


@pytest.mark.parametrize("where", ["before", "after"])
def test_global_options_stand_before_or_after_the_command(
    step_cli: Run, sparse_file: Path, where: str
) -> None:
    words = ["verify-nm", sparse_file]
    words = ["-v", "-q", *words] if where == "before" else [*words, "-v", "-q"]
    assert step_cli(*words).code == 0


def test_version_is_one_line_and_more_when_verbose(step_cli_process: Run) -> None:
    assert len(step_cli_process("--version").out.splitlines()) == 1
    told = step_cli_process("-v", "--version").out
    assert "torch" in told and "\nPython 3." in told
    assert re.search(r"^kernels (avx512|avx2|neon|numpy): \w", told, re.M)


def test_version_as_json_lists_kernels_and_packages(step_cli_process: Run) -> None:
    told = step_cli_process("--version", "--json").json
    assert told["schema"] == "step-cli/version/1" and told["ok"]
    assert told["kernels"]["instructions"] in ("avx512", "avx2", "neon", None)
    assert told["packages"]["numpy"] == np.__version__
    assert told == step_cli_process("--json", "--version").json


def test_every_help_names_the_exit_codes_or_the_options(step_cli_process: Run) -> None:
    assert "Exit codes" in step_cli_process("--help").out
    for command in commands():
        outcome = step_cli_process(command, "--help")
        assert outcome.code == 0 and "--json" in outcome.out


def test_a_closed_pipe_keeps_the_verdict(sparse_file: Path) -> None:
    command = f"{sys.executable} -m step_cli verify-nm {sparse_file}"
    shell = f"set -o pipefail; {command} | true"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, check=False)
    assert done.returncode == 0
    assert done.stderr == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_stdout_that_cannot_be_written_is_exit_5(sparse_file: Path) -> None:
    words = [sys.executable, "-m", "step_cli", "verify-nm", sparse_file]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            words, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 5
    assert "cannot write to stdout" in done.stderr


def test_no_escape_byte_reaches_a_pipe(
    step_cli_process: Run, sparse_file: Path
) -> None:
    outcome = step_cli_process(
        "verify-nm", sparse_file, env={**os.environ, "FORCE_COLOR": "1"}
    )
    assert "\x1b" not in outcome.out + outcome.err


def test_names_in_errors_are_escaped(step_cli: Run, tmp_path: Path) -> None:
    hostile = tmp_path / "x\n::error::\x1b[31m.safetensors"
    outcome = step_cli("verify-nm", hostile)
    assert outcome.code == 4
    assert "\x1b" not in outcome.err
    assert not any(line.startswith("::") for line in outcome.err.splitlines())


def test_sigterm_is_exit_75_without_a_traceback(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "step_cli", "train", str(CONFIG)]
    words += ["--run-dir", str(tmp_path / "run"), "--set", "train.steps=100000"]
    child = forks.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 600
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=600)
    assert child.returncode == 75, err
    assert b"Traceback" not in err


def test_commands_are_typer_commands() -> None:
    assert isinstance(cli.app, typer.Typer)
