"""What a run has recorded, ready to be drawn: read from its directory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from step_cli.autoswitch.autoswitch import AutoSwitch, Fixed, SwitchRule
from step_cli.autoswitch.curves import Downsampled
from step_cli.autoswitch.recording import Recording
from step_cli.config.train import TrainConfig
from step_cli.errors import InputError
from step_cli.formats.files.json_text import record_of_step
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.reports import SwitchPoint
from step_cli.training.setup import criterion_of

POINTS = 2000  # of a curve at most: one of millions of steps is downsampled
NAN = float("nan")


@dataclass(frozen=True)
class Curve:
    """One number over the steps."""

    steps: list[int]
    values: list[float]

    def __bool__(self) -> bool:
        return bool(self.steps)

    def downsampled(self) -> "Curve":
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
    return History(
        config.train.steps,
        read_metrics(run_dir),
        _criterion(run_dir / "variance.jsonl", config, rule),
        switch,
    )


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, oldest first.

    Raises:
        InputError: A line is damaged.
    """
    path = run_dir / "metrics.jsonl"
    records = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        record = record_of_step(line)
        if record is None:
            raise InputError(f"line {number} is damaged", file=path)
        records.append(record)
    return records


def lowest_value(run_dir: Path, config: TrainConfig) -> float | None:
    """The lowest value that the criterion of ``[switch]`` has seen in all parts."""
    criterion = criterion_of(config, config.switch.criterion)
    steps = Recording(run_dir / "variance.jsonl").steps()
    values = (criterion.update(sample) for sample, _ in steps)
    return min((value for value in values if value is not None), default=None)


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
    kept, last = Downsampled(POINTS), None
    for sample, _ in Recording(log).steps():
        value, change = criterion.update(sample), NAN
        if isinstance(criterion, AutoSwitch):
            change = criterion.sample_change(sample)
        last = (sample.step, NAN if value is None else value, change)
        if kept.is_due():
            kept.add(last)
    if last is None:
        return None
    points = kept.rows().tolist()
    if points[-1][0] != last[0]:  # the last one decides
        points.append(list(last))
    steps, values, changes = zip(*points, strict=True)
    return CriterionCurve(
        criterion.name,
        criterion.window,
        criterion.threshold,
        Curve(list(map(int, steps)), list(values)),
        Curve(list(map(int, steps)), list(changes)),
        config.clip if decides else None,
    )
