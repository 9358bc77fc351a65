"""What a run of a model on a sample shows: which layers run, when, how often."""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from step_cli.oneshot.blocks import Batch, calls_differ, run_model
from step_cli.oneshot.inputs import TargetLayer, input_hooks


@dataclass(frozen=True)
class Probe:
    """What it showed.

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
    samples: Iterable[Batch],
    layers: Sequence[TargetLayer],
    block_lists: Sequence[list[nn.Module]],
) -> Probe:
    """Run a model on the first of ``samples`` and note what runs.

    The others are run until every layer was: a sample reaches few of many experts.

    Raises:
        InputError: The model does not take a sample.
    """
    order: list[TargetLayer] = []
    again: set[TargetLayer] = set()
    alike: list[bool] | None = None
    for sample in samples:
        counts: Counter[TargetLayer] = Counter()
        with ExitStack() as stack:
            lists = block_lists if alike is None else ()
            differ = [stack.enter_context(calls_differ(blocks)) for blocks in lists]
            note = {layer: partial(_note, counts, layer) for layer in layers}
            stack.enter_context(input_hooks(note))
            run_model(model, sample)
        if alike is None:
            alike = [not found() for found in differ]
        again |= {layer for layer, count in counts.items() if count > 1}
        _merge(order, counts)
        if len(order) == len(layers):
            break
    return Probe(order, frozenset(again), alike or [])


def _note(counts: Counter[TargetLayer], layer: TargetLayer, x: Tensor) -> None:
    counts[layer] += 1


def _merge(order: list[TargetLayer], ran: Iterable[TargetLayer]) -> None:
    """Put each layer that is new behind the one that ran before it."""
    at = 0
    for layer in ran:
        if layer in order:
            at = order.index(layer)
        else:
            order.insert(at, layer)
        at += 1
