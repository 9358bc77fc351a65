"""Held-out loss of stdlib-gpt after one-shot pruning to 2:4, by every method.

    python benchmarks/prune_methods.py [--run DIR] [--out DIR] [--only permute|refit]

Trains the sample densely, unless ``--run`` names a finished dense run, and prunes its
model by every method: as it is, with --permute, and with each --refit. Calibration
samples are the training part of its data. Nothing is trained after pruning, but for
what --refit does. Writes prune_methods.json and .md; what ``--only`` leaves out stays
as it was there.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

CONFIG = "sample_models/stdlib-gpt/config.toml"
METHODS = ("random", "magnitude", "wanda", "sparsegpt")
FITTED = ("magnitude", "wanda", "sparsegpt")
REFITS = ("none", "layer", "block")
LIBRARIES = ("step-cli", "torch", "transformers", "numpy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="a finished dense run of stdlib-gpt")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", choices=("permute", "refit"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = options.run or train(folder / "run")
        samples = calibration(folder / "train.txt")
        document: dict[str, Any] = {}
        if options.only:
            document = json.loads((options.out / "prune_methods.json").read_text())
        model = run / "model"
        if options.only != "refit":
            document["rows"] = [
                measure(model, folder, method, samples, permute=permute)
                for method in METHODS
                for permute in (False, True)
            ]
        if options.only != "permute":
            document["refits"] = [
                measure_refit(model, folder, method, samples, refit)
                for method in FITTED
                for refit in REFITS
            ]
        dense = evaluate(model)["eval_loss"]
    document |= {
        "command": "python benchmarks/prune_methods.py",
        "machine": f"{platform.machine()}, {platform.system()}, 1 thread",
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in LIBRARIES},
        "dense_loss": dense,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "prune_methods.json").write_text(
        json.dumps(document, indent=2) + "\n"
    )
    (options.out / "prune_methods.md").write_text(table(document))
    print(table(document))


def train(run: Path) -> Path:
    """Train densely."""
    step_cli("train", CONFIG, "--set", "sparsity.recipe=dense", "--run-dir", str(run))
    return run


def calibration(path: Path) -> Path:
    """The text that the sample trains on, whose held-out files are left out."""
    from step_cli.config.samples import load_sample

    data = load_sample("stdlib-gpt", "data")
    files = data.text_files()
    held_out = set(files[:: data.HELD_OUT])
    path.write_bytes(b"".join(f.read_bytes() for f in files if f not in held_out))
    return path


def measure(
    model: Path, folder: Path, method: str, text: Path, *, permute: bool
) -> dict[str, Any]:
    """Prune by one method, and evaluate what comes out."""
    out = folder / f"{method}-{permute}"
    words = ["--method", method, *(["--permute"] if permute else [])]
    if method in ("wanda", "sparsegpt"):
        words += ["--calibration", str(text)]
    began = time.monotonic()
    report = step_cli("prune", str(model), str(out), "--exclude", "lm_head.*", *words)
    seconds = time.monotonic() - began
    return {
        "method": method,
        "permute": permute,
        "eval_loss": evaluate(out)["eval_loss"],
        "retained": report["totals"]["retained"],
        "permuted_layers": sum(bool(x["permuted"]) for x in report["layers"]),
        "layers": report["totals"]["layers"],
        "seconds": round(seconds, 1),
    }


def measure_refit(
    model: Path, folder: Path, method: str, text: Path, refit: str
) -> dict[str, Any]:
    """Prune by one method, fit what is kept, and evaluate what comes out."""
    out = folder / f"{method}-{refit}"
    words = ["--method", method, "--refit", refit]
    if refit != "none" or method in ("wanda", "sparsegpt"):
        words += ["--calibration", str(text)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    report = step_cli("prune", str(model), str(out), "--exclude", "lm_head.*", *words)
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    fits = report["blocks"] or report["layers"]
    held_out = [x["held_out_after"] for x in fits if x["held_out_after"] is not None]
    return {
        "method": method,
        "refit": refit,
        "eval_loss": evaluate(out)["eval_loss"],
        "held_out_error": sum(held_out) / len(held_out) if held_out else None,
        "cpu_seconds": round(seconds, 1),
    }


def evaluate(checkpoint: Path) -> dict[str, float]:
    """Metrics on the held-out samples."""
    report = step_cli("train", CONFIG, "--evaluate", str(checkpoint))
    metrics: dict[str, float] = report["metrics"]
    return metrics


def step_cli(*words: str) -> dict[str, Any]:
    """Run the command with one thread, and return its report."""
    done = subprocess.run(
        [sys.executable, "-m", "step_cli", "-q", *words, "--json"],
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr.decode())
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def table(document: dict[str, Any]) -> str:
    lines = [
        "Held-out loss of stdlib-gpt at 2:4, pruned once; dense "
        f"{document['dense_loss']:.3f}",
        "",
        "| method | loss | retained | loss, permuted | retained, permuted |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    found = {(row["method"], row["permute"]): row for row in document["rows"]}
    for method in METHODS:
        cells = [
            f"{found[method, permute][key]:.3f}"
            for permute in (False, True)
            for key in ("eval_loss", "retained")
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines += [
        "",
        "Loss by --refit, and the seconds of one CPU core that pruning and it took",
        "",
        "| method | none | layer | block | s, none | s, layer | s, block |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    fits = {(row["method"], row["refit"]): row for row in document["refits"]}
    for method in FITTED:
        rows = [fits[method, refit] for refit in REFITS]
        cells = [f"{row['eval_loss']:.3f}" for row in rows]
        cells += [f"{row['cpu_seconds']:.0f}" for row in rows]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
