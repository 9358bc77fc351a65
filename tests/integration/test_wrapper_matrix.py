"""What wrappers and loops do around an optimizer, each against AdamW or an oracle.

While nothing is pruned every row ends where AdamW ends, bit for bit. While masks are
learned it ends where the slow oracle does, in double precision, or is refused in one
line that says what to do.
"""

import copy
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from integration import lives, third_party
from integration import lives_around as around
from integration.lives import Life, Side, scheduled
from integration.ranks import Ranks
from integration.slow_training import TWO_OF_FOUR, Net, Slow
from torch import nn
from torch.optim import lr_scheduler

import step_cli
from step_cli.errors import NotSparseError, StepError, UsageError
from step_cli.optim.mask import count_violations
from step_cli.recipes.sparse_adamw import sparse, sparse_adamw

LATE, SWITCH = 1000, 2
ADAMW: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1}
BEHIND = r"was changed behind the optimizer's back.*dense_weights\(write=True\)"


@dataclass(frozen=True)
class Row:
    """A life, and what becomes of it while masks are learned.

    Attributes:
        life: What is done.
        slowly: What the oracle does for the same, where that is not the life itself.
        refused: What is said instead, while masks are learned.
        plainly: What AdamW does for the same.
    """

    life: Life
    slowly: Life | None = None
    refused: str = ""
    plainly: Life | None = None


ROWS = {
    "plain": Row(lives.go_plainly),
    "LambdaLR": Row(scheduled(lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.5**t))),
    "warmup from a rate of 0": Row(
        scheduled(lambda o: lr_scheduler.LambdaLR(o, lambda t: max(0, t - 3) / 3))
    ),
    "OneCycleLR": Row(
        scheduled(lambda o: lr_scheduler.OneCycleLR(o, 2e-2, total_steps=8))
    ),
    "ReduceLROnPlateau": Row(
        scheduled(lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1), loss=True)
    ),
    "SequentialLR": Row(scheduled(lives.sequential)),
    "rates by hand": Row(lives.rates_by_hand),
    "deepcopy before": Row(lives.copied(copy.deepcopy, 1)),
    "deepcopy after": Row(lives.copied(copy.deepcopy, 4)),
    "pickle": Row(lives.copied(lives.pickled, 3)),
    "torch.save of all": Row(lives.copied(lives.saved_whole, 4)),
    "resume before": Row(lives.resumed(1)),
    "resume after": Row(lives.resumed(4)),
    "best model": Row(lives.best_model(with_optimizer=False), refused=BEHIND),
    "best model and optimizer": Row(lives.best_model(with_optimizer=True)),
    "Lookahead around": Row(around.lookahead(allowed=False), refused=BEHIND),
    "Lookahead that says so": Row(around.lookahead(allowed=True)),
    "SAM in two steps": Row(around.sam_by_hand("copy"), around.sam_slowly),
    "SAM that subtracts": Row(around.sam_by_hand("subtract"), refused=BEHIND),
    "SAM by a closure": Row(around.sam_by_closure, around.sam_slowly),
    "SAM as a class": Row(around.sam_class, around.sam_slowly),
    "EMA": Row(around.averaged),
    "SWA": Row(around.stochastic_averaging),
    "hooks": Row(around.hooked),
    **{f"zero_grad {way}": Row(around.zeroed(way))
       for way in ("to zero", "of the model", "none by hand", "zero by hand")},
    "clip by norm": Row(around.clipped(nn.utils.clip_grad_norm_)),
    "clip by value": Row(around.clipped(nn.utils.clip_grad_value_)),
    "GradScaler": Row(around.scaled),
    "accumulate": Row(around.accumulated),
    "closure": Row(around.by_closure),
    "two losses": Row(around.two_losses),
    "torch.compile of the step": Row(around.compiled, plainly=lives.go_plainly),
    "one optimizer for each": Row(lives.one_for_each),
    "optimizer in backward": Row(lives.in_backward),
    "frozen for a while": Row(lives.frozen),
    "DataParallel": Row(lives.in_data_parallel),
    "moments to zero": Row(lives.moments_to_zero),
    "state offloaded": Row(lives.offloaded),
    "state cleared": Row(lives.state_cleared, refused="dense weights"),
    "state replaced": Row(lives.state_replaced, refused="dense weights"),
    "another optimizer midway": Row(lives.another_midway),
    "clipped weights": Row(
        lives.weights_changed(lives.bounded, allowed=False), refused=BEHIND
    ),
    "clipped weights, said": Row(lives.weights_changed(lives.bounded, allowed=True)),
    "max-norm": Row(
        lives.weights_changed(lives.short_rows, allowed=False), refused=BEHIND
    ),
    "max-norm, said": Row(lives.weights_changed(lives.short_rows, allowed=True)),
    "vector_to_parameters": Row(
        lives.weights_changed(lives.by_vector, allowed=False), refused=BEHIND
    ),
    "vector_to_parameters, said": Row(
        lives.weights_changed(lives.by_vector, allowed=True)
    ),
}  # fmt: skip


def given(net: Net, params: Any) -> Any:
    return list(net.named_parameters()) if params is None else params


def has_matrix(params: Any) -> bool:
    members = [p for each in params for p in
               (each["params"] if isinstance(each, dict) else [each[1]])]  # fmt: skip
    return any(p.dim() > 1 for p in members)


def adamw() -> Side:
    return Side(
        Net, lambda net, params=None: torch.optim.AdamW(given(net, params), **ADAMW)
    )


def ours(switch: int) -> Side:
    def make(net: Net, params: Any = None) -> torch.optim.Optimizer:
        params = given(net, params)
        if not has_matrix(params):  # of a single bias
            return torch.optim.AdamW(params, **ADAMW)
        return sparse_adamw(params, switch=switch, model=net, **ADAMW)

    return Side(Net, make)


def slow(switch: int) -> Side:
    def make(net: Net, params: Any = None) -> torch.optim.Optimizer:
        params = given(net, params)
        if not has_matrix(params):
            return torch.optim.AdamW(params, **ADAMW)
        return Slow(params, net, switch, **ADAMW)

    return Side(lambda: Net(slow=True), make)


def is_sparse(net: Net) -> bool:
    return not any(count_violations(p, TWO_OF_FOUR, 1)
                   for p in net.parameters() if p.dim() > 1)  # fmt: skip


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("name", ROWS)
def test_before_the_switch_it_is_adamw_bit_for_bit(name: str) -> None:
    row = ROWS[name]
    found, expected = row.life(ours(LATE)), (row.plainly or row.life)(adamw())
    for p, q in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q)
    assert not is_sparse(found)
    assert not torch.equal(found.a.weight, Net().a.weight)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("name", ROWS)
def test_while_masks_are_learned_it_is_the_oracle_or_refused(name: str) -> None:
    row = ROWS[name]
    if row.refused:
        with pytest.raises(UsageError, match=row.refused) as said:
            row.life(ours(SWITCH))
        assert "\n" not in str(said.value)
        return
    found, expected = row.life(ours(SWITCH)), (row.slowly or row.life)(slow(SWITCH))
    assert is_sparse(found)
    for p, q in zip(found.parameters(), expected.held(), strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-10, atol=1e-13)


# ------------------------------------------------------ what is refused in every phase


def scheduler_first(side: Side) -> Net:
    net = side.net()
    base = torch.optim.AdamW(net.parameters(), **ADAMW)
    schedule = lr_scheduler.StepLR(base, 2)
    return lives.go(net, sparse(base, model=net, switch=SWITCH), after=schedule.step)


def wraps_another(side: Side) -> Net:
    net = side.net()
    base = third_party.Lookahead(torch.optim.AdamW(net.parameters(), **ADAMW))
    return lives.go(net, sparse(base, model=net, switch=SWITCH))


def sam_inside(side: Side) -> Net:
    net = side.net()
    base = third_party.Sam(net.parameters(), torch.optim.AdamW)
    return lives.go(net, sparse(base, "ste", model=net))


def more_groups(side: Side) -> Net:
    net, optimizer = side.pair()
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(4))]})
    return net


def one_that_has_stepped(side: Side) -> Net:
    net = side.net()
    base = torch.optim.AdamW(net.parameters(), **ADAMW)
    lives.go(net, base)
    return lives.go(net, sparse(base, model=net, switch=SWITCH))


def stepped_by_its_base(side: Side) -> Net:
    net, optimizer = side.pair()
    return lives.go(net, optimizer.base)


def base_in_a_copy(side: Side) -> Net:
    net, optimizer = copy.deepcopy(side.pair())
    lives.go(net, optimizer)
    return lives.go(net, optimizer.base)


def wrapped_before(side: Side) -> Net:
    net = side.net()
    base = torch.optim.AdamW(net.parameters(), **ADAMW)
    around = third_party.Lookahead(base)
    sparse(base, model=net, switch=SWITCH)
    return lives.go(net, around)


def base_loaded(side: Side) -> Net:
    net, optimizer = side.pair()
    optimizer.base.load_state_dict(optimizer.state_dict())
    return net


REFUSED: dict[str, tuple[Life, str]] = {
    "scheduler before sparse": (scheduler_first, r"the scheduler after sparse\(\)"),
    "Lookahead inside": (wraps_another, r"give sparse\(\) the AdamW"),
    "SAM inside": (sam_inside, r"give sparse\(\) the AdamW"),
    "the base is stepped": (stepped_by_its_base, "the one that sparse.. returned"),
    "the base of a copy": (base_in_a_copy, "the one that sparse.. returned"),
    "wrapped before": (wrapped_before, "the one that sparse.. returned"),
    "the base is loaded": (base_loaded, "the one that sparse.. returned"),
    "add_param_group": (more_groups, "give it all"),
    "a base that has stepped": (one_that_has_stepped, "give a fresh one"),
    "resized data": (lives.head_resized("data"), "build the optimizer after resizing"),
    "resized parameter": (lives.head_resized("parameter"), "give the model that it tr"),
    "resized layer": (lives.head_resized("layer"), "give the model that it trains"),
}


@pytest.mark.parametrize("switch", [SWITCH, LATE], ids=["after", "before"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_go_well_is_refused_in_one_line(name: str, switch: int) -> None:
    life, said = REFUSED[name]
    with pytest.raises(StepError, match=said) as raised:
        life(ours(switch))
    assert "\n" not in str(raised.value)


def test_a_model_whose_parameters_were_assigned_anew_never_trains() -> None:
    """As with AdamW, which says nothing."""
    net, _ = lives.weights_assigned(adamw(), at=2)
    assert torch.equal(net.a.weight, lives.go(*adamw().pair(), range(2)).a.weight)
    with pytest.raises(NotSparseError, match="another one than the optimizer trains"):
        step_cli.require_sparse(*lives.weights_assigned(ours(3), at=2))


# ----------------------------------------------------------------- in two processes


def averaged_over_ranks(switch: int, allowed: bool) -> Any:
    try:
        net = around.averaging(ours(switch), allowed=allowed)
    except UsageError as error:
        return error.message
    return [p.detach().clone() for p in net.parameters()]


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("switch", [SWITCH, LATE], ids=["after", "before"])
def test_a_periodic_averager_in_two_processes(
    ranks: Ranks, switch: int, allowed: bool
) -> None:
    found = ranks.run(averaged_over_ranks, switch, allowed)
    if switch == SWITCH and not allowed:
        assert all(re.search(BEHIND, said) for said in found)
        return
    nets = around.averaged_slowly(adamw() if switch == LATE else slow(switch))
    for weights, net in zip(found, nets, strict=True):
        for p, q in zip(weights, net.held(), strict=True):
            torch.testing.assert_close(p, q.detach(), rtol=1e-10, atol=1e-13)
