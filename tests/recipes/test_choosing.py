"""The types of modules choose, however parameters are given; what is left is told."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import step_cli
from step_cli.errors import NothingSelectedError, UsageError
from step_cli.optim.optimizer import SparseOptimizer


class Zoo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 8)
        self.shared = nn.Linear(8, 8)
        self.embedding_net = nn.Sequential(nn.Linear(8, 8))
        self.norm = nn.LayerNorm(8)
        self.up = nn.ConvTranspose1d(8, 8, 2)
        self.cell = nn.LSTMCell(8, 4)
        self.gate = nn.GRUCell(8, 4)
        self.both = nn.Bilinear(8, 8, 4)


CHOSEN = {
    "shared.weight", "embedding_net.0.weight", "cell.weight_ih", "cell.weight_hh",
    "gate.weight_ih", "gate.weight_hh", "both.weight",
}  # fmt: skip


def sparse_names(optimizer: SparseOptimizer, model: nn.Module) -> set[str]:
    names = {p: name for name, p in model.named_parameters()}
    return {names[p] for p, _ in optimizer.sparse_parameters()}


def no_decay(name: str) -> bool:
    return name.endswith("bias") or "norm" in name


def bare_groups(model: nn.Module) -> list[Any]:
    """As Trainer makes them."""
    each = list(model.named_parameters())
    return [
        {"params": [p for n, p in each if not no_decay(n)], "weight_decay": 0.1},
        {"params": [p for n, p in each if no_decay(n)], "weight_decay": 0.0},
    ]


def named_groups(model: nn.Module) -> list[Any]:
    each = list(model.named_parameters())
    return [
        {"params": [(n, p) for n, p in each if not no_decay(n)], "weight_decay": 0.1},
        {"params": ((n, p) for n, p in each if no_decay(n)), "weight_decay": 0.0},
    ]


WAYS: list[Callable[[nn.Module], Any]] = [
    bare_groups,
    named_groups,
    lambda model: model.parameters(),
    lambda model: model.named_parameters(),
]


@pytest.mark.parametrize("give", WAYS)
def test_the_types_choose_however_parameters_are_given(
    give: Callable[[nn.Module], Any],
) -> None:
    model = Zoo()
    alone = step_cli.sparse_adamw(model, recipe="ste")
    assert sparse_names(alone, model) == CHOSEN
    given = step_cli.sparse_adamw(give(model), recipe="ste", model=model)
    assert sparse_names(given, model) == CHOSEN
    base = torch.optim.SGD(give(model), lr=0.1)
    assert sparse_names(step_cli.sparse(base, "sr-ste", model=model), model) == CHOSEN
    for group in given.param_groups:
        decays = {no_decay(name) for name in group["param_names"]}
        assert give not in WAYS[:2] or decays == {group["weight_decay"] == 0.0}


def test_a_function_of_names_gives_options_to_groups() -> None:
    model = Zoo()

    def options(name: str) -> dict[str, Any] | None:
        if no_decay(name):
            return {"weight_decay": 0.0}
        return {"lr": 1e-4} if name.startswith("cell") else None

    optimizer = step_cli.sparse_adamw(
        model, recipe="ste", groups=options, lr=1e-3, weight_decay=0.1
    )
    found = {
        name: (group["lr"], group["weight_decay"], group.get("pattern"))
        for group in optimizer.param_groups
        for name in group["param_names"]
    }
    assert found.keys() == {name for name, _ in model.named_parameters()}
    assert found["shared.bias"] == found["norm.weight"] == (1e-3, 0.0, None)
    assert found["cell.weight_ih"] == (1e-4, 0.1, "2:4")
    assert found["shared.weight"] == (1e-3, 0.1, "2:4")
    assert found["table.weight"] == (1e-3, 0.1, None)
    assert sparse_names(optimizer, model) == CHOSEN


def test_a_group_may_have_a_pattern_of_its_own_or_none() -> None:
    model = Zoo()
    wishes: dict[str, dict[str, Any]] = {
        "shared.weight": {"pattern": "1:4"},
        "both.weight": {"pattern": None},
        "up.weight": {"pattern": "2:4", "axis": 0},
        "norm.bias": {"pattern": "1:4"},  # nothing there can hold it
    }
    optimizer = step_cli.sparse_adamw(model, recipe="ste", groups=wishes.get)
    names = {p: name for name, p in model.named_parameters()}
    found = {
        names[p]: (str(s.pattern), s.axis) for p, s in optimizer.sparse_parameters()
    }
    assert found == {
        **dict.fromkeys(CHOSEN - {"both.weight"}, ("2:4", 1)),
        "shared.weight": ("1:4", 1),
        "up.weight": ("2:4", 0),
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"groups": lambda name: {"weight_decy": 0.0}}, "did you mean weight_decay"),
        ({"groups": lambda name: {"params": []}}, "'params' is no option of a group"),
        ({"groups": lambda name: 0.0}, "return a dict of options"),
        ({"model": nn.Linear(4, 4)}, "beside parameters, not beside a module"),
    ],
)
def test_wrong_options_of_groups_are_refused(
    arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        step_cli.sparse_adamw(Zoo(), recipe="ste", **arguments)
    step_cli.sparse_adamw(Zoo(), recipe="ste", groups=lambda name: {"lr_scale": 0.5})


def test_groups_and_models_that_do_not_belong_together_are_refused() -> None:
    model = Zoo()
    with pytest.raises(UsageError, match="groups: it goes beside a module"):
        step_cli.sparse_adamw(model.named_parameters(), groups=lambda name: {})
    with pytest.raises(UsageError, match="none of the optimizer's parameters"):
        step_cli.sparse_adamw(model.parameters(), recipe="ste", model=Zoo())
    with pytest.raises(UsageError, match="bare parameters have no names"):
        step_cli.sparse_adamw(bare_groups(model), recipe="ste")
    with pytest.raises(UsageError, match="bare parameters have no names"):
        step_cli.sparse(torch.optim.SGD(bare_groups(model), lr=0.1), "sr-ste")


def test_parameters_of_another_module_stay_dense() -> None:
    model, head = nn.Linear(8, 8), nn.Linear(8, 8)
    params = [*model.parameters(), *head.parameters()]
    optimizer = step_cli.sparse_adamw(params, recipe="ste", model=model)
    assert [p for p, _ in optimizer.sparse_parameters()] == [model.weight]
    assert sum(len(g["params"]) for g in optimizer.param_groups) == 4


def test_a_scheduler_of_groups_that_are_split_is_refused() -> None:
    model = Zoo()
    base = torch.optim.SGD(model.named_parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(base, 5)
    with pytest.raises(UsageError, match=r"make the scheduler after sparse\(\)"):
        step_cli.sparse(base, "sr-ste", model=model)


# -------------------------------------------------------------------- what is told


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_what_stays_dense_is_told_once_with_reason_and_share(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Zoo()
    nn.utils.parametrizations.weight_norm(model.shared)
    nn.utils.parametrizations.spectral_norm(model.embedding_net[0])
    model.cell.requires_grad_(False)
    model.odd = nn.Linear(6, 4)
    model.raw = nn.Parameter(torch.ones(4, 4))
    step_cli.sparse_adamw(model, recipe="ste")
    (said,) = warnings(caplog)
    every = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    chosen = model.gate.weight_ih.numel() * 1.5 + model.both.weight.numel()
    share = 100 * (1 - chosen / every)
    assert said.startswith(f"{share:.1f} % of all layer weights stay dense; ")
    for words in (
        f"table.weight stays dense: an embedding ({100 * 128 / every:.1f} %)",
        "up.weight stays dense: of a transposed convolution",
        "shared.parametrizations.weight.original1, "
        "embedding_net.0.parametrizations.weight.original stay dense: its module comp",
        "cell.weight_ih, cell.weight_hh stay dense: its requires_grad is False",
        "odd.weight stays dense: shape [4, 6] has no whole groups",
        "raw, shared.parametrizations.weight.original0 stay dense: nothing tells that ",
    ):
        assert words in said
    assert "\n" not in said


def test_nothing_is_told_where_nothing_stays_dense(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    step_cli.sparse_adamw(model, recipe="ste")
    step_cli.sparse_adamw(model.parameters(), recipe="ste", model=model)
    assert warnings(caplog) == []


def test_names_alone_are_told_to_be_that(caplog: pytest.LogCaptureFixture) -> None:
    model = Zoo()
    optimizer = step_cli.sparse_adamw(model.named_parameters(), recipe="ste")
    (said,) = warnings(caplog)
    assert "no module was given: give model=" in said
    assert "table.weight" in sparse_names(optimizer, model)  # which is an embedding


def test_groups_marked_by_hand_are_as_they_say() -> None:
    model = Zoo()
    hand = {"params": [model.table.weight], "pattern": "1:4", "axis": 1}
    rest = [p for n, p in model.named_parameters() if n != "table.weight"]
    alone = step_cli.sparse_adamw([hand, {"params": rest}], recipe="ste")
    assert sparse_names(alone, model) == {"table.weight"}
    beside = step_cli.sparse_adamw([hand, {"params": rest}], recipe="ste", model=model)
    assert sparse_names(beside, model) == CHOSEN | {"table.weight"}
    off = {"params": rest, "pattern": None}
    kept = step_cli.sparse_adamw([hand, off], recipe="ste", model=model)
    assert sparse_names(kept, model) == {"table.weight"}


def test_layers_that_were_not_given_are_told(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    step_cli.sparse_adamw(model[0].parameters(), recipe="ste", model=model)
    assert warnings(caplog) == [
        "50.0 % of all layer weights stay dense; 1.weight stays dense: it was not "
        "given to the optimizer (50.0 %)"
    ]


def test_packed_codes_in_buffers_are_told(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Module())
    model[1].register_buffer("qweight", torch.ones(8, 8, dtype=torch.int32))
    step_cli.sparse_adamw(model, recipe="ste")
    assert "1.qweight stays dense: it holds several codes" in warnings(caplog)[0]


# ------------------------------------------------------------------------- adapters


class Adapted(nn.Module):
    """As peft wraps a Linear."""

    def __init__(self, rank: int = 4) -> None:
        super().__init__()
        self.base_layer = nn.Linear(8, 8)
        self.base_layer.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(8, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, 8, bias=False)})


class Wrapping(nn.Module):
    """Under other names: what lies beside a `base_layer` is added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(8, 8).requires_grad_(False)
        self.down = nn.Linear(8, 4)


@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize("named", [True, False])
def test_adapters_of_a_dense_base_are_refused(rank: int, named: bool) -> None:
    model = nn.Sequential(Adapted(rank), nn.Linear(8, 8))
    given = model.named_parameters() if named else model
    with pytest.raises(UsageError, match=r"is an adapter.*merge_and_unload"):
        step_cli.sparse_adamw(given, recipe="ste")
    with pytest.raises(UsageError, match=r"down\.weight is an adapter"):
        step_cli.sparse_adamw(Wrapping(), recipe="ste")


def test_adapters_that_are_marked_by_hand_and_merged_ones_are_taken() -> None:
    model = Adapted()
    down = model.lora_A["default"].weight
    group = {"params": [down], "pattern": "2:4", "axis": 1}
    assert step_cli.sparse_adamw([group], recipe="ste").phase == "mask-learning"
    merged = model.base_layer.requires_grad_(True)
    step_cli.sparse_adamw(nn.Sequential(merged), recipe="ste")


def test_nothing_to_choose_is_refused() -> None:
    model = nn.Sequential(nn.Embedding(4, 8), nn.LayerNorm(8))
    for options in ({}, {"model": model}):
        given = model.named_parameters() if options else model
        with pytest.raises(NothingSelectedError, match="no layer of the model can"):
            step_cli.sparse_adamw(given, recipe="ste", **options)
