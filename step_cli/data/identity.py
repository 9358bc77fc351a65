"""What tells whether data are those that a run began with, wherever they are now."""

import hashlib
from typing import Any

import torch

from step_cli.data.batch import Batch, Dataset, Split

LOOKED_AT = 32  # samples of a split, evenly spaced, the first and the last among them


def identity_of(data: Dataset) -> dict[str, dict[str, Any]]:
    """The number of samples of each split, and a digest of some of them.

    A change of any one sample may go unseen, other data, another order, tokenizer or
    version of a decoder will not.
    """
    return {"train": _of_split(data.train), "held_out": _of_split(data.held_out)}


def _of_split(split: Split) -> dict[str, Any]:
    count = len(split)
    places = torch.linspace(0, count - 1, min(count, LOOKED_AT), dtype=torch.float64)
    digest = hashlib.sha256()
    for place in places.round().long():
        _add(split[place[None]], digest)
    return {"samples": count, "sha256": digest.hexdigest()}


def _add(batch: Batch, digest: "hashlib._Hash") -> None:
    for name, values in [*sorted(batch.inputs.items()), ("", batch.labels)]:
        digest.update(f"{name} {values.dtype} {list(values.shape)}\n".encode())
        digest.update(values.contiguous().numpy().tobytes())
