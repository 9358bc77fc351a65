"""What every recipe promises, whichever it is."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from step_cli.errors import UsageError
from step_cli.optim.mask import count_violations
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.recipes import RECIPES, make_recipe
from step_cli.recipes.bi_mask import BiMask
from step_cli.recipes.decaying import DecayingMask, MaskDecay
from step_cli.recipes.domino_search import DominoSearch
from step_cli.recipes.s_ste import SSTE
from step_cli.recipes.sparse_adamw import sparse_adamw
from step_cli.recipes.sr_ste import SRSTE
from step_cli.recipes.step import Step
from step_cli.recipes.t_sr_ste import TSRSTE

STEPS, SWITCH = 8, 3


def build(recipe: str, pattern: str = "2:4") -> tuple[nn.Module, SparseOptimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    optimizer = sparse_adamw(model, pattern, recipe, STEPS, SWITCH, lr=1e-2)
    return model, optimizer


def train(model: nn.Module, optimizer: SparseOptimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        inputs = torch.randn(8, 8, generator=generator)
        labels = torch.randint(0, 4, (8,), generator=generator)
        functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_end_result_holds_the_pattern_or_is_dense(recipe: str) -> None:
    model, optimizer = build(recipe)
    train(model, optimizer, STEPS)
    plans = list(optimizer.sparse_parameters())
    broken = sum(count_violations(p, plan.pattern, plan.axis) for p, plan in plans)
    assert (broken > 0) == (recipe == "dense")
    kept = sum(p.numel() * plan.pattern.density for p, plan in plans)
    assert kept <= sum(p.numel() for p, _ in plans) / 2


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_pattern_that_keeps_all_trains_as_adamw_while_v_is_learned(
    recipe: str,
) -> None:
    model, optimizer = build(recipe, "4:4")
    reference, _ = build("dense")
    adamw = torch.optim.AdamW(reference.parameters(), lr=1e-2)
    steps = SWITCH if recipe == "step" else STEPS
    train(model, optimizer, steps)
    train(reference, adamw, steps)  # type: ignore[arg-type]
    pairs = zip(model.parameters(), reference.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_loss_falls(recipe: str) -> None:
    model, optimizer = build(recipe)
    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(2))
    labels = (inputs[:, 0] > 0).long()

    def loss() -> torch.Tensor:
        return functional.cross_entropy(model(inputs), labels)

    before = loss().item()
    for _ in range(60):
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss().item() < 0.5 * before


@pytest.mark.parametrize("recipe", RECIPES)
def test_names_and_shapes_of_the_model_stay(recipe: str) -> None:
    model, optimizer = build(recipe)
    before = {name: value.shape for name, value in model.state_dict().items()}
    train(model, optimizer, 5)
    assert {n: value.shape for n, value in model.state_dict().items()} == before


def test_step_hands_its_options_to_the_recipe_inside() -> None:
    recipe = make_recipe("step", {"inner": "sr-ste", "decay": 1e-3})
    assert recipe == Step(inner=SRSTE(decay=1e-3))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("stepp", {}, "did you mean step"),
        ("sr-ste", {"decy": 1}, "did you mean decay"),
        ("ste", {"decay": 1}, "has no option 'decay'"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(
    name: str, options: dict[str, float], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        make_recipe(name, options)


WRONG: list[tuple[Any, str, dict[str, Any]]] = [
    (SSTE, "s-ste", {"mvue": "nonsense"}),
    (MaskDecay, "mask-decay", {"schedule": "foo"}),
    (MaskDecay, "mask-decay", {"rate": float("inf")}),
    (DecayingMask, "decaying-mask", {"structure": "foo"}),
    (DecayingMask, "decaying-mask", {"dense": 1.5}),
    (DominoSearch, "domino-search", {"density": 0.0}),
    (TSRSTE, "t-sr-ste", {"finish": "foo"}),
    (TSRSTE, "t-sr-ste", {"refresh_steps": 0}),
    (BiMask, "bi-mask", {"candidates": 0}),
    (SRSTE, "sr-ste", {"decay": -1}),
    (SRSTE, "sr-ste", {"decay": float("nan")}),
    (Step, "step", {"learn_variance": "perhaps"}),
]


@pytest.mark.parametrize(("kind", "name", "options"), WRONG)
def test_a_wrong_value_is_refused_in_one_line_however_it_is_given(
    kind: Any, name: str, options: dict[str, Any]
) -> None:
    (option,) = options
    for make in (lambda: kind(**options), lambda: make_recipe(name, options)):
        with pytest.raises(UsageError, match=option) as caught:
            make()
        assert "\n" not in caught.value.message


def test_a_name_is_no_recipe_inside_a_constructor() -> None:
    inner: Any = "sr-ste"
    with pytest.raises(UsageError, match=r"inner: .* got 'sr-ste'"):
        Step(inner=inner)


def test_right_values_are_taken_as_their_type() -> None:
    assert SRSTE(decay=0) == SRSTE(decay=0.0)
    assert isinstance(SRSTE(decay=0).decay, float)
    assert DecayingMask(dense=3).dense == 3  # steps, not a share
    assert isinstance(DecayingMask(dense=3).dense, int)
    assert TSRSTE(refresh_steps=1, finish="dense") == make_recipe(
        "t-sr-ste", {"refresh_steps": 1, "finish": "dense"}
    )
