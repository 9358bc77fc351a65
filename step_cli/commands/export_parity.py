"""Does ONNX Runtime compute what PyTorch computes?"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from step_cli.commands.export_model import LoadedModel, cast, in_precision
from step_cli.config import ExportConfig
from step_cli.formats.onnx_export import DEFAULT_OPSET, export_onnx
from step_cli.formats.ort_session import (
    TOLERANCE,
    OrtSession,
    difference,
    feeds_of,
    torch_outputs,
)
from step_cli.formats.scratch import scratch_directory
from step_cli.reports import Parity

if TYPE_CHECKING:
    from torch import Tensor

Examples = Mapping[str, "Tensor"]


def compare(
    config: ExportConfig, loaded: LoadedModel, examples: Examples, path: Path
) -> tuple[Parity, str]:
    """Compare ONNX Runtime with PyTorch on the example inputs.

    ONNX Runtime's CPU has no bf16 kernels, so a bf16 model is compared as fp32 with the
    same rounded weights, exported for the purpose.

    Returns:
        The comparison, and the precision it was made in.
    """
    tolerance = config.tolerance or TOLERANCE[loaded.precision]
    if loaded.precision != "bf16":
        return _parity(loaded, examples, path, tolerance), loaded.precision
    with scratch_directory("parity") as folder:
        twin = folder / "fp32.onnx"
        model = copy.deepcopy(loaded.model)
        cast(model, "fp32", config.checkpoint)
        inputs = [in_precision(given, "fp32") for given in loaded.inputs]
        wide = {
            name: value.float() if value.is_floating_point() else value
            for name, value in examples.items()
        }
        opset = config.opset or DEFAULT_OPSET
        export_onnx(model, inputs, wide, {}, twin, opset=opset)
        rounded = replace(loaded, model=model, inputs=inputs)
        return _parity(rounded, wide, twin, tolerance), "fp32"


def _parity(
    loaded: LoadedModel, examples: Examples, path: Path, tolerance: float
) -> Parity:
    session = OrtSession(path)
    found = session.run(feeds_of(examples))
    worst = difference(session.outputs, found, torch_outputs(loaded.model, examples))
    return Parity(
        max_abs=worst.max_abs,
        max_rel=worst.max_rel,
        ok=worst.within(tolerance),
        tolerance=tolerance,
        output=worst.output,
    )
