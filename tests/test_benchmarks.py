"""The GPU benchmark runs where there is no GPU, but for what only CUDA can tell."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def as_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script finds the modules beside it."""
    monkeypatch.syspath_prepend(BENCHMARKS)


def run_gpu(device: str, *, small: bool) -> dict:
    run = runpy.run_path(str(BENCHMARKS / "gpu.py"))["run"]
    return run(torch.device(device), small=small)


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_cpu() -> None:
    document = run_gpu("cpu", small=True)
    assert document["checks"]["masks equal those of the CPU"]
    assert document["steps"]["small"]["times fused AdamW"]["AdamW, fused"] == 1.0
    assert document["training"]["times dense"]["step"] > 0


def test_its_checks_hold_on_a_cpu() -> None:
    module = runpy.run_path(str(BENCHMARKS / "gpu.py"))
    assert len(module["checks"](torch.device("cpu"), small=True)) == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_gpu_benchmark_runs_on_a_gpu() -> None:
    document = run_gpu("cuda", small=False)
    assert "no synchronisation before the first decision" in document["checks"]


def test_table_5_is_counted_from_configs_and_was_recorded() -> None:
    pytest.importorskip("transformers")
    module = runpy.run_path(str(BENCHMARKS / "table5.py"))
    rows = [row for model in module["MODELS"] for row in module["counted"](model)]
    recorded = json.loads((BENCHMARKS / "results" / "table5.json").read_text())["rows"]
    assert rows == [
        {key: value for key, value in row.items() if key != "file"} for row in recorded
    ]
    for row in rows:
        printed, _ = module["PRINTED"][row["model"], row["pattern"]]
        assert round(row["values"] / 1e6, 2) == printed  # values only, as it is
        assert row["with_metadata"] > row["values"]
    for row in recorded:  # a real file: what was counted, and a header
        assert 0 < row["file"] - row["model_compressed"] < 100_000
    page = (BENCHMARKS / "results" / "table5.md").read_text()
    assert "printed 1.65" in page and "printed 3.76" in page
    assert page.count("  * ") == 2  # the ratios rounded wrongly, and no others


def test_the_switch_points_that_are_documented_were_recorded() -> None:
    module = runpy.run_path(str(BENCHMARKS / "switch_points.py"))
    recorded = json.loads((BENCHMARKS / "results" / "switch_points.json").read_text())
    document = (BENCHMARKS.parent / "docs" / "autoswitch.md").read_text()
    page = (BENCHMARKS / "results" / "switch_points.md").read_text()
    assert page == module["page"](recorded)
    assert set(recorded["settings"]) == {*module["SETTINGS"]}
    for setting in recorded["settings"].values():
        assert len(setting["runs"]) == 3
        table = "\n".join(module["table"](setting))
        assert table in document


def test_sparse_inference_compares_and_times_both_on_a_cpu() -> None:
    module = runpy.run_path(str(BENCHMARKS / "sparse_inference.py"))
    rows = module["inference"](torch.device("cpu"), small=True)["rows"]
    assert [(row["dtype"], row["tokens"]) for row in rows] == [
        ("float16", 1), ("float16", 16), ("bfloat16", 1), ("bfloat16", 16),
    ]  # fmt: skip
    for row in rows:
        assert row["ok"] and row["difference"] == 0 and not row["semi_structured"]
        assert row["sparse_ms"] > 0 < row["dense_ms"]
        assert row["sparse_bytes"] is None  # there is no GPU whose memory it takes
    ones = torch.ones(2, 2)
    assert module["difference"](3 * ones, 2 * ones) == 0.5


def test_a_layer_of_sparse_inference_that_fails_costs_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = runpy.run_path(str(BENCHMARKS / "sparse_inference.py"))
    names, real = module["inference"].__globals__, module["through_a_file"]

    def fragile(weight: torch.Tensor, device: torch.device) -> torch.Tensor:
        if weight.dtype == torch.float16:
            raise RuntimeError("CUDA out of memory")
        return 2 * real(weight, device)

    monkeypatch.setitem(names, "through_a_file", fragile)
    rows = module["inference"](torch.device("cpu"), small=True)["rows"]
    assert rows[0]["error"] == "RuntimeError: CUDA out of memory"
    assert [row["ok"] for row in rows[1:]] == [False, False]


@pytest.mark.parametrize("words", [[], ["--sample", ""]])
def test_without_a_gpu_the_tensorrt_benchmark_exits_with_6(words: list[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    script = str(BENCHMARKS / "tensorrt_gpu.py")
    done = subprocess.run(
        [sys.executable, script, *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert "TensorRT" in done.stderr or "tensorrt" in done.stderr


@pytest.mark.tensorrt
@pytest.mark.parametrize("sample", [True, False])
def test_the_tensorrt_benchmark_exports_what_it_would_time(
    tmp_path: Path, sample: bool
) -> None:
    """With TensorRT-RTX, which builds without a GPU; it proves nothing on sparsity."""
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("onnxscript")
    module = runpy.run_path(str(BENCHMARKS / "tensorrt_gpu.py"))
    case = module["Case"]("tiny", (64, 128, 64), 8)
    given = (
        module["sample_checkpoint"](tmp_path, "digits-resnet")
        if sample
        else module["linear_checkpoint"](tmp_path, case)
    )
    row = module["measured"](tmp_path, lambda: given, "fp16", "tensorrt-rtx")
    assert row["ok"]
    assert all(layer["pattern_ok"] for layer in row["layers"])
    assert len(row["layers"]) == (9 if sample else 2)
    bench = row["bench"]  # of ONNX Runtime, where no GPU runs the engine
    assert row["sparse_speedup"] == bench["dense_ms"] / bench["sparse_ms"]
    assert row["backend"]["sparse_weights"] == "ignored"
    assert row["said of sparsity"] == []  # RTX has no word on it
    line = module["summary"]({"model": "tiny", "precision": "fp16", **row})
    assert line.startswith(f"tiny, fp16: 0 of {len(row['layers'])} layers run sparse")


def test_a_part_of_the_tensorrt_benchmark_that_fails_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = runpy.run_path(str(BENCHMARKS / "tensorrt_gpu.py"))
    tried = []

    def export_engine(*given: object, bench: bool) -> object:
        tried.append(bench)
        if bench or given[2] == "bf16":
            raise ValueError("the driver is too old")
        return "report"

    names = module["measured"].__globals__
    monkeypatch.setitem(names, "export_engine", export_engine)
    monkeypatch.setitem(names, "row_of", lambda report: {"layers": [], "ok": True})
    monkeypatch.setitem(names, "CASES", names["CASES"][:1])
    monkeypatch.setitem(names, "linear_checkpoint", lambda *given: {})
    first, second = module["rows"](tmp_path, "")
    assert first["ok"] and first["not timed"] == "ValueError: the driver is too old"
    assert second["error"] == "ValueError: the driver is too old"
    assert tried == [True, False, True, False]
    assert "not timed" in module["summary"](first)
    assert "FAILED" in module["summary"](second)
