"""Version branches, on fake modules of enums only; they stand in for no build."""

import enum
import sys
import types

import pytest

from step_cli.errors import MissingError, UsageError
from step_cli.formats.tensorrt import api as trt_api
from step_cli.formats.tensorrt.api import TrtRuntime, check_targets, find_runtime


class FlagsTen(enum.IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1
    PREFER_AOT_PYTHON_PLUGINS = 3


class FlagsEleven(enum.IntEnum):
    STRONGLY_TYPED = 0


class ComputeCapability(enum.IntEnum):
    NONE = 0
    CURRENT = 1
    SM75 = 75
    SM86 = 86
    SM120 = 120


def fake(name: str, **members: object) -> types.ModuleType:
    module = types.ModuleType(name)
    module.Builder = module.OnnxParser = object  # type: ignore[attr-defined]
    module.__dict__.update(members)
    return module


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> "Machine":
    return Machine(monkeypatch)


class Machine:
    """A machine with chosen libraries and GPUs."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch
        for name, _ in trt_api.MODULES:
            patch.setitem(sys.modules, name, None)  # importing it fails
        self.gpus()

    def gpus(self, *capabilities: str) -> None:
        self.patch.setattr(trt_api, "compute_capabilities", lambda: list(capabilities))

    def install(self, name: str) -> None:
        self.patch.setitem(sys.modules, name, fake(name, __version__="1.2"))


def test_without_a_library_it_says_what_to_install(machine: Machine) -> None:
    with pytest.raises(MissingError, match=r"step-cli\[tensorrt-rtx\]"):
        find_runtime()
    with pytest.raises(MissingError, match=r"step-cli\[tensorrt\]"):
        find_runtime("tensorrt")


def test_auto_takes_full_tensorrt_only_where_a_gpu_is(machine: Machine) -> None:
    machine.install("tensorrt")
    machine.install("tensorrt_rtx")
    assert find_runtime().kind == "tensorrt-rtx"
    machine.gpus("8.6")
    assert find_runtime().kind == "tensorrt"


def test_full_tensorrt_without_a_gpu_is_missing(machine: Machine) -> None:
    machine.install("tensorrt")
    with pytest.raises(MissingError, match="on a GPU only"):
        find_runtime("tensorrt")


def test_the_bindings_alone_are_enough(machine: Machine) -> None:
    machine.install("tensorrt_rtx_bindings")
    runtime = find_runtime("tensorrt-rtx")
    assert (runtime.kind, runtime.version) == ("tensorrt-rtx", "1.2")
    assert not runtime.honours_sparsity


def test_a_folder_that_happens_to_be_called_tensorrt_is_no_library(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", types.ModuleType("tensorrt"))
    machine.gpus("8.6")
    with pytest.raises(MissingError):
        find_runtime()


def test_strong_typing_is_a_different_bit_in_each_version() -> None:
    ten = fake("trt", NetworkDefinitionCreationFlag=FlagsTen)
    eleven = fake("trt", NetworkDefinitionCreationFlag=FlagsEleven)
    assert trt_api.network_flags(ten) == 0b11
    assert trt_api.network_flags(eleven) == 0b01
    assert trt_api.network_flags(fake("trt")) == 0


def test_targets_of_rtx() -> None:
    module = fake("tensorrt_rtx", ComputeCapability=ComputeCapability)
    rtx = TrtRuntime(module, "tensorrt-rtx")
    assert rtx.targets == ["7.5", "8.6", "12.0"]
    check_targets(rtx, ["8.6", "12.0"], chosen=True)
    with pytest.raises(UsageError, match=r"does not build for 9\.0"):
        check_targets(rtx, ["9.0"], chosen=True)
    with pytest.raises(MissingError, match="build with TensorRT on that GPU"):
        check_targets(rtx, ["9.0"], chosen=False)
    for wrong in ("sm_86", "8", "8.6.1", "", "-8.6"):
        with pytest.raises(UsageError, match=r"expected one such as 8\.6"):
            check_targets(rtx, [wrong], chosen=False)


def test_target_of_full_tensorrt_is_the_gpu_that_is_here(machine: Machine) -> None:
    machine.gpus("8.6")
    full = TrtRuntime(fake("tensorrt"), "tensorrt")
    check_targets(full, ["8.6"], chosen=True)
    with pytest.raises(MissingError, match=r"not for 8\.0"):
        check_targets(full, ["8.0"], chosen=True)
