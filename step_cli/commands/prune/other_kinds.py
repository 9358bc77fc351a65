"""Parameters that are pruned at once, as no sample is needed for it, and never fitted.

Such as those of recurrent layers, and experts that are multiplied as a stack.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from step_cli.formats.checkpoint import Checkpoint

Array = npt.NDArray[Any]


@dataclass
class OtherKinds:
    """What a model computes with in their place, and what they were.

    Attributes:
        model: The model.
        dense: Of each module and name: the parameter before pruning.
    """

    model: nn.Module
    dense: dict[tuple[nn.Module, str], nn.Parameter] = field(default_factory=dict)

    def put(self, module: nn.Module, name: str, new: Tensor) -> None:
        """Have a module compute with a pruned parameter."""
        old = self.keep(module, name)
        setattr(module, name, nn.Parameter(new.to(old.dtype), requires_grad=False))

    def keep(self, module: nn.Module, name: str) -> nn.Parameter:
        """Keep a parameter as the dense one, before it is pruned."""
        old = module._parameters[name]
        assert old is not None
        self.dense[module, name] = old
        return old

    def put_from(
        self, other: nn.Module, skip: Callable[[nn.Module, str], bool]
    ) -> None:
        """Take over what differs in a model that is built alike.

        Args:
            other: Made of the pruned tensors.
            skip: What is not looked at, by the module and the name in it.
        """
        for module, theirs in zip(self.model.modules(), other.modules(), strict=True):
            for name, new in theirs._parameters.items():
                old = module._parameters[name]
                if new is None or old is None or skip(module, name):
                    continue
                if not torch.equal(old, new):
                    self.put(module, name, new.detach())

    @contextmanager
    def as_dense(self, block: nn.Module) -> Iterator[None]:
        """Have a block compute with all of them as they were before pruning."""
        inside, pruned = set(block.modules()), []
        for (module, name), dense in self.dense.items():
            if module in inside:
                pruned.append((module, name, module._parameters[name]))
                setattr(module, name, dense)
        try:
            yield
        finally:
            for module, name, value in pruned:
                setattr(module, name, value)


def with_arrays(checkpoint: Checkpoint, arrays: Mapping[str, Array]) -> Checkpoint:
    """The same checkpoint with other data of some tensors, by their names."""
    tensors = [
        replace(tensor, read=partial(arrays.__getitem__, tensor.name))
        if tensor.name in arrays
        else tensor
        for tensor in checkpoint.tensors
    ]
    return replace(checkpoint, tensors=tensors)
