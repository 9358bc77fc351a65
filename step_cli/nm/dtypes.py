"""How each dtype writes zero, infinity and NaN: weights are judged on their raw bits.

Sources: IEEE 754; the 8-bit formats of OCP OFP8 and of the FNUZ proposal, by the names
of ml_dtypes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.errors import InputError

RawBits = npt.NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class DTypeInfo:
    """One dtype, read as unsigned integers of ``size_bytes``.

    A value is zero if ``code & mask`` is 0, so a mask without the sign bit makes -0.0
    zero. It is not finite if that magnitude is at least ``limit``, or the code ``nan``.
    """

    size_bytes: int
    mask: int
    limit: int | None = None
    nan: int | None = None

    @property
    def unsigned(self) -> np.dtype[np.unsignedinteger]:
        """The unsigned dtype of the same size."""
        return np.dtype(f"u{self.size_bytes}")

    def nonfinite(self, magnitude: RawBits) -> npt.NDArray[np.bool_] | None:
        """Where NaN or infinity stands; None where there is none, the usual case."""
        if self.nan is not None:
            found = magnitude == self.nan
            return found if found.any() else None
        # One pass that only reads is cheaper than a comparison that writes.
        if self.limit is None or int(magnitude.max(initial=0)) < self.limit:
            return None
        return magnitude >= self.limit


_FNUZ = DTypeInfo(1, 0xFF, nan=0x80)  # has no -0.0: that code is its one NaN

_KNOWN = {
    "float64": DTypeInfo(8, 2**63 - 1, limit=0x7FF << 52),
    "float32": DTypeInfo(4, 2**31 - 1, limit=0xFF << 23),
    "float16": DTypeInfo(2, 0x7FFF, limit=0x7C00),
    "bfloat16": DTypeInfo(2, 0x7FFF, limit=0x7F80),
    "float8_e5m2": DTypeInfo(1, 0x7F, limit=0x7C),
    "float8_e4m3": DTypeInfo(1, 0x7F, limit=0x78),
    "float8_e3m4": DTypeInfo(1, 0x7F, limit=0x70),
    "float8_e4m3fn": DTypeInfo(1, 0x7F, limit=0x7F),
    "float8_e4m3fnuz": _FNUZ,
    "float8_e5m2fnuz": _FNUZ,
    "float8_e4m3b11fnuz": _FNUZ,
    "float4_e2m1fn": DTypeInfo(1, 0x07),
    "int4": DTypeInfo(1, 0x0F),  # one code a byte, as ml_dtypes stores it
    "uint4": DTypeInfo(1, 0x0F),
} | {
    f"{kind}int{8 * size}": DTypeInfo(size, 2 ** (8 * size) - 1)
    for size in (1, 2, 4, 8)
    for kind in ("", "u")
}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of a name; `ml_dtypes` is loaded only for those that NumPy lacks.

    Raises:
        TypeError: There is no such dtype.
    """
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name, name))


def dtype_info(dtype: str) -> DTypeInfo:
    """How a dtype, by its NumPy spelling, writes what matters here.

    Raises:
        InputError: There is no zero to look for in this dtype.
    """
    try:
        return _KNOWN[dtype]
    except KeyError:
        raise InputError(
            f"dtype {dtype} cannot be checked; exclude this tensor or convert it"
        ) from None
