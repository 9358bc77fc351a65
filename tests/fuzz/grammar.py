"""Damage by the grammar of protobuf messages, and of torch's zip archives."""

import io
import pickle
import pickletools
import random
import zipfile
from dataclasses import dataclass, field

from fuzz.mutations import NAMES, NUMBERS, blind

from step_cli.formats.onnx.protobuf import (
    FIXED32,
    LENGTH,
    VARINT,
    WireError,
    encoded_varint,
    fields,
)

CALLS = (
    ("posix", "system"), ("builtins", "eval"), ("builtins", "bytearray"),
    ("torch", "FloatStorage"), ("torch", "HalfStorage"), ("torch", "device"),
    ("torch", "Size"), ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"), ("torch._utils", "_rebuild_sparse_tensor"),
    ("torch._utils", "_rebuild_qtensor"), ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_meta_tensor_no_storage"), ("torch.hub", "load"),
    ("torch.nn.modules.linear", "Linear"), ("argparse", "Namespace"),
    ("collections", "defaultdict"), ("numpy._core.multiarray", "scalar"),
)  # fmt: skip


@dataclass
class Part:
    """A field of a message: a number, bytes, or a message of its own."""

    number: int
    wire: int
    value: int = 0
    raw: bytes = b""
    inner: list["Part"] | None = None
    lie: int = field(default=0)  # added to its length


def onnx_model(data: bytes, rng: random.Random) -> bytes:
    """An ONNX model with one to three fields changed."""
    parts = _parsed(data, 0)
    assert parts is not None
    for _ in range(rng.choice([1, 1, 2, 3])):
        _change(parts, rng)
    return _encoded(parts)


def _parsed(data: bytes, depth: int) -> list[Part] | None:
    """The fields of a message; None if the bytes are none, or hardly one."""
    parts = []
    try:
        for item in fields(memoryview(data), 0, len(data)):
            raw = data[item.begin : item.end]
            part = Part(item.number, item.wire, item.value, raw)
            if item.wire == LENGTH and raw and depth < 9 and item.number < 30:
                text = raw.isascii() and raw.decode().isprintable()
                part.inner = None if text else _parsed(raw, depth + 1)
            parts.append(part)
    except WireError:
        return None
    return parts


def _encoded(parts: list[Part]) -> bytes:
    out = bytearray()
    for part in parts:
        out += encoded_varint(part.number << 3 | part.wire)
        if part.wire == VARINT:
            out += encoded_varint(part.value % 2**64)
        elif part.wire == LENGTH:
            raw = part.raw if part.inner is None else _encoded(part.inner)
            out += encoded_varint(max(0, len(raw) + part.lie) % 2**64) + raw
        else:
            out += part.raw
    return bytes(out)


def _change(parts: list[Part], rng: random.Random) -> None:
    if not parts:
        return
    at = rng.randrange(len(parts))
    part = parts[at]
    if part.inner and rng.random() < 0.8:
        _change(part.inner, rng)
        return
    kind = rng.random()
    if kind < 0.12:
        del parts[at]
    elif kind < 0.24:
        parts.insert(rng.randrange(len(parts) + 1), part)
    elif kind < 0.34:
        part.number = rng.choice([1, 2, 4, 5, 7, 8, 9, 11, 13, 14, 15, part.number + 1])
    elif kind < 0.4:
        part.lie = rng.choice([-1, 1, 100, 2**31, 2**63])
    elif part.wire == VARINT:
        part.value = rng.choice([*NUMBERS, part.value + 1, *range(1, 26)])
    elif part.wire == LENGTH:
        _other_payload(part, rng)
    elif part.wire == FIXED32 or part.raw:
        part.raw = rng.randbytes(len(part.raw))


def _other_payload(part: Part, rng: random.Random) -> None:
    raw = part.raw if part.inner is None else _encoded(part.inner)
    ops = (b"MatMul", b"Gemm", b"Conv", b"Transpose", b"DequantizeLinear", b"If", b"x")
    names = [name.encode(errors="surrogatepass") for name in NAMES]
    part.inner = None
    part.raw = rng.choice([
        blind(raw or b"\0", rng), rng.choice(ops), rng.choice(names), b"", raw * 2,
        b"w", b"y", raw[: len(raw) // 2], str(rng.choice(NUMBERS)).encode(),
    ])  # fmt: skip


def torch_file(data: bytes, rng: random.Random) -> bytes:
    """A torch archive packed anew, its pickle, data or names changed."""
    if not data.startswith(b"PK"):
        return _legacy(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for _ in range(rng.choice([1, 1, 2])):
        _change_archive(members, rng)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, raw in members.items():
            deflate = (
                zipfile.ZIP_DEFLATED if rng.random() < 0.02 else zipfile.ZIP_STORED
            )
            archive.writestr(name, raw, deflate)
    return buffer.getvalue()


def _change_archive(members: dict[str, bytes], rng: random.Random) -> None:
    names = list(members)
    pickled = next((name for name in names if name.endswith("data.pkl")), names[0])
    if rng.random() < 0.7:
        members[pickled] = _pickle(members[pickled], rng)
        return
    name, kind = rng.choice(names), rng.random()
    if kind < 0.2:
        del members[name]
        members.setdefault("x/y", b"")
    elif kind < 0.4:
        top = name.partition("/")[0]
        new = rng.choice([f"{top}/data/9", f"{top}/../x", "/x", f"{top}/code/x.py"])
        members[new] = members.pop(name)
    elif kind < 0.6:
        members[name] = members[name] + bytes(rng.choice([1, 64, 5000]))
    else:
        members[name] = blind(members[name] or b"\0", rng)


def _pickle(data: bytes, rng: random.Random) -> bytes:
    """A pickle with one to three of its opcodes changed."""
    ops = _opcodes(data)
    if not ops:
        return blind(data or b"\0", rng)
    for _ in range(rng.choice([1, 1, 3])):
        at = rng.randrange(len(ops))
        kind = rng.random()
        if kind < 0.15:
            del ops[at]
        elif kind < 0.3:
            ops.insert(rng.randrange(len(ops)), ops[at])
        elif kind < 0.45:
            module, name = rng.choice(CALLS)
            calls = [n for n, op in enumerate(ops) if op[:1] == b"c"] or [at]
            ops[rng.choice(calls)] = f"c{module}\n{name}\n".encode()
        elif kind < 0.75:
            numbers = [n for n, op in enumerate(ops) if op[:1] in b"KMJ"] or [at]
            ops[rng.choice(numbers)] = pickle.dumps(rng.choice(NUMBERS), 2)[2:-1]
        elif kind < 0.85:
            ops[at] = pickle.dumps(rng.choice(NAMES[:8]), 2)[2:-1]
        else:
            ops[at] = rng.choice([b"N", b"}", b"]", b")", b"R", b"Q", b"b", b"0", b"."])
        if not ops:
            break
    return b"".join(ops)


def _opcodes(data: bytes) -> list[bytes]:
    try:
        starts = [at for _, _, at in pickletools.genops(data) if at is not None]
    except ValueError:
        return []
    return [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]


def _legacy(data: bytes, rng: random.Random) -> bytes:
    """A file of before torch 1.6: several pickles, one after another, then data."""
    if rng.random() < 0.4:
        return blind(data, rng)
    stream, parts, at = io.BytesIO(data), [], 0
    for _ in range(5):
        for _ in pickletools.genops(stream):
            pass
        parts.append(data[at : stream.tell()])
        at = stream.tell()
    which = rng.choice([0, 1, 2, 3, 3, 3, 4])
    parts[which] = _pickle(parts[which], rng)
    return b"".join(parts) + data[at:]
