"""What a training loop may do around an optimizer, each a function of who makes it.

A life builds a net and an optimizer, trains, and returns the net. It is the same for
AdamW, for ours and for the slow oracle.
"""

import copy
import io
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from integration.slow_training import Net, loss_of
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

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
            lambda _, s: {key: s[key] for key in s if key != "theirs"}
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


def offloaded(side: Side) -> Net:
    """The state goes elsewhere between steps, and comes back as other tensors."""

    def move(_: Net, optimizer: Any) -> None:
        for state in optimizer.state.values():
            for key, value in state.items():
                state[key] = value.clone() if isinstance(value, Tensor) else value

    net, optimizer = side.pair()
    return go(net, optimizer, after=move)


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
