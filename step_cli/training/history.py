"""What a run has recorded, ready to be drawn: read from its directory."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from step_cli.autoswitch.autoswitch import AutoSwitch, Fixed, SwitchRule
from step_cli.autoswitch.criterion_values import changes_of, values_of
from step_cli.autoswitch.recording import Recording
from step_cli.autoswitch.thinned import Thinned
from step_cli.config.train import TrainConfig
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.reports import SwitchPoint
from step_cli.training.setup import criterion_of

POINTS = 2000  # of a curve at most: one of millions of steps is thinned
NAN = float("nan")


@dataclass(frozen=True)
class Curve:
    """One number over the steps."""

    steps: list[int]
    values: list[float]

    def __bool__(self) -> bool:
        return bool(self.steps)

    def thinned(self) -> "Curve":
        """Every n-th point, so that few enough are left; the last one stays."""
        every = -(-len(self.steps) // POINTS)
        if every <= 1:
            return self
        first = (len(self.steps) - 1) % every
        return Curve(self.steps[first::every], self.values[first::every])


@dataclass(frozen=True)
class CriterionCurve:
    """What a switch criterion compared, from the first step to the switch.

    Attributes:
        name: The criterion.
        window: Steps that the value is taken over.
        threshold: What it is compared with.
        value: The compared value, NaN before the window is full.
        change: The change of each step by itself; NaN where the value is not its mean.
        clip: T_min and T_max, where the criterion decides; else None.
    """

    name: str
    window: int
    threshold: float
    value: Curve
    change: Curve
    clip: tuple[int, int] | None


@dataclass(frozen=True)
class History:
    """The records of a run up to now.

    Attributes:
        steps: How many the run is to have.
        records: The lines of ``metrics.jsonl``.
        criterion: What the criterion has seen, or AutoSwitch would have, where it does
            not decide; None where no variance was recorded.
        switch: Where the rules changed, if they did.
    """

    steps: int
    records: list[dict[str, Any]]
    criterion: CriterionCurve | None
    switch: SwitchPoint | None

    def curve(self, key: str) -> Curve:
        """One number of ``metrics.jsonl`` where it was logged."""
        points = [(r["step"], r[key]) for r in self.records if r.get(key) is not None]
        return Curve([step for step, _ in points], [value for _, value in points])

    @property
    def last_evaluation(self) -> dict[str, Any]:
        """The last record with metrics of held-out samples."""
        evaluated = (r for r in reversed(self.records) if "eval_loss" in r)
        return next(evaluated, {})

    @property
    def metrics(self) -> list[str]:
        """What was measured on held-out samples beside the loss."""
        keys = {key for record in self.records for key in record}
        found = {key.removeprefix("eval_") for key in keys if key.startswith("eval_")}
        return sorted(found - {"loss"})


def read_history(
    run_dir: Path,
    config: TrainConfig,
    rule: SwitchRule | None,
    switch: SwitchPoint | None,
) -> History:
    """Read what a run has recorded.

    Args:
        run_dir: Its directory.
        config: Its configuration.
        rule: What decides its switch.
        switch: Where it switched.
    """
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return History(
        config.train.steps,
        [json.loads(line) for line in lines],
        _criterion(run_dir / "variance.jsonl", config, rule),
        switch,
    )


def switch_point(optimizer: SparseOptimizer) -> SwitchPoint | None:
    """Where the rules changed, and why; None before, or where they never do."""
    step, reason, rule = optimizer.switch_step, optimizer.switch_reason, optimizer.rule
    if step is None or reason is None or rule is None:
        return None
    return SwitchPoint(step=step, reason=reason, criterion=rule.criterion.name)


def _criterion(
    log: Path, config: TrainConfig, rule: SwitchRule | None
) -> CriterionCurve | None:
    """Replay the recorded variance; exact, as the decision itself was."""
    decides = rule is not None and not isinstance(rule.criterion, Fixed)
    name = config.switch.criterion if decides else AutoSwitch.name
    criterion = criterion_of(config, name)
    assert criterion.threshold is not None
    values, rows = values_of(criterion), Thinned(POINTS)
    last = None
    for block in Recording(log).blocks():
        change = np.full(len(block), NAN)
        if isinstance(criterion, AutoSwitch):
            change = changes_of(criterion, block)
        points = np.stack([block.step, values(block), change], axis=1)
        rows.add(points)
        last = points[-1]
    if last is None:
        return None
    points = rows.rows()
    if points[-1, 0] != last[0]:  # the last one decides
        points = np.vstack([points, last])
    steps, values_kept, changes = points.T
    return CriterionCurve(
        criterion.name,
        criterion.window,
        criterion.threshold,
        Curve(steps.astype(int).tolist(), values_kept.tolist()),
        Curve(steps.astype(int).tolist(), changes.tolist()),
        config.clip if decides else None,
    )
