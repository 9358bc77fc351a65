"""Time and memory of `prune` by samples on Llama blocks of 7B size, random weights.

    python benchmarks/prune_blocks.py [--blocks 1 2 4] [--method wanda ...]
                                      [--refit none ...] [--device cpu] [--threads 2]

Each run is a process of its own. Its seconds stand beside those that its matrix
products alone would take, at the rate of a product of 2048 x 2048 measured right before
and after it. All of them are counted at the fp32 rate, as all are computed in fp32: the
forward passes (weights in bf16 are widened), the Hessian (its upper triangle), its
factor and inverse, and the updates. The bf16 rate is recorded beside it. Memory is the
peak of RssAnon + RssShmem, imports among it; what is mapped from files is not. Seconds
of the processor are recorded too: where other work runs beside, their multiple tells
more.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from processor import processor

from step_cli.formats.pytorch.arrays import to_array
from step_cli.formats.safetensors.writer import TensorToSave, save_safetensors

HIDDEN, INNER, HEADS, VOCABULARY = 4096, 11008, 32, 256
SAMPLES, TOKENS = 16, 256
SIDE = 2048  # of the matrices whose product is the yardstick
AIMS = {"wanda": (1.5, 1.5e9), "sparsegpt": (3.0, 3e9)}  # times the products; bytes


class Size(NamedTuple):
    """Of a block: hidden and inner width, heads."""

    hidden: int = HIDDEN
    inner: int = INNER
    heads: int = HEADS


class Rate(NamedTuple):
    """Floating-point operations per second: of the clock, and of the processor."""

    wall: float
    cpu: float


class Used(NamedTuple):
    """What a process took."""

    wall_s: float
    cpu_s: float
    peak_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--method", nargs="+", default=["wanda", "sparsegpt"])
    parser.add_argument("--refit", nargs="+", default=["none"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--size", type=int, nargs=3, default=list(Size()))
    parser.add_argument("--dir", help="where to put the files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = Size(*options.size)
    rows = []
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        for count in options.blocks:
            model = write_llama(Path(folder) / f"llama-{count}", count, size)
            samples = write_samples(Path(folder), options.samples, options.tokens)
            for method in options.method:
                for refit in options.refit:
                    given = ["--method", method, "--refit", refit]
                    given += ["--device", options.device]
                    row = measured(model, samples, given, options.threads)
                    needed = products(
                        method, count, options.samples, options.tokens, size
                    )
                    rows.append(row_of(row, needed, count, method, refit))
                    print(line_of(rows[-1]), flush=True)
    document = {
        "machine": f"{processor()}, {options.threads} threads, {platform.system()}",
        "versions": {n: metadata.version(n) for n in ("step-cli", "torch")},
        "device": options.device,
        "block": size._asdict(),
        "samples": [options.samples, options.tokens],
        "rows": rows,
        "load": [round(load, 2) for load in os.getloadavg()],  # at the end
    }
    options.out.mkdir(exist_ok=True)
    path = options.out / "prune_blocks.json"
    path.write_text(json.dumps(document, indent=2) + "\n")


def products(
    method: str, blocks: int, samples: int, tokens: int, size: Size
) -> dict[str, float]:
    """Floating-point operations of the matrix products that pruning needs.

    Forward: of each block to its last layer, for what layers see, and once more through
    all of it for what the next block gets, but for the last block.
    """
    hidden, inner, _ = size
    count = samples * tokens
    attention = 4 * count * tokens * hidden
    down = 2 * count * hidden * inner
    whole = 2 * count * (4 * hidden**2 + 3 * hidden * inner) + attention
    found = {"forward": float(blocks * (2 * whole - down) - whole)}
    if method == "sparsegpt":
        # Queries, keys and values see the same, so do gate and up.
        widths = (hidden, hidden, hidden, inner)
        updates = 4 * hidden**3 + 2 * inner * hidden**2 + hidden * inner**2
        found["hessian"] = float(blocks * sum(count * w * (w + 1) for w in widths))
        found["factor"] = blocks * sum(2 * w**3 / 3 for w in widths)
        found["update"] = float(blocks * updates)
    return found


def row_of(
    row: dict[str, Any], needed: dict[str, float], blocks: int, method: str, refit: str
) -> dict[str, Any]:
    used, rate = Used(*row["used"]), Rate(*row["fp32"])
    total = sum(needed.values())
    times = used.wall_s * rate.wall / total
    found: dict[str, Any] = {
        "blocks": blocks,
        "method": method,
        "refit": refit,
        "seconds": used.wall_s,
        "cpu_seconds": used.cpu_s,
        "peak_bytes": used.peak_bytes,
        "fp32_gflops": rate.wall / 1e9,
        "bf16_gflops": row["bf16"][0] / 1e9,
        "products": needed,
        "products_seconds": total / rate.wall,
        "times": times,
        "cpu_times": used.cpu_s * rate.cpu / total,
    }
    if method in AIMS and refit == "none":
        most, most_bytes = AIMS[method]
        found["ok"] = times <= most and used.peak_bytes <= most_bytes
    return found


def line_of(row: dict[str, Any]) -> str:
    return (
        f"{row['blocks']} blocks, {row['method']}, refit {row['refit']}: "
        f"{row['seconds']:.1f} s ({row['cpu_seconds']:.1f} s of the processor), "
        f"{row['times']:.2f} times the products ({row['cpu_times']:.2f}), "
        f"{row['peak_bytes'] / 1e9:.2f} GB"
    )


def measured(
    model: Path, samples: Path, options: list[str], threads: int
) -> dict[str, Any]:
    """One prune, between two measurements of the rates."""
    out = model.with_name("out")
    command = [sys.executable, "-m", "step_cli", "-q", "prune", str(model), str(out)]
    command += ["--calibration", str(samples), "--exclude", "lm_head.*", "--force"]
    before = {dtype: rate(dtype) for dtype in (torch.float32, torch.bfloat16)}
    used = timed([*command, *options], threads)
    after = {dtype: rate(dtype) for dtype in before}
    mean = {d: np.mean([before[d], after[d]], axis=0).tolist() for d in before}
    return {"used": used, "fp32": mean[torch.float32], "bf16": mean[torch.bfloat16]}


def rate(dtype: torch.dtype, side: int = SIDE) -> Rate:
    """Of a product of two square matrices, the better of two."""
    one = torch.randn(side, side).to(dtype)
    out = one @ one
    found = []
    for _ in range(2):
        start = time.monotonic(), time.process_time()
        torch.mm(one, one, out=out)
        spent = time.monotonic() - start[0], time.process_time() - start[1]
        found.append(Rate(*(2 * side**3 / seconds for seconds in spent)))
    return max(found)


def timed(command: list[str], threads: int) -> Used:
    """Run a process to its end."""
    number = str(threads)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    start = time.monotonic()
    process = subprocess.Popen(
        command, env={**os.environ, **dict.fromkeys(names, number)}
    )
    peak = 0
    while (
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    ):
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(0.01)
    seconds = time.monotonic() - start
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"exit {process.returncode}: {' '.join(command)}")
    return Used(seconds, usage.ru_utime + usage.ru_stime, peak)


def anonymous_bytes(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    counted = [x.split() for x in lines if x.startswith(("RssAnon", "RssShmem"))]
    return sum(int(words[1]) << 10 for words in counted)


def write_llama(path: Path, blocks: int, size: Size) -> Path:
    """A directory of a Llama with random weights in bf16."""
    from transformers import LlamaConfig

    path.mkdir()
    LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=blocks,
        num_attention_heads=size.heads,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    ).save_pretrained(path)
    tensors = {name: random_tensor(shape) for name, shape in shapes_of(blocks, size)}
    save_safetensors(path / "model.safetensors", tensors, {"format": "pt"})
    return path


def shapes_of(blocks: int, size: Size) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner, _ = size
    yield "model.embed_tokens.weight", (VOCABULARY, hidden)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (VOCABULARY, hidden)
    for i in range(blocks):
        place = f"model.layers.{i}"
        for name in "qkvo":
            yield f"{place}.self_attn.{name}_proj.weight", (hidden, hidden)
        for name in ("gate", "up"):
            yield f"{place}.mlp.{name}_proj.weight", (inner, hidden)
        yield f"{place}.mlp.down_proj.weight", (hidden, inner)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{place}.{name}.weight", (hidden,)


def random_tensor(shape: tuple[int, ...]) -> TensorToSave:
    def chunks() -> Iterator[Any]:
        generator = torch.Generator().manual_seed(shape[0])
        if len(shape) == 1:
            yield to_array(torch.ones(shape, dtype=torch.bfloat16))
            return
        for first in range(0, shape[0], 1024):
            rows = min(1024, shape[0] - first)
            drawn = torch.randn(rows, *shape[1:], generator=generator)
            yield to_array((drawn * 0.02).bfloat16())

    dtype = to_array(torch.empty(0, dtype=torch.bfloat16)).dtype
    return TensorToSave(dtype, shape, chunks)


def write_samples(folder: Path, samples: int, tokens: int) -> Path:
    path = folder / "samples.npz"
    drawn = np.random.default_rng(0).integers(0, VOCABULARY, (samples, tokens))
    np.savez(path, input_ids=drawn)
    return path


if __name__ == "__main__":
    main()
