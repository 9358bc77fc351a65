import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from attacks.compressed_attacks import Header, rewrite

from step_cli.errors import InputError
from step_cli.formats.checkpoint import NamedTensor
from step_cli.formats.compressed.flaws import CompressedFileError, Flaw
from step_cli.formats.compressed.writer import (
    HEADER_KEY,
    KEY,
    header_digest,
    save_compressed,
)
from step_cli.formats.open import open_checkpoint
from step_cli.formats.plan import KEY as PLAN_KEY
from step_cli.formats.safetensors.writer import packed_header
from step_cli.nm.pattern import NMPattern, NMSpec, Plan

PLAN: Plan = {
    "fc.weight": NMSpec(NMPattern(2, 4), 1),
    "conv.weight": NMSpec(NMPattern(1, 3), 1),
}


def arrays() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    fc = rng.normal(size=(8, 16)).astype(np.float16)
    fc.reshape(8, 4, 4)[:, :, 1:3] = 0
    conv = rng.normal(size=(4, 3, 2, 2)).astype(ml_dtypes.bfloat16)
    conv[:, 1:] = 0
    bias = np.arange(8, dtype=np.float32)
    return {"fc.weight": fc, "conv.weight": conv, "fc.bias": bias}


def named(tensors: dict[str, np.ndarray[Any, Any]]) -> list[NamedTensor]:
    return [
        NamedTensor(name, array.dtype.name, array.shape, lambda array=array: array)
        for name, array in tensors.items()
    ]


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    save_compressed(path, named(arrays()), PLAN)
    return path


def read_all(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {tensor.name: tensor.read() for tensor in open_checkpoint(path).tensors}


def describe(header: Header, **changes: Any) -> None:
    metadata = header["__metadata__"]
    metadata[KEY] = json.dumps(json.loads(metadata[KEY]) | changes)


def test_round_trip_restores_names_types_and_bits(good: Path) -> None:
    opened = open_checkpoint(good)
    assert opened.format == "compressed"
    assert opened.plan == PLAN
    read = read_all(good)
    assert sorted(read) == sorted(arrays())
    for name, array in arrays().items():
        assert read[name].dtype == array.dtype
        assert read[name].tobytes() == array.tobytes()
        assert not read[name].flags.writeable


def test_fp16_two_of_four_has_nine_sixteenths_of_the_bytes(tmp_path: Path) -> None:
    array = np.zeros((64, 64), np.float16)
    array[:, ::2] = 1
    plan = {"w": NMSpec(NMPattern(2, 4), 1)}
    written = save_compressed(tmp_path / "c.safetensors", named({"w": array}), plan)
    assert (written.values, written.metadata) == (64 * 64, 64 * 64 // 8)
    assert array.nbytes / (written.values + written.metadata) == 16 / 9
    size = (tmp_path / "c.safetensors").stat().st_size
    header = int.from_bytes((tmp_path / "c.safetensors").read_bytes()[:8], "little")
    assert size == 8 + header + written.values + written.metadata


def test_the_same_weights_give_the_same_bytes(good: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    save_compressed(again, named(arrays())[::-1], PLAN)
    assert again.read_bytes() == good.read_bytes()


def test_dropped_negative_zeros_return_positive_and_are_counted(tmp_path: Path) -> None:
    array = np.array([[1, -0.0, -0.0, 2], [-0.0, 0, 0, 0]], np.float32)
    path = tmp_path / "c.safetensors"
    plan = {"w": NMSpec(NMPattern(2, 4), 1)}
    written = save_compressed(path, named({"w": array}), plan)
    # The second row keeps its -0.0: it fills a slot.
    assert written.negative_zeros == open_checkpoint(path).negative_zeros == 2
    restored = read_all(path)["w"]
    assert np.array_equal(restored, array)
    assert np.signbit(restored).sum() == 1


def test_a_dense_pattern_is_stored_as_it_is(tmp_path: Path) -> None:
    plan = {"fc.weight": NMSpec(NMPattern(4, 4), 1)}
    path = tmp_path / "c.safetensors"
    tensors = {"fc.weight": arrays()["fc.weight"]}
    assert save_compressed(path, named(tensors), plan).values == 0
    assert read_all(path)["fc.weight"].tobytes() == tensors["fc.weight"].tobytes()


def test_a_name_this_format_makes_itself_is_refused(tmp_path: Path) -> None:
    tensors = arrays() | {"fc.weight.nm_values": np.zeros(2, np.float32)}
    with pytest.raises(InputError, match="two tensors would get this name"):
        save_compressed(tmp_path / "c.safetensors", named(tensors), PLAN)


def test_any_flipped_byte_is_found(good: Path) -> None:
    content = good.read_bytes()
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 0x11
        good.write_bytes(damaged)
        if read_back(good) == [array.tobytes() for array in read_order()]:
            pytest.fail(f"byte {position} of {len(content)} was flipped unnoticed")


def read_order() -> list[np.ndarray[Any, Any]]:
    return [array for _, array in sorted(arrays().items())]


def read_back(path: Path) -> list[bytes] | None:
    try:
        return [array.tobytes() for _, array in sorted(read_all(path).items())]
    except InputError:
        return None


def a_newer_schema(header: Header, data: dict[str, bytes]) -> None:
    describe(header, schema="step-cli/compressed/3")


def another_schema(header: Header, data: dict[str, bytes]) -> None:
    describe(header, schema="somebody/else/1")


def no_json(header: Header, data: dict[str, bytes]) -> None:
    header["__metadata__"][KEY] = "no JSON"


def shapes_of_another_kind(header: Header, data: dict[str, bytes]) -> None:
    describe(header, shapes={"fc.weight": "8x16"})


def another_shape(header: Header, data: dict[str, bytes]) -> None:
    describe(header, shapes={"fc.weight": [8, 18], "conv.weight": [4, 3, 2, 2]})


def negative_shape(header: Header, data: dict[str, bytes]) -> None:
    describe(header, shapes={"fc.weight": [-8, -16], "conv.weight": [4, 3, 2, 2]})


def no_plan(header: Header, data: dict[str, bytes]) -> None:
    plan = {"schema": "step-cli/plan/1", "layers": {}}
    header["__metadata__"][PLAN_KEY] = json.dumps(plan)


def no_positions(header: Header, data: dict[str, bytes]) -> None:
    del header["fc.weight.nm_positions"], data["fc.weight.nm_positions"]


def dense_twin(header: Header, data: dict[str, bytes]) -> None:
    header["fc.weight"] = {"dtype": "F16", "shape": [1]}
    data["fc.weight"] = b"\0\0"


def values_short(header: Header, data: dict[str, bytes]) -> None:
    header["fc.weight.nm_values"]["shape"] = [31, 2]
    data["fc.weight.nm_values"] = data["fc.weight.nm_values"][:-4]


def positions_short(header: Header, data: dict[str, bytes]) -> None:
    header["fc.weight.nm_positions"]["shape"] = [15]
    data["fc.weight.nm_positions"] = data["fc.weight.nm_positions"][:-1]


def positions_of_another_type(header: Header, data: dict[str, bytes]) -> None:
    header["fc.weight.nm_positions"]["dtype"] = "I8"


def positions_not_rising(header: Header, data: dict[str, bytes]) -> None:
    data["fc.weight.nm_positions"] = b"\0" + data["fc.weight.nm_positions"][1:]


def positions_out_of_range(header: Header, data: dict[str, bytes]) -> None:
    data["conv.weight.nm_positions"] = b"\xff" + data["conv.weight.nm_positions"][1:]


@pytest.mark.parametrize(
    ("change", "flaw", "tensor"),
    [
        (a_newer_schema, Flaw.NEWER, None),
        (another_schema, Flaw.NOT_A_DESCRIPTION, None),
        (no_json, Flaw.NOT_A_DESCRIPTION, None),
        (shapes_of_another_kind, Flaw.NOT_A_DESCRIPTION, None),
        (another_shape, Flaw.BAD_SHAPE, "fc.weight"),
        (negative_shape, Flaw.BAD_SHAPE, "fc.weight"),
        (no_plan, Flaw.NO_PLAN, "conv.weight"),
        (no_positions, Flaw.PART_MISSING, "fc.weight"),
        (dense_twin, Flaw.PART_TWICE, "fc.weight"),
        (values_short, Flaw.VALUES_DISAGREE, "fc.weight"),
        (positions_short, Flaw.POSITIONS_DISAGREE, "fc.weight"),
        (positions_of_another_type, Flaw.POSITIONS_DISAGREE, "fc.weight"),
        (positions_not_rising, Flaw.BAD_POSITIONS, "fc.weight"),
        (positions_out_of_range, Flaw.BAD_POSITIONS, "conv.weight"),
    ],
)
def test_each_flaw_has_its_own_error(
    good: Path,
    change: Callable[[Header, dict[str, bytes]], None],
    flaw: Flaw,
    tensor: str | None,
) -> None:
    rewrite(good, change)
    with pytest.raises(CompressedFileError) as caught:
        read_all(good)
    assert caught.value.flaw is flaw
    assert caught.value.tensor == tensor
    assert caught.value.exit_code == 4
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("change", "flaw"),
    [
        (no_plan, Flaw.HEADER_CHANGED),
        (positions_not_rising, Flaw.DATA_CHANGED),
    ],
)
def test_changes_without_new_checksums_are_found_first(
    good: Path, change: Callable[[Header, dict[str, bytes]], None], flaw: Flaw
) -> None:
    rewrite(good, change, resign=False)
    with pytest.raises(CompressedFileError) as caught:
        read_all(good)
    assert caught.value.flaw in {flaw, Flaw.HEADER_CHANGED}
    if flaw is Flaw.DATA_CHANGED:
        assert caught.value.tensor == "fc.weight.nm_positions"


def test_a_tensor_without_a_checksum_is_refused(good: Path) -> None:
    def add(header: Header, data: dict[str, bytes]) -> None:
        header["extra"] = {"dtype": "U8", "shape": [1]}
        data["extra"] = b"\1"

    rewrite(good, add, resign=False)
    content = good.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"][HEADER_KEY] = header_digest(header)
    good.write_bytes(packed_header(header) + content[8 + length :])
    with pytest.raises(CompressedFileError) as caught:
        read_all(good)
    assert caught.value.flaw is Flaw.NO_CHECKSUM


def test_every_flaw_has_a_test() -> None:
    here = Path(__file__)
    beside = (here, here.with_name("test_codes.py"))
    text = "".join(path.read_text(encoding="utf-8") for path in beside)
    assert [flaw.name for flaw in Flaw if f"Flaw.{flaw.name}" not in text] == []
