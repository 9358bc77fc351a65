"""Whether blocks are given more of the blocks before them than one output.

A block that is run by itself gets the recorded values of all but its main argument.
That is right only where these do not depend on the blocks before it: a second residual
stream does, a mask does not. It is found out by running the model once more, with
another input of the first block.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from step_cli.oneshot.blocks import Call, Key
from step_cli.oneshot.forward_pass import (
    Batch,
    NotSequentialError,
    StopForward,
    run_model,
)


def feed_one_value(
    model: nn.Module, blocks: Sequence[nn.Module], batch: Batch, calls: Sequence[Call]
) -> bool:
    """Whether a change of the first block's input changes no argument but the main one.

    Args:
        model: The model.
        blocks: Each runs once, in order, on the last's output.
        batch: Arguments of the model.
        calls: What each block is called with on this batch.

    Raises:
        InputError: The model does not take the batch.
    """
    handles = []
    for block, call in zip(blocks, calls, strict=False):
        look = partial(_look, call, change=block is blocks[0], last=block is blocks[-1])
        handles.append(block.register_forward_pre_hook(look, with_kwargs=True))
    try:
        run_model(model, batch)
    except NotSequentialError:
        return False
    except StopForward:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return True


def _look(
    call: Call,
    block: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    change: bool,
    last: bool,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    given = dict[Key, Any](enumerate(args)) | kwargs
    known = dict[Key, Any](enumerate(call.args)) | call.kwargs
    main, _ = given.pop(call.slot), known.pop(call.slot)
    if not _equal(given, known):
        raise NotSequentialError
    if last:
        raise StopForward
    given[call.slot] = _changed(main) if change else main
    return tuple(given[i] for i in range(len(args))), {
        key: given[key] for key in kwargs
    }


def _changed(main: Tensor) -> Tensor:
    """Other numbers of about the same size; one factor for all, a norm would undo."""
    if not main.is_floating_point() or not main.dim():
        return main
    factors = torch.linspace(0.5, 1.5, main.shape[-1], device=main.device)
    return main * factors.to(main.dtype)


def _equal(one: Any, other: Any) -> bool:
    """Whether all tensors in two values are the same; other values are not compared."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.shape == other.shape and torch.equal(one, other))
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        same = one.keys() == other.keys()
        return same and all(_equal(value, other[key]) for key, value in one.items())
    return isinstance(one, Tensor) == isinstance(other, Tensor)
