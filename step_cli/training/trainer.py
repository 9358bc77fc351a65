"""The training loop: batches -> loss -> gradient at the sparse point -> step.

The optimizer does the rest: it owns the dense weights, decides the switch point and
keeps the model sparse (`optim/optimizer.py`).
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from step_cli.config.train import TrainConfig, TrainSection
from step_cli.data.batch import Batch
from step_cli.data.order import ReadAhead
from step_cli.errors import InputError, NonFiniteError, OutputError
from step_cli.training.callbacks import Callback
from step_cli.training.distillation import Losses, losses_over
from step_cli.training.evaluate import autocast, evaluate, scores_of
from step_cli.training.frozen_variance import FrozenVariance
from step_cli.training.records import Unrecorded
from step_cli.training.setup import Setup, training_batch
from step_cli.training.wrapping import clip_gradients, shared_buffers, without_exchange

logger = logging.getLogger(__name__)


@dataclass
class Trainer:
    """One run in progress.

    Attributes:
        config: Of the run.
        setup: Model, optimizer and data. The model holds what will be deployed: dense
            weights first, sparse ones then. The optimizer counts the steps.
        records: Where logged steps go.
        save: Saves a checkpoint.
        callbacks: Are called at each step.
        last_step: Where it ends, if not after ``train.steps``.
    """

    config: TrainConfig
    setup: Setup
    records: Unrecorded
    save: Callable[[], None]
    callbacks: Sequence[Callback] = ()
    last_step: int | None = None
    _batches: ReadAhead = field(init=False, repr=False)
    _parts: list[Losses] = field(init=False, repr=False)  # of the last step
    # The last evaluation, and after which step.
    _frozen: FrozenVariance = field(init=False, repr=False)
    _evaluated: tuple[int, dict[str, float]] | None = field(
        default=None, init=False, repr=False
    )

    def run(self, stop: Callable[[], bool]) -> None:
        """Train up to the last step, or until ``stop`` is true after a step.

        Raises:
            NonFiniteError: The loss or a gradient is NaN or infinite.
        """
        with ReadAhead(self._batch) as self._batches:
            self._run(stop)

    def _run(self, stop: Callable[[], bool]) -> None:
        train, optimizer = self.config.train, self.setup.optimizer
        last_step = self.last_step or train.steps
        self.setup.model.train()
        self._frozen = FrozenVariance()
        while optimizer.steps_taken < last_step and not stop():
            step = optimizer.steps_taken + 1
            logged = step % train.log_every == 0 or step in (1, last_step)
            evaluated = step % train.eval_every == 0 or step == last_step
            lr = lr_at(step, train)
            loss = self._step(step, lr, watch=logged)
            with self._saving_at_failure():
                self._record_variance()
                for callback in self.callbacks:
                    callback.on_step(step, loss, lr)
                if logged or evaluated:
                    values = self._values(step, lr, loss)
                    self._frozen.look(values, optimizer.switch_step)
                    values |= self._evaluations() if evaluated else {}
                    self.records.metrics(values)
                    for callback in self.callbacks:
                        callback.on_log(values)
            if step % train.checkpoint_every == 0 and step < last_step:
                self.save()

    @contextmanager
    def _saving_at_failure(self) -> Iterator[None]:
        """Keep the steps that were taken where a record of them cannot be written."""
        try:
            yield
        except OutputError:
            if self.setup.processes.size == 1:  # others would not come to save with it
                self.save()
            raise

    def evaluate(self) -> dict[str, float]:
        """The metrics of the model as it is."""
        setup, train = self.setup, self.config.train
        with shared_buffers(setup.model, setup.processes):
            return evaluate(
                setup.model,
                setup.data.held_out,
                setup.processes,
                train.precision,
                batch_size=train.batch_size,
            )

    def final_metrics(self) -> dict[str, float]:
        """The metrics of the model as the last step left it; not measured twice."""
        if self._evaluated and self._evaluated[0] == self.setup.optimizer.steps_taken:
            return self._evaluated[1]
        return self.evaluate()

    def evaluate_dense(self) -> dict[str, float]:
        """The metrics of the optimizer's dense weights."""
        with self.setup.optimizer.dense_weights():
            return self.evaluate()

    def _step(self, step: int, lr: float, *, watch: bool) -> float:
        train, optimizer = self.config.train, self.setup.optimizer
        switched = optimizer.switch_step
        for group in optimizer.param_groups:
            group["lr"] = lr
        parts = [self._backward(step, part) for part in range(train.grad_accumulation)]
        self._parts, processes = parts, self.setup.processes
        loss = self._mean([part.total for part in parts])
        if not math.isfinite(loss):
            mend = "lower the learning rate or clip the gradient"
            if step == 1:  # no step has changed the weights, and they were looked at
                mend = "no step was taken yet, so it comes from the model or the data"
            raise NonFiniteError(f"step {step}: the loss is {loss}; {mend}")
        if train.grad_clip > 0:
            clip_gradients(self.setup.model.parameters(), train.grad_clip, processes)
        optimizer.watch_masks = watch
        optimizer.watch_layers = self.records.takes_layers(step)
        optimizer.step()
        optimizer.zero_grad()
        if optimizer.switch_step != switched:
            phase, reason = optimizer.phase, optimizer.switch_reason
            logger.info("step %d: switched to %s (%s)", step, phase, reason)
        return loss

    def _mean(self, losses: list[Tensor]) -> float:
        """A loss of the whole step, from those of the parts that this process took."""
        processes = self.setup.processes
        mean = (torch.stack(losses) / len(losses)).sum()
        return float(processes.total(mean)) / processes.size

    def _backward(self, step: int, part: int) -> Losses:
        train, setup = self.config.train, self.setup
        batch = self._batches[(step - 1) * train.grad_accumulation + part]
        last = part == train.grad_accumulation - 1
        with nullcontext() if last else without_exchange(setup.forward):
            losses = self._losses(batch)
            loss = losses.total / train.grad_accumulation
            if not loss.requires_grad:
                raise InputError(
                    "the model cannot be trained: its scores do not depend on weights "
                    "that have requires_grad"
                )
            torch.autograd.backward(loss)
        return losses.detach()

    def _losses(self, batch: Batch) -> Losses:
        """The loss of a batch, with the teacher's part where it is at work."""
        train, setup, processes = self.config.train, self.setup, self.setup.processes
        teacher, taught = setup.teacher, None
        if teacher is not None and teacher.is_at_work(setup.optimizer):
            # First, so that its activations are gone when the student's are kept.
            taught = teacher.scores(batch, processes.device)
        with autocast(processes.device, train.precision):
            scores, labels = scores_of(setup.forward, batch, processes.device)
        return losses_over(
            processes,
            scores,
            labels,
            taught,
            label_smoothing=train.label_smoothing,
            weight=self.config.distill.weight,
            temperature=self.config.distill.temperature,
        )

    def _batch(self, index: int) -> Batch:
        setup = self.setup
        return training_batch(self.config, setup.data, setup.processes, index)

    def _record_variance(self) -> None:
        optimizer = self.setup.optimizer
        sample = optimizer.variance_sample()
        if sample is not None:
            self.records.variance(sample, optimizer.layer_changes())

    def _values(self, step: int, lr: float, loss: float) -> dict[str, Any]:
        sample = self.setup.optimizer.variance_sample()
        return {
            "step": step,
            "phase": self.setup.optimizer.phase,
            "loss": loss,
            **self._made_of(),
            "lr": lr,
            "variance_change": None if sample is None else sample.dv_l1 / sample.d,
            "flip_rate": self.setup.optimizer.flip_rate(),
            "pruned_update_share": self.setup.optimizer.pruned_update_share(),
            "variance_ratio": self.setup.optimizer.variance_ratio(),
        }

    def _made_of(self) -> dict[str, float | None]:
        """Of a run with a teacher: the task's loss and, once it is at work, its own."""
        if self.setup.teacher is None:
            return {}
        taught = [part.distill for part in self._parts if part.distill is not None]
        return {
            "task_loss": self._mean([part.task for part in self._parts]),
            "distill_loss": self._mean(taught) if taught else None,
        }

    def _evaluations(self) -> dict[str, float]:
        """The model's metrics; before the switch, those of its pruned twin too."""
        values, optimizer = self.evaluate(), self.setup.optimizer
        self._evaluated = optimizer.steps_taken, dict(values)
        if optimizer.recipe.switches and not self.setup.is_sparse:
            with optimizer.sparse_weights():
                pruned = self.evaluate()
            values |= {f"pruned_{name}": value for name, value in pruned.items()}
        return values


def lr_at(step: int, train: TrainSection) -> float:
    """The learning rate of ``step``, counted from 1.

    It rises linearly over ``warmup_steps``, then stays (``constant``), falls to
    ``lr_end`` after the last step and stays there, linearly or along a half cosine,
    or falls with the square root of the step (``inverse-sqrt``, Vaswani et al., 2017).
    """
    warmup, span = train.warmup_steps, train.lr - train.lr_end
    if step <= warmup:
        return train.lr * step / warmup
    done = min(1.0, (step - 1 - warmup) / max(1, train.steps - warmup))
    if train.schedule == "linear":
        return train.lr_end + span * (1 - done)
    if train.schedule == "cosine":
        return train.lr_end + span * 0.5 * (1 + math.cos(math.pi * done))
    if train.schedule == "inverse-sqrt":
        return train.lr * math.sqrt(max(1, warmup) / step)
    return train.lr
