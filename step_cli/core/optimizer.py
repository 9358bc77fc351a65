"""The optimizer owns the dense weights; the model holds the sparse view, in place.

In a sparse phase a parameter p *is* project(dense), so forward, backward, evaluation
and the model's ``state_dict()`` see what will be deployed, and ``p.grad`` is the
gradient at the sparse point: line 17 of STEP's Algorithm 1 (Lu et al., ICML 2023).

``SparseOptimizer`` wraps any ``torch.optim.Optimizer``. At each step it gives the base
optimizer the dense weights to update in the parameters' place, and projects the result
back into the model. Only the update under a frozen variance is our own.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from step_cli.core.adam import EpsMode, adam_step
from step_cli.core.autoswitch import SwitchRule, VarianceSample
from step_cli.core.backward import RewiredForward, rewire
from step_cli.core.compiled import can_compile, compiled_project
from step_cli.core.mask import check_groups
from step_cli.core.mask_watch import MaskWatch
from step_cli.core.masters import is_master, master_copy, working_on
from step_cli.core.optimizer_state import create_state, restored, with_index
from step_cli.core.pattern import NMPattern
from step_cli.core.plan import LayerPlan
from step_cli.core.recipe import Layer, Phase, Recipe
from step_cli.core.refusals import refuse_impossible
from step_cli.core.shards import (
    ShardSum,
    check_shards,
    local,
    local_grad,
    shard_total,
    split_like,
    version,
)
from step_cli.core.variance import VarianceWatch, variances
from step_cli.errors import NonFiniteError, UsageError

VarianceCorrection = Literal["at_switch", "none"]

COMPILE_FROM = 20_000_000  # sparse weights
CHECK_EVERY = 100  # steps between looks at the weights, as each waits for the device


class SparseOptimizer(Optimizer):
    """A base optimizer made to learn N:M weights by a recipe.

    Groups that carry ``pattern`` and ``axis`` are sparse, the others stay dense. The
    dense weights live in the state, and all scalars (step, switch point, the
    criterion's memory) in the first group, so ``state_dict()`` resumes bit for bit.

    Args:
        base: Updates the dense weights; STEP needs Adam or AdamW.
        recipe: The rules.
        switch: Decides the switch point, for recipes that have one.
        eps_mode: Where Adam's eps stands; ``inside`` is the STEP paper's literal form.
        v_correction: ``at_switch`` bias-corrects the frozen variance for the steps it
            has learned; ``none`` uses it raw, as the STEP paper prints it.
        record: Measure the variance at every step in which it is updated.
        total_steps: Length of the training, for recipes that follow a schedule.
        compile: Use compiled kernels where the recipe and the dtype allow; None: from
            `COMPILE_FROM` weights on a CPU, where the first call's seconds pay.

    Raises:
        UsageError: No group is sparse, a width does not divide into groups, the recipe
            needs what the base optimizer lacks, or the switch is missing.
    """

    def __init__(
        self,
        base: Optimizer,
        recipe: Recipe,
        switch: SwitchRule | None = None,
        *,
        eps_mode: EpsMode = "outside",
        v_correction: VarianceCorrection = "at_switch",
        record: bool = False,
        total_steps: int | None = None,
        compile: bool | None = None,
    ) -> None:
        self.base, self.recipe = base, recipe
        self.watch_masks = False
        self._eps_mode, self._raw_variance = eps_mode, v_correction == "none"
        self._watch = VarianceWatch(switch, record=record)
        self._mask_watch = MaskWatch()
        self._versions: dict[Tensor, tuple[int, int]] = {}
        self._rewired: list[tuple[Tensor, RewiredForward]] | None = None
        self._complete = False
        super().__init__(base.param_groups, base.defaults)
        self._complete = True
        self._share_with_base()
        self._clock.update(t=0, switch_step=0, switch_reason="", switch_memory=[])
        self._clock["total_steps"] = total_steps or 0
        refuse_impossible(base, recipe, switch, eps_mode, total_steps)
        self._create_state()
        self._compiled = self._will_compile(compile)
        if recipe.before.sparse:
            self._enter_phase()
        elif switch is not None and switch.first_step == 0:
            self._switch_after(0, "fixed")

    # ------------------------------------------------------------------ what users ask

    @property
    def rules(self) -> Phase:
        """The rules that the next step follows."""
        return self.recipe.after if self._switched else self.recipe.before

    @property
    def phase(self) -> str:
        """``precondition``, ``mask-learning``, ``fine-tune`` or ``dense``."""
        return self.rules.name

    @property
    def steps_taken(self) -> int:
        """How many steps have been taken."""
        return int(self._clock["t"])

    @property
    def switch_step(self) -> int | None:
        """The switch point t0, the last step before the rules changed; None before."""
        return int(self._clock["switch_step"]) if self._switched else None

    @property
    def switch_reason(self) -> str | None:
        """``threshold``, ``t_max`` or ``fixed``; None before the switch."""
        return self._clock["switch_reason"] or None

    @property
    def rule(self) -> SwitchRule | None:
        """What decides the switch point."""
        return self._watch.rule

    def variance_sample(self) -> VarianceSample | None:
        """What the last step did to the variance; None if it was not measured."""
        return None if self._watch.last is None else self._watch.last.read()

    def flip_rate(self) -> float | None:
        """Share of mask entries the last step changed, if ``watch_masks`` was set."""
        return self._mask_watch.flip_rate()

    def pruned_update_share(self) -> float | None:
        """Share of the last update that fell on pruned weights, if it was watched."""
        return self._mask_watch.pruned_update_share()

    def sparse_parameters(self) -> Iterator[tuple[Tensor, LayerPlan]]:
        """Each parameter that is to become N:M, with its pattern and axis."""
        for group in self.param_groups:
            plan = _plan_of(group)
            if plan is not None:
                for p in group["params"]:
                    yield p, plan

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
        for p, _ in self._with_own_master():
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
        self._tell_layers()

    # ------------------------------------------------------------------------ one step

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the dense weights, then project them into the model."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rules, t = self.rules, self.steps_taken + 1
        undecided = self.recipe.switches and not self._switched
        self._refuse_exchanged()
        self._refuse_stale()
        self._refuse_unwired(rules)
        self._watch.forget()
        self._mask_watch.forget()
        stand_ins = dict(self._stand_ins(rules))
        if rules.learn_variance:
            self._watch.before_update(self, stand_ins, t, undecided=undecided)
        with working_on(stand_ins, self.base, self._own_keys):
            self._update(rules)
        if rules.learn_variance:
            self._watch.after_update(self)
        self._clock["t"] = t
        reason = self._watch.reason_at(t) if undecided else None
        if reason is not None:
            self._switch_after(t, reason)
        else:
            self._publish()
        if t % CHECK_EVERY == 0:
            self._refuse_not_finite(t)
        if self.watch_masks and rules.sparse:
            self._mask_watch.after_update(dict(self._shown_and_dense()))
        return loss

    def _update(self, rules: Phase) -> None:
        """Update the dense weights, which the base has for its parameters now."""
        if rules.learn_variance and self._eps_mode == "outside":
            self.base.step()
            return
        adam_step(
            self.base,
            eps_mode=self._eps_mode,
            raw_variance=self._raw_variance and not rules.learn_variance,
            learn_variance=rules.learn_variance,
            compiled=self._compiled,
        )

    def _stand_ins(self, rules: Phase) -> Iterator[tuple[Tensor, Tensor]]:
        """Each parameter, and the tensor that is updated in its place."""
        if self.watch_masks and rules.sparse:
            for p, (shown, dense) in self._shown_and_dense():
                self._mask_watch.before_update(p, shown, dense)
        for group in self.param_groups:
            plan = _plan_of(group)
            for p in group["params"]:
                dense = self._dense(p)
                if dense is not p:
                    dense.grad = self._grad(p, dense, plan, rules)
                yield p, dense

    def _grad(
        self, p: Tensor, dense: Tensor, plan: LayerPlan | None, rules: Phase
    ) -> Tensor | None:
        """The gradient for the dense weights, as the recipe wants it."""
        given = local_grad(p)
        if given is None:
            return None
        grad = given.to(dense.dtype)
        if plan is None or not rules.sparse:
            return grad
        return self.recipe.learner.gradient(grad, local(p), self._layer(p, plan))

    # ------------------------------------------------------------------ the projection

    def _publish(self, *, fresh: bool = False) -> None:
        """Write what the optimizer owns into the model, as the present rules ask."""
        for p, plan in self._with_own_master():
            if plan is not None and self.rules.sparse:
                self.recipe.learner.renew(self._layer(p, plan, fresh=fresh))
            if not self._project_compiled(p, plan):
                local(p).copy_(self._view(p, plan))
            self._versions[p] = version(p)

    def _project_compiled(self, p: Tensor, plan: LayerPlan | None) -> bool:
        """Project plainly by a compiled kernel; False where that is not the rule."""
        learner, shown, dense = type(self.recipe.learner), local(p), self._dense(p)
        plain = learner.project is Recipe.project and learner.keep is Recipe.keep
        if not (self._compiled and plan and plain and self.rules.sparse):
            return False
        if shown.dtype != dense.dtype or not shown.is_contiguous() or not dense.numel():
            return False
        compiled_project(shown, dense, plan.pattern, plan.axis)
        return True

    def _will_compile(self, wanted: bool | None) -> bool:
        weights = sum(local(p).numel() for p, _ in self.sparse_parameters())
        on_cpu = all(p.device.type == "cpu" for p, _ in self.sparse_parameters())
        if wanted is None:
            wanted = on_cpu and weights >= COMPILE_FROM
        return wanted and can_compile()

    def _view(self, p: Tensor, plan: LayerPlan | None) -> Tensor:
        """What the model is to hold of ``p`` under the present rules."""
        if plan is None or not self.rules.sparse:
            return self._dense(p)
        return self._projected(p, plan)

    def _projected(self, p: Tensor, plan: LayerPlan) -> Tensor:
        dense = self._dense(p)
        if not dense.numel():
            return dense  # more processes than rows: this one has no shard
        return self.recipe.learner.project(self._layer(p, plan))

    def _twin(self, p: Tensor, plan: LayerPlan) -> Tensor:
        """What the model would hold if the recipe pruned it now, for good."""
        learner, dense = self.recipe.learner, self._dense(p)
        memory = learner.memory(dense, plan)
        layer = replace(self._layer(p, plan, fresh=True), memory=memory)
        learner.renew(layer)  # by all processes, also one without a shard
        if not dense.numel():
            return dense
        end = max(layer.age, (layer.total_steps or 0) - layer.start)
        return learner.project(replace(layer, age=end))

    def _layer(self, p: Tensor, plan: LayerPlan, *, fresh: bool = False) -> Layer:
        """What the recipe is told of ``p``."""
        state, start = self.state[p], int(self._clock["switch_step"])
        return Layer(
            self._dense(p),
            plan,
            age=self.steps_taken - start,
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
    def _showing(self, view: Callable[[Tensor, LayerPlan], Tensor]) -> Iterator[None]:
        with torch.no_grad():
            plans = dict(self.sparse_parameters())
            own = {p: local(p).clone() for p in plans}
            for p, plan in plans.items():
                local(p).copy_(view(p, plan))
        try:
            yield
        finally:
            with torch.no_grad():
                for p, values in own.items():
                    local(p).copy_(values)
                    self._versions[p] = version(p)

    def _dense(self, p: Tensor) -> Tensor:
        """This process's dense weights of ``p``, wherever they lie."""
        return local(self.state[p]["dense"] if self._has_master(p) else p)

    def _has_master(self, p: Tensor) -> bool:
        """Whether the dense weights lie outside the parameter."""
        # By rule and not by address: a wrapper may move a parameter's memory.
        return not is_master(p) or (self.rules.sparse and "dense" in self.state[p])

    def _with_own_master(self) -> Iterator[tuple[Tensor, LayerPlan | None]]:
        """Each parameter whose dense weights lie outside it, and its plan."""
        for group in self.param_groups:
            plan = _plan_of(group)
            yield from ((p, plan) for p in group["params"] if self._has_master(p))

    def _shown_and_dense(self) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor]]]:
        for p, _ in self.sparse_parameters():
            yield p, (local(p), self._dense(p))

    # ---------------------------------------------------------------- the switch point

    @property
    def _switched(self) -> bool:
        return bool(self._clock["switch_reason"])

    def _switch_after(self, step: int, reason: str) -> None:
        if not self.recipe.after.learn_variance:
            self._freeze_variance(step)
        self._clock.update(switch_step=step, switch_reason=reason, switch_memory=[])
        self._enter_phase()

    def _freeze_variance(self, step: int) -> None:
        seen = ShardSum(1)
        for p, variance, _ in variances(self):
            self.state[p]["variance_step"].copy_(self.state[p]["step"])
            seen.beside(p).add_(variance.sum())
        whole = float(seen.total())
        if not math.isfinite(whole):
            raise NonFiniteError(f"step {step}: the gradient is not finite")
        if not whole:
            raise UsageError(
                f"the variance is zero at step {step}, and freezing it would divide by "
                "nothing; switch after a step that has gradients"
            )

    # ----------------------------------------------------------------------- the state

    def _create_state(self) -> None:
        for p, layer in self.sparse_parameters():
            check_groups(tuple(p.shape), layer.pattern, layer.axis)
            check_shards(p, layer)
        self._memory_keys: set[str] = set()
        for group in self.param_groups:
            plan = _plan_of(group)
            for p in group["params"]:
                memory = {} if plan is None else self._create_memory(p, plan)
                self._memory_keys |= memory.keys()
                self.state[p] = create_state(
                    self.base, p, group, memory, sparse=plan is not None
                )
        self._own_keys = {"dense", *self._memory_keys}  # the base never sees them

    def _create_memory(self, p: Tensor, plan: LayerPlan) -> dict[str, Tensor]:
        part = local(master_copy(p))
        return {
            key: split_like(value, p) if value.shape == part.shape else value
            for key, value in self.recipe.learner.memory(part, plan).items()
        }

    @override
    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state, the dense weights and the state of the switch."""
        packed = super().state_dict()
        if self.rule is not None and not self._switched:
            self._watch.flush()
            packed["param_groups"][0]["switch_memory"] = self.rule.criterion.state()
        for p, index in with_index(self, packed["param_groups"]):
            if "dense" in self.state[p] and not self._has_master(p):
                # The model saves this memory too, and loading is in place.
                dense = p.detach().clone()
                packed["state"][index] = {**self.state[p], "dense": dense}
        return packed

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; load the model's weights first."""
        super().load_state_dict(state_dict)
        self._share_with_base()
        for p, index in with_index(self, state_dict["param_groups"]):
            self.state[p].update(restored(p, state_dict["state"].get(index, {})))
            if "dense" in self.state[p] and not self._has_master(p):
                self.state[p]["dense"] = p.detach()
        self._watch.restart()
        self._mask_watch.forget()
        if self.rule is not None and not self._switched:
            self.rule.criterion.load(self._clock["switch_memory"])
        self._clock["switch_memory"] = []
        self._versions = {p: version(p) for p, _ in self._with_own_master()}
        self._tell_layers()

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Only for the base class: all groups are known from the start.

        Raises:
            UsageError: The optimizer exists already.
        """
        if self._complete:
            raise UsageError(
                "the optimizer must know every parameter from the start: give it all, "
                "and let requires_grad_(False) hold back those that come later"
            )
        super().add_param_group(param_group)

    def _share_with_base(self) -> None:
        # One list of groups and one state: a scheduler may hold either optimizer.
        self.base.param_groups, self.base.state = self.param_groups, self.state

    @property
    def _clock(self) -> dict[str, Any]:
        return self.param_groups[0]

    @property
    def _exchanged(self) -> bool:
        """Whether other parameters than those it was built with stand in the groups."""
        known = (self.state.get(p, {}) for p, _ in self.sparse_parameters())
        return any("dense" not in state for state in known)

    def _refuse_exchanged(self) -> None:
        if self._exchanged:
            raise UsageError(
                "the optimizer's parameters were exchanged, as wrappers do that shard: "
                "build it after wrapping, or call adopt() before the first step if "
                "nothing is pruned yet"
            )

    def _refuse_stale(self) -> None:
        for p, plan in self._with_own_master():
            if self._versions.get(p) == version(p):
                continue
            # Written, as by a wrapper that broadcasts, but perhaps with what it held.
            if not torch.equal(local(p), self._view(p, plan).to(p.dtype)):
                raise UsageError(
                    "a weight was changed behind the optimizer's back: build the "
                    "optimizer after loading and wrapping, or call adopt()"
                )
            self._versions[p] = version(p)

    def _refuse_not_finite(self, step: int) -> None:
        # NaN stays, and beats no other weight: its group would keep more than N.
        sums = ShardSum(1)
        for p, _ in self.sparse_parameters():
            sums.beside(p).add_(self._dense(p).sum())
        if not bool(sums.total().isfinite()):
            raise NonFiniteError(
                f"step {step}: weights are not finite, after a gradient of the last "
                f"{CHECK_EVERY} steps that was not; go back to a checkpoint before it"
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

    def _tell_layers(self) -> None:
        """Tell rewired layers which rules hold, and where the recipe's memory is."""
        for p, forward in self._rewired or ():
            state = self.state[p]
            forward.active = self.rules.sparse
            forward.memory = {
                key: state[key] for key in self._memory_keys & state.keys()
            }


def _plan_of(group: dict[str, Any]) -> LayerPlan | None:
    if group.get("pattern") is None:
        return None
    return LayerPlan(NMPattern.parse(str(group["pattern"])), int(group["axis"]))
