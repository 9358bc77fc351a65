"""Time an engine that was built a moment ago, on the GPU of this machine.

The parent calls `engine_ms`; its child, this module too, opens the plan and runs it.
Only ever our own bytes, their checksum compared first: opening an engine runs native
code. Memory on the GPU comes from torch.
"""

import hashlib
import importlib
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from step_cli.errors import MissingError
from step_cli.formats.child_process import ChildDiedError, answer, ask
from step_cli.formats.tensorrt.api import TrtRuntime

CHILD = "step_cli.formats.tensorrt.timing"
WARM_UP, RUNS = 20, 100
# TensorRT's names of types against torch's.
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}


class TimingFailedError(Exception):
    """The engine could not be run; the message names the step."""


def engine_ms(
    runtime: TrtRuntime,
    plan_file: Path,
    sha256: str,
    shapes: Mapping[str, tuple[int, ...]],
) -> float:
    """Median milliseconds of one run, of 100 after 20 to warm up.

    Args:
        runtime: The library that built the plan.
        plan_file: The plan.
        sha256: Of the plan, from its build.
        shapes: Of the inputs with dynamic sizes; the others have their own.

    Raises:
        MissingError: The engine does not run here.
    """
    request = {
        "module": runtime.module.__name__,
        "plan": str(plan_file.resolve()),
        "sha256": sha256,
        "shapes": {name: list(shape) for name, shape in shapes.items()},
    }
    try:
        return float(ask(CHILD, request).document["ms"])
    except ChildDiedError as died:
        raise MissingError(f"--bench: the engine does not run here: {died}") from None


def _time(request: dict[str, Any]) -> dict[str, Any]:
    plan = Path(request["plan"]).read_bytes()
    if hashlib.sha256(plan).hexdigest() != request["sha256"]:
        raise TimingFailedError("the plan differs from the one that was built")
    import torch

    trt: Any = importlib.import_module(request["module"])
    logger = trt.Logger(trt.Logger.ERROR)
    # Kept in names until the end: an engine outlives neither logger nor runtime.
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise TimingFailedError("the library cannot open its own plan")
    context = engine.create_execution_context()
    tensors = bind(trt, engine, context, request["shapes"], torch.device("cuda"))
    return {"ms": _median_ms(context), "tensors": sorted(tensors)}


def bind(
    trt: Any,
    engine: Any,
    context: Any,
    shapes: Mapping[str, list[int]],
    device: Any,
) -> dict[str, Any]:
    """Give every input and output of the engine memory; inputs are random, or zero.

    Raises:
        TimingFailedError: An input has a shape or type that is not given.
    """
    import torch

    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = [
        name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
    ]
    for name in inputs:
        shape = shapes.get(name, engine.get_tensor_shape(name))
        if not context.set_input_shape(name, tuple(shape)):
            raise TimingFailedError(f"input {name} refuses shape {list(shape)}")
    tensors = {}
    for name in names:
        # Sizes of outputs follow from those of the inputs, so only now.
        shape = tuple(context.get_tensor_shape(name))
        kind = engine.get_tensor_dtype(name).name
        if kind not in DTYPES or min(shape, default=1) < 0:
            raise TimingFailedError(f"tensor {name} is {kind} of {list(shape)}")
        dtype = getattr(torch, DTYPES[kind])
        tensor = torch.zeros(shape, dtype=dtype, device=device)
        if name in inputs and dtype.is_floating_point:
            tensor.normal_()
        context.set_tensor_address(name, tensor.data_ptr())
        tensors[name] = tensor
    return tensors


def _median_ms(context: Any) -> float:
    from torch import cuda

    device: Any = cuda  # its events have no types
    device.synchronize()  # the inputs were filled on another stream
    stream = device.Stream()
    times: list[float] = []
    for number in range(WARM_UP + RUNS):
        begin, end = (device.Event(enable_timing=True) for _ in range(2))
        begin.record(stream)
        if not context.execute_async_v3(stream.cuda_stream):
            raise TimingFailedError("the engine did not run")
        end.record(stream)
        end.synchronize()
        if number >= WARM_UP:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


if __name__ == "__main__":
    answer(_time)
