"""Run the study, or what is missing of it; two trainings at a time, a thread each.

    python -m benchmarks.evidence.study [--task NAME]... [--tune | --check] [--jobs 2]
    python -m benchmarks.evidence.study --quick
    python -m benchmarks.evidence.study --plan

Each training is `step-cli train` in a process of its own. Its result is one file under
benchmarks/results/evidence/; a run whose file is there is not made again, so a study
that was stopped, or killed, goes on where it was. `--plan` prints what is missing and
about how long it takes, and runs nothing. `--quick` runs every method of every task,
for a few steps, and keeps nothing: it shows that the study works and measures nothing.

Some tasks need packages beside those of `step-cli[all]`: see README.md. `--task` leaves
the others out; a task of which nothing is missing needs none.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.evidence.grid import (
    CHECK_SEEDS,
    Run,
    all_tasks,
    cause_runs,
    check_runs,
    quick_runs,
    recipe,
    runs_that_count,
    tuning_runs,
)
from benchmarks.evidence.results import ROOT, Study
from benchmarks.evidence.tasks import TASKS, Task
from step_cli.training.history import read_metrics

DATA = ROOT / "runs" / "evidence-data"
LIBRARIES = ("step-cli", "torch", "numpy", "transformers")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
TEACHER_IS_MADE = threading.Lock()
QUICK = ("train.steps=12", "train.warmup_steps=2", "train.eval_every=12")


@dataclass(frozen=True)
class Bench:
    """Where and how the runs are made.

    Attributes:
        study: Where results go.
        data: Where the tasks' data lie.
        scratch: Where run directories are while they are needed.
        quick: Take a few steps only.
    """

    study: Study
    data: Path
    scratch: Path
    quick: bool = False


def main() -> None:
    """Parse the command line, and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", action="append", choices=TASKS)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--tune", action="store_true", help="only the learning rates")
    parser.add_argument("--check", action="store_true", help="only seeds 100 and 101")
    options = parser.parse_args()
    tasks = [TASKS[name] for name in options.task] if options.task else all_tasks()
    if options.plan:
        print(outlook(Study(), tasks, options.jobs))
        return
    data = options.data.resolve()
    with tempfile.TemporaryDirectory(prefix="evidence-") as scratch:
        study = Study(Path(scratch) / "results") if options.quick else Study()
        bench = Bench(study, data, Path(scratch), quick=options.quick)
        needed = [task for task in tasks if lacks_runs(study, task, options)]
        ready = [task for task in needed if prepare(task, data)]
        failed = []
        for runs in stages(ready, options):
            failed += make(bench, runs, options.jobs)
    for run, said in failed:
        print(f"{run.task} {run.name}: {said}", file=sys.stderr)
    raise SystemExit(bool(failed) or len(ready) < len(needed))


def stages(tasks: list[Task], options: argparse.Namespace) -> Iterator[list[Run]]:
    """The runs that are asked for; each list needs the results of those before it."""
    if options.quick:
        yield list(quick_runs(tasks))
        return
    yield list(tuning_runs(tasks))
    if options.check:
        yield list(check_runs(tasks))
    elif not options.tune:
        yield list(runs_that_count(tasks))
        yield list(cause_runs(tasks))


def lacks_runs(study: Study, task: Task, options: argparse.Namespace) -> bool:
    """Whether a run of a task has no result: else its data are not needed."""
    return any(study.missing(iter(runs)) for runs in stages([task], options))


def prepare(task: Task, data: Path) -> bool:
    """Make the data of a task, once; False where a package for them is missing."""
    ready = data / f"{task.name}.ready"
    if ready.exists():
        return True
    data.mkdir(parents=True, exist_ok=True)
    print(f"{task.name}: data", flush=True)
    module, out = f"benchmarks.evidence.{task.name}.data", data / task.name
    words = [sys.executable, "-m", module, str(out)]
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, **ONE_THREAD})
    if done.returncode:
        print(f"{task.name}: left out, as its data could not be made", file=sys.stderr)
        return False
    ready.touch()
    return True


def make(bench: Bench, runs: Sequence[Run], jobs: int) -> list[tuple[Run, str]]:
    """Make the runs that have no result yet; returns those that failed, and why."""
    todo = bench.study.missing(iter(runs))
    with ThreadPoolExecutor(jobs) as pool:
        numbered = enumerate(todo, start=1)
        tries = [
            pool.submit(attempt, bench, run, f"[{number}/{len(todo)}]")
            for number, run in numbered
        ]
        try:
            said = [each.result() for each in tries]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [(run, why) for run, why in zip(todo, said, strict=True) if why is not None]


def attempt(bench: Bench, run: Run, number: str) -> str | None:
    """Make one run; why it failed, if it did."""
    print(f"{number} {run.task} {run.name}", flush=True)
    try:
        make_one(bench, run)
    except RunError as error:
        return str(error)
    return None


class RunError(Exception):
    """A training that failed; the others go on."""


def make_one(bench: Bench, run: Run) -> None:
    """Train, score, and write the result."""
    same = None if bench.quick else same_run(bench.study, run)
    if same is not None:
        bench.study.write(run, {**same, "label": run.label, "same_as": same["label"]})
        return
    task, data = TASKS[run.task], bench.data / run.task
    sets = settings(bench, run)
    run_dir = bench.scratch / run.task / run.name
    words = ["train", str(task.config.relative_to(ROOT)), "--force"]
    given = [f"train.seed={run.seed}", *sets]
    paths = task.paths(data)
    if run.taught:
        paths.append(f'distill.teacher="{teacher(bench, task)}"')
    for key in (*given, *paths, *(QUICK if bench.quick else ())):
        words += ["--set", key]
    began = time.perf_counter()
    report = step_cli([*words, "--run-dir", str(run_dir)])
    seconds = time.perf_counter() - began
    shown = [word for key in given for word in ("--set", key)]
    result = {
        "task": run.task,
        "label": run.label,
        "pattern": run.pattern,
        "seed": run.seed,
        "config": task.digest,
        "command": " ".join(
            ["step-cli train", f"benchmarks/evidence/{run.task}/config.toml", *shown]
        ),
        "metrics": {**report["metrics"], **task.score(run_dir, data)},
        "dense_metrics": report["dense_metrics"],
        "density": report["density"],
        "switch": report["switch"],
        "curve": curve(run_dir),
        "variance_ratio": variance_ratio(run_dir),
        "criteria": criteria(run_dir) if run.label == "dense" else None,
        "seconds": round(seconds, 1),
        "machine": machine(),
        "versions": {name: metadata.version(name) for name in LIBRARIES},
    }
    bench.study.write(run, result)
    shutil.rmtree(run_dir)


def same_run(study: Study, run: Run) -> dict[str, Any] | None:
    """The result of STEP by AutoSwitch, where another criterion would give the same.

    Until the switch STEP is the dense run, whose variance tells where each criterion
    switches; after it nothing depends on the criterion.
    """
    if run.label != "step-relative":
        return None
    dense = study.result(Run(run.task, "dense", "dense", run.seed))
    found = study.result(Run(run.task, "step", run.pattern, run.seed))
    if dense is None or found is None:
        return None
    relative = dense["criteria"]["autoswitch-relative"]["switch_step"]
    return found if found["switch"]["step"] == relative else None


def teacher(bench: Bench, task: Task) -> Path:
    """The dense model that teaches, with a seed that does not count; made once."""
    above = bench.scratch if bench.quick else bench.data
    place = above / task.name / f"teacher-{task.digest}"
    dense = Run(task.name, "dense", "dense", CHECK_SEEDS[0], recipe("dense"), "dense")
    words = ["train", str(task.config.relative_to(ROOT)), "--force"]
    keys = [f"train.seed={dense.seed}", *settings(bench, dense)]
    keys += [*task.paths(bench.data / task.name), *(QUICK if bench.quick else ())]
    with TEACHER_IS_MADE:
        if not (place / "report.html").exists():  # the last that a run writes
            for key in keys:
                words += ["--set", key]
            step_cli([*words, "--run-dir", str(place)])
    return place / "model"


def settings(bench: Bench, run: Run) -> list[str]:
    """The keys that make the run what it is, its learning rate last."""
    sets = [*run.sets]
    if run.pattern != "dense":
        sets.append(f"sparsity.pattern={run.pattern}")
    task = TASKS[run.task]
    rate = run.rate or bench.study.rate(task, run.tuned)
    if bench.quick:
        rate = task.rates[0]
    if rate is None:
        raise RunError(f"the learning rate of {run.tuned} is not tuned")
    return [*sets, f"train.lr={rate}"]


def step_cli(words: list[str]) -> dict[str, Any]:
    """The JSON document that a command prints.

    Raises:
        RunError: It failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "step_cli", "--quiet", *words, "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, **ONE_THREAD},
        cwd=ROOT,
    )
    if done.returncode:
        raise RunError(f"exit {done.returncode}: {done.stderr.strip()[-600:]}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def curve(run_dir: Path) -> list[dict[str, float]]:
    """What was measured on held-out samples, at each evaluation."""
    return [
        {key: record[key] for key in record if key == "step" or "eval_" in key}
        for record in read_metrics(run_dir)
        if "eval_loss" in record
    ]


def variance_ratio(run_dir: Path) -> float | None:
    """The largest squared gradient over the frozen variance; None: none was frozen."""
    ratios = [record.get("variance_ratio") for record in read_metrics(run_dir)]
    return max((ratio for ratio in ratios if ratio is not None), default=None)


def criteria(run_dir: Path) -> dict[str, Any]:
    """Where each criterion would have switched a dense run."""
    report = step_cli(["autoswitch-profile", str(run_dir)])
    kept = ("switch_step", "raw_step", "reason", "v_growth")
    return {row["name"]: {key: row[key] for key in kept} for row in report["criteria"]}


def machine() -> str:
    """The processor and how much of it a run had."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return f"{names[0] if names else platform.machine()}, 1 thread"


def outlook(study: Study, tasks: list[Task], jobs: int) -> str:
    """What is missing, and about how long it takes: each run as its task's others."""
    lines, total = [], 0.0
    for task in tasks:
        runs = [*tuning_runs([task]), *runs_that_count([task])]
        runs += cause_runs([task])
        made = [study.result(run) for run in runs if study.result(run) is not None]
        missing = len(runs) - len(made)
        each = sum(result["seconds"] for result in made) / len(made) if made else 0
        total += missing * each
        time_left = f"{each:.0f} s each" if made else "not measured yet"
        lines.append(f"{task.name}: {len(made)} of {len(runs)} runs, {time_left}")
    lines.append(f"about {total / 3600 / jobs:.1f} hours are left, {jobs} at a time")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
