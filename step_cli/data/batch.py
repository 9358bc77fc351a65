"""Batches, splits and data sets: samples along the first axis, inputs by name."""

import hashlib
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

IGNORED = -100  # a token label that is not scored: padding
FINGERPRINT_SAMPLES = 32  # of a split, evenly spaced, the first and the last included


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
    """Samples by number, in memory or read when needed."""

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
    """What is trained on, and what is not.

    Attributes:
        train: What is trained on.
        held_out: What metrics are measured on.
        classes: The name of each class, where the data name them.
        tokens: How many different tokens there may be, of text that was tokenized.
        longest: Tokens of the longest sample, of text.
    """

    train: Split
    held_out: Split
    classes: tuple[str, ...] = ()
    tokens: int | None = None
    longest: int | None = None


@dataclass(frozen=True)
class Subset:
    """Some samples of a split: by ``index``, int64 ``[n]``."""

    split: Split
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Tensor) -> Batch:
        return self.split[self.index[index]]

    def draw(self, index: Tensor, generator: Generator) -> Batch:
        """See `RandomSplit`."""
        if isinstance(self.split, RandomSplit):
            return self.split.draw(self.index[index], generator)
        return self[index]


def classes_in(split: Split) -> Tensor | None:
    """The class of each sample, int64 ``[n]``, of splits that know them unread.

    None where there are no classes: numbers, texts, or a split that reads its labels.
    """
    if isinstance(split, Subset):
        whole = classes_in(split.split)
        return None if whole is None else whole[split.index]
    labels = getattr(split, "labels", None)
    if not isinstance(labels, Tensor) or labels.dim() != 1:
        return None
    return None if labels.is_floating_point() else labels


def fingerprint_of(data: Dataset) -> dict[str, dict[str, Any]]:
    """The number of samples of each split, and a digest of some of them.

    A change of any one sample may go unseen, other data, another order, tokenizer or
    version of a decoder will not.
    """
    splits = {"train": data.train, "held_out": data.held_out}
    return {name: _split_fingerprint(split) for name, split in splits.items()}


def _split_fingerprint(split: Split) -> dict[str, Any]:
    count = len(split)
    seen = min(count, FINGERPRINT_SAMPLES)
    places = torch.linspace(0, count - 1, seen, dtype=torch.float64)
    digest = hashlib.sha256()
    if isinstance(split, Subset):  # another choice of the same samples is another split
        digest.update(split.index.numpy().tobytes())
    for place in places.round().long():
        _add_to_digest(split[place[None]], digest)
    return {"samples": count, "sha256": digest.hexdigest()}


def _add_to_digest(batch: Batch, digest: "hashlib._Hash") -> None:
    for name, values in [*sorted(batch.inputs.items()), ("", batch.labels)]:
        digest.update(f"{name} {values.dtype} {list(values.shape)}\n".encode())
        digest.update(values.contiguous().numpy().tobytes())
