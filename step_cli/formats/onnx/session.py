"""Run an ONNX file under ONNX Runtime, and compare it with PyTorch."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from step_cli.errors import InputError, StepError
from step_cli.formats.files.mapped_file import map_file
from step_cli.formats.onnx.data import DTYPES
from step_cli.formats.onnx.graph import ModelReader
from step_cli.formats.onnx.protobuf import WireError
from step_cli.formats.quiet import quiet

if TYPE_CHECKING:
    from torch import Tensor, nn

Array = npt.NDArray[Any]
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
FATAL_ONLY = 4  # of ONNX Runtime's log levels
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class Difference:
    """How far two runs of one model are apart, over all outputs.

    Attributes:
        max_abs: Largest absolute difference; NaN if an output holds NaN.
        max_rel: The same over the largest magnitude of the reference.
        scale: max(1, largest magnitude of the reference), of the worst output.
        output: Name of the worst output.
    """

    max_abs: float
    max_rel: float
    scale: float
    output: str

    def within(self, tolerance: float) -> bool:
        """Whether max_abs <= tolerance * max(1, max|reference|)."""
        return self.max_abs <= tolerance * self.scale  # false for NaN


class NodeArg(Protocol):
    """An input or output, as ONNX Runtime describes it.

    ``shape`` has numbers, and names or None for sizes that vary; it is empty where the
    graph gives none.
    """

    name: str
    type: str
    shape: list[int | str | None]


class OrtSession:
    """An ONNX file, loaded for the CPU.

    Args:
        model: The file, or its bytes.
        weights: Tensors that take the place of its own, by name. The graph is then run
            node by node, as ONNX Runtime would fold its own into others first.
        options: Of ONNX Runtime.
    """

    def __init__(
        self,
        model: Path | bytes,
        weights: Mapping[str, Array] | None = None,
        options: Any = None,
    ) -> None:
        with quiet():
            import onnxruntime

            options = options or onnxruntime.SessionOptions()
            if weights is not None:
                level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
                options.graph_optimization_level = level
            elif _has_fp8(model):
                # Beyond this level ONNX Runtime 1.31 fuses quantizers of fp8 as if they
                # were of integers: it refuses the result, or leaves out a Relu.
                level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
                options.graph_optimization_level = level
            options.log_severity_level = FATAL_ONLY
            self._kept = []  # the session does not keep them alive itself
            for name, array in (weights or {}).items():
                value = onnxruntime.OrtValue.ortvalue_from_numpy(
                    np.ascontiguousarray(array)
                )
                self._kept.append(value)
                options.add_initializer(name, value)
            try:
                self._session = onnxruntime.InferenceSession(
                    model if isinstance(model, bytes) else str(model),
                    options,
                    providers=["CPUExecutionProvider"],
                )
            except StepError:
                raise
            except Exception as error:  # its classes have no common base
                first = str(error).strip().splitlines()[0]
                raise InputError(f"ONNX Runtime refuses it: {first}") from None
        self.runtime = f"onnxruntime {onnxruntime.__version__} on the CPU"
        self.inputs: list[NodeArg] = list(self._session.get_inputs())
        self.output_args: list[NodeArg] = list(self._session.get_outputs())
        self.outputs = [output.name for output in self.output_args]

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """The outputs, in the order of ``outputs``.

        Raises:
            InputError: The graph does not compute with ``feeds``.
            MemoryError: There is not enough memory for it.
        """
        try:
            return list(self._session.run(None, dict(feeds)))
        except StepError:
            raise
        except Exception as error:  # its classes have no common base
            raise run_error(error) from None

    @staticmethod
    def options(*, threads: int) -> Any:
        """Options of ONNX Runtime that compute with so many threads."""
        with quiet():
            import onnxruntime

            options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return options

    @classmethod
    def of_bytes(cls, model: bytes, folder: Path) -> "OrtSession":
        """A model in memory, run node by node; its external data is in ``folder``."""
        with quiet():
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.add_session_config_entry(_DATA_FOLDER, str(folder))
            return cls(model, {}, options)

    def median_ms(self, feeds: Mapping[str, Array], runs: int = 20) -> float:
        """Median time of one run in milliseconds, after three unmeasured ones."""
        times = []
        for turn in range(runs + 3):
            start = time.perf_counter()
            self.run(feeds)
            if turn >= 3:
                times.append(1000 * (time.perf_counter() - start))
        return statistics.median(times)


def run_error(error: Exception) -> InputError | MemoryError:
    """What ONNX Runtime raised from a run, in one line."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "allocate memory" in said:
        return MemoryError(said)
    return InputError(f"ONNX Runtime cannot run the graph: {said}")


def _has_fp8(model: Path | bytes) -> bool:
    """Whether any stored tensor of the main graph is of fp8."""
    data = memoryview(model) if isinstance(model, bytes) else map_file(model).data.data
    try:
        stored = ModelReader(data).model().graph.initializers
    except WireError:
        return False  # ONNX Runtime says what is wrong with it
    kinds = [DTYPES.get(tensor.data_type) for tensor in stored]
    return any(kind is not None and "float8" in kind.name for kind in kinds)


def feeds_of(examples: Mapping[str, "Tensor"]) -> dict[str, Array]:
    """Example tensors as ONNX Runtime takes them."""
    return {name: value.numpy() for name, value in examples.items()}


def torch_outputs(model: "nn.Module", examples: Mapping[str, "Tensor"]) -> list[Array]:
    """The tensors that a model returns, in the order the exporter gives them.

    Raises:
        InputError: The model raises, or returns what is no tensor.
    """
    import torch
    from torch.utils import _pytree

    with quiet(), torch.no_grad():
        try:
            leaves = _pytree.tree_leaves(model(**examples))
        except Exception as error:
            said = (str(error).strip().splitlines() or [""])[0][:200]
            raise InputError(
                f"the model raises {type(error).__name__} on its example inputs: "
                f"{said}; see --input"
            ) from error
    leaves = [leaf for leaf in leaves if leaf is not None]
    for leaf in leaves or [None]:
        if not isinstance(leaf, torch.Tensor):
            raise InputError(
                f"the model returns {type(leaf).__name__}; return tensors, or tuples, "
                "lists or dicts of them"
            )
    return [leaf.detach().cpu().numpy() for leaf in leaves]


def difference(
    names: Sequence[str], found: Sequence[Array], expected: Sequence[Array]
) -> Difference:
    """Compare all outputs; the worst one, by its share of the tolerance, is reported.

    Raises:
        InputError: The numbers of outputs, or their shapes, differ.
    """
    shapes = [[list(array.shape) for array in arrays] for arrays in (found, expected)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"ONNX Runtime returns shapes {shapes[0]}, PyTorch {shapes[1]}"
        )
    worst = Difference(0.0, 0.0, 1.0, names[0] if names else "")
    for name, one, other in zip(names, found, expected, strict=True):
        if not other.size:
            continue
        wide = other.astype(np.float64)
        with np.errstate(invalid="ignore"):
            apart = float(np.abs(one.astype(np.float64) - wide).max())
        largest = float(np.abs(wide).max())
        relative = apart / largest if largest else (math.inf if apart else 0.0)
        here = Difference(apart, relative, max(1.0, largest), name)
        if math.isnan(apart) or apart / here.scale > worst.max_abs / worst.scale:
            worst = here
        if math.isnan(apart):
            break
    return worst
