"""What is called at each step or log of training: the base class, and TensorBoard.

Event files are written where tensorboard is installed (extra ``track``).
"""

import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from step_cli.optim.optimizer import SparseOptimizer

logger = logging.getLogger(__name__)

FOLDER = "tensorboard"  # of the run directory
FLUSH_S = 10  # what a killed run may lose
# Held-out metrics make a section of their own, and so do those of the pruned twin.
SECTIONS = {"pruned_eval_": "pruned twin", "eval_": "held-out", "": "train"}


class Callback:
    """Sees what the loop does and changes nothing; a subclass overrides what it needs.

    It is called between steps, so it keeps what it is given and works later, or seldom.
    """

    def on_step(self, step: int, loss: float, lr: float) -> None:
        """``step`` was taken."""

    def on_log(self, values: Mapping[str, Any]) -> None:
        """A step was logged or evaluated: its line of ``metrics.jsonl``."""

    def close(self) -> None:
        """The loop has ended, or failed."""


def tensorboard_is_installed() -> bool:
    """Whether event files can be written here."""
    return importlib.util.find_spec("tensorboard") is not None


class TensorBoard(Callback):
    """Writes the numbers of ``metrics.jsonl`` as scalars, and marks the switch.

    A file that cannot be written is logged once; training goes on.

    Args:
        run_dir: The event files go below it.
        optimizer: Its switch point is marked.
        after: The step a resumed run goes on after; what came later is dropped.
    """

    def __init__(self, run_dir: Path, optimizer: SparseOptimizer, after: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = str(run_dir / FOLDER)
        resumed = after + 1 if after else None
        self._optimizer = optimizer
        self._marked = after > 0 and optimizer.switch_step is not None
        self._writer: Any = None
        try:
            self._writer = SummaryWriter(folder, purge_step=resumed, flush_secs=FLUSH_S)
        except OSError as error:
            self._give_up(error)

    @override
    def on_log(self, values: Mapping[str, Any]) -> None:
        if self._writer is None:
            return
        try:
            self._mark_switch()
            for tag, value in self._scalars(values):
                self._writer.add_scalar(tag, value, values["step"])
        except OSError as error:
            self._give_up(error)

    @override
    def close(self) -> None:
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                self._give_up(error)

    def _scalars(self, values: Mapping[str, Any]) -> list[tuple[str, float]]:
        numbers = [
            (tag_of(key), float(value))
            for key, value in values.items()
            if key != "step" and isinstance(value, int | float)
        ]
        rule = self._optimizer.rule
        if self._optimizer.recipe.switches:
            after = float(self._optimizer.switch_step is not None)
            numbers.append(("switch/switched", after))
            if rule is not None and rule.value is not None and not after:
                numbers.append((f"switch/{rule.criterion.name}", rule.value))
                numbers.append(("switch/threshold", rule.criterion.threshold or 0.0))
        return numbers

    def _mark_switch(self) -> None:
        step, reason = self._optimizer.switch_step, self._optimizer.switch_reason
        if step is not None and not self._marked:
            self._marked = True
            self._writer.add_text("switch", f"after step {step}: {reason}", step)

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        reason = (error.strerror or type(error).__name__).lower()
        logger.warning("no more TensorBoard events: %s", reason)


def tag_of(key: str) -> str:
    """``eval_loss`` -> ``held-out/loss``: what is before the slash is a section."""
    prefix, section = next(
        (prefix, section)
        for prefix, section in SECTIONS.items()
        if key.startswith(prefix)
    )
    return f"{section}/{key.removeprefix(prefix)}"
