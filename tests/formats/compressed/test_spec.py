"""A reader written from docs/format.md alone, against files that `export` writes."""

import hashlib
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from step_cli.commands.export import run as export
from step_cli.config.commands import ExportConfig
from step_cli.formats.plan import KEY, plan_json
from step_cli.formats.safetensors.writer import save_safetensors
from step_cli.nm.pattern import NMPattern, NMSpec, Plan

Bits = np.ndarray[Any, Any]  # of tensors, as unsigned integers
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # 1 for all others here


def read_by_the_spec(path: Path) -> dict[str, Bits]:
    """The dense tensors in a compressed file; what is wrong with it fails."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header["__metadata__"]
    digest = metadata.pop("step_cli.header_sha256")
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == digest
    description = json.loads(metadata["step_cli.compressed"])
    version = 2 if "codes" in description else 1
    assert description["schema"] == f"step-cli/compressed/{version}"
    del header["__metadata__"]
    for name, meant in description.get("codes", {}).items():
        kept = f"{name}.nm_values" if name in description["shapes"] else name
        assert header[kept]["dtype"] == meant["type"]
        assert meant["type"] == "I8" or meant["type"].startswith("F8_")
        assert header[meant["scale"]]["dtype"] in WIDTHS
    stored = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        data = content[begin:end]
        assert hashlib.sha256(data).hexdigest() == description["sha256"][name]
        word = f"u{WIDTHS.get(entry['dtype'], 1)}"
        stored[name] = np.frombuffer(data, word).reshape(entry["shape"])
    layers = json.loads(metadata["step_cli.plan"])["layers"]
    for name, shape in description["shapes"].items():
        values, packed = (
            stored.pop(f"{name}.nm_values"),
            stored.pop(f"{name}.nm_positions"),
        )
        n, m = map(int, layers[name]["pattern"].split(":"))
        axis, bits = layers[name]["axis"], math.ceil(math.log2(m))
        flat = np.unpackbits(packed, bitorder="little")
        assert not flat[values.size * bits :].any()
        places = flat[: values.size * bits].reshape(-1, n, bits) @ (
            1 << np.arange(bits)
        )
        assert (np.diff(places) > 0).all() and places.max() < m
        groups = np.zeros((len(values), m), values.dtype)
        np.put_along_axis(groups, places, values, 1)
        behind = math.prod(shape[axis + 1 :])
        stored[name] = groups.reshape(-1, behind, m).swapaxes(1, 2).reshape(shape)
    return stored


DTYPES = [
    np.dtype(kind)
    for kind in (
        np.float64,
        np.float32,
        np.float16,
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e5m2,
        ml_dtypes.float8_e4m3fnuz,
        ml_dtypes.float8_e5m2fnuz,
        np.int8,
    )
]
SIZES = [*range(2, 18), 31, 32, 33, 64, 300]  # of groups


@st.composite
def tensors(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], NMSpec]:
    """Any dtype, N:M and axis; every bit pattern of a finite number may occur."""
    m = draw(st.sampled_from(SIZES))
    n = draw(st.integers(1, m - 1))
    rank = draw(st.integers(2, 4))
    axis = draw(st.integers(0, rank - 1))
    shape = [draw(st.integers(1, 4)) for _ in range(rank)]
    shape[axis] = m * draw(st.integers(1, 3))
    dtype = draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bits = rng.integers(0, 256, (*shape, dtype.itemsize), dtype=np.uint8)
    array = bits.view(dtype).reshape(shape)
    with np.errstate(invalid="ignore"):  # signalling NaN
        wide = array.astype(np.float64)
    array = np.where(np.isfinite(wide) & (wide != 0), array, np.ones((), dtype))
    behind = math.prod(shape[axis + 1 :])
    ranks = rng.random((math.prod(shape) // m, m)).argsort(1)
    keep = ranks < rng.integers(0, n + 1, (len(ranks), 1))
    keep = keep.reshape(-1, behind, m).swapaxes(1, 2).reshape(shape)
    zeros = np.zeros((), dtype)
    return np.where(keep, array, zeros), NMSpec(NMPattern(n, m), axis)


def bits_of(array: np.ndarray[Any, Any]) -> Bits:
    return array.view(f"u{array.dtype.itemsize}")


def convert(source: Path, out: Path, to: str) -> None:
    assert export.run(ExportConfig(checkpoint=source, out=out, to=to)).ok


@settings(max_examples=60)
@given(st.lists(tensors(), min_size=1, max_size=3), st.booleans())
def test_every_file_reads_by_the_spec_and_comes_back_bit_for_bit(
    drawn: list[tuple[np.ndarray[Any, Any], NMSpec]], scaled: bool
) -> None:
    plan: Plan = {f"l{i}.weight": layer for i, (_, layer) in enumerate(drawn)}
    arrays = {f"l{i}.weight": array for i, (array, _) in enumerate(drawn)}
    for name, array in list(arrays.items()):
        if array.dtype.itemsize == 1 and (array.dtype == np.int8 or scaled):
            sizes = (array.shape[0], *[1] * (array.ndim - 1))
            arrays[f"{name}_scale"] = np.full(sizes, 0.5, np.float32)
    arrays["bias"] = np.array([-0.0, np.nan, 1], np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dense, small = folder / "m.safetensors", folder / "c.safetensors"
        save_safetensors(dense, arrays, {KEY: plan_json(plan)})
        convert(dense, small, "compressed")
        convert(small, folder / "back.safetensors", "dense")
        found = read_by_the_spec(small)
        back = read_raw(folder / "back.safetensors")
    assert sorted(found) == sorted(back) == sorted(arrays)
    for tensor, array in arrays.items():
        assert np.array_equal(found[tensor], bits_of(array)), tensor
        assert np.array_equal(back[tensor], bits_of(array)), tensor


def read_raw(path: Path) -> dict[str, Bits]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    found = {}
    for name, entry in json.loads(content[8 : 8 + length]).items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            word = f"u{WIDTHS.get(entry['dtype'], 1)}"
            bits = np.frombuffer(content[begin:end], word)
            found[name] = bits.reshape(entry["shape"])
    return found


def test_the_reader_of_the_spec_notices_damage(tmp_path: Path) -> None:
    weight = np.zeros((8, 16), np.float32)
    weight[:, ::2] = 1
    save_file({"fc.weight": weight}, tmp_path / "m.safetensors")
    small = tmp_path / "c.safetensors"
    convert(tmp_path / "m.safetensors", small, "compressed")
    assert np.array_equal(read_by_the_spec(small)["fc.weight"], bits_of(weight))
    content = bytearray(small.read_bytes())
    content[-1] ^= 1
    small.write_bytes(content)
    with pytest.raises(AssertionError):
        read_by_the_spec(small)
