"""Safetensors files that are wrong, each with words that its refusal must hold."""

import json
import struct


def file_of(header: str | bytes, data: bytes = b"") -> bytes:
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw)) + raw + data


def entry(
    begin: int, end: int, shape: object = (2, 4), dtype: object = "F32"
) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def tensors(data_bytes: int, **entries: object) -> bytes:
    return file_of(json.dumps(entries), bytes(data_bytes))


def attacks() -> dict[str, tuple[bytes, str]]:
    one = json.dumps({"w": entry(0, 32)})
    twice = '{"w": %s, "w": %s}' % ((json.dumps(entry(0, 32)),) * 2)
    nested = '{"w": ' + "[" * 200_000 + "]" * 200_000 + "}"
    return {
        "length 2^63": (struct.pack("<Q", 2**63) + b"{}" * 50, "header length"),
        "length beyond": (struct.pack("<Q", 500) + b"{}", "truncated"),
        "seven bytes": (b"1234567", "truncated"),
        "header 17 MiB": (file_of(b"{}" + b" " * (17 << 20)), "header 17 MiB"),
        "deep": (file_of(nested), "nested too deep"),
        "many": (
            file_of('{"a":{"data_offsets":[]}' + ',"a":{"data_offsets":[]}' * 200_001),
            "limit 200000",
        ),
        "duplicate": (file_of(twice, bytes(32)), "duplicate tensor name"),
        "not an object": (file_of("[1]"), "not a JSON object"),
        "not JSON": (file_of("{'w': 1}"), "not JSON"),
        "not UTF-8": (file_of(b'{"\xff": 1}'), "header"),
        "lone surrogate": (
            file_of(json.dumps({"\ud800": entry(0, 32)}), bytes(32)),
            "surrogate",
        ),
        "lone surrogate, elsewhere": (
            tensors(32, a=entry(0, 32) | {"\ud800": 1}),
            "surrogate",
        ),
        "NaN": (tensors(32, a=entry(0, 32) | {"x": float("nan")}), "NaN is no JSON"),
        "overlap": (tensors(48, a=entry(0, 32), b=entry(16, 48)), "overlaps"),
        "gap": (tensors(80, a=entry(0, 32), b=entry(48, 80)), "leaves a gap"),
        "gap at the start": (tensors(40, a=entry(8, 40)), "leaves a gap"),
        "tail": (tensors(40, a=entry(0, 32)), "8 bytes after the last tensor"),
        "cut short": (file_of(one, bytes(20)), "truncated: needs"),
        "overflow": (
            tensors(32, a=entry(0, 32, [2**62, 2**62])),
            f"needs {2**62 * 2**62 * 4} bytes",
        ),
        "size above 2^63": (tensors(0, a=entry(0, 0, [0, 2**70])), "shape"),
        "negative size": (tensors(32, a=entry(0, 32, [-2, -4])), "shape"),
        "negative offset": (tensors(32, a=entry(-32, 0)), "data_offsets"),
        "falling offsets": (tensors(32, a=entry(32, 0)), "data_offsets"),
        "three offsets": (
            tensors(32, a={"dtype": "F32", "shape": [8], "data_offsets": [0, 8, 32]}),
            "data_offsets",
        ),
        "float size": (tensors(32, a=entry(0, 32, [2.0, 4])), "shape"),
        "true as size": (tensors(16, a=entry(0, 16, [True, 4])), "shape"),
        "100 dimensions": (tensors(4, a=entry(0, 4, [1] * 100)), "shape"),
        "unknown dtype": (tensors(32, a=entry(0, 32, dtype="F33")), "unknown dtype"),
        "dtype a list": (tensors(32, a=entry(0, 32, dtype=[])), "unknown dtype"),
        "entry a list": (file_of('{"a": [1]}'), "not an object"),
        "wrong size": (tensors(30, a=entry(0, 30)), "needs 32 bytes"),
        "metadata a number": (file_of('{"__metadata__": {"a": 1}}'), "__metadata__"),
        "metadata a list": (file_of('{"__metadata__": []}'), "__metadata__"),
        "huge number": (file_of('{"a": ' + "9" * 5000 + "}"), "header"),
    }


def pages() -> dict[str, tuple[bytes, str]]:
    """Files that are no safetensors at all."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n"
    return {
        "empty": (b"", "file is empty"),
        "git-lfs": (pointer, "git lfs pull"),
        "HTML": (b"\n<!DOCTYPE html><html></html>", "looks like HTML"),
        "JSON": (b'{"error": "Repository not found"}', "looks like JSON"),
        "zip": (b"PK\x03\x04" + bytes(40), "content is torch, name says .safetensors"),
        "pickle": (b"\x80\x02}q\x00." + bytes(20), "content is torch"),
        "gzip": (b"\x1f\x8b\x08" + bytes(20), "gzip"),
        "program": (b"\x7fELF" + bytes(60), "programs are not loaded"),
        "engine": (b"ptrt" + bytes(60), "engines are programs"),
    }
