"""The line that names what a command works on, and when it is not there."""

import io
import logging
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from small_run import CONFIG, NET, set_words

from step_cli.cli.streams import log_to_stderr
from step_cli.render import status_line
from step_cli.render.status_line import ERASE, current, hidden, working_on

Run = Callable[..., Any]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class DrawsAtOnce:
    """Instead of a thread that waits: draws when work begins."""

    def __init__(self, target: object, daemon: bool) -> None:
        pass

    def start(self) -> None:
        status_line._line.draw()
        status_line._line.thread = None


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All work is long enough, and is drawn when it begins."""
    line = status_line._Line()
    monkeypatch.setattr(status_line, "_line", line)
    monkeypatch.setattr(status_line, "SHOWN_AFTER_S", 0.0)

    class Threads:
        Thread = DrawsAtOnce
        RLock = threading.RLock

    monkeypatch.setattr(status_line, "threading", Threads)
    monkeypatch.setattr(status_line, "is_possible", lambda: True)


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name in ("CI", "NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    log_to_stderr(quiet=False, verbose=False)
    return terminal


def seen(written: str) -> str:
    """What is left on the line in the end."""
    return written.rpartition(ERASE)[2]


@pytest.mark.usefixtures("at_once")
def test_the_innermost_is_named_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = on_a_terminal(monkeypatch)
    with working_on("reading a\x1b[31m") as now:
        assert seen(terminal.getvalue()) == r"reading a\x1b[31m  0:00"
        with working_on("hashing"):
            assert seen(terminal.getvalue()).startswith("hashing")
            assert current() == "hashing"
        assert seen(terminal.getvalue()) == ""
        now("reading b")
        assert current() == "reading b"
    assert current() is None and seen(terminal.getvalue()) == ""


@pytest.mark.usefixtures("at_once")
def test_the_line_is_gone_before_anything_else_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = on_a_terminal(monkeypatch)
    with working_on("reading"):
        logging.getLogger("step_cli.x").info("said")
        assert terminal.getvalue().endswith(f"{ERASE}note: said\n")
        with hidden(), working_on("hashing"):
            assert terminal.getvalue().endswith("note: said\n")
    with pytest.raises(ValueError, match="x"), working_on("failing"):
        raise ValueError("x")
    assert seen(terminal.getvalue()) == ""


@pytest.mark.usefixtures("at_once")
def test_a_long_name_takes_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = on_a_terminal(monkeypatch)
    with working_on("x" * 300):
        assert len(seen(terminal.getvalue())) < 80


def test_short_work_is_not_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = on_a_terminal(monkeypatch)
    with working_on("reading"):
        status_line._line.draw()
    assert terminal.getvalue() == ""


@pytest.mark.parametrize("env", ["CI", "NO_COLOR"])
def test_nothing_is_drawn_where_it_is_not_wanted(
    monkeypatch: pytest.MonkeyPatch, env: str
) -> None:
    on_a_terminal(monkeypatch)
    assert status_line.is_possible()
    log_to_stderr(quiet=True, verbose=False)
    assert not status_line.is_possible()
    log_to_stderr(quiet=False, verbose=False)
    monkeypatch.setenv(env, "1")
    assert not status_line.is_possible()
    monkeypatch.delenv(env)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not status_line.is_possible()


def names_in(written: str) -> set[str]:
    return set(re.findall(re.escape(ERASE) + r"([^\r]+?)  0:0\d", written))


@pytest.mark.usefixtures("at_once")
def test_commands_on_files_name_their_work(
    step_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weight = np.arange(1, 129, dtype=np.float32).reshape(8, 16)
    dense, sparse, small = (f"{x}.safetensors" for x in ("dense", "sparse", "small"))
    save_file({"fc.weight": weight}, dense)
    said = names_in(step_cli("prune", dense, sparse).err)
    assert {f"reading {dense}", f"writing {sparse}", "pruning fc.weight"} <= said
    assert "checking what was written" in said
    said = names_in(step_cli("verify-nm", sparse).err)
    assert f"reading {sparse}" in said
    said = names_in(step_cli("export", sparse, small, "--to", "compressed").err)
    assert {f"writing {small}", "reading back what was written"} <= said
    assert f"counting the non-zeros of {sparse}" in said


@pytest.mark.usefixtures("at_once")
def test_commands_on_models_name_their_work(
    step_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("sklearn")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    (tmp_path / "net.py").write_text(NET)
    train = ["train", CONFIG, *set_words(Path("net.py"))]
    said = names_in(step_cli(*train, "--run-dir", "run").err)
    assert {"loading libraries", "building the model", "writing the results"} <= said
    assert "reading data of digits" in said
    said = names_in(step_cli(*train, "--evaluate", "run").err)
    assert {"reading run", "evaluating held-out samples"} <= said
    said = names_in(step_cli("autoswitch-profile", "run").err)
    assert "replaying run/variance.jsonl" in said
    graph = ["--model", "net.py:build", "--input", "input:float32:2x1x8x8"]
    said = names_in(step_cli("export", "run", "m.onnx", "--to", "onnx", *graph).err)
    assert {
        *("tracing the model", "comparing ONNX Runtime with PyTorch"),
        *("running the model in PyTorch", "running onnx.checker"),
    } <= said
