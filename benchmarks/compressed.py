"""Speed of the compressed format on one core, in GB of dense bytes per second.

    python benchmarks/compressed.py [--runs N] [--out DIR]

Encoding is the whole of `save_compressed`, checksums and the write to a file included;
decoding is opening the file, which checks every checksum, and reading the tensor. The
codec alone is measured beside them. Medians of processor time, which other programs on
the machine disturb less than the clock; the files are in the page cache.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from step_cli.formats.checkpoint import NamedTensor
from step_cli.formats.compressed.codec import (
    Layout,
    decode,
    kept_values,
    packed_positions,
)
from step_cli.formats.compressed.writer import save_compressed
from step_cli.formats.open import open_checkpoint
from step_cli.nm.pattern import NMPattern, NMSpec

BAR = 0.4  # GB/s for fp16 2:4, from the issue
SHAPE = (8192, 4096)
CASES = [  # dtype, pattern, axis
    ("float16", "2:4", 1),
    ("float16", "2:4", 0),
    ("float32", "2:4", 1),
    ("float16", "1:4", 1),
    ("float16", "4:8", 1),
    ("float16", "2:16", 1),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = [measure(*case, options.runs) for case in CASES]
    machine = f"{platform.machine()}, {platform.system()}, NumPy {np.__version__}"
    options.out.mkdir(exist_ok=True)
    document = {"machine": machine, "bar_gb_per_s": BAR, "measured": rows}
    (options.out / "compressed.json").write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document, indent=2))


def measure(dtype: str, pattern: str, axis: int, runs: int) -> dict:
    layout = Layout(SHAPE, NMSpec(NMPattern.parse(pattern), axis))
    array = sparse(layout).astype(dtype)
    plan = {"w": layout.plan}
    tensors = [NamedTensor("w", dtype, SHAPE, lambda: array)]
    values = np.concatenate([chunk for chunk, _ in kept_values(array, layout)])
    packed = np.concatenate(list(packed_positions(array, layout)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.safetensors"
        encode = rate(array, runs, lambda: save_compressed(path, tensors, plan))
        read = rate(array, runs, lambda: open_checkpoint(path).tensors[0].read())
        size = path.stat().st_size
    return {
        "dtype": dtype,
        "pattern": pattern,
        "axis": axis,
        "dense_over_compressed": round(array.nbytes / size, 4),
        "encode_gb_per_s": encode,
        "decode_gb_per_s": read,
        "codec_encode_gb_per_s": rate(array, runs, lambda: both(array, layout)),
        "codec_decode_gb_per_s": rate(
            array, runs, lambda: decode(values, packed, layout)
        ),
    }


def both(array: np.ndarray, layout: Layout) -> None:
    for _ in kept_values(array, layout):
        pass
    for _ in packed_positions(array, layout):
        pass


def rate(array: np.ndarray, runs: int, work: Callable[[], object]) -> float:
    times = []
    for _ in range(runs):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return round(array.nbytes / 1e9 / statistics.median(times), 3)


def sparse(layout: Layout) -> np.ndarray:
    """Random numbers that hold the pattern, every group full."""
    rng = np.random.default_rng(0)
    m, n = layout.plan.pattern.m, layout.plan.pattern.n
    keep = rng.random((layout.groups, m), np.float32).argsort(1) < n
    keep = keep.reshape(-1, layout.behind, m).swapaxes(1, 2).reshape(layout.shape)
    return np.where(keep, rng.random(layout.shape, np.float32) + 0.5, np.float32(0))


if __name__ == "__main__":
    main()
