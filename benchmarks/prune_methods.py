"""Held-out loss of stdlib-gpt after one-shot pruning to 2:4, by every method.

    python benchmarks/prune_methods.py [--run DIR] [--out DIR] [--only permute|refit]

Trains the sample densely, unless ``--run`` names a finished dense run, and prunes its
model by every method: as it is, with --permute, and with each --refit. Calibration
samples are of the training part of its data alone; the loss is that of the held-out
part. Nothing is trained after pruning, but for what --refit does. Writes
prune_methods.json and .md after each row; rows that ``--only`` leaves out stay as they
were there.
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
    path = options.out / "prune_methods.json"
    document: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = (options.run or train(folder / "run")) / "model"
        samples = calibration(folder / "train.txt")
        document |= {
            "command": "python benchmarks/prune_methods.py",
            "machine": f"{platform.machine()}, {platform.system()}, 1 thread",
            "python": platform.python_version(),
            "versions": {name: metadata.version(name) for name in LIBRARIES},
            "dense_loss": evaluate(model)["eval_loss"],
        }
        if options.only != "refit":
            for method in METHODS:
                for permute in (False, True):
                    row = measure(model, folder, method, samples, permute=permute)
                    add(document, "rows", row, ("method", "permute"), options.out)
        if options.only != "permute":
            for method in FITTED:
                for refit in REFITS:
                    row = measure_refit(model, folder, method, samples, refit)
                    add(document, "refits", row, ("method", "refit"), options.out)
    print(table(document))


def add(
    document: dict[str, Any],
    part: str,
    row: dict[str, Any],
    keys: tuple[str, str],
    out: Path,
) -> None:
    """Put a row in the place of the one with the same keys, and write everything."""
    rows = {tuple(old[key] for key in keys): old for old in document.get(part, ())}
    rows[tuple(row[key] for key in keys)] = row
    document[part] = list(rows.values())
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=2) + "\n"
    (out / "prune_methods.json").write_text(text)
    (out / "prune_methods.md").write_text(table(document))


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
    """What is measured so far; of a row that is not, dashes."""
    lines = [
        "Held-out loss of stdlib-gpt at 2:4, pruned once; dense "
        f"{document['dense_loss']:.3f}",
        "",
        "| method | loss | retained | loss, permuted | retained, permuted |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    found = {(row["method"], row["permute"]): row for row in document.get("rows", ())}
    for method in METHODS:
        cells = [
            cell(found.get((method, permute)), key, ".3f")
            for permute in (False, True)
            for key in ("eval_loss", "retained")
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines += [
        "",
        "Loss by --refit, and seconds of one CPU core for pruning and refit, with "
        "the start of the command",
        "",
        "| method | none | layer | block | s, none | s, layer | s, block |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    fits = {(row["method"], row["refit"]): row for row in document.get("refits", ())}
    for method in FITTED:
        rows = [fits.get((method, refit)) for refit in REFITS]
        cells = [cell(row, "eval_loss", ".3f") for row in rows]
        cells += [cell(row, "cpu_seconds", ".0f") for row in rows]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(row: dict[str, Any] | None, key: str, form: str) -> str:
    return "-" if row is None else format(row[key], form)


if __name__ == "__main__":
    main()
