"""Where the criteria switch on the samples, and how much v still changes afterwards.

    python benchmarks/switch_points.py [--seeds 3] [--only NAME]... [--keep DIR]

Every run is `step-cli autoswitch-profile CONFIG --seeds N` with one thread. Writes
results/switch_points.json, results/switch_points.md, and a plot for each setting into
docs/. Settings that are not run again keep what the files say of them.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LIBRARIES = ("step-cli", "torch", "numpy")
# What the paper trains with, where the sample has a shorter memory for a short run.
PAPER_BETAS = "train.betas=[0.9, 0.999]"
SETTINGS = {
    "digits": ("digits-resnet", []),
    "digits-999": ("digits-resnet", [PAPER_BETAS, "train.steps=4000"]),
    "stdlib-gpt": ("stdlib-gpt", []),
    "stdlib-gpt-999": ("stdlib-gpt", [PAPER_BETAS, "train.steps=2400"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=SETTINGS)
    parser.add_argument("--keep", type=Path, help="keep the recordings here")
    options = parser.parse_args()
    file = RESULTS / "switch_points.json"
    document = json.loads(file.read_text()) if file.exists() else {"settings": {}}
    for name in options.only or SETTINGS:
        document["settings"][name] = profile(name, options.seeds, options.keep)
        document["machine"] = f"{platform.machine()}, {platform.system()}, 1 thread"
        document["versions"] = {lib: metadata.version(lib) for lib in LIBRARIES}
        file.write_text(json.dumps(document, indent=2) + "\n")
        (RESULTS / "switch_points.md").write_text(page(document))
    print(page(document))


def profile(name: str, seeds: int, keep: Path | None) -> dict[str, Any]:
    """The report on one setting, without what can be computed from the rest."""
    sample, overrides = SETTINGS[name]
    words = ["autoswitch-profile", f"sample_models/{sample}/config.toml"]
    words += ["--seeds", str(seeds)]
    words += [word for override in overrides for word in ("--set", override)]
    more = ["--json", "--quiet", "--plot", f"docs/switch-{name}.svg"]
    if keep is not None:
        more += ["--out", str(keep.resolve() / name), "--force"]
    done = subprocess.run(
        [sys.executable, "-m", "step_cli", *words, *more],
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        check=True,
    )
    report = json.loads(done.stdout)
    runs = report["seeds"] or [{"seed": None, **report}]
    kept = (
        "name",
        "switch_step",
        "raw_step",
        "reason",
        "clipped",
        "post_switch_change",
    )
    settings = ("total_steps", "beta2", "eps", "window", "t_min", "t_max")
    return {
        "command": "step-cli " + " ".join(words),
        **{key: report[key] for key in (*settings, "theorem_1_minimum")},
        "recommendation": report["recommendation"],
        "runs": [
            {
                "seed": run["seed"],
                "steps": run["steps"],
                "criteria": [
                    {key: row[key] for key in kept} for row in run["criteria"]
                ],
            }
            for run in runs
        ],
        "last layers": [
            {key: row[key] for key in ("name", "ready_step", "relative_ready_step")}
            for row in report["layers"][:5]
        ],
    }


def page(document: dict[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in document["versions"].items())
    lines = [
        "# Switch points of the samples",
        "",
        f"{document['machine']}; {versions}.",
    ]
    for name, setting in document["settings"].items():
        lines += ["", f"## {name}", "", f"`{setting['command']}`", "", *table(setting)]
    return "\n".join(lines) + "\n"


def table(setting: dict[str, Any]) -> list[str]:
    """Criteria by rows; the lowest change of each seed is bold."""
    runs = setting["runs"]
    lowest = [lowest_change(run) for run in runs]
    lines = [
        "| criterion | switch step (what decided) | change after, 1e-3 sum | mean |",
        "|---|---|---|---|",
    ]
    for number, row in enumerate(runs[0]["criteria"]):
        rows = [run["criteria"][number] for run in runs]
        steps = ", ".join(decided(each) for each in rows)
        changes = [each["post_switch_change"] for each in rows]
        shown = ", ".join(
            "-" if c is None else f"**{c:.3g}**" if c == low else f"{c:.3g}"
            for c, low in zip(changes, lowest, strict=True)
        )
        known = [c for c in changes if c is not None]
        mean = f"{statistics.fmean(known):.3g}" if len(known) == len(runs) else "-"
        lines.append(f"| {row['name']} | {steps} | {shown} | {mean} |")
    return lines


def lowest_change(run: dict[str, Any]) -> float | None:
    changes = [row["post_switch_change"] for row in run["criteria"]]
    return min((c for c in changes if c is not None), default=None)


def decided(row: dict[str, Any]) -> str:
    clipped = " clipped" if row["clipped"] and row["reason"] == "threshold" else ""
    return f"{row['switch_step'] or '-'} ({row['reason']}{clipped})"


if __name__ == "__main__":
    main()
