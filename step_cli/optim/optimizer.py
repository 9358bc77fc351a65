"""The optimizer owns the dense weights; the model holds the sparse view, in place.

In a sparse phase a parameter p *is* project(dense), so forward, backward, evaluation
and the model's ``state_dict()`` see what will be deployed, and ``p.grad`` is the
gradient at the sparse point: line 17 of STEP's Algorithm 1 (Lu et al., ICML 2023).

``SparseOptimizer`` wraps any ``torch.optim.Optimizer``. At each step it gives the base
optimizer the dense weights to update in the parameters' place, and projects the result
back into the model. Only the update under a frozen variance is our own. Here is what a
step and the switch point are; `dense_owner.py` has the state, `sparse_view.py` what the
model holds of it.
"""

import math
from collections.abc import Callable, Collection, Iterator
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from step_cli.autoswitch.autoswitch import SwitchRule, VarianceSample
from step_cli.errors import NonFiniteError, UsageError
from step_cli.nm.pattern import NMSpec
from step_cli.optim.adam import EpsMode, adam_step
from step_cli.optim.finite_watch import FiniteWatch, said_if_it_overflows
from step_cli.optim.mask_watch import MaskWatch
from step_cli.optim.masters import working_on
from step_cli.optim.param_groups import plan_of
from step_cli.optim.recipe import Phase, Recipe
from step_cli.optim.refusals import refuse_impossible, refuse_unknown
from step_cli.optim.shards import ShardSum, local, local_grad
from step_cli.optim.sparse_view import SparseView
from step_cli.optim.variance import VarianceWatch, variances

VarianceCorrection = Literal["at_switch", "none"]
AT_ONCE = 16 << 20  # bytes of gradients made for the update before it is done


class SparseOptimizer(SparseView):
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
        compile: Use compiled kernels where the recipe allows; None: from
            `COMPILE_FROM` weights on, where the first call's seconds pay.

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
        refuse_unknown(eps_mode=eps_mode, v_correction=v_correction)
        self.watch_masks = False
        self._late: set[Tensor] = set()
        self._eps_mode, self._raw_variance = eps_mode, v_correction == "none"
        self._watch = VarianceWatch(switch, record=record)
        self._mask_watch, self._finite = MaskWatch(), FiniteWatch()
        super().__init__(base, recipe, total_steps)
        refuse_impossible(base, recipe, switch, eps_mode, total_steps)
        self._create_state()
        self._wish_to_compile = compile
        self._choose_kernels()
        if recipe.before.sparse:
            self._enter_phase()
        elif switch is not None and switch.first_step == 0:
            self._switch_after(0, "fixed")

    # ------------------------------------------------------------------------ one step

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @override
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the dense weights, then project them into the model."""
        step: Callable[..., float | None] = self._step
        if torch.compiler.is_compiling():  # what pays to compile is compiled within
            step = torch.compiler.disable(step)  # type: ignore[no-untyped-call]
        return step(closure)

    @torch.no_grad()
    def _step(self, closure: Callable[[], float] | None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rules, t = self.rules, self.steps_taken + 1
        undecided = self.recipe.switches and not self._switched
        self._refuse_exchanged()
        if self._follow_parameters():
            self._tell_layers()
            self._choose_kernels()
        self._refuse_stale()
        self._refuse_unwired(rules)
        self._refuse_shown_otherwise()
        self._refuse_sparse_gradients()
        self._finite.look(t, self.param_groups, self._dense)
        self._watch.forget()
        if rules.learn_variance:
            self._watch.begin(self, t, undecided=undecided)
        watched = self.watch_masks and rules.sparse
        self._mask_watch.begin(p for p, _ in self.sparse_parameters() if watched)
        self._clock["t"] = t
        for stand_ins in self._parts(rules):
            self._take_part(rules, stand_ins)
        self._watch.end()
        self._mask_watch.end()
        reason = self._watch.reason_at(t) if undecided else None
        if reason is not None:
            self._switch_after(t, reason)
        return loss

    def _choose_kernels(self) -> None:
        compiles = self._will_compile(self._wish_to_compile)
        self._compiled = self._watch.compiled = compiles

    def _take_part(self, rules: Phase, stand_ins: dict[Tensor, Tensor]) -> None:
        """Do all that a step does to some of the parameters."""
        for p, dense in stand_ins.items():
            self._mask_watch.before_update(p, local(p), dense)
        self._watch.before_update(stand_ins)
        # Adam takes the keys it knows; others ask whether there are any at all.
        hidden = () if isinstance(self.base, torch.optim.Adam) else self._own_keys
        overflow = said_if_it_overflows(self.steps_taken)
        with working_on(stand_ins, self.base, hidden), overflow:
            self._update(rules, {stand_ins[p] for p in self._late if p in stand_ins})
        self._publish(stand_ins)
        for p, dense in stand_ins.items():
            self._mask_watch.after_update(p, local(p), dense)

    def _update(self, rules: Phase, late: Collection[Tensor]) -> None:
        """Update the dense weights, which the base has for its parameters now."""
        if rules.learn_variance and self._eps_mode == "outside":
            self.base.step()
            return
        adam_step(
            self.base,
            eps_mode=self._eps_mode,
            raw_variance=self._raw_variance and not rules.learn_variance,
            learn_variance=rules.learn_variance,
            late=late,
            compiled=self._compiled,
        )

    def _parts(self, rules: Phase) -> Iterator[dict[Tensor, Tensor]]:
        """Each parameter, and the tensor that is updated in its place.

        In parts, so that the gradients made for them never exist all at once.
        """
        part: dict[Tensor, Tensor] = {}
        made = 0
        for group in self.param_groups:
            plan = plan_of(group)
            for p in group["params"]:
                part[p] = dense = self._dense(p)
                if dense is not p:
                    dense.grad = self._grad(p, dense, plan, rules)
                    made += _bytes_made(dense.grad, p.grad)
                if made >= AT_ONCE and self._works_in_parts:
                    yield part
                    part, made = {}, 0
        if part:
            yield part

    @property
    def _works_in_parts(self) -> bool:
        # Torch's own treat each parameter by itself; others may keep what all share.
        return type(self.base).__module__.startswith("torch.optim.")

    def _grad(
        self, p: Tensor, dense: Tensor, plan: NMSpec | None, rules: Phase
    ) -> Tensor | None:
        """The gradient for the dense weights, as the recipe wants it."""
        given = local_grad(p)
        if given is None:
            return None
        grad = given.to(dense.dtype)
        if plan is None or not rules.sparse:
            return grad
        layer = self._layer(p, plan, ago=1)
        return self.recipe.learner.gradient(grad, local(p), layer)

    # ---------------------------------------------------------------- the switch point

    def _switch_after(self, step: int, reason: str) -> None:
        if not self.recipe.after.learn_variance:
            self._freeze_variance(step)
        self._clock.update(switch_step=step, switch_reason=reason, switch_memory=[])
        self._find_late()
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

    def _find_late(self) -> None:
        """Remember which parameters had seen no gradient when the variance froze."""
        frozen = self._switched and not self.recipe.after.learn_variance
        self._late = {
            p
            for p, _, _ in variances(self)
            if frozen and not self.state[p]["variance_step"]
        }

    # ------------------------------------------------------------- what it has measured

    @property
    def rule(self) -> SwitchRule | None:
        """What decides the switch point."""
        return self._watch.rule

    def variance_sample(self) -> VarianceSample | None:
        """What the last step did to the variance; None if it was not measured."""
        return None if self._watch.last is None else self._watch.last.read()

    def layer_changes(self) -> list[tuple[float, float]]:
        """What the last step did to each parameter's variance, if it was watched.

        In the order of ``core.variance.variances``: L1 norm, sum of changes.
        """
        return [] if self._watch.last is None else self._watch.last.read_layers()

    @property
    def watch_layers(self) -> bool:
        """Whether the next steps are measured parameter by parameter too."""
        return self._watch.layers

    @watch_layers.setter
    def watch_layers(self, wanted: bool) -> None:
        self._watch.layers = wanted

    def flip_rate(self) -> float | None:
        """Share of mask entries the last step changed, if ``watch_masks`` was set."""
        return self._mask_watch.flip_rate()

    def flip_rates(self) -> dict[Tensor, float] | None:
        """The same share for each sparse parameter by itself."""
        return self._mask_watch.flip_rates()

    def pruned_update_share(self) -> float | None:
        """Share of the last update that fell on pruned weights, if it was watched."""
        return self._mask_watch.pruned_update_share()

    # ----------------------------------------------------------------------- the state

    @override
    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state, the dense weights and the state of the switch."""
        packed = super().state_dict()
        if self.rule is not None and not self._switched:
            self._watch.flush()
            criterion = self.rule.criterion
            packed["param_groups"][0].update(
                switch_criterion=criterion.name, switch_memory=criterion.state()
            )
        return packed

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; load the model's weights first."""
        super().load_state_dict(state_dict)
        self._watch.restart()
        self._mask_watch.begin(())
        self._find_late()
        if self.rule is not None and not self._switched:
            criterion, theirs = self.rule.criterion, self._clock["switch_criterion"]
            if theirs not in ("", criterion.name):
                raise UsageError(
                    f"the state holds what {theirs!r} remembers, but the switch is "
                    f"decided by {criterion.name!r}"
                )
            criterion.load(self._clock["switch_memory"])
        self._clock.update(switch_criterion="", switch_memory=[])


def _bytes_made(grad: Tensor | None, given: Tensor | None) -> int:
    """Memory that a gradient takes beside the parameter's own."""
    if grad is None or given is None or grad.data_ptr() == local(given).data_ptr():
        return 0
    return grad.nbytes
