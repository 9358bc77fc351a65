"""What a recipe is: the answers to a few questions, STE being the plain ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from step_cli.nm.pattern import NMSpec, Plan
from step_cli.optim.backward import Backward
from step_cli.optim.mask import magnitude_mask, masked


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
class Layer:
    """One sparse weight at one step, as a recipe is told of it.

    Attributes:
        dense: The weights the optimizer owns, in at least fp32.
        plan: Its pattern and group axis.
        age: Steps since the sparse phase began, from 0.
        start: The step after which it began.
        total_steps: Length of the training; None where it is not known.
        fresh: The sparse phase begins, or the dense weights were replaced.
        memory: What the recipe keeps of this weight, see :meth:`Recipe.memory`.
        over_processes: Adds up a tensor of sums over all that hold parts of ``dense``.
    """

    dense: Tensor
    plan: NMSpec
    age: int = 0
    start: int = 0
    total_steps: int | None = None
    fresh: bool = False
    memory: dict[str, Tensor] = field(default_factory=dict)
    over_processes: Callable[[Tensor], Tensor] = field(default=lambda sums: sums)


class Recipe:
    """Plain STE; a subclass overrides only the answers in which it differs.

    Attributes:
        needs_total_steps: It follows a schedule, for which the length of training is
            needed.
    """

    needs_total_steps: ClassVar[bool] = False

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
    def learner(self) -> "Recipe":
        """4. Whose answers to the questions below hold, where it wraps another?"""
        return self

    def plan_layers(self, weights: Mapping[str, Tensor], plan: Plan) -> Plan:
        """5. Which pattern is each weight to have, seen all together?"""
        return plan

    def memory(self, dense: Tensor, plan: NMSpec) -> dict[str, Tensor]:
        """6. Which tensors are kept for a weight, and saved with the optimizer?

        Of at least one dimension each; made once, before the first step.

        Raises:
            UsageError: The recipe cannot hold a weight of this shape.
        """
        return {}

    def renew(self, layer: Layer) -> None:
        """7. What of them changes, in place, before a projection?"""

    def keep(self, layer: Layer) -> Tensor:
        """8. Which weights are kept? A boolean mask, True where one is."""
        return magnitude_mask(layer.dense, layer.plan.pattern, layer.plan.axis)

    def project(self, layer: Layer) -> Tensor:
        """9. What does the layer multiply by?"""
        return masked(layer.dense, self.keep(layer))

    def gradient(self, grad: Tensor, sparse: Tensor, layer: Layer) -> Tensor:
        """10. Which gradient does the optimizer see, once per step?

        Args:
            grad: At the sparse point, in the dtype of the dense weights.
            sparse: What the last forward multiplied by.
            layer: The weight.
        """
        return grad

    def backward(self, plan: NMSpec) -> Backward | None:
        """11. How does the layer's own backward pass differ? None: not at all."""
        return None

    @property
    def switches(self) -> bool:
        """Whether the rules change, so that a switch point is needed."""
        return self.before != self.after

    @property
    def ends_sparse(self) -> bool:
        """Whether the model is N:M at the end."""
        return self.after.sparse
