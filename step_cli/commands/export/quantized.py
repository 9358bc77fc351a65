"""`export --quantize`: calibrated, quantized, and checked on what was written."""

import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from step_cli.commands.export.samples import Feeds, Samples
from step_cli.commands.export.views import tensorrt_views
from step_cli.config.commands import Quantize
from step_cli.errors import InputError
from step_cli.formats.files.mapped_file import map_file
from step_cli.formats.onnx.exporter import LARGEST_FILE
from step_cli.formats.onnx.graph import ModelReader
from step_cli.formats.onnx.publish import OnnxPlace
from step_cli.formats.onnx.quantization.layers import Found, products_to_quantize
from step_cli.formats.onnx.quantization.quantizers import (
    CODES,
    QuantizedGraph,
    Quantizers,
    zeros_with_codes,
)
from step_cli.formats.onnx.quantization.ranges import (
    fails_on_samples,
    measure_ranges,
)
from step_cli.formats.onnx.quantization.surgery import add_quantizers
from step_cli.formats.onnx.reader import open_onnx
from step_cli.formats.onnx.session import OrtSession
from step_cli.formats.onnx.surroundings import NamedGraph
from step_cli.nm.pattern import Plan
from step_cli.render.status_line import working_on
from step_cli.reports import (
    ExportLayer,
    LayerQuantizers,
    OutputDifference,
    QuantizationReport,
)

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)
Array = npt.NDArray[Any]
RUNTIME = "ONNX Runtime, CPU"


@dataclass(frozen=True)
class Quantized:
    """A quantized graph that was written.

    Attributes:
        codes: int8 or fp8.
        source: The fp32 graph.
        path: The quantized one.
        found: The products that got quantizers, and why others did not.
    """

    codes: Quantize
    source: Path
    path: Path
    found: Found


@working_on("measuring ranges on samples")
def quantize(
    codes: Quantize, samples: Samples, source: Path, plan: Plan, place: OnnxPlace
) -> Quantized:
    """Write the quantized graph.

    Args:
        codes: int8 or fp8.
        samples: What the ranges of activations are measured on.
        source: The fp32 graph, alone in its folder.
        plan: Of its sparse layers, in its own names.
        place: The file to write, and one for weights that are too large for it.

    Raises:
        InputError: No layer of the plan can be quantized.
        NonFiniteError: An activation is NaN or infinite on the samples.
    """
    found = products_to_quantize(source, plan)
    if not found.products:
        first = next(iter(found.left.items()), None)
        why = f": {first[0]}: {first[1]}" if first else ""
        raise InputError(f"--quantize: no layer of the plan can be quantized{why}")
    graph = NamedGraph(ModelReader(map_file(source).data.data).model().graph, {})
    around = {name for one in found.products for name in (one.enters, one.leaves)}
    large = source.with_name(f"{source.name}.data").exists()
    ranges = measure_ranges(
        source, graph, sorted(around), samples.calibration, external=large
    )
    _save(add_quantizers(source, found.products, ranges, codes), place)
    return Quantized(codes, source, place.path, found)


def _save(model: "onnx.ModelProto", place: OnnxPlace) -> None:
    import onnx

    size = sum(tensor.ByteSize() for tensor in model.graph.initializer)
    onnx.save_model(
        model,
        str(place.path),
        save_as_external_data=size > LARGEST_FILE,
        location=place.data_name,
    )


def with_quantizers(
    layers: Sequence[ExportLayer], done: Quantized
) -> tuple[list[ExportLayer], list[str]]:
    """What the written file shows of each layer: quantizers, zeros and kernels.

    Returns:
        The layers, and what is wrong with the codes and quantizers of the graph.
    """
    names = {product.weight for product in done.found.products}
    graph = QuantizedGraph(done.path)
    around = graph.around(names)
    lost = _zeros_lost(done, names)
    views, _ = tensorrt_views(layers, done.path)
    faults = [f"{name}: quantized twice" for name in graph.doubled()]
    described = []
    for layer, view in zip(layers, views, strict=True):
        name = layer.onnx_name or ""
        if name not in names:
            why = done.found.left.get(name)
            advice = layer.advice or (f"not quantized: {why}" if why else None)
            described.append(layer.model_copy(update={"advice": advice}))
            continue
        found, zeros = around.get(name), lost[name]
        own = [] if zeros == 0 else [f"{zeros} zeros have codes other than 0"]
        own += found.faults(CODES[done.codes]) if found else ["no product uses it"]
        faults += [f"{layer.name}: {fault}" for fault in own]
        update = {
            "quantizers": found and _quantizers(found),
            "zeros_kept": None if zeros is None else zeros == 0,
            "targets": view and {"tensorrt": view},
            "advice": "; ".join(own) or layer.advice or (view and view.advice),
        }
        described.append(layer.model_copy(update=update))
    return described, faults


def _zeros_lost(done: Quantized, names: Collection[str]) -> dict[str, int | None]:
    """How many zeros of each weight have other codes; None where it has no codes."""
    source = {
        tensor.name: tensor for tensor in open_onnx(map_file(done.source)).tensors
    }
    stored = {tensor.name: tensor for tensor in open_onnx(map_file(done.path)).tensors}
    return {
        name: zeros_with_codes(source[name], stored[name])
        if name in stored and stored[name].dtype == CODES[done.codes]
        else None
        for name in names
    }


def _quantizers(found: Quantizers) -> LayerQuantizers:
    return LayerQuantizers(
        input=found.input,
        weight=found.weight,
        output=found.output,
        scales=found.scales or None,
    )


@working_on("comparing the quantized graph with the fp32 one")
def compared(
    done: Quantized, samples: Samples, faults: list[str]
) -> QuantizationReport:
    """How far the quantized graph is from the fp32 one, on samples of both kinds.

    Args:
        done: The graphs.
        samples: The samples.
        faults: What is wrong with the quantized one.
    """
    calibration = held_out = runtime = None
    try:
        sessions = OrtSession(done.source), OrtSession(done.path)
    except InputError as error:
        log.warning("the quantized graph is not compared: %s", error.message)
    else:
        runtime = RUNTIME
        calibration = _difference(
            *sessions, samples.calibration, samples.calibration_count
        )
        if samples.held_out:
            held_out = _difference(*sessions, samples.held_out, samples.held_out_count)
    return QuantizationReport(
        codes=done.codes,
        layers=len({product.weight for product in done.found.products}),
        calibration=calibration,
        held_out=held_out,
        runtime=runtime,
        fp32_bytes=OnnxPlace(done.source).size_bytes(),
        faults=faults,
    )


def _run(session: OrtSession, inputs: Feeds) -> list[Array]:
    try:
        return session.run(inputs)
    except InputError as error:
        raise fails_on_samples(error) from None


def _difference(
    source: OrtSession, other: OrtSession, feeds: Sequence[Feeds], samples: int
) -> OutputDifference:
    """Over all numbers of all outputs of all samples."""
    worst = largest = total = 0.0
    count, product, squares = 0, 0.0, [0.0, 0.0]
    for inputs in feeds:
        for one, two in zip(_run(source, inputs), _run(other, inputs), strict=True):
            if one.dtype.kind != "f" or not one.size:
                continue
            a, b = one.astype(np.float64), two.astype(np.float64)
            apart = np.abs(a - b)
            worst = max(worst, float(apart.max()))
            largest = max(largest, float(np.abs(a).max()))
            total, count = total + float(apart.sum()), count + a.size
            product += float((a * b).sum())
            squares = [
                squares[0] + float((a * a).sum()),
                squares[1] + float((b * b).sum()),
            ]
    norm = math.sqrt(squares[0] * squares[1])
    finite = math.isfinite(worst) and math.isfinite(total)
    return OutputDifference(
        samples=samples,
        max_abs=worst if finite else None,
        max_rel=worst / largest if finite and largest else None,
        mean_abs=total / count if finite and count else None,
        cosine=product / norm if finite and norm else None,
    )
