"""Accuracy of the recipes on scikit-learn's digits: several seeds of the demo's config.

    python benchmarks/digits.py [--seeds 3] [--out DIR]

Every run is `step-cli train` with one thread; the held-out share of correct answers is
that of the model as it would be deployed. Writes digits.json and digits.md.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

CONFIG = "sample_models/digits-resnet/config.toml"
RECIPES = ("dense", "step", "ste", "sr-ste")
BAR = 0.015  # how much accuracy STEP may lose against dense, mean over the seeds
LIBRARIES = ("step-cli", "torch", "numpy", "scikit-learn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    runs = [train(recipe, seed) for recipe in RECIPES for seed in range(options.seeds)]
    document = {
        "command": f"python benchmarks/digits.py --seeds {options.seeds}",
        "machine": f"{platform.machine()}, {platform.system()}, 1 thread",
        "versions": {name: metadata.version(name) for name in LIBRARIES},
        "bar": BAR,
        "runs": runs,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "digits.json").write_text(json.dumps(document, indent=2) + "\n")
    (options.out / "digits.md").write_text(table(document))
    print(table(document))
    lost = mean(runs, "dense") - mean(runs, "step")
    raise SystemExit(lost > BAR)


def train(recipe: str, seed: int) -> dict[str, object]:
    """One run; returns what its report says."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "step_cli", "-q", "train", CONFIG, "--json"]
        words += ["--set", f"sparsity.recipe={recipe}", "--set", f"train.seed={seed}"]
        words += ["--run-dir", f"{folder}/run"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, capture_output=True, env=environment, check=True)
    report = json.loads(done.stdout)
    return {
        "recipe": recipe,
        "seed": seed,
        "accuracy": report["metrics"]["eval_accuracy"],
        "density": report["density"],
        "switch": report["switch"],
    }


def mean(runs: list[dict], recipe: str) -> float:
    return statistics.mean(r["accuracy"] for r in runs if r["recipe"] == recipe)


def table(document: dict) -> str:
    """The result as Markdown."""
    versions = ", ".join(f"{k} {v}" for k, v in document["versions"].items())
    lines = [
        "# Digits: held-out accuracy by recipe",
        "",
        f"`{document['command']}` on {document['machine']}; {versions}.",
        "One image of the 360 held out is 0.28 points.",
        "",
        "| recipe | density | mean | by seed | switch step (what decided) |",
        "|---|---|---|---|---|",
    ]
    for recipe in RECIPES:
        runs = [run for run in document["runs"] if run["recipe"] == recipe]
        seeds = ", ".join(f"{run['accuracy']:.2%}" for run in runs)
        switches = ", ".join(
            f"{run['switch']['step']} ({run['switch']['reason']})"
            for run in runs
            if run["switch"]
        )
        average = mean(document["runs"], recipe)
        lines.append(
            f"| {recipe} | {runs[0]['density']:.2f} | {average:.2%} | {seeds} | "
            f"{switches or '-'} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
