"""One record for each parameter: all that an optimizer step needs of it, resolved once.

A parameter that is not pruned now, and is of at least fp32, is its own dense weight;
every other has its dense weights in the optimizer's state. Records are made again when
the phase changes, or the model was moved or its state replaced.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.optim.recipe import Phase
from step_cli.optim.shards import is_shard, local, local_grad, split_like

SMALL = 1 << 12  # elements; up to this a call costs more than its work
AT_ONCE = 16 << 20  # bytes of dense weights whose gradients are made at a time


@dataclass(eq=False)
class Weight:
    """One parameter of the model.

    Attributes:
        param: The parameter.
        name: As the user gave it, or "a parameter".
        group: Number of its param group.
        spec: The pattern and group axis it is to hold; None for one that stays dense.
        state: Its state in the optimizer.
        shown: This process's part of the parameter: what the model multiplies by.
        dense: This process's dense weights; ``shown`` itself where the parameter
            holds them.
        local_state: This process's parts of the tensors in ``state``.
        version: Version counters after our own last write; None if that is not known.
        steps: How many updates it has had, where the optimizer itself makes them.
        variance_steps: How many of them its variance has learned from.
        frozen: Its variance is that of the switch point.
        asleep: It was frozen when the optimizer was built and has had no gradient yet:
            the model keeps it as it is.
    """

    param: Tensor
    name: str
    group: int
    spec: NMSpec | None
    state: dict[str, Any]
    shown: Tensor
    dense: Tensor
    local_state: dict[str, Tensor] = field(default_factory=dict)
    version: tuple[int, int] | None = None
    steps: int = 0
    variance_steps: int = 0
    frozen: bool = False
    asleep: bool = False

    def __post_init__(self) -> None:
        self.dtype, self.device = self.param.dtype, self.param.device
        self.shape = self.param.shape
        self.is_shard = is_shard(self.param)
        self._resolved = dict(self.state)
        self._joined = None if self.apart else self.state.get("dense")

    @property
    def apart(self) -> bool:
        """Whether the dense weights lie outside the parameter."""
        return self.dense is not self.shown

    @property
    def is_small(self) -> bool:
        """Whether it shares calls with others, as one of its own would not pay."""
        return self.dense.numel() <= SMALL

    @property
    def present_version(self) -> tuple[int, int]:
        """Numbers of which one changes whenever the model's values are written."""
        # An operation on a DTensor counts on it, one on its shard on the shard.
        return self.param._version, self.shown._version

    def is_current(self, p: Tensor, state: Mapping[Tensor, Any]) -> bool:
        """Whether nothing was moved or replaced since the record was made.

        Args:
            p: What stands in this parameter's place in the groups now.
            state: The optimizer's.
        """
        if p is not self.param or p.shape != self.shape:
            return False
        if p.device != self.device or p.dtype != self.dtype:
            return False
        if state.get(p) is not self.state or self.device.type == "meta":
            return False
        found = self._resolved  # a base may create what it keeps at its first step
        if len(found) != len(self.state) or any(
            found.get(key) is not value for key, value in self.state.items()
        ):
            return False
        if self._joined is not None and not self.is_shard:
            return bool(p.data_ptr() == self._joined.data_ptr())  # or .data was rebound
        return not self.is_shard or local(p).data_ptr() == self.shown.data_ptr()

    def grad(self) -> Tensor | None:
        """This process's part of the gradient, in the dtype of the dense weights."""
        grad = local_grad(self.param) if self.is_shard else self.param.grad
        return None if grad is None else grad.to(self.dense.dtype)

    @property
    def given_grad(self) -> Tensor:
        """The gradient that the dense weights were given for this step."""
        assert self.dense.grad is not None
        return self.dense.grad


def is_precise(p: Tensor) -> bool:
    """Whether a parameter is precise enough to be its own dense weight.

    Updates of one with fewer bits would be rounded away.
    """
    return p.dtype in (torch.float32, torch.float64)


def dense_copy(p: Tensor) -> Tensor:
    """The parameter's values in at least fp32, in memory of their own."""
    return p.detach().clone() if is_precise(p) else p.detach().float()


def is_asleep(state: Mapping[str, Any]) -> bool:
    """Whether a weight that was frozen from the start still waits for a gradient."""
    return bool(state.get("asleep", False))


def spec_of(group: Mapping[str, Any]) -> NMSpec | None:
    """What the parameters of a group are to hold; None for a dense group."""
    if group.get("pattern") is None:
        return None
    return NMSpec(NMPattern.parse(str(group["pattern"])), int(group["axis"]))


def names_of(groups: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of all parameters, or "a parameter" where the user gave none."""
    return [
        name
        for group in groups
        for name in group.get("param_names") or ["a parameter"] * len(group["params"])
    ]


def resolve(
    optimizer: Optimizer,
    phase: Phase,
    recipe_keys: Collection[str],
    versions: Mapping[Tensor, tuple[int, int] | None],
) -> list[Weight]:
    """The records of all parameters of ``optimizer``, in the order of its groups.

    Args:
        optimizer: Holds groups and state.
        phase: The rules in force.
        recipe_keys: Which keys of the state are the recipe's.
        versions: Version counters after the last write, by parameter.
    """
    weights = []
    for number, group in enumerate(optimizer.param_groups):
        spec = spec_of(group)
        for p, name in zip(group["params"], names_of([group]), strict=True):
            state, shown = optimizer.state[p], local(p)
            # By rule and not by address: a wrapper may move a parameter's memory.
            asleep = is_asleep(state)
            pruned = phase.sparse and "dense" in state and not asleep
            apart = not is_precise(p) or pruned
            keys = (*recipe_keys, "dense", "exp_avg", "exp_avg_sq", "step")
            parts = {key: local(state[key]) for key in keys if key in state}
            weights.append(
                Weight(
                    p,
                    name,
                    number,
                    spec,
                    state,
                    shown,
                    dense=parts["dense"] if apart else shown,
                    local_state=parts,
                    version=versions.get(p),
                    asleep=asleep,
                )
            )
    return weights


def count_updates(weights: Sequence[Weight]) -> None:
    """Read from the state how many updates each weight has had.

    A parameter whose variance had seen no gradient when the others' froze has none to
    freeze: it learns its variance all along, as AdamW does.
    """
    for w in weights:
        w.steps, w.variance_steps = (
            int(w.state[key]) for key in ("step", "variance_step")
        )
        w.frozen = w.variance_steps > 0


class Part:
    """Weights that are updated together, and what the base optimizer sees of them.

    The base updates the dense weights as if they were its parameters. The parameters
    themselves are not touched, so compiled graphs and distributed wrappers that hold
    them never see anything move.

    Args:
        base: Knows the parameters; its groups and state are as before after each step.
        weights: All, or some of them.
        hidden: Keys of the state that the base must not see.
    """

    def __init__(
        self, base: Optimizer, weights: list[Weight], hidden: Collection[str]
    ) -> None:
        self.weights, self._base = weights, base
        everything = [p for group in base.param_groups for p in group["params"]]
        self._direct = not hidden and len(everything) == len(weights)
        self._direct &= all(w.dense is w.param for w in weights)
        apart = [] if _is_torchs(base) else [w for w in weights if w.apart]
        self._posing = [w for w in apart if not w.is_shard]
        members: defaultdict[int, list[Tensor]] = defaultdict(list)
        for w in weights:
            members[w.group].append(w.dense)
        self._groups = dict(members)
        self._state: defaultdict[Any, Any] = defaultdict(dict, shared_state(base.state))
        for w in weights:
            seen = {key: _local(v) for key, v in w.state.items() if key not in hidden}
            self._state[w.dense] = seen

    def let_base(self, act: Callable[[], object]) -> None:
        """Let the base do something while it sees the dense weights.

        Args:
            act: Such as its step, for which their gradients are in their place.
        """
        base = self._base
        if self._direct:
            act()
            return
        groups, state = base.param_groups, base.state
        seen = {
            number: {**groups[number], "params": members}
            for number, members in self._groups.items()
        }
        base.param_groups, base.state = list(seen.values()), self._state
        for w in self._posing:  # some look for what else they know of a parameter
            w.dense.requires_grad_(w.param.requires_grad).__dict__.update(vars(w.param))
        try:
            act()
        finally:
            for w in self._posing:
                w.dense.requires_grad_(False).__dict__.clear()
            base.param_groups, base.state = groups, state
            for number, group in seen.items():
                groups[number].update({**group, "params": groups[number]["params"]})
            for w in self.weights:
                self._take_back(w)
            state.update(shared_state(self._state))

    def _take_back(self, w: Weight) -> None:
        """Keep what the base optimizer created or replaced in its view of the state."""
        for key, value in self._state[w.dense].items():
            own = w.state.get(key)
            if own is value or (isinstance(value, Tensor) and _same_memory(own, value)):
                continue
            whole = isinstance(value, Tensor) and value.dim() > 0
            whole = whole and value.shape == w.shown.shape
            w.state[key] = split_like(value, w.param) if whole else value

    def resting(self) -> dict[Weight, int]:
        """Weights without a gradient, and how often their dense ones were written."""
        return {
            w: w.dense._version
            for w in self.weights
            if w.dense is not w.shown and w.dense.grad is None
        }

    def forget_gradients(self) -> None:
        """Take the gradients away that were given to the dense weights."""
        for w in self.weights:
            if w.dense is not w.param:
                w.dense.grad = None


def parts_of(
    base: Optimizer,
    weights: list[Weight],
    hidden: Collection[str],
    made: Iterable[bool],
) -> list[Part]:
    """All weights in parts, so that what is made for them never exists all at once.

    Args:
        base: The base optimizer.
        weights: All of them.
        hidden: Keys of the state that the base must not see.
        made: For each weight, whether memory of its size is taken during its update.
    """
    in_parts = _is_torchs(base)
    if isinstance(base, torch.optim.Adam):
        hidden = ()  # it takes the keys it knows; others ask whether there are any
    parts: list[Part] = []
    some: list[Weight] = []
    size_bytes = 0
    for w, is_made in zip(weights, made, strict=True):
        some.append(w)
        size_bytes += w.dense.nbytes if is_made else 0
        if size_bytes >= AT_ONCE and in_parts:
            parts.append(Part(base, some, hidden))
            some, size_bytes = [], 0
    if some:
        parts.append(Part(base, some, hidden))
    return parts


def shared_state(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """What a base keeps in its state that is of no single parameter, as a count."""
    return {k: v for k, v in state.items() if not isinstance(k, Tensor)}


def _is_torchs(base: Optimizer) -> bool:
    """Whether a base is one of torch's own, which treat each parameter by itself.

    Others may keep what all share, or ask a parameter for more than its values.
    """
    return type(base).__module__.startswith("torch.optim.")


def _local(value: Any) -> Any:
    return local(value) if isinstance(value, Tensor) else value


def _same_memory(own: Any, seen: Tensor) -> bool:
    return isinstance(own, Tensor) and local(own).data_ptr() == seen.data_ptr()


def flattened(tensors: list[Tensor]) -> Tensor:
    """Tensors of one dtype and device one after the other, in one dimension.

    A single one that is contiguous is not copied.
    """
    flat: Tensor = torch._utils._flatten_dense_tensors(tensors)  # type: ignore[no-untyped-call]
    return flat
