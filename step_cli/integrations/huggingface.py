"""A callback for Hugging Face's Trainer: what masks do, and plans beside models."""

import logging
from pathlib import Path
from typing import Any

from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from typing_extensions import override

from step_cli.formats.huggingface.saved_plan import stored_plan, write_plan
from step_cli.integrations.observed import (
    has_just_switched,
    numbers_of,
    plan_in,
    switch_said,
)
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.optim.require_sparse import sparse_optimizer

logger = logging.getLogger(__name__)


class HuggingFaceCallback(TrainerCallback):
    """Logs phase, switch, flip rate and variance ratio; writes plans beside models.

    At each step that the Trainer logs, ``trainer.log`` gets the numbers of
    `numbers_of`, so they reach every tracker of ``report_to`` and ``log_history``,
    which also gets the name of the phase; so it does at the switch point. Beside each
    model that is saved while it is pruned, by the Trainer or by
    ``trainer.save_model``, stands ``nm_plan.json``, which `verify-nm` reads.

    Masks are watched in the steps that are logged; with ``logging_strategy="epoch"``
    in every step, as it is not known which is the last.

    Args:
        trainer: It trains by an optimizer of `sparse_adamw` or `sparse`. Give it the
            callback by ``trainer.add_callback``.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self._save_model = trainer, trainer.save_model
        trainer.save_model = self._save_with_plan  # type: ignore[method-assign]
        self._watched_before: bool | None = None  # what watch_masks is to be again

    @override
    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        own = self._optimizer
        if _is_logged(args, state):
            self._watched_before, own.watch_masks = own.watch_masks, True

    @override
    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> TrainerControl:
        own = self._optimizer
        if self._watched_before is not None:
            own.watch_masks, self._watched_before = self._watched_before, None
        switched = has_just_switched(own)
        if switched:
            logger.info("%s", switch_said(own))
        return self._log(state, control) if control.should_log or switched else control

    @override
    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> TrainerControl:
        return self._log(state, control) if control.should_log else control

    def _log(self, state: TrainerState, control: TrainerControl) -> TrainerControl:
        own, due = self._optimizer, control.should_log
        numbers = numbers_of(own)
        if has_just_switched(own):
            numbers["switch/step"] = own.steps_taken
        self._trainer.log(numbers)
        entry: dict[str, Any] = state.log_history[-1]
        entry["phase"] = own.phase  # only here, as trackers take numbers
        control.should_log = due  # it was reset, and the loss is still to be logged
        return control

    @property
    def _optimizer(self) -> SparseOptimizer:
        return sparse_optimizer(self._trainer.optimizer)

    def _save_with_plan(
        self, output_dir: str | None = None, _internal_call: bool = False
    ) -> None:
        trainer = self._trainer
        self._save_model(output_dir, _internal_call)
        if not trainer.args.should_save or trainer.optimizer is None:
            return
        own = self._optimizer
        if own.current_phase.sparse:
            directory = Path(output_dir or str(trainer.args.output_dir))
            model = trainer.accelerator.unwrap_model(
                trainer.model, keep_torch_compile=False
            )
            plan = stored_plan(directory, model, plan_in(model, own))
            if plan is None:
                logger.warning(
                    "%s: no plan is written, as transformers saves some sparse weights "
                    "of this model in pieces; give verify-nm the pattern by --nm",
                    directory,
                )
                return
            write_plan(directory, plan)


def _is_logged(args: TrainingArguments, state: TrainerState) -> bool:
    """Whether the step that is about to be taken will be logged."""
    step = state.global_step + 1
    if args.logging_strategy == "steps":
        first = step == 1 and args.logging_first_step
        return first or step % state.logging_steps == 0
    return args.logging_strategy == "epoch"
