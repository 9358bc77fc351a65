"""Uses that plain AdamW survives, or that deserve one clear line."""

import copy
import pickle

import pytest
import torch
from torch import nn

from step_cli.core.autoswitch import AutoSwitch
from step_cli.core.optimizer import SparseOptimizer
from step_cli.errors import UsageError
from step_cli.optimizers import sparse, sparse_adamw
from step_cli.recipes.ste import STE


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
