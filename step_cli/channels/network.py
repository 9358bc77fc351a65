"""A checkpoint's network: its graph run through the rules, and a way to run it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from step_cli.channels.flow import Flow, Value
from step_cli.formats.checkpoint import Checkpoint


@dataclass(frozen=True)
class Network:
    """What a graph proves.

    Attributes:
        flow: All tensors of it.
        tensors: The axes of each tensor of the checkpoint that it uses, by name.
        outputs: What it computes, in fp32, with the weights of a checkpoint.
    """

    flow: Flow
    tensors: Mapping[str, Value]
    outputs: Callable[[Checkpoint], list[npt.NDArray[Any]]]
