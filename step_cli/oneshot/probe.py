"""What a run of a model on a sample shows: which layers run, when, how often."""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from step_cli.oneshot.blocks import watched_calls
from step_cli.oneshot.forward_pass import Batch, run_model
from step_cli.oneshot.inputs import TargetLayer, input_hooks
from step_cli.oneshot.other_arguments import feed_one_value


@dataclass(frozen=True)
class Probe:
    """What it showed.

    Attributes:
        order: The layers that ran, in the order in which they first did.
        again: Those that ran more than once.
        alike: Of each list of blocks, whether all its blocks are called with the same
            arguments, but for what one hands to the next.
        broken: Of each list, whether its blocks do not simply feed each other. They do
            where each runs once, in order, and is given nothing that depends on the
            blocks before it but what the last one returned.
    """

    order: list[TargetLayer]
    again: frozenset[TargetLayer]
    alike: list[bool]
    broken: list[bool]


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
    alike, broken = list[bool](), list[bool]()
    for number, sample in enumerate(samples):
        counts: Counter[TargetLayer] = Counter()
        with ExitStack() as stack:
            lists = () if number else block_lists
            seen = [stack.enter_context(watched_calls(blocks)) for blocks in lists]
            note = {layer: partial(_note, counts, layer) for layer in layers}
            stack.enter_context(input_hooks(note))
            run_model(model, sample)
        if not number:
            alike = [calls.alike for calls in seen]
            broken = [
                calls.broken
                or not (
                    calls.alike or feed_one_value(model, blocks, sample, calls.calls)
                )
                for blocks, calls in zip(block_lists, seen, strict=True)
            ]
        again |= {layer for layer, count in counts.items() if count > 1}
        _merge(order, counts)
        if len(order) == len(layers):
            break
    return Probe(order, frozenset(again), alike, broken)


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
