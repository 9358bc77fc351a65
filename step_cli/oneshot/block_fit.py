"""Fit all that a block keeps to what the dense block gives, by Adam.

Inputs are those that the block gets in the pruned network, and what it is to give is
what the dense block gives for the same inputs, as in EBFT (Guo et al., arXiv
2402.12419). Fitted are kept weights, norms and biases; the loss is the square of the
difference, as a share of that of the target. The rate of a tensor is `RATE` times the
root mean square of what it holds, so that it means the same at every width; it rises in
the first twentieth of the steps, and falls to zero as a cosine does.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from step_cli.errors import NonFiniteError
from step_cli.formats.files.temporary import ArraysOnDisk
from step_cli.formats.pytorch.arrays import mapped_tensor, to_array
from step_cli.oneshot.inputs import Pass, TargetLayer
from step_cli.oneshot.least_squares import as_stored
from step_cli.oneshot.output_errors import Errors

log = logging.getLogger(__name__)

PASSES = 10  # over the samples that are fitted to
RATE = 1e-2  # of the root mean square of a tensor
WARM_UP = 0.05  # of all steps
LEAST = 1e-2  # root mean square that a tensor of zeros, a new bias, counts as


class Weights(Protocol):
    """Where the weights of a model come from and go to."""

    def dense(self, layer: TargetLayer) -> Tensor:
        """The weight of a layer before pruning, as it is stored."""
        ...

    def left(self, layer: TargetLayer) -> str | None:
        """Why a layer's weight is not to be fitted, or None."""
        ...

    def replace(self, layer: TargetLayer, weight: Tensor) -> None:
        """Have a layer compute with a weight, in the dtype it is stored in."""
        ...

    def trainable(self, module: nn.Module, name: str) -> bool:
        """Whether a parameter of a module can be stored, and is used nowhere else."""
        ...

    def dense_others(self, block: nn.Module) -> AbstractContextManager[None]:
        """Have a block compute with what is pruned, but not fitted, as it was dense."""
        ...

    def replace_other(self, module: nn.Module, name: str, value: Tensor) -> None:
        """Round a norm or bias to what is stored; have its module compute with it."""
        ...


@dataclass(frozen=True)
class _Fitted:
    """A parameter while it is fitted.

    Attributes:
        module: Which has it.
        name: Of it there.
        stored: What it is without a fit, in the dtype it is stored in.
        value: What is fitted, in at least fp32.
        layer: Whose weight it is; None: a norm or a bias.
    """

    module: nn.Module
    name: str
    stored: nn.Parameter
    value: nn.Parameter
    layer: TargetLayer | None = None

    @property
    def rate(self) -> float:
        held = self.value.detach()[self.stored != 0]
        size = float(held.square().mean().sqrt()) if len(held) else 0.0
        return RATE * (size or LEAST)

    def mask_gradient(self) -> None:
        if self.layer is not None and self.value.grad is not None:
            self.value.grad.masked_fill_(self.stored == 0, 0)

    def put(self, weights: Weights, value: Tensor) -> None:
        if self.layer is None:
            weights.replace_other(self.module, self.name, value)
        else:
            new = as_stored(value, self.stored.detach(), self.stored.dtype)
            weights.replace(self.layer, new)


class BlockFit:
    """A block, the batches it is fitted to, and what it gave while it was dense.

    Attributes:
        fit: Each runs the block on one batch and returns what leaves it.
        held_out: The same for batches that it is not fitted to.
        errors: Of what leaves it, known after `run`.
    """

    def __init__(
        self,
        block: nn.Module,
        fit: Sequence[Pass],
        held_out: Sequence[Pass],
        seed: int = 0,
        folder: Path | None = None,
    ) -> None:
        self.fit, self.held_out = fit, held_out
        self._block, self._seed = block, seed
        self._arrays = ArraysOnDisk(folder)
        self._aims: list[Tensor] = []
        self._aims_held_out: list[Tensor] = []
        self.errors = Errors(0.0, 0.0)

    def __enter__(self) -> Self:
        self._aims = [self._aside(run()) for run in self.fit]
        self._aims_held_out = [self._aside(run()) for run in self.held_out]
        return self

    def __exit__(self, *_: object) -> None:
        self._arrays.close()

    def _aside(self, given: Tensor) -> Tensor:
        return mapped_tensor(self._arrays.add(to_array(given)))

    def run(self, layers: Sequence[TargetLayer], weights: Weights) -> bool:
        """Fit the block; False if the error on held-out batches does not fall.

        It is then as it was, to the bit.

        Raises:
            NonFiniteError: The square of what leaves the pruned or the dense block is.
        """
        before = self._errors()
        if not all(map(math.isfinite, before)):
            raise NonFiniteError(
                "the output of this block is NaN, infinite, or too large to be squared "
                "in fp32; look at the calibration data"
            )
        fitted = list(_parameters(self._block, layers, weights))
        if not fitted:
            self.errors = Errors(before[0], before[0], before[1], before[1])
            return False
        try:
            for one in fitted:
                setattr(one.module, one.name, one.value)
            self._train(fitted)
        finally:
            for one in fitted:
                setattr(one.module, one.name, one.stored)
        for one in fitted:
            one.put(weights, one.value.detach())
        after = self._errors()
        better = after[1] < before[1]  # false where something overflows
        if not better:
            for one in fitted:
                one.put(weights, one.stored.detach())
            after = before
        self.errors = Errors(before[0], after[0], before[1], after[1])
        return better

    def _errors(self) -> tuple[float, float]:
        """The error of what leaves the block, on both parts of the batches."""
        return (
            _share(self.fit, self._aims),
            _share(self.held_out, self._aims_held_out),
        )

    def _train(self, fitted: Sequence[_Fitted]) -> None:
        # Of an output that is zero, no error is a share.
        some = [i for i, aim in enumerate(self._aims) if bool(aim.any())]
        steps = PASSES * len(some)
        groups = [{"params": [one.value], "lr": one.rate} for one in fitted]
        optimizer = torch.optim.Adam(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: share_of_rate(step, steps)
        )
        generator = torch.Generator().manual_seed(self._seed)
        with torch.enable_grad():
            for _ in range(PASSES):
                for turn in torch.randperm(len(some), generator=generator).tolist():
                    i = some[turn]
                    given = self.fit[i]()
                    aim = self._aims[i].to(given.device)
                    loss = (given - aim).square().sum() / aim.square().sum()
                    optimizer.zero_grad()
                    loss.backward()
                    for one in fitted:
                        one.mask_gradient()
                    optimizer.step()
                    schedule.step()


def share_of_rate(step: int, steps: int) -> float:
    """The rate at a step, counted from 0, as a share of the highest."""
    warm_up = max(1.0, WARM_UP * steps)
    return min(1.0, (step + 1) / warm_up) * (1 + math.cos(math.pi * step / steps)) / 2


def _share(passes: Sequence[Pass], aims: Sequence[Tensor]) -> float:
    off = whole = 0.0
    for run, aim in zip(passes, aims, strict=True):
        given = run()
        aim = aim.to(given.device)
        off += float((given - aim).square().sum(dtype=torch.float64))
        whole += float(aim.square().sum(dtype=torch.float64))
    return (off / whole) ** 0.5 if whole else 0.0


def _parameters(
    block: nn.Module, layers: Sequence[TargetLayer], weights: Weights
) -> Iterator[_Fitted]:
    """Kept weights of ``layers``, and norms and biases of the block."""
    by_module = {layer.module: layer for layer in layers}
    seen = Counter(
        id(value) for module in block.modules() for value in module._parameters.values()
    )
    for module in block.modules():
        for name, stored in module._parameters.items():
            if stored is None or seen[id(stored)] > 1 or not stored.is_floating_point():
                continue
            layer = by_module.get(module) if name == "weight" else None
            small = stored.dim() <= 1 and weights.trainable(module, name)
            if layer is not None or small:
                dtype = torch.promote_types(stored.dtype, torch.float32)
                value = nn.Parameter(stored.detach().to(dtype, copy=True))
                yield _Fitted(module, name, stored, value, layer)
