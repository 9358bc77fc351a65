"""Held-out metrics of the small sample models, dense and by STEP.

    python benchmarks/samples.py [--samples stdlib-gpt ...] [--recipes dense step]
                                 [--out DIR]

Every run is `step-cli train` of the sample's own configuration with one thread. Writes
samples.json and samples.md; what an earlier call measured of other samples stays.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

SAMPLES = ("stdlib-gpt", "stdlib-bert", "translate-tiny")
RECIPES = ("dense", "step")
LIBRARIES = ("step-cli", "torch", "transformers", "numpy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", nargs="+", choices=SAMPLES, default=SAMPLES)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "samples.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    for sample in options.samples:
        for recipe in options.recipes:
            found = train(sample, recipe)
            runs = [r for r in runs if (r["sample"], r["recipe"]) != (sample, recipe)]
            runs.append(found)
            document = {
                "command": "python benchmarks/samples.py",
                "machine": f"{platform.machine()}, {platform.system()}, 1 thread",
                "python": platform.python_version(),
                "versions": {name: metadata.version(name) for name in LIBRARIES},
                "runs": runs,
            }
            path.write_text(json.dumps(document, indent=2) + "\n")
            (options.out / "samples.md").write_text(table(document))
    print(table(document))


def train(sample: str, recipe: str) -> dict[str, object]:
    """One run; returns what its report says, and the seconds it took."""
    config = f"sample_models/{sample}/config.toml"
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "step_cli", "-q", "train", config, "--json"]
        words += ["--set", f"sparsity.recipe={recipe}", "--run-dir", f"{folder}/run"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        began = time.monotonic()
        done = subprocess.run(words, capture_output=True, env=environment, check=True)
        seconds = time.monotonic() - began
    report = json.loads(done.stdout)
    return {
        "sample": sample,
        "recipe": recipe,
        "steps": report["steps"],
        "metrics": report["metrics"],
        "density": report["density"],
        "switch": report["switch"],
        "seconds": round(seconds),
    }


def table(document: dict) -> str:
    """The result as Markdown."""
    versions = ", ".join(f"{k} {v}" for k, v in document["versions"].items())
    lines = [
        "# Sample models: held-out metrics",
        "",
        f"`{document['command']}` on {document['machine']}; Python "
        f"{document['python']}, {versions}. One seed. Seconds include reading the data "
        "and evaluation; the machine was shared, so they are no measure of speed.",
        "",
        "| sample | recipe | density | loss | accuracy | switch step | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in document["runs"]:
        metrics, switch = run["metrics"], run["switch"]
        decided = f"{switch['step']} ({switch['reason']})" if switch else "-"
        lines.append(
            f"| {run['sample']} | {run['recipe']} | {run['density']:.2f} | "
            f"{metrics['eval_loss']:.4f} | {metrics['eval_accuracy']:.2%} | "
            f"{decided} of {run['steps']} | {run['seconds']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
