"""Inference with 2:4 weights of `load_compressed` beside dense ones; part of gpu.py.

Layers of the feed-forward networks of GPT-2 XL and of a 7B model, at 1 to 16384 tokens
in fp16 and bf16. Weights go through a compressed file, as a user's would. On an Ampere
or later GPU they come back semi-structured, and sparse kernels run beside cuBLAS;
elsewhere they are plain tensors, which the tests use.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import step_cli
from step_cli.formats.checkpoint import NamedTensor
from step_cli.formats.compressed.writer import save_compressed
from step_cli.formats.pytorch.arrays import to_array
from step_cli.nm.pattern import NMPattern, NMSpec

LAYERS = {  # [out, in]
    "GPT-2 XL up": (6400, 1600),
    "GPT-2 XL down": (1600, 6400),
    "7B up": (11008, 4096),
    "7B down": (4096, 11008),
}
TOKENS = (1, 16, 128, 1024, 4096, 16384)
SMALL_LAYERS, SMALL_TOKENS = {"small up": (256, 128)}, (1, 16)
# Largest difference allowed, times max(1, largest output); as for ONNX parity.
TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
WARM_UP, RUNS = 3, 20


def inference(device: torch.device, *, small: bool) -> dict[str, Any]:
    """Milliseconds and bytes of every layer; one that fails costs no other."""
    layers = SMALL_LAYERS if small else LAYERS
    rows: list[dict[str, Any]] = []
    for dtype in TOLERANCE:
        for name, shape in layers.items():
            try:
                rows += measured(name, shape, dtype, device, small=small)
            except RuntimeError as error:
                failed = f"{type(error).__name__}: {error}"
                rows.append({"layer": name, "dtype": str(dtype)[6:], "error": failed})
    tolerance = {str(dtype)[6:]: value for dtype, value in TOLERANCE.items()}
    return {"tolerance": tolerance, "rows": rows}


@torch.no_grad()
def measured(
    name: str,
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    *,
    small: bool,
) -> list[dict[str, Any]]:
    """One row for each number of tokens."""
    dense = two_four_weight(shape, dtype)
    before = allocated(device)
    sparse = through_a_file(dense, device)
    sparse_bytes = allocated(device) - before
    dense = dense.to(device)
    rows = []
    for tokens in SMALL_TOKENS if small else TOKENS:
        x = torch.randn(tokens, shape[1], device=device).to(dtype)
        apart = difference(functional.linear(x, sparse), functional.linear(x, dense))
        sparse_ms, dense_ms = medians(x, sparse, dense)
        rows.append(
            {
                "layer": name,
                "dtype": str(dtype)[6:],
                "tokens": tokens,
                "semi_structured": type(sparse) is not Tensor,
                "sparse_ms": sparse_ms,
                "dense_ms": dense_ms,
                "speedup": dense_ms / sparse_ms,
                "difference": apart,
                "ok": apart <= TOLERANCE[dtype],
                "sparse_bytes": sparse_bytes if device.type == "cuda" else None,
                "dense_bytes": dense.numel() * dense.element_size(),
            }
        )
    return rows


def two_four_weight(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Random weights, the two largest of each four kept; outputs of about 1."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator) * (2 / shape[1]) ** 0.5
    return (weight * step_cli.nm_mask(weight.abs(), "2:4", axis=1)).to(dtype)


def through_a_file(weight: Tensor, device: torch.device) -> Tensor:
    """The weight as `load_compressed` gives it."""
    array = to_array(weight)
    stored = NamedTensor("weight", array.dtype.name, array.shape, lambda: array)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weight.safetensors"
        save_compressed(path, [stored], {"weight": NMSpec(NMPattern(2, 4), 1)})
        return step_cli.load_compressed(path, device)["weight"]


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest output where that is above 1."""
    wide = expected.double()
    return float((found.double() - wide).abs().max() / wide.abs().max().clamp(min=1))


def medians(x: Tensor, *weights: Tensor) -> list[float]:
    """Median milliseconds of ``x @ weight.T`` for each weight, taking turns."""
    times: list[list[float]] = [[] for _ in weights]
    for number in range(WARM_UP + RUNS):
        for place, weight in enumerate(weights):
            synchronize(x.device)
            start = time.perf_counter()
            functional.linear(x, weight)
            synchronize(x.device)
            if number >= WARM_UP:
                times[place].append(1e3 * (time.perf_counter() - start))
    return [statistics.median(found) for found in times]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def allocated(device: torch.device) -> int:
    """Bytes of tensors on the GPU; 0 elsewhere."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
