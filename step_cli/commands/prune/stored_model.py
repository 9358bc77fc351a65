"""A model whose changed parameters are put aside, as the checkpoint will store them."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from step_cli.commands.prune.other_kinds import OtherKinds, with_arrays
from step_cli.commands.prune.tensors import LayerToPrune, change_to
from step_cli.errors import NonFiniteError
from step_cli.formats.checkpoint import Checkpoint, NamedTensor
from step_cli.formats.files.finished import FinishedParts
from step_cli.formats.files.patched_copy import Change
from step_cli.formats.files.temporary import ArraysOnDisk
from step_cli.formats.pytorch.arrays import mapped_tensor, to_array, to_tensor
from step_cli.models.runnable import RunnableModel
from step_cli.oneshot.inputs import TargetLayer

Array = npt.NDArray[Any]

FITTED = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass
class StoredModel:
    """Where the parameters of a model come from, and what is to be stored for them.

    Attributes:
        runnable: The model, and its names of the tensors.
        checkpoint: All tensors.
        folder: On which disk new data are put; None: where temporary files go.
        parts: Where those of a group of layers are put, if they are kept.
        layers: What is pruned, by the name of the weight in the model.
        weights: The new data of each pruned tensor, by its name.
        others: New data of norms, biases and statistics, by the name of the tensor.
    """

    runnable: RunnableModel
    checkpoint: Checkpoint
    folder: Path | None
    parts: FinishedParts | None = None
    layers: dict[str, LayerToPrune] = field(default_factory=dict)
    weights: dict[str, Array] = field(default_factory=dict)
    others: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tensors = {tensor.name: tensor for tensor in self.checkpoint.tensors}
        names = self.runnable.names.items()
        self._tensors = {place: tensors[name] for name, place in names}
        self._tied = {x.tied_to: x.name for x in tensors.values() if x.tied_to}
        modules = list(self.runnable.model.named_modules())
        self._names = {module: name for name, module in modules}
        uses = Counter(
            id(value) for _, module in modules for value in module._parameters.values()
        )
        self._twice = self.runnable.stored_twice()
        self._alone = {
            (module, name)
            for _, module in modules
            for name, value in module._parameters.items()
            if uses[id(value)] == 1 and (module, name) not in self._twice
        }
        self._alone_arrays = ArraysOnDisk(self.folder)  # of what is in no group
        self._arrays: ArraysOnDisk | None = None  # of the group at hand
        self._new: dict[str, Array] = {}  # the same, by name of the tensor
        self.other_kinds = OtherKinds(self.runnable.model)

    def close(self) -> None:
        """Give back what was put aside."""
        self._alone_arrays.close()
        if self._arrays is not None:
            self._arrays.close()

    def of_group(self) -> tuple[ArraysOnDisk, dict[str, Array]]:
        """What was put aside for the group at hand: the file, and by name of tensor.

        The file may hold more: what was replaced since.
        """
        return self._of_group(), dict(self._new)

    def _of_group(self) -> ArraysOnDisk:
        if self._arrays is None:
            parts = self.parts
            made = ArraysOnDisk(self.folder) if parts is None else parts.new_arrays()
            self._arrays = made
        return self._arrays

    def take(self, arrays: Mapping[str, Array]) -> None:
        """Have the model compute with what was found for a group, and end the group.

        Args:
            arrays: New data, by the name of the tensor.
        """
        pruned = {layer.tensor.name for layer in self.layers.values()}
        for name, array in arrays.items():
            (self.weights if name in pruned else self.others)[name] = array
            module_name, _, parameter = self.runnable.names[name].rpartition(".")
            module = self.runnable.model.get_submodule(module_name)
            new = nn.Parameter(mapped_tensor(array), requires_grad=False)
            setattr(module, parameter, new)
        self._new.clear()
        if self._arrays is not None:
            self._arrays.close()
            self._arrays = None

    def dense(self, layer: TargetLayer) -> Tensor:
        """See `Weights`."""
        return mapped_tensor(self.layers[layer.name].tensor.data().array)

    def left(self, layer: TargetLayer) -> str | None:
        """See `Weights`."""
        tensor = self.layers[layer.name].tensor
        if tensor.dtype not in FITTED:
            return f"numbers of {tensor.dtype} are not fitted"
        if tensor.name in self._tied:
            return f"{self._tied[tensor.name]} is tied to it"
        if tensor.shared_with is not None:
            return f"{tensor.shared_with} uses it too"
        if (layer.module, "weight") not in self._alone:
            return "other modules of the model use it too"
        return None

    def replace(self, layer: TargetLayer, weight: Tensor) -> None:
        """See `Weights`."""
        self.put(layer, [to_array(weight)])

    def put(self, layer: TargetLayer, blocks: Iterable[Array]) -> None:
        """Have a layer compute with a weight that comes in blocks, and store that."""
        tensor = self.layers[layer.name].tensor
        aside = self._of_group().add_blocks(blocks, tensor.data().array)
        self.weights[tensor.name] = self._new[tensor.name] = aside
        parameter = nn.Parameter(mapped_tensor(aside), requires_grad=False)
        setattr(layer.module, layer.name.rpartition(".")[2], parameter)

    def put_other_kind(self, layer: LayerToPrune, place: str, weight: Array) -> None:
        """Store a tensor that is no layer's weight, and have the model use it, if any.

        Args:
            layer: The tensor.
            place: Its name in the model; empty: the model does not have it as it is.
            weight: Its new data.
        """
        aside = self._alone_arrays.add(weight)
        self.weights[layer.tensor.name] = aside
        module_name, _, name = place.rpartition(".")
        if place:
            module = self.runnable.model.get_submodule(module_name)
            if module._parameters.get(name) is not None:
                self.other_kinds.put(module, name, mapped_tensor(aside))

    def use_without_place(self, opened: Callable[[Checkpoint], RunnableModel]) -> None:
        """Have the model use pruned tensors that it holds in another form: as a stack.

        Args:
            opened: Opens the model with a checkpoint of other numbers.
        """
        names = self.runnable.names
        new = {name: x for name, x in self.weights.items() if name not in names}
        if new:
            other = opened(with_arrays(self.checkpoint, new)).model
            self.other_kinds.put_from(
                other, lambda *place: self._of(*place) is not None
            )

    def dense_others(self, block: nn.Module) -> AbstractContextManager[None]:
        """See `Weights`."""
        return self.other_kinds.as_dense(block)

    def trainable(self, module: nn.Module, name: str) -> bool:
        """See `Weights`."""
        tensor, value = self._of(module, name), module._parameters[name]
        return (
            value is not None
            and (module, name) in self._alone
            and tensor is not None
            and self._may_change(tensor)
            and tuple(value.shape) == tensor.shape
        )

    def _may_change(self, tensor: NamedTensor) -> bool:
        alone = tensor.tied_to is None and tensor.shared_with is None
        placed = tensor.place is not None or tensor.among is not None
        return (
            alone
            and placed
            and tensor.name not in self._tied
            and tensor.dtype in FITTED
        )

    def replace_other(self, module: nn.Module, name: str, value: Tensor) -> None:
        """See `Weights`."""
        rounded = self._put_aside(module, name, value)
        setattr(module, name, nn.Parameter(rounded, requires_grad=False))

    def store_buffer(self, module: nn.Module, name: str) -> None:
        """Store what a buffer holds now.

        Raises:
            NonFiniteError: It overflows the dtype it is stored in.
        """
        value = module._buffers[name]
        assert value is not None
        stored = self._put_aside(module, name, value)
        if not bool(torch.isfinite(stored).all()):
            raise NonFiniteError(
                "--recalibrate-bn: a new statistic is NaN or too large for "
                f"{stored.dtype}; look at the samples, or store weights in fp32",
                tensor=getattr(self._of(module, name), "name", None),
            )

    def stores(self, module: nn.Module, names: Sequence[str]) -> bool:
        """Whether buffers of a module can be stored."""
        tensors = [self._of(module, name) for name in names]
        alone = self._twice.isdisjoint((module, name) for name in names)
        return alone and all(x is not None and self._may_change(x) for x in tensors)

    def name_of(self, module: nn.Module) -> str:
        """The name of a module in the model."""
        name: str = self._names[module]
        return name

    @property
    def changes(self) -> list[Change]:
        """Of tensors that are not pruned."""
        tensors = {tensor.name: tensor for tensor in self.checkpoint.tensors}
        return [change_to(tensors[name], self.others[name]) for name in self.others]

    def _of(self, module: nn.Module, name: str) -> NamedTensor | None:
        prefix = self._names[module]
        return self._tensors.get(f"{prefix}.{name}" if prefix else name)

    def _put_aside(self, module: nn.Module, name: str, value: Tensor) -> Tensor:
        tensor = self._of(module, name)
        assert tensor is not None
        rounded = value.detach().to(FITTED[tensor.dtype])
        array = self._of_group().add(to_array(rounded))
        self.others[tensor.name] = self._new[tensor.name] = array
        return to_tensor(array)
