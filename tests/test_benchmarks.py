"""The GPU benchmark runs where there is no GPU, but for what only CUDA can tell."""

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
