"""The optimizer against AdamW, the hand-worked fixture and a slow reference."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from step_cli.autoswitch.autoswitch import AutoSwitch, SwitchRule
from step_cli.errors import NonFiniteError, NothingSelectedError, UsageError
from step_cli.nm.pattern import NMPattern
from step_cli.optim import adam, projection
from step_cli.optim import weights as weights_module
from step_cli.optim.mask import count_violations, nm_mask
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.optim.reference import step_reference
from step_cli.recipes.sparse_adamw import sparse, sparse_adamw
from step_cli.recipes.sr_ste import SRSTE
from step_cli.recipes.step import Step


def small_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv1d(4, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 16), nn.Tanh(),
        nn.Linear(16, 3),
    )  # fmt: skip
    return model.to(dtype)


def batches(count: int, seed: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        inputs = torch.randn(16, 4, 8, generator=generator)
        yield inputs, torch.randint(0, 3, (16,), generator=generator)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: Any) -> None:
    for inputs, labels in data:
        inputs = inputs.to(next(model.parameters()).dtype)
        functional.cross_entropy(model(inputs).float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def violations(model: nn.Module) -> int:
    plan = NMPattern(2, 4)
    return sum(count_violations(p, plan, 1) for p in model.parameters() if p.dim() > 1)


# ------------------------------------------------------------------ STEP, to the digit

# f(w) = |mask * w - c|^2 / 2, from algorithms worked by hand: lr 0.1, t0 = 2, T = 4.
START, TARGET = [0.8, -0.5, 0.3, 0.1], [1.0, -1.0, 0.5, -0.5]
AFTER_STEP_2 = [0.993217935, -0.698812576, 0.493217935, -0.099117284]
FIXTURE = {
    ("inside", "at_switch"): [
        [1.053621140, -0.785710854, 0.668744818, -0.195069457],
        [1.086597397, -0.861103716, 0.885198796, -0.289447816],
    ],
    ("outside", "at_switch"): [
        [1.053621162, -0.785710854, 0.668744862, -0.195069456],
        [1.086597416, -0.861103716, 0.885198872, -0.289447815],
    ],
    ("inside", "none"): [
        [2.344077546, -2.642379431, 4.418707892, -2.245192109],
        [7.415646727, -1.661527636, -8.916930445, -4.356066884],
    ],
    ("outside", "none"): [
        [2.344210726, -2.642402187, 4.419095224, -2.245208840],
        [7.416280249, -1.661506218, -8.919452488, -4.356100072],
    ],
}


@pytest.mark.parametrize(("eps_mode", "correction"), FIXTURE)
def test_step_reproduces_the_worked_fixture(eps_mode: Any, correction: Any) -> None:
    p = nn.Parameter(torch.tensor([START], dtype=torch.float64))
    groups = [{"params": [p], "pattern": "2:4", "axis": 1}]
    optimizer = sparse_adamw(
        groups, recipe="step", switch=2, lr=0.1, weight_decay=0.0,
        eps_mode=eps_mode, v_correction=correction,
    )  # fmt: skip
    dense, phases = [], []
    for _ in range(4):
        p.grad = p.detach() - torch.tensor([TARGET], dtype=torch.float64)
        optimizer.step()
        dense.append(optimizer.state[p]["dense"].flatten().tolist())
        phases.append(optimizer.phase)
        if optimizer.steps_taken == 2:
            variance = optimizer.state[p]["exp_avg_sq"].clone()
    assert phases == ["precondition", *["mask-learning"] * 3]
    assert dense[1] == pytest.approx(AFTER_STEP_2, abs=2e-8)
    assert dense[2:] == [
        pytest.approx(row, abs=1e-9) for row in FIXTURE[eps_mode, correction]
    ]
    assert variance.flatten().tolist() == pytest.approx(
        [4.9960002e-5, 4.09750002e-4, 4.9960002e-5, 6.09640001e-4], rel=1e-7
    )
    assert torch.equal(optimizer.state[p]["exp_avg_sq"], variance)
    kept = nm_mask(optimizer.state[p]["dense"].abs(), "2:4", 1)
    assert torch.equal(p.detach(), optimizer.state[p]["dense"] * kept)


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("t0", [1, 5, 11])
def test_step_equals_algorithm_1(t0: int, literal: bool) -> None:
    data, slow = list(batches(12)), small_model().double()

    def gradient(w: list[Tensor], t: int) -> list[Tensor]:
        with torch.no_grad():
            for p, x in zip(slow.parameters(), w, strict=True):
                p.copy_(x.view_as(p))
        inputs, labels = data[t - 1]
        loss = functional.cross_entropy(slow(inputs.double()).float(), labels)
        grads = torch.autograd.grad(loss, list(slow.parameters()))
        return [g.view_as(x) for g, x in zip(grads, w, strict=True)]

    model = small_model().double()
    start = weights(model)
    # Groups of the convolution run along its second axis, not its last.
    turned = [x.movedim(1, -1) if x.dim() == 3 else x for x in start]
    patterns = [NMPattern(2, 4) if x.dim() > 1 else None for x in start]

    def turned_gradient(w: list[Tensor], t: int) -> list[Tensor]:
        grads = gradient([x.movedim(-1, 1) if x.dim() == 3 else x for x in w], t)
        return [g.movedim(1, -1) if g.dim() == 3 else g for g in grads]

    expected, dense = step_reference(
        turned, turned_gradient, T=12, t0=t0, NM=patterns, gamma=1e-2, decay=0.1,
        literal=literal,
    )  # fmt: skip
    modes = ("inside", "none") if literal else ("outside", "at_switch")
    optimizer = sparse_adamw(
        model, recipe="step", switch=t0, lr=1e-2, weight_decay=0.1,
        eps_mode=modes[0], v_correction=modes[1],
    )  # fmt: skip
    train(model, optimizer, data)
    for p, kept, own in zip(model.parameters(), expected, dense, strict=True):
        shown = p.detach().movedim(1, -1) if p.dim() == 3 else p.detach()
        torch.testing.assert_close(shown, kept, rtol=1e-6, atol=1e-8)
        if p.dim() > 1:
            found = optimizer.state[p]["dense"]
            found = found.movedim(1, -1) if p.dim() == 3 else found
            torch.testing.assert_close(found, own, rtol=1e-6, atol=1e-8)


def test_algorithm_1_reproduces_the_worked_fixture() -> None:
    target = torch.tensor([TARGET], dtype=torch.float64)
    for literal, modes in (
        (True, ("inside", "none")),
        (False, ("outside", "at_switch")),
    ):
        _, (found,) = step_reference(
            [torch.tensor([START], dtype=torch.float64)],
            lambda w, t: [w[0] - target],
            T=4, t0=2, NM=[NMPattern(2, 4)], gamma=0.1, literal=literal,
        )  # fmt: skip
        assert found.flatten().tolist() == pytest.approx(FIXTURE[modes][-1], abs=1e-9)


@pytest.mark.parametrize("fused", [False, True])
def test_the_precondition_phase_is_adamw_bit_for_bit(fused: bool) -> None:
    ours, theirs = small_model(), small_model()
    options: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "fused": fused}
    optimizer = sparse_adamw(ours, switch=50, **options)
    train(ours, optimizer, batches(20))
    train(theirs, torch.optim.AdamW(theirs.parameters(), **options), batches(20))
    assert optimizer.phase == "precondition"
    assert same(weights(ours), weights(theirs))


def test_the_pattern_does_not_change_the_weights_at_the_switch() -> None:
    dense = []
    for pattern in ("2:4", "1:4"):
        model = small_model()
        optimizer = sparse_adamw(model, pattern, switch=6, lr=1e-2)
        train(model, optimizer, batches(6))
        with optimizer.dense_weights():
            dense.append(weights(model))
    assert same(*dense)


def test_the_variance_is_frozen_after_the_switch() -> None:
    model = small_model()
    optimizer = sparse_adamw(model, switch=4, lr=1e-2)
    train(model, optimizer, batches(4))
    before = [optimizer.state[p]["exp_avg_sq"].clone() for p in model.parameters()]
    train(model, optimizer, batches(5, seed=2))
    after = [optimizer.state[p]["exp_avg_sq"] for p in model.parameters()]
    assert same(before, after)


def test_the_ablation_keeps_learning_the_variance() -> None:
    model = small_model()
    recipe = Step(learn_variance=True)
    optimizer = sparse_adamw(model, recipe=recipe, switch=4, lr=1e-2)
    train(model, optimizer, batches(4))
    before = optimizer.state[model[0].weight]["exp_avg_sq"].clone()
    train(model, optimizer, batches(2, seed=2))
    assert optimizer.phase == "mask-learning"
    assert not torch.equal(optimizer.state[model[0].weight]["exp_avg_sq"], before)


def test_a_coordinate_without_variance_stays_where_it_is() -> None:
    p = nn.Parameter(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    groups = [{"params": [p], "pattern": "2:4", "axis": 1}]
    optimizer = sparse_adamw(groups, switch=1, lr=0.1, weight_decay=0.0)
    p.grad = torch.tensor([[0.0, 1.0, 1.0, 1.0]])
    optimizer.step()
    p.grad = torch.ones(1, 4)
    optimizer.step()
    dense = optimizer.state[p]["dense"]
    assert dense[0, 0] == 1.0
    assert (dense[0, 1:] < torch.tensor([2.0, 3.0, 4.0])).all()


# ------------------------------------------------------- the model is what is deployed


@pytest.mark.parametrize("recipe", ["ste", "sr-ste", "step", "asp"])
def test_the_model_holds_the_pattern_whenever_the_rules_say_so(recipe: str) -> None:
    model = small_model()
    optimizer = sparse_adamw(model, recipe=recipe, switch=3, lr=1e-2)
    for batch in batches(6):
        train(model, optimizer, [batch])
        if optimizer.current_phase.sparse:
            assert violations(model) == 0
        else:
            assert violations(model) > 0
    assert optimizer.current_phase.sparse
    assert list(model.state_dict()) == list(small_model().state_dict())


def test_ste_is_sparse_from_the_first_forward() -> None:
    model = small_model()
    sparse_adamw(model, recipe="ste", lr=1e-2)
    assert violations(model) == 0


def test_pruned_weights_receive_gradients_and_can_come_back() -> None:
    model = small_model()
    optimizer = sparse_adamw(model, recipe="ste", lr=3e-2)
    pruned = model[3].weight == 0
    dense = optimizer.state[model[3].weight]["dense"].clone()
    train(model, optimizer, batches(10))
    moved = optimizer.state[model[3].weight]["dense"] != dense
    assert moved[pruned].any()
    assert (model[3].weight[pruned] != 0).any()


def test_asp_never_changes_its_mask() -> None:
    model = small_model()
    optimizer = sparse_adamw(model, recipe="asp", switch=0, lr=3e-2, weight_decay=0.1)
    masks = [p != 0 for p in model.parameters() if p.dim() > 1]
    train(model, optimizer, batches(10))
    now = [p != 0 for p in model.parameters() if p.dim() > 1]
    assert same(masks, now)
    assert optimizer.phase == "fine-tune"


def test_dense_weights_are_shown_and_put_back() -> None:
    model = small_model()
    optimizer = sparse_adamw(model, recipe="ste", lr=1e-2)
    train(model, optimizer, batches(3))
    own = weights(model)
    with optimizer.dense_weights():
        assert violations(model) > 0
    assert same(weights(model), own)
    train(model, optimizer, batches(1))


def test_the_pruned_twin_is_shown_and_put_back() -> None:
    model = small_model()
    optimizer = sparse_adamw(model, switch=50, lr=1e-2)
    train(model, optimizer, batches(2))
    own = weights(model)
    with optimizer.sparse_weights():
        assert violations(model) == 0
    assert same(weights(model), own)


# -------------------------------------------------------------- loops of other people


def test_bf16_parameters_have_fp32_masters() -> None:
    model = small_model(dtype=torch.bfloat16)
    optimizer = sparse_adamw(model, switch=3, lr=1e-2)
    train(model, optimizer, batches(6))
    for p in model.parameters():
        state = optimizer.state[p]
        kinds = {state[key].dtype for key in ("dense", "exp_avg", "exp_avg_sq")}
        assert kinds == {torch.float32}
        assert p.dtype == torch.bfloat16 and p.grad is None
    assert violations(model) == 0
    # The mask is that of the fp32 weights: rounding to bf16 first would make ties.
    p = model[3].weight
    assert torch.equal(p != 0, nm_mask(optimizer.state[p]["dense"].abs(), "2:4", 1))


def test_bf16_masters_learn_what_fp32_parameters_learn() -> None:
    one, other = small_model(dtype=torch.bfloat16), small_model(dtype=torch.bfloat16)
    masters = [p.detach().float().requires_grad_() for p in other.parameters()]
    optimizer = sparse_adamw(one, switch=50, lr=1e-2)
    reference = torch.optim.AdamW(masters, lr=1e-2)
    for batch in batches(5):
        train(one, optimizer, [batch])
        loss = functional.cross_entropy(other(batch[0].bfloat16()).float(), batch[1])
        for master, grad in zip(
            masters, torch.autograd.grad(loss, list(other.parameters())), strict=True
        ):
            master.grad = grad.float()
        reference.step()
        for p, master in zip(other.parameters(), masters, strict=True):
            p.data.copy_(master)
    assert same(weights(one), weights(other))


def test_sr_ste_adds_its_decay_once_however_many_micro_batches() -> None:
    results = []
    for parts in (1, 4):
        p = nn.Parameter(torch.tensor([[1.0, -0.2, 0.05, -3.0]]))
        base = torch.optim.SGD([{"params": [p], "pattern": "2:4", "axis": 1}], lr=1.0)
        optimizer = sparse(base, SRSTE(decay=2e-4))
        for _ in range(parts):
            (p * torch.tensor([[0.1, 0.2, 0.3, 0.4]]) / parts).sum().backward()
        before = optimizer.state[p]["dense"].clone()
        optimizer.step()
        results.append(before - optimizer.state[p]["dense"])
    expected = torch.tensor([[0.1, 0.19996, 0.30001, 0.4]])
    torch.testing.assert_close(results[0], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(results[1], results[0], atol=1e-7, rtol=0)


def test_momentum_sgd_without_decay_is_ste_by_autograd() -> None:
    ours, theirs = small_model(), small_model()
    named = list(ours.named_parameters())
    optimizer = sparse(torch.optim.SGD(named, lr=0.05, momentum=0.9), "ste")
    reference = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9)
    for inputs, labels in batches(10):
        train(ours, optimizer, [(inputs, labels)])
        dense = {name: p for name, p in theirs.named_parameters()}
        seen = {
            name: p + (p * nm_mask(p.abs(), "2:4", 1) - p).detach()
            if p.dim() > 1
            else p
            for name, p in dense.items()
        }
        loss = functional.cross_entropy(
            torch.func.functional_call(theirs, seen, inputs), labels
        )
        reference.zero_grad()
        loss.backward()
        reference.step()
    with optimizer.dense_weights():
        for a, b in zip(weights(ours), weights(theirs), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_a_scheduler_on_the_optimizer_reaches_the_base() -> None:
    model = small_model()
    optimizer = sparse_adamw(model, switch=2, lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    train(model, optimizer, batches(1))
    schedule.step()
    assert {group["lr"] for group in optimizer.base.param_groups} == {0.1}


# ------------------------------------------------------------------- stop and go again


@pytest.mark.parametrize("recipe", ["dense", "ste", "sr-ste", "asp", "step"])
@pytest.mark.parametrize("cut", [2, 6, 7, 9])
def test_a_run_continues_bit_for_bit_from_its_state(recipe: str, cut: int) -> None:
    def build() -> tuple[nn.Module, SparseOptimizer]:
        model = small_model()
        switch = SwitchRule(AutoSwitch(0.5, 1e-30), 1, 6) if recipe == "step" else 6
        return model, sparse_adamw(
            model, recipe=recipe, switch=switch, lr=1e-2, betas=(0.9, 0.5)
        )

    data = list(batches(12))
    model, optimizer = build()
    train(model, optimizer, data)
    first, first_optimizer = build()
    train(first, first_optimizer, data[:cut])
    second, second_optimizer = build()
    second.load_state_dict(first.state_dict())
    second_optimizer.load_state_dict(copy.deepcopy(first_optimizer.state_dict()))
    assert second_optimizer.phase == first_optimizer.phase
    train(second, second_optimizer, data[cut:])
    assert same(weights(second), weights(model))
    assert second_optimizer.switch_step == optimizer.switch_step


def test_the_keys_of_the_state_never_change() -> None:
    model = small_model()
    optimizer = sparse_adamw(model, switch=3, lr=1e-2)
    keys = {p: set(state) for p, state in optimizer.state.items()}
    assert keys[model[0].weight] == {
        "step", "exp_avg", "exp_avg_sq", "dense", "variance_step",
    }  # fmt: skip
    train(model, optimizer, batches(6))
    assert {p: set(state) for p, state in optimizer.state.items()} == keys


# -------------------------------------------------------------------- what is refused


def test_bare_parameters_are_refused() -> None:
    with pytest.raises(UsageError, match="bare parameters have no names"):
        sparse_adamw(small_model().parameters(), switch=3)


def test_a_model_without_an_eligible_layer_is_refused() -> None:
    with pytest.raises(NothingSelectedError, match="no layer"):
        sparse_adamw(nn.Sequential(nn.Linear(6, 3)), switch=3)


def test_a_width_that_does_not_divide_is_refused() -> None:
    group = {"params": [nn.Parameter(torch.zeros(2, 6))], "pattern": "2:4", "axis": 1}
    with pytest.raises(UsageError, match="not a multiple of M=4"):
        sparse_adamw([group], switch=3)


@pytest.mark.parametrize("recipe", ["bi-mask", "t-sr-ste"])
def test_every_layer_that_a_recipe_cannot_hold_is_named(recipe: str) -> None:
    def layers(*outputs: int) -> nn.Sequential:
        return nn.Sequential(*(nn.Linear(16, count) for count in outputs))

    with pytest.raises(UsageError, match=r"^1\.weight: .*\(12, 16\).*pad it$"):
        sparse_adamw(layers(16, 12, 8), "1:8", recipe)
    with pytest.raises(UsageError, match=r"^0\.weight: .*refused too: 2\.weight"):
        sparse_adamw(layers(12, 16, 4), "1:8", recipe)
    sparse_adamw(layers(16, 8), "1:8", recipe)


def test_switching_at_step_0_is_refused() -> None:
    with pytest.raises(UsageError, match="step 0"):
        sparse_adamw(small_model(), switch=0)


def test_freezing_a_variance_of_zero_is_refused() -> None:
    model = small_model()
    optimizer = sparse_adamw(model, switch=1)
    with pytest.raises(UsageError, match="variance is zero"):
        optimizer.step()


def test_a_base_without_a_variance_is_refused() -> None:
    named = list(small_model().named_parameters())
    with pytest.raises(UsageError, match="use Adam"):
        sparse(torch.optim.SGD(named, lr=0.1), "step", switch=3)


def test_a_decay_inside_the_gradient_is_refused() -> None:
    named = list(small_model().named_parameters())
    with pytest.raises(UsageError, match="use AdamW"):
        sparse(torch.optim.Adam(named, weight_decay=0.1), "step", switch=3)


def test_a_missing_switch_is_refused() -> None:
    with pytest.raises(UsageError, match="total_steps"):
        sparse_adamw(small_model())


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    model = small_model()
    optimizer = sparse_adamw(model, total_steps=100, betas=(0.9, 0.5))
    train(model, optimizer, batches(11))
    for p in model.parameters():
        p.grad = torch.full_like(p, torch.nan)
    with pytest.raises(NonFiniteError, match="step 12"):
        optimizer.step()


def test_weights_changed_behind_the_optimizer_are_refused_until_adopted() -> None:
    model = small_model()
    optimizer = sparse_adamw(model, recipe="ste", lr=1e-2)
    train(model, optimizer, batches(1))
    with torch.no_grad():
        model[3].weight.fill_(1.0)
    with pytest.raises(UsageError, match="behind the optimizer's back"):
        train(model, optimizer, batches(1))
    optimizer.zero_grad()
    optimizer.adopt()
    assert violations(model) == 0
    train(model, optimizer, batches(1))


@pytest.mark.parametrize("axis", [0, 1])
def test_large_tensors_cut_into_pieces_learn_what_whole_ones_learn(
    axis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for cut in (False, True):
        monkeypatch.setattr(weights_module, "SMALL", 16 if cut else 1 << 30)
        monkeypatch.setattr(adam, "CHUNK", 100 if cut else 1 << 30)
        monkeypatch.setattr(projection, "CHUNK", 64 if cut else 1 << 30)
        torch.manual_seed(0)
        layers = [nn.Parameter(torch.randn(24, 16)), nn.Parameter(torch.randn(8, 8))]
        group = {"params": layers, "pattern": "2:4", "axis": axis}
        optimizer = sparse_adamw([group], switch=2, lr=1e-2)
        for step in range(6):
            generator = torch.Generator().manual_seed(step)
            for p in layers:
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
        found.append([t for p in layers for t in (p, optimizer.state[p]["dense"])])
    assert same(*found)
