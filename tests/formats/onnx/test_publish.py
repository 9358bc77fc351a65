"""A model and its data files appear together or not at all."""

import os
import signal
import sys
from pathlib import Path

import forks
import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from formats.onnx.small_graphs import save_mlp

from step_cli.errors import OutputError
from step_cli.formats.files.mapped_file import map_file
from step_cli.formats.onnx import publish
from step_cli.formats.onnx.publish import staged_onnx
from step_cli.formats.onnx.rewriter import external_locations
from step_cli.formats.open import open_checkpoint
from step_cli.formats.rewrite import Rewriter


def names_in(folder: Path) -> list[str]:
    return sorted(
        path.name for path in folder.iterdir() if not path.name.endswith(".lock")
    )


def test_a_taken_data_name_is_refused_and_left_alone(tmp_path: Path) -> None:
    taken = tmp_path / "m.onnx.data"
    taken.write_bytes(b"precious")
    with (
        pytest.raises(OutputError, match="use --force"),
        staged_onnx(tmp_path / "m.onnx", force=False, inputs=[]) as place,
    ):
        place.path.write_bytes(b"")
        place.data_file().write_bytes(b"new")
    assert taken.read_bytes() == b"precious"
    assert names_in(tmp_path) == ["m.onnx.data"]


def test_neither_file_appears_when_the_model_cannot_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    with (
        pytest.raises(OutputError, match="no space left"),
        staged_onnx(tmp_path / "m.onnx", force=False, inputs=[]) as place,
    ):
        save_mlp(place.path, data=place.data_name)
        monkeypatch.setattr(publish.os, "replace", refuse)
    assert names_in(tmp_path) == []


def test_data_files_of_runs_that_died_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".m.onnx.tmp-123456789.data").write_bytes(b"half")
    (tmp_path / ".other.onnx.tmp-123456789.data").write_bytes(b"not ours")
    with staged_onnx(tmp_path / "m.onnx", force=False, inputs=[]) as place:
        place.path.write_bytes(b"")
    assert names_in(tmp_path) == [".other.onnx.tmp-123456789.data", "m.onnx"]


DIE = """
import os, signal, sys
from pathlib import Path
from step_cli.formats.files import staged
from step_cli.formats.onnx.publish import staged_onnx
from step_cli.formats.onnx.rewriter import relocate_data
real = os.replace
def die(*paths):
    if sys.argv[2] == "after":
        real(*paths)
    os.kill(os.getpid(), signal.SIGKILL)
staged.os.replace = die
with staged_onnx(Path(sys.argv[1]), force=False, inputs=[]) as place:
    place.path.write_bytes(Path(sys.argv[3]).read_bytes())
    relocate_data(place.path, {"model.onnx.data": place.data_name})
    place.data_file().write_bytes(b"x" * 4096)
"""


def test_a_kill_between_data_and_model_leaves_nothing_that_the_next_run_keeps(
    tmp_path: Path,
) -> None:
    folder, model = tmp_path / "out", tmp_path / "model.onnx"
    folder.mkdir()
    save_mlp(model, data="model.onnx.data")
    target = folder / "m.onnx"
    die = [sys.executable, "-c", DIE, str(target), "before", str(model)]
    died = forks.run(die, capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert "m.onnx.data" in names_in(folder) and "m.onnx" not in names_in(folder)
    with staged_onnx(target, force=False, inputs=[]) as place:
        save_mlp(place.path, data=place.data_name)
    onnx.checker.check_model(target)
    assert names_in(folder) == ["m.onnx", "m.onnx.data"]


def test_a_kill_after_the_model_was_named_leaves_a_whole_export(tmp_path: Path) -> None:
    folder, model = tmp_path / "out", tmp_path / "model.onnx"
    folder.mkdir()
    save_mlp(model, data="model.onnx.data")
    target = folder / "m.onnx"
    die = [sys.executable, "-c", DIE, str(target), "after", str(model)]
    assert forks.run(die, check=False).returncode == -signal.SIGKILL
    with (
        pytest.raises(OutputError, match="nothing better"),
        staged_onnx(target, force=True, inputs=[]),
    ):
        raise OutputError("nothing better")
    assert names_in(folder) == ["m.onnx", "m.onnx.data"]
    assert (folder / "m.onnx.data").read_bytes() == b"x" * 4096


def save_in_two_files(path: Path) -> dict[str, np.ndarray]:
    """Two weights, each in a data file of its own."""
    save_mlp(path)
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        data = path.with_name(f"{tensor.name}.bin")
        data.write_bytes(tensor.raw_data)
        onnx.external_data_helper.set_external_data(tensor, data.name)
        tensor.ClearField("raw_data")
    onnx.save(model, path)
    return weights_of(path)


def weights_of(path: Path) -> dict[str, np.ndarray]:
    tensors = onnx.load(path).graph.initializer
    return {t.name: onnx.numpy_helper.to_array(t) for t in tensors}


def test_a_model_with_several_data_files_is_rewritten_with_as_many(
    tmp_path: Path,
) -> None:
    source, out = tmp_path / "a.onnx", tmp_path / "b.onnx"
    before = save_in_two_files(source)
    checkpoint = open_checkpoint(source)
    for force, names in (
        (False, ["b.onnx.data", "b.onnx.1.data"]),
        (True, ["b.onnx.2.data", "b.onnx.3.data"]),  # those of the old model are taken
        (True, ["b.onnx.data", "b.onnx.1.data"]),
    ):
        rewriter = Rewriter(checkpoint, out, force=force)
        rewriter.check()
        rewriter.write([], {}, lambda written: None)
        assert external_locations(map_file(out)) == names
        assert sorted(os.listdir(tmp_path)) == sorted(
            ["a.onnx", "b.onnx", "down.weight.bin", "up.weight.bin", *names]
        )
        after = weights_of(out)
        assert all(np.array_equal(after[name], before[name]) for name in before)
