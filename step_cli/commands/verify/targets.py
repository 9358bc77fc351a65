"""Which libraries could run each layer of a checkpoint sparse."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from step_cli.commands.verify.counted import Counted
from step_cli.commands.verify.verdict import Judge
from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.huggingface.model_config import gemm_plugin_in
from step_cli.nm.count import TensorToCheck
from step_cli.nm.target_table import TargetName
from step_cli.nm.targets import Operand, operand_of, view_of
from step_cli.reports import TargetView

if TYPE_CHECKING:
    from step_cli.formats.onnx.surroundings import Surroundings


def judge_for(targets: Sequence[TargetName], checkpoint: Checkpoint) -> Judge | None:
    """What says of a layer which of the libraries could run it sparse; None: no one."""
    if not targets:
        return None
    around = _around(checkpoint)

    def judge(layer: Counted) -> dict[str, TargetView]:
        operand = operand_of(layer.layer)
        if layer.tensor.name in around:
            operand = in_graph(operand, around[layer.tensor.name])
        given = TensorToCheck(layer.tensor.data(), layer.spec)
        holds = layer.counts.violations == 0
        views = {
            target: view_of(target, operand, given, holds=holds) for target in targets
        }
        return {
            target: TargetView(
                possible=view.possible, likely=view.likely, advice=view.advice
            )
            for target, view in views.items()
        }

    return judge


def notes_for(targets: Sequence[TargetName], checkpoint: Checkpoint) -> list[str]:
    """What the configuration beside the weights tells of the libraries."""
    path = checkpoint.path
    folder = path if path.is_dir() else path.parent
    plugin = gemm_plugin_in(folder) if "tensorrt" in targets else None
    if plugin is None:
        return []
    return [
        f"config.json sets gemm_plugin ({plugin}): GEMMs of a plugin are never sparse; "
        "build without it"
    ]


def _around(checkpoint: Checkpoint) -> "dict[str, Surroundings]":
    """What stands around each weight, where there is a graph."""
    if checkpoint.format != "onnx":
        return {}
    from step_cli.formats.onnx.surroundings import surroundings

    return surroundings(checkpoint.path)


def in_graph(operand: Operand, around: "Surroundings") -> Operand:
    """A weight as its product in a graph uses it.

    Args:
        operand: The weight as it is stored.
        around: What stands around it.
    """
    return replace(
        operand,
        dtype=around.quantized or operand.dtype,
        groups=around.groups,
        int8_output=around.int8_output,
        between=around.between,
    )
