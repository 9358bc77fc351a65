"""Lists of blocks in a model, each fed by the one before: Transformer blocks, stages.

Such blocks are run one by one on recorded inputs, so that nothing of the model but one
block is needed at a time. That each feeds the next is checked, not assumed.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from step_cli.oneshot.forward_pass import (
    Batch,
    NotSequentialError,
    StopForward,
    run_model,
    version,
)

Key = int | str  # of an argument: its position, or its name


@dataclass
class Call:
    """What a block was called with beside its main input, whose place is ``slot``."""

    args: list[Any]
    kwargs: dict[str, Any]
    slot: Key

    def run(self, block: nn.Module, main: Tensor) -> Tensor:
        """Call a block with these arguments; the first tensor it returns.

        The block gets a copy of ``main``, as it may work in place.
        """
        args, kwargs, main = list(self.args), dict(self.kwargs), main.clone()
        if isinstance(self.slot, int):
            args[self.slot] = main
        else:
            kwargs[self.slot] = main
        return first_tensor(block(*args, **kwargs))


@dataclass
class RecordedBatch:
    """What enters the first block, and the calls of all blocks."""

    main: Tensor
    calls: list[Call]


def find_block_lists(
    model: nn.Module, layers: Collection[str]
) -> list[list[nn.Module]]:
    """The outermost lists of modules that hold some of the ``layers``, in their order.

    Args:
        model: The model.
        layers: Names of modules to prune.
    """
    found: dict[str, list[nn.Module]] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        holds = any(layer.startswith(f"{name}.") or not name for layer in layers)
        if isinstance(module, nn.ModuleList | nn.Sequential) and holds and not inside:
            blocks = list(module)
            if len(set(blocks)) == len(blocks):
                found[name] = blocks
                if not name:
                    break
    return list(found.values())


def record_calls(
    model: nn.Module,
    blocks: list[nn.Module],
    batch: Batch,
    *,
    alike: bool = False,
) -> RecordedBatch:
    """Run a batch as far as the last of ``blocks`` and note what each was called with.

    Args:
        model: The model.
        blocks: In the order of their list.
        batch: Arguments of the model.
        alike: Whether it is known that all are called as the first is; then the model
            runs as far as that one.

    Raises:
        NotSequentialError: A block did not run once, in order, on the last's output.
        InputError: The model does not take the batch.
    """
    recorder = Recorder(blocks[:1] if alike else blocks, stop_before=alike)
    handles = recorder.add_hooks()
    try:
        run_model(model, batch)
    except StopForward:
        pass
    finally:
        for handle in handles:
            handle.remove()
    recorded = recorder.recorded()
    return RecordedBatch(
        recorded.main, recorded.calls * len(blocks) if alike else recorded.calls
    )


@contextmanager
def watched_calls(blocks: list[nn.Module]) -> "Iterator[Recorder]":
    """Watch the calls of ``blocks``, in whatever way they run."""
    recorder = Recorder(blocks, tolerant=True)
    handles = recorder.add_hooks()
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def _alike(calls: list[Call], count: int) -> bool:
    """Whether all calls have the same arguments, but for the main one."""
    if len(calls) != count:
        return False
    first = calls[0]
    return all(
        call.slot == first.slot
        and len(call.args) == len(first.args)
        and call.kwargs.keys() == first.kwargs.keys()
        and all(map(_one, call.args, first.args))
        and all(_one(value, first.kwargs[key]) for key, value in call.kwargs.items())
        for call in calls
    )


def _one(one: Any, other: Any) -> bool:
    plain = bool | int | float | str
    return one is other or (
        isinstance(one, plain) and type(one) is type(other) and one == other
    )


@dataclass
class Recorder:
    """What is seen of the calls of a list of blocks.

    Attributes:
        calls: In their order.
        broken: Whether a block did not run once, in order, on the last's output.
    """

    blocks: list[nn.Module]
    main: Tensor | None = None
    output: Tensor | None = None  # of the block that ran last
    calls: list[Call] = field(default_factory=list)
    stop_before: bool = False  # the first block runs
    tolerant: bool = False  # blocks that do not feed each other are noted as broken
    broken: bool = False
    versions: list[list[int]] = field(default_factory=list)  # of tensors given beside

    @property
    def alike(self) -> bool:
        """Whether all have the same arguments, but for the main one."""
        changed = any(version != self.versions[0] for version in self.versions)
        return not self.broken and not changed and _alike(self.calls, len(self.blocks))

    def add_hooks(self) -> list[RemovableHandle]:
        """Watch the blocks from now on."""
        handles = []
        for block in self.blocks:
            handles.append(
                block.register_forward_pre_hook(self._before, with_kwargs=True)
            )
            handles.append(block.register_forward_hook(self._after))
        return handles

    def recorded(self) -> RecordedBatch:
        """What was seen.

        Raises:
            NotSequentialError: A block did not run once, in order.
        """
        if self.main is None or len(self.calls) != len(self.blocks):
            raise NotSequentialError
        return RecordedBatch(self.main, self.calls)

    def _before(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        try:
            self._record(block, args, kwargs)
        except NotSequentialError:
            if not self.tolerant:
                raise
            self.broken = True
        if self.stop_before:
            raise StopForward

    def _record(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        number = len(self.calls)
        if number >= len(self.blocks) or block is not self.blocks[number]:
            raise NotSequentialError
        slot = _slot(args, kwargs, self.output)
        call = Call(list(args), dict(kwargs), slot)
        if self.output is None:
            self.main = _argument(args, kwargs, slot)
        self._forget(call)
        self.calls.append(call)
        beside = [*call.args, *call.kwargs.values()]
        self.versions.append([version(x) for x in beside if isinstance(x, Tensor)])

    def _forget(self, call: Call) -> None:
        """Keep no main input: each is large, and made anew."""
        if isinstance(call.slot, int):
            call.args[call.slot] = None
        else:
            call.kwargs[call.slot] = None

    def _after(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.tolerant:
            with suppress(NotSequentialError):
                self.output = first_tensor(output)
            return
        self.output = first_tensor(output)
        if len(self.calls) == len(self.blocks):
            raise StopForward


def _slot(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor | None
) -> Key:
    """Which argument is the main input: the first tensor, or the last block's output.

    Raises:
        NotSequentialError: None is.
    """
    given: list[tuple[Key, Any]] = [*enumerate(args), *kwargs.items()]
    for key, value in given:
        if isinstance(value, Tensor) and (output is None or _same(value, output)):
            return key
    raise NotSequentialError


def _same(one: Tensor, other: Tensor) -> bool:
    if one is other:
        return True
    return one.shape == other.shape and torch.equal(one, other)


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], slot: Key) -> Tensor:
    value = args[slot] if isinstance(slot, int) else kwargs[slot]
    assert isinstance(value, Tensor)
    return value


def first_tensor(output: Any) -> Tensor:
    """A block's main output: the first of a tuple, or the tensor itself.

    Raises:
        NotSequentialError: There is none.
    """
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise NotSequentialError
    return output
