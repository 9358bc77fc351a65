"""The whole path on real data: `make demo` runs this, and anyone can.

Each command is printed before its output; the table at the end holds what was measured.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OUT = Path("demo")
COMMAND = Path(sys.executable).with_name("step-cli")
DECIDED = {"threshold": "its threshold decided", "t_max": "clipping (t_max) decided"}
TARGETS = ("8.0", "8.6", "8.9")  # compute capabilities: A100, RTX 30, RTX 40


def main() -> None:
    """Run every command, and fail as soon as one does not end as it should."""
    started = time.monotonic()
    config = str((HERE / "config.toml").relative_to(Path.cwd()))
    sparse, dense = OUT / "step", OUT / "dense"
    head = ("--exclude", "head.*")  # the classifier stays dense, as in the config

    say("Train a 2:4 network with STEP, and a dense twin of the same configuration")
    step_cli("train", config, "--run-dir", sparse, "--force")
    step_cli(
        "train", config, "--set", "sparsity.recipe=dense", "--run-dir", dense, "--force"
    )
    say("When was the variance ready? Replay every criterion on the dense run")
    step_cli("autoswitch-profile", dense, "--plot", OUT / "autoswitch.svg")
    say("Does the result hold its pattern? The dense twin must fail this")
    step_cli("verify-nm", sparse)
    step_cli("verify-nm", dense, *head, expect=1)
    say("Export: compressed, ONNX, and a TensorRT-RTX engine, built without a GPU")
    packed, onnx, plan = (
        OUT / f"model.{x}" for x in ("nm.safetensors", "onnx", "plan")
    )
    step_cli("export", sparse, packed, "--to", "compressed", "--force")
    step_cli("export", sparse, onnx, "--to", "onnx", "--force")
    targets = [word for cc in TARGETS for word in ("--compute-capability", cc)]
    step_cli("export", sparse, plan, "--to", "tensorrt", *targets, "--force")

    document = json.loads((OUT / "model.plan.report.json").read_text())
    rows = results(sparse, dense, packed, document)
    rows.append(("demo took", f"{time.monotonic() - started:.0f} s"))
    say("What was measured")
    for name, value in rows:
        print(f"  {name:<28} {value}")
    print()
    print(honest_words(document))


def step_cli(*arguments: object, expect: int = 0) -> None:
    """Print a command, run it, and insist on its exit code."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ step-cli {' '.join(words)}", flush=True)
    code = subprocess.run([COMMAND, *words], check=False).returncode
    if code == 1 and expect == 1:
        print("(exit 1, as it should be: the dense twin is not 2:4)", flush=True)
    if code != expect:
        raise SystemExit(f"exit {code}, expected {expect}")


def results(
    sparse: Path, dense: Path, packed: Path, engine: dict[str, Any]
) -> list[tuple[str, str]]:
    """The rows of the closing table, from the files the commands have written."""
    ours, twin = (
        json.loads((run / "report.json").read_text()) for run in (sparse, dense)
    )
    switch = ours["switch"]
    bytes_dense = (sparse / "model/model.safetensors").stat().st_size
    bytes_packed = packed.stat().st_size
    parity = engine["parity"]
    return [
        ("accuracy, dense", f"{twin['metrics']['eval_accuracy']:.2%}"),
        ("accuracy, 2:4 by STEP", f"{ours['metrics']['eval_accuracy']:.2%}"),
        ("density of pruned layers", f"{ours['density']:.4f}"),
        (
            "switch step",
            f"{switch['step']} of {ours['steps']}, by {switch['criterion']}: "
            + DECIDED[switch["reason"]],
        ),
        ("checkpoint, dense", f"{bytes_dense:,} bytes"),
        (
            "checkpoint, compressed",
            f"{bytes_packed:,} bytes, {bytes_dense / bytes_packed:.2f}x smaller",
        ),
        ("parity, ONNX Runtime fp16", f"max abs {parity['max_abs']:.2g}"),
        ("engine", f"{engine['bytes']['output']:,} bytes"),
        ("engine built by", f"{engine['backend']['name']} for {', '.join(TARGETS)}"),
        ("sparse kernels", engine["backend"]["sparse_weights"]),
    ]


def honest_words(engine: dict[str, Any]) -> str:
    """What the engine is not, and what to do about it."""
    if engine["backend"]["sparse_weights"] != "ignored":
        return "The engine report says per layer which kernels were chosen."
    return (
        "TensorRT-RTX ignores sparsity: this engine is real and runs, but dense.\n"
        "For sparse kernels, on a machine with an Ampere-or-later GPU and TensorRT:\n"
        f"  step-cli export {OUT}/step {OUT}/model.plan --to tensorrt "
        "--backend tensorrt --require-sparse --force"
    )


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    main()
