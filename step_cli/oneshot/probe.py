"""What a run of a model on one sample shows: which layers run, when, how often."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from step_cli.errors import InputError
from step_cli.oneshot.blocks import StopForward, calls_differ
from step_cli.oneshot.inputs import TargetLayer, input_hooks

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Probe:
    """What a run showed.

    Attributes:
        order: The layers that ran, in the order in which they first did.
        again: Those that ran more than once.
        alike: Of each list of blocks, whether all its blocks are called with the same
            arguments, but for what one hands to the next.
    """

    order: list[TargetLayer]
    again: frozenset[TargetLayer]
    alike: list[bool]


def probe(
    model: nn.Module,
    sample: Batch,
    layers: Sequence[TargetLayer],
    block_lists: Sequence[list[nn.Module]],
) -> Probe:
    """Run a model on one sample and note what runs.

    Raises:
        InputError: The model does not take the sample.
    """
    counts: dict[TargetLayer, int] = {}
    with ExitStack() as stack:
        differ = [stack.enter_context(calls_differ(blocks)) for blocks in block_lists]
        note = {layer: partial(_note, counts, layer) for layer in layers}
        stack.enter_context(input_hooks(note))
        run_model(model, sample)
    again = frozenset(layer for layer, count in counts.items() if count > 1)
    return Probe(list(counts), again, [not found() for found in differ])


def _note(counts: dict[TargetLayer, int], layer: TargetLayer, x: Tensor) -> None:
    counts[layer] = counts.get(layer, 0) + 1


def run_model(model: nn.Module, batch: Batch) -> None:
    """Run a batch; what the model raises on it becomes one line.

    Raises:
        InputError: It raises.
    """
    try:
        model(**batch)
    except (StopForward, MemoryError):
        raise
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0]
        raise InputError(
            f"the model does not take the calibration samples: "
            f"{type(error).__name__}: {said[:200]}"
        ) from error
