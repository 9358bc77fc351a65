"""The optimizer saved, watched and used wrongly; its sums are tested next door."""

import copy
import io
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from step_cli.autoswitch.autoswitch import AutoSwitch, Staleness, SwitchRule
from step_cli.errors import NonFiniteError, UsageError
from step_cli.optim import watch
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.recipes.sparse_adamw import sparse, sparse_adamw


def small_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Take the steps of that number, so that a run may be cut anywhere."""
    dtype = next(model.parameters()).dtype
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(16, 12, generator=generator).to(dtype)
        labels = torch.randint(0, 3, (16,), generator=generator)
        functional.cross_entropy(model(inputs).float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()


def everything(model: nn.Module, optimizer: SparseOptimizer) -> list[Tensor]:
    """All weights, and all tensors of the state."""
    parameters = list(model.parameters())
    states = [v for p in parameters for v in optimizer.state[p].values()]
    return [value.detach().clone() for value in (*parameters, *states)]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


# --------------------------------------------------------------------- saved to a file


def by_file(state: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def rule_of(kind: str) -> SwitchRule:
    rules = {"autoswitch": AutoSwitch(0.5, 1e-30), "staleness": Staleness(0.5, 20)}
    return SwitchRule(rules[kind], 1, 5)  # neither is met: t_max, after step 6


@pytest.mark.parametrize("kind", ["autoswitch", "staleness"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cut", [0, 3, 6, 8], ids=["first", "before", "at", "after"])
def test_a_file_continues_a_run_bit_for_bit(
    kind: str, dtype: torch.dtype, cut: int
) -> None:
    def build(seed: int) -> tuple[nn.Module, SparseOptimizer]:
        model, rule = small_model(seed, dtype), rule_of(kind)
        return model, sparse_adamw(model, switch=rule, lr=1e-2, betas=(0.9, 0.999))

    model, optimizer = build(0)
    train(model, optimizer, range(cut))
    saved = by_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    train(model, optimizer, range(cut, 12))
    for rolled_back in (False, True):
        other, resumed = build(5)
        if rolled_back:  # the run that loads has gone further than the file
            train(other, resumed, range(9))
        other.load_state_dict(saved["model"])
        resumed.load_state_dict(saved["optimizer"])
        train(other, resumed, range(cut, 12))
        assert resumed.switch_step == 6
        assert same(everything(other, resumed), everything(model, optimizer))


def test_counts_of_steps_are_not_rounded_to_the_weights_dtype() -> None:
    p = nn.Parameter(torch.randn(1, 4).bfloat16())
    groups = [{"params": [p], "pattern": "2:4", "axis": 1}]
    optimizer = sparse_adamw(groups, switch=301)
    for _ in range(301):
        p.grad = torch.ones_like(p)
        optimizer.step()
    optimizer.load_state_dict(by_file(optimizer.state_dict()))
    assert optimizer.state[p]["variance_step"].dtype == torch.float32
    assert optimizer.state[p]["variance_step"] == optimizer.state[p]["step"] == 301


def test_momentum_has_its_key_from_the_start() -> None:
    model = small_model()
    named = list(model.named_parameters())
    optimizer = sparse(torch.optim.SGD(named, lr=0.1, momentum=0.9), "sr-ste")
    keys = {p: set(state) for p, state in optimizer.state.items()}
    assert all("momentum_buffer" in found for found in keys.values())
    train(model, optimizer, range(3))
    assert {p: set(state) for p, state in optimizer.state.items()} == keys


def test_what_is_saved_is_not_the_models_memory() -> None:
    model = small_model()
    optimizer = sparse_adamw(model, switch=5)
    saved = optimizer.state_dict()
    for state in saved["state"].values():
        if "dense" in state:
            state["dense"].zero_()  # as a checkpoint does that is loaded in place
    assert all(bool(p.any()) for p in model.parameters())


# ----------------------------------------------------------------------------- watched


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was read from a tensor to the host, each of which a GPU would wait for."""
    seen: list[str] = []

    def counting(name: str, real: Any) -> Any:
        def method(self: Tensor, *arguments: Any) -> Any:
            seen.append(name)
            return real(self, *arguments)

        return method

    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(Tensor, name, counting(name, getattr(Tensor, name)))
    # What is looked at for NaN is read once it has arrived, without waiting.
    monkeypatch.setattr(watch._Reading, "arrived", False)
    yield seen


def test_nothing_is_read_before_the_rule_can_fire(reads: list[str]) -> None:
    model = small_model()
    rule = SwitchRule(AutoSwitch(0.9, 1e-30), 0, 50)
    optimizer = sparse_adamw(model, switch=rule, betas=(0.9, 0.9), fused=True)
    counts = []
    for step in range(12):
        reads.clear()
        train(model, optimizer, range(step, step + 1))
        counts.append(len(reads))
    assert rule.first_step == 10
    # Then all sums of the ten steps, and from there on one step's.
    assert counts == [0] * 9 + [10, 1, 1]


@pytest.mark.parametrize("recipe", ["ste", "sr-ste", "asp"])
def test_mask_learning_reads_nothing(recipe: str, reads: list[str]) -> None:
    model = small_model()
    optimizer = sparse_adamw(model, recipe=recipe, fused=True)
    optimizer.watch_masks = True
    reads.clear()
    train(model, optimizer, range(5))
    assert reads == []
    assert optimizer.flip_rate() is not None
    assert optimizer.flip_rates() is not None
    assert optimizer.pruned_update_share() is not None
    assert len(reads) == 1


def test_the_share_of_the_update_on_pruned_weights_is_that_of_a_slow_count() -> None:
    model = small_model()
    optimizer = sparse_adamw(model, recipe="ste", lr=1e-2)
    train(model, optimizer, range(3))
    assert optimizer.pruned_update_share() is None
    layers = [model[0].weight, model[2].weight]
    before = [optimizer.state[p]["dense"].tolist() for p in layers]
    held = [p.tolist() for p in layers]
    optimizer.watch_masks = True
    train(model, optimizer, range(3, 4))
    after = [optimizer.state[p]["dense"].tolist() for p in layers]
    pruned = whole = 0.0
    for was, is_now, shown in zip(flat(before), flat(after), flat(held), strict=True):
        whole += abs(is_now - was)
        pruned += abs(is_now - was) if shown == 0 else 0.0
    assert optimizer.pruned_update_share() == pytest.approx(pruned / whole, rel=1e-5)
    flips = [
        sum((a == 0) != (b == 0) for a, b in zip(flat([was]), flat([now]), strict=True))
        for was, now in zip(held, [p.tolist() for p in layers], strict=True)
    ]
    assert all(flips)
    assert optimizer.flip_rate() == sum(flips) / sum(p.numel() for p in layers)
    rates = optimizer.flip_rates()
    assert rates is not None
    assert [rates[p] for p in layers] == [
        count / p.numel() for count, p in zip(flips, layers, strict=True)
    ]


def flat(matrices: list[list[list[float]]]) -> list[float]:
    rows = itertools.chain.from_iterable(matrices)
    return list(itertools.chain.from_iterable(rows))


def test_frozen_masks_get_no_update_on_pruned_weights() -> None:
    model = small_model()
    optimizer = sparse_adamw(model, recipe="asp", weight_decay=0.0)
    optimizer.watch_masks = True
    train(model, optimizer, range(2))
    assert optimizer.pruned_update_share() == 0.0
    assert optimizer.flip_rate() == 0.0


# ------------------------------------------------------------------------- used wrongly


def test_more_kept_than_there_are_is_refused() -> None:
    with pytest.raises(UsageError, match="4:2"):
        sparse_adamw(small_model(), "4:2", switch=3)


@pytest.mark.parametrize("recipe", ["ste", "step"])
def test_bf16_weights_loaded_after_construction_are_refused(recipe: str) -> None:
    model = small_model(dtype=torch.bfloat16)
    optimizer = sparse_adamw(model, recipe=recipe, switch=3)
    model.load_state_dict(small_model(1, torch.bfloat16).state_dict())
    with pytest.raises(UsageError, match="behind the optimizer's back"):
        train(model, optimizer, range(1))
    optimizer.zero_grad()
    optimizer.adopt()
    train(model, optimizer, range(1))


def test_fp32_weights_may_be_loaded_while_nothing_is_pruned() -> None:
    model = small_model()
    optimizer = sparse_adamw(model, switch=3)
    model.load_state_dict(small_model(1).state_dict())
    train(model, optimizer, range(3))
    other = small_model(1)
    expected = sparse_adamw(other, switch=3)
    train(other, expected, range(3))
    assert same(everything(model, optimizer), everything(other, expected))


def test_weights_written_with_what_they_held_are_taken() -> None:
    model = small_model()
    optimizer = sparse_adamw(model, recipe="ste")
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()})
    train(model, optimizer, range(1))


def test_freezing_a_variance_that_is_not_finite_is_refused() -> None:
    model = small_model()
    optimizer = sparse_adamw(model, switch=1)
    model[0].weight.grad = torch.full_like(model[0].weight, torch.inf)
    with pytest.raises(NonFiniteError, match="step 1"):
        optimizer.step()


def test_parameters_that_come_later_are_refused() -> None:
    optimizer = sparse_adamw(small_model(), switch=3)
    with pytest.raises(UsageError, match="from the start"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(4))]})


# ------------------------------------------------- the state in other hands than ours


def test_a_state_replaced_by_hand_is_what_the_base_goes_on_from() -> None:
    def run(*, in_place: bool) -> list[Tensor]:
        model = small_model()
        base = torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)
        optimizer = sparse(base, "ste")
        train(model, optimizer, range(3))
        for p in model.parameters():
            state = optimizer.state[p]
            if in_place:
                state["momentum_buffer"].mul_(0.5)
            else:
                state["momentum_buffer"] = state["momentum_buffer"] * 0.5
        train(model, optimizer, range(3, 6))
        return everything(model, optimizer)

    assert same(run(in_place=False), run(in_place=True))


def test_a_variance_that_the_base_creates_late_is_measured() -> None:
    model = small_model()
    base = torch.optim.NAdam(model.named_parameters(), lr=1e-2)
    optimizer = sparse(base, "ste", record=True)
    train(model, optimizer, range(2))  # it is created in the first step
    sample = optimizer.variance_sample()
    assert sample is not None
    assert sample.d == sum(p.numel() for p in model.parameters())
    variances = [optimizer.state[p]["exp_avg_sq"] for p in model.parameters()]
    whole = sum(float(v.double().sum()) for v in variances)
    assert sample.v_l1 == pytest.approx(whole, rel=1e-5)


def test_a_copy_that_has_taken_no_step_is_whole() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4))
    optimizer = sparse_adamw(model, "2:4", "bi-mask", lr=1e-2)
    train(model, optimizer, range(2))
    model, optimizer = copy.deepcopy((model, optimizer))
    optimizer.rewire(model)
    with pytest.raises(UsageError, match="every parameter from the start"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(4))]})
    train(model, optimizer, range(2, 3))


def test_the_state_of_a_copy_has_the_present_weights_in_memory_of_its_own() -> None:
    model = small_model()
    optimizer = sparse_adamw(model, switch=8, lr=1e-2)
    train(model, optimizer, range(3))
    model, optimizer = copy.deepcopy((model, optimizer))
    p = model[0].weight
    with torch.no_grad():
        p.mul_(2)  # in a dense phase there is nothing to adopt
    dense = optimizer.state_dict()["state"][0]["dense"]
    assert torch.equal(dense, p)
    assert dense.data_ptr() != p.data_ptr()


def test_a_step_that_fails_leaves_no_gradients_behind() -> None:
    model = small_model()
    base = torch.optim.SGD(model.named_parameters(), lr=0.1)
    optimizer = sparse(base, "sr-ste")
    groups, state = optimizer.param_groups, optimizer.state

    def fail(*_: object) -> None:
        raise RuntimeError("no")

    handle = base.register_step_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no"):
        train(model, optimizer, range(1))
    assert all(s["dense"].grad is None for s in state.values() if "dense" in s)
    assert base.param_groups is groups
    assert base.state is state
    handle.remove()
    train(model, optimizer, range(1, 2))


def test_a_state_created_early_is_kept_in_full_also_of_a_scalar() -> None:
    weight = nn.Parameter(torch.ones(2, 4).half())
    scalar = nn.Parameter(torch.ones(()).half())
    groups = [
        {"params": [weight], "pattern": "2:4", "axis": 1},
        {"params": [scalar]},
    ]
    base = torch.optim.Adagrad(groups, lr=0.1, initial_accumulator_value=0.5)
    optimizer = sparse(base, "ste")
    for p in (weight, scalar):
        assert optimizer.state[p]["sum"].dtype == torch.float32
        assert bool((optimizer.state[p]["sum"] == 0.5).all())


def test_views_need_no_rewired_layers() -> None:
    p = nn.Parameter(torch.randn(4, 8))
    optimizer = sparse_adamw(
        [{"params": [p], "pattern": "2:4", "axis": 1}], "2:4", "s-ste"
    )
    shown = p.detach().clone()
    with optimizer.dense_weights():
        assert torch.equal(p, optimizer.state[p]["dense"])
    assert torch.equal(p, shown)
    with pytest.raises(UsageError, match="rewire"):
        optimizer.step()
