"""The optimizer owns the dense weights; the model holds the sparse view, in place.

In a sparse phase a parameter p *is* project(dense), so forward, backward, evaluation
and the model's ``state_dict()`` see what will be deployed, and ``p.grad`` is the
gradient at the sparse point: line 17 of STEP's Algorithm 1 (Lu et al., ICML 2023).

``SparseOptimizer`` wraps any ``torch.optim.Optimizer``. At each step it puts the dense
weights in the parameters' place, lets the base optimizer update them, and projects the
result back into the model. Only the update under a frozen variance is our own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from step_cli.core.adam import EpsMode, adam_step, create_adam_state
from step_cli.core.autoswitch import SwitchRule, VarianceSample
from step_cli.core.mask import check_groups, keep_mask
from step_cli.core.masters import (
    in_place_of_parameters,
    is_master,
    master_copy,
    shares_memory,
)
from step_cli.core.pattern import NMPattern
from step_cli.core.plan import LayerPlan
from step_cli.core.recipe import Phase, Recipe
from step_cli.core.refusals import refuse_impossible
from step_cli.core.variance import VarianceWatch
from step_cli.errors import UsageError

VarianceCorrection = Literal["at_switch", "none"]

OUR_KEYS = ("dense", "mask", "variance_step")  # of the state; the base never sees them


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
    ) -> None:
        self.base, self.recipe = base, recipe
        self.watch_flips = False
        self._eps_mode, self._raw_variance = eps_mode, v_correction == "none"
        self._watch = VarianceWatch(switch, record=record)
        self._flips: Tensor | None = None
        self._versions: dict[Tensor, int] = {}
        super().__init__(base.param_groups, base.defaults)
        self._share_with_base()
        self._clock.update(t=0, switch_step=0, switch_reason="", switch_memory=[])
        refuse_impossible(base, recipe, switch, eps_mode)
        for p, plan in self.sparse_parameters():
            check_groups(tuple(p.shape), plan.pattern, plan.axis)
        self._create_state()
        if recipe.before.sparse:
            self._enter_sparse()
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
        """Share of mask entries the last step changed, if ``watch_flips`` was set."""
        if self._flips is None:
            return None
        return float(self._flips) / sum(p.numel() for p, _ in self.sparse_parameters())

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
        with self._showing(lambda p, plan: self.state[p]["dense"]):
            yield

    @contextmanager
    def sparse_weights(self) -> Iterator[None]:
        """Let the model hold its pruned twin, in a dense phase too."""
        with self._showing(self._projected):
            yield

    @torch.no_grad()
    def adopt(self) -> None:
        """Take the model's present weights for the dense ones, as after loading."""
        for p, _ in self.sparse_parameters():
            self.state[p]["dense"] = master_copy(p)
        if self.rules.sparse:
            self._publish()

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
        self._refuse_stale(rules)
        self._watch.forget()
        if rules.learn_variance:
            self._watch.before_update(self, t, undecided=undecided)
        swaps = [
            (p, self.state[p]["dense"], self._grad(p, plan, rules))
            for p, plan in self._with_own_master()
        ]
        with in_place_of_parameters(swaps):
            self._update(rules)
        if rules.learn_variance:
            self._watch.after_update(self)
        self._clock["t"] = t
        reason = self._watch.reason_at(t) if undecided else None
        if reason is not None:
            self._switch_after(t, reason)
        else:
            self._publish()
        return loss

    def _update(self, rules: Phase) -> None:
        """Update the parameters, which hold the dense weights now."""
        if not rules.learn_variance or self._eps_mode == "inside":
            adam_step(
                self,
                eps_mode=self._eps_mode,
                raw_variance=self._raw_variance and not rules.learn_variance,
                learn_variance=rules.learn_variance,
            )
            return
        hidden = [
            (state, {key: state.pop(key) for key in OUR_KEYS if key in state})
            for state in self.state.values()
        ]
        try:
            self.base.step()
        finally:
            for state, ours in hidden:
                state.update(ours)

    def _grad(self, p: Tensor, plan: LayerPlan | None, rules: Phase) -> Tensor | None:
        """The gradient for the dense weights, with what the recipe adds to it."""
        if p.grad is None:
            return None
        dense = self.state[p]["dense"]
        grad = p.grad.to(dense.dtype)
        if plan is None or not rules.sparse:
            return grad
        if not rules.refresh_mask:
            return torch.mul(grad, self.state[p]["mask"])
        extra = self.recipe.extra_grad(dense, p != 0)  # the mask of the last forward
        return grad if extra is None else grad + extra

    # ------------------------------------------------------------------ the projection

    def _publish(self) -> None:
        """Write what the optimizer owns into the model, as the present rules ask."""
        flips: list[Tensor] = []
        for p, plan in self._with_own_master():
            if plan is None or not self.rules.sparse:
                p.copy_(self.state[p]["dense"])
                continue
            before = p != 0 if self.watch_flips else None
            p.copy_(self._projected(p, plan))
            self._versions[p] = p._version
            if before is not None:
                flips.append((before != (p != 0)).sum())
        self._flips = torch.stack(flips).sum() if flips else None

    def _projected(self, p: Tensor, plan: LayerPlan) -> Tensor:
        state, rules = self.state[p], self.rules
        if rules.sparse and not rules.refresh_mask:
            keep = state["mask"]
        else:
            keep = keep_mask(state["dense"].abs(), plan.pattern, plan.axis)
        age = self.steps_taken - int(self._clock["switch_step"])
        return self.recipe.project(state["dense"], keep, plan, age)

    @torch.no_grad()
    def _enter_sparse(self) -> None:
        """Part the dense weights from the parameters, and project them."""
        for p, plan in self.sparse_parameters():
            state = self.state[p]
            if shares_memory(state["dense"], p):
                state["dense"] = master_copy(p)
            if not self.rules.refresh_mask:
                scores = state["dense"].abs()
                state["mask"] = keep_mask(scores, plan.pattern, plan.axis)
        self._publish()
        self._flips = None

    @contextmanager
    def _showing(self, view: Callable[[Tensor, LayerPlan], Tensor]) -> Iterator[None]:
        with torch.no_grad():
            kept = [(p, p.clone(), view(p, n)) for p, n in self.sparse_parameters()]
            for p, _, shown in kept:
                p.copy_(shown)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, own, _ in kept:
                    p.copy_(own)
                    self._versions[p] = p._version

    def _with_own_master(self) -> Iterator[tuple[Tensor, LayerPlan | None]]:
        """Each parameter whose dense weights lie outside it, and its plan."""
        for group in self.param_groups:
            for p in group["params"]:
                dense = self.state[p].get("dense")
                if dense is not None and not shares_memory(dense, p):
                    yield p, _plan_of(group)

    # ---------------------------------------------------------------- the switch point

    @property
    def _switched(self) -> bool:
        return bool(self._clock["switch_reason"])

    def _switch_after(self, step: int, reason: str) -> None:
        if not self.recipe.after.learn_variance:
            self._freeze_variance(step)
        self._clock.update(switch_step=step, switch_reason=reason, switch_memory=[])
        self._enter_sparse()

    def _freeze_variance(self, step: int) -> None:
        states = [state for state in self.state.values() if "exp_avg_sq" in state]
        for state in states:
            state["variance_step"].copy_(state["step"])
        if not any(bool(state["exp_avg_sq"].any()) for state in states):
            raise UsageError(
                f"the variance is zero at step {step}, and freezing it would divide by "
                "nothing; switch after a step that has gradients"
            )

    # ----------------------------------------------------------------------- the state

    def _create_state(self) -> None:
        """Create every key now: distributed checkpoints load by key."""
        static = not (
            self.recipe.before.refresh_mask and self.recipe.after.refresh_mask
        )
        for group in self.param_groups:
            plan = _plan_of(group)
            for p in group["params"]:
                state = self.state[p]
                if isinstance(self.base, torch.optim.Adam):
                    create_adam_state(state, p, group)
                if plan is not None or not is_master(p):
                    # In a dense phase fp32 weights are their own master: no copy yet.
                    state["dense"] = p.detach() if is_master(p) else master_copy(p)
                if plan is not None and static:
                    state["mask"] = torch.ones_like(p, dtype=torch.bool)

    @override
    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state, the dense weights and the state of the switch."""
        if self.rule is not None and not self._switched:
            self._watch.flush()
            self._clock["switch_memory"] = self.rule.criterion.state()
        return super().state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; load the model's weights first."""
        super().load_state_dict(state_dict)
        self._share_with_base()
        saved_groups = state_dict["param_groups"]
        for group, saved_group in zip(self.param_groups, saved_groups, strict=True):
            for p, index in zip(group["params"], saved_group["params"], strict=True):
                self._restore_precision(p, state_dict["state"].get(index, {}))
        if self.rule is not None and not self._switched:
            self.rule.criterion.load(self._clock["switch_memory"])
        self._versions = {p: p._version for p, _ in self.sparse_parameters()}

    def _restore_precision(self, p: Tensor, saved: dict[str, Any]) -> None:
        # The base class casts every tensor to the parameter's dtype: masks too.
        for key, value in saved.items():
            if isinstance(value, Tensor) and value.dim():
                self.state[p][key] = value.detach().to(p.device, copy=True)
        if "dense" in saved and is_master(p) and not self.rules.sparse:
            self.state[p]["dense"] = p.detach()

    def _share_with_base(self) -> None:
        # One list of groups and one state: a scheduler may hold either optimizer.
        self.base.param_groups, self.base.state = self.param_groups, self.state

    @property
    def _clock(self) -> dict[str, Any]:
        return self.param_groups[0]

    def _refuse_stale(self, rules: Phase) -> None:
        for p, version in self._versions.items() if rules.sparse else ():
            if version != p._version:
                raise UsageError(
                    "a sparse weight was changed behind the optimizer's back: build "
                    "the optimizer after loading and wrapping, or call adopt()"
                )


def _plan_of(group: dict[str, Any]) -> LayerPlan | None:
    if group.get("pattern") is None:
        return None
    return LayerPlan(NMPattern.parse(str(group["pattern"])), int(group["axis"]))
