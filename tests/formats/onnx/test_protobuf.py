import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from step_cli.formats.onnx.protobuf import (
    WireError,
    encoded_varint,
    fields,
    signed,
    varint,
    varints,
)

NUMBERS = st.integers(0, 2**64 - 1)


@given(NUMBERS)
def test_a_number_reads_back(value: int) -> None:
    raw = encoded_varint(value)
    assert varint(memoryview(raw), 0, len(raw)) == (value, len(raw))


@given(st.lists(NUMBERS))
def test_packed_numbers_read_as_one_by_one(values: list[int]) -> None:
    raw = b"".join(encoded_varint(value) for value in values)
    found = varints(np.frombuffer(raw, np.uint8))
    assert found.tolist() == [signed(value) for value in values]


@given(st.binary(max_size=60))
def test_any_bytes_are_fields_or_refused(raw: bytes) -> None:
    try:
        found = list(fields(memoryview(raw), 0, len(raw)))
    except WireError:
        return
    assert [field.start for field in found] == [0, *(f.end for f in found)][:-1] or (
        not found and not raw
    )


@pytest.mark.parametrize("raw", [b"\x80", b"\x0a\x05ab", b"\x0b", b"\x00\x01"])
def test_what_does_not_fit_is_refused(raw: bytes) -> None:
    with pytest.raises(WireError):
        list(fields(memoryview(raw), 0, len(raw)))


@pytest.mark.parametrize("raw", [b"\x80", b"\x80" * 12 + b"\x01"])
def test_packed_numbers_that_do_not_end_are_refused(raw: bytes) -> None:
    with pytest.raises(WireError):
        varints(np.frombuffer(raw, np.uint8))
