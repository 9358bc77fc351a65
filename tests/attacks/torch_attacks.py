"""Torch checkpoints that are wrong or hostile, each with words of its refusal."""

import io
import os
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

W = torch.arange(32, dtype=torch.float32).reshape(4, 8)


class Gadget:
    """Unpickling it runs a function: harmless, but proof that code ran."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self._call


def saved(value: object, **options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


def torchscript() -> bytes:
    return archive({"m/data.pkl": b".", "m/constants.pkl": b".", "m/code/m.py": b""})


def archives() -> dict[str, tuple[bytes, str]]:
    """Refused by looking at the archive alone: no process is started."""
    good = saved({"w": W})
    at = good.find(W.numpy().tobytes())
    flipped = bytearray(good)
    flipped[at + 5] ^= 4
    deflated = archive({"m/data.pkl": b"x" * 99}, zipfile.ZIP_DEFLATED)
    return {
        "cut short": (good[: len(good) // 2], "truncated"),
        "bit flip": (bytes(flipped), "CRC mismatch in .*data/0"),
        "compressed": (deflated, "compressed member"),
        "big-endian": (
            archive({"a/data.pkl": b"", "a/byteorder": b"big"}),
            "big-endian machine",
        ),
        "two pickles": (archive({"a/data.pkl": b"", "b/data.pkl": b""}), "ambiguous"),
        "absolute": (archive({"a/data.pkl": b"", "/x": b""}), "leaves the archive"),
        "parent": (archive({"a/data.pkl": b"", "a/../x": b""}), "leaves the archive"),
        "no pickle": (archive({"a/x": b""}), "without data.pkl"),
        "keras": (archive({"config.json": b"{}"}), "without data.pkl"),
        "TorchScript": (torchscript(), "TorchScript is a program"),
        "many members": (
            archive({"a/data.pkl": b""} | {f"a/{i}": b"" for i in range(60_001)}),
            "limit 60000",
        ),
    }


def pickles(marker: Path) -> dict[str, tuple[bytes, str]]:
    """Refused by the child process."""
    run = Gadget(os.system, f"touch {marker}")
    raw = b"cposix\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR" + b"broken"
    return {
        "gadget": (saved({"w": W, "x": run}), r"wants to call posix\.system, refused"),
        "gadget, legacy": (pickle.dumps({"w": run}), "refused|not a torch checkpoint"),
        "gadget, then broken": (b"\x80\x02" + raw, "refused|not a torch checkpoint"),
        "no data": (without_data(), "holds no data for 'w'"),
        "memory": (saved({"w": W, "x": Gadget(bytearray, 2**34)}), "needs more"),
        "stride 0": (
            saved({"w": torch.zeros(1).expand(2**20, 2**20)}),
            "4.0 TiB logical, 4 bytes stored",
        ),
        "module": (saved(nn.Linear(2, 2)), r"torch\.nn\.modules.*model\.state_dict"),
    }


def without_data() -> bytes:
    """A file of before torch 1.6 whose list of storages is empty.

    torch reads it without a word, and the weights are whatever stood in memory.
    Found by fuzzing (torch-100-12660).
    """
    data = saved({"w": W}, _use_new_zipfile_serialization=False)
    stream, end = io.BytesIO(data), 0
    for _ in range(4):
        for _ in pickletools.genops(stream):
            pass
        end = stream.tell()
    return data[:end] + pickle.dumps([], 2)


def unfit() -> dict[str, tuple[object, str]]:
    """What a sound pickle may hold that is no state dict."""
    cyclic: dict[str, object] = {}
    cyclic["self"] = cyclic
    return {
        "list": ([W], "holds a list"),
        "lone tensor": (W, "holds a lone tensor"),
        "text": ({"a": "b"}, "without tensors"),
        "nothing": ({}, "keys none"),
        "integer keys": ({1: W}, "not text"),
        "cyclic": (cyclic, "without tensors"),
        "two wrappers": ({"model": {"w": W}, "state_dict": {"w": W}}, "both"),
        "two others": (
            {"params": {"w": W}, "params_ema": {"w": W}},
            "both 'params' and 'params_ema'; choose one with --key",
        ),
    }
