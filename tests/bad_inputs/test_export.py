"""Rows of `export`: what is refused, with which code, and that nothing is left."""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_inputs.console import Run, promised, state, step_cli
from bad_inputs.sound import NAME, broken, put, put_bytes, sparse

from step_cli.commands.export import run as export
from step_cli.errors import InputError, MissingError
from step_cli.formats.tensorrt import api as trt_api
from step_cli.formats.tensorrt.engine import _finished

HERE = Path(__file__)
# Rows that need torch to trace a model are tested in one process, where that is said.
ELSEWHERE = {
    "E03": ["test_a_parity_missed_publishes_nothing"],
    "E04": [
        "test_a_graph_that_breaks_the_pattern_publishes_nothing",
        "test_what_is_not_in_the_graph_is_unknown_and_no_proof",
        "test_what_cannot_be_exported_is_said_in_one_line",
    ],
    "E05": [
        "test_a_taken_data_name_is_refused_and_left_alone",
        "test_neither_file_appears_when_the_model_cannot_be_renamed",
    ],
    "E06": ["test_large_weights_go_into_a_data_file_that_moves_with_the_model"],
    "E07": ["test_a_cast_that_overflows_names_tensor_and_value"],
    "E09": ["test_the_evidence_and_require_sparse_follow_the_log"],
    "E12": [
        "test_a_damaged_timing_cache_is_rebuilt_with_a_warning",
        "test_a_kill_between_data_and_model_leaves_nothing_that_the_next_run_keeps",
        "test_a_kill_leaves_the_old_or_the_new_file",
        "test_a_build_ends_when_its_parent_is_killed",
    ],
    "E14": ["test_weights_of_another_model_are_refused"],
    "E15": ["test_code_named_by_a_run_is_never_run"],
}


@pytest.mark.parametrize("row", ELSEWHERE)
def test_rows_tested_elsewhere_are_there(row: str) -> None:
    folders = [HERE.parents[1] / name for name in ("commands", "formats")]
    texts = [path.read_text() for folder in folders for path in folder.rglob("*.py")]
    for name in ELSEWHERE[row]:
        assert any(f"def {name}(" in text for text in texts), name


def exported(folder: Path, *words: object, code: int, said: str, **more: Any) -> Run:
    """Run `export`; whatever it answers, the folder is as it was."""
    before = state(folder)
    run = step_cli("export", *words, **more)
    assert run.code == code, run.err
    assert state(folder) == before, "an input changed, or something was left"
    promised(run)
    text = run.err if code >= 2 else run.out
    assert len(run.errors) == (code >= 2)
    assert re.search(said, text, re.I), text
    return run


def test_E01_a_missing_library_is_told_before_any_work(tmp_path: Path) -> None:
    library = tmp_path / "library"
    hide = b"import sys\nsys.modules['onnxscript'] = None\n"
    put_bytes(library / "sitecustomize.py", hide)
    path, out = put(tmp_path / "m.safetensors"), tmp_path / "m.onnx"
    env = {"PYTHONPATH": str(library), "PYTHONDONTWRITEBYTECODE": "1"}
    said = r"pip install 'step-cli\[export\]'"
    exported(tmp_path, path, out, "--to", "onnx", code=6, said=said, env=env)


@pytest.mark.parametrize("suffix", ["safetensors", "onnx"])
def test_E02_weights_that_break_their_pattern_write_nothing(
    tmp_path: Path, suffix: str
) -> None:
    path, out = put(tmp_path / "m.safetensors", broken()), tmp_path / f"o.{suffix}"
    to = {"safetensors": "compressed", "onnx": "onnx"}[suffix]
    run = exported(tmp_path, path, out, "--to", to, "--json", code=1, said="nothing")
    (layer,) = run.json["layers"]
    assert (layer["pattern_ok"], run.json["output"]) == (False, None)
    put(path)
    if to == "compressed":
        assert step_cli("export", path, out, "--to", to).code == 0


def test_E08_a_gpu_without_sparse_cores_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trt_api, "compute_capabilities", lambda: ["7.5"])
    with pytest.raises(MissingError, match=r"need compute capability 8\.0, found 7\.5"):
        export._need_sparse_cores()
    monkeypatch.setattr(trt_api, "compute_capabilities", lambda: ["8.0"])
    export._need_sparse_cores()


def test_E10_a_plan_that_changed_after_its_build_is_refused(tmp_path: Path) -> None:
    plan = put_bytes(tmp_path / "m.plan", b"ftrt" + bytes(100))
    digest = hashlib.sha256(plan.read_bytes()).hexdigest()
    outcome = {"sha256": digest, "warnings": []}
    assert _finished(plan, "", outcome, tmp_path / "none").sha256 == digest
    plan.write_bytes(b"ftrt" + bytes(99) + b"x")
    with pytest.raises(InputError, match="sha256 differs from the build"):
        _finished(plan, "", outcome, tmp_path / "none")


@pytest.mark.parametrize("to", ["compressed", "dense", "tensorrt"])
def test_E10_a_plan_is_never_loaded(tmp_path: Path, to: str) -> None:
    plan = put_bytes(tmp_path / "old.plan", b"ftrt" + bytes(100))
    out = tmp_path / "o.safetensors"
    said = "engines are programs|no TensorRT|TensorRT builds"
    code = 4 if step_cli("export", plan, out, "--to", to).code == 4 else 6
    assert code == 4 or to == "tensorrt"  # 6: no backend, which is asked first
    exported(tmp_path, plan, out, "--to", to, code=code, said=said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fp16"], "--fp16"),
        (["--precision", "fp8"], "fp32.*fp16.*bf16"),
    ],
)
def test_E11_precision_has_one_spelling(
    tmp_path: Path, words: list[str], said: str
) -> None:
    path, out = put(tmp_path / "m.safetensors"), tmp_path / "m.plan"
    exported(tmp_path, path, out, "--to", "tensorrt", *words, code=2, said=said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--input", "x"], "NAME:DTYPE:SHAPE|x:float32"),
        (["--input", "x:float99:2x4"], "float99"),
        (["--input", "x:int64:2"] * 2, "given twice"),
        (["--opset", "3"], "opset"),
        (["--opt", "x:1x4"], "--opt has no meaning with --to onnx"),
    ],
)
def test_E13_inputs_and_opsets_are_checked_first(
    tmp_path: Path, words: list[str], said: str
) -> None:
    path, out = put(tmp_path / "m.safetensors"), tmp_path / "m.onnx"
    exported(tmp_path, path, out, "--to", "onnx", *words, code=2, said=said)


def test_E14_a_file_that_says_no_model_asks_for_one(tmp_path: Path) -> None:
    path, out = put(tmp_path / "m.safetensors"), tmp_path / "m.onnx"
    exported(tmp_path, path, out, "--to", "onnx", code=2, said="pass --model")


def test_E16_only_compressed_files_become_dense(tmp_path: Path) -> None:
    path, out = put(tmp_path / "m.safetensors"), tmp_path / "o.safetensors"
    said = "not written by export --to compressed"
    exported(tmp_path, path, out, "--to", "dense", code=4, said=said)
    small = tmp_path / "c.safetensors"
    assert step_cli("export", path, small, "--to", "compressed").code == 0
    assert step_cli("export", small, out, "--to", "dense").code == 0
    from safetensors.numpy import load_file

    assert np.array_equal(load_file(out)[NAME], sparse())
