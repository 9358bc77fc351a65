"""A callback for Lightning's Trainer: what masks do, and plans beside checkpoints."""

import importlib
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from step_cli.formats.plan import plan_json
from step_cli.formats.pytorch.reader import plan_path
from step_cli.integrations.observed import (
    has_just_switched,
    numbers_of,
    plan_in,
    switch_said,
)
from step_cli.optim.optimizer import SparseOptimizer

logger = logging.getLogger(__name__)


def _lightning() -> Any:
    """The package that the user has imported, of the two names it is published under.

    Its callbacks must be of the same package as its Trainer.
    """
    older = "pytorch_lightning"
    if older in sys.modules and "lightning" not in sys.modules:
        return importlib.import_module(older)
    try:
        return importlib.import_module("lightning.pytorch")
    except ModuleNotFoundError:
        return importlib.import_module(older)


if TYPE_CHECKING:
    Callback = Any
else:
    Callback = _lightning().Callback


class LightningCallback(Callback):  # type: ignore[misc]
    """Logs phase, switch, flip rate and variance ratio; writes plans beside files.

    Every ``log_every_n_steps`` steps the module's ``log_dict`` gets the numbers of
    `numbers_of`; the switch point goes to the loggers at its step. Beside each
    checkpoint file that is saved while the model is pruned stands
    ``FILE.nm_plan.json``, which ``verify-nm FILE --key state_dict`` reads; it goes
    when the Trainer has removed the file.

    The module trains by an optimizer of `sparse_adamw` or `sparse`.
    """

    def __init__(self) -> None:
        self._watched_before: bool | None = None  # what watch_masks is to be again
        self._has_logged_switch = False  # several batches may make its step
        self._plans: set[Path] = set()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let each checkpoint that ``trainer`` saves get its plan."""
        if getattr(trainer.save_checkpoint, "with_plan", False):
            return
        save = trainer.save_checkpoint

        def save_checkpoint(filepath: Any, *arguments: Any, **options: Any) -> None:
            save(filepath, *arguments, **options)
            self._write_plan(trainer, str(filepath))

        save_checkpoint.with_plan = True  # type: ignore[attr-defined]
        trainer.save_checkpoint = save_checkpoint

    def on_before_optimizer_step(
        self, trainer: Any, pl_module: Any, optimizer: Optimizer
    ) -> None:
        """Watch the masks in a step that is logged."""
        every, own = trainer.log_every_n_steps, optimizer
        due = every and (trainer.global_step + 1) % every == 0
        if due and isinstance(own, SparseOptimizer):
            self._watched_before, own.watch_masks = own.watch_masks, True

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what the step did, and the switch."""
        own = _optimizer_of(trainer)
        if own is None:
            return
        if has_just_switched(own) and not self._has_logged_switch:
            self._log_switch(trainer, own)
        if self._watched_before is not None:
            own.watch_masks, self._watched_before = self._watched_before, None
            pl_module.log_dict(numbers_of(own))

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Remove the plans of files that are gone."""
        self._forget_removed()

    def _log_switch(self, trainer: Any, own: SparseOptimizer) -> None:
        self._has_logged_switch = True
        logger.info("%s", switch_said(own))
        step = trainer.global_step - 1  # as Lightning counts where it logs
        for each in trainer.loggers:
            each.log_metrics({"switch/step": float(own.steps_taken)}, step=step)

    def _write_plan(self, trainer: Any, filepath: str) -> None:
        own = _optimizer_of(trainer)
        if own is None or not own.current_phase.sparse or not trainer.is_global_zero:
            return
        if "://" in filepath:
            logger.warning("%s: no plan is written beside a file elsewhere", filepath)
            return
        self._forget_removed()
        plan = plan_path(Path(filepath))
        text = plan_json(plan_in(trainer.lightning_module, own), indent=2)
        plan.write_text(text + "\n", encoding="utf-8")
        self._plans.add(Path(filepath))

    def _forget_removed(self) -> None:
        for file in [file for file in self._plans if not file.exists()]:
            plan_path(file).unlink(missing_ok=True)
            self._plans.discard(file)


def _optimizer_of(trainer: Any) -> SparseOptimizer | None:
    return next((o for o in trainer.optimizers if isinstance(o, SparseOptimizer)), None)
