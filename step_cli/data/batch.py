"""What every task shares: samples along the first axis, inputs by name, labels."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Generator, Tensor

IGNORED = -100  # a token label that is not scored: padding


@dataclass(frozen=True)
class Batch:
    """Samples, numbered by the first axis of every tensor.

    Attributes:
        inputs: Arguments of the model's ``forward`` by name.
        labels: int64 ``[n]``, the class of each sample; float ``[n]``, what regression
            aims at; or int64 ``[n, tokens]``, the token each score is for, already
            shifted, and ``IGNORED`` where there is none.
    """

    inputs: dict[str, Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


class Split(Protocol):
    """Samples by number, in memory or read when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor) -> Batch:
        """The samples numbered ``index``, int64 ``[n]``, in that order."""
        ...


@runtime_checkable
class RandomSplit(Split, Protocol):
    """A split of which training sees random variants, such as crops of images."""

    def draw(self, index: Tensor, generator: Generator) -> Batch:
        """The samples numbered ``index``, varied as ``generator`` decides."""
        ...


@dataclass(frozen=True)
class TensorSplit:
    """A split in memory; ``inputs`` and ``labels`` as in `Batch`."""

    inputs: dict[str, Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> Batch:
        inputs = {name: values[index] for name, values in self.inputs.items()}
        return Batch(inputs, self.labels[index])


@dataclass(frozen=True)
class Dataset:
    """What is trained on, and what is not."""

    train: Split
    held_out: Split
