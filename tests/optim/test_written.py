"""What others write into the model is found, and never undone without a word."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_training import build, same, train
from torch import Tensor, nn

from step_cli.errors import UsageError
from step_cli.optim import watch, written
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.recipes import RECIPES
from step_cli.recipes.sparse_adamw import sparse, sparse_adamw

BEHIND = "behind the optimizer's back"
SPARSE = [name for name in RECIPES if name != "dense"]


def trained(recipe: str, **more: Any) -> tuple[nn.Sequential, SparseOptimizer]:
    model, optimizer = build(recipe, steps=20, switch=2, **more)
    train(model, optimizer, 5)
    return model, optimizer


def clip(model: nn.Module, bound: float = 0.05) -> None:
    """Without a trace: ``.data`` has a version counter of its own."""
    for p in model.parameters():
        before = p._version
        p.data.clamp_(-bound, bound)
        assert p._version == before


@pytest.mark.parametrize("recipe", SPARSE)
def test_clipping_through_data_is_refused_at_once(recipe: str) -> None:
    model, optimizer = trained(recipe)
    clip(model)
    held = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(UsageError, match=rf"0\.weight was changed {BEHIND}"):
        train(model, optimizer, 1)
    assert same(held, [p.detach() for p in model.parameters()])
    assert optimizer.steps_taken == 5


@pytest.mark.parametrize("recipe", SPARSE)
def test_a_model_that_is_left_alone_is_never_refused(recipe: str) -> None:
    model, optimizer = trained(recipe)
    train(model, optimizer, 15)
    with optimizer.dense_weights():
        model(torch.ones(1, 16))
    train(model, optimizer, 2)


def test_what_the_message_names_mends_it() -> None:
    model, optimizer = trained("ste")
    clip(model)
    with pytest.raises(UsageError) as said:
        train(model, optimizer, 1)
    for way in ("dense_weights(write=True)", "adopt()", "is lost"):
        assert way in str(said.value)
    optimizer.zero_grad()
    optimizer.adopt()
    dense = optimizer.state[model[0].weight]["dense"]
    assert float(dense.abs().max()) == pytest.approx(0.05)
    assert torch.equal(dense, model[0].weight)  # and zero where it was pruned
    train(model, optimizer, 2)


def test_a_view_does_not_take_a_change_for_its_own() -> None:
    model, optimizer = trained("ste")
    clip(model)
    with pytest.raises(UsageError, match=BEHIND), optimizer.sparse_weights():
        pass


def test_a_dense_phase_has_one_copy_that_anyone_may_clip() -> None:
    model, optimizer = build("step", switch=6)
    other, plain = build("step", switch=6)
    for _ in range(4):
        train(model, optimizer, 1)
        clip(model)
        train(other, plain, 1)
        with torch.no_grad():
            for p in other.parameters():
                p.clamp_(-0.05, 0.05)
    assert same(list(model.parameters()), list(other.parameters()))


@pytest.mark.parametrize("change", [clip, lambda model: model[2].weight.data.mul_(2)])
def test_a_large_model_is_compared_in_turn(
    change: Callable[[nn.Module], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(written, "AT_LEAST", 16)
    monkeypatch.setattr(written, "TURNS", 8)
    model, optimizer = trained("ste")
    assert sum(b.values.numel() for b in optimizer._finite.written._batches) == 48
    train(model, optimizer, 9)  # a whole turn of nothing
    with pytest.raises(UsageError, match=BEHIND):
        for _ in range(8):
            change(model)
            train(model, optimizer, 1)


def test_one_value_is_found_when_its_turn_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(written, "AT_LEAST", 16)
    monkeypatch.setattr(written, "TURNS", 8)
    model, optimizer = trained("ste")
    said = 0
    for _ in range(8):
        model[0].weight.data[0, 0] = 7.0
        try:
            train(model, optimizer, 1)
        except UsageError:
            said += 1
            break
    assert said == 1


def test_what_a_device_has_counted_late_is_named_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arrived = False
    monkeypatch.setattr(watch._Reading, "arrived", property(lambda _: arrived))
    model, optimizer = trained("ste")
    model[2].weight.data[1, 2] = 9.0
    train(model, optimizer, 2)  # nothing waits for it
    arrived = True
    train(model, optimizer, 1)  # a count from before
    with pytest.raises(UsageError, match=r"2\.weight was changed behind"):
        train(model, optimizer, 1)


def test_weights_loaded_through_data_into_a_new_optimizer_are_found() -> None:
    model, optimizer = build("ste")
    optimizer._finite.written._batches = []  # as if its turn were later
    model[2].weight.data.copy_(torch.randn(8, 16))
    with pytest.raises(UsageError, match=r"2\.weight was changed behind"):
        train(model, optimizer, 1)


def test_the_phase_that_begins_is_compared_wholly() -> None:
    model, optimizer = build("step", switch=3)
    train(model, optimizer, 3)
    optimizer._finite.written._batches = []
    model[0].weight.data[1, 2] = 9.0
    with pytest.raises(UsageError, match=r"0\.weight was changed behind"):
        train(model, optimizer, 1)


# ----------------------------------------------------------------- written on purpose


@pytest.mark.parametrize("recipe", SPARSE)
def test_what_is_written_is_what_the_next_step_starts_from(recipe: str) -> None:
    model, optimizer = trained(recipe)
    layers = [model[0].weight, model[2].weight]
    before = [optimizer.state[p]["dense"].clone() for p in layers]
    with torch.no_grad(), optimizer.dense_weights(write=True):
        assert same(before, layers)
        for p in layers:
            p.mul_(2)
    dense = [optimizer.state[p]["dense"] for p in layers]
    assert same(dense, [2 * each for each in before])
    with optimizer.dense_weights():
        assert same(dense, layers)
    other, resumed = build(recipe, steps=20, switch=2)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(optimizer.state_dict())  # which compares them
    train(model, optimizer, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("switch", [2, 50], ids=["sparse", "dense"])
@pytest.mark.parametrize("recipe", ["step", "asp"])
def test_what_is_written_to_the_dense_weights_is_kept(
    recipe: str, switch: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8)).to(dtype)
    optimizer = sparse_adamw(model, recipe=recipe, switch=switch, lr=1e-2)

    def step() -> None:
        model(torch.ones(2, 16, dtype=dtype)).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(4):
        step()
    layers = [model[0].weight, model[2].weight]
    before = [optimizer.state[p]["dense"].detach().clone() for p in layers]
    with optimizer.dense_weights(write=True):
        for p in model.parameters():
            p.data.clamp_(-0.1, 0.1)
    bound = torch.tensor(0.1, dtype=dtype).float()
    for p, dense in zip(layers, before, strict=True):
        now = optimizer.state[p]["dense"]
        clipped = dense.to(dtype).abs() > bound
        assert bool(clipped.any()) and not bool(clipped.all())
        assert torch.equal(now[~clipped], dense[~clipped])  # every bit of it
        torch.testing.assert_close(
            now[clipped].abs(), torch.full_like(now[clipped], float(bound))
        )
        if switch == 2:
            groups = p.detach().reshape(-1, 4)
            assert int((groups != 0).sum(1).max()) <= 2
    step()


def test_a_change_inside_a_view_is_said_and_ends_with_it() -> None:
    model, optimizer = trained("ste")
    held = [p.detach().clone() for p in model.parameters()]
    for view in (optimizer.dense_weights, optimizer.sparse_weights):
        said = pytest.raises(UsageError, match=r"0\.weight was changed inside a view")
        with said, view():
            model[0].weight.detach().add_(1)
        assert same(held, list(model.parameters()))
    with pytest.raises(KeyError, match="theirs"), optimizer.dense_weights(write=True):
        model[0].weight.detach().add_(1)
        raise KeyError("theirs")
    assert same(held, list(model.parameters()))
    train(model, optimizer, 1)


def test_a_view_of_a_dense_phase_tells_too() -> None:
    model, optimizer = build("step", switch=9)
    train(model, optimizer, 2)
    for view in (optimizer.dense_weights, optimizer.sparse_weights):
        with view():
            model(torch.ones(1, 16))
        with pytest.raises(UsageError, match="changed inside a view"), view():
            model[2].weight.detach().add_(1)


# ---------------------------------------------------- bases that hold their own groups


class Lookahead(torch.optim.Optimizer):
    """As the usual ones: an inner optimizer, whose groups it shows as its own."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__(inner.param_groups, inner.defaults)
        self.inner, self.count = inner, 0
        self.slow = [
            p.detach().clone() for g in inner.param_groups for p in g["params"]
        ]

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.inner.step()
        self.count += 1
        if self.count % 5 == 0:
            fast = [p for g in self.inner.param_groups for p in g["params"]]
            for p, slow in zip(fast, self.slow, strict=True):
                slow.lerp_(p.detach(), 0.5)
                p.data.copy_(slow)


class Follows(torch.optim.Optimizer):
    """A thin wrapper such as accelerate's, which hands everything on."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.__dict__["inner"] = inner
        super().__init__(inner.param_groups, inner.defaults)

    param_groups = property(
        lambda self: self.inner.param_groups,
        lambda self, groups: setattr(self.inner, "param_groups", groups),
    )
    state = property(
        lambda self: self.inner.state,
        lambda self, state: setattr(self.inner, "state", state),
    )

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.inner.step()


class Hoarder(torch.optim.SGD):
    """It keeps the parameters it was built with, and writes to those."""

    def __init__(self, params: Any, *, by_data: bool, lr: float = 0.1) -> None:
        super().__init__(params, lr=lr)
        self.mine = [p for group in self.param_groups for p in group["params"]]
        self.by_data = by_data

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for p in self.mine:
            if p.grad is not None:
                (p.data if self.by_data else p).sub_(p.grad, alpha=0.1)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8))


@pytest.mark.parametrize("recipe", ["sr-ste", "asp"])
def test_a_base_that_wraps_another_is_refused_and_says_which(recipe: str) -> None:
    base = Lookahead(torch.optim.AdamW(net().named_parameters(), lr=1e-2))
    with pytest.raises(UsageError, match=r"Lookahead wraps AdamW.*give sparse\(\) the"):
        sparse(base, recipe)


def test_a_wrapper_that_hands_everything_on_trains_as_what_it_wraps() -> None:
    found = []
    for wrap in (Follows, lambda base: base):
        model = net()
        base = torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)
        optimizer = sparse(wrap(base), "ste")
        train(model, optimizer, 20)
        found.append([p.detach() for p in model.parameters()])
    assert same(*found)


def test_lookahead_around_a_dense_recipe_is_its_own_affair() -> None:
    model = net()
    base = Lookahead(torch.optim.AdamW(model.named_parameters(), lr=1e-2))
    before = model[0].weight.detach().clone()
    train(model, sparse(base, "dense"), 6)
    assert not torch.equal(model[0].weight, before)


@pytest.mark.parametrize("by_data", [False, True])
def test_a_base_that_writes_to_the_model_is_refused(by_data: bool) -> None:
    model = net()
    optimizer = sparse(Hoarder(model.named_parameters(), by_data=by_data), "ste")
    with pytest.raises(UsageError, match="Hoarder has changed the model"):
        train(model, optimizer, 3)


class Accumulates(torch.optim.SGD):
    """It adds up gradients, and moves every few steps only."""

    count = 0

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.count += 1
        if self.count % 7 == 0:
            super().step()


def resting(kind: str, named: list[tuple[str, Tensor]]) -> torch.optim.Optimizer:
    rates = {"no rate": 0.0, "a tiny rate": 1e-30, "warmup": 0.1, "accumulates": 0.1}
    base = Accumulates if kind == "accumulates" else torch.optim.SGD
    return base(named, lr=rates[kind])


@pytest.mark.parametrize("kind", ["no rate", "a tiny rate", "warmup", "accumulates"])
def test_a_base_that_rests_is_not_taken_for_one(kind: str) -> None:
    model = net()
    optimizer = sparse(resting(kind, list(model.named_parameters())), "sr-ste")
    before = optimizer.state[model[0].weight]["dense"].clone()
    if kind == "warmup":
        ramp = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: t / 40)
    for _ in range(36):
        train(model, optimizer, 1)
        if kind == "warmup":
            ramp.step()
    moved = not torch.equal(optimizer.state[model[0].weight]["dense"], before)
    assert moved == (kind in ("warmup", "accumulates"))
