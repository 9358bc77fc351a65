"""Fit kept weights anew, group by group, under masks that never change.

`layer`: each row by least squares, see `least_squares`; the layers of a block in the
order in which it runs them, each on the inputs that it gets once all before it are
fitted. A row is exchanged only where its error on these inputs falls.

`block`: see `block_fit`. Layers outside of a list of blocks are fitted as by `layer`.

Every eighth batch of the samples is held out: no weight is fitted to it.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from step_cli.errors import naming
from step_cli.oneshot.block_fit import BlockFit, Weights
from step_cli.oneshot.calibration import Group
from step_cli.oneshot.inputs import (
    Pass,
    TargetLayer,
    collect_statistics,
    layers_by_input,
)
from step_cli.oneshot.layer_matrix import LayerMatrix
from step_cli.oneshot.least_squares import as_stored, energies, refit_rows
from step_cli.oneshot.output_errors import Errors, output_errors
from step_cli.oneshot.sparsegpt import InputHessian

log = logging.getLogger(__name__)

HELD_OUT = 8  # one batch of so many is not fitted to
UNREACHED = "no sample that is fitted to reaches it"


@dataclass(frozen=True)
class FittedBlock:
    """What became of a block: the error of its output, relative to the dense one's."""

    name: str
    errors: Errors
    refitted: bool


@dataclass
class Refit:
    """Fits what a group of layers keeps, once the group is pruned.

    Attributes:
        kind: What is fitted together.
        model: Which names its blocks.
        weights: Where weights come from and go to.
        seed: Of the order of batches.
        folder: Where activations are put aside; None: where temporary files go.
        errors: Of each layer that was looked at, by its name.
        reasons: Why other layers stay as they were pruned, by name.
        blocks: In the order of the model.
    """

    kind: Literal["layer", "block"]
    model: nn.Module
    weights: Weights
    seed: int = 0
    folder: Path | None = None
    errors: dict[str, Errors] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    blocks: list[FittedBlock] = field(default_factory=list)
    _told: int = field(default=0, init=False)  # how many of the blocks `facts` gave

    def __call__(self, group: Group, prune: Callable[[], None]) -> None:
        """Prune a group and fit what it keeps."""
        fit, held_out = fitted_and_held_out(group.passes)
        if self.kind == "layer" or group.block is None:
            prune()
            self._layers(group, fit, held_out)
            return
        work = BlockFit(group.block, fit, held_out, self.seed, self.folder)
        with ExitStack() as stack:
            with self.weights.dense_others(group.block):
                stack.enter_context(work)
            prune()
            self._block(group.block, group, work)

    def facts(self, layers: Sequence[TargetLayer]) -> dict[str, Any]:
        """What became of a group, as JSON has it."""
        names = {layer.name for layer in layers}
        new, self._told = self.blocks[self._told :], len(self.blocks)
        return {
            "errors": {k: asdict(x) for k, x in self.errors.items() if k in names},
            "reasons": {k: x for k, x in self.reasons.items() if k in names},
            "blocks": [asdict(block) for block in new],
        }

    def take_up(self, facts: Mapping[str, Any]) -> None:
        """Know again what became of a group, from `facts`."""
        self.errors |= {k: Errors(**x) for k, x in facts["errors"].items()}
        self.reasons |= facts["reasons"]
        self.blocks += [
            FittedBlock(**{**block, "errors": Errors(**block["errors"])})
            for block in facts["blocks"]
        ]
        self._told = len(self.blocks)

    def _layers(
        self, group: Group, fit: Sequence[Pass], held_out: Sequence[Pass]
    ) -> None:
        fitted = self._fitted(group.layers)
        groups = layers_by_input(fitted, fit) if fitted else []
        reached = {layer for layers in groups for layer in layers}
        self.reasons |= {x.name: UNREACHED for x in fitted if x not in reached}
        for layers in groups:
            seen = collect_statistics(layers, InputHessian, fit, once=group.once)
            before, shares = {}, {}
            for layer in layers:
                before[layer] = _weight(layer)
                with naming(tensor=layer.name):
                    shares[layer] = self._layer(layer, seen[layer.name])
            del seen
            after = {layer: _weight(layer) for layer in layers}
            dense = {layer: self.weights.dense(layer) for layer in layers}
            unseen = output_errors(dense, [before, after], held_out)
            for layer in layers:
                self.errors[layer.name] = Errors(*shares[layer], *unseen[layer])
                log.info("%s: %s", layer.name, self.errors[layer.name])

    def _fitted(self, layers: Sequence[TargetLayer]) -> list[TargetLayer]:
        """Those of the layers that may be fitted; of the others, says why not."""
        reasons = {layer: self.weights.left(layer) for layer in layers}
        self.reasons |= {x.name: why for x, why in reasons.items() if why is not None}
        return [layer for layer in layers if reasons[layer] is None]

    def _layer(self, layer: TargetLayer, seen: InputHessian) -> tuple[float, float]:
        """Fit one layer; its relative error on what it is fitted to, before and after.

        It is that of the weights as they are stored.
        """
        view, old = LayerMatrix(layer.module), _weight(layer)
        stored = self.weights.dense(layer)
        device, dtype = seen.hessian.device, seen.hessian.dtype
        dtype = torch.promote_types(dtype, stored.dtype)  # exact for what is stored
        parts = zip(
            view.of_weight(stored.to(device, dtype)),
            view.of_weight(old.to(device, dtype)),
            seen.hessian,
            strict=True,
        )
        new, sums = [], torch.zeros(3, dtype=torch.float64)
        for dense, pruned, hessian in parts:
            kept, found = _better_rows(dense, pruned, hessian, stored.dtype)
            new.append(kept)
            sums += found
        if sums[2] < sums[1]:
            self.weights.replace(layer, view.to_weight(torch.stack(new)).contiguous())
        return _root(sums[1] / sums[0]), _root(sums[2] / sums[0])

    def _block(self, block: nn.Module, group: Group, work: BlockFit) -> None:
        layers = self._fitted(group.layers)
        name = next(n for n, module in self.model.named_modules() if module is block)
        dense = {layer: self.weights.dense(layer) for layer in layers}
        before = _shares(dense, layers, work)
        with naming(tensor=name):
            refitted = work.run(layers, self.weights)
        after = _shares(dense, layers, work)
        for layer in layers:
            (old, old_held_out), (new, new_held_out) = before[layer], after[layer]
            if old is None or new is None:
                self.reasons[layer.name] = UNREACHED
            else:
                self.errors[layer.name] = Errors(old, new, old_held_out, new_held_out)
        self.blocks.append(FittedBlock(name, work.errors, refitted))
        what = "fitted" if refitted else "left as it was pruned"
        log.info("%s %s: %s", name, what, work.errors)


def fitted_and_held_out(
    passes: Sequence[Pass],
) -> tuple[Sequence[Pass], Sequence[Pass]]:
    """Divide batches: every eighth is held out, of fewer the last; one is not."""
    count = len(passes)
    step = min(HELD_OUT, count)
    held_out = {i for i in range(count) if i % step == step - 1} if count > 1 else set()
    return (
        [run for i, run in enumerate(passes) if i not in held_out],
        [passes[i] for i in sorted(held_out)],
    )


def _weight(layer: TargetLayer) -> Tensor:
    weight = layer.module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _root(share: Tensor) -> float:
    return float(share.nan_to_num(0).sqrt())


def _better_rows(
    dense: Tensor, pruned: Tensor, hessian: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Fitted rows where their error falls; sums of energies: dense, before, after."""
    new = as_stored(refit_rows(dense, pruned, hessian), pruned, dtype)
    before = energies(pruned - dense, hessian)
    after = energies(new.to(dense.dtype) - dense, hessian)
    better = after < before  # false where a fitted weight overflows
    kept = torch.where(better[:, None], new, pruned.to(dtype))
    sums = energies(dense, hessian), before, torch.where(better, after, before)
    return kept, torch.stack([x.sum() for x in sums]).cpu()


def _shares(
    dense: dict[TargetLayer, Tensor], layers: Sequence[TargetLayer], work: BlockFit
) -> dict[TargetLayer, tuple[float | None, float | None]]:
    """The error of each layer as it is: on samples fitted to, and on those held out."""
    now = {layer: _weight(layer) for layer in layers}
    fitted = output_errors(dense, [now], work.fit)
    unseen = output_errors(dense, [now], work.held_out)
    return {layer: (fitted[layer][0], unseen[layer][0]) for layer in layers}
