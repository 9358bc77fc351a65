"""``--dry-run``: how long a comparison is likely to take, from a few measured steps."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from typing_extensions import override

from step_cli.autoswitch.autoswitch import Fixed
from step_cli.commands.compare.outcome import FINISHED, RESUMABLE
from step_cli.commands.compare.runs import Run
from step_cli.commands.compare.trial import naming_run
from step_cli.config.train import TrainConfig
from step_cli.data.batch import Dataset
from step_cli.formats.quiet import quiet
from step_cli.optim.recipe import Recipe
from step_cli.render.status_line import working_on
from step_cli.reports import CompareDryRunReport, RunToDo
from step_cli.training.callbacks import Callback
from step_cli.training.checkpoints import newest_step
from step_cli.training.distributed import Processes
from step_cli.training.memory import translate_memory_errors
from step_cli.training.records import Unrecorded, variance_header
from step_cli.training.setup import set_up, switch_rule
from step_cli.training.trainer import Trainer

MEASURED = 8  # steps of each recipe: half before the switch, half after it
NEVER = 10**15  # steps: no evaluation but the last


@dataclass(frozen=True)
class Cost:
    """What a run of one recipe takes.

    Attributes:
        start_s: Until its first step.
        step_s: Of a step, before and after the switch in their shares.
        evaluate_s: Of an evaluation.
    """

    start_s: float
    step_s: float
    evaluate_s: float

    def of(self, config: TrainConfig, steps: int) -> float:
        """Seconds of ``steps`` steps of a run, and of its end."""
        evaluations = math.ceil(steps / config.train.eval_every) + 1  # dense weights
        return self.start_s + steps * self.step_s + evaluations * self.evaluate_s


class Times(Callback):
    """When steps ended, and how long the evaluation of the last one took."""

    def __init__(self) -> None:
        self.marks: list[float] = []
        self.evaluate_s = 0.0

    @override
    def on_step(self, step: int, loss: float, lr: float) -> None:
        self.marks.append(time.perf_counter())

    @override
    def on_log(self, values: Mapping[str, Any]) -> None:
        if "eval_loss" in values:
            self.evaluate_s = time.perf_counter() - self.marks[-1]


@working_on("timing a few steps of each run")
def estimate(
    runs: Sequence[Run],
    run_dir: Path,
    states: Mapping[str, str],
    data: Dataset,
    processes: Processes,
) -> CompareDryRunReport:
    """Measure a few steps of each recipe that is left, and throw them away.

    Args:
        runs: All of them.
        run_dir: Where they would be.
        states: How each stands, by name.
        data: Of all runs.
        processes: The processes that train together.
    """
    costs: dict[str, Cost] = {}
    listed = []
    for run in runs:
        state, steps, seconds = states[run.name], 0, 0.0
        if state != FINISHED:
            if run.recipe not in costs:
                with naming_run(run), translate_memory_errors(run.config.train):
                    costs[run.recipe] = measure(run.config, data, processes)
            done = newest_step(run_dir / run.name) if state == RESUMABLE else 0
            steps = run.config.train.steps - done
            seconds = costs[run.recipe].of(run.config, steps)
        listed.append(
            RunToDo(
                run=run.name,
                recipe=run.recipe,
                pattern=run.pattern,
                seed=run.seed,
                state=state,
                steps=steps,
                seconds=seconds,
            )
        )
    total = sum(each.seconds for each in listed)
    return CompareDryRunReport(
        ok=True, runs=listed, seconds=total, run_dir=str(run_dir)
    )


def measure(config: TrainConfig, data: Dataset, processes: Processes) -> Cost:
    """What a run of this configuration takes, but for what it writes."""
    steps = min(MEASURED, config.train.steps)
    half = max(1, steps // 2)  # step 0 is none for STEP
    switch = config.switch.model_copy(update={"criterion": "fixed", "step": half})
    rarely = {"eval_every": NEVER, "log_every": NEVER}
    train = config.train.model_copy(update=rarely)
    short = config.model_copy(update={"train": train, "switch": switch})
    begun = time.perf_counter()
    setup = set_up(short, processes, record=True, data=data, trial=True, quiet=True)
    start_s, times = time.perf_counter() - begun, Times()
    header = variance_header(short, setup.model, setup.optimizer)
    trainer = Trainer(
        short, setup, Unrecorded(header), lambda: None, [times], last_step=steps
    )
    with quiet():  # its switch at half of its steps is not that of the run
        trainer.run(lambda: False)
    step_s = _mean_step(times.marks, _share_before(config, setup.optimizer.recipe))
    return Cost(start_s, step_s, times.evaluate_s)


def _mean_step(marks: Sequence[float], before: float | None) -> float:
    """Seconds of a step; the first of all and the first after the switch are slower.

    Args:
        marks: When each step ended.
        before: Share of all steps that come before the switch; None: there is none.
    """
    took = [later - sooner for sooner, later in pairwise(marks)]
    if not took:
        return 0.0
    half = len(marks) // 2
    first, second = took[: half - 1], took[half:]
    if before is None or not first or not second:
        return statistics.median(took)
    sparse_s = statistics.median(second)
    return before * statistics.median(first) + (1 - before) * sparse_s


def _share_before(config: TrainConfig, recipe: Recipe) -> float | None:
    """Which share of all steps comes before the switch, as far as can be told."""
    rule, steps = switch_rule(config, recipe), config.train.steps
    if rule is None:
        return None
    if isinstance(rule.criterion, Fixed):
        return min(1.0, rule.criterion.step / steps)
    return sum(config.clip) / 2 / steps
