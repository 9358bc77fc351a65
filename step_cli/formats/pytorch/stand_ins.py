"""What takes the place of metadata when a torch file is read: objects without content.

The pickle of a checkpoint names classes and functions. torch's ``weights_only``
unpickler looks each name up in a table and imports nothing; for the names below the
table has a class of ours, whose objects drop whatever they are given. So nothing that
a file names is imported or called, and a name in neither table is refused.
"""

from collections import OrderedDict
from contextlib import AbstractContextManager
from typing import Any

MAPS = (
    "collections.defaultdict",
    "detectron2.config.config.CfgNode",
    "easydict.EasyDict",
    "fvcore.common.config.CfgNode",
    "lightning.fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "yacs.config.CfgNode",
)
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
    "pytz": "_FixedOffset _UTC _p",
    "random": "Random",
    "re": "_compile",
    "time": "struct_time",
    "torch": "Generator",
    "torch._C": "Generator",
    "torch.torch_version": "TorchVersion",
    "types": "SimpleNamespace",
    "typing": "Any Dict List Optional Tuple Union",
    "uuid": "SafeUUID UUID",
    # What Lightning, Megatron, MMEngine and users of OmegaConf put beside weights.
    "lightning.pytorch.callbacks.early_stopping": "EarlyStopping",
    "lightning.pytorch.callbacks.model_checkpoint": "ModelCheckpoint",
    "megatron.core.enums": "ModelType",
    "megatron.core.rerun_state_machine": "RerunDiagnostic RerunMode RerunState",
    "megatron.core.transformer.enums": "AttnBackend AttnMaskType AttnType LayerType",
    "mmengine.logging.history_buffer": "HistoryBuffer",
    "omegaconf.base": "ContainerMetadata Metadata",
    "omegaconf.dictconfig": "DictConfig",
    "omegaconf.listconfig": "ListConfig",
    "omegaconf.nodes": "AnyNode BooleanNode BytesNode EnumNode FloatNode IntegerNode "
    "InterpolationResultNode PathNode StringNode",
    "pytorch_lightning.callbacks.early_stopping": "EarlyStopping",
    "pytorch_lightning.callbacks.model_checkpoint": "ModelCheckpoint",
}


class StandIn:
    """An object of the metadata. It keeps nothing, and can do nothing."""

    __slots__ = ()

    def __new__(cls, *_: Any, **__: Any) -> "StandIn":
        """An object, whatever is given."""
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...

    def __repr__(self) -> str:
        return "a piece of metadata"


class NumpyArray(StandIn):
    """A NumPy array, of which no number is kept."""

    __slots__ = ()


class MapStandIn:
    """In its place torch's unpickler gets a map, which it fills."""

    def __new__(cls, *_: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        """An empty map, whatever is given."""
        return OrderedDict()


class ListStandIn:
    """In its place torch's unpickler gets a list, which it fills."""

    def __new__(cls, *_: Any) -> list[Any]:  # type: ignore[misc]
        """An empty list, whatever is given."""
        return []


def names() -> dict[str, Any]:
    """What stands in, by the full name in the pickle."""
    found: dict[str, Any] = {
        f"{module}.{name}": StandIn
        for module, words in OTHERS.items()
        for name in words.split()
    }
    found |= dict.fromkeys(NUMPY_ARRAYS, NumpyArray)
    found |= dict.fromkeys(MAPS, MapStandIn)
    return found | dict.fromkeys(LISTS, ListStandIn)


def standing_in() -> AbstractContextManager[None]:
    """Within it, ``torch.load(weights_only=True)`` reads the names as stand-ins."""
    from torch.serialization import safe_globals

    return safe_globals([(stand_in, name) for name, stand_in in names().items()])
