"""Training loops as people write them, each against the plain one."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from integration.training import (
    Batch,
    batches,
    build_model,
    dense_weights,
    different,
    loss_of,
    optimizer_of,
    train,
    weights,
)
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from step_cli.optim.mask import count_violations
from step_cli.optim.optimizer import SparseOptimizer

SWITCH, STEPS = 4, 8
Loop = Callable[[nn.Module, SparseOptimizer, list[Batch]], None]


def after(loop: Loop, **options: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights, and the dense ones, when ``loop`` has trained over the switch."""
    model = build_model()
    optimizer = optimizer_of(model, switch=SWITCH, **options)
    loop(model, optimizer, batches(STEPS))
    assert optimizer.steps_taken == STEPS and optimizer.switch_step == SWITCH
    for p, plan in optimizer.sparse_parameters():
        assert count_violations(p, plan.pattern, plan.axis) == 0
    return weights(model), dense_weights(model, optimizer)


def assert_equal(loop: Loop, **options: Any) -> None:
    mine, plain = after(loop, **options), after(train)
    for one, other in zip(mine, plain, strict=True):
        assert not list(different(one, other))


def assert_close(loop: Loop, tolerance: float) -> None:
    mine, plain = after(loop), after(train)
    for one, other in zip(mine, plain, strict=True):
        for name in one:
            torch.testing.assert_close(one[name], other[name], atol=tolerance, rtol=0)


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_a_compiled_model_has_one_graph_across_the_switch() -> None:
    def loop(model: nn.Module, optimizer: SparseOptimizer, data: list[Batch]) -> None:
        fast = torch.compile(model)
        train(fast, optimizer, data[:1])  # compiles forward and backward
        with torch.compiler.set_stance("fail_on_recompile"):
            train(fast, optimizer, data[1:])

    assert_close(loop, 1e-5)


def test_loss_scaling_changes_nothing() -> None:
    def loop(model: nn.Module, optimizer: SparseOptimizer, data: list[Batch]) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        for batch in data:
            scaler.scale(loss_of(model, batch)).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

    assert_equal(loop)


def test_a_step_that_overflows_is_not_counted() -> None:
    def loop(model: nn.Module, optimizer: SparseOptimizer, data: list[Batch]) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        # One batch too many overflows before, and one after the switch.
        bad = (torch.full((8, 16), torch.inf), torch.zeros(8, 1))
        for batch in [bad, *data[:6], bad, *data[6:]]:
            scaler.scale(loss_of(model, batch)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert scaler.get_scale() == 2.0**14

    assert_equal(loop)


def test_gradients_of_micro_batches_add_up() -> None:
    def loop(model: nn.Module, optimizer: SparseOptimizer, data: list[Batch]) -> None:
        for inputs, targets in data:
            for part in range(4):
                some = slice(2 * part, 2 * part + 2)
                (loss_of(model, (inputs[some], targets[some])) / 4).backward()
            optimizer.step()
            optimizer.zero_grad()

    assert_close(loop, 1e-5)


def test_a_clipped_gradient_is_the_one_that_counts() -> None:
    def clipped(by_hand: bool) -> Loop:
        def loop(model: nn.Module, optimizer: SparseOptimizer, data: Any) -> None:
            for batch in data:
                loss_of(model, batch).backward()
                gradients = [p.grad for p in model.parameters() if p.grad is not None]
                if by_hand:
                    norm = torch.stack([g.norm() for g in gradients]).norm()
                    for gradient in gradients:
                        gradient.mul_(min(1.0, 0.1 / (float(norm) + 1e-6)))
                else:
                    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()

        return loop

    for one, other in zip(after(clipped(True)), after(clipped(False)), strict=True):
        for name in one:
            torch.testing.assert_close(one[name], other[name], atol=1e-6, rtol=0)


def test_recomputed_activations_change_nothing() -> None:
    class Recomputing(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs: Tensor) -> Any:
            return checkpoint(self.model, inputs, use_reentrant=False)

    assert_equal(lambda model, *rest: train(Recomputing(model), *rest))


def test_a_closure_is_called_once_and_its_loss_returned() -> None:
    def loop(model: nn.Module, optimizer: SparseOptimizer, data: list[Batch]) -> None:
        for batch in data:
            losses = []

            def closure(batch: Batch = batch, losses: list[Tensor] = losses) -> Any:
                optimizer.zero_grad()
                losses.append(loss_of(model, batch))
                losses[-1].backward()
                return losses[-1]

            assert optimizer.step(closure) is losses[0] and len(losses) == 1

    assert_equal(loop)


def test_a_schedule_sets_the_learning_rate_of_both_phases() -> None:
    def scheduled(model: nn.Module, optimizer: SparseOptimizer, data: Any) -> None:
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t))
        for batch in data:
            train(model, optimizer, [batch])
            schedule.step()

    def by_hand(model: nn.Module, optimizer: SparseOptimizer, data: Any) -> None:
        for t, batch in enumerate(data):
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * (1 / (1 + t))
            train(model, optimizer, [batch])

    for one, other in zip(after(scheduled), after(by_hand), strict=True):
        assert not list(different(one, other))


def test_an_average_of_the_weights_reads_what_the_model_holds() -> None:
    held = []

    def loop(model: nn.Module, optimizer: SparseOptimizer, data: list[Batch]) -> None:
        average = AveragedModel(model)
        for batch in data:
            train(model, optimizer, [batch])
            average.update_parameters(model)
            held.append(model[2].weight.detach().clone())  # type: ignore[index]
        mean = torch.stack(held).mean(0)
        torch.testing.assert_close(average.module[2].weight.detach(), mean)  # type: ignore[index]

    assert_equal(loop)


@pytest.mark.parametrize("mode", ["fused", "foreach"])
def test_every_form_of_adamw_can_be_the_base(mode: str) -> None:
    mine, plain = after(train, **{mode: True}), after(train)
    for one, other in zip(mine, plain, strict=True):
        for name in one:
            torch.testing.assert_close(one[name], other[name], atol=1e-6, rtol=0)


def test_a_model_may_be_used_between_steps() -> None:
    def loop(model: nn.Module, optimizer: SparseOptimizer, data: list[Batch]) -> None:
        for batch in data:
            train(model, optimizer, [batch])
            # Evaluation of another view, and a visitor that writes back what was there.
            with optimizer.dense_weights():
                loss_of(model, batch)
            with torch.no_grad():
                for p in model.parameters():
                    p.copy_(p.clone())

    assert_equal(loop)
