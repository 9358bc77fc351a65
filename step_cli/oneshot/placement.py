"""On which device the modules of a model compute: a block only while it runs.

What is not in a list of blocks, such as embeddings, moves to the device once. A block
is moved there by its first call, or for as long as `Placement.held` says, and then its
parameters are again the mapped ones they were. On the CPU nothing moves.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from step_cli.errors import MissingError

Moved = list[tuple[dict[str, Any], str, Any, Any]]  # of a module, name, old, new


def device_named(name: str) -> torch.device:
    """The device of ``--device``.

    Raises:
        MissingError: This machine does not have it.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise MissingError(
            "--device cuda: this machine has no CUDA GPU that PyTorch can use; leave "
            "the option out, or install PyTorch for CUDA"
        )
    return torch.device(name)


class Placement:
    """Moves the modules of a model to a device when they compute.

    Args:
        model: The model; its parameters may be mapped from files.
        device: Where it computes.
        block_lists: Whose blocks move there one at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        block_lists: Sequence[Sequence[nn.Module]] = (),
    ) -> None:
        self.device = device
        self._blocks = [block for blocks in block_lists for block in blocks]
        apart = {module for block in self._blocks for module in block.modules()}
        self._outside = [m for m in model.modules() if m not in apart]
        self._copies: dict[int, tuple[Any, Any]] = {}  # of what is outside, by id
        self._moved: Moved = []  # of what is outside
        self._here: dict[nn.Module, tuple[int, Moved]] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Move modules as they are called; afterwards all are as they were before."""
        with ExitStack() as stack:
            if self.device.type == "cuda":
                stack.enter_context(torch.backends.cudnn.flags(allow_tf32=False))
            for block in self._blocks:
                before = block.register_forward_pre_hook(self._enter)
                after = block.register_forward_hook(self._leave, always_call=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
            stack.callback(_put_back, self._moved)
            self.refresh()
            yield

    def refresh(self) -> None:
        """Move what has changed outside of blocks: layers that were pruned."""
        self._moved += _move(self._outside, self.device, self._copies)

    @contextmanager
    def held(self, block: nn.Module) -> Iterator[None]:
        """Keep a block on the device for several calls."""
        self._enter(block, ())
        try:
            yield
        finally:
            self._leave(block, (), None)

    def batch(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch on the device."""
        return {name: value.to(self.device) for name, value in batch.items()}

    def _enter(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        depth, moved = self._here.get(block, (0, []))
        # Layers that were pruned since the last call have new weights.
        moved += _move(list(block.modules()), self.device, {})
        self._here[block] = depth + 1, moved

    def _leave(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        depth, moved = self._here[block]
        self._here[block] = depth - 1, moved
        if depth == 1:
            _put_back(moved)


def _move(
    modules: Sequence[nn.Module],
    device: torch.device,
    copies: dict[int, tuple[Any, Any]],
) -> Moved:
    """Put copies on the device in the place of parameters; ties stay ties."""
    moved: Moved = []
    for module in modules:
        for values in (module._parameters, module._buffers):
            for name, old in list(values.items()):
                if old is None or _is_on(device, old):
                    continue
                if id(old) not in copies:
                    new: Any = old.detach().to(device)
                    if isinstance(old, nn.Parameter):
                        new = nn.Parameter(new, requires_grad=old.requires_grad)
                    copies[id(old)] = old, new  # kept, so that no two have one id
                values[name] = copies[id(old)][1]
                moved.append((values, name, old, values[name]))
    return moved


def _is_on(device: torch.device, value: Tensor) -> bool:
    return value.device.type == device.type


def _put_back(moved: Moved) -> None:
    """Undo `_move`, but for what has got another value since."""
    for values, name, old, new in reversed(moved):
        if values.get(name) is new:
            values[name] = old
    moved.clear()
