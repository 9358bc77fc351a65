"""At the end of a loop: is the model what it was trained to be, and if not, why?"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from step_cli.errors import NonFiniteError, NotSparseError, UsageError
from step_cli.nm.pattern import NMSpec
from step_cli.nm.weight_rule import without_wrappers
from step_cli.optim.mask import count_violations
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.optim.shards import local, shard_total
from step_cli.optim.weights import Weight


def require_sparse(model: nn.Module, optimizer: Optimizer) -> None:
    """Refuse a model of which a chosen weight does not hold its pattern now.

    Of a model that is split over processes each looks at its share, and all raise
    alike.

    Args:
        model: As it is, wrapped or not.
        optimizer: That of `sparse_adamw` or `sparse`, wrapped or not.

    Raises:
        NotSparseError: A group holds too many non-zeros; the message says why.
        NonFiniteError: A chosen weight is NaN or infinite.
        UsageError: The optimizer is another one, or of another model.
    """
    own = sparse_optimizer(optimizer)
    broken: list[tuple[Weight, Tensor, int]] = []
    for w, spec, held in _chosen(model, own):
        groups, unfit = _count(held, spec)
        if unfit:
            raise NonFiniteError(f"{w.name}: {unfit} weights are not finite")
        if groups:
            broken.append((w, held, groups))
    if broken:
        raise NotSparseError(_explain(own, broken))
    if not any(True for _ in own.sparse_parameters()):
        raise NotSparseError(
            f"no weight was chosen: recipe {own.recipe.name} leaves the model dense"
        )


def sparse_optimizer(optimizer: Any) -> SparseOptimizer:
    """The optimizer of `sparse_adamw` or `sparse` inside of what wraps it.

    Raises:
        UsageError: There is none.
    """
    inner = optimizer
    while inner is not None and not isinstance(inner, SparseOptimizer):
        inner = getattr(inner, "optimizer", None)
    if inner is None:
        raise UsageError(
            f"{type(optimizer).__name__} prunes nothing: give the optimizer that "
            "sparse_adamw or sparse returned"
        )
    return inner


def _chosen(
    model: nn.Module, optimizer: SparseOptimizer
) -> Iterator[tuple[Weight, NMSpec, Tensor]]:
    """Each chosen weight, what it is to hold, and the parameter of ``model``."""
    named = dict(model.named_parameters(remove_duplicate=False))
    its_own = set(named.values())
    if not optimizer._weights:
        optimizer._follow_model()  # a copy makes its records at its first step
    by_name = {without_wrappers(name): p for name, p in named.items()}
    for w in optimizer._weights:
        if w.spec is None:
            continue
        held = w.param if w.param in its_own else by_name.get(without_wrappers(w.name))
        if held is None or held.shape != w.param.shape:
            raise UsageError(
                f"{w.name} of the optimizer is not in the model: give the model that "
                "it trains"
            )
        yield w, w.spec, held


@torch.no_grad()
def _count(held: Tensor, spec: NMSpec) -> tuple[int, int]:
    """Groups with too many non-zeros, and values that are not finite, in all parts."""
    part = local(held)
    groups = count_violations(part, spec.pattern, spec.axis) if part.numel() else 0
    unfit = int(part.isfinite().logical_not_().sum())
    sums = torch.tensor([groups, unfit], dtype=torch.float64, device=part.device)
    whole = shard_total(held, sums).tolist()
    return int(whole[0]), int(whole[1])


def _explain(
    optimizer: SparseOptimizer, broken: list[tuple[Weight, Tensor, int]]
) -> str:
    w, held, groups = broken[0]
    more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
    assert w.spec is not None
    found = f"{w.name}{more} not {w.spec.pattern}: {groups} groups break it; "
    if held is not w.param:
        return found + "the model is another one than the optimizer trains"
    if optimizer._in_other_view:
        return found + "the model holds another view: call it outside dense_weights()"
    if optimizer.recipe.switches and optimizer.switch_step is None:
        return found + _never_switched(optimizer)
    if not optimizer.current_phase.sparse:
        return found + f"the recipe is in its phase {optimizer.phase!r}, a dense one"
    if w.asleep:
        return found + (
            "it is frozen and has had no gradient, so nothing has pruned it; let it "
            "train, or leave it out of the optimizer"
        )
    if w.version is not None and w.version != w.present_version:
        return found + (
            "other weights were loaded over it after the last step, as by "
            "load_best_model_at_end: choose the best among checkpoints after the "
            f"switch (step {optimizer.switch_step or 0})"
        )
    taken, total = optimizer.steps_taken, optimizer.total_steps
    if not optimizer.recipe.inner_recipe.keeps_largest and taken < (total or taken + 1):
        return found + (
            f"{optimizer.recipe.name} reaches its pattern by the end of its schedule, "
            f"and {taken} of {total} steps were taken"
        )
    return found + "the model was written behind the optimizer's back"


def _never_switched(optimizer: SparseOptimizer) -> str:
    """Where the switch would have come, and why it has most likely not."""
    rule, total = optimizer.rule, optimizer.total_steps
    last = None if rule is None else rule.last_step
    when = (
        "its criterion has no latest step"
        if last is None
        else f"it would have come at step {last}, at the latest"
    )
    of = f" of total_steps={total}" if total else ""
    return (
        f"the switch never came: {when}{of}, and {optimizer.steps_taken} steps were "
        "taken; total_steps counts calls of step(), not micro-batches of gradient "
        "accumulation, and training must not stop before the switch"
    )
