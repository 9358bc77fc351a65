"""Speed and memory of `verify-nm`: whole processes against whole processes, in one run.

    python benchmarks/verify_nm.py [--polygraphy PATH] [--runs N] [--out DIR]

Ratios are of medians of wall time, runs of the two processes alternating. Files are
warm: the page cache has held them since they were written. Memory is the peak of
RssAnon + RssShmem; mapped files do not count. Needs Linux, 7 GB of disk, and as
much free memory for the page cache.
"""

import argparse
import compileall
import json
import os
import platform
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
from processor import processor

import step_cli

SEED = 0
SAFETENSORS_LAYERS = 128  # of 4096 x 4096 fp16: 4 GiB
ONNX_LAYERS = 8  # of 2048 x 2048 fp32: 33.5 M weights
LARGE_ONNX_LAYERS = 116  # the same: 1.95 GB, near protobuf's limit of 2 GiB
DATA_LIMIT = 400 << 20  # bytes, as `prlimit --data` sets it
STEP_CLI = [sys.executable, "-m", "step_cli"]
VERIFY = [*STEP_CLI, "verify-nm"]

TOUCH = """
import sys, numpy
numpy.memmap(sys.argv[1], numpy.uint8, "r")[8:].view(numpy.uint64).max()
"""
ONNX_LOAD = """
import sys, numpy, onnx
for tensor in onnx.load(sys.argv[1]).graph.initializer:
    weight = onnx.numpy_helper.to_array(tensor)
    groups = (weight != 0).reshape(-1, 4, weight.shape[1]).sum(1)
    assert groups.max() <= 2
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--polygraphy", help="its executable, to compare with")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    compileall.compile_dir(Path(step_cli.__file__).parent, quiet=1)  # as pip does
    with tempfile.TemporaryDirectory(prefix="verify-nm-") as folder:
        measured = measure(Path(folder), options.runs, options.polygraphy)
    document = {"machine": machine(), "seed": SEED, "measured": measured}
    options.out.mkdir(exist_ok=True)
    text = json.dumps(document, indent=2) + "\n"
    (options.out / "verify_nm.json").write_text(text)
    (options.out / "verify_nm.md").write_text(markdown(document))
    print(markdown(document))


def measure(folder: Path, runs: int, polygraphy: str | None) -> list[dict]:
    small, big = folder / "small.safetensors", folder / "big.safetensors"
    onnx, large = folder / "small.onnx", folder / "large.onnx"
    write_safetensors(small, layers=10, size=512)
    write_safetensors(big, layers=SAFETENSORS_LAYERS, size=4096)
    write_onnx(onnx, ONNX_LAYERS)
    write_onnx(large, LARGE_ONNX_LAYERS)
    os.sync()  # or the kernel writes while others are measured
    python = [sys.executable, "-c"]
    imports = [*python, "import numpy, safetensors, typer, rich, pydantic"]
    bare = [*python, "import typer, rich, pydantic"]
    rows = [
        compare("5 MB safetensors", [*VERIFY, small], "bare imports", imports, 2, runs),
        compare("--help", [*STEP_CLI, "--help"], "bare imports", bare, 3, runs),
        compare(
            "4 GiB fp16 safetensors",
            [*VERIFY, big],
            "touch each byte with NumPy",
            [*python, TOUCH, big],
            2,
            runs,
        ),
        compare(
            "ONNX, 33.5 M fp32",
            [*VERIFY, onnx],
            "onnx.load and a vector check",
            [*python, ONNX_LOAD, onnx],
            None,
            runs,
        ),
    ]
    if polygraphy:
        peer = [polygraphy, "inspect", "sparsity", onnx]
        row = compare(
            "ONNX, 33.5 M fp32", [*VERIFY, onnx], "polygraphy", peer, 1 / 60, 3
        )
        rows.append(row)
    rows += [memory("4 GiB fp16 safetensors", big), memory("1.95 GB ONNX", large)]
    return rows


def compare(
    what: str,
    command: Sequence[object],
    peer: str,
    peer_command: Sequence[object],
    bar: float | None,
    runs: int,
) -> dict:
    """Median wall times of two processes in seconds, and their ratio."""
    ours, theirs = [], []
    for _ in range(runs):
        theirs.append(seconds(peer_command))
        ours.append(seconds(command))
    mine, other = statistics.median(ours), statistics.median(theirs)
    ratio = mine / other
    return {
        "what": what,
        "seconds": round(mine, 4),
        "peer": peer,
        "peer_seconds": round(other, 4),
        "ratio": round(ratio, 4),
        "bar": bar,
        "ok": None if bar is None else ratio <= bar,
    }


def seconds(command: Sequence[object]) -> float:
    start = time.perf_counter()
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    return time.perf_counter() - start


def memory(what: str, file: Path) -> dict:
    """Peak of anonymous and shared memory, and whether a limit on data is kept."""
    command = [*VERIFY, str(file)]
    done, peak = watched(command, None)
    limited, _ = watched(
        command,
        lambda: resource.setrlimit(resource.RLIMIT_DATA, (DATA_LIMIT, DATA_LIMIT)),
    )
    return {
        "what": what,
        "peak_mb": round(peak / 1e6),
        "bar_mb": 400,
        "under_data_limit": limited == 0,
        "ok": done == 0 and limited == 0 and peak < 400e6,
    }


def watched(command: list[str], before: Callable[[], None] | None) -> tuple[int, int]:
    """The exit code, and the peak of RssAnon + RssShmem in bytes, looked at each ms."""
    peak = 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=before)
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.001):
            peak = max(peak, resident(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    ended.set()
    watcher.join()
    return code, peak


def resident(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in lines)
    kib = [fields.get(key, "0 kB").split()[0] for key in ("RssAnon", "RssShmem")]
    return 1024 * sum(int(value) for value in kib)


def sparse_codes(rows: int, columns: int) -> np.ndarray:
    """2:4 along axis 1, as the bits of positive fp16 numbers."""
    rng = np.random.default_rng(SEED)
    codes = rng.integers(1, 0x7BFF, (rows, columns // 4, 4), np.uint16)
    order = rng.random((rows, columns // 4, 4), np.float32).argsort(-1)
    codes[order < 2] = 0
    return codes.reshape(rows, columns)


def write_safetensors(path: Path, layers: int, size: int) -> None:
    data = sparse_codes(size, size).tobytes()
    header = {
        f"layers.{i}.fc.weight": {
            "dtype": "F16",
            "shape": [size, size],
            "data_offsets": [i * len(data), (i + 1) * len(data)],
        }
        for i in range(layers)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _ in range(layers):
            file.write(data)


def write_onnx(path: Path, layers: int) -> None:
    """A chain of MatMul nodes with inline fp32 weights, 2:4 along axis 0."""
    import onnx
    from onnx import TensorProto, helper

    size = 2048
    weight = sparse_codes(size, size).view(np.float16).astype(np.float32).T
    raw = np.ascontiguousarray(weight).tobytes()
    nodes, tensors = [], []
    for i in range(layers):
        nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]))
        tensor = TensorProto(name=f"w{i}", dims=[size, size], raw_data=raw)
        tensor.data_type = TensorProto.FLOAT
        tensors.append(tensor)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])
        for name in ("x0", f"x{layers}")
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(path)


def machine() -> dict:
    packages = ("step-cli", "numpy", "safetensors", "onnx", "typer", "rich", "pydantic")
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "load": [round(load, 2) for load in os.getloadavg()],
        "command": "python benchmarks/verify_nm.py --polygraphy PATH",
    }


def markdown(document: dict) -> str:
    host = document["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in host["packages"].items())
    lines = [
        "# verify-nm: speed and memory",
        "",
        f"{host['cpu']}, {host['cores']} cores, {host['system']}, "
        f"Python {host['python']}; {versions}; seed {document['seed']}; load averages "
        f"{host['load']} at the end. `{host['command']}`",
        "",
        "Whole processes, warm files, medians; a ratio below the bar is good.",
        "",
        "| what | seconds | peer | its seconds | ratio | bar |",
        "|---|--:|---|--:|--:|--:|",
    ]
    for row in document["measured"]:
        if "ratio" in row:
            bar = "-" if row["bar"] is None else f"{row['bar']:.3g}"
            lines.append(
                f"| {row['what']} | {row['seconds']:.3f} | {row['peer']} "
                f"| {row['peer_seconds']:.3f} | {row['ratio']:.3g} | {bar} |"
            )
    lines += ["", "| what | peak memory | bar | passes with 400 MiB of data |"]
    lines += ["|---|--:|--:|---|"]
    for row in document["measured"]:
        if "peak_mb" in row:
            passes = "yes" if row["under_data_limit"] else "no"
            sizes = f"{row['peak_mb']} MB | {row['bar_mb']} MB"
            lines.append(f"| {row['what']} | {sizes} | {passes} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
