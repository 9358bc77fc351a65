"""Speed and memory of `prune`, as whole processes, beside `cp` of the same file.

    python benchmarks/prune.py [--gib N] [--sharded-gib N] [--shards N] [--runs N]
                               [--polygraphy PATH]

`cp` is timed with an fsync and one read of the copy, as `prune` does both; runs
alternate, and ratios are of medians. Memory is the peak of RssAnon + RssShmem above
what the imports take. The channel permutation is searched in this process, on all
cores. Needs Linux and twice --sharded-gib of disk.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from processor import processor

from step_cli.channels.permutation import kept_magnitude, search_permutation
from step_cli.formats.safetensors.writer import save_safetensors
from step_cli.nm.pattern import NMPattern

LIBRARIES = ("step-cli", "numpy", "onnx")
LAYER = (4096, 4096)  # 32 MiB in fp16
ONNX_LAYERS, ONNX_LAYER = 8, (2048, 2048)  # 33.5 M weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=4, help="size of the file")
    parser.add_argument("--sharded-gib", type=float, default=20, help="of a directory")
    parser.add_argument("--shards", type=int, default=5, help="of the directory")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--polygraphy", help="its executable, to compare with")
    parser.add_argument("--dir", help="where to put the files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        document = {
            "machine": f"{processor()}, {os.cpu_count()} CPUs, {platform.system()}",
            "versions": {name: metadata.version(name) for name in LIBRARIES},
            "safetensors": against_cp(Path(folder), options.gib, options.runs),
            "sharded": sharded(Path(folder), options.sharded_gib, options.shards),
            "onnx": on_onnx(Path(folder), options.runs, options.polygraphy),
            "permutation": permutation(),
            "load": [round(load, 2) for load in os.getloadavg()],  # at the end
        }
    options.out.mkdir(exist_ok=True)
    text = json.dumps(document, indent=2)
    (options.out / "prune.json").write_text(text + "\n")
    print(text)


def against_cp(folder: Path, gib: float, runs: int) -> dict[str, float]:
    source, out = folder / "in.safetensors", folder / "out.safetensors"
    write(source, round(gib * 2**30 / (2 * LAYER[0] * LAYER[1])))
    times: dict[str, list[float]] = {"cp": [], "prune": []}
    peak = 0.0
    for _ in range(runs):
        warm(source)
        times["cp"].append(timed(["sh", "-c", COPY, "sh", str(source), str(out)])[0])
        out.unlink()
        seconds, used = timed(prune(source, out))
        times["prune"].append(seconds)
        peak = max(peak, used)
        out.unlink()
    size_gb = source.stat().st_size / 1e9
    source.unlink()
    return compared(times, "cp", size_gb) | {"peak_mb_above_import": peak}


COPY = 'cp "$1" "$2" && sync "$2" && cat "$2" > /dev/null'


def sharded(folder: Path, gib: float, shards: int) -> dict[str, float]:
    source, out = folder / "in", folder / "out"
    source.mkdir()
    layers = round(gib * 2**30 / (2 * LAYER[0] * LAYER[1]) / shards)
    weight_map = {}
    for shard in range(shards):
        name = f"model-{shard}.safetensors"
        write(source / name, layers, first=shard * layers)
        numbers = range(shard * layers, (shard + 1) * layers)
        weight_map |= {f"layers.{number}.weight": name for number in numbers}
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    seconds, peak = timed(prune(source, out))
    size_gb = sum(file.stat().st_size for file in source.iterdir()) / 1e9
    shutil.rmtree(source)
    shutil.rmtree(out)
    return {"gb": size_gb, "seconds": seconds, "peak_mb_above_import": peak}


def on_onnx(folder: Path, runs: int, polygraphy: str | None) -> dict[str, float]:
    source, out = folder / "in.onnx", folder / "out.onnx"
    onnx.save(model(), source)
    times: dict[str, list[float]] = {"prune": []}
    for _ in range(runs):
        warm(source)
        times["prune"].append(timed([*prune(source, out), "--force"])[0])
    if polygraphy is None:
        return {"prune_s": statistics.median(times["prune"])}
    command = [polygraphy, "surgeon", "prune", str(source), "-o", str(out)]
    times["polygraphy"] = [timed(command)[0]]
    return compared(times, "polygraphy", source.stat().st_size / 1e9)


def permutation() -> dict[str, dict[str, float]]:
    """The search over a 1024 x 1024 layer of normal weights, with its escapes."""
    channels = np.abs(np.random.default_rng(0).standard_normal((1024, 1024)))
    found = {}
    for pattern in map(NMPattern.parse, ("2:4", "1:4", "4:8", "1:16")):
        began = time.perf_counter()
        order = search_permutation(channels, pattern)
        seconds = time.perf_counter() - began
        kept, before = (
            kept_magnitude(magnitudes, pattern)
            for magnitudes in (channels[order], channels)
        )
        found[str(pattern)] = {
            "seconds": seconds,
            "kept_over_unpermuted": kept / before,
        }
    return found


def compared(
    times: dict[str, list[float]], peer: str, size_gb: float
) -> dict[str, float]:
    medians = {name: statistics.median(found) for name, found in times.items()}
    return {
        "gb": size_gb,
        "prune_s": medians["prune"],
        f"{peer}_s": medians[peer],
        f"{peer}_over_prune": medians[peer] / medians["prune"],
    }


def write(path: Path, layers: int, first: int = 0) -> None:
    weight = np.random.default_rng(0).standard_normal(LAYER, np.float32)
    half = weight.astype(np.float16)
    numbers = range(first, first + layers)
    save_safetensors(path, {f"layers.{number}.weight": half for number in numbers})


def model() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(ONNX_LAYER, np.float32) for _ in range(ONNX_LAYERS)]
    nodes = [
        helper.make_node("MatMul", [f"y{i}", f"w{i}"], [f"y{i + 1}"])
        for i in range(ONNX_LAYERS)
    ]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, ONNX_LAYER[0]])]
        for name in ("y0", f"y{ONNX_LAYERS}")
    ]
    tensors = [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)]
    graph = helper.make_graph(nodes, "g", *ends, tensors)
    opset = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10)


def prune(source: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "step_cli", "prune", str(source), str(out), "--quiet"]


def warm(path: Path) -> None:
    subprocess.run(["cat", str(path)], stdout=subprocess.DEVNULL, check=True)
    os.sync()


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds of a process, and its peak memory in MB above that of its imports."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory(process.pid))
        time.sleep(0.005)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"{command[:6]} ended with {process.returncode}")
    return seconds, (peak - imports()) / 1e6


def memory(process: int) -> int:
    """RssAnon + RssShmem in bytes; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    sizes = [line.split() for line in lines if line.startswith(("RssAnon", "RssShmem"))]
    return sum(int(words[1]) << 10 for words in sizes)


def imports() -> int:
    """The same of the process after its imports."""
    code = (
        "import step_cli.commands.prune.run, pathlib;"
        "print(pathlib.Path('/proc/self/status').read_text())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    found = [
        words for words in lines if words and words[0] in ("RssAnon:", "RssShmem:")
    ]
    return sum(int(words[1]) << 10 for words in found)


if __name__ == "__main__":
    main()
