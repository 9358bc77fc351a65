"""Run a model on a batch of samples, as far as that is of use."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from step_cli.errors import InputError, StepError

Batch = Mapping[str, Tensor]


class NotSequentialError(Exception):
    """Blocks do not simply feed each other."""


class StopForward(Exception):
    """Raised by a hook where the rest of a forward pass is not needed."""


def run_model(model: nn.Module, batch: Batch) -> None:
    """Run a batch; what the model raises on it becomes one line.

    Raises:
        InputError: It raises.
        StepError: A hook does.
    """
    try:
        model(**batch)
    except (StopForward, NotSequentialError, StepError, MemoryError):
        raise
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0]
        raise InputError(
            f"the model does not take the calibration samples: "
            f"{type(error).__name__}: {said[:200]}{_of_16_bits(model, said)}"
        ) from error


def _of_16_bits(model: nn.Module, said: str) -> str:
    """What to do where a module multiplies the 16-bit weight of another by itself."""
    narrow = any(x.dtype in (torch.float16, torch.bfloat16) for x in model.parameters())
    if not narrow or not re.search("dtype|scalar type", said):
        return ""
    return (
        "; code of the model uses a 16-bit weight outside of its module, where it is "
        "not cast to fp32: store the checkpoint in fp32 and prune that"
    )


def version(value: Tensor) -> int:
    """How often a tensor was changed in place, where that is counted."""
    return 0 if value.is_inference() else value._version
