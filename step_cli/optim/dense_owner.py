"""Who holds the dense weights: state and scalars, created whole, saved and loaded.

A parameter that is not pruned now, and is of at least fp32, is its own dense weight;
every other has its dense weights in the optimizer's state.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from step_cli.errors import UsageError
from step_cli.nm.pattern import NMSpec
from step_cli.optim.mask import check_groups
from step_cli.optim.masters import is_master, master_copy
from step_cli.optim.param_groups import check_group, named, plan_of, refuse_foreign
from step_cli.optim.recipe import Phase, Recipe
from step_cli.optim.shards import check_shards, local, split_like
from step_cli.optim.state import (
    check_saved,
    create_state,
    has_stepped,
    in_full,
    restored,
    with_index,
)

ON_META = "the optimizer was built on the meta device: build it after to_empty()"


class DenseOwner(Optimizer):
    """Holds the dense weights of sparse parameters beside a base optimizer's state.

    Scalars (step, switch point, the criterion's memory) lie in the first group, as only
    groups and per-parameter state are carried by everything that saves optimizers.

    Args:
        base: Updates the dense weights; it shares groups and state.
        recipe: The rules.
        total_steps: Length of the training, if it is known.
    """

    def __init__(
        self, base: Optimizer, recipe: Recipe, total_steps: int | None
    ) -> None:
        if any(map(has_stepped, base.state.values())):
            raise UsageError("the base optimizer has taken steps: give a fresh one")
        for group in base.param_groups:
            check_group(group)
        self.base, self.recipe = base, recipe
        self._complete = False
        super().__init__(base.param_groups, base.defaults)
        self._complete = True
        self._share_with_base()
        self._clock.update(t=0, switch_step=0, switch_reason="", switch_memory=[])
        self._clock["switch_criterion"] = ""
        self._clock.update(total_steps=total_steps or 0, recipe=named(recipe))

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
    def _switched(self) -> bool:
        return bool(self._clock["switch_reason"])

    @property
    def _clock(self) -> dict[str, Any]:
        return self.param_groups[0]

    def sparse_parameters(self) -> Iterator[tuple[Tensor, NMSpec]]:
        """Each parameter that is to become N:M, with its pattern and axis."""
        for group in self.param_groups:
            plan = plan_of(group)
            if plan is not None:
                for p in group["params"]:
                    yield p, plan

    # ------------------------------------------------------------------ where they lie

    def _dense(self, p: Tensor) -> Tensor:
        """This process's dense weights of ``p``, wherever they lie."""
        return local(self.state[p]["dense"] if self._has_master(p) else p)

    def _has_master(self, p: Tensor) -> bool:
        """Whether the dense weights lie outside the parameter."""
        # By rule and not by address: a wrapper may move a parameter's memory.
        return not is_master(p) or (self.rules.sparse and "dense" in self.state[p])

    def _with_own_master(self) -> Iterator[tuple[Tensor, NMSpec | None]]:
        """Each parameter whose dense weights lie outside it, and its plan."""
        for group in self.param_groups:
            plan = plan_of(group)
            yield from ((p, plan) for p in group["params"] if self._has_master(p))

    @property
    def _exchanged(self) -> bool:
        """Whether other parameters than those it was built with stand in the groups."""
        known = (self.state.get(p, {}) for p, _ in self.sparse_parameters())
        return any("dense" not in state for state in known)

    def _follow_parameters(self) -> bool:
        """Move the state to where the model has been moved; say whether it was.

        Wrappers do so after the optimizer was built.
        """
        moved = False
        for group in self.param_groups:
            for p in group["params"]:
                dtype, device = self._kinds.get(p, (p.dtype, p.device))
                if p.dtype != dtype:
                    raise UsageError(
                        f"parameters of {dtype} became {p.dtype}: build the optimizer "
                        "after changing the model's dtype"
                    )
                if p.device != device:
                    self._move_state(p, group)
                    self._kinds[p], moved = (p.dtype, p.device), True
        return moved

    def _move_state(self, p: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if any(isinstance(v, Tensor) and v.is_meta for v in state.values()):
            raise UsageError(ON_META)
        counts_too = group.get("capturable") or group.get("fused")
        for key, value in state.items():
            if isinstance(value, Tensor) and (value.dim() or counts_too):
                state[key] = value.to(p.device)
        if "dense" in state and not self._has_master(p):
            state["dense"] = p.detach()

    def _refuse_exchanged(self) -> None:
        if any(p.is_meta for group in self.param_groups for p in group["params"]):
            raise UsageError(ON_META)
        if self._exchanged:
            raise UsageError(
                "the optimizer's parameters were exchanged, as wrappers do that shard: "
                "build it after wrapping, or call adopt() before the first step if "
                "nothing is pruned yet"
            )

    # ----------------------------------------------------------------------- the state

    def _create_state(self) -> None:
        for p, layer in self.sparse_parameters():
            check_groups(tuple(p.shape), layer.pattern, layer.axis)
            check_shards(p, layer)
        self._memory_keys: set[str] = set()
        self._kinds: dict[Tensor, tuple[torch.dtype, torch.device]] = {}
        for group in self.param_groups:
            plan = plan_of(group)
            for p in group["params"]:
                memory = {} if plan is None else self._create_memory(p, plan)
                self._memory_keys |= memory.keys()
                self._kinds[p] = p.dtype, p.device
                made = create_state(self.base, p, group, memory, sparse=bool(plan))
                self.state[p] = {**in_full(self.state.get(p, {})), **made}
        self._own_keys = {"dense", *self._memory_keys}  # the base never sees them

    def _create_memory(self, p: Tensor, plan: NMSpec) -> dict[str, Tensor]:
        part = local(master_copy(p))
        return {
            key: split_like(value, p) if value.shape == part.shape else value
            for key, value in self.recipe.learner.memory(part, plan).items()
        }

    @override
    def state_dict(self) -> dict[str, Any]:
        """The state of the base optimizer, and the dense weights."""
        packed = super().state_dict()
        for p, index in with_index(self, packed["param_groups"]):
            if "dense" in self.state[p] and not self._has_master(p):
                # The model saves this memory too, and loading is in place.
                dense = p.detach().clone()
                packed["state"][index] = {**self.state[p], "dense": dense}
        return packed

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; load the model's weights first.

        Raises:
            UsageError: It is of another optimizer, or of other patterns.
        """
        mine, theirs = self.param_groups, state_dict.get("param_groups", [])
        refuse_foreign(mine, theirs, self.recipe)
        for p, index in with_index(self, state_dict["param_groups"]):
            check_saved(self.state[p], state_dict["state"].get(index, {}), index)
        super().load_state_dict(state_dict)
        self._share_with_base()
        for p, index in with_index(self, state_dict["param_groups"]):
            self.state[p].update(restored(p, state_dict["state"].get(index, {})))
            if "dense" in self.state[p] and not self._has_master(p):
                self.state[p]["dense"] = p.detach()

    @override
    def __getstate__(self) -> dict[str, Any]:
        # For copies: the base class keeps groups and state only. Hooks stay behind.
        mine = {k: v for k, v in self.__dict__.items() if "_hooks" not in k}
        return mine

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
