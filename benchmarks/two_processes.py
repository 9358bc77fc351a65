"""stdlib-gpt by one process and by two under `torchrun`, DDP and FSDP2: the same end?

    python benchmarks/two_processes.py [--steps 600] [--kinds ddp fsdp] [--out DIR]

Every run is `step-cli train` of the sample's own configuration, one thread a process,
gloo between them. The reference is one process that takes the same global batch in two
halves (`train.grad_accumulation = 2`): its sums are those of two processes, in the same
order. Two controls, one process with the batch at once, by one thread and by two, show
what rounding in another order does. Writes two_processes.json and two_processes.md
after each run; exits 1 if a final loss of two processes differs by more than 1e-3 from
the reference, or a switch step although the criterion was not within 1 % of its
threshold.
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

CONFIG = "sample_models/stdlib-gpt/config.toml"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
LIBRARIES = ("step-cli", "torch", "transformers", "numpy")
GLOBAL_BATCH = 32  # samples, as in the configuration
CLOSE, NEAR = 1e-3, 0.01  # of losses; of the criterion to its threshold, as a share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600, help="of the schedule too")
    parser.add_argument("--kinds", nargs="+", default=["ddp", "fsdp"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    runs: list[dict] = []
    two = [(kind, 1, 1) for kind in options.kinds]
    for kind, threads, parts in [("none", 1, 2), *two, ("none", 1, 1), ("none", 2, 1)]:
        runs.append(train(kind, threads, parts, options.steps))
        document = {
            "command": f"python benchmarks/two_processes.py --steps {options.steps}",
            "machine": f"{platform.machine()}, {platform.system()}",
            "python": platform.python_version(),
            "versions": {name: metadata.version(name) for name in LIBRARIES},
            "runs": runs,
        }
        text = json.dumps(document, indent=2) + "\n"
        (options.out / "two_processes.json").write_text(text)
        (options.out / "two_processes.md").write_text(table(document))
    print(table(document))
    sys.exit(not all(same(runs[0], run) for run in runs if run["processes"] == 2))


def train(kind: str, threads: int, parts: int, steps: int) -> dict:
    """One run; what its report says, and how near its criterion was to deciding."""
    launcher = [] if kind == "none" else TORCHRUN
    words = [sys.executable, *launcher, "-m", "step_cli", "-q", "train", CONFIG]
    words += ["--json", "--set", f"train.parallel={kind}"]
    words += ["--set", f"train.steps={steps}"]
    words += ["--set", f"train.batch_size={GLOBAL_BATCH // parts}"]
    words += ["--set", f"train.grad_accumulation={parts}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        began = time.monotonic()
        done = subprocess.run(
            [*words, "--run-dir", str(run_dir)],
            stdout=subprocess.PIPE,
            env=environment,
            check=True,
        )
        seconds = time.monotonic() - began
        report = json.loads(done.stdout)
        ratio = nearest(run_dir, report["switch"]["step"])
    return {
        "parallel": report["parallel"],
        "processes": report["processes"],
        "threads": threads,
        "parts": parts,
        "eval_loss": report["metrics"]["eval_loss"],
        "dense_eval_loss": report["dense_metrics"]["eval_loss"],
        "switch": report["switch"],
        "criterion_over_threshold": ratio,
        "seconds": round(seconds),
    }


def nearest(run_dir: Path, switch: int) -> float:
    """AutoSwitch's windowed mean over its threshold, where it came nearest to 1.

    At the switch and before it: later values decide nothing.
    """
    first, *lines = map(
        json.loads, (run_dir / "variance.jsonl").read_text().split("\n")[:-1]
    )
    window = round(1 / (1 - first["beta2"]))
    changes = [line["dv_l1"] / line["d"] for line in lines]
    means = [
        sum(changes[step - window : step]) / window
        for step in range(window, switch + 1)
    ]
    ratios = [mean / first["eps"] for mean in means]
    return min(ratios, key=lambda ratio: abs(ratio - 1), default=0.0)


def same(one: dict, other: dict) -> bool:
    """Whether two processes ended where one did, as far as that can be asked."""
    near = abs(one["criterion_over_threshold"] - 1) <= NEAR
    switched = one["switch"] == other["switch"] or near
    losses = ("eval_loss", "dense_eval_loss")
    return switched and all(abs(one[key] - other[key]) <= CLOSE for key in losses)


def table(document: dict) -> str:
    """The result as Markdown."""
    versions = ", ".join(f"{k} {v}" for k, v in document["versions"].items())
    alone = document["runs"][0]
    lines = [
        "# stdlib-gpt by one process and by two",
        "",
        f"`{document['command']}` on {document['machine']}; Python "
        f"{document['python']}, {versions}; gloo. The machine was shared, so "
        "the seconds are no measure of speed. The criterion is told as a multiple of "
        "its threshold, where it came nearest to that before the switch.",
        "",
        "| processes | threads of each | parts of a batch | loss | differs by | "
        "loss of dense weights | differs by | switch step | criterion | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in document["runs"]:
        switch = run["switch"]
        cells = [f"{run['processes']} ({run['parallel']})", str(run["threads"])]
        cells += [str(run["parts"])]
        for key in ("eval_loss", "dense_eval_loss"):
            gap = run[key] - alone[key]
            cells += [f"{run[key]:.6f}", "-" if run is alone else f"{gap:+.1e}"]
        cells += [
            f"{switch['step']} ({switch['reason']})",
            f"{run['criterion_over_threshold']:.3f}",
            str(run["seconds"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
