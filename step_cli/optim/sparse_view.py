"""What the model holds of the dense weights: in a sparse phase, their projection.

The parameters themselves are written, so forward, backward, evaluation and the model's
``state_dict()`` see what will be deployed.
"""

import logging
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from step_cli.errors import UsageError
from step_cli.nm.pattern import NMSpec
from step_cli.optim.backward import RewiredForward, rewire
from step_cli.optim.compiled import can_compile
from step_cli.optim.compiled_mask import compiled_project
from step_cli.optim.dense_owner import DenseOwner
from step_cli.optim.masters import is_master, master_copy
from step_cli.optim.recipe import Layer, Phase, Recipe
from step_cli.optim.shards import local, shard_total, version

logger = logging.getLogger(__name__)

COMPILE_FROM = 20_000_000  # sparse weights


class SparseView(DenseOwner):
    """Keeps the model at the recipe's projection of the dense weights."""

    def __init__(
        self, base: Optimizer, recipe: Recipe, total_steps: int | None
    ) -> None:
        self._versions: dict[Tensor, tuple[int, int]] = {}
        self._rewired: list[tuple[Tensor, RewiredForward]] | None = None
        self._compiled = self._shown_otherwise = False
        super().__init__(base, recipe, total_steps)

    @contextmanager
    def dense_weights(self) -> Iterator[None]:
        """Let the model hold the dense weights for the length of a ``with`` block."""
        with self._showing(lambda p, plan: self._dense(p)):
            yield

    @contextmanager
    def sparse_weights(self) -> Iterator[None]:
        """Let the model hold its pruned twin, in a dense phase too."""
        with self._showing(self._projected if self.rules.sparse else self._twin):
            yield

    @torch.no_grad()
    def adopt(self) -> None:
        """Take the model's present weights for the dense ones, as after loading.

        Before anything is pruned or learned, other parameters may have taken the place
        of those the optimizer was built with.
        """
        if self._exchanged and not self.rules.sparse and not self.steps_taken:
            self.state.clear()
            self._rewired = None
            self._create_state()
        self._refuse_exchanged()
        for p, plan in self._with_own_master():
            if not self._is_current(p, plan):
                self.state[p]["dense"] = master_copy(p)
        self._publish(fresh=True)

    def rewire(self, model: nn.Module) -> None:
        """Let the layers of ``model`` compute gradients as the recipe asks.

        For recipes that change the backward pass; names and weights stay.
        """
        rules = {
            p: (plan.axis, rule)
            for p, plan in self.sparse_parameters()
            if (rule := self.recipe.learner.backward(plan)) is not None
        }
        self._rewired = list(rewire(model, rules))
        changed = {p for p, _ in self._rewired}
        usual = rules.keys() - changed
        plain = [name for name, p in model.named_parameters() if p in usual]
        if plain:
            logger.warning(
                "%s changes the backward pass of linear layers only; sparse, but with "
                "their usual one: %s",
                type(self.recipe.learner).__name__,
                ", ".join(plain),
            )
        self._tell_layers()

    # ------------------------------------------------------------------ the projection

    def _publish(
        self, some: Container[Tensor] | None = None, *, fresh: bool = False
    ) -> None:
        """Write what the optimizer owns into the model, as the present rules ask.

        Args:
            some: The parameters to write; default all.
            fresh: See :class:`Layer`.
        """
        for p, plan in self._with_own_master():
            if some is not None and p not in some:
                continue
            if plan is not None and self.rules.sparse:
                self.recipe.learner.renew(self._layer(p, plan, fresh=fresh))
            if not self._project_compiled(p, plan):
                local(p).copy_(self._view(p, plan))
            self._versions[p] = version(p)

    def _project_compiled(self, p: Tensor, plan: NMSpec | None) -> bool:
        """Project plainly by a compiled kernel; False where that is not the rule."""
        learner, shown, dense = type(self.recipe.learner), local(p), self._dense(p)
        plain = learner.project is Recipe.project and learner.keep is Recipe.keep
        if not (self._compiled and plan and plain and self.rules.sparse):
            return False
        if not (shown.is_contiguous() and dense.is_contiguous() and dense.numel()):
            return False
        compiled_project(shown, dense, plan.pattern, plan.axis)
        return True

    def _will_compile(self, wanted: bool | None) -> bool:
        weights = sum(local(p).numel() for p, _ in self.sparse_parameters())
        if wanted is None:
            wanted = weights >= COMPILE_FROM
        kinds = {p.device.type for p, _ in self.sparse_parameters()}
        return wanted and all(map(can_compile, kinds))

    def _view(self, p: Tensor, plan: NMSpec | None) -> Tensor:
        """What the model is to hold of ``p`` under the present rules."""
        if plan is None or not self.rules.sparse:
            return self._dense(p)
        return self._projected(p, plan)

    def _projected(self, p: Tensor, plan: NMSpec) -> Tensor:
        dense = self._dense(p)
        if not dense.numel():
            return dense  # more processes than rows: this one has no shard
        return self.recipe.learner.project(self._layer(p, plan))

    def _twin(self, p: Tensor, plan: NMSpec) -> Tensor:
        """What the model would hold if the recipe pruned it now, for good."""
        learner, dense = self.recipe.learner, self._dense(p)
        memory = learner.memory(dense, plan)
        layer = replace(self._layer(p, plan, fresh=True), memory=memory)
        learner.renew(layer)  # by all processes, also one without a shard
        if not dense.numel():
            return dense
        end = max(layer.age, (layer.total_steps or 0) - layer.start)
        return learner.project(replace(layer, age=end))

    def _layer(
        self, p: Tensor, plan: NMSpec, *, fresh: bool = False, ago: int = 0
    ) -> Layer:
        """What the recipe is told of ``p``, or was ``ago`` steps ago."""
        state, start = self.state[p], int(self._clock["switch_step"])
        return Layer(
            self._dense(p),
            plan,
            age=self.steps_taken - start - ago,
            start=start,
            total_steps=self._clock["total_steps"] or None,
            fresh=fresh,
            memory={key: local(state[key]) for key in self._memory_keys & state.keys()},
            over_processes=partial(shard_total, p),
        )

    @torch.no_grad()
    def _enter_phase(self) -> None:
        """Part the dense weights from the parameters, or join them, as rules ask."""
        for p, _ in self.sparse_parameters():
            if not is_master(p):
                continue
            if self.rules.sparse:
                self.state[p]["dense"] = master_copy(p)
            elif self.recipe.before.sparse:
                local(p).copy_(local(self.state[p]["dense"]))
                self.state[p]["dense"] = p.detach()
        self._publish(fresh=True)
        self._tell_layers()

    @contextmanager
    def _showing(self, view: Callable[[Tensor, NMSpec], Tensor]) -> Iterator[None]:
        self._refuse_shown_otherwise()
        self._refuse_stale()
        with torch.no_grad():
            plans = dict(self.sparse_parameters())
            own = {p: local(p).clone() for p in plans}
            for p, plan in plans.items():
                local(p).copy_(view(p, plan))
        self._shown_otherwise = True
        try:
            yield
        finally:
            self._shown_otherwise = False
            with torch.no_grad():
                for p, values in own.items():
                    local(p).copy_(values)
                    self._versions[p] = version(p)

    def _tell_layers(self) -> None:
        """Tell rewired layers which rules hold, and where the recipe's memory is."""
        for p, forward in self._rewired or ():
            state = self.state[p]
            forward.active = self.rules.sparse
            forward.memory = {
                key: state[key] for key in self._memory_keys & state.keys()
            }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; load the model's weights first."""
        super().load_state_dict(state_dict)
        self._versions = {p: version(p) for p, _ in self._with_own_master()}
        self._tell_layers()

    # -------------------------------------------------------------------- what is wrong

    def _refuse_stale(self) -> None:
        for p, plan in self._with_own_master():
            if not self._is_current(p, plan):
                raise UsageError(
                    "a weight was changed behind the optimizer's back: build the "
                    "optimizer after loading and wrapping, or call adopt()"
                )
            self._versions[p] = version(p)

    def _is_current(self, p: Tensor, plan: NMSpec | None) -> bool:
        """Whether the model holds of ``p`` what the optimizer has put there."""
        if self._versions.get(p) == version(p):
            return True
        # Written, as by a wrapper that broadcasts, but perhaps with what it held.
        return torch.equal(local(p), self._view(p, plan).to(p.dtype))

    def _refuse_shown_otherwise(self) -> None:
        if self._shown_otherwise:
            raise UsageError(
                "not inside dense_weights() or sparse_weights(): the model holds "
                "another view there, and gets its own back at the end"
            )

    def _refuse_sparse_gradients(self) -> None:
        for group in self.param_groups:
            dense_too = group.get("pattern") is not None or "betas" in group
            for p in group["params"] if dense_too else ():
                if p.grad is not None and p.grad.layout != torch.strided:
                    raise UsageError(
                        "a gradient is sparse, as Embedding(sparse=True) gives it: "
                        "leave that off"
                    )

    def _refuse_unwired(self, rules: Phase) -> None:
        if self._rewired is None and rules.sparse:
            learner = self.recipe.learner
            plans = {plan for _, plan in self.sparse_parameters()}
            if any(learner.backward(plan) is not None for plan in plans):
                raise UsageError(
                    f"{type(learner).__name__} changes the backward pass of layers: "
                    "give the module, or call optimizer.rewire(module)"
                )
