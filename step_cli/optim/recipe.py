"""What a recipe is: the answers to a few questions, STE being the plain ones."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from step_cli.errors import UsageError
from step_cli.nm.pattern import NMSpec, Plan
from step_cli.optim.backward import Backward
from step_cli.optim.mask import magnitude_mask, masked

TYPES = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Phase:
    """The rules that hold for a stretch of training.

    Attributes:
        name: As ``optimizer.phase`` says it.
        sparse: The model holds the projected weights, not the dense ones.
        learn_variance: Adam's variance is updated; else it is frozen.
    """

    name: str
    sparse: bool = True
    learn_variance: bool = True


DENSE = Phase("dense", sparse=False)
PRECONDITION = Phase("precondition", sparse=False)
MASK_LEARNING = Phase("mask-learning")
FROZEN_VARIANCE = Phase("mask-learning", learn_variance=False)
FINE_TUNE = Phase("fine-tune")


@dataclass(frozen=True)
class SparseLayer:
    """One sparse weight at one step, as a recipe sees it.

    Attributes:
        dense: The weights the optimizer owns, in at least fp32.
        spec: Its pattern and group axis.
        age: Steps since the sparse phase began, from 0.
        start: The step after which it began.
        total_steps: Length of the training; None where it is not known.
        starts: The sparse phase begins, or the dense weights were replaced.
        state: What the recipe keeps of this weight, see :meth:`Recipe.create_state`.
        over_processes: Adds up a tensor of sums over all that hold parts of ``dense``.
    """

    dense: Tensor
    spec: NMSpec
    age: int = 0
    start: int = 0
    total_steps: int | None = None
    starts: bool = False
    state: dict[str, Tensor] = field(default_factory=dict)
    over_processes: Callable[[Tensor], Tensor] = field(default=lambda sums: sums)


class Recipe:
    """Plain STE; a subclass overrides only the answers in which it differs.

    Attributes:
        needs_total_steps: It follows a schedule, for which the length of training is
            needed.
        follows_time: What it makes of dense weights may change though they do not.
    """

    needs_total_steps: ClassVar[bool] = False
    follows_time: ClassVar[bool] = True

    @property
    def before(self) -> Phase:
        """1. Which rules hold up to the switch point?"""
        return MASK_LEARNING

    @property
    def after(self) -> Phase:
        """2. Which rules hold after it?"""
        return self.before

    @property
    def switch_step(self) -> int | float | None:
        """3. At which step, or share of all, do they change? None: a criterion decides.

        A float is a share of all steps.
        """
        return None

    @property
    def inner_recipe(self) -> "Recipe":
        """4. Whose answers to the questions below hold, where it wraps another?"""
        return self

    def plan_layers(self, weights: Mapping[str, Tensor], plan: Plan) -> Plan:
        """5. Which pattern is each weight to have, seen all together?"""
        return plan

    def create_state(self, dense: Tensor, spec: NMSpec) -> dict[str, Tensor]:
        """6. Which tensors are kept for a weight, and saved with the optimizer?

        Of at least one dimension each; made once, before the first step.

        Raises:
            UsageError: The recipe cannot hold a weight of this shape.
        """
        return {}

    def update_state(self, layer: SparseLayer) -> None:
        """7. What of them changes, in place, before a projection?"""

    def keep(self, layer: SparseLayer) -> Tensor:
        """8. Which weights are kept? A boolean mask, True where one is."""
        return magnitude_mask(layer.dense, layer.spec.pattern, layer.spec.axis)

    def project(self, layer: SparseLayer) -> Tensor:
        """9. What does the layer multiply by?"""
        return masked(layer.dense, self.keep(layer))

    def gradient(self, grad: Tensor, sparse: Tensor, layer: SparseLayer) -> Tensor:
        """10. Which gradient does the optimizer see, once per step?

        Args:
            grad: At the sparse point, in the dtype of the dense weights.
            sparse: What the last forward multiplied by.
            layer: The weight.
        """
        return grad

    def backward(self, spec: NMSpec) -> Backward | None:
        """11. How does the layer's own backward pass differ? None: not at all."""
        return None

    # ------------------------------------------------- what follows from these answers

    @property
    def switches(self) -> bool:
        """Whether the rules change, so that a switch point is needed."""
        return self.before != self.after

    @property
    def ends_sparse(self) -> bool:
        """Whether the model is N:M at the end."""
        return self.after.sparse

    @property
    def name(self) -> str:
        """The class, and that of the recipe it wraps: what a saved state is of."""
        outer, inner = type(self).__name__, type(self.inner_recipe).__name__
        return outer if self.inner_recipe is self else f"{outer} of {inner}"

    @property
    def keeps_largest(self) -> bool:
        """Whether the model holds the largest weights as they are, and nothing else."""
        return not any(
            self._overrides(answer) for answer in ("update_state", "keep", "project")
        )

    @property
    def keeps_gradient(self) -> bool:
        """Whether the optimizer sees the gradient as it is."""
        return not self._overrides("gradient")

    def _overrides(self, answer: str) -> bool:
        return getattr(type(self), answer) is not getattr(Recipe, answer)


@dataclass(frozen=True)
class CheckedRecipe(Recipe):
    """A recipe with options; the type of each field sets which values it takes.

    Raises:
        UsageError: A value does not fit its type.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for option in (each.name for each in fields(self)):
            value = _checked(option, getattr(self, option), hints[option])
            object.__setattr__(self, option, value)  # it is frozen


def plain_number(value: Any) -> Any:
    """A whole number of any kind, such as NumPy's, as an int; else what it was."""
    try:
        return value if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return value


def _checked(option: str, value: Any, kind: Any) -> Any:
    value = plain_number(value)  # or it would pass for a float, which is a share
    try:
        return TypeAdapter(kind, config=TYPES).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise UsageError(f"{option}: {message}, got {value!r}") from None
