"""The new weight of one layer by each method, and what was done to it."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from step_cli.commands.prune.methods import Method
from step_cli.commands.prune.tensors import LayerToPrune, place_of
from step_cli.errors import NonFiniteError
from step_cli.formats.pytorch.arrays import mapped_tensor, to_array
from step_cli.nm.groups import Mask
from step_cli.nm.prune import OneShot, Pruned
from step_cli.oneshot.layer_matrix import LayerMatrix
from step_cli.oneshot.sparsegpt import InputHessian, sparsegpt_weight
from step_cli.oneshot.transposable import transposable_keep
from step_cli.oneshot.wanda import InputNorms, wanda_keep

Array = npt.NDArray[Any]


def by_rule(method: Method, layer: LayerToPrune) -> tuple[Array, Pruned]:
    """Pruned by a method that needs no samples; the axes in their order."""
    tensor = layer.tensor
    order = place_of(tensor).order or tuple(range(len(tensor.shape)))
    old, filled = tensor.data().array, 0
    new = np.empty(old.size, old.dtype)
    for block in method.blocks(layer):  # each is overwritten by the next
        new[filled : filled + block.size] = block.reshape(-1).view(new.dtype)
        filled += block.size
    new = new.reshape([tensor.shape[axis] for axis in order])
    back = np.ascontiguousarray(new.transpose(np.argsort(order)))
    return back, method.done[tensor.name]


def by_wanda(
    layer: LayerToPrune, view: LayerMatrix, seen: InputNorms, *, transposable: bool
) -> OneShot:
    """To be pruned by Wanda; what is kept is kept bit for bit."""
    weights = layer.tensor.data()

    def choose(scores: Tensor) -> Mask:
        return transposable_keep(weights, layer.spec, layer.outputs, scores.numpy())

    stored = mapped_tensor(weights.array)
    keep = wanda_keep(stored, view, seen, layer.spec, choose if transposable else None)
    return OneShot(weights, layer.spec, name=layer.tensor.name, keep=keep)


def by_sparsegpt(
    layer: LayerToPrune, view: LayerMatrix, seen: InputHessian
) -> tuple[Array, Pruned]:
    """Pruned and updated by SparseGPT.

    Raises:
        NonFiniteError: An updated weight overflows its dtype.
    """
    weights = layer.tensor.data()
    new = sparsegpt_weight(mapped_tensor(weights.array), view, seen, layer.spec)
    if not bool(torch.isfinite(new).all()):
        raise NonFiniteError(f"an updated weight overflows {layer.tensor.dtype}")
    keep = (new != 0).numpy()
    work = OneShot(weights, layer.spec, name=layer.tensor.name, keep=keep)
    for _ in work.blocks():
        pass
    return to_array(new), replace(work.done, nonzeros=int(keep.sum()))
