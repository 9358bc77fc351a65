"""The optimizer owns the dense weights; the model holds the sparse view, in place.

In a sparse phase a parameter *is* project(dense), so forward, backward, evaluation and
the model's ``state_dict()`` see what will be deployed, and ``p.grad`` is the gradient
at the sparse point: line 17 of STEP's Algorithm 1 (Lu et al., ICML 2023), which
`reference.py` has in the paper's letters.

A step reads from top to bottom in `SparseOptimizer._step`: guards, then for each part
of the weights gradient, update and projection, then the switch. `weights.py` has what
one parameter is to a step, `projection.py` what the model holds of it, `recipe.py` what
recipes may change.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from step_cli.autoswitch.autoswitch import Criterion, SwitchRule, VarianceSample
from step_cli.errors import UsageError
from step_cli.nm.pattern import NMSpec
from step_cli.optim import guards
from step_cli.optim.adam import EpsMode, adam_step, freeze_variance
from step_cli.optim.backward import RewiredForward, rewire
from step_cli.optim.compiled import can_compile
from step_cli.optim.foreign import (
    Witness,
    load_more,
    only_within,
    refuse_wrapper,
    saves_more,
    step_alone,
)
from step_cli.optim.loading import belongs, judged, loaded_groups, restored, saved_of
from step_cli.optim.mask import check_groups
from step_cli.optim.projection import (
    Moment,
    give_gradients,
    project,
    pruned_view,
    view,
)
from step_cli.optim.recipe import Phase, Recipe
from step_cli.optim.shards import check_shards, local
from step_cli.optim.state import (
    create_state,
    has_stepped,
    move_state,
    recipe_state,
    refuse_layers,
    with_index,
)
from step_cli.optim.variance import VarianceWatch
from step_cli.optim.views import OtherView
from step_cli.optim.watch import BY_BASE, FiniteWatch, MaskWatch
from step_cli.optim.weights import (
    Part,
    Weight,
    count_updates,
    dense_copy,
    is_asleep,
    is_precise,
    names_of,
    parts_of,
    resolve,
    shared_state,
    spec_of,
)

VarianceCorrection = Literal["at_switch", "none"]
COMPILE_FROM = 20_000_000  # sparse weights


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
        guards.refuse_unknown(eps_mode=eps_mode, v_correction=v_correction)
        if any(map(has_stepped, base.state.values())):
            raise UsageError("the base optimizer has taken steps: give a fresh one")
        for group in base.param_groups:
            guards.check_group(group)
        self.base, self.recipe = base, recipe
        self.watch_masks = False  # measure flips and updates in the next steps
        self.watch_layers = False  # measure the variance of each parameter by itself
        self._eps_mode, self._raw_variance = eps_mode, v_correction == "none"
        self._wish_to_compile, self._compiled = compile, False
        self._watch = VarianceWatch(switch, record=record)
        self._mask_watch, self._finite = MaskWatch(), FiniteWatch(base)
        self._weights: list[Weight] = []
        self._parts: list[Part] = []
        self._rewired: dict[RewiredForward, Tensor] | None = None
        self._in_other_view = False
        self._unsure = True  # of what the model holds: compare all of it once
        self._total_steps = 0
        if total_steps is not None:
            self._total_steps = guards.number_of_steps(total_steps)
        super().__init__(base.param_groups, base.defaults)
        self._updates_base = False
        only_within(base, self)
        self._counters.update(t=0, switch_step=0, switch_reason="", switch_memory=[])
        self._counters.update(switch_criterion="", recipe=recipe.name)
        self._counters["total_steps"] = self._total_steps
        refuse_wrapper(base, recipe)
        guards.refuse_impossible(base, recipe, switch, eps_mode, total_steps)
        self._create_state()
        if recipe.before.sparse:
            self._enter_phase()
        elif switch is not None and switch.first_step == 0:
            self._switch_after(0, "fixed")
        self._finite.written.keep(self._weights)

    # ------------------------------------------------------------------------ one step

    @override
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update the dense weights, then project them into the model.

        Args:
            closure: Evaluates the loss again, which is then returned.
        """
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
        before, phase, t = self._now, self.current_phase, self.steps_taken + 1
        undecided = self.recipe.switches and self.switch_step is None
        self._check()
        if self._rewired is None and phase.sparse:
            guards.refuse_unwired(self.recipe.inner_recipe, self._weights)
        self._finite.look(t, self._weights)
        self._wake()
        with self._watching(phase, t, undecided=undecided), guards.overflow_as_error(t):
            self._counters["t"] = t
            for part in self._parts:
                try:
                    give_gradients(part.weights, self.recipe.inner_recipe, before)
                    self._watch.before_update(part.weights)
                    self._mask_watch.before_update(part.weights)
                    resting = part.resting()
                    self._update(part, phase)
                finally:
                    part.forget_gradients()
                self._project(part.weights, resting=resting)
                self._mask_watch.after_update(part.weights)
        reason = self._watch.reason_at(t) if undecided else None
        if reason is not None:
            self._switch_after(t, reason)
        self._finite.written.keep(self._weights)
        return loss

    def _wake(self) -> None:
        """Let layers that were frozen from the start take part, at their gradient."""
        woken = [w for w in self._weights if w.asleep and w.param.grad is not None]
        if not woken:
            return
        for w in woken:
            w.state["asleep"].zero_()
            if self.current_phase.sparse and is_precise(w.param):
                w.state["dense"] = dense_copy(w.param)
        self._resolve()
        params = {w.param for w in woken}
        self._project([w for w in self._weights if w.param in params], starts=True)

    def _check(self) -> None:
        """Refuse weights not left as they were; follow a model that was moved."""
        params = [p for group in self.param_groups for p in group["params"]]
        known = len(params) == len(self._weights) and all(
            w.is_current(p, self.state)
            for w, p in zip(self._weights, params, strict=True)
        )
        if not known:
            self._follow_model()
        if self._in_other_view:
            raise UsageError(
                "not inside dense_weights() or sparse_weights(): the model holds "
                "another view there, and gets its own back at the end"
            )
        guards.check_weights(
            self._weights, self.param_groups, self._view, wholly=self._unsure
        )
        self._unsure = False

    @contextmanager
    def _watching(self, phase: Phase, t: int, *, undecided: bool) -> Iterator[None]:
        """Measure what the step does to variance and masks, if anyone asks."""
        self._watch.forget()
        if phase.learn_variance:
            self._watch.begin(
                self._weights,
                self.param_groups,
                t,
                undecided=undecided,
                layers=self.watch_layers,
            )
        watched = self.watch_masks and phase.sparse
        weights = self._sparse_weights() if watched else ()
        self._mask_watch.begin(weights, self.param_groups)
        yield
        self._watch.end()
        self._mask_watch.end()

    def _update(self, part: Part, phase: Phase) -> None:
        """Update the dense weights: by the base, or by Adam under a frozen variance."""
        if not self._updates_itself(phase):
            witness = Witness(part.weights, self.steps_taken)
            self._let_base(part, step_alone(self.base))
            witness.check(self.base, self._finite.sums, BY_BASE)
            return
        adam_step(
            part.weights,
            self.param_groups,
            eps_mode=self._eps_mode,
            raw_variance=self._raw_variance and not phase.learn_variance,
            learn_variance=phase.learn_variance,
            compiled=self._compiled,
        )

    def _let_base(self, part: Part, act: Callable[[], object]) -> None:
        self._updates_base = True
        try:
            part.let_base(act)
        finally:
            self._updates_base = False

    def _updates_itself(self, phase: Phase) -> bool:
        return not phase.learn_variance or self._eps_mode == "inside"

    # ------------------------------------------------------------------ the projection

    def _project(
        self,
        weights: list[Weight],
        *,
        starts: bool = False,
        resting: Mapping[Weight, int] | None = None,
    ) -> None:
        """Write into the model what it is to hold of some weights, or of all.

        Args:
            weights: Which.
            starts: See :class:`SparseLayer`.
            resting: Those without a gradient, and the version of their dense weights
                before the update, which not every base leaves as they are.
        """
        project(
            weights,
            self.recipe.inner_recipe,
            self._now,
            starts=starts,
            compiled=self._compiled,
            resting={w for w, n in (resting or {}).items() if w.dense._version == n},
        )

    def _view(self, w: Weight) -> Tensor:
        """What the model is to hold of a weight in the present phase."""
        return view(w, self.recipe.inner_recipe, self._now)

    @property
    def _now(self) -> Moment:
        start, total = self._counters["switch_step"], self._counters["total_steps"]
        return Moment(self.current_phase, self.steps_taken, int(start), total or None)

    @torch.no_grad()
    def _enter_phase(self) -> None:
        """Part the dense weights from the parameters, or join them, as rules ask."""
        for w in self._sparse_weights():
            if not is_precise(w.param) or w.asleep:
                continue
            if self.current_phase.sparse:
                w.state["dense"] = dense_copy(w.param)
            elif self.recipe.before.sparse:
                w.shown.copy_(w.dense)
                w.state["dense"] = w.param.detach()
        self._resolve()
        self._project(self._weights, starts=True)
        self._unsure = True

    # ---------------------------------------------------------------- the switch point

    def _switch_after(self, step: int, reason: str) -> None:
        if not self.recipe.after.learn_variance:
            freeze_variance(self._weights, step)
        self._counters.update(switch_step=step, switch_reason=reason, switch_memory=[])
        self._enter_phase()

    # ---------------------------------------------------------------- where training is

    @property
    def current_phase(self) -> Phase:
        """The rules that the next step follows."""
        return self.recipe.before if self.switch_step is None else self.recipe.after

    @property
    def phase(self) -> str:
        """``precondition``, ``mask-learning``, ``fine-tune`` or ``dense``."""
        return self.current_phase.name

    @property
    def steps_taken(self) -> int:
        """How many steps have been taken."""
        return int(self._counters["t"])

    @property
    def total_steps(self) -> int | None:
        """Length of the training, where it is known."""
        return int(self._counters["total_steps"]) or None

    @property
    def switch_step(self) -> int | None:
        """The switch point t0, the last step before the rules changed; None before."""
        return int(self._counters["switch_step"]) if self.switch_reason else None

    @property
    def switch_reason(self) -> str | None:
        """``threshold``, ``t_max`` or ``fixed``; None before the switch."""
        return self._counters["switch_reason"] or None

    @property
    def rule(self) -> SwitchRule | None:
        """What decides the switch point."""
        return self._watch.rule

    @property
    def _counters(self) -> dict[str, Any]:
        # Only groups and states are carried by everything that saves optimizers.
        return self.param_groups[0]

    def sparse_parameters(self) -> Iterator[tuple[Tensor, NMSpec]]:
        """Each parameter that is to become N:M, with its pattern and axis."""
        for group in self.param_groups:
            spec = spec_of(group)
            if spec is not None:
                for p in group["params"]:
                    yield p, spec

    def _sparse_weights(self) -> Iterator[Weight]:
        return (w for w in self._weights if w.spec is not None)

    # ------------------------------------------------------------- what it has measured

    def variance_sample(self) -> VarianceSample | None:
        """What the last step did to the variance; None if it was not measured."""
        return None if self._watch.last is None else self._watch.last.read()

    def layer_changes(self) -> list[tuple[float, float]]:
        """What the last step did to each parameter's variance, if it was watched.

        In the order of ``optim.variance.variances``: L1 norm, sum of changes.
        """
        return [] if self._watch.last is None else self._watch.last.read_layers()

    def flip_rate(self) -> float | None:
        """Share of mask entries the last step changed, if ``watch_masks`` was set."""
        return self._mask_watch.flip_rate()

    def flip_rates(self) -> dict[Tensor, float] | None:
        """The same share for each sparse parameter by itself."""
        return self._mask_watch.flip_rates()

    def pruned_update_share(self) -> float | None:
        """Share of the last update that fell on pruned weights, if it was watched."""
        return self._mask_watch.pruned_update_share()

    def variance_ratio(self) -> float | None:
        """Mean square of the last gradient over that of the frozen variance.

        Of sparse weights; about 1 while the variance that STEP has frozen describes the
        gradients. Where it is r, steps are about sqrt(r) times as long as Adam's.
        """
        return self._mask_watch.variance_ratio()

    # ------------------------------------------------------------------- another view

    @contextmanager
    def dense_weights(self, *, write: bool = False) -> Iterator[None]:
        """Let the model hold the dense weights for the length of a ``with`` block.

        Args:
            write: What is written to the model inside becomes the dense weights, of
                which the model then gets its own view. What the recipe keeps, such as
                a frozen mask, stays.
        """
        with self._showing(lambda w: w.dense, write=write):
            yield

    @contextmanager
    def sparse_weights(self) -> Iterator[None]:
        """Let the model hold its pruned twin, in a dense phase too."""
        inner, now = self.recipe.inner_recipe, self._now
        pruned = view if now.phase.sparse else pruned_view
        with self._showing(lambda w: pruned(w, inner, now), computed=True):
            yield

    @contextmanager
    def _showing(
        self,
        shows: Callable[[Weight], Tensor],
        *,
        write: bool = False,
        computed: bool = False,
    ) -> Iterator[None]:
        self._check()
        with torch.no_grad():
            self._finite.refuse_changes(self._weights)
            shown = OtherView(self._weights, shows, writes=write, computed=computed)
        self._in_other_view = True
        written = None
        try:
            yield
            with torch.no_grad():
                written = shown.take() if write else shown.changed()
        finally:
            self._in_other_view = False
            with torch.no_grad():
                shown.end()
                if write and written is not None:
                    self._project(self._weights)
                    self._finite.written.keep(self._weights)
        if written is not None and not write:
            raise UsageError(
                f"{written} was changed inside a view, which ends with it: write "
                "inside dense_weights(write=True)"
            )

    # ------------------------------------------------------------ a base that has modes

    def train(self) -> None:
        """Let a base that has modes, as schedule-free ones, go on with training."""
        self._go_to("train")

    def eval(self) -> None:
        """Let it put what is to be evaluated, or saved, in the place of the weights."""
        self._go_to("eval")

    @torch.no_grad()
    def _go_to(self, mode: str) -> None:
        change = getattr(self.base, mode, None)
        if change is None:
            return
        self._check()
        self._finite.refuse_changes(self._weights)
        for part in self._parts:
            self._let_base(part, change)
        self._project(self._weights)
        self._finite.written.keep(self._weights)

    # ------------------------------------------------------- a model that is exchanged

    @torch.no_grad()
    def adopt(self) -> None:
        """Take the model's present weights for the dense ones, as after loading.

        Before anything is pruned or learned, other parameters may have taken the place
        of those the optimizer was built with.
        """
        untouched = not self.current_phase.sparse and not self.steps_taken
        if untouched and guards.is_exchanged(self.param_groups, self.state):
            self.state.clear()
            self.unwire()
            self._create_state()
        self._follow_model()
        for w in self._weights:
            if w.apart and not guards.holds_view(w, self._view):
                w.state["dense"] = dense_copy(w.param)
        self._resolve()
        self._project(self._weights, starts=True)
        self._finite.written.keep(self._weights)
        self._unsure = False

    def rewire(self, model: nn.Module) -> None:
        """Let the layers of ``model`` compute gradients as the recipe asks.

        For recipes that change the backward pass; names and weights stay.
        """
        self.unwire()
        inner = self.recipe.inner_recipe
        rules = {p: (s.axis, inner.backward(s)) for p, s in self.sparse_parameters()}
        self._rewired = rewire(model, rules, type(inner).__name__)
        self._activate_layers()

    def unwire(self) -> None:
        """Give the layers of the model the ``forward`` back that they had.

        A model that is pickled, copied or saved whole is without it by itself.
        """
        for forward in self._rewired or ():
            forward.take_off()
        self._rewired = None

    def _activate_layers(self) -> None:
        """Set in rewired layers which rules hold, and where the recipe's state is."""
        for forward, p in (self._rewired or {}).items():
            keys = self._recipe_keys & self.state[p].keys()
            awake = not is_asleep(self.state[p])
            forward.active = self.current_phase.sparse and awake
            forward.state = {key: local(self.state[p][key]) for key in keys}

    def _follow_model(self) -> None:
        """Resolve all weights anew, and move their state to where the model has gone.

        Wrappers move a model after the optimizer was built.
        """
        self._begin_anew()
        guards.check_parameters(self.param_groups, self.state)
        self._move_state()
        self._resolve()

    def _begin_anew(self) -> None:
        """Give weights whose state was cleared a new one, as the base would."""
        self.base.param_groups, self.base.state = self.param_groups, self.state
        present = {p for group in self.param_groups for p in group["params"]}
        known = [w for w in self._weights if w.param in present]
        cleared = [w for w in known if not self.state.get(w.param)]
        guards.refuse_lost(cleared)
        for w in cleared:
            self.state[w.param] = self._new_state(w.param, self.param_groups[w.group])

    def _move_state(self) -> None:
        for w in self._weights:
            moved = w.param.dtype != w.dtype or w.param.device != w.device
            if moved or w.param.shape != w.shape:
                guards.check_moved(w)
                move_state(w.state, w.param, self.param_groups[w.group])
            if "dense" in w.state and not w.apart:
                w.state["dense"] = w.param.detach()

    # ----------------------------------------------------------------------- the state

    def _create_state(self) -> None:
        self._recipe_keys: set[str] = set()
        self.state.update(shared_state(self.base.state))
        refused: dict[str, UsageError] = {}
        for group in self.param_groups:
            for p, name in zip(group["params"], names_of([group]), strict=True):
                try:
                    self.state[p] = self._new_state(p, group)
                except UsageError as error:
                    refused[name] = error
        refuse_layers(refused)
        # One list of groups and one state: a scheduler may hold either optimizer.
        self.base.param_groups, self.base.state = self.param_groups, self.state
        self._resolve()

    def _new_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        spec = spec_of(group)
        if spec is not None:
            check_groups(tuple(p.shape), spec.pattern, spec.axis)
            check_shards(p, spec)
        own = recipe_state(self.recipe, p, spec)
        self._recipe_keys |= own.keys()
        return create_state(self.base, p, group, own)

    def _resolve(self) -> None:
        """Make the records of all weights, and what the base optimizer sees of them."""
        phase, inner = self.current_phase, self.recipe.inner_recipe
        versions = {w.param: w.version for w in self._weights}
        self._weights = resolve(self, phase, self._recipe_keys, versions)
        kept = inner.keeps_gradient
        if self._updates_itself(phase):
            count_updates(self._weights)
        made = [
            w.dense is not w.param and (not kept or not is_precise(w.param))
            for w in self._weights
        ]
        hidden = {"dense", "asleep", *self._recipe_keys}
        self._parts = parts_of(self.base, self._weights, hidden, made)
        self._activate_layers()
        self._choose_kernels()

    def _choose_kernels(self) -> None:
        shown = [w.shown for w in self._sparse_weights()]
        wanted = self._wish_to_compile
        if wanted is None:
            wanted = sum(tensor.numel() for tensor in shown) >= COMPILE_FROM
        kinds = {tensor.device.type for tensor in shown}
        self._compiled = wanted and all(map(can_compile, kinds))
        self._watch.compiled = self._compiled

    def _is_joined(self, p: Tensor) -> bool:
        """Whether a parameter that is to become sparse is its own dense weight now."""
        dense = not self.current_phase.sparse or is_asleep(self.state[p])
        return is_precise(p) and dense and "dense" in self.state[p]

    @override
    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state, the dense weights and the state of the switch."""
        post_hooks = self._optimizer_state_dict_post_hooks
        self._optimizer_state_dict_post_hooks = OrderedDict()  # they see all of it
        try:
            packed = super().state_dict()
        finally:
            self._optimizer_state_dict_post_hooks = post_hooks
        for p, index in with_index(self, packed["param_groups"]):
            if self._is_joined(p):
                # The model saves this memory too, and loading is in place.
                dense = p.detach().clone()
                packed["state"][index] = {**self.state[p], "dense": dense}
        if self.rule is not None and self.switch_step is None:
            self._watch.flush()
            criterion = self.rule.criterion
            packed["param_groups"][0].update(
                switch_criterion=criterion.name, switch_memory=criterion.state()
            )
        packed.update(saves_more(self.base))
        for hook in post_hooks.values():
            packed = _or(hook(self, packed), packed)
        return packed

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; load the model's weights first.

        Parameters are told by name where the state has names and the groups too.

        Raises:
            UsageError: It is of another model, optimizer, recipe, pattern or criterion;
                then nothing is taken over.
        """
        state_dict = state_dict.copy()
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = _or(hook(self, state_dict), state_dict)
        theirs = judged(state_dict, self.param_groups, self.state, self.recipe)
        before = self.state, self.param_groups, self._weights, self._parts
        try:
            self._take_state(theirs, state_dict["state"])
            load_more(self.base, {**state_dict, "param_groups": theirs})
        except Exception:
            self.state, self.param_groups, self._weights, self._parts = before
            self.base.param_groups, self.base.state = self.param_groups, self.state
            self._activate_layers()
            self._unsure = True
            raise
        self._watch.restart()
        self._mask_watch.begin(())
        self._finite.written.keep(self._weights)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    @torch.no_grad()
    def _take_state(self, groups: list[dict[str, Any]], states: dict[Any, Any]) -> None:
        """Go on from a saved state, whose groups are in the order of ours."""
        indices = dict(with_index(self, groups))
        known = set(indices.values())
        state: defaultdict[Any, Any] = defaultdict(dict)
        present, taken, now = self.state, self.steps_taken, self._now
        old = {} if taken else {w.param: w for w in self._weights if w.apart}
        state.update({key: v for key, v in states.items() if key not in known})
        for p, index in indices.items():
            own = self.state[p]
            state[p] = restored(p, saved_of(p, index, states, own), own)
        self.state, self.param_groups = state, loaded_groups(self.param_groups, groups)
        self.base.param_groups, self.base.state = self.param_groups, self.state
        joined = {p: state[p]["dense"] for p in indices if self._is_joined(p)}
        for p in joined:
            state[p]["dense"] = p.detach()
        self._resolve()
        fresh = {} if taken or self.steps_taken else present

        def built(w: Weight) -> Tensor | None:
            own, inner = old.get(w.param), self.recipe.inner_recipe
            pruned = own and guards.holds_view(own, lambda each: view(each, inner, now))
            return own.dense if own and pruned else None

        self._unsure = not belongs(self._weights, joined, self._view, fresh, built)
        if self.rule is not None and self.switch_step is None:
            self._load_criterion(self.rule.criterion)
        self._counters.update(switch_criterion="", switch_memory=[])
        for w in self._weights:
            w.version = w.present_version
        if self._total_steps not in (0, self._counters["total_steps"]):
            self._counters["total_steps"] = self._total_steps
            if not self._unsure:
                self._project(self._weights)

    def _load_criterion(self, criterion: Criterion) -> None:
        theirs = self._counters["switch_criterion"]
        if theirs not in ("", criterion.name):
            raise UsageError(
                f"the state holds what {theirs!r} remembers, but the switch is decided "
                f"by {criterion.name!r}"
            )
        criterion.load(self._counters["switch_memory"])

    @override
    def __getstate__(self) -> dict[str, Any]:
        # For copies: the base class keeps groups and state only. Hooks stay behind, and
        # what schedulers put around `step`, which would step the original. Records are
        # made anew for the copied parameters.
        mine = {k: v for k, v in self.__dict__.items() if "_hooks" not in k}
        mine.pop("step", None)
        modules = [forward.module for forward in self._rewired or ()]
        wired = None if self._rewired is None else modules
        return {
            **mine,
            "_weights": [],
            "_parts": [],
            "_finite": None,
            "_mask_watch": None,
            "_rewired": wired,
        }

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        modules = state.get("_rewired")
        super().__setstate__({**state, "_rewired": None})
        only_within(self.base, self)
        self._finite, self._mask_watch = FiniteWatch(self.base), MaskWatch()
        self._unsure = True
        for p, _ in self.sparse_parameters():
            if self._is_joined(p):  # copies of parameters get memory of their own
                self.state[p]["dense"] = p.detach()
        # One that holds this optimizer is not whole yet: the next step asks for it.
        if modules is not None and all("_modules" in vars(each) for each in modules):
            self.rewire(nn.ModuleList(modules))

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Only for the base class: all groups are known from the start.

        Raises:
            UsageError: The optimizer exists already.
        """
        if self.state:
            raise UsageError(
                "the optimizer must know every parameter from the start: give it all, "
                "and let requires_grad_(False) hold back those that come later"
            )
        super().add_param_group(param_group)


def _or(found: dict[str, Any] | None, else_: dict[str, Any]) -> dict[str, Any]:
    """What a hook has returned, or what it was given where it returned nothing."""
    return else_ if found is None else found
