"""Speed and memory of `autoswitch-profile` on a long recording, as a whole process.

    python benchmarks/autoswitch.py [--lines 1000000] [--dir DIR]

The recording is like one of `train`: a falling, noisy change of v, one line a step, ten
lines of each window by layer (of 50 layers). Memory is the peak of the
resident set, imports included. The bars are 20 s and 300 MB for a million lines.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

from processor import processor

from step_cli.autoswitch.criterion import VarianceSample
from step_cli.autoswitch.variance_log import (
    RecordedLayer,
    VarianceHeader,
    header_line,
    layers_due,
    sample_line,
)

D = 124_439_808  # coordinates: GPT-2
SECONDS, MEGABYTES = 20, 300  # the bars
CHILD = """
import atexit, os, sys
def tell():
    with open("/proc/self/status") as status:
        os.write(2, b"peak " + status.read().split("VmHWM:")[1].split()[0].encode())
atexit.register(tell)
from step_cli.cli.app import main
main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--dir", help="where to put the recording: 150 bytes a line")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        log = Path(folder) / "variance.jsonl"
        write(log, options.lines)
        document = {
            "machine": f"{processor()}, {os.cpu_count()} CPUs, 1 thread",
            "versions": {
                name: metadata.version(name) for name in ("step-cli", "numpy")
            },
            "lines": options.lines,
            "gb": log.stat().st_size / 1e9,
            "table": timed([str(log)]),
            "json, with a drawing": timed(
                [str(log), "--json", "--plot", str(Path(folder) / "p.svg")]
            ),
            "load": [round(load, 2) for load in os.getloadavg()],  # at the end
        }
    options.out.mkdir(exist_ok=True)
    text = json.dumps(document, indent=2)
    (options.out / "autoswitch.json").write_text(text + "\n")
    print(text)
    slow = document["table"]["seconds"] > SECONDS
    raise SystemExit(slow or document["table"]["peak_mb"] > MEGABYTES)


def write(log: Path, lines: int) -> None:
    rng = random.Random(0)
    layers = tuple(RecordedLayer(f"h.{at}.weight", D // 50) for at in range(50))
    header = VarianceHeader(0.999, 1e-8, lines, layers)
    with log.open("w") as file:
        file.write(header_line(header))
        for step in range(1, lines + 1):
            size = (1 + rng.random()) * (1e-5 + math.exp(-8 * step / lines))
            change = 1e-6 * size
            sample = VarianceSample(
                step, D, size, size / 100, D * change, math.log(change) - rng.random()
            )
            told = [(size / 50, D * change / 50)] * 50
            file.write(sample_line(sample, told if layers_due(header, step) else ()))


def timed(words: list[str]) -> dict[str, float]:
    """Seconds of the wall and of the processor, and the peak of memory in MB."""
    command = [sys.executable, "-c", CHILD, "autoswitch-profile", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    before, began = os.times(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    seconds, after = time.perf_counter() - began, os.times()
    cpu = (after.children_user + after.children_system) - (
        before.children_user + before.children_system
    )
    peak_kib = int(done.stderr.rsplit(b"peak ", 1)[1])
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak_kib * 1024 / 1e6}


if __name__ == "__main__":
    main()
