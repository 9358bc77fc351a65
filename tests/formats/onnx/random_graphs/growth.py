"""Grows the way from an operand back to stored tensors, one random step at a time."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from formats.onnx.random_graphs.values import (
    CODES,
    LISTED,
    Array,
    Leaf,
    Made,
    Pull,
    Stored,
    Value,
)

Write = Callable[[Any, list[str]], str]


@dataclass(frozen=True)
class Target:
    """What is to be made.

    Attributes:
        shape: Its shape.
        dtype: Its dtype.
        inputs: For each element, the number of the input that it is multiplied with.
        outputs: For each element, which output it adds to; -1: not used.
        zero: Codes only: those that mean zero.
    """

    shape: tuple[int, ...]
    dtype: str
    inputs: Array
    outputs: Array
    zero: Array | None = None

    @property
    def rank(self) -> int:
        return len(self.shape)

    def role(self, axis: int) -> str:
        """What differs along an axis: input, output, both, or nothing ("none")."""

        def differs(ids: Array) -> bool:
            first = ids.take([0], axis)
            return bool(((ids != first) & (ids >= 0) & (first >= 0)).any())

        found = differs(self.inputs), differs(self.outputs)
        names = {(0, 0): "none", (1, 0): "input", (0, 1): "output", (1, 1): "both"}
        return names[int(found[0]), int(found[1])]


@dataclass(frozen=True)
class Draft:
    """One step: what it needs, and how it is written and undone."""

    op: str
    targets: list[Target]
    write: Write
    pull: Pull
    kind: str = LISTED
    siblings: "list[tuple[tuple[int, ...], Write, Pull]]" = field(default_factory=list)


def draft(
    target: Target,
    op: str,
    write: Write,
    pull: Pull | None = None,
    dtype: str | None = None,
    zero: Array | None = None,
    kind: str = LISTED,
) -> Draft:
    """A step; without ``pull`` each element is made of the one at its place."""
    pull = pull or (lambda ids, fill: [ids])
    zero = target.zero if dtype is None else zero
    zeros = [None] if zero is None else pull(zero, int(zero.reshape(-1)[0]))
    inputs, outputs = pull(target.inputs, -1), pull(target.outputs, -1)
    targets = [
        Target(i.shape, dtype or target.dtype, i, o, z)
        for i, o, z in zip(inputs, outputs, zeros * len(inputs), strict=False)
    ]
    return Draft(op, targets, write, pull, kind)


Step = Callable[[random.Random, Target], Draft | None]


@dataclass
class Grower:
    """Grows operands, and counts the stored tensors."""

    rng: random.Random
    steps: tuple[Step, ...]
    plain_steps: tuple[Step, ...]  # those that every runtime has for every dtype
    stored: list[Stored] = field(default_factory=list)

    def grow(self, target: Target, steps: int, opaque: Step | None = None) -> Value:
        """A value that is ``target``, after about so many steps.

        ``opaque`` is a step that has to be among them.
        """
        made = None
        if opaque is not None and (steps <= 1 or self.rng.random() < 0.5):
            made = opaque(self.rng, target)
            opaque = None if made is not None else opaque
        for _ in range(20):
            if made is not None or steps <= 0:
                break
            few = target.dtype in ("float8_e4m3fn", "bfloat16")
            steps_ = self.plain_steps if few else self.steps
            made = self.rng.choice(steps_)(self.rng, target)
            if made is not None and sum(map(_size, made.targets)) > 2000:
                made = None
        if made is None:
            return self._leaf(target)
        return self.made(target, made, steps, opaque)

    def made(
        self, target: Target, step: Draft, steps: int, opaque: Step | None = None
    ) -> Made:
        """``target`` by a step, before which there are about so many less one."""
        fewer = steps - (2 if len(step.targets) > 1 else 1)
        sources = [
            self.grow(wanted, fewer, opaque if not place else None)
            for place, wanted in enumerate(step.targets)
        ]

        def of(shape: tuple[int, ...], write: Write, pull: Pull) -> Made:
            return Made(
                shape,
                target.dtype,
                sources=sources,
                op=step.op,
                kind=step.kind,
                write=write,
                pull=pull,
            )

        value = of(target.shape, step.write, step.pull)
        value.siblings = [of(*sibling) for sibling in step.siblings]
        return value

    def _leaf(self, target: Target) -> Leaf:
        stored = self.store(target.dtype, target.shape, target.zero)
        return Leaf(target.shape, target.dtype, stored=stored)

    def store(
        self, dtype: str, shape: tuple[int, ...], zero: Array | None = None
    ) -> Stored:
        name = f"w{len(self.stored)}"
        zero = np.zeros(shape, np.int64) if zero is None else zero
        forms = ["initializer", "initializer", "constant", "reference"]
        if dtype in ("float32", *CODES) and len(shape) >= 1:
            forms += ["sparse-initializer", "sparse-constant"]
        if dtype == "float32" and len(shape) == 1:
            forms += ["constant-floats"] * 4
        form = self.rng.choice(forms)
        self.stored.append(Stored(name, dtype, shape, zero, form))
        return self.stored[-1]


def _size(target: Target) -> int:
    return int(np.prod(target.shape))
