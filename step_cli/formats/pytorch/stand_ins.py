"""What takes the place of metadata when a torch file is read: objects without content.

The pickle of a checkpoint names classes and functions. torch's ``weights_only``
unpickler looks each name up in a table and imports nothing; for the names below the
table has a class of ours, whose objects drop whatever they are given. So nothing that
a file names is imported or called, and a name in neither table is refused.
"""

from contextlib import AbstractContextManager
from typing import Any

MAPS = ("collections.defaultdict",)
LISTS = ("collections.deque",)
NUMPY_ARRAYS = (
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.numeric._frombuffer",
    "numpy.core.numeric._frombuffer",
)
# Classes, and functions that make objects of them, by their modules.
OTHERS = {
    "_io": "BytesIO StringIO",
    "argparse": "Namespace",
    "array": "array _array_reconstructor",
    "builtins": "Ellipsis NotImplemented bool bytes dict float frozenset int list "
    "object range slice str tuple type",
    "collections": "ChainMap UserDict UserList UserString",
    "copyreg": "__newobj__",
    "datetime": "date datetime time timedelta timezone tzinfo",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "numpy": "bool bool_ bytes_ character complex128 complex64 datetime64 dtype "
    "float128 float16 float32 float64 int16 int32 int64 int8 intc intp longdouble "
    "longlong ma.MaskedArray matrix memmap ndarray object_ rec.recarray recarray "
    "record str_ timedelta64 uint16 uint32 uint64 uint8 uintc uintp ulonglong void",
    "numpy._core.multiarray": "scalar",
    "numpy.core.multiarray": "scalar",
    "numpy.ma": "MaskedArray",
    "numpy.ma.core": "MaskedArray _mareconstruct",
    "numpy.matrixlib.defmatrix": "matrix",
    "numpy.random._mt19937": "MT19937",
    "numpy.random._pcg64": "PCG64 PCG64DXSM",
    "numpy.random._philox": "Philox",
    "numpy.random._pickle": "__bit_generator_ctor __generator_ctor __randomstate_ctor",
    "numpy.random._sfc64": "SFC64",
    "numpy.random.bit_generator": "SeedSequence __pyx_unpickle_SeedSequence",
    "numpy.rec": "recarray record",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "pathlib._local": "Path PosixPath PurePath PurePosixPath PureWindowsPath "
    "WindowsPath",
    "random": "Random",
    "re": "_compile",
    "time": "struct_time",
    "torch": "Generator",
    "torch._C": "Generator",
    "torch.torch_version": "TorchVersion",
    "types": "SimpleNamespace",
    "uuid": "SafeUUID UUID",
}


class StandIn:
    """An object of the metadata. It keeps nothing, and can do nothing."""

    __slots__ = ()

    def __new__(cls, *_: Any, **__: Any) -> "StandIn":
        """An object, whatever is given."""
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


class NumpyArray(StandIn):
    """A NumPy array, of which no number is kept."""

    __slots__ = ()


def _map(*_: Any) -> dict[Any, Any]:
    """A dict, which torch's unpickler fills."""
    return {}


def _list(*_: Any) -> list[Any]:
    """A list, which torch's unpickler fills."""
    return []


def names() -> dict[str, Any]:
    """What stands in, by the full name in the pickle."""
    found: dict[str, Any] = {
        f"{module}.{name}": StandIn
        for module, words in OTHERS.items()
        for name in words.split()
    }
    found |= dict.fromkeys(NUMPY_ARRAYS, NumpyArray)
    return found | dict.fromkeys(MAPS, _map) | dict.fromkeys(LISTS, _list)


def standing_in() -> AbstractContextManager[None]:
    """Within it, ``torch.load(weights_only=True)`` reads the names as stand-ins."""
    from torch.serialization import safe_globals

    return safe_globals([(stand_in, name) for name, stand_in in names().items()])
