"""Statistics of the inputs of a model's layers, collected by hooks."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from step_cli.errors import NonFiniteError, StepError
from step_cli.oneshot.forward_pass import StopForward, version
from step_cli.oneshot.layer_matrix import LayerMatrix

ROWS = 1 << 24  # numbers of a layer's rows that are looked at together

Pass = Callable[[], Any]  # runs a model, or a part of it, on one batch


class Counts(Protocol):
    """Whatever counts in what a layer multiplies."""

    def add(self, rows: Tensor) -> None:
        """Count in what the layer multiplies, ``[parts, rows, columns]``."""


class InputStatistics(Counts, Protocol):
    """What a pruning method needs to know of the inputs of a layer."""

    @property
    def unused(self) -> int:
        """How many inputs were zero in every row."""

    @property
    def inputs(self) -> int:
        """How many inputs there are."""


S = TypeVar("S", bound=InputStatistics)


@dataclass(frozen=True)
class TargetLayer:
    """A layer to prune: the name of its weight in the model, and its module."""

    name: str
    module: nn.Module


def collect_statistics(
    layers: Iterable[TargetLayer],
    new_statistics: Callable[[], S],
    passes: Iterable[Pass],
    *,
    once: bool = False,
) -> dict[str, S]:
    """Run ``passes`` and collect statistics of what each layer is called with.

    Layers that are always called with one and the same tensor, such as the three that
    make queries, keys and values, share theirs. Layers that are not called have none;
    of those that the first pass does not call, the rest is run once more.

    Args:
        layers: Whose inputs.
        new_statistics: Makes empty statistics.
        passes: Each runs the model, or a part of it, on one batch. Where a layer is
            called more than once in it, the first is run twice.
        once: Whether it is known that none is; then a pass ends once all were called.

    Raises:
        NonFiniteError: An input is NaN or infinite.
    """
    layers, passes = list(layers), list(passes)
    rest = passes[1:]
    found = _FirstPass(layers, new_statistics, once=once)
    found.run(passes[0])
    if found.again:
        first = _first_with_same_inputs(layers, passes[0])
        statistics = {x.name: new_statistics() for x in set(first.values())}
    else:
        first, passes = found.first, rest
        statistics = found.statistics
    add = {layer: adder(layer, statistics[layer.name]) for layer in set(first.values())}
    for run in passes if add else ():
        _run(run, add, stop=not found.again)
    by_name = {name: statistics[layer.name] for name, layer in first.items()}
    missing = [layer for layer in layers if layer.name not in first]
    if missing and rest:
        by_name |= collect_statistics(missing, new_statistics, rest, once=once)
    return by_name


def _run(
    run: Pass, actions: Mapping[TargetLayer, Callable[[Tensor], object]], *, stop: bool
) -> None:
    """Run a pass with an action for each layer; ``stop`` once all were called."""
    waiting = set(actions)

    def act(layer: TargetLayer, x: Tensor) -> None:
        actions[layer](x)
        waiting.discard(layer)
        if stop and not waiting:
            raise StopForward

    with (
        suppress(StopForward),
        input_hooks({layer: partial(act, layer) for layer in actions}),
    ):
        run()


class _FirstPass(Generic[S]):
    """Collects statistics, and finds out which layers are called with one tensor.

    Attributes:
        first: By name of each layer that was called: the first with the same input.
        statistics: By the name of each first layer.
        again: Whether a layer was called more than once: then the rest means nothing.
    """

    def __init__(
        self, layers: list[TargetLayer], new_statistics: Callable[[], S], *, once: bool
    ) -> None:
        self._layers, self._new, self._once = layers, new_statistics, once
        # Whether a tensor is still there tells whether its address is still its own.
        self._seen: dict[object, tuple[weakref.ref[Tensor], TargetLayer]] = {}
        self.first: dict[str, TargetLayer] = {}
        self.statistics: dict[str, S] = {}
        self.again = False

    def run(self, run: Pass) -> None:
        actions = {layer: partial(self._called, layer) for layer in self._layers}
        _run(run, actions, stop=self._once)

    def _called(self, layer: TargetLayer, x: Tensor) -> None:
        if layer.name in self.first:
            self.again = True
            raise StopForward
        place = x.data_ptr(), x.shape, x.stride(), version(x)
        key = (place, LayerMatrix(layer.module).row_key)
        known = self._seen.get(key)
        if known is not None and known[0]() is not None:
            self.first[layer.name] = known[1]
            return
        self.first[layer.name] = layer
        self._seen[key] = weakref.ref(x), layer
        self.statistics[layer.name] = self._new()
        adder(layer, self.statistics[layer.name])(x)


def layers_by_input(
    layers: Sequence[TargetLayer], passes: Iterable[Pass]
) -> list[list[TargetLayer]]:
    """Put layers together that a pass always calls with one and the same tensor.

    The first pass that calls a layer counts. Layers that none calls are left out.
    """
    found: dict[TargetLayer, list[TargetLayer]] = {}
    for run in passes:
        first = _first_with_same_inputs(layers, run)
        for layer in layers:
            if layer.name in first:
                found.setdefault(first[layer.name], []).append(layer)
        layers = [layer for layer in layers if layer.name not in first]
        if not layers:
            break
    return list(found.values())


def _first_with_same_inputs(
    layers: Sequence[TargetLayer], run: Pass
) -> dict[str, TargetLayer]:
    """By name of each layer that is called: the first with the same inputs."""
    seen: dict[TargetLayer, list[Tensor]] = {layer: [] for layer in layers}
    with input_hooks({layer: seen[layer].append for layer in layers}):
        run()
    first: dict[object, TargetLayer] = {}
    by_name = {}
    for layer, inputs in seen.items():
        if inputs:  # kept until here, so that no two have one address
            same = tuple((x.data_ptr(), x.shape, x.stride()) for x in inputs)
            key = (same, LayerMatrix(layer.module).row_key)
            by_name[layer.name] = first.setdefault(key, layer)
    return by_name


def adder(layer: TargetLayer, statistics: Counts) -> Callable[[Tensor], None]:
    """What turns an input of a layer into rows and counts them in.

    Raises:
        NonFiniteError: An input is NaN or infinite.
    """
    view = LayerMatrix(layer.module)

    def add(x: Tensor) -> None:
        x = x.detach()
        if x.dim() <= len(getattr(layer.module, "kernel_size", ())) + 1:
            x = x[None]  # a sample without a batch
        try:
            # A convolution sees each value many times, so not all samples at once.
            for part in torch.split(x, _samples(x, layer.module)):
                rows = view.of_input(part)
                _refuse_nonfinite(rows)
                statistics.add(rows)
        except StepError as error:
            error.tensor = error.tensor or layer.name
            raise

    return add


def _refuse_nonfinite(rows: Tensor) -> None:
    if rows.numel() and not bool(torch.stack(rows.aminmax()).isfinite().all()):
        raise NonFiniteError(
            "an input of this layer is NaN or infinite; look at the calibration data"
        )


def _samples(x: Tensor, module: nn.Module) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    seen = x[:1].numel() * weight.shape[2:].numel()
    return max(1, ROWS // max(1, seen))


@contextmanager
def input_hooks(
    actions: Mapping[TargetLayer, Callable[[Tensor], object]],
) -> Iterator[None]:
    """Call the action of each layer with every input that its module gets."""
    handles = []

    def hook_of(action: Callable[[Tensor], object]) -> Any:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
        ) -> None:
            given = [*args, *kwargs.values()]
            if given and isinstance(given[0], Tensor):
                action(given[0])

        return hook

    for layer, action in actions.items():
        hook = hook_of(action)
        handles.append(layer.module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
