"""What must hold of every answer, whatever the file: codes, words, verdicts, memory.

The verdicts are checked by other readers (safetensors, onnx, torch) and a slow loop.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

CODES = {0, 1, 3, 4, 7}  # what the content of a file may lead to
LONGEST_S = 10.0
MOST_BYTES = 512 << 20  # above what was there before


@dataclass(frozen=True)
class Answer:
    """What the command said, how long it took, and what memory it needed."""

    code: int
    out: str
    err: str
    seconds: float
    peak_bytes: int


def complaints(answer: Answer) -> Iterator[str]:
    """What is wrong with an answer in JSON, without looking at the file."""
    if answer.code not in CODES:
        yield f"exit code {answer.code}"
    if answer.seconds > LONGEST_S:
        yield f"took {answer.seconds:.1f} s"
    if answer.peak_bytes > MOST_BYTES:
        yield f"needed {answer.peak_bytes >> 20} MiB"
    if "Traceback" in answer.err:
        yield "a traceback"
    errors = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    if len(errors) != (answer.code >= 2):
        yield f"{len(errors)} error lines with exit code {answer.code}"
    if not answer.err.isprintable() and not _plain(answer.err):
        yield "control characters on stderr"
    try:
        document = json.loads(answer.out, parse_constant=_refuse)
    except ValueError as error:
        yield f"no strict JSON: {error}"
        return
    if document["ok"] != (answer.code == 0):
        yield "ok disagrees with the exit code"
    if (document["error"] is not None) != (answer.code >= 2):
        yield "error disagrees with the exit code"


def _plain(text: str) -> bool:
    return all(character == "\n" or character.isprintable() for character in text)


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def unparsable(text: str, format: str) -> bool:
    """Whether a report in another format is not one."""
    try:
        if format == "junit":
            ElementTree.fromstring(text)
        elif format in ("json", "sarif"):
            json.loads(text, parse_constant=_refuse)
        elif format == "jsonl":
            for line in text.splitlines():
                json.loads(line, parse_constant=_refuse)
    except (ValueError, ElementTree.ParseError):
        return True
    return False


def wrong_verdicts(
    checkpoint: dict[str, Any], arrays: dict[str, np.ndarray], *, exact: bool
) -> Iterator[str]:
    """Layers of a report that a loop over groups judges otherwise."""
    for layer in checkpoint["layers"]:
        array = arrays.get(layer["name"])
        if array is None:
            yield f"{layer['name']!r:.60} is not in the file"
        elif list(array.shape) != layer["shape"]:
            yield f"{layer['name']!r:.60} has shape {array.shape}"
        else:
            counted = _counted(array, layer, exact=exact)
            for key, value in counted.items():
                if layer[key] != value:
                    yield f"{layer['name']!r:.60}: {key} {layer[key]}, loop: {value}"


def _counted(
    array: np.ndarray, layer: dict[str, Any], *, exact: bool
) -> dict[str, Any]:
    n, m = (int(part) for part in layer["pattern"].split(":"))
    axis = layer["axis"]
    # Plain numbers, one by one: nothing in common with what is tested.
    with np.errstate(invalid="ignore"):
        values = np.moveaxis(array.astype(np.float64), axis, -1)
    violations = nonzeros = nonfinite = groups = 0
    firsts = []
    for index in np.ndindex(values.shape[:-1]):
        row = [float(value) for value in values[index]]
        nonfinite += sum(not math.isfinite(value) for value in row)
        for start in range(0, len(row), m):
            count = sum(value != 0 for value in row[start : start + m])
            groups += 1
            nonzeros += count
            if count != n if exact else count > n:
                violations += 1
                place = list(index)
                place.insert(axis, start)
                firsts.append((place, count))
    first = min(firsts, default=None)
    found = first and {"index": first[0], "nonzeros": first[1]}
    return {
        "groups": groups,
        "violations": violations,
        "nonzeros": nonzeros,
        "nonfinite": nonfinite,
        "first_violation": found,
    }


def arrays_of(path: Path) -> dict[str, np.ndarray] | None:
    """The tensors of a file as the library of its format reads them, or None."""
    try:
        return _READERS[path.suffix](path)
    except Exception:  # it does not read it, for whatever reason
        return None


def _safetensors(path: Path) -> dict[str, np.ndarray] | None:
    from safetensors import deserialize

    kinds = {"F64": "f8", "F32": "f4", "F16": "f2", "F8_E4M3": "float8_e4m3fn"}
    kinds |= {"BF16": "bfloat16", "F8_E5M2": "float8_e5m2"}
    found = deserialize(path.read_bytes())
    return {
        name: np.frombuffer(entry["data"], kinds[entry["dtype"]]).reshape(
            entry["shape"]
        )
        for name, entry in found
        if entry["dtype"] in kinds and 0 not in entry["shape"]
    }


def _onnx(path: Path) -> dict[str, np.ndarray] | None:
    import onnx
    from onnx import TensorProto, numpy_helper

    graph = onnx.load(path).graph
    found = {}
    for tensor in graph.initializer:
        # Integer codes are judged by their zero point, not by their value.
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
            try:
                found[tensor.name] = numpy_helper.to_array(tensor)
            except (ValueError, TypeError):
                continue
    return found


def _torch(path: Path) -> dict[str, np.ndarray] | None:
    import torch

    from step_cli.formats.pytorch.stand_ins import standing_in
    from step_cli.formats.pytorch.state_dict import find_state_dict

    with standing_in():  # the metadata only: the tensors are as torch reads them
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    state = find_state_dict(loaded).state
    return {
        str(name): value.double().numpy()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }


_READERS: dict[str, Callable[[Path], dict[str, np.ndarray] | None]] = {
    ".safetensors": _safetensors,
    ".onnx": _onnx,
    ".pt": _torch,  # files that were accepted only
}
