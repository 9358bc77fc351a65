"""Does ONNX Runtime compute what PyTorch computes?"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from step_cli.commands.export.model import LoadedModel, in_precision
from step_cli.config.commands import ExportConfig
from step_cli.formats.files.temporary import temporary_directory
from step_cli.formats.onnx.exporter import DEFAULT_OPSET, export_onnx
from step_cli.formats.onnx.session import (
    TOLERANCE,
    Array,
    OrtSession,
    difference,
    feeds_of,
    torch_outputs,
)
from step_cli.render.status_line import working_on
from step_cli.reports import Parity

if TYPE_CHECKING:
    from torch import Tensor

Examples = Mapping[str, "Tensor"]


@working_on("running the model in PyTorch")
def reference(loaded: LoadedModel, examples: Examples) -> list[Array]:
    """What PyTorch computes of the example inputs, in the precision of `compare`.

    ONNX Runtime's CPU has no bf16 kernels, so a bf16 model is compared as fp32 with the
    same rounded weights.

    Raises:
        InputError: The model raises, or returns what is no tensor.
    """
    if loaded.precision == "bf16":
        loaded, examples = _widened(loaded, examples)
    return torch_outputs(loaded.model, examples)


@working_on("comparing ONNX Runtime with PyTorch")
def compare(
    config: ExportConfig,
    loaded: LoadedModel,
    examples: Examples,
    path: Path,
    expected: list[Array],
) -> tuple[Parity, str]:
    """Compare ONNX Runtime on the example inputs with what PyTorch computes.

    Returns:
        The comparison, and the precision it was made in.
    """
    tolerance = config.tolerance or TOLERANCE[loaded.precision]
    if loaded.precision != "bf16":
        return _parity(path, examples, expected, tolerance), loaded.precision
    with temporary_directory("parity") as folder:
        twin, opset = folder / "fp32.onnx", config.opset or DEFAULT_OPSET
        wide, examples = _widened(loaded, examples)
        export_onnx(wide.model, wide.inputs, examples, {}, twin, opset=opset)
        return _parity(twin, examples, expected, tolerance), "fp32"


def _widened(
    loaded: LoadedModel, examples: Examples
) -> tuple[LoadedModel, dict[str, "Tensor"]]:
    """The same rounded weights and inputs as fp32."""
    model = copy.deepcopy(loaded.model).float()
    inputs = [in_precision(given, "fp32") for given in loaded.inputs]
    wide = {
        name: value.float() if value.is_floating_point() else value
        for name, value in examples.items()
    }
    return replace(loaded, model=model, inputs=inputs), wide


def _parity(
    path: Path, examples: Examples, expected: list[Array], tolerance: float
) -> Parity:
    session = OrtSession(path)
    worst = difference(session.outputs, session.run(feeds_of(examples)), expected)
    return Parity(
        max_abs=worst.max_abs,
        max_rel=worst.max_rel,
        ok=worst.within(tolerance),
        tolerance=tolerance,
        output=worst.output,
    )
