"""What the layers of a model see: statistics of their inputs, gathered by hooks."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from step_cli.errors import StepError
from step_cli.oneshot.calibrated import InputStatistics
from step_cli.oneshot.layer_matrix import LayerMatrix

S = TypeVar("S", bound=InputStatistics)

ROWS = 1 << 24  # numbers of a layer's rows that are looked at together


@dataclass(frozen=True)
class Watched:
    """A layer whose inputs matter: its weight's name, and its module."""

    name: str
    module: nn.Module


def gather(
    layers: Iterable[Watched],
    make: Callable[[], S],
    passes: Iterable[Callable[[], object]],
) -> dict[str, S]:
    """Run ``passes`` and gather statistics of what each layer is called with.

    Layers that are always called with one and the same tensor, such as the three that
    make queries, keys and values, share theirs. Layers that are not called have none.

    Args:
        layers: What to watch.
        make: Makes an empty statistic.
        passes: Each runs the model, or a part of it, on one batch; the first is run
            twice.

    Raises:
        NonFiniteError: An input is NaN or infinite.
    """
    layers, passes = list(layers), list(passes)
    leaders = _leaders(layers, passes[0])
    found = {leader.name: make() for leader in set(leaders.values())}
    add = {
        leader: _adder(leader, found[leader.name]) for leader in set(leaders.values())
    }
    with hooked(add):
        for run in passes:
            run()
    return {name: found[leader.name] for name, leader in leaders.items()}


def _leaders(layers: list[Watched], run: Callable[[], object]) -> dict[str, Watched]:
    """By name of each layer that is called: the first with the same inputs."""
    seen: dict[Watched, list[Tensor]] = {layer: [] for layer in layers}
    with hooked({layer: seen[layer].append for layer in layers}):
        run()
    first: dict[object, Watched] = {}
    leaders = {}
    for layer, inputs in seen.items():
        if inputs:  # kept until here, so that no two have one address
            same = tuple((x.data_ptr(), x.shape, x.stride()) for x in inputs)
            key = (same, LayerMatrix(layer.module).blind_to)
            leaders[layer.name] = first.setdefault(key, layer)
    return leaders


def _adder(layer: Watched, statistics: InputStatistics) -> Callable[[Tensor], None]:
    view = LayerMatrix(layer.module)

    def add(x: Tensor) -> None:
        if x.dim() <= len(getattr(layer.module, "kernel_size", ())) + 1:
            x = x[None]  # a sample without a batch
        try:
            # A convolution sees each value many times, so not all samples at once.
            for part in torch.split(x, _samples(x, layer.module)):
                statistics.add(view.of_input(part))
        except StepError as error:
            error.tensor = error.tensor or layer.name
            raise

    return add


def _samples(x: Tensor, module: nn.Module) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    seen = x[:1].numel() * weight.shape[2:].numel()
    return max(1, ROWS // max(1, seen))


@contextmanager
def hooked(actions: Mapping[Watched, Callable[[Tensor], object]]) -> Iterator[None]:
    """Call the action of each layer with every input that its module gets."""
    handles = []

    def hook_of(action: Callable[[Tensor], object]) -> Any:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
        ) -> None:
            given = [*args, *kwargs.values()]
            if given and isinstance(given[0], Tensor):
                action(given[0].detach())

        return hook

    for layer, action in actions.items():
        hook = hook_of(action)
        handles.append(layer.module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
