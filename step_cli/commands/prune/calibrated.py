"""Wanda and SparseGPT in `prune`: all layers first, in the order of the model."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from step_cli.commands.prune.tensors import (
    LayerToPrune,
    only_modules_that_stay_dense,
    place_of,
)
from step_cli.config.commands import PruneConfig
from step_cli.errors import (
    InputError,
    NonFiniteError,
    NothingSelectedError,
    naming,
)
from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.files.temporary import ArraysOnDisk
from step_cli.formats.huggingface.model import is_hugging_face
from step_cli.formats.pytorch.arrays import mapped_tensor, to_array
from step_cli.models.runnable import RunnableModel, open_model
from step_cli.models.source import model_source
from step_cli.nm.groups import Mask
from step_cli.nm.prune import OneShot, Pruned
from step_cli.nm.weight_rule import SkipReason
from step_cli.oneshot.block_by_block import Calibration, prune_in_order
from step_cli.oneshot.inputs import TargetLayer
from step_cli.oneshot.layer_matrix import LayerMatrix
from step_cli.oneshot.samples import read_batches
from step_cli.oneshot.sparsegpt import InputHessian, sparsegpt_weight
from step_cli.oneshot.transposable import transposable_keep
from step_cli.oneshot.wanda import InputNorms, wanda_keep
from step_cli.optim.module_kinds import stays_dense

Array = npt.NDArray[Any]


def calibrated(
    config: PruneConfig,
    checkpoint: Checkpoint,
    layers: list[LayerToPrune],
    folder: Path | None,
) -> "Calibrated":
    """Run the samples through the model and prune every layer by what it sees.

    Raises:
        UsageError: It is not known which model it is.
        InputError: Model, weights or samples do not fit each other.
        NonFiniteError: A weight or an activation is NaN or infinite.
    """
    assert config.calibration is not None
    source = model_source(config.model, checkpoint)
    runnable = open_model(source, checkpoint)
    directory = Path(source.spec) if is_hugging_face(Path(source.spec)) else None
    batches = read_batches(
        config.calibration,
        runnable,
        most=config.calibration_samples,
        tokenizer=directory,
    )
    done = Calibrated(
        config.method == "sparsegpt", config.transposable, ArraysOnDisk(folder)
    )
    make: Callable[[], Any] = InputHessian if done.sparsegpt else InputNorms
    work = Calibration(runnable.model, batches, make, done.prune, folder)
    try:
        prune_in_order(work, done.watch(runnable, layers, config.include))
    except BaseException:
        done.close()
        raise
    return done


@dataclass
class Calibrated:
    """Layers that are pruned already, their new weights put aside.

    Attributes:
        sparsegpt: Whether by SparseGPT, else by Wanda.
        transposable: Whether the pattern is to hold along the outputs as well.
        arrays: Where the new weights are.
        results: The new weight of each tensor, by name.
        layers: By the name of the weight in the model.
        done: What was done to each tensor, by name.
        left: Why weights of other modules are left out, by the name of the tensor.
    """

    sparsegpt: bool
    transposable: bool
    arrays: ArraysOnDisk
    results: dict[str, Array] = field(default_factory=dict)
    layers: dict[str, LayerToPrune] = field(default_factory=dict)
    done: dict[str, Pruned] = field(default_factory=dict)
    left: dict[str, SkipReason] = field(default_factory=dict)

    def watch(
        self,
        runnable: RunnableModel,
        layers: list[LayerToPrune],
        named: Collection[str] = (),
    ) -> list[TargetLayer]:
        """The module of each layer.

        Args:
            runnable: The model.
            layers: What is to be pruned.
            named: Tensors that the user has asked for by name.

        Raises:
            InputError: A layer is no weight of a module that can be observed.
            NothingSelectedError: All are weights of modules that stay dense.
        """
        watched = []
        for layer in layers:
            name = layer.tensor.name
            if layer.tensor.tied_to is not None:
                continue
            place = runnable.names.get(name, "")
            module_name, _, parameter = place.rpartition(".")
            module = runnable.model.get_submodule(module_name) if place else nn.Module()
            reason = stays_dense(module)
            if reason is not None and name not in named:
                self.left[name] = reason
                continue
            if parameter != "weight" or not LayerMatrix.fits(module):
                raise InputError(
                    "is no weight of a linear layer or a convolution of the model; "
                    "--exclude it, or use --method magnitude",
                    tensor=name,
                )
            watched.append(TargetLayer(place, module))
            self.layers[place] = layer
        if not watched:
            raise NothingSelectedError(only_modules_that_stay_dense(self.left))
        return watched

    def prune(self, watched: TargetLayer, seen: Any) -> None:
        """Prune one layer, and have its module compute with the result."""
        layer, view = self.layers[watched.name], LayerMatrix(watched.module)
        stored = mapped_tensor(layer.tensor.data().array)
        with naming(tensor=layer.tensor.name):
            if self.sparsegpt:
                new = self._updated(layer, stored, view, seen)
            else:
                new = self._masked(layer, stored, view, seen)
        self.results[layer.tensor.name] = aside = self.arrays.add(new)
        parameter = nn.Parameter(mapped_tensor(aside), requires_grad=False)
        watched.module.weight = parameter

    def blocks(self, layer: LayerToPrune) -> Iterator[Array]:
        """See `Method`."""
        new = self.results[layer.tensor.name]
        order = place_of(layer.tensor).order
        yield np.ascontiguousarray(new if order is None else new.transpose(order))

    def close(self) -> None:
        """See `Method`."""
        self.arrays.close()

    def _masked(
        self, layer: LayerToPrune, stored: Tensor, view: LayerMatrix, seen: InputNorms
    ) -> Array:
        weights = layer.tensor.data()

        def choose(scores: Tensor) -> Mask:
            return transposable_keep(weights, layer.spec, layer.outputs, scores.numpy())

        keep = wanda_keep(
            stored.float(),
            view,
            seen,
            layer.spec,
            choose if self.transposable else None,
        )
        work = OneShot(weights, layer.spec, name=layer.tensor.name, keep=keep)
        new = np.concatenate([block.copy() for block in work.blocks()])
        self.done[layer.tensor.name] = work.done
        return new.view(weights.array.dtype).reshape(weights.array.shape)

    def _updated(
        self,
        layer: LayerToPrune,
        stored: Tensor,
        view: LayerMatrix,
        seen: InputHessian,
    ) -> Array:
        wide = sparsegpt_weight(stored.float(), view, seen, layer.spec)
        new = wide.to(stored.dtype)
        if not bool(torch.isfinite(new).all()):
            raise NonFiniteError(f"an updated weight overflows {layer.tensor.dtype}")
        weights, keep = layer.tensor.data(), (new != 0).numpy()
        work = OneShot(weights, layer.spec, name=layer.tensor.name, keep=keep)
        for _ in work.blocks():
            pass
        self.done[layer.tensor.name] = replace(work.done, nonzeros=int(keep.sum()))
        return to_array(new)
