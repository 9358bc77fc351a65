"""Optimizers that torch does not have, as bases, in what loops do around them."""

from typing import Any

import pytest
import torch
from integration import lives, third_party
from integration.lives import Side
from integration.slow_training import TWO_OF_FOUR, Net
from integration.test_wrapper_matrix import LATE, ROWS, SWITCH, given, is_sparse, ours

import step_cli
from step_cli.errors import NotSparseError, UsageError
from step_cli.optim.mask import count_violations
from step_cli.recipes.sparse_adamw import sparse

BASES = {
    "old style": third_party.OldStyle,
    "counting": third_party.Counting,
    "Lion": third_party.Lion,
    "Adafactor": third_party.Adafactor,
    "Muon": third_party.Muon,
    "Prodigy": third_party.Prodigy,
    "RAdam": lambda params: torch.optim.RAdam(params, lr=1e-2),
    "momentum": lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9),
    "ScheduleFree": third_party.ScheduleFree,
}
WITH_BASES = ("plain", "SequentialLR", "deepcopy after", "torch.save of all",
              "resume after", "Lookahead that says so", "SAM as a class", "hooks",
              "closure", "accumulate", "frozen for a while",
              "best model and optimizer", "clipped weights, said")  # fmt: skip


def alone(base: Any, *, slow: bool) -> Side:
    """A base by itself; with masks in the forward pass if it is to be slow."""

    def net() -> Net:
        made = Net(slow=slow)
        made.sparse.fill_(slow)
        return made

    return Side(net, lambda net, params=None: in_train_mode(base(given(net, params))))


def within(base: Any, recipe: str, **more: Any) -> Side:
    def make(net: Net, params: Any = None) -> Any:
        optimizer = base(given(net, params))
        return in_train_mode(sparse(optimizer, recipe, model=net, **more))

    return Side(Net, make)


def in_train_mode(optimizer: Any) -> Any:
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


@pytest.mark.parametrize("kind", BASES)
def test_any_base_is_itself_before_and_the_oracle_after(kind: str) -> None:
    base = BASES[kind]
    for name in WITH_BASES:
        row = ROWS[name]
        found = row.life(within(base, "asp", switch=LATE))
        expected = row.life(alone(base, slow=False))
        for p, q in zip(found.parameters(), expected.parameters(), strict=True):
            assert torch.equal(p, q), name
        found = row.life(within(base, "ste"))
        expected = (row.slowly or row.life)(alone(base, slow=True))
        assert is_sparse(found), name
        for p, q in zip(found.parameters(), expected.held(), strict=True):
            torch.testing.assert_close(
                p.detach(), q.detach(), rtol=1e-9, atol=1e-12, msg=name
            )


def evaluated(side: Side) -> list[torch.Tensor]:
    """What a schedule-free optimizer shows for evaluation, now and then."""
    net, optimizer = side.pair()
    found = []
    for t in range(lives.STEPS):
        lives.go(net, optimizer, range(t, t + 1))
        if t % 2:
            optimizer.eval()
            optimizer.eval()
            found += [p.detach().clone() for p in net.held()]
            optimizer.train()
    return found + [p.detach() for p in net.held()]


@pytest.mark.parametrize("recipe", ["asp", "ste"])
def test_the_modes_of_a_schedule_free_base(recipe: str) -> None:
    base = third_party.ScheduleFree
    more = {"switch": LATE} if recipe == "asp" else {}
    found = evaluated(within(base, recipe, **more))
    for p, q in zip(found, evaluated(alone(base, slow=recipe == "ste")), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-13)
        if recipe == "ste" and p.dim() > 1:
            assert not count_violations(p, TWO_OF_FOUR, 1)


def test_modes_that_are_changed_behind_its_back_are_refused() -> None:
    net, optimizer = within(third_party.ScheduleFree, "ste").pair()
    lives.go(net, optimizer)
    optimizer.base.eval()
    with pytest.raises(NotSparseError, match="other weights were loaded over it"):
        step_cli.require_sparse(net, optimizer)
    with pytest.raises(UsageError, match="behind the optimizer's back"):
        optimizer.eval()
    net, optimizer = ours(SWITCH).pair()
    optimizer.eval()  # AdamW has no modes
    optimizer.train()
    lives.go(net, optimizer)


def test_hooks_of_a_base_are_called_once_a_step_in_every_phase() -> None:
    net = Net()
    base = torch.optim.AdamW(net.named_parameters(), lr=1e-2)
    seen: list[tuple[str, Any]] = []
    early = base.register_step_pre_hook(lambda o, *_: seen.append(("early", o)))
    optimizer = sparse(base, "step", model=net, switch=SWITCH)
    base.register_step_post_hook(lambda o, *_: seen.append(("late", o)))
    lives.go(net, optimizer)
    assert seen == [("early", optimizer), ("late", optimizer)] * lives.STEPS
    early.remove()
    lives.go(net, optimizer, range(1))
    assert len(seen) == 2 * lives.STEPS + 1


def test_what_is_no_optimizer_says_so() -> None:
    net = Net()
    with pytest.raises(UsageError, match=r"Net is no .*: if it wraps one"):
        sparse(net, "ste", model=net)
