"""What wrappers do around an optimizer, and loops to its gradients: more lives."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from integration.lives import STEPS, Between, Life, Side, go, writing
from integration.slow_training import Net, loss_of
from integration.third_party import Lookahead, Sam, ascent
from torch import Tensor, nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.optim.swa_utils import SWALR, AveragedModel

# --------------------------------------------------------------------- wrappers around


def lookahead(*, allowed: bool) -> Life:
    def life(side: Side) -> Net:
        net, optimizer = side.pair()
        if not allowed:
            return go(net, Lookahead(optimizer), range(9))
        with writing(optimizer):  # its slow weights are copies of the dense ones
            around = Lookahead(optimizer, lambda: writing(optimizer))
        return go(net, around, range(9))

    return life


def perturbed(net: Net, step: int, restore: str) -> Any:
    """The gradients where SAM looks, with the weights back where they were."""
    params = list(net.parameters())
    loss_of(net, step).backward()
    with torch.no_grad():
        up, kept = ascent(params), [p.detach().clone() for p in params]
        for p, e in zip(params, up, strict=True):
            p.add_(e)
    net.zero_grad()
    loss = loss_of(net, step)
    loss.backward()
    with torch.no_grad():
        for p, e, old in zip(params, up, kept, strict=True):
            p.sub_(e) if restore == "subtract" else p.copy_(old)
    return loss


def sam_by_hand(restore: str) -> Life:
    def life(side: Side) -> Net:
        net, optimizer = side.pair()
        for t in range(STEPS):
            optimizer.zero_grad()
            perturbed(net, t, restore)
            optimizer.step()
        return net

    return life


def sam_by_closure(side: Side) -> Net:
    net, optimizer = side.pair()
    for t in range(STEPS):
        optimizer.zero_grad()
        optimizer.step(lambda t=t: perturbed(net, t, "copy"))
    return net


def sam_class(side: Side) -> Net:
    net = side.net()
    groups = [{"params": list(net.parameters())}]
    optimizer = Sam(groups, lambda given: side.make(net, given))
    for t in range(STEPS):
        loss_of(net, t).backward()
        optimizer.first_step()
        loss_of(net, t).backward()
        optimizer.second_step()
    return net


def sam_slowly(side: Side) -> Net:
    """SAM at the sparse point, added to what the model multiplies by."""
    net, optimizer = side.pair()
    for t in range(STEPS):
        loss_of(net, t).backward()
        net.extra = dict(enumerate(ascent(net.parameters())))
        net.zero_grad()
        loss_of(net, t).backward()
        net.extra = {}
        optimizer.step()
        net.zero_grad()
    return net


def averaged(side: Side) -> Net:
    """An EMA that reads, and is swapped in for an evaluation and out again."""
    net, optimizer = side.pair()
    twin, weights, held = AveragedModel(net), [], []
    for t in range(STEPS):
        go(net, optimizer, range(t, t + 1))
        twin.update_parameters(net)
        held.append(net.a.weight.detach().clone())
        weights = [p.detach().clone() for p in net.parameters()]
        for p, mean in zip(net.parameters(), twin.module.parameters(), strict=True):
            p.data.copy_(mean.data)
        loss_of(net, t)
        for p, own in zip(net.parameters(), weights, strict=True):
            p.data.copy_(own)
    torch.testing.assert_close(twin.module.a.weight, torch.stack(held).mean(0))
    return net


def stochastic_averaging(side: Side) -> Net:
    net, optimizer = side.pair()
    average, rates = AveragedModel(net), SWALR(optimizer, swa_lr=5e-3, anneal_epochs=3)

    def after(net: Net, _: Any) -> None:
        average.update_parameters(net)
        rates.step()

    return go(net, optimizer, after=after)


# ---------------------------------------------------------------- hooks and gradients


def hooked(side: Side) -> Net:
    """Of the optimizer, of all optimizers, and of the gradients."""
    net, optimizer = side.pair()
    seen: list[str] = []

    def double(found: Any, *_: Any) -> None:
        if found is optimizer:
            for p in net.parameters():
                p.grad *= 2

    def count(_: Any, *rest: Any) -> None:
        seen.append("all")

    handles = [
        register_optimizer_step_pre_hook(count),
        optimizer.register_step_pre_hook(double),
        optimizer.register_step_post_hook(lambda *_: seen.append("own")),
        net.a.weight.register_hook(lambda grad: grad * 0.5),
        register_optimizer_step_post_hook(count),
    ]
    try:
        go(net, optimizer)
    finally:
        for handle in handles:
            handle.remove()
    assert seen == ["all", "own", "all"] * STEPS, seen
    return net


def zeroed(way: str) -> Life:
    ways: dict[str, Between] = {
        "to zero": lambda net, o: o.zero_grad(set_to_none=False),
        "of the model": lambda net, o: net.zero_grad(),
        "none by hand": lambda net, o: [setattr(p, "grad", None)
                                        for p in net.parameters()],
        "zero by hand": lambda net, o: [p.grad.zero_() for p in net.parameters()],
    }  # fmt: skip

    def life(side: Side) -> Net:
        net, optimizer = side.pair()
        for t in range(STEPS):
            loss_of(net, t).backward()
            optimizer.step()
            ways[way](net, optimizer)
        return net

    return life


def clipped(way: Callable[..., Any]) -> Life:
    def life(side: Side) -> Net:
        net, optimizer = side.pair()
        for t in range(STEPS):
            optimizer.zero_grad()
            loss_of(net, t).backward()
            way(net.parameters(), 0.01)
            optimizer.step()
        return net

    return life


def scaled(side: Side) -> Net:
    net, optimizer = side.pair()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for t in range(STEPS):
        optimizer.zero_grad()
        scaler.scale(loss_of(net, t)).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    return net


def accumulated(side: Side) -> Net:
    net, optimizer = side.pair()
    for t in range(STEPS):
        optimizer.zero_grad()
        for first in (0, 4, 8):
            (loss_of(net, t, slice(first, first + 4)) / 3).backward()
        optimizer.step()
    return net


def by_closure(side: Side) -> Net:
    net, optimizer = side.pair()
    for t in range(STEPS):

        def closure(t: int = t) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(net, t)
            loss.backward()
            return loss

        assert math.isfinite(optimizer.step(closure).detach())
    return net


def two_losses(side: Side) -> Net:
    """Of an auxiliary net too, whose graph is older than the first step."""
    net, optimizer = side.pair()
    other = nn.Linear(8, 8, dtype=torch.float64)
    second = torch.optim.SGD(other.parameters(), lr=0.1)
    for t in range(STEPS):
        one, two = loss_of(net, t), other(torch.ones(8, dtype=torch.float64)).sum()
        one.backward()
        optimizer.step()
        two.backward()
        second.step()
        optimizer.zero_grad()
    return net


def compiled(side: Side) -> Net:
    net, optimizer = side.pair()
    torch._dynamo.reset()
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    for t in range(STEPS):
        loss_of(net, t).backward()
        step()
        optimizer.zero_grad()
    return net


# ------------------------------------------------------------------ several processes


PERIOD = 2


def averaging(side: Side, *, allowed: bool) -> Net:
    """Post-local SGD on this process, which has batches of its own."""
    from torch.distributed.algorithms.model_averaging import averagers
    from torch.distributed.optim import PostLocalSGDOptimizer  # warns when imported

    net, optimizer = side.pair()
    averager = averagers.PeriodicModelAverager(PERIOD, warmup_steps=0)
    around = optimizer if allowed else PostLocalSGDOptimizer(optimizer, averager)
    for t in range(STEPS):
        go(net, around, range(2 * t + dist.get_rank(), 2 * t + dist.get_rank() + 1))
        if allowed:
            with writing(optimizer):
                averager.average_parameters(net.parameters())
    return net


def averaged_slowly(side: Side) -> list[Net]:
    """The same of two nets in one process."""
    pairs = [side.pair() for _ in range(2)]
    for t in range(STEPS):
        for rank, (net, optimizer) in enumerate(pairs):
            go(net, optimizer, range(2 * t + rank, 2 * t + rank + 1))
        if t % PERIOD == 0:
            for p, q in zip(*(net.parameters() for net, _ in pairs), strict=True):
                p.data = q.data = (p.data + q.data) / 2
                q.data = q.data.clone()
    return [net for net, _ in pairs]
