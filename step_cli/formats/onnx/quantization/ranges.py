"""The ranges that tensors of a graph have on samples, by ONNX Runtime's calibrator."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.errors import InputError, NonFiniteError
from step_cli.formats.onnx.session import run_error
from step_cli.formats.onnx.surroundings import NamedGraph
from step_cli.formats.quiet import quiet

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]


class _Reader:
    """Samples as the calibrator asks for them."""

    def __init__(self, feeds: Iterable[Feeds]) -> None:
        self._waiting: Iterator[Feeds] = iter(feeds)

    def get_next(self) -> dict[str, Array] | None:
        """One run's inputs; None at the end."""
        feeds = next(self._waiting, None)
        return None if feeds is None else dict(feeds)


def measure_ranges(
    path: Path,
    graph: NamedGraph,
    tensors: Collection[str],
    feeds: Iterable[Feeds],
    *,
    external: bool,
) -> dict[str, tuple[Array, Array]]:
    """The least and the greatest value of some tensors, over all samples.

    Only these two leave the graph for each tensor, so memory does not grow with the
    samples.

    Args:
        path: The fp32 graph; the calibrator puts its own beside it.
        graph: The same, as it was read.
        tensors: Names of its values.
        feeds: Inputs of each run.
        external: Whether its weights are too large for one file.

    Raises:
        InputError: The type of one of them is not known, or the graph fails on a
            sample, as on a token that it has no embedding for.
        NonFiniteError: One of the values is NaN or infinite.
    """
    nodes = [node for name in tensors for node in graph.takers.get(name, ())]
    nodes += [graph.makers[name] for name in tensors if name in graph.makers]
    with quiet():
        from onnxruntime.quantization.calibrate import (
            CalibrationMethod,
            create_calibrator,
        )

        calibrator = create_calibrator(
            path,
            sorted({node.op_type for node in nodes}),
            augmented_model_path=str(path.with_name("calibrated.onnx")),
            calibrate_method=CalibrationMethod.MinMax,
            use_external_data_format=external,
        )
        try:
            calibrator.collect_data(_Reader(feeds))
        except Exception as error:  # those of ONNX Runtime have no common base
            told = run_error(error)
            if isinstance(told, InputError):
                told = fails_on_samples(told)
            raise told from None
        found = calibrator.compute_data()
    for name in tensors:
        if name not in found:
            raise InputError(
                f"{name}: ONNX's inference finds no type for it, so it has no range; "
                "exclude the layer that it enters or leaves"
            )
    return {name: _finite(name, *found[name].range_value) for name in tensors}


def fails_on_samples(error: InputError) -> InputError:
    """What is told where ONNX Runtime does not take the calibration samples."""
    return InputError(f"the calibration samples do not fit: {error.message}")


def _finite(name: str, low: Array, high: Array) -> tuple[Array, Array]:
    """A range as two single numbers; the calibrator gives lists of one."""
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise NonFiniteError(
            f"{name} is NaN or infinite on the calibration samples, so it has no "
            "range; mend the samples or the weights"
        )
    return np.asarray(low).reshape(()), np.asarray(high).reshape(())
