"""The GPU benchmark runs where there is no GPU, but for what only CUDA can tell."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forks
import pytest
import torch
from torch import Tensor

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def as_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script finds the modules beside it."""
    monkeypatch.syspath_prepend(BENCHMARKS)


def gpu_checks() -> dict[str, Any]:
    return runpy.run_path(str(BENCHMARKS / "gpu_checks.py"))


QUICK = ("fp16 loss scaling", "the update is that of the CPU within 1e-5")


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in gpu_checks()["ANYWHERE"]
    ],
)
def test_what_must_hold_on_a_gpu_holds_on_a_cpu(check: str) -> None:
    assert gpu_checks()["ANYWHERE"][check](torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("check", gpu_checks()["ANYWHERE"] | gpu_checks()["CUDA_ONLY"])
def test_what_must_hold_on_a_gpu(check: str) -> None:
    module = gpu_checks()
    every = module["ANYWHERE"] | module["CUDA_ONLY"]
    assert every[check](torch.device("cuda"))


def test_a_check_can_fail() -> None:
    module = gpu_checks()
    right = module["magnitude_mask"]
    calls = iter(range(1 << 20))

    def wrong_every_second_time(*arguments: Any) -> Tensor:
        mask: Tensor = right(*arguments)
        return ~mask if next(calls) % 2 else mask

    module["same_masks"].__globals__["magnitude_mask"] = wrong_every_second_time
    with pytest.raises(AssertionError, match="1:1 axis 0"):
        module["same_masks"](torch.device("cpu"))


def run_gpu(out: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    """gpu.py on a CPU with tiny sizes: exit code, what it wrote, what it said."""
    script = str(BENCHMARKS / "gpu.py")
    command = [sys.executable, script, "--device", "cpu", "--small", "--out", str(out)]
    done = forks.run([*command, *words], capture_output=True, text=True, check=False)
    file = out / "gpu.json"
    document = json.loads(file.read_text()) if file.exists() else {}
    return done.returncode, document, done.stdout + done.stderr


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_cpu(tmp_path: Path) -> None:
    code, document, said = run_gpu(tmp_path, "--limit", "1800")
    failed = [name for name, part in document["parts"].items() if not part["ok"]]
    assert not failed, said
    steps = document["parts"]["optimizer step, small"]["steps"]
    assert steps["mask learning, eager"]["times AdamW"] > 0
    judged = {bar["name"] for bar in document["bars"]}
    assert "small: precondition with AutoSwitch" in judged
    assert "small: bf16 training step, eager model" in judged
    assert all(bar["ok"] == (bar["value"] <= bar["bar"]) for bar in document["bars"])
    assert code == (0 if document["ok"] else 1)


def test_parts_of_the_gpu_benchmark_fail_apart() -> None:
    module = runpy.run_path(str(BENCHMARKS / "gpu.py"))

    def broken(device: torch.device) -> dict[str, Any]:
        raise RuntimeError("no such kernel\nmore")

    found = module["run_part"](broken, torch.device("cpu"))
    assert (found["ok"], found["error"]) == (False, "RuntimeError: no such kernel")
    good = module["run_part"](lambda device: {"done": "well"}, torch.device("cpu"))
    document = {"parts": {"one": found, "other": good}}
    module["conclude"](document)
    assert not document["ok"]
    assert module["line"]("one", found) == "FAILED  one: RuntimeError: no such kernel"
    assert module["line"]("other", good) == "done    other: well"


def test_a_bar_that_does_not_hold_is_judged() -> None:
    module = runpy.run_path(str(BENCHMARKS / "gpu.py"))
    judged = module["step_speed"].__globals__["judged"]
    bars = [judged("a", 1.2, 1.15), judged("b", 1.1, 1.15)]
    document = {"parts": {"steps": {"ok": True, "bars": bars}}}
    module["conclude"](document)
    assert [bar["ok"] for bar in document["bars"]] == [False, True]
    assert not document["ok"]
    assert "a 1.200 (bar 1.15, NOT MET)" in module["line"]("steps", bars_of(document))


def bars_of(document: dict[str, Any]) -> dict[str, Any]:
    part: dict[str, Any] = document["parts"]["steps"]
    return part


def test_a_part_that_hangs_or_dies_is_said() -> None:
    module = runpy.run_path(str(BENCHMARKS / "gpu.py"))
    apart, inside = module["apart"], module["apart"].__globals__
    assert "no time" in apart("fp16 loss scaling", "cpu", True, 1)["error"]
    inside["sys"] = SimpleNamespace(executable="/bin/false")
    assert "exit 1" in apart("fp16 loss scaling", "cpu", True, 60)["error"]


def test_without_a_gpu_the_benchmark_exits_with_6(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    code, document, said = run_gpu(tmp_path, "--device", "cuda")
    assert (code, document) == (6, {})
    assert said.startswith("error: ") and said.count("\n") == 1


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
    done = forks.run(
        [sys.executable, script, *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert "TensorRT" in done.stderr or "tensorrt" in done.stderr


@pytest.mark.tensorrt
@pytest.mark.parametrize(
    ("sample", "precision"),
    [(True, "fp16"), (False, "fp16"), (False, "int8"), (False, "fp8")],
)
def test_the_tensorrt_benchmark_exports_what_it_would_time(
    tmp_path: Path, sample: bool, precision: str
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
    row = module["measured"](tmp_path, lambda: given, precision, "tensorrt-rtx")
    assert row["ok"]
    assert all(layer["pattern_ok"] for layer in row["layers"])
    assert len(row["layers"]) == (9 if sample else 2)
    bench = row["bench"]  # of ONNX Runtime, where no GPU runs the engine
    assert row["sparse_speedup"] == bench["dense_ms"] / bench["sparse_ms"]
    assert row["backend"]["sparse_weights"] == "ignored"
    assert row["said of sparsity"] == []  # RTX has no word on it
    assert (row["quantization"] is None) == (precision == "fp16")
    line = module["summary"]({"model": "tiny", "precision": precision, **row})
    assert line.startswith(
        f"tiny, {precision}: 0 of {len(row['layers'])} layers run sparse"
    )


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
    first, second, *others = module["rows"](tmp_path, "")
    assert len(others) == 2  # int8 and fp8
    assert first["ok"] and first["not timed"] == "ValueError: the driver is too old"
    assert second["error"] == "ValueError: the driver is too old"
    assert tried == [True, False] * 4
    assert "not timed" in module["summary"](first)
    assert "FAILED" in module["summary"](second)
