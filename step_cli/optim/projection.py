"""What the model holds of the dense weights: nothing else writes it for good.

In a sparse phase that is what the recipe makes of them, in a dense one they themselves.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from step_cli.nm.pattern import NMPattern
from step_cli.optim.compiled_mask import compiled_project
from step_cli.optim.mask import CHUNK, magnitude_mask, masked
from step_cli.optim.recipe import Phase, Recipe, SparseLayer
from step_cli.optim.shards import shard_total
from step_cli.optim.weights import Weight, flattened


@dataclass(frozen=True)
class Moment:
    """Where training is.

    Attributes:
        phase: The rules in force.
        steps_taken: So far.
        start: The step after which the phase began.
        total_steps: Length of the training; None where it is not known.
    """

    phase: Phase
    steps_taken: int
    start: int
    total_steps: int | None

    def layer(self, w: Weight, *, starts: bool = False) -> SparseLayer:
        """What a recipe sees of a weight now."""
        assert w.spec is not None
        return SparseLayer(
            w.dense,
            w.spec,
            age=self.steps_taken - self.start,
            start=self.start,
            total_steps=self.total_steps,
            starts=starts,
            state=w.local_state,
            over_processes=partial(shard_total, w.param),
        )

    def is_sparse(self, w: Weight) -> bool:
        """Whether the model is to hold a part of a weight only."""
        return self.phase.sparse and w.spec is not None and not w.asleep


def give_gradients(weights: Iterable[Weight], inner: Recipe, now: Moment) -> None:
    """Give the dense weights the gradients that the recipe asks for.

    Args:
        weights: With gradients at the point that the model holds.
        inner: The recipe, or the one inside it.
        now: Before the step.
    """
    for w in weights:
        if w.dense is w.param:
            continue
        grad = w.grad()
        if grad is not None and now.is_sparse(w):
            grad = inner.gradient(grad, w.shown, now.layer(w))
        w.dense.grad = grad


def project(
    weights: Iterable[Weight],
    inner: Recipe,
    now: Moment,
    *,
    starts: bool = False,
    compiled: bool = False,
    resting: Collection[Weight] = (),
) -> None:
    """Write into the model what it is to hold.

    Args:
        weights: All of them, or a part.
        inner: The recipe, or the one inside it.
        now: After the step.
        starts: See :class:`SparseLayer`.
        compiled: Use the compiled kernel, where the recipe keeps the largest weights.
        resting: Those whose dense weights are what they were. Autograd may hold them
            for a backward pass to come, so they are not written with what they hold.
    """
    apart = [w for w in weights if w.dense is not w.shown]
    if resting:
        by_itself = inner.follows_time and not inner.keeps_largest
        apart = [
            w for w in apart if w not in resting or (by_itself and now.is_sparse(w))
        ]
    sparse = [w for w in apart if now.is_sparse(w)]
    _show_dense([w for w in apart if not now.is_sparse(w)])
    if inner.keeps_largest:
        _show_largest(sparse, compiled=compiled)
    else:
        for w in sparse:
            inner.update_state(now.layer(w, starts=starts))
            values = view(w, inner, now)
            # On a CPU only, as everywhere else comparing would wait for the device.
            same = w in resting and values.is_cpu and _equal(w.shown, values)
            if not same:
                w.shown.copy_(values)
    for w in apart:
        w.version = w.present_version


def _equal(shown: Tensor, values: Tensor) -> bool:
    return torch.equal(shown, values.to(shown.dtype))


def view(w: Weight, inner: Recipe, now: Moment) -> Tensor:
    """What the model is to hold of a weight."""
    if not now.is_sparse(w) or not w.dense.numel():
        return w.dense  # no elements: more processes than rows, this one has no shard
    return inner.project(now.layer(w))


def pruned_view(w: Weight, inner: Recipe, now: Moment) -> Tensor:
    """What the model would hold of a weight if the recipe pruned it now, for good."""
    assert w.spec is not None
    if w.asleep:
        return w.dense
    state = inner.create_state(w.dense, w.spec)
    layer = replace(now.layer(w, starts=True), state=state)
    inner.update_state(layer)  # by all processes, also one without a shard
    if not w.dense.numel():
        return w.dense
    end = max(layer.age, (layer.total_steps or 0) - layer.start)
    return inner.project(replace(layer, age=end))


def _show_dense(weights: Sequence[Weight]) -> None:
    """Write the dense weights into the model as they are."""
    if weights:
        shown, dense = [w.shown for w in weights], [w.dense for w in weights]
        torch._foreach_copy_(shown, dense)


def _show_largest(weights: Iterable[Weight], *, compiled: bool) -> None:
    """Write into the model the largest of each group of the dense weights, else 0.

    Args:
        weights: Sparse ones.
        compiled: Use the compiled kernel for large ones, of finite weights the same.
    """
    alike: defaultdict[tuple[Any, ...], list[Weight]] = defaultdict(list)
    for w in weights:
        dense, spec = w.dense, w.spec
        assert spec is not None
        if not dense.numel():
            continue  # more processes than rows: this one has no shard
        behind = dense.shape[spec.axis % dense.dim() + 1 :].numel()
        if w.is_small or not (w.shown.is_contiguous() and dense.is_contiguous()):
            kind = (dense.dtype, dense.device) if w.is_small else (w,)
            alike[spec.pattern, behind, *kind].append(w)
        elif compiled:
            compiled_project(w.shown, dense, spec.pattern, spec.axis)
        else:
            _show_in_pieces(w.shown, dense, spec.pattern, behind)
    for (pattern, behind, *_), some in alike.items():
        together = [w.dense for w in some]
        groups = flattened(together).view(-1, pattern.m, behind)
        kept = masked(groups, magnitude_mask(groups, pattern, 1)).view(-1)
        parts = torch._utils._unflatten_dense_tensors(kept, together)  # type: ignore[no-untyped-call]
        torch._foreach_copy_([w.shown for w in some], parts)


def _show_in_pieces(
    shown: Tensor, dense: Tensor, pattern: NMPattern, behind: int
) -> None:
    """:func:`_show_largest` of a large tensor, whose pieces stay in a cache."""
    groups = dense.view(-1, pattern.m, behind)
    most = CHUNK if dense.is_cpu else dense.numel()
    rows = max(1, most // (pattern.m * behind))
    parts = torch.split(groups, rows), torch.split(shown.view(groups.shape), rows)
    for part, out in zip(*parts, strict=True):
        out.copy_(masked(part, magnitude_mask(part, pattern, 1)))
