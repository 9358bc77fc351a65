"""Uses that plain AdamW survives, or that deserve one clear line."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from step_cli.autoswitch.autoswitch import (
    AutoSwitch,
    RelativeNorm,
    Staleness,
    SwitchRule,
)
from step_cli.errors import StepError, UsageError
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.recipes.sparse_adamw import sparse, sparse_adamw
from step_cli.recipes.sr_ste import STE


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def train(net: nn.Module, optimizer: SparseOptimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(4, 8, generator=generator)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("eps_mode", ["outside", "inside"])
def test_a_layer_that_wakes_after_the_switch_learns_as_adamw_does(
    eps_mode: str, compile: bool
) -> None:
    net = model()
    optimizer = sparse_adamw(net, switch=2, lr=1e-2, eps_mode=eps_mode, compile=compile)
    net[2].requires_grad_(False)
    train(net, optimizer, 3)
    before = net[2].bias.detach().clone()
    net[2].requires_grad_(True)
    train(net, optimizer, 1)
    state = optimizer.state[net[2].bias]
    assert net[2].bias.isfinite().all() and net[2].weight.isfinite().all()
    # AdamW's first step has length lr, whatever the gradient.
    moved = (net[2].bias - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-2), rtol=0.1, atol=0)
    frozen = optimizer.state[net[0].weight]["exp_avg_sq"].clone()
    learned = state["exp_avg_sq"].clone()
    again = model()
    reloaded = sparse_adamw(again, switch=2, lr=1e-2, eps_mode=eps_mode)
    again.load_state_dict(net.state_dict())
    reloaded.load_state_dict(optimizer.state_dict())
    train(again, reloaded, 1)
    assert torch.equal(reloaded.state[again[0].weight]["exp_avg_sq"], frozen)
    assert not torch.equal(reloaded.state[again[2].bias]["exp_avg_sq"], learned)


@pytest.mark.parametrize("switch", [0.25, "autoswitch-relative", True])
def test_a_switch_of_another_kind_is_refused(switch: object) -> None:
    with pytest.raises(UsageError, match="neither a step nor a criterion"):
        sparse_adamw(model(), switch=switch, total_steps=10)


def test_asp_wants_a_step_and_no_criterion() -> None:
    with pytest.raises(UsageError, match="switches at a step"):
        sparse_adamw(model(), recipe="asp", switch=AutoSwitch(0.9, 1e-8), total_steps=9)
    assert sparse_adamw(model(), recipe="asp", switch=3).switch_step is None


def test_step_on_sgd_is_refused() -> None:
    base = torch.optim.SGD(model().named_parameters(), lr=0.1)
    with pytest.raises(UsageError, match="use Adam or AdamW"):
        sparse(base, "step", total_steps=100)


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"pattern": "2:4"}, "and an axis"),
        ({"pattern": "2:4", "axis": "in"}, "and an axis"),
        ({"pattern": 4, "axis": 1}, "as text such as"),
    ],
)
def test_a_group_that_is_half_a_promise_is_refused(
    group: dict[str, object], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        sparse_adamw([{"params": [model()[0].weight], **group}], recipe="ste")


def test_a_negative_axis_counts_from_the_end() -> None:
    group = {"params": [model()[0].weight], "pattern": "2:4", "axis": -1}
    (_, plan), = sparse_adamw([group], recipe="ste").sparse_parameters()  # fmt: skip
    assert plan.axis == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recipe": STE}, "neither a name nor a recipe"),
        ({"recipe": "ste", "total_steps": "100"}, "not a number of steps"),
        ({"recipe": "ste", "maximize": True}, "negate the loss"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        sparse_adamw(model(), **options)


def test_names_may_come_from_an_iterator() -> None:
    groups = [{"params": model().named_parameters(), "lr": 0.1}]
    assert sum(1 for _ in sparse_adamw(groups, recipe="ste").sparse_parameters()) == 2


def test_frozen_layers_stay_as_they_are_however_parameters_are_given() -> None:
    for give in (lambda net: net, lambda net: net.named_parameters()):
        net = model()
        net[2].requires_grad_(False)
        before = net[2].weight.clone()
        optimizer = sparse_adamw(give(net), recipe="ste")
        train(net, optimizer, 1)
        assert torch.equal(net[2].weight, before)


def test_a_width_without_whole_groups_is_said(caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 8))
    sparse_adamw(net.named_parameters(), recipe="ste")
    assert "1.weight stays dense" in caplog.text


def test_weights_loaded_behind_its_back_are_noticed_around_a_view() -> None:
    net = model()
    optimizer = sparse_adamw(net, recipe="ste")
    train(net, optimizer, 1)
    net.load_state_dict(model().state_dict())
    with (
        pytest.raises(UsageError, match="behind the optimizer's back"),
        optimizer.dense_weights(),
    ):
        pass


def test_no_step_inside_another_view() -> None:
    net = model()
    optimizer = sparse_adamw(net, switch=5)
    with optimizer.sparse_weights(), pytest.raises(UsageError, match="not inside"):
        train(net, optimizer, 1)
    train(net, optimizer, 1)  # and outside it goes on


def test_adopting_part_of_a_model_leaves_the_rest() -> None:
    net = model()
    optimizer = sparse_adamw(net, recipe="ste")
    train(net, optimizer, 1)
    dense = optimizer.state[net[2].weight]["dense"].clone()
    loaded = {k: v for k, v in model().state_dict().items() if k.startswith("0.")}
    net.load_state_dict(loaded, strict=False)
    optimizer.adopt()
    assert torch.equal(optimizer.state[net[2].weight]["dense"], dense)
    assert torch.equal(optimizer.state[net[0].weight]["dense"], loaded["0.weight"])


@pytest.mark.parametrize("switch", [1, 5])
def test_copies_go_on_as_the_original_does(switch: int) -> None:
    net = model()
    optimizer = sparse_adamw(net, switch=switch, lr=1e-2)
    train(net, optimizer, 3)
    twin, copied = copy.deepcopy((net, optimizer))
    pickled_net, pickled = pickle.loads(pickle.dumps((net, optimizer)))
    for each, its in ((net, optimizer), (twin, copied), (pickled_net, pickled)):
        train(each, its, 4)
    for other in (twin, pickled_net):
        for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
            assert torch.equal(mine, theirs)


def test_a_base_that_has_taken_steps_is_refused() -> None:
    net = model()
    base = torch.optim.AdamW(net.named_parameters())
    net(torch.randn(2, 8)).sum().backward()
    base.step()
    with pytest.raises(UsageError, match="has taken steps"):
        sparse(base, "ste")


def test_a_foreign_state_is_refused() -> None:
    net = model()
    plain = torch.optim.AdamW(net.parameters()).state_dict()
    with pytest.raises(UsageError, match="not of this optimizer"):
        sparse_adamw(net, recipe="ste").load_state_dict(plain)
    other = sparse_adamw(model(), "1:4", recipe="ste").state_dict()
    with pytest.raises(UsageError, match=r"saved for .*1:4"):
        sparse_adamw(net, "2:4", recipe="ste").load_state_dict(other)


def test_tables_stay_dense_whatever_they_are_tied_to() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 12, bias=False)
            self.table = nn.Embedding(12, 8)
            self.table.weight = self.head.weight
            self.bag = nn.EmbeddingBag(12, 8)
            self.body = nn.Linear(8, 8)

    optimizer = sparse_adamw(Tied(), recipe="ste")
    assert [tuple(p.shape) for p, _ in optimizer.sparse_parameters()] == [(8, 8)]


def test_complex_parameters_are_refused() -> None:
    net = model()
    net.phase = nn.Parameter(torch.full((3,), 1 + 2j))
    with pytest.raises(UsageError, match="complex"):
        sparse_adamw(net, recipe="ste")


def move_to_meta(net: nn.Module) -> None:
    """Move the parameters without exchanging them, as CUDA would."""
    for p in net.parameters():
        p.grad = None
        torch.utils.swap_tensors(p, nn.Parameter(p.detach().to("meta")))


def test_the_state_follows_a_model_that_is_moved() -> None:
    """As Trainer and accelerate do; `meta` stands for another device."""
    net = model()
    optimizer = sparse_adamw(net, recipe="asp", fused=True)
    train(net, optimizer, 2)
    move_to_meta(net)
    optimizer._move_state()
    tensors = [t for state in optimizer.state.values() for t in state.values()]
    assert len(tensors) == 4 * 4 + 2 * 2  # Adam's four, and dense and mask of two
    assert all(t.is_meta for t in tensors)


def test_counts_of_steps_stay_on_the_host_where_adam_has_them() -> None:
    net = model()
    optimizer = sparse_adamw(net, switch=5)
    move_to_meta(net)
    optimizer._move_state()
    for p in net.parameters():
        assert optimizer.state[p]["exp_avg"].is_meta
        assert not optimizer.state[p]["step"].is_meta
        assert "dense" not in optimizer.state[p] or optimizer.state[p]["dense"].is_meta


def test_weights_that_come_after_the_meta_device_are_asked_for_first() -> None:
    with torch.device("meta"):
        net = nn.Linear(8, 4)
    optimizer = sparse_adamw(net, switch=5)
    net.to_empty(device="cpu")
    with pytest.raises(UsageError, match="build it after to_empty"):
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_dtype_after_the_optimizer_was_built_is_refused(
    dtype: torch.dtype,
) -> None:
    net = model()
    optimizer = sparse_adamw(net, switch=5)
    net.to(dtype)
    with pytest.raises(UsageError, match=r"after changing the model's dtype"):
        optimizer.step()


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
def test_a_compiled_step_is_the_step() -> None:
    found = []
    for wrap in (torch.compile, lambda step: step):
        net = model()
        optimizer = sparse_adamw(net, switch=2, lr=1e-2)
        step = wrap(optimizer.step)
        for _ in range(4):
            net(torch.ones(2, 8)).square().mean().backward()
            step()
            optimizer.zero_grad()
        assert optimizer.steps_taken == 4 and optimizer.switch_step == 2
        found.append([p.detach().clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def frozen() -> nn.Module:
    return model().requires_grad_(False)


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        (list, {}, "no parameters"),
        (frozen, {}, "requires a gradient"),
        (lambda: nn.LazyLinear(8), {}, "no shape yet"),
        (model, {"total_steps": 0}, "total_steps 0"),
        (model, {"total_steps": -5}, "total_steps -5"),
        (model, {"differentiable": True}, "differentiable"),
        (
            lambda: [
                {
                    "params": [nn.Parameter(torch.ones(4, 4).byte(), False)],
                    "pattern": "2:4",
                    "axis": 1,
                }
            ],
            {},
            "fp64, fp32, bf16 or fp16",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_what_cannot_be_trained_is_refused_in_one_line(
    given: Callable[[], Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(StepError, match=said) as seen:
        sparse_adamw(given(), **{"switch": 3, **options})
    assert "\n" not in str(seen.value)


def test_gradients_that_are_sparse_are_refused() -> None:
    net = nn.Sequential(nn.Embedding(10, 8, sparse=True), nn.Linear(8, 4))
    optimizer = sparse_adamw(net, recipe="ste")
    net(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(UsageError, match="leave that off"):
        optimizer.step()
    assert optimizer.steps_taken == 0


def test_sgd_takes_sparse_gradients_of_what_stays_dense() -> None:
    net = nn.Sequential(nn.Embedding(10, 8, sparse=True), nn.Linear(8, 4))
    sparse_weight = {"params": [net[1].weight], "pattern": "2:4", "axis": 1}
    rest = {"params": [net[0].weight, net[1].bias]}
    base = torch.optim.SGD([sparse_weight, rest], lr=0.1)
    optimizer = sparse(base, "sr-ste")
    before = net[0].weight.detach().clone()
    net(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    changed = (net[0].weight != before).any(1)
    assert changed.tolist() == [i in (1, 2) for i in range(10)]


@pytest.mark.parametrize("pattern", [None, 2, (2, 4)])
def test_a_pattern_of_another_kind_is_refused(pattern: object) -> None:
    with pytest.raises(UsageError, match="expected N:M such as '2:4', got"):
        sparse_adamw(model(), pattern, recipe="ste")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("saved", "loaded", "said"),
    [
        ("ste", "asp", "saved by STE, this optimizer is for ASP"),
        ("ste", "step", "saved by STE, this optimizer is for Step of STE"),
        ("step", "ste", "saved by Step of STE"),
    ],
)
def test_the_state_of_another_recipe_is_refused(
    saved: str, loaded: str, said: str
) -> None:
    net = model()
    optimizer = sparse_adamw(net, recipe=saved, switch=1)
    train(net, optimizer, 2)
    other = sparse_adamw(net, recipe=loaded, switch=1)
    with pytest.raises(UsageError, match=said):
        other.load_state_dict(optimizer.state_dict())


def test_the_state_of_another_criterion_is_refused() -> None:
    net = model()
    for one, other in ((Staleness(0.9), AutoSwitch(0.9)), (RelativeNorm(),) * 2):
        options: dict[str, Any] = {"betas": (0.9, 0.9)}
        first = sparse_adamw(net, switch=SwitchRule(one, 40, 50), **options)
        train(net, first, 2)
        second = sparse_adamw(net, switch=SwitchRule(other, 40, 50), **options)
        if one is other:
            second.load_state_dict(first.state_dict())
            assert second.steps_taken == 2
            continue
        with pytest.raises(UsageError, match="what 'staleness' remembers"):
            second.load_state_dict(first.state_dict())


def test_a_damaged_state_is_refused() -> None:
    net = model()
    optimizer = sparse_adamw(net, switch=1)
    train(net, optimizer, 2)

    def damaged(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        state = copy.deepcopy(optimizer.state_dict())
        change(state)
        return state

    for change, said in (
        (lambda state: state.clear(), "not of this optimizer"),
        (
            lambda state: state["param_groups"].pop(),
            r"groups of \[2\] parameters, these are of \[2, 2\]",
        ),
        (lambda state: state["state"].pop(0), "lacks .* of parameter 0"),
        (lambda state: state["state"][0].pop("dense"), "lacks 'dense' of parameter 0"),
        (
            lambda state: state["state"][0].update(dense=torch.ones(4, 4)),
            r"'dense' of parameter 0 in the state is \[4, 4\], not \[16, 8\]",
        ),
    ):
        with pytest.raises(UsageError, match=said):
            optimizer.load_state_dict(damaged(change))
    train(net, optimizer, 1)  # nothing was taken over
