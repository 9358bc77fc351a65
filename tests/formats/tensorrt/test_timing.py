"""Timing of engines: what runs without a GPU, on a fake library.

The fake stands in for no measurement; the times of a real GPU are recorded nowhere yet.
"""

import enum
import hashlib
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest

torch = pytest.importorskip("torch")

from step_cli.errors import MissingError  # noqa: E402
from step_cli.formats.tensorrt.api import (  # noqa: E402
    TrtRuntime,
    compute_capabilities,
)
from step_cli.formats.tensorrt.timing import (  # noqa: E402
    TimingFailedError,
    bind,
    engine_ms,
)


class Mode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class Engine:
    """Two inputs, the first with an open size, and one output."""

    sizes: ClassVar = {"x": (-1, 8), "ids": (2, 4), "y": (-1, 4)}
    kinds: ClassVar = {"x": "HALF", "ids": "INT64", "y": "BF16"}
    num_io_tensors = 3

    def get_tensor_name(self, index: int) -> str:
        return list(self.sizes)[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.OUTPUT if name == "y" else Mode.INPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.sizes[name]

    def get_tensor_dtype(self, name: str) -> Any:
        return types.SimpleNamespace(name=self.kinds[name])


class Context:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return min(shape) > 0

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes.get(name, (self.shapes["x"][0], 4))

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address


TRT = types.SimpleNamespace(TensorIOMode=Mode)
CPU = torch.device("cpu")


def test_every_tensor_gets_memory_of_its_shape_and_type() -> None:
    context = Context()
    tensors = bind(TRT, Engine(), context, {"x": [16, 8]}, CPU)
    found = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
    assert found == {
        "x": ((16, 8), torch.float16),
        "ids": ((2, 4), torch.int64),
        "y": ((16, 4), torch.bfloat16),
    }
    assert context.addresses == {n: t.data_ptr() for n, t in tensors.items()}
    assert bool(tensors["x"].any()) and not bool(tensors["ids"].any())


def test_an_open_size_that_nobody_says_is_an_error() -> None:
    with pytest.raises(TimingFailedError, match=r"x refuses shape \[-1, 8\]"):
        bind(TRT, Engine(), Context(), {}, CPU)


def test_a_type_that_torch_lacks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Engine.kinds, "y", "FP4")
    with pytest.raises(TimingFailedError, match="tensor y is FP4"):
        bind(TRT, Engine(), Context(), {"x": [1, 8]}, CPU)


@pytest.mark.parametrize(
    ("digest", "words"), [("0" * 64, "differs from the one"), (None, "does not run")]
)
def test_a_plan_that_cannot_be_timed_is_one_line(
    tmp_path: Path, digest: str | None, words: str
) -> None:
    """Bytes that are not those of the build are not even shown to the library."""
    plan = tmp_path / "m.plan"
    plan.write_bytes(b"plan")
    known = hashlib.sha256(b"plan").hexdigest()
    runtime = TrtRuntime(type(sys)("no_such_library"), "tensorrt")
    with pytest.raises(MissingError, match=words) as caught:
        engine_ms(runtime, plan, digest or known, {})
    assert "\n" not in caught.value.message
    assert ("no_such_library" in caught.value.message) == (digest is None)


@pytest.mark.gpu
@pytest.mark.tensorrt
@pytest.mark.skipif(not compute_capabilities(), reason="needs an NVIDIA GPU")
def test_a_real_engine_is_timed(tmp_path: Path) -> None:
    """Recorded on no machine so far."""
    pytest.importorskip("tensorrt")
    from formats.onnx.small_graphs import save_mlp

    from step_cli.formats.tensorrt.api import find_runtime
    from step_cli.formats.tensorrt.engine import EngineOptions, build_engine

    runtime, plan = find_runtime("tensorrt"), tmp_path / "m.plan"
    source = save_mlp(tmp_path / "m.onnx")
    build = build_engine(runtime, source, plan, EngineOptions())
    assert engine_ms(runtime, plan, build.sha256, {}) > 0
