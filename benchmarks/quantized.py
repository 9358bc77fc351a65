"""Accuracy of one sparse run as fp32, fp16, int8 and fp8 graphs in ONNX Runtime.

    python benchmarks/quantized.py [--sample NAME ...] [--runs DIR] [--out DIR]

Trains each sample with STEP at 2:4, unless DIR/NAME holds a finished run, exports it to
ONNX in each number type, and lets `train --evaluate` run the held-out data through each
graph. Ranges of int8 and fp8 are measured on samples of the training part. Aim: int8
within half a point of accuracy, or 1 % of the loss, of fp32. Writes quantized.json and
quantized.md.
"""

import argparse
import json
import platform
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from processor import processor
from prune_methods import step_cli

SAMPLES = ("digits-resnet", "stdlib-bert", "stdlib-gpt")
TYPES = {
    "fp32": (),
    "fp16": ("--precision", "fp16"),
    "int8": ("--quantize", "int8"),
    "fp8": ("--quantize", "fp8"),
}
CALIBRATION = 128  # samples, of which every fifth is compared only
LIBRARIES = ("step-cli", "torch", "transformers", "onnx", "onnxruntime", "numpy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", nargs="+", default=SAMPLES, choices=SAMPLES)
    parser.add_argument("--runs", type=Path, help="where finished runs are, by name")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for sample in options.sample:
            run = (options.runs or Path(name)) / sample
            if not (run / "report.json").exists():
                step_cli("train", config_of(sample), "--run-dir", str(run))
            samples = calibration(sample, Path(name) / f"{sample}.npz")
            for kind in TYPES:
                rows.append(measure(sample, run, samples, kind, Path(name)))
                print(json.dumps(rows[-1]), flush=True)
    document = {
        "command": "python benchmarks/quantized.py",
        "machine": f"{processor()}, {platform.system()}, 1 thread",
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in LIBRARIES},
        "calibration_samples": CALIBRATION,
        "rows": rows,
    }
    options.out.mkdir(exist_ok=True)
    text = json.dumps(document, indent=2) + "\n"
    (options.out / "quantized.json").write_text(text)
    (options.out / "quantized.md").write_text(table(rows))


def config_of(sample: str) -> str:
    return f"sample_models/{sample}/config.toml"


def calibration(sample: str, path: Path) -> Path:
    """Samples of the part that the sample trains on."""
    from step_cli.config.train import load_config
    from step_cli.data.load import load_data

    split = load_data(load_config(Path(config_of(sample))).data).train
    chosen = np.random.default_rng(0).choice(len(split), CALIBRATION, replace=False)
    batch = split[torch.from_numpy(chosen)]
    np.savez(path, **{name: x.numpy() for name, x in batch.inputs.items()})
    return path


def measure(
    sample: str, run: Path, samples: Path, kind: str, folder: Path
) -> dict[str, Any]:
    """Export in one number type, and evaluate the graph."""
    out = folder / f"{sample}-{kind}.onnx"
    words = [*TYPES[kind]]
    if "--quantize" in words:
        words += ["--calibration", str(samples)]
    export = step_cli("export", str(run), str(out), "--to", "onnx", *words)
    found = step_cli("train", config_of(sample), "--evaluate", str(out))
    quantized = export["quantization"]
    return {
        "sample": sample,
        "type": kind,
        "bytes": export["bytes"]["output"],
        "quantized_layers": None if quantized is None else quantized["layers"],
        "held_out_cosine": None
        if quantized is None
        else quantized["held_out"]["cosine"],
        "metrics": found["metrics"],
        "runtime": found["runtime"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "Held-out metrics of STEP at 2:4 as ONNX graphs of each number type, by ONNX "
        "Runtime on a CPU; cosine of the outputs to those of fp32 on held-out "
        "calibration samples.",
        "",
        "| sample | type | accuracy | loss | cosine | bytes |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        found, cosine = row["metrics"], row["held_out_cosine"]
        near = "" if cosine is None else f"{cosine:.5f}"
        lines.append(
            f"| {row['sample']} | {row['type']} | {100 * found['eval_accuracy']:.2f} % "
            f"| {found['eval_loss']:.4f} | {near} | {row['bytes']:,} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
