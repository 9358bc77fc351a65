"""Pickles that reach for a function through every opcode that could, each by hand."""

import os
import pickle
from pathlib import Path

from attacks.torch_attacks import archive

SYSTEM = b"cposix\nsystem\n"
NAMESPACE = b"cargparse\nNamespace\n"


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def as_archive(pickled: bytes) -> bytes:
    """A torch file with this pickle."""
    return archive({"m/data.pkl": pickled, "m/version": b"3\n"})


def as_old_file(pickled: bytes) -> bytes:
    """A torch file of before 1.6 with this pickle."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    return b"".join(pickle.dumps(part, 2) for part in head) + pickled


def reaching(marker: Path) -> dict[str, bytes]:
    """Pickles by what they do; each would run ``touch marker``."""
    touch = text(f"touch {marker}")
    call = SYSTEM + touch + b"\x85R"
    inner = pickle.dumps(Reaching(marker), 2)
    state = b"}" + text("hook") + call + b"s"
    bodies = {
        "GLOBAL": SYSTEM,
        "GLOBAL, REDUCE": call,
        "GLOBAL, a dotted name": b"cargparse\n_sys.modules\n",
        "GLOBAL, below an allowed class": b"cargparse\nNamespace.__init__\n",
        "GLOBAL, beside an allowed class": b"cargparse\nos.system\n" + touch + b"\x85R",
        "GLOBAL, the old name of a module": b"c__builtin__\neval\n" + touch + b"\x85R",
        "STACK_GLOBAL": text("posix") + text("system") + b"\x93" + touch + b"\x85R",
        "INST": b"(" + touch + b"iposix\nsystem\n",
        "OBJ": b"(" + SYSTEM + touch + b"o",
        "NEWOBJ": SYSTEM + touch + b"\x85\x81",
        "NEWOBJ_EX": SYSTEM + touch + b"\x85}\x92",
        "EXT1": b"\x82\x01" + touch + b"\x85R",
        "EXT2": b"\x83\x01\x00" + touch + b"\x85R",
        "EXT4": b"\x84\x01\x00\x00\x00" + touch + b"\x85R",
        "PERSID": b"Pposix.system\n",
        "BINPERSID": text("posix.system") + b"Q",
        "BINPERSID of a module": b"(" + text("module") + SYSTEM + b"NNtQ",
        "BUILD of a function": SYSTEM + state + b"b",
        "BUILD of a Namespace": NAMESPACE + b")\x81" + state + b"b",
        "BUILD of a class": NAMESPACE + b"}" + text("__setstate__") + SYSTEM + b"sb",
        "REDUCE of a Namespace": NAMESPACE + b")\x81" + touch + b"\x85R",
        "argument of a Namespace": NAMESPACE + SYSTEM + b"\x85R",
        "key of a map": b"}" + call + b"Ns",
        "item of a list": b"](" + call + b"e",
        "from the memo": SYSTEM + b"q\x63" + b"0h\x63" + touch + b"\x85R",
        "memo of a Namespace, overwritten": NAMESPACE + b"q\x05" + SYSTEM + b"q\x05"
        b"0h\x05" + touch + b"\x85R",
        "rebuilt from type": b"ctorch._tensor\n_rebuild_from_type_v2\n("
        + SYSTEM + b"ctorch\nTensor\n" + touch + b"\x85}tR",
        "through getattr": b"cbuiltins\ngetattr\n" + NAMESPACE + text("mro") + b"\x86R",
        "through operator": b"coperator\nattrgetter\n" + text("mro") + b"\x85R",
        "through partial": b"cfunctools\npartial\n" + SYSTEM + b"\x85R",
        "through a class of ours": b"cstep_cli.formats.pytorch.stand_ins\nStandIn\n",
        "through apply": b"c__builtin__\napply\n" + SYSTEM + touch + b"\x85\x86R",
        "an import": b"cantigravity\nx\n",
        "pickle of pickles": b"cpickle\nloads\n" + text(inner.hex()) + b"\x85R",
    }  # fmt: skip
    return {
        name: b"\x80\x02}" + text("x") + body + b"s." for name, body in bodies.items()
    }


class Reaching:
    """Its pickle would run ``touch marker``."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self._marker}",)


def hidden(marker: Path) -> dict[str, bytes]:
    """Pickles in data that NumPy, if it were called, would unpickle itself."""
    inner = pickle.dumps(Reaching(marker), 0).decode("latin1")
    data = b"c_codecs\nencode\n" + text(inner) + text("latin1") + b"\x86R"
    numbers = b"cnumpy\ndtype\n" + text("O8") + b"\x89\x88\x87R"
    scalar = b"cnumpy._core.multiarray\nscalar\n" + numbers + data + b"\x86R"
    old = b"cnumpy.core.multiarray\nscalar\n" + numbers + data + b"\x86R"
    generator = b"cnumpy.random._pickle\n__generator_ctor\n" + data + b"\x85R"
    return {"scalar": scalar, "scalar of NumPy 1": old, "generator": generator}
