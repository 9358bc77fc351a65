"""A state finds its parameters by name, and belongs to the model or is refused."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_training import build, same, train
from torch import nn

from step_cli.errors import UsageError
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.recipes import RECIPES
from step_cli.recipes.decaying import DecayingMask
from step_cli.recipes.sparse_adamw import sparse, sparse_adamw
from step_cli.recipes.t_sr_ste import TSRSTE


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8))


Named = list[tuple[str, nn.Parameter]]


def grouped(named: Named, *, turned: bool, **options: Any) -> list[dict[str, Any]]:
    """The matrices in a sparse group, the vectors in another; or turned."""
    matrices = [pair for pair in named if pair[1].dim() > 1]
    vectors = [pair for pair in named if pair[1].dim() == 1]
    if turned:
        matrices, vectors = matrices[::-1], vectors[::-1]
    groups = [
        {"params": matrices, "pattern": "2:4", "axis": 1, **options},
        {"params": vectors, **options},
    ]
    return groups[::-1] if turned else groups


def made(
    model: nn.Module, *, turned: bool = False, prefix: str = "", **more: Any
) -> Any:
    named = [(prefix + name, p) for name, p in model.named_parameters()]
    groups = grouped(named, turned=turned, **more)
    return sparse_adamw(groups, recipe="step", switch=3, lr=1e-2)


def gone_on(model: nn.Module, optimizer: SparseOptimizer) -> list[torch.Tensor]:
    train(model, optimizer, 4)
    states = [optimizer.state[p] for p in model.parameters()]
    values = [s[key] for s in states for key in ("exp_avg", "exp_avg_sq", "step")]
    return [t.detach().clone() for t in (*model.parameters(), *values)]


@pytest.mark.parametrize("steps", [2, 5], ids=["dense", "sparse"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model."])
@pytest.mark.parametrize("turned", [False, True])
def test_names_tell_which_state_is_whose(steps: int, prefix: str, turned: bool) -> None:
    model = net()
    optimizer = made(model)
    train(model, optimizer, steps)
    other = net(1)
    resumed = made(other, turned=turned, prefix=prefix)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert resumed.steps_taken == steps
    assert resumed.param_groups[0]["param_names"][0].startswith(prefix)
    assert same(gone_on(other, resumed), gone_on(model, optimizer))


@pytest.mark.parametrize("split", ["saved", "loaded"])
def test_groups_may_be_split_otherwise(split: str) -> None:
    def whole(model: nn.Module) -> SparseOptimizer:
        return made(model)

    def apart(model: nn.Module) -> SparseOptimizer:
        groups = grouped(list(model.named_parameters()), turned=True)
        parts = [{**g, "params": [pair]} for g in groups for pair in g["params"]]
        return sparse_adamw(parts, recipe="step", switch=3, lr=1e-2)

    first, second = (apart, whole) if split == "saved" else (whole, apart)
    model, other = net(), net(1)
    optimizer, resumed = first(model), second(other)
    train(model, optimizer, 5)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert same(gone_on(other, resumed), gone_on(model, optimizer))


def test_a_group_cannot_have_the_options_of_two() -> None:
    model = net()
    groups = grouped(list(model.named_parameters()), turned=False)
    first, second = groups[0]["params"]
    parts = [
        {**groups[0], "params": [first], "lr": 0.1},
        {**groups[0], "params": [second]},
        groups[1],
    ]
    saved = sparse_adamw(parts, recipe="ste", lr=0.2)
    with pytest.raises(UsageError, match=r"whose lr differs: 0\.1 and 0\.2"):
        sparse_adamw(groups, recipe="ste").load_state_dict(saved.state_dict())


def test_other_names_are_refused_and_changes_nothing() -> None:
    model = net()
    optimizer = made(model)
    train(model, optimizer, 2)
    for prefix, said in (("a.0.", "lacks"), ("", None)):
        named = [(prefix + n, p) for n, p in model.named_parameters()]
        if prefix:
            named[0] = ("elsewhere", named[0][1])
        groups = grouped(named, turned=False)
        other = sparse_adamw(groups, recipe="step", switch=3)
        if said is None:
            other.load_state_dict(optimizer.state_dict())
            continue
        with pytest.raises(UsageError, match=r"it lacks 'elsewhere' and it has '0\.w"):
            other.load_state_dict(optimizer.state_dict())
        assert other.steps_taken == 0


def test_another_pattern_of_one_name_is_refused() -> None:
    def of(pattern: str, *, turned: bool) -> SparseOptimizer:
        groups = grouped(list(net().named_parameters()), turned=turned)
        (chosen,) = (group for group in groups if "pattern" in group)
        chosen["pattern"] = pattern
        return sparse_adamw(groups, recipe="ste")

    state = of("1:4", turned=False).state_dict()
    with pytest.raises(UsageError, match=r"weight: .*saved for 1:4 along axis 1"):
        of("2:4", turned=True).load_state_dict(state)


def test_without_names_places_tell_as_ever() -> None:
    found = []
    for nameless in (False, True):
        model = net()
        optimizer = made(model)
        train(model, optimizer, 5)
        state = copy.deepcopy(optimizer.state_dict())
        for group in state["param_groups"] if nameless else ():
            del group["param_names"]
        other = net(1)
        resumed = made(other)
        other.load_state_dict(model.state_dict())
        resumed.load_state_dict(state)
        assert resumed.param_groups[0]["param_names"] == ["0.weight", "2.weight"]
        found.append(gone_on(other, resumed))
    assert same(*found)


# --------------------------------------------------------- does it belong to the model


@pytest.mark.parametrize("steps", [2, 6])
@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "dense"])
def test_a_model_of_another_file_is_refused(recipe: str, steps: int) -> None:
    model, optimizer = build(recipe, steps=20, switch=4)
    train(model, optimizer, steps)
    early = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    torch.manual_seed(1)  # of recipes that sample
    train(model, optimizer, 2)
    late = model.state_dict()
    other, resumed = build(recipe, steps=20, switch=4)
    train(other, resumed, 1)
    other.load_state_dict(late)
    with pytest.raises(UsageError, match=r"0\.weight: .* do not belong together"):
        resumed.load_state_dict(early[1])
    assert resumed.steps_taken == 1  # nothing was taken over
    other.load_state_dict(early[0])
    resumed.load_state_dict(early[1])
    torch.manual_seed(1)
    train(other, resumed, 2)
    assert same(list(other.parameters()), list(late.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("built_last", [True, False])
def test_a_model_loaded_before_its_optimizer_is_built_may_end_dense(
    built_last: bool, dtype: torch.dtype
) -> None:
    """Building prunes it, though where the state was saved it is dense again."""

    def built(model: nn.Module) -> SparseOptimizer:
        recipe = TSRSTE(finish="dense", mvue="off")
        return sparse_adamw(model, recipe=recipe, total_steps=6, lr=1e-2)

    def trained(model: nn.Module, optimizer: SparseOptimizer, seed: int) -> None:
        torch.manual_seed(seed)
        model(torch.randn(8, 16, dtype=dtype)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    model = net().to(dtype)
    optimizer = built(model)
    for step in range(5):
        trained(model, optimizer, step)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    trained(model, optimizer, 5)
    other = net(1).to(dtype)
    if built_last:
        other.load_state_dict(saved[0])
    resumed = built(other)
    with pytest.raises(UsageError, match="do not belong together"):
        built(net(1).to(dtype)).load_state_dict(saved[1])
    if not built_last:
        other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert same(list(other.parameters()), list(saved[0].values()))
    trained(other, resumed, 5)
    assert same(list(other.parameters()), list(model.parameters()))


def test_a_layer_that_waits_for_its_gradient_is_taken_where_it_trains() -> None:
    model = net()
    model[2].requires_grad_(False)
    optimizer = sparse_adamw(model, recipe="ste", lr=1e-2)
    train(model, optimizer, 2)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other = net(1)
    other.load_state_dict(saved[0])
    resumed = sparse_adamw(other, recipe="ste", lr=1e-2)
    resumed.load_state_dict(saved[1])
    assert same(list(other.parameters()), list(saved[0].values()))
    model[2].requires_grad_(True)
    train(model, optimizer, 2)
    train(other, resumed, 2)
    assert same(list(other.parameters()), list(model.parameters()))


def test_a_state_without_its_model_is_refused() -> None:
    model, optimizer = build("ste")
    train(model, optimizer, 2)
    _, resumed = build("ste")
    with pytest.raises(UsageError, match="load it first"):
        resumed.load_state_dict(optimizer.state_dict())


def test_a_refused_state_leaves_an_optimizer_that_goes_on() -> None:
    model, optimizer = build("ste")
    other, twin = build("ste")
    train(other, twin, 4)
    train(model, optimizer, 2)
    with pytest.raises(UsageError, match="belong together"):
        optimizer.load_state_dict(twin.state_dict())
    train(model, optimizer, 2)
    assert same(list(model.parameters()), list(other.parameters()))


def test_its_own_state_is_taken_when_the_model_was_changed_and_the_step_says_so() -> (
    None
):
    """As accelerate does, which wraps the model and reloads the optimizer."""
    model, optimizer = build("ste")
    train(model, optimizer, 1)
    model.load_state_dict(net(3).state_dict())
    with pytest.raises(UsageError, match="do not belong together"):
        optimizer.load_state_dict(optimizer.state_dict())  # not once it has learned
    model, optimizer = build("ste")
    model.load_state_dict(net(3).state_dict())
    optimizer.load_state_dict(optimizer.state_dict())
    with pytest.raises(UsageError, match="behind the optimizer's back"):
        train(model, optimizer, 1)
    optimizer.zero_grad()
    optimizer.adopt()
    train(model, optimizer, 1)
    other = net(3)
    expected = sparse_adamw(other, recipe="ste", lr=1e-2)
    train(other, expected, 1)
    assert same(list(model.parameters()), list(other.parameters()))


# ------------------------------------------------------------------------------- hooks


def test_hooks_see_what_torch_documents() -> None:
    """One may exchange the state before it is judged, one sees all when it is done."""
    model, optimizer = build("ste")
    train(model, optimizer, 3)
    state = {"mine": optimizer.state_dict()}
    other, resumed = build("ste")
    other.load_state_dict(model.state_dict())
    seen: list[Any] = []
    resumed.register_load_state_dict_pre_hook(lambda _, given: given["mine"])
    resumed.register_load_state_dict_pre_hook(lambda _, given: seen.append(set(given)))
    resumed.register_load_state_dict_post_hook(
        lambda mine: seen.append(
            (mine.steps_taken, mine.state[other[0].weight]["step"])
        )
    )
    resumed.load_state_dict(state)
    assert seen == [{"state", "param_groups"}, (3, torch.tensor(3.0))]
    assert set(state) == {"mine"}
    train(other, resumed, 1)


def test_hooks_of_state_dict_see_the_whole_state() -> None:
    model, optimizer = build("step", switch=5)
    train(model, optimizer, 2)
    seen: list[Any] = []
    optimizer.register_state_dict_pre_hook(lambda _: seen.append("before"))

    def after(_: Any, packed: dict[str, Any]) -> dict[str, Any]:
        assert packed["state"][0]["dense"].data_ptr() != model[0].weight.data_ptr()
        seen.append("after")
        return {**packed, "more": 1}

    optimizer.register_state_dict_post_hook(after)
    assert optimizer.state_dict()["more"] == 1
    assert seen == ["before", "after"]


# -------------------------------------------------------------------- lengths, numbers


@pytest.mark.parametrize("recipe", ["step", "decaying-mask", "mask-decay"])
@pytest.mark.parametrize("longer", [20, 40])
def test_the_length_is_the_one_the_optimizer_was_built_with(
    recipe: str, longer: int
) -> None:
    model, optimizer = build(recipe, steps=20, switch=2)
    train(model, optimizer, 12)
    other, resumed = build(recipe, steps=longer, switch=2)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.state_dict()["param_groups"][0]["total_steps"] == longer
    train(other, resumed, 7)
    train(model, optimizer, 7)
    alike = same(list(model.parameters()), list(other.parameters()))
    assert alike == (longer == 20 or recipe == "step")


def test_a_length_that_was_not_given_is_the_states() -> None:
    model, optimizer = build("ste", steps=20)
    other, resumed = build("ste")
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.param_groups[0]["total_steps"] == 20


@pytest.mark.parametrize("kind", [int, np.int64, np.int32, torch.tensor])
def test_any_whole_number_is_a_number_of_steps(kind: Callable[[int], Any]) -> None:
    optimizer = sparse_adamw(net(), total_steps=kind(10), switch=kind(3))
    assert type(optimizer.param_groups[0]["total_steps"]) is int
    assert optimizer.rule is not None and optimizer.rule.criterion.name == "fixed"


def test_options_of_recipes_take_them_too() -> None:
    for kind in (int, np.int64, np.uint8):
        recipe = DecayingMask(dense=kind(1), fine_tune=kind(2))
        assert type(recipe.dense) is int and recipe.dense == 1  # no share: all steps
    assert TSRSTE(refresh_steps=np.int64(3)).refresh_steps == 3
    with pytest.raises(UsageError, match="refresh_steps"):
        TSRSTE(refresh_steps=np.float64(3.5))


def test_a_switch_that_is_no_whole_number_is_said_to_be_none() -> None:
    for wrong in (torch.tensor(3.5), np.float64(3), True):
        with pytest.raises(UsageError, match="neither a step nor a criterion"):
            sparse_adamw(net(), total_steps=10, switch=wrong)


@pytest.mark.parametrize("wrong", [True, 10.0, np.float64(10), "10", np.int64(0), -1])
def test_nothing_else_is(wrong: Any) -> None:
    with pytest.raises(UsageError, match="is not a number of steps"):
        sparse_adamw(net(), total_steps=wrong, switch=3)
    base = torch.optim.SGD([{"params": list(net().parameters())[:1],
                             "pattern": "2:4", "axis": 1}], lr=0.1)  # fmt: skip
    with pytest.raises(UsageError, match="is not a number of steps"):
        sparse(base, "ste", total_steps=wrong)


# --------------------------------------------------------------- a scheduler made early


Schedulers = Callable[[torch.optim.Optimizer], Any]
MAKE: list[Schedulers] = [
    lambda base: torch.optim.lr_scheduler.LambdaLR(base, lambda t: 1 / (1 + t)),
    lambda base: torch.optim.lr_scheduler.OneCycleLR(base, 0.1, total_steps=20),
]


@pytest.mark.parametrize("make", MAKE)
def test_a_scheduler_made_before_its_groups_are_split_is_refused(
    make: Schedulers,
) -> None:
    base = torch.optim.SGD(net().named_parameters(), lr=0.1, momentum=0.9)
    make(base)
    with pytest.raises(UsageError, match=r"make the scheduler after sparse\(\)"):
        sparse(base, "ste")
    assert len(base.param_groups) == 1


@pytest.mark.parametrize("make", MAKE)
def test_one_whose_groups_stay_goes_on(make: Schedulers) -> None:
    found = []
    for early in (False, True):
        model = net()
        groups = grouped(list(model.named_parameters()), turned=False)
        base = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        scheduler = make(base) if early else None
        optimizer = sparse(base, "ste")
        scheduler = scheduler or make(optimizer)
        for _ in range(5):
            train(model, optimizer, 1)
            scheduler.step()
        found.append([p.detach() for p in model.parameters()])
    assert same(*found)
