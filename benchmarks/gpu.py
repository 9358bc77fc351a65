"""What only a GPU can tell: one command for the owner of an NVIDIA card, no network.

    python benchmarks/gpu.py [--device cuda] [--small] [--part NAME]... [--out DIR]

First checks (gpu_checks.py): masks equal those of the CPU, no hidden synchronisation or
recompilation, rounding, fp16 loss scaling, FSDP2, more than 2^31 weights. Then speed
and memory as ratios against peers in one run (gpu_speed.py), for the shapes of GPT-2
small and of a 1.3 B model, and inference through `load_compressed`.
Each part runs in a process of its own with a time limit, so one that fails, hangs or
breaks the device loses no other; what is known so far is in gpu.json after each. Exits
with 1 if a part failed or a bar does not hold, 6 without the device. On one GPU it is
made to end within 8 minutes. ``--device cpu --small`` runs all but the CUDA-only checks
anywhere, which the tests do.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from gpu_checks import ANYWHERE, CUDA_ONLY, SEED
from gpu_speed import mask_speed, memory, step_speed, training_speed
from sparse_inference import inference

ALL_S, PART_S = 460, 150  # seconds for everything, and for one part

Part = Callable[[torch.device], dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, for tests")
    parser.add_argument("--part", action="append", help="only this part; repeatable")
    parser.add_argument("--limit", type=float, default=PART_S, help="seconds a part")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit(no_device())
    known = parts(options.device, small=options.small)
    unknown = [name for name in options.part or () if name not in known]
    if unknown:
        parser.error(f"no such part {unknown[0]!r}; there are: {', '.join(known)}")
    names = options.part or list(known)
    if options.here:
        print(json.dumps(run_part(known[names[0]], torch.device(options.device))))
        return
    document = describe(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + max(ALL_S, options.limit)
    for name in names:
        left = min(options.limit, end - time.monotonic())
        document["parts"][name] = apart(name, options.device, options.small, left)
        conclude(document)
        text = json.dumps(document, indent=2) + "\n"
        (options.out / "gpu.json").write_text(text)
        print(line(name, document["parts"][name]), flush=True)
    sys.exit(0 if document["ok"] else 1)


def no_device() -> int:
    print("error: no NVIDIA GPU that torch can use: run it on one", file=sys.stderr)
    return 6


def parts(device: str, *, small: bool) -> dict[str, Part]:
    """Everything by name, checks first."""
    checks = ANYWHERE if device == "cpu" else ANYWHERE | CUDA_ONLY
    found: dict[str, Part] = {
        name: partial(said, check=check) for name, check in checks.items()
    }
    sizes = ["small"] if small else ["gpt2-small", "1.3B"]
    found["mask speed"] = partial(mask_speed, small=small)
    for size in sizes:
        found[f"optimizer step, {size}"] = partial(step_speed, size=size)
    found["memory"] = partial(memory, size=sizes[0])
    for compiled in (False, True):
        name = f"training step, {'compiled' if compiled else 'eager'} model"
        found[name] = partial(training_speed, size=sizes[0], compiled=compiled)
    found["inference"] = partial(inference, small=small)
    return found


def said(device: torch.device, check: Callable[[torch.device], str]) -> dict[str, Any]:
    return {"done": check(device)}


def run_part(part: Part, device: torch.device) -> dict[str, Any]:
    """What a part finds, or the error that ended it."""
    torch.manual_seed(SEED)
    start = time.monotonic()
    try:
        found = {"ok": True, **part(device)}
    except Exception as error:  # whatever it is, the other parts go on
        text = str(error).strip().splitlines() or [""]
        found = {"ok": False, "error": f"{type(error).__name__}: {text[0]}"}
    if device.type == "cuda" and found["ok"]:
        found["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return {**found, "seconds": round(time.monotonic() - start, 1)}


def apart(name: str, device: str, small: bool, seconds: float) -> dict[str, Any]:
    """Run a part in a process of its own."""
    if seconds < 5:
        return {"ok": False, "error": "no time was left for it"}
    command = [sys.executable, __file__, "--here", "--part", name, "--device", device]
    command += ["--small"] if small else []
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return {"ok": False, "error": f"not done after {seconds:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        return {"ok": False, "error": f"exit {done.returncode}: {last}"}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def describe(device: str) -> dict[str, Any]:
    cuda = device == "cuda"
    name = torch.cuda.get_device_name() if cuda else platform.machine()
    return {
        "command": " ".join(["python benchmarks/gpu.py", *sys.argv[1:]]),
        "device": name,
        "versions": {k: metadata.version(k) for k in ("step-cli", "torch")},
        "cuda": torch.version.cuda,
        "seed": SEED,
        "parts": {},
    }


def conclude(document: dict[str, Any]) -> None:
    """Judge what is known so far."""
    done = document["parts"].values()
    document["bars"] = [bar for part in done for bar in part.get("bars", ())]
    document["ok"] = all(one["ok"] for one in (*done, *document["bars"]))


def line(name: str, part: dict[str, Any]) -> str:
    """One line for people."""
    if not part["ok"]:
        return f"FAILED  {name}: {part['error']}"
    bars = [
        f"{bar['name']} {bar['value']:.3f} (bar {bar['bar']}"
        f"{'' if bar['ok'] else ', NOT MET'})"
        for bar in part.get("bars", ())
    ]
    return f"done    {name}: {'; '.join(bars) or part.get('done', 'measured')}"


if __name__ == "__main__":
    main()
