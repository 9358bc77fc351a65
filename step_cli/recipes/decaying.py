"""Decaying: the pattern becomes sparser in stages, or pruned weights fade out.

Sources: Kao et al. 2022, arXiv 2209.07617, Decaying Mask; Bambhaniya et al. 2024, arXiv
2402.04744, which calls that SdGf, and mask decay MdGf. The STEP paper prints
N = floor(M / 2s) for stage s; floor(M / 2^s) is meant. In mask decay the gradient
passes through unscaled, as in the authors' code.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from typing_extensions import override

from step_cli.errors import UsageError
from step_cli.nm.pattern import NMPattern
from step_cli.optim.mask import magnitude_mask
from step_cli.optim.recipe import (
    DENSE,
    MASK_LEARNING,
    CheckedRecipe,
    Phase,
    SparseLayer,
)

StepOrShare = int | float  # an int is a number of steps, a float a share of all steps

LARGEST_FACTOR = 8  # the geometric structure starts at 8N:8M


@dataclass(frozen=True)
class Decay(CheckedRecipe):
    """Dense, then a decay to the final pattern by the last steps.

    Args:
        dense: How long training is dense first: a share of all steps, or steps.
        fine_tune: How long, at the end, the final pattern is sure to hold.
    """

    dense: StepOrShare = 0.1
    fine_tune: StepOrShare = 0.1
    needs_total_steps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_lengths(dense=self.dense, fine_tune=self.fine_tune)

    @property
    @override
    def before(self) -> Phase:
        return DENSE

    @property
    @override
    def after(self) -> Phase:
        return MASK_LEARNING

    @property
    @override
    def switch_step(self) -> StepOrShare:
        return self.dense


@dataclass(frozen=True)
class DecayingMask(Decay):
    """Dense, then N falling from M - 1, then the final pattern; plain STE throughout.

    Args:
        structure: ``stepwise`` halves N; ``geometric`` N and M, from 8N:8M.
    """

    structure: Literal["stepwise", "geometric"] = "stepwise"

    @override
    def keep(self, layer: SparseLayer) -> Tensor:
        pattern, axis = layer.spec.pattern, layer.spec.axis
        stages = stepwise_stages(pattern)
        if self.structure == "geometric":
            stages = geometric_stages(pattern, layer.dense.shape[axis])
        span = decay_span(layer.total_steps, layer.start, self.fine_tune)
        stage = stage_at(stages, layer.age, span)
        return magnitude_mask(layer.dense, stage, axis)


@dataclass(frozen=True)
class MaskDecay(Decay):
    """Multiply by where(kept, w, beta(t) w), with beta falling from 1.

    In the last steps, ``fine_tune``, beta is 0 whatever the schedule gives.

    Args:
        schedule: beta(t) = max(0, 1 - rate t), or exp(-rate t).
        rate: Of the schedule, per step.
    """

    dense: StepOrShare = 0.0
    schedule: Literal["linear", "exponential"] = "linear"
    rate: NonNegativeFloat = 2e-4

    @override
    def project(self, layer: SparseLayer) -> Tensor:
        span = decay_span(layer.total_steps, layer.start, self.fine_tune)
        fade = linear_fade if self.schedule == "linear" else exponential_fade
        beta = fade(layer.age, self.rate) if layer.age < span else 0.0
        return torch.where(self.keep(layer), layer.dense, beta * layer.dense)


def stepwise_stages(pattern: NMPattern) -> list[NMPattern]:
    """(M-1):M, then M halved and halved again, down to the pattern.

    For N = M / 2^k these are the log2(M / N) + 1 stages of the paper.
    """
    n, m = pattern.n, pattern.m
    if pattern.dense:
        return [pattern]
    halves = [m >> s for s in range(1, m.bit_length()) if m >> s > n]
    kept = sorted({max(n, m - 1), *halves, n}, reverse=True)
    return [NMPattern(stage, m) for stage in kept]


def geometric_stages(pattern: NMPattern, width: int) -> list[NMPattern]:
    """8N:8M, 4N:4M, 2N:2M, N:M, without those whose groups do not divide ``width``."""
    factors = [1 << s for s in reversed(range(LARGEST_FACTOR.bit_length()))]
    return [
        NMPattern(pattern.n * factor, pattern.m * factor)
        for factor in factors
        if width % (pattern.m * factor) == 0
    ]


def stage_at(stages: Sequence[NMPattern], age: int, span: int) -> NMPattern:
    """The stage that holds ``age`` steps into a decay of ``span`` steps.

    Stage s begins at int(s * span / number of stages); the last one stays.
    """
    begun = [s for s in range(len(stages)) if s * span // len(stages) <= age]
    return stages[begun[-1]]


def decay_span(total_steps: int | None, start: int, fine_tune: StepOrShare) -> int:
    """Steps from ``start`` to where the last ``fine_tune`` of the training begins."""
    assert total_steps is not None, "the optimizer refuses schedules without a length"
    share = isinstance(fine_tune, float)
    return total_steps - start - round(fine_tune * total_steps if share else fine_tune)


def check_lengths(**lengths: StepOrShare) -> None:
    """Refuse a length below 0 or a share above 1.

    Raises:
        UsageError: There is one.
    """
    for name, length in lengths.items():
        if length < 0 or (isinstance(length, float) and not length <= 1):
            raise UsageError(
                f"{name} {length}: give a share of all steps as 0.1, or a number of "
                "steps as 100"
            )


def linear_fade(age: int, rate: float) -> float:
    """What pruned weights are multiplied by: max(0, 1 - rate * age)."""
    return max(0.0, 1 - rate * age)


def exponential_fade(age: int, rate: float) -> float:
    """What pruned weights are multiplied by: exp(-rate * age), never 0."""
    return math.exp(-rate * age)
