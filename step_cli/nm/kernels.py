"""The loops of `kernels.c`, which a wheel holds compiled.

Where they are absent, or not made for a case or the processor, the result is None, and
NumPy finds the same in more time. They run without the interpreter's lock.
"""

import ctypes
import math
from functools import cache
from pathlib import Path
from platform import machine
from typing import Any

from step_cli.nm.dtypes import DTypeInfo, RawBits

LIBRARIES = {
    level: Path(__file__).with_name(f"_kernels_{level}.so")
    for level in ("avx512", "avx2", "neon")  # the first that the processor has
}
VERSION = 1  # of the functions' arguments, as in kernels.c
LARGEST_M = 64  # MOST of kernels.c

# How far to shift to where a float32 has its exponent, and what to multiply with then.
_FLOATS = {"float16": (13, 2.0**112), "bfloat16": (16, 1.0), "float32": (0, 1.0)}
_UNSIGNED = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32}


class Counted(ctypes.Structure):
    """What is in a piece.

    Attributes:
        nonzeros: Weights that are not zero.
        over: 1 if any group has more than N of them, else 0.
        under: 1 if any has fewer.
        nonfinite: 1 if NaN or infinity is among them.
    """

    nonzeros: int
    over: int
    under: int
    nonfinite: int

    _fields_ = tuple(
        (name, ctypes.c_int64) for name in ("nonzeros", "over", "under", "nonfinite")
    )


class PrunedSums(ctypes.Structure):
    """What pruning did to a piece, as `Pruned` has it."""

    nonzeros: int
    changed: int
    nonfinite: int
    before: float
    after: float

    _fields_ = (
        ("nonzeros", ctypes.c_int64),
        ("changed", ctypes.c_int64),
        ("nonfinite", ctypes.c_int64),
        ("before", ctypes.c_double),
        ("after", ctypes.c_double),
    )


def instructions() -> str | None:
    """What the loops are compiled for, such as ``avx512``; None: NumPy does it."""
    library = _library()
    if library is None:
        return None
    return Path(library._name).stem.removeprefix("_kernels_")


def why() -> str:
    """Why the loops in use are those of `instructions`, in a few words."""
    installed = [level for level, path in LIBRARIES.items() if path.exists()]
    if (used := instructions()) is None:
        if not installed:
            return f"none were compiled for {machine()} when step-cli was installed"
        return f"this processor runs none of those installed: {', '.join(installed)}"
    faster = installed[: installed.index(used)]
    if faster:
        return f"this processor does not run {', '.join(faster)}"
    return "the fastest that are installed"


def count(codes: RawBits, n: int, bits: DTypeInfo) -> Counted | None:
    """Count non-zeros in groups of M.

    Args:
        codes: ``[X, M, B]``, contiguous or a part along B of what is.
        n: How many of a group may be non-zero.
        bits: How the dtype writes zero and what is not finite.
    """
    x, m, b = codes.shape
    library = _library()
    if library is None or m > LARGEST_M or bits.nan or bits.size_bytes not in _UNSIGNED:
        return None
    found = Counted()
    function = getattr(library, f"step_count_{8 * bits.size_bytes}")
    function(
        _address(codes), x, m, b, _stride(codes), n, bits.mask, bits.limit or 0, found
    )
    return found


def prune(
    codes: RawBits, out: RawBits, n: int, bits: DTypeInfo, dtype: str
) -> PrunedSums | None:
    """Write what magnitude pruning keeps of each group; of equal ones the first.

    Sums of magnitudes are right to about 1e-7.

    Args:
        codes: ``[X, M, B]``, contiguous.
        out: The same shape, contiguous.
        n: How many of each group to keep.
        bits: Those of ``dtype``.
        dtype: NumPy spelling.

    Returns:
        None also if a weight is not finite, or the sum of magnitudes is too large for
        float32; ``out`` is then of no use.
    """
    x, m, b = codes.shape
    library = _library()
    if library is None or m > LARGEST_M or dtype not in _FLOATS:
        return None
    shift, scale = _FLOATS[dtype]
    found = PrunedSums()
    function = getattr(library, f"step_prune_{8 * bits.size_bytes}")
    function(
        _address(codes),
        _address(out),
        x,
        m,
        b,
        _stride(codes),
        n,
        bits.limit,
        shift,
        found,
    )
    if found.nonfinite or not math.isfinite(found.before):
        return None
    found.before, found.after = found.before * scale, found.after * scale
    return found


def checksum(data: RawBits) -> int | None:
    """Fletcher's checksum of contiguous data.

    It depends on the processor, so it is never kept.
    """
    library = _library()
    if library is None:
        return None
    found: int = library.step_checksum(_address(data), data.nbytes)
    return found


def _address(array: RawBits) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _stride(codes: RawBits) -> int:
    """From one member of a group to the next, in weights."""
    return codes.strides[1] // codes.itemsize


@cache
def _library() -> ctypes.CDLL | None:
    for path in LIBRARIES.values():
        try:
            library = ctypes.CDLL(str(path))
            if library.step_kernels_version() == VERSION:
                return _declared(library)
        except (OSError, AttributeError):
            continue
    return None


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """The same, with the types of what its functions take."""
    size, pointer = ctypes.c_ssize_t, ctypes.c_void_p
    library.step_checksum.argtypes = [pointer, size]
    library.step_checksum.restype = ctypes.c_uint64
    for size_bytes, code in _UNSIGNED.items():
        count = getattr(library, f"step_count_{8 * size_bytes}")
        of_count: list[Any] = [pointer, *[size] * 4, ctypes.c_int, code, code]
        count.argtypes = [*of_count, ctypes.POINTER(Counted)]
        count.restype = None
    for size_bytes in (2, 4):
        prune = getattr(library, f"step_prune_{8 * size_bytes}")
        of_prune: list[Any] = [pointer, pointer, *[size] * 4, ctypes.c_int]
        limit = _UNSIGNED[size_bytes]
        prune.argtypes = [*of_prune, limit, ctypes.c_int, ctypes.POINTER(PrunedSums)]
        prune.restype = None
    return library
