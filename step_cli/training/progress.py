"""How far a run is: a live display on a terminal, lines in a log elsewhere."""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from step_cli.autoswitch.autoswitch import Fixed, SwitchRule
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.render import live_display, status_line
from step_cli.render.text import duration
from step_cli.training.callbacks import Callback

logger = logging.getLogger(__name__)

LOG_EVERY_S = 10.0  # between lines of a log
PACE_S = 30.0  # of the past that the speed is computed from
LABEL = len("mask-learning")  # columns
HELD_OUT, PRUNED = "eval_", "pruned_eval_"  # how metrics of held-out samples are named


@dataclass(frozen=True)
class Place:
    """Which of several runs one is.

    Attributes:
        name: Of the run.
        number: From 1.
        count: How many there are.
        after_s: Seconds that the runs after it will take, from how many steps per
            second it takes; None where nothing tells.
    """

    name: str
    number: int
    count: int
    after_s: Callable[[float | None], float | None]

    def words(self) -> str:
        """``run 3 of 12, step-2of4-seed0``."""
        return f"run {self.number} of {self.count}, {self.name}"


class Progress(Callback):
    """Where a run stands, as plain values, and in words.

    Args:
        optimizer: Its phase and its switch rule are shown.
        steps: Length of the run.
        place: Which of several runs it is.
    """

    def __init__(
        self, optimizer: SparseOptimizer, steps: int, place: Place | None = None
    ) -> None:
        self._optimizer, self._steps, self._place = optimizer, steps, place
        self._step, self._lr = optimizer.steps_taken, 0.0
        self._loss: float | None = None
        self._logged: dict[str, Any] = {}
        self._evaluated: dict[str, Any] = {}
        self._marks = deque([(time.monotonic(), self._step)])

    @override
    def on_step(self, step: int, loss: float, lr: float) -> None:
        self._step, self._loss, self._lr = step, loss, lr

    @override
    def on_log(self, values: Mapping[str, Any]) -> None:
        self._logged = dict(values)
        if any(key.startswith(HELD_OUT) for key in values):
            self._evaluated = self._logged

    def pace(self) -> tuple[float | None, float | None]:
        """Steps per second over the last while, and seconds that are left."""
        now = time.monotonic()
        self._marks.append((now, self._step))
        while len(self._marks) > 2 and now - self._marks[1][0] > PACE_S:
            self._marks.popleft()
        then, before = self._marks[0]
        if self._step == before or now <= then:
            return None, None
        per_s = (self._step - before) / (now - then)
        return per_s, (self._steps - self._step) / per_s

    def draw(self) -> RenderableType:
        """The display: a bar, then one line for each thing worth watching."""
        top = Table.grid(padding=(0, 1), expand=True)
        for ratio in (1, None, None, None):
            top.add_column(ratio=ratio, no_wrap=True)
        bar = ProgressBar(self._steps, self._step, complete_style="cyan")
        top.add_row(bar, f"{self._step}/{self._steps}", *self._pace_words())
        lines = Table.grid(padding=(0, 2))
        lines.add_column(style="bold", no_wrap=True, min_width=LABEL)
        lines.add_column(no_wrap=True, overflow="ellipsis")
        for label, words in self._lines():
            lines.add_row(label, Text(words, overflow="ellipsis", no_wrap=True))
        return Group(top, lines)

    def _lines(self) -> Iterator[tuple[str, str]]:
        if (work := status_line.current()) is not None:
            yield "now", work
        if self._place is not None:
            yield "comparison", ", ".join(self._place_words())
        if self._loss is not None:
            flips = self._logged.get("flip_rate")
            masks = "" if flips is None else f"  mask flips {flips:.2%} a step"
            loss = f"loss {self._loss:.4f}  lr {self._lr:.3g}{masks}"
            yield self._optimizer.phase, loss
        if (taught := self._logged.get("distill_loss")) is not None:
            task = self._logged["task_loss"]
            yield "teacher", f"task loss {task:.4f}  distillation loss {taught:.4f}"
        switch = switch_words(self._optimizer)
        if switch:
            yield "switch", switch
        if self._evaluated:
            said = metric_words(self._evaluated, HELD_OUT)
            yield "held-out", f"{said}  at step {self._evaluated['step']}"
            if twin := metric_words(self._evaluated, PRUNED):
                yield "pruned twin", twin

    def _pace_words(self) -> tuple[str, str]:
        per_s, left_s = self.pace()
        if per_s is None or left_s is None:
            return "", ""
        left = f"{duration(left_s)} left" if self._step < self._steps else ""
        return f"{per_s:.3g} steps/s", left

    def _place_words(self) -> Iterator[str]:
        """Which run it is, and how long all of them will take."""
        assert self._place is not None
        yield self._place.words()
        per_s, left_s = self.pace()
        after_s = self._place.after_s(per_s)
        if left_s is not None and after_s is not None:
            yield f"{duration(left_s + after_s)} left for all"

    def line(self, values: Mapping[str, Any]) -> str:
        """The same in one line of a log, with the metrics in ``values``."""
        place = [] if self._place is None else list(self._place_words())
        said = [*place[:1], f"step {self._step} of {self._steps}"]
        said.append(self._optimizer.phase)
        said += [] if self._loss is None else [f"loss {self._loss:.4f}"]
        if held_out := metric_words(values, HELD_OUT):
            said.append(f"held-out {held_out.replace('  ', ', ')}")
        rule = self._optimizer.rule
        if rule is not None and rule.value is not None and not self._switched:
            said.append(value_words(rule))
        return ", ".join([*said, *filter(None, self._pace_words()), *place[1:]])

    @property
    def _switched(self) -> bool:
        return self._optimizer.switch_step is not None


class LogLines(Callback):
    """Logs how far a run is.

    Args:
        progress: Where it stands.
        often: Also between evaluations, where no display shows it.
    """

    def __init__(self, progress: Progress, *, often: bool) -> None:
        self._progress, self._often = progress, often
        self._logged_at = time.monotonic()

    @override
    def on_step(self, step: int, loss: float, lr: float) -> None:
        if self._often and time.monotonic() - self._logged_at > LOG_EVERY_S:
            self._log({})

    @override
    def on_log(self, values: Mapping[str, Any]) -> None:
        if any(key.startswith(HELD_OUT) for key in values):
            self._log(values)

    def _log(self, values: Mapping[str, Any]) -> None:
        self._logged_at = time.monotonic()
        logger.info("%s", self._progress.line(values))


@contextlib.contextmanager
def progress_callbacks(
    optimizer: SparseOptimizer, steps: int, place: Place | None = None
) -> Iterator[list[Callback]]:
    """Show how far the run is while the block runs, as stderr allows."""
    progress = Progress(optimizer, steps, place)
    on_display = status_line.is_possible()
    display = (
        live_display.showing(progress.draw) if on_display else contextlib.nullcontext()
    )
    with display:
        yield [progress, LogLines(progress, often=not on_display)]


def switch_words(optimizer: SparseOptimizer) -> str:
    """How near the switch is, or where it was; nothing for recipes without one."""
    if optimizer.switch_step is not None:
        return f"was after step {optimizer.switch_step} ({optimizer.switch_reason})"
    rule = optimizer.rule
    if rule is None or not optimizer.recipe.switches:
        return ""
    criterion = rule.criterion
    if isinstance(criterion, Fixed):
        return f"after step {criterion.step}"
    words = [criterion.name if rule.value is None else value_words(rule)]
    if criterion.window > 1:
        filled = min(optimizer.steps_taken, criterion.window)
        words.append(f"window {filled}/{criterion.window}")
    if rule.t_max is not None:
        words.append(f"steps {rule.first_step} to {rule.t_max + 1}")
    return ", ".join(words)


def value_words(rule: SwitchRule) -> str:
    """The tested value against its threshold, as the two lie now."""
    criterion = rule.criterion
    assert rule.value is not None and criterion.threshold is not None
    met = criterion.met(rule.value)
    sign = ">" if met == criterion.above else "<"
    return f"{criterion.name} {rule.value:.2e} {sign} {criterion.threshold:.3g}"


def metric_words(values: Mapping[str, Any], prefix: str) -> str:
    """The metrics whose names begin with ``prefix``."""
    return "  ".join(
        f"{key.removeprefix(prefix).replace('_', ' ')} {value:.4f}"
        for key, value in values.items()
        if key.startswith(prefix) and value is not None
    )
