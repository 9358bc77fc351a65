"""The loss to a teacher: worked by hand, by torch's own, over what is scored only."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from step_cli.data.batch import IGNORED
from step_cli.training.distillation import distill_loss, losses_over
from step_cli.training.distributed import Processes

ALONE = Processes(torch.device("cpu"))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Item by item, from the definition and in fp64."""
    ours = (student.double() / temperature).softmax(-1)
    theirs = (teacher.double() / temperature).softmax(-1)
    return (theirs * (theirs.log() - ours.log())).sum(-1)


def test_a_number_worked_by_hand() -> None:
    # Teacher (3/4, 1/4), student (1/2, 1/2): 3/4 ln 3/2 + 1/4 ln 1/2.
    wanted = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    teacher, student = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    found = float(distill_loss(student, teacher, torch.tensor([0])))
    assert found == pytest.approx(wanted) == pytest.approx(0.130812, abs=1e-6)
    # The other direction is another number.
    back = float(distill_loss(teacher, student, torch.tensor([0])))
    assert back == pytest.approx(0.143841, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_it_is_torch_s_divergence_times_t_squared(temperature: float) -> None:
    student, teacher, labels = drawn(6, 5), drawn(6, 5, seed=1), torch.zeros(6).long()
    log, probability = (student / temperature).log_softmax(-1), teacher / temperature
    theirs = functional.kl_div(log, probability.softmax(-1), reduction="batchmean")
    found = distill_loss(student, teacher, labels, temperature=temperature)
    torch.testing.assert_close(found, temperature**2 * theirs)
    wanted = temperature**2 * kl(student, teacher, temperature).mean()
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    total = distill_loss(
        student, teacher, labels, temperature=temperature, reduction="sum"
    )
    assert float(total) == pytest.approx(6 * float(wanted), rel=1e-5)


def test_t_squared_keeps_the_size_of_the_gradient() -> None:
    teacher, labels = drawn(6, 5, seed=1), torch.zeros(6).long()
    norms = []
    for temperature in (50.0, 100.0):
        student = drawn(6, 5).requires_grad_()
        distill_loss(student, teacher, labels, temperature=temperature).backward()
        assert student.grad is not None
        norms.append(float(student.grad.norm()))
    assert norms[0] == pytest.approx(norms[1], rel=0.02)


def test_a_student_that_equals_its_teacher_has_nothing_to_learn() -> None:
    student = drawn(4, 3).requires_grad_()
    loss = distill_loss(student, student.detach(), torch.zeros(4).long())
    loss.backward()
    assert student.grad is not None
    assert float(loss.detach()) == 0 and float(student.grad.abs().max()) < 1e-7


def test_tokens_that_are_not_scored_do_not_count() -> None:
    labels = torch.tensor([[1, 2, IGNORED], [0, IGNORED, IGNORED]])
    student, teacher = drawn(2, 3, 4).requires_grad_(), drawn(2, 3, 4, seed=1)
    scored = labels != IGNORED
    teacher[~scored] = math.nan  # whatever a model gives for padding
    loss = distill_loss(student, teacher, labels, temperature=2.0)
    wanted = 4 * kl(student.detach(), teacher, 2.0)[scored].mean()
    assert float(loss.detach()) == pytest.approx(float(wanted), rel=1e-5)
    loss.backward()
    assert student.grad is not None
    assert not student.grad[~scored].any() and bool(student.grad[scored].any())


def test_numbers_are_compared_by_their_squares() -> None:
    student, teacher, labels = drawn(7), drawn(7, seed=1), drawn(7, seed=2)
    wanted = float((student - teacher).square().mean())
    for temperature in (1.0, 3.0):  # of which there is none
        found = distill_loss(student, teacher, labels, temperature=temperature)
        assert float(found) == pytest.approx(wanted)


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_the_loss_is_the_weighted_sum_and_smoothing_is_the_task_s(
    weight: float,
) -> None:
    student, teacher, labels = drawn(6, 5), drawn(6, 5, seed=1), torch.arange(6) % 5
    found = losses_over(
        ALONE, student, labels, teacher,
        label_smoothing=0.1, weight=weight, temperature=2.0,
    )  # fmt: skip
    task = functional.cross_entropy(student, labels, label_smoothing=0.1)
    distill = distill_loss(student, teacher, labels, temperature=2.0)
    assert found.distill is not None
    assert torch.equal(found.task, task) and torch.equal(found.distill, distill)
    assert float(found.total) == pytest.approx(
        (1 - weight) * float(task) + weight * float(distill)
    )


def test_before_the_teacher_the_loss_is_the_task_s() -> None:
    student, labels = drawn(6, 5), torch.arange(6) % 5
    found = losses_over(
        ALONE, student, labels, None, label_smoothing=0.0, weight=0.9, temperature=1.0
    )
    assert torch.equal(found.total, functional.cross_entropy(student, labels))
    assert found.distill is None


@dataclass(frozen=True)
class Half(Processes):
    """One of two processes, and how many items the other one scores."""

    others: int = 0

    def total(self, values: Tensor) -> Tensor:
        return values + self.others


def test_halves_that_score_unlike_many_tokens_give_the_whole() -> None:
    labels = torch.tensor([[1, 2, 3], [0, IGNORED, IGNORED]])
    student, teacher = drawn(2, 3, 4), drawn(2, 3, 4, seed=1)
    more = {"label_smoothing": 0.0, "weight": 0.5, "temperature": 2.0}
    whole = losses_over(ALONE, student, labels, teacher, **more)
    halves = [
        losses_over(
            Half(ALONE.device, "ddp", rank, 2, others=others),
            *(each[rank : rank + 1] for each in (student, labels, teacher)),
            **more,
        )
        for rank, others in ((0, 1), (1, 3))
    ]
    mean = sum(float(half.total) for half in halves) / 2
    assert mean == pytest.approx(float(whole.total), rel=1e-5)
