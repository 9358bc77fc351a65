"""The loss of a student that learns from a teacher's outputs beside the labels."""

from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.nn import functional

from step_cli.data.batch import IGNORED
from step_cli.training.distributed import Processes
from step_cli.training.evaluate import loss_of, mean_over


@dataclass(frozen=True)
class Losses:
    """The loss of a batch, and what it is made of.

    Attributes:
        total: What is differentiated; a scalar, as the others.
        task: Of the labels, before its weight.
        distill: Of the teacher's outputs, before its weight; None where it is not at
            work.
    """

    total: Tensor
    task: Tensor
    distill: Tensor | None = None

    def detach(self) -> "Losses":
        """The same numbers without their graph."""
        distill = None if self.distill is None else self.distill.detach()
        return Losses(self.total.detach(), self.task.detach(), distill)


def distill_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """``T^2 KL(teacher || student)`` of scored items, or the squared error of numbers.

    With p = softmax(scores / T), KL = sum over classes of p_t (ln p_t - ln p_s). T^2
    keeps the size of the gradient as T changes (Hinton, Vinyals and Dean, "Distilling
    the Knowledge in a Neural Network", 2015, sections 2 and 2.1).

    Args:
        student: Scores ``[n, classes]``, ``[n, tokens, vocabulary]`` or, of a
            regression, ``[n]``.
        teacher: Of the same shape.
        labels: As in `Batch`: those that are ``IGNORED`` say which items do not count;
            float ones, that it is a regression, to which T does not apply.
        temperature: T.
        reduction: ``mean`` over scored items, or their ``sum``.
    """
    if labels.is_floating_point():
        return functional.mse_loss(student, teacher, reduction=reduction)
    scored = labels.flatten() != IGNORED
    ours, theirs = student.flatten(0, -2), teacher.flatten(0, -2)
    if not bool(scored.all()):  # what is not scored may hold anything, NaN too
        ours, theirs = ours[scored], theirs[scored]
    divergence = functional.kl_div(
        functional.log_softmax(ours / temperature, -1),
        functional.log_softmax(theirs / temperature, -1),
        reduction="batchmean" if reduction == "mean" else reduction,
        log_target=True,
    )
    return temperature**2 * divergence


def losses_over(
    processes: Processes,
    scores: Tensor,
    labels: Tensor,
    taught: Tensor | None,
    *,
    label_smoothing: float,
    weight: float,
    temperature: float,
) -> Losses:
    """The loss of a share of a batch: ``(1 - weight) task + weight distillation``.

    Args:
        processes: Each has a share.
        scores: Of the student, fp32.
        labels: As in `Batch`.
        taught: The teacher's scores; None: it is not at work, and the loss is the
            task's alone.
        label_smoothing: Of the task's labels; the teacher's outputs are not smoothed.
        weight: Of the teacher.
        temperature: See :func:`distill_loss`.
    """

    def of_task(reduction: str) -> Tensor:
        smoothing = label_smoothing
        return loss_of(scores, labels, reduction=reduction, label_smoothing=smoothing)

    task = mean_over(processes, labels, of_task)
    if taught is None:
        return Losses(task, task)
    given = partial(distill_loss, scores, taught, labels, temperature=temperature)
    distill = mean_over(processes, labels, lambda reduction: given(reduction=reduction))
    return Losses((1 - weight) * task + weight * distill, task, distill)
