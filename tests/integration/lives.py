"""What a training loop may do around an optimizer, each a function of who makes it.

A life builds a net and an optimizer, trains, and returns the net. It is the same for
AdamW, for ours and for the slow oracle.
"""

import copy
import io
import math
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from integration.slow_training import Net, loss_of
from integration.third_party import Lookahead, Sam, ascent
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.optim.swa_utils import SWALR, AveragedModel

import step_cli

STEPS = 6


@dataclass(frozen=True)
class Side:
    """Who trains: AdamW, ours or the oracle.

    Attributes:
        net: Builds the net.
        make: An optimizer of a net, or of groups of its parameters.
    """

    net: Callable[[], Net]
    make: Callable[..., Any]

    def pair(self) -> tuple[Net, Any]:
        net = self.net()
        return net, self.make(net)


Life = Callable[[Side], Net]
Between = Callable[[Net, Any], object]


def go(
    net: Any, optimizer: Any, steps: range = range(STEPS), after: Between | None = None
) -> Any:
    """The plain loop, and what is done after each of its steps."""
    for t in steps:
        optimizer.zero_grad()
        loss_of(net, t).backward()
        optimizer.step()
        if after is not None:
            after(net, optimizer)
    return net


def go_plainly(side: Side) -> Net:
    return go(*side.pair())


def writing(optimizer: Any) -> AbstractContextManager[None]:
    """Where weights may be changed."""
    ours = hasattr(optimizer, "dense_weights")
    return optimizer.dense_weights(write=True) if ours else nullcontext()


# -------------------------------------------------------------------------- schedulers


def scheduled(make: Callable[[Optimizer], Any], *, loss: bool = False) -> Life:
    def life(side: Side) -> Net:
        net, optimizer = side.pair()
        schedule = make(optimizer)
        step = (lambda *_: schedule.step(1.0)) if loss else (lambda *_: schedule.step())
        return go(net, optimizer, after=step)

    return life


def sequential(optimizer: Optimizer) -> Any:
    warm = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2)
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, 4)
    return lr_scheduler.SequentialLR(optimizer, [warm, cosine], [2])


def rates_by_hand(side: Side) -> Net:
    def change(_: Net, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= 0.5
            group["weight_decay"] = 0.0

    net, optimizer = side.pair()
    return go(net, optimizer, after=change)


# ------------------------------------------------------------------- copies and files


def copied(copying: Callable[[Any], Any], at: int) -> Life:
    """Model, optimizer and scheduler together; the original rests from then on."""

    def life(side: Side) -> Net:
        net, optimizer = side.pair()
        schedule = lr_scheduler.ExponentialLR(optimizer, 0.8)
        go(net, optimizer, range(at), lambda *_: schedule.step())
        before = [p.detach().clone() for p in net.parameters()]
        twin, copied, ahead = copying((net, optimizer, schedule))
        go(twin, copied, range(at, STEPS), lambda *_: ahead.step())
        assert all(map(torch.equal, before, net.parameters()))
        return twin

    return life


def pickled(three: Any) -> Any:
    return pickle.loads(pickle.dumps(three))


def saved_whole(three: Any) -> Any:
    file = io.BytesIO()
    torch.save(three, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def resumed(at: int) -> Life:
    """From state dicts, with hooks on both ends and a scheduler."""

    def life(side: Side) -> Net:
        net, optimizer = side.pair()
        schedule = lr_scheduler.ExponentialLR(optimizer, 0.8)
        optimizer.register_state_dict_post_hook(lambda _, s: {**s, "theirs": 1})
        go(net, optimizer, range(at), lambda *_: schedule.step())
        each = [net.state_dict(), optimizer.state_dict(), schedule.state_dict()]
        weights, states, rates = copy.deepcopy(each)
        assert states["theirs"] == 1
        twin, fresh = side.pair()
        ahead = lr_scheduler.ExponentialLR(fresh, 0.8)
        loaded: list[Any] = []
        fresh.register_load_state_dict_pre_hook(
            lambda _, s: {key: s[key] for key in ("state", "param_groups")}
        )
        fresh.register_load_state_dict_post_hook(loaded.append)
        twin.load_state_dict(weights)
        fresh.load_state_dict(states)
        ahead.load_state_dict(rates)
        if hasattr(fresh, "t"):  # the oracle's count is no part of its state
            fresh.t = at
        assert loaded == [fresh]
        return go(twin, fresh, range(at, STEPS), lambda *_: ahead.step())

    return life


def best_model(with_optimizer: bool) -> Life:
    """The best so far is loaded again at the end, and training goes on."""

    def life(side: Side) -> Net:
        net, optimizer = side.pair()
        go(net, optimizer, range(4))
        best = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
        go(net, optimizer, range(4, 6))
        net.load_state_dict(best[0])
        if with_optimizer:
            optimizer.load_state_dict(best[1])
        return go(net, optimizer, range(6, 8))

    return life


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


# ------------------------------------------------------ which parameters, and how many


def one_for_each(side: Side) -> Net:
    net = side.net()
    each = [side.make(net, [named]) for named in net.named_parameters()]
    for t in range(STEPS):
        loss_of(net, t).backward()
        for optimizer in each:
            optimizer.step()
            optimizer.zero_grad()
    return net


def in_backward(side: Side) -> Net:
    net = side.net()
    each = {p: side.make(net, [(name, p)]) for name, p in net.named_parameters()}

    def hook(p: Tensor) -> None:
        each[p].step()
        each[p].zero_grad()

    for p in each:
        p.register_post_accumulate_grad_hook(hook)
    for t in range(STEPS):
        loss_of(net, t).backward()
    return net


def frozen(side: Side) -> Net:
    net, optimizer = side.pair()
    go(net, optimizer, range(1))
    net.a.requires_grad_(False)
    go(net, optimizer, range(1, 4))
    net.a.requires_grad_(True)
    return go(net, optimizer, range(4, STEPS))


def in_data_parallel(side: Side) -> Net:
    net, optimizer = side.pair()
    go(nn.DataParallel(net), optimizer)
    return net


def head_resized(way: str) -> Life:
    """As ``resize_token_embeddings`` does it, in its several versions."""

    def life(side: Side) -> Net:
        net, optimizer = side.pair()
        go(net, optimizer, range(4))
        old, new = net.b, nn.Linear(16, 12, dtype=torch.float64)
        with torch.no_grad():
            new.weight[:8], new.bias[:8] = old.weight, old.bias
        if way == "data":
            old.weight.data, old.bias.data = new.weight.data, new.bias.data
        elif way == "parameter":
            old.weight, old.bias = new.weight, new.bias
        else:
            net.b = new
        for t in range(4, STEPS):
            optimizer.zero_grad()
            loss_of(lambda x: net(x)[:, :8], t).backward()
            optimizer.step()
        step_cli.require_sparse(net, optimizer)
        return net

    return life


def weights_assigned(side: Side, at: int) -> tuple[Net, Any]:
    """Other parameters than the optimizer knows, by a model's own means."""
    net, optimizer = side.pair()
    go(net, optimizer, range(at))
    net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True)
    return go(net, optimizer, range(at, STEPS)), optimizer


# --------------------------------------------------------------- states and weights


def moments_to_zero(side: Side) -> Net:
    """In place, as restarts of merged adapters do."""
    net, optimizer = side.pair()
    go(net, optimizer, range(4))
    for state in optimizer.state.values():
        for key in ("exp_avg", "m"):
            if key in state:
                state[key].zero_()
    return go(net, optimizer, range(4, STEPS))


def state_cleared(side: Side) -> Net:
    net, optimizer = side.pair()
    go(net, optimizer, range(4))
    optimizer.state.clear()
    return go(net, optimizer, range(4, STEPS))


def state_replaced(side: Side) -> Net:
    net, optimizer = side.pair()
    go(net, optimizer, range(4))
    optimizer.state = type(optimizer.state)(dict)
    return go(net, optimizer, range(4, STEPS))


def another_midway(side: Side) -> Net:
    net, optimizer = side.pair()
    go(net, optimizer, range(4))
    if net.slow:  # what the model holds is all that is left
        for p, held in zip(net.parameters(), net.held(), strict=True):
            p.data.copy_(held.detach())
        net.sparse.fill_(False)
    return go(net, side.make(net), range(4, 4 + STEPS))


def weights_changed(change: Callable[[nn.Module], object], *, allowed: bool) -> Life:
    """After each step, as constraints on weights are."""

    def after(net: Net, optimizer: Any) -> None:
        with writing(optimizer) if allowed else nullcontext(), torch.no_grad():
            change(net)

    def life(side: Side) -> Net:
        net, optimizer = side.pair()
        return go(net, optimizer, after=after)

    return life


def bounded(net: nn.Module) -> None:
    for p in net.parameters():
        p.data.clamp_(-0.45, 0.45)


def short_rows(net: nn.Module) -> None:
    for p in net.parameters():
        p.copy_(torch.renorm(p, 2, 0, 0.6) if p.dim() > 1 else p)


def by_vector(net: nn.Module) -> None:
    vector = nn.utils.parameters_to_vector(net.parameters())
    nn.utils.vector_to_parameters(vector * 0.99, net.parameters())
