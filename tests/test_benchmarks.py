"""The GPU benchmark runs where there is no GPU, but for what only CUDA can tell."""

import json
import runpy
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


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
