"""Whether TensorRT has a sparse kernel for each layer of an exported graph."""

from collections.abc import Sequence
from pathlib import Path

from step_cli.commands.verify.targets import in_graph
from step_cli.formats.files.mapped_file import map_file
from step_cli.formats.onnx.reader import open_onnx
from step_cli.formats.onnx.surroundings import surroundings
from step_cli.nm.count import TensorToCheck
from step_cli.nm.diagnosis import holds_pattern
from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.nm.selection import Layer
from step_cli.nm.target_table import TWO_FOUR
from step_cli.nm.targets import implies_two_four, operand_of, view_of
from step_cli.reports import ExportLayer, TargetView


def tensorrt_views(
    layers: Sequence[ExportLayer], path: Path
) -> tuple[list[TargetView | None], bool]:
    """Judge each layer by its type, size, pattern and what stands around it.

    Args:
        layers: Of an ONNX file.
        path: The file.

    Returns:
        What is known of each layer, None where it is no weight of the graph; and
        whether any layer holds 2:4 in the graph: reason to permit sparse weights.
    """
    tensors = {tensor.name: tensor for tensor in open_onnx(map_file(path)).tensors}
    around = surroundings(path)
    views: list[TargetView | None] = []
    any_two_four = False
    for layer in layers:
        tensor = tensors.get(layer.onnx_name or "")
        if tensor is None or tensor.axis is None:
            views.append(None)
            continue
        spec = NMSpec(NMPattern.parse(layer.pattern), tensor.axis)
        to_check = TensorToCheck(tensor.data(), spec)
        holds = layer.pattern_ok is True
        operand = operand_of(Layer.alone(tensor, spec))
        if tensor.name in around:
            operand = in_graph(operand, around[tensor.name])
        view = view_of("tensorrt", operand, to_check, holds=holds)
        views.append(
            TargetView(possible=view.possible, likely=view.likely, advice=view.advice)
        )
        any_two_four = any_two_four or _is_two_four(to_check, holds=holds)
    return views, any_two_four


def _is_two_four(to_check: TensorToCheck, *, holds: bool) -> bool:
    if holds and implies_two_four(to_check.spec.pattern):
        return True
    axis = to_check.spec.axis
    divisible = to_check.data.array.shape[axis] % TWO_FOUR.m == 0
    return divisible and holds_pattern(to_check, TWO_FOUR, axis)
