"""Ways to damage a file: blindly, and by the rules of its format."""

import json
import random
import struct
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

from step_cli.formats.compressed.writer import HEADER_KEY, KEY, header_digest

PAGE = 4096
NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    4,
    7,
    2**31 - 1,
    2**31,
    2**32,
    2**62,
    2**63 - 1,
    2**63,
    2**64,
)
NAMES = (
    "", "\0", "a\nerror: x", "::error::x", "\x1b[31m", "[/x]", "../x", "/dev/zero",
    "\ud800", "\u202e", "x" * 3000, "fc.weight", "__metadata__", "d/../../x", "m.data",
)  # fmt: skip
DTYPES = (
    "F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3",
    "I64", "I8", "U8", "BOOL", "C64", "XX",
)  # fmt: skip


def blind(data: bytes, rng: random.Random) -> bytes:
    """One to four changes that know nothing of the format."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        out = bytearray(rng.choice(_BLIND)(out, rng)) or bytearray(b"\0")
    return bytes(out)


def _at(out: bytearray, rng: random.Random) -> int:
    """A position, more often near the start, where headers are."""
    return rng.randrange(min(len(out), rng.choice([16, 200, len(out), len(out)])))


def _flip(out: bytearray, rng: random.Random) -> bytes:
    out[_at(out, rng)] ^= 1 << rng.randrange(8)
    return out


def _set(out: bytearray, rng: random.Random) -> bytes:
    out[_at(out, rng)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    return out


def _number(out: bytearray, rng: random.Random) -> bytes:
    at, width = _at(out, rng), rng.choice([2, 4, 8])
    value = rng.choice(NUMBERS) % 2 ** (8 * width)
    out[at : at + width] = value.to_bytes(width, rng.choice(["little", "big"]))
    return out


def _cut(out: bytearray, rng: random.Random) -> bytes:
    return out[: _at(out, rng) + 1]


def _remove(out: bytearray, rng: random.Random) -> bytes:
    at = _at(out, rng)
    del out[at : at + rng.choice([1, 2, 8, 64])]
    return out


def _insert(out: bytearray, rng: random.Random) -> bytes:
    at = _at(out, rng)
    out[at:at] = rng.choice([rng.randbytes(rng.randrange(1, 9)), bytes(8), out[:64]])
    return out


def _repeat(out: bytearray, rng: random.Random) -> bytes:
    at, to = _at(out, rng), _at(out, rng)
    out[to:to] = out[at : at + rng.choice([4, 32, 256])]
    return out


def _zero_page(out: bytearray, rng: random.Random) -> bytes:
    size = min(PAGE, max(1, len(out) // 4))
    at = rng.randrange(len(out)) // size * size
    out[at : at + size] = bytes(len(out[at : at + size]))
    return out


def _swap_pages(out: bytearray, rng: random.Random) -> bytes:
    size = min(PAGE, max(1, len(out) // 4))
    a, b = (rng.randrange(max(1, len(out) // size)) * size for _ in range(2))
    one, other = out[a : a + size], out[b : b + size]
    out[a : a + size], out[b : b + size] = other, one
    return out


def _tail(out: bytearray, rng: random.Random) -> bytes:
    return out + rng.choice([b"\0", bytes(100), out[:50], rng.randbytes(20)])


_BLIND: Sequence[Callable[[bytearray, random.Random], bytes]] = (
    _flip, _flip, _set, _number, _cut, _remove, _insert, _repeat, _zero_page,
    _swap_pages, _tail,
)  # fmt: skip


def in_json(value: Any, rng: random.Random) -> Any:
    """The document with one of its values, or keys, replaced, removed or repeated."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        out = dict(value)
        key = rng.choice(list(out))
        kind = rng.random()
        if kind < 0.1:
            del out[key]
        elif kind < 0.2:
            out[rng.choice(NAMES)] = out.pop(key)
        elif kind < 0.25:
            out[rng.choice(NAMES)] = out[key]
        else:
            out[key] = in_json(out[key], rng)
        return out
    if isinstance(value, list) and value and rng.random() < 0.7:
        out_list = list(value)
        at = rng.randrange(len(out_list))
        out_list[at : at + 1] = rng.choice(
            [[in_json(out_list[at], rng)], [], [out_list[at]] * 2]
        )
        return out_list
    return _replaced(value, rng)


def _replaced(value: Any, rng: random.Random) -> Any:
    if isinstance(value, str) and value.startswith("{") and rng.random() < 0.8:
        return json_text(value.encode(), rng).decode(errors="replace")
    if isinstance(value, int) and rng.random() < 0.7:
        return rng.choice([*NUMBERS, value + 1, value - 1, value * 2, -value])
    if isinstance(value, str) and rng.random() < 0.6:
        return rng.choice([*NAMES, *DTYPES, "1:4", "4:4", "0:4", "2:4:8", value + "x"])
    deep: Any = []
    for _ in range(rng.choice([3, 300])):
        deep = [deep]
    return rng.choice(
        [None, True, 1.5, float("nan"), "", [], {}, deep, [value], 10**400]
    )


def json_text(data: bytes, rng: random.Random) -> bytes:
    """A JSON document, damaged by its grammar, and now and then by its letters."""
    document = json.loads(data)
    for _ in range(rng.choice([1, 1, 2])):
        document = in_json(document, rng)
    text = json.dumps(document).encode()
    if rng.random() < 0.15:
        text = text.replace(b"}", b', "layers": 1, "layers": 2}', 1)
    return blind(text, rng) if rng.random() < 0.2 else text


def safetensors(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with a changed header, or with other values."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    kind = rng.random()
    if kind < 0.25:
        body = _other_values(body, rng)
    elif kind < 0.5:
        _consistently(header, rng)
    else:
        header = in_json(header, rng)
    text = json.dumps(header, ensure_ascii=rng.random() < 0.9)
    raw = text.encode(errors="surrogatepass") + b" " * rng.choice([0, 0, 7])
    return struct.pack("<Q", len(raw)) + raw + body


def compressed(data: bytes, rng: random.Random) -> bytes:
    """A compressed file changed like any other, mostly with new checksums."""
    out = safetensors(data, rng)
    return signed(out) if rng.random() < 0.8 else out


def signed(data: bytes) -> bytes:
    """The same file with checksums that are right, if it still has any."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = header["__metadata__"]
        description = json.loads(metadata[KEY])
        for name in description["sha256"]:
            begin, end = header[name]["data_offsets"]
            raw = data[8 + length + begin : 8 + length + end]
            description["sha256"][name] = sha256(raw).hexdigest()
        metadata[KEY] = json.dumps(description)
        metadata[HEADER_KEY] = header_digest(header)
        raw = json.dumps(header).encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return data
    return struct.pack("<Q", len(raw)) + raw + data[8 + length :]


def _other_values(body: bytearray, rng: random.Random) -> bytearray:
    """Bytes set to what is, or may be, zero, infinite or subnormal."""
    for _ in range(rng.choice([1, 3, 20])):
        at = rng.randrange(len(body)) // 2 * 2
        body[at : at + 2] = rng.choice(
            [b"\0\0", b"\0\x80", b"\0\x7c", b"\1\0", b"\0\x3c"]
        )
    return body


def _consistently(header: dict[str, Any], rng: random.Random) -> None:
    """A change after which the file is still sound: another shape, type or name."""
    name = rng.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    kind = rng.random()
    if kind < 0.4:
        shape = entry["shape"]
        rng.shuffle(shape)
        if rng.random() < 0.5 and shape and shape[0] % 2 == 0:
            shape[:1] = [2, shape[0] // 2]
    elif kind < 0.7:
        size = entry["data_offsets"][1] - entry["data_offsets"][0]
        code, width = rng.choice([("F16", 2), ("BF16", 2), ("F32", 4), ("F8_E4M3", 1)])
        entry.update(dtype=code, shape=[size // width // 4, 4])
    else:
        new = rng.choice(
            [*NAMES, "lm_head.weight", "x.norm.weight", "h.0.mlp.c_fc.weight"]
        )
        header[new] = header.pop(name)
