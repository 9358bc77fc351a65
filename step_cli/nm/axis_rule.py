"""The group axis of a weight, from the first evidence that speaks.

The group axis is the one that a product sums over. A file tells of it by its nodes
(ONNX), by the kind of model in its ``config.json``, by shapes and by names; what
nothing tells is assumed, and said to be.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from step_cli.nm.families import (
    NOTHING_KNOWN,
    ModelConfig,
    axis_by_config,
    output_axis_by_config,
    reason_by_config,
)
from step_cli.nm.weight_rule import (
    Described,
    SkipReason,
    is_fused_experts,
    without_wrappers,
)

AxisFrom = Literal["option", "plan", "node", "config", "shape", "name", "default"]

# GPT-2's names: of Conv1D, which stores [in, out], or of Linear in models written
# after it. What stands before their parent is the block.
_GPT2 = re.compile(
    r"((?:.*\.)?)([^.]+)\.(c_attn|q_attn|c_proj|c_fc)\.weight"
    r"|(c_attn|q_attn|c_proj|c_fc)\.weight"
)
# Outputs and inputs in the shape of a layer.
_WIDTHS = {"c_attn": (3, 1), "c_fc": (4, 1), "c_proj": (1, 4)}
LONGEST_KERNEL = 32  # of a convolution in one dimension that is not named like one


class Axis(NamedTuple):
    """A group axis, and how it is known.

    Attributes:
        axis: Not negative.
        source: The evidence.
        assumed: Whether nothing settles it, so that another axis may be the right one.
    """

    axis: int
    source: AxisFrom
    assumed: bool = False


class AxisRule:
    """Finds the group axis of the tensors of one checkpoint."""

    def __init__(
        self, tensors: Iterable[Described], config: ModelConfig = NOTHING_KNOWN
    ) -> None:
        """Look at all tensors once: one of them may settle the axis of others.

        Args:
            tensors: All of the checkpoint.
            config: What its ``config.json`` tells, if there is one.
        """
        self._config = config
        self._conv1d: dict[str, set[bool]] = {}  # by the block they stand in
        for tensor in tensors:
            for block, is_conv1d in _conv1d_evidence(tensor):
                self._conv1d.setdefault(block, set()).add(is_conv1d)

    def of(self, tensor: Described) -> Axis:
        """The group axis of a tensor of two axes or more."""
        if tensor.axis is not None:
            return Axis(tensor.axis, "node")
        name, shape = without_wrappers(tensor.name), tensor.shape
        found = _GPT2.fullmatch(name) if len(shape) == 2 else None
        block = None if found is None else found[1] or ""
        axis = axis_by_config(name, shape, self._config)
        if axis is not None:
            # A model written after GPT-2, with Linear, beside the config of GPT-2.
            linear = axis == 0 and block is not None and self._shapes_of(block)
            return Axis(1, "shape") if linear == {False} else Axis(axis, "config")
        if block is not None:
            return self._of_gpt2(block)
        if is_fused_experts(name, shape):
            return Axis(2, "default", assumed=True)  # [experts, out, in]
        return Axis(1, "default", assumed=_may_be_a_stack(name, shape))

    def knows(self, tensor: Described) -> bool:
        """Whether the config names this tensor as a weight, whatever its name."""
        name = without_wrappers(tensor.name)
        return axis_by_config(name, tensor.shape, self._config) is not None

    def reason(self, tensor: Described) -> SkipReason | None:
        """Why the config rules a tensor out, where nothing else tells what it is."""
        if tensor.axis is not None or tensor.skip is not None or tensor.is_weight:
            return None
        name = without_wrappers(tensor.name)
        return reason_by_config(name, tensor.shape, self._config)

    def outputs(self, tensor: Described, axis: int) -> int:
        """The axis of the outputs, given the group axis: that of a matrix beside it.

        Of convolutions, ``[out, in, k...]``, the first; of stacked matrices, of which
        the group axis is one of the last two, the other one.
        """
        if tensor.output_axis is not None and axis == tensor.axis:
            return tensor.output_axis
        name, shape = without_wrappers(tensor.name), tensor.shape
        if axis == axis_by_config(name, shape, self._config):
            known = output_axis_by_config(name, shape, self._config)
            if known is not None:
                return known
        rank = len(shape)
        stacked = is_fused_experts(name, shape) or _may_be_a_stack(name, shape)
        if axis > 1 or (stacked and axis == rank - 2):
            return rank - 2 if axis == rank - 1 else rank - 1
        return 1 if axis == 0 else 0

    def _shapes_of(self, block: str) -> set[bool]:
        """What shapes tell, of the same block where they do, else of the whole file."""
        own = self._conv1d.get(block, set())
        return own if len(own) == 1 else set[bool]().union(*self._conv1d.values())

    def _of_gpt2(self, block: str) -> Axis:
        """Conv1D or Linear, by the shapes in the file."""
        shapes = self._shapes_of(block)
        if len(shapes) == 1:
            return Axis(0 if True in shapes else 1, "shape")
        if self._config.model_types:  # and none of them has Conv1D
            return Axis(1, "config")
        return Axis(0, "name", assumed=True)


def _conv1d_evidence(tensor: Described) -> Iterator[tuple[str, bool]]:
    """The block of a tensor whose shape tells Conv1D from Linear, and which it is."""
    if len(tensor.shape) != 2:
        return
    found = _GPT2.fullmatch(without_wrappers(tensor.name))
    if found is None:
        return
    block, parent, own = found[1] or "", found[2] or "", found[3] or found[4]
    outputs, inputs = _WIDTHS.get(own, (0, 0))
    if own == "c_attn" and "cross" in parent:
        outputs = 2  # keys and values
    if own == "c_proj" and parent.endswith(("attn", "attention")):
        return  # only that of the MLP is known to narrow
    rows, columns = tensor.shape
    if outputs * rows == inputs * columns > 0:
        yield block, True
    if outputs * columns == inputs * rows > 0:
        yield block, False


def _may_be_a_stack(name: str, shape: Sequence[int]) -> bool:
    """Whether it may be a stack of matrices as well as a convolution."""
    return len(shape) == 3 and shape[-1] > LONGEST_KERNEL and "conv" not in name.lower()
