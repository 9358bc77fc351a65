"""`--quiet`: nothing but errors and failed checks, of every command."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from small_run import CONFIG, NET, set_words

Run = Callable[..., Any]

FILES = [
    ["verify-nm", "sparse.safetensors"],
    ["verify-nm", "sparse.safetensors", "--output", "report.txt"],
    ["prune", "dense.safetensors", "pruned.safetensors"],
    ["prune", "dense.safetensors", "no.safetensors", "--dry-run"],
    ["export", "sparse.safetensors", "small.safetensors", "--to", "compressed"],
    ["export", "small.safetensors", "again.safetensors", "--to", "dense"],
    ["--version"],
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dense file, a 2:4 one, and the code of a small net."""
    weight = np.arange(1, 129, dtype=np.float32).reshape(8, 16)
    save_file({"fc.weight": weight}, tmp_path / "dense.safetensors")
    weight[:, 0::4] = weight[:, 1::4] = 0
    save_file({"fc.weight": weight}, tmp_path / "sparse.safetensors")
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def test_what_passes_prints_nothing_unless_it_is_asked_for(
    step_cli_process: Run, folder: Path
) -> None:
    for words in FILES:
        done = step_cli_process(*words, "-q", cwd=folder)
        assert (done.code, done.err) == (0, ""), words
        assert bool(done.out) is (words == ["--version"])
    assert "fc.weight" in (folder / "report.txt").read_text()
    words = FILES[0]
    assert json.loads(step_cli_process("-q", *words, "--json", cwd=folder).out)["ok"]
    table = step_cli_process("--quiet", *words, "--format", "table", cwd=folder)
    assert table.out == step_cli_process(*words, cwd=folder).out


def test_what_fails_is_shown_as_ever(step_cli_process: Run, folder: Path) -> None:
    words = ["verify-nm", "dense.safetensors"]
    quiet = step_cli_process(*words, "-q", cwd=folder)
    assert quiet.code == 1 and "FAILED" in quiet.out
    assert quiet == step_cli_process(*words, cwd=folder)
    words = ["prune", "none.safetensors", "out.safetensors"]
    quiet = step_cli_process("-q", *words, cwd=folder)
    assert (quiet.code, quiet.out) == (4, "") and quiet.error
    warned = ["prune", "dense.safetensors", "o.safetensors", "--exclude", "nothing"]
    assert step_cli_process(*warned, cwd=folder).err.startswith("warning:")
    assert not step_cli_process(*warned, "-q", "--force", cwd=folder).err


def test_a_run_and_what_comes_of_it_in_silence(
    step_cli_process: Run, folder: Path
) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    train = ["train", CONFIG, *set_words(folder / "net.py")]
    recipes = ["--recipes", "dense,step", "--run-dir", "compared"]
    graph = ["--model", "net.py:build", "--input", "input:float32:batch,1,8,8"]
    engine = ["m.plan", "--to", "tensorrt", "--backend", "tensorrt-rtx"]
    commands = [
        [*train, "--run-dir", "run"],
        [*train, "--evaluate", "run"],
        [*train, *recipes],
        ["autoswitch-profile", "run", "--plot", "plot.svg"],
        ["export", "run", "m.onnx", "--to", "onnx", *graph],
    ]
    if importlib.util.find_spec("tensorrt_rtx"):
        commands.append(["export", "run", *engine, *graph])
    for words in commands:
        done = step_cli_process(*words, "-q", cwd=folder)
        assert (done.code, done.out, done.err) == (0, "", ""), words
