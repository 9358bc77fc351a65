"""Base optimizers that update the model themselves, and not what they are given.

A base is given the dense weights in the place of the parameters in its groups. One that
wraps another optimizer, or keeps parameters of its own, never sees them: it would
update the model, the projection would undo that, and nothing would ever be learned.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from step_cli.errors import UsageError
from step_cli.optim.recipe import Recipe
from step_cli.optim.shards import ShardSum
from step_cli.optim.weights import Weight, is_precise
from step_cli.optim.written import TURNS, piece

EVERY = 16  # steps after which values are compared again, in three steps


def refuse_wrapper(base: Optimizer, recipe: Recipe) -> None:
    """Refuse a base whose inner optimizer does not see what the base is given.

    Raises:
        UsageError: It holds one that has groups or a state of its own.
    """
    members = [p for group in base.param_groups for p in group["params"]]
    if not (recipe.before.sparse or recipe.after.sparse) and all(
        map(is_precise, members)
    ):
        return  # every parameter stays its own dense weight
    for inner in _inner(base):
        if not (
            _follows(base, inner, "param_groups") and _follows(base, inner, "state")
        ):
            raise UsageError(_advice(base, inner))


def _advice(base: Optimizer, inner: Optimizer) -> str:
    outer, own = type(base).__name__, type(inner).__name__
    return (
        f"{outer} wraps {own}, which would update the model and never the dense "
        f"weights: give sparse() the {own}, and let {outer} wrap what it returns"
    )


def only_within(base: Optimizer, whole: Any) -> None:
    """Let a base be stepped and loaded only as a part of the optimizer made of it.

    Its hooks are those of the whole, so they are called once, and in every phase.

    Args:
        base: The base optimizer.
        whole: Has ``_updates_base`` set while it lets the base update.
    """
    for hooks in [name for name in vars(whole) if name.endswith("_hooks")]:
        theirs = vars(base).get(hooks)
        if isinstance(theirs, OrderedDict):  # as torch makes it; some have their own
            setattr(whole, hooks, theirs)

    def refuse(found: Optimizer, *_: Any) -> None:
        if found is base and not whole._updates_base:
            raise UsageError(
                f"this {type(base).__name__} is the base of a sparse optimizer: step "
                "and load the one that sparse() returned"
            )

    whole.register_step_pre_hook(refuse)
    whole.register_load_state_dict_pre_hook(refuse)


def saves_more(base: Optimizer) -> dict[str, Any]:
    """What a base with a ``state_dict`` of its own saves beside groups and state."""
    if type(base).state_dict is Optimizer.state_dict:
        return {}
    with _without_hooks(base):
        packed = base.state_dict()
    return {k: v for k, v in packed.items() if k not in ("state", "param_groups")}


def load_more(base: Optimizer, saved: Mapping[str, Any]) -> None:
    """Let a base with a ``load_state_dict`` of its own take what it has saved.

    Its groups and state stay: they are those of the whole, and loaded exactly.
    """
    if type(base).load_state_dict is Optimizer.load_state_dict:
        return
    groups, state = base.param_groups, base.state
    try:
        with _without_hooks(base):
            base.load_state_dict(dict(saved))
    finally:
        base.param_groups, base.state = groups, state


@contextmanager
def _without_hooks(base: Optimizer) -> Iterator[None]:
    hooks = {k: v for k, v in vars(base).items() if k.endswith("_hooks")}
    vars(base).update((name, OrderedDict()) for name in hooks)
    try:
        yield
    finally:
        vars(base).update(hooks)


def step_alone(base: Optimizer) -> Callable[[], object]:
    """The step of a base without what torch puts around every optimizer's.

    Hooks are called around the step of which this is a part: once, and in every phase.
    """
    step = type(base).step
    patched = vars(base).get("step")
    if patched is not None and not hasattr(patched, "_wrapped_by_lr_sched"):
        return base.step  # somebody's own
    base._opt_called = True  # type: ignore[attr-defined]  # as its schedulers ask
    hooked = getattr(step, "hooked", False)
    return partial(getattr(step, "__wrapped__", step) if hooked else step, base)


def _inner(base: Optimizer) -> Iterator[Optimizer]:
    """Optimizers that a base holds, and that update some of its parameters."""
    members = {id(p) for group in base.param_groups for p in group["params"]}
    for value in vars(base).values():
        several = value.values() if isinstance(value, dict) else value
        if not isinstance(value, list | tuple | dict):
            several = [value]
        for each in several:
            if isinstance(each, Optimizer) and any(
                id(p) in members for group in each.param_groups for p in group["params"]
            ):
                yield each


def _follows(base: Optimizer, inner: Optimizer, attribute: str) -> bool:
    """Whether an inner optimizer goes by what stands in the outer one's place."""
    own: Any = getattr(base, attribute)
    stand_in = type(own)()
    try:
        setattr(base, attribute, stand_in)
    except AttributeError:  # a property that cannot be set
        return False
    try:
        return getattr(inner, attribute) is stand_in
    finally:
        setattr(base, attribute, own)


class Witness:
    """One weight during a step of the base, which must leave the model alone.

    Args:
        weights: Those of the step, with their gradients given.
        step: The number of the step; values are compared in some only.
    """

    def __init__(self, weights: Sequence[Weight], step: int) -> None:
        self._before: Tensor | None = None
        self._turn, self._weight = step, None
        closely = step % EVERY < 3
        given = (w for w in weights if w.apart and w.dense.grad is not None)
        if closely:
            some = list(given)
            self._weight = some[step // EVERY % len(some)] if some else None
        else:
            self._weight = next(given, None)
        if self._weight is not None:
            self._version = self._weight.present_version
            if closely:
                self._before = self._piece(self._weight).clone()

    def _piece(self, w: Weight) -> Tensor:
        return w.shown if w.is_small else piece(w.shown, self._turn, TURNS)

    def check(self, base: Optimizer, sums: ShardSum, slot: int) -> None:
        """The base has taken its step.

        Args:
            base: The base optimizer.
            sums: To one of them the number of values is added that were changed.
            slot: Which.

        Raises:
            UsageError: Torch has counted a write to the model.
        """
        w = self._weight
        if w is None:
            return
        if w.present_version != self._version:
            raise foreign(base, w.name)
        if self._before is not None:
            differs = self._piece(w) != self._before
            sums.beside(w.param)[slot].add_(differs.sum())


def foreign(base: Optimizer | None, name: str = "") -> UsageError:
    """What is wrong with a base that has changed the model."""
    inner = None if base is None else next(_inner(base), None)
    if base is not None and inner is not None:
        return UsageError(_advice(base, inner))
    return UsageError(
        f"{type(base).__name__} has changed the model{name and f' ({name})'} and not "
        "the dense weights it was given: it holds parameters of its own; give sparse() "
        "an optimizer that updates what is in its param_groups"
    )
