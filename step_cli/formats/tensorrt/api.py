"""The TensorRT library and the GPUs of this machine: which, and what they can do.

TensorRT 10.x, 11.x and TensorRT-RTX 1.x share one Python interface with differences.
Members are looked up with ``hasattr``, never inferred from a version number.
"""

import ctypes
import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from step_cli.errors import MissingError, StepError, UsageError

Kind = Literal["tensorrt", "tensorrt-rtx"]
Wanted = Literal["auto", "tensorrt", "tensorrt-rtx"]

# The bindings package is what exists when RTX's thin package is left out.
MODULES: tuple[tuple[str, Kind], ...] = (
    ("tensorrt", "tensorrt"),
    ("tensorrt_rtx", "tensorrt-rtx"),
    ("tensorrt_rtx_bindings", "tensorrt-rtx"),
)
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*, cuda.h


@dataclass(frozen=True)
class TrtRuntime:
    """A TensorRT that can be imported here."""

    module: ModuleType
    kind: Kind

    @property
    def version(self) -> str:
        """The library's own version."""
        return str(getattr(self.module, "__version__", "unknown"))

    @property
    def honours_sparsity(self) -> bool:
        """Whether the permission to use sparse weights has any effect.

        TensorRT-RTX 1.7 writes the same bytes with and without it.
        """
        return self.kind == "tensorrt"

    @property
    def targets(self) -> list[str] | None:
        """Compute capabilities it can build for, or None: the GPU that is here."""
        known = getattr(self.module, "ComputeCapability", None)
        if known is None:
            return None
        names = [name[2:] for name in known.__members__ if name.startswith("SM")]
        return [f"{name[:-1]}.{name[-1]}" for name in names]


def find_runtime(wanted: Wanted = "auto") -> TrtRuntime:
    """The TensorRT to build with: full TensorRT where a GPU is, else TensorRT-RTX.

    Raises:
        MissingError: There is none, or the one chosen needs a GPU.
    """
    found = importable()
    gpus = compute_capabilities()
    for runtime in found:
        if wanted == "auto" and runtime.kind == "tensorrt" and not gpus:
            continue
        if wanted in ("auto", runtime.kind):
            if runtime.kind == "tensorrt" and not gpus:
                raise MissingError(
                    "TensorRT builds on a GPU only and none is here; "
                    "use --backend tensorrt-rtx, or build on a GPU machine"
                )
            return runtime
    extra = "tensorrt" if wanted == "tensorrt" else "tensorrt-rtx"
    raise MissingError(
        f"no {'TensorRT' if wanted == 'auto' else wanted} that can build here; "
        f"pip install 'step-cli[{extra}]'"
    )


def importable() -> list[TrtRuntime]:
    """Every TensorRT that imports, full TensorRT first."""
    runtimes = []
    for name, kind in MODULES:
        try:
            module = importlib.import_module(name)
        except StepError:
            raise
        except Exception:  # a stub without its libraries raises whatever it likes
            continue
        if hasattr(module, "Builder") and hasattr(module, "OnnxParser"):
            runtimes.append(TrtRuntime(module, kind))
    return runtimes


def check_targets(runtime: TrtRuntime, wanted: Sequence[str], *, chosen: bool) -> None:
    """Refuse compute capabilities that this library cannot build for.

    Args:
        runtime: The library.
        wanted: Compute capabilities such as ``8.6``.
        chosen: Whether the user chose this very backend.

    Raises:
        UsageError: Not a compute capability, or not one of the chosen backend.
        MissingError: Only another backend, or another GPU, has it.
    """
    for text in wanted:
        if not re.fullmatch(r"[0-9]{1,2}\.[0-9]", text):
            raise UsageError(
                f"--compute-capability: expected one such as 8.6, got {text}"
            )
        known = runtime.targets
        if known is not None and text not in known:
            error: type[StepError] = UsageError if chosen else MissingError
            raise error(
                f"TensorRT-RTX does not build for {text}, only for "
                f"{', '.join(known)}; build with TensorRT on that GPU"
            )
        if known is None and text not in compute_capabilities():
            raise MissingError(
                f"TensorRT builds for the GPU that is here "
                f"({', '.join(compute_capabilities())}), not for {text}; "
                "build on such a machine"
            )


def network_flags(trt: Any) -> int:
    """Bits for ``create_network``: strong typing, and explicit batches where known.

    The bit of STRONGLY_TYPED differs between versions, so it is never written out.
    """
    known = getattr(trt, "NetworkDefinitionCreationFlag", None)
    flags = 0
    for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED"):
        member = getattr(known, name, None)
        if member is not None:
            flags |= 1 << int(member)
    return flags


def compute_capabilities() -> list[str]:
    """Compute capability of each GPU, such as ``["8.6"]``; empty without a driver.

    The driver itself is queried: no torch, no toolkit.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int()
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
            return []
        return [_capability(driver, device) for device in range(count.value)]
    except (OSError, AttributeError):
        return []


def _capability(driver: ctypes.CDLL, ordinal: int) -> str:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), ordinal)
    driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    return f"{major.value}.{minor.value}"
