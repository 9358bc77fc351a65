"""Where the criteria switch on the samples, and how much v still changes afterwards.

    python benchmarks/switch_points.py [--seeds 3] [--only NAME]... [--keep DIR]

Every run is `step-cli autoswitch-profile CONFIG --set train.seed=N`, with one thread;
the runs of a setting are then replayed together. Writes results/switch_points.json,
results/switch_points.md, and two drawings of each setting into docs/. Settings that
are not run again keep what the files say of them; a run that is in DIR is not trained
again.
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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from step_cli.autoswitch.recording import Recording
from step_cli.autoswitch.replay import STEPS_AFTER
from step_cli.plots.drawing import GRID, STYLE, pyplot, save_figure
from step_cli.plots.profile_panels import COLORS

ROOT = Path(__file__).parents[1]
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
LIBRARIES = ("step-cli", "torch", "numpy")
SETTINGS = {
    "digits": ("digits-resnet", []),
    # A quarter of the sample's batch: 8 minutes a seed on a busy core.
    "stdlib-gpt": ("stdlib-gpt", ["train.batch_size=8"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=SETTINGS)
    parser.add_argument("--keep", type=Path, help="keep the recordings here")
    options = parser.parse_args()
    file = RESULTS / "switch_points.json"
    document = json.loads(file.read_text()) if file.exists() else {"settings": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.only or SETTINGS:
            runs = (options.keep or Path(scratch)).resolve() / name
            record(name, options.seeds, runs)
            document["settings"][name] = profile(name, runs)
            draw_change_after(document["settings"][name], runs, name)
            document["machine"] = f"{platform.machine()}, {platform.system()}, 1 thread"
            document["versions"] = {lib: metadata.version(lib) for lib in LIBRARIES}
            file.write_text(json.dumps(document, indent=2) + "\n")
            (RESULTS / "switch_points.md").write_text(page(document))
    print(page(document))


def record(name: str, seeds: int, runs: Path) -> None:
    """Train for each seed that is not there yet."""
    for seed in range(seeds):
        out = runs / f"seed-{seed}"
        if not out.exists():
            runs.mkdir(parents=True, exist_ok=True)
            more = ["--set", f"train.seed={seed}", "--out", str(out)]
            step_cli([*training(name), *more, "--quiet", "--json"])


def training(name: str) -> list[str]:
    """The command that trains a setting, but for the seed."""
    sample, overrides = SETTINGS[name]
    words = ["autoswitch-profile", f"sample_models/{sample}/config.toml"]
    return words + [word for override in overrides for word in ("--set", override)]


def step_cli(words: list[str]) -> dict[str, Any]:
    """The JSON document that a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "step_cli", *words],
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        check=True,
    )
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def profile(name: str, runs: Path) -> dict[str, Any]:
    """The report on one setting, without what can be computed from the rest."""
    plot = str(DOCS / f"switch-{name}.svg")
    report = step_cli(["autoswitch-profile", str(runs), "--json", "--plot", plot])
    kept = (
        "name",
        "switch_step",
        "raw_step",
        "decided_by",
        "post_switch_change",
    )
    settings = ("total_steps", "beta2", "eps", "window", "t_min", "t_max")
    return {
        "command": "step-cli " + " ".join(training(name)),
        **{key: report[key] for key in (*settings, "theorem_1_minimum")},
        "recommendation": report["recommendation"],
        "runs": [
            {
                "seed": run["seed"],
                "steps": run["steps"],
                "criteria": [
                    {key: row[key] for key in kept}
                    | {"raw_change": change_at(row["raw_step"], runs, run["seed"])}
                    for row in run["criteria"]
                ],
            }
            for run in report["seeds"] or [{"seed": 0, **report}]
        ],
        "last layers": [
            {key: row[key] for key in ("name", "ready_step", "relative_ready_step")}
            for row in report["layers"][:5]
        ],
    }


def change_at(step: int | None, runs: Path, seed: int) -> float | None:
    """The metric of Table 1 for any switch step; None where the run is too short."""
    after = changes_after(runs, seed)
    return None if step is None or step > len(after) else float(after[step - 1])


def draw_change_after(setting: dict[str, Any], runs: Path, name: str) -> None:
    """The metric of Table 1 for every step that could be the switch point."""
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, panel = plt.subplots(figsize=(9, 3.6), layout="constrained")
        for number, run in enumerate(setting["runs"]):
            after = changes_after(runs, run["seed"])
            steps = np.arange(1, len(after) + 1)
            label = "any step" if number == 0 else None
            panel.plot(steps, after, color=GRID, linewidth=0.8, label=label)
            for row in run["criteria"]:
                for step, change, face in (
                    ("raw_step", "raw_change", "none"),
                    ("switch_step", "post_switch_change", COLORS[row["name"]]),
                ):
                    named = number == 0 and face != "none"
                    panel.plot(
                        row[step] if row[change] is not None else np.nan,
                        np.nan if row[change] is None else row[change],
                        "o",
                        markersize=6,
                        color=COLORS[row["name"]],
                        markerfacecolor=face,
                        label=row["name"] if named else None,
                    )
        panel.plot([], [], "o", color=GRID, markerfacecolor="none", label="unclipped")
        panel.set_yscale("log")
        panel.set_xlim(0, 1.15 * setting["t_max"])
        panel.set_xlabel("switch step")
        panel.set_ylabel("change of v in the\n1001 steps after it, / 1000")
        panel.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
        save_figure(figure, DOCS / f"switch-{name}-after.svg")


def changes_after(runs: Path, seed: int) -> NDArray[np.float64]:
    """A thousandth of the sum of ||v_(t+1) - v_t||_1 from each t0 to t0 + 1000."""
    recording = Recording(runs / f"seed-{seed}" / "variance.jsonl")
    changes = np.array([sample.dv_l1 for sample, _ in recording.steps()])
    sums = np.concatenate([[0.0], np.cumsum(changes)])
    after: NDArray[np.float64] = sums[STEPS_AFTER + 1 :] - sums[1:-STEPS_AFTER]
    return after / 1000


def page(document: dict[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in document["versions"].items())
    lines = [
        "# Switch points of the samples",
        "",
        f"{document['machine']}; {versions}.",
    ]
    for name, setting in document["settings"].items():
        said = (
            f"beta2 {setting['beta2']}, eps {setting['eps']:g}, window "
            f"{setting['window']}, clipped to {setting['t_min']}-{setting['t_max']} of "
            f"{setting['total_steps']} steps; Theorem 1 from step "
            f"{setting['theorem_1_minimum']} on."
        )
        lines += ["", f"## {name}", "", f"`{setting['command']}`", "", said, ""]
        lines += table(setting)
    return "\n".join(lines) + "\n"


def table(setting: dict[str, Any]) -> list[str]:
    """Criteria by rows, with clipping and without; the lowest of each seed is bold."""
    runs = [run["criteria"] for run in setting["runs"]]
    lines = [
        "| criterion | switch step (what decided) | change after | mean "
        "| unclipped step | change after | mean |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, row in enumerate(runs[0]):
        rows = [criteria[number] for criteria in runs]
        decided = [f"{each['switch_step'] or '-'}" for each in rows]
        reasons = dict.fromkeys(each["decided_by"] for each in rows)
        cells = [
            f"{', '.join(decided)} ({', '.join(reasons)})",
            *changes(runs, number, "post_switch_change"),
            ", ".join(f"{each['raw_step'] or '-'}" for each in rows),
            *changes(runs, number, "raw_change"),
        ]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return lines


def changes(runs: list[list[dict[str, Any]]], number: int, key: str) -> tuple[str, str]:
    """One criterion's changes, seed by seed, and their mean."""
    shown, known = [], []
    for criteria in runs:
        change = criteria[number][key]
        all_known = [row[key] for row in criteria if row[key] is not None]
        if change is None:
            shown.append("-")
            continue
        known.append(change)
        digits = f"{change:.3e}"
        shown.append(f"**{digits}**" if change == min(all_known) else digits)
    mean = f"{statistics.fmean(known):.3e}" if len(known) == len(runs) else "-"
    return ", ".join(shown), mean


if __name__ == "__main__":
    main()
