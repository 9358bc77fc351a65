"""Tensors that more than one node of a graph uses: which of them may be pruned."""

import logging
from collections.abc import Sequence

from step_cli.formats.checkpoint import NamedTensor
from step_cli.nm.selection import Layer

log = logging.getLogger(__name__)


def harms_others(
    layer: Layer[NamedTensor], layers: Sequence[Layer[NamedTensor]], *, named: bool
) -> bool:
    """Whether pruning a tensor may harm another use of it; warns if so.

    Args:
        layer: The tensor, and the axis of its groups.
        layers: All that are chosen; twice those of which products sum over two axes.
        named: Whether the user, or the plan, asks for just this tensor.
    """
    tensor = layer.tensor
    axes = [x.spec.axis for x in layers if x.tensor.name == tensor.name]
    if len(axes) > 1:
        if axes[0] == layer.spec.axis:
            log.warning(
                "%s is left alone, as products sum over its axes %s: "
                "--axis '%s=%d' chooses one of them",
                tensor.name,
                " and ".join(map(str, axes)),
                tensor.name,
                axes[0],
            )
        return True
    if tensor.shared_with is None or named:
        return False
    log.warning(
        "%s is left alone, as its numbers are used by %s too: --include %r prunes it",
        tensor.name,
        tensor.shared_with,
        tensor.name,
    )
    return True


def holds_whole(layer: Layer[NamedTensor]) -> bool:
    """Whether all of a tensor can hold groups where those of its used parts stand.

    It is pruned as a whole: what no product uses is used by nothing else either.
    """
    m, axis, tensor = layer.spec.pattern.m, layer.spec.axis, layer.tensor
    begins = (part.begin[axis] for part in tensor.parts)
    return not tensor.shape[axis] % m and not any(begin % m for begin in begins)
