"""Bytes of N:M tensors against STEP's Table 5, and where its print is off."""

import math
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from step_cli.errors import UsageError
from step_cli.nm.pattern import NMPattern

SIZES = Path(__file__).parents[1] / "benchmarks" / "sizes.py"
sizes = runpy.run_path(str(SIZES))
metadata_bytes, values_bytes = sizes["metadata_bytes"], sizes["values_bytes"]
sparse_bytes = sizes["sparse_bytes"]

WIDTH, INNER, BLOCKS = 768, 3072, 12
VOCABULARY = {"BERT-Base": 30522, "GPT-2": 50257}
# Weights of one block that become sparse; BERT has query, key and value apart.
SHAPES = {
    "BERT-Base": [(WIDTH, WIDTH)] * 4 + [(INNER, WIDTH), (WIDTH, INNER)],
    "GPT-2": [(WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, INNER), (INNER, WIDTH)],
}
# Model, pattern; megabytes and ratio as printed; exact ones, without and with metadata.
TABLE_5 = [
    ("BERT-Base", "2:4", 131.82, 1.65, 131.816, 1.644, 142.433, 1.522),
    ("BERT-Base", "1:4", 89.35, 2.43, 89.349, 2.426, 94.658, 2.290),
    ("BERT-Base", "1:16", 57.50, 3.76, 57.499, 3.770, 60.153, 3.603),
    ("GPT-2", "2:4", 162.13, 1.52, 162.129, 1.524, 172.746, 1.430),
    ("GPT-2", "1:4", 119.66, 2.06, 119.662, 2.065, 124.970, 1.977),
    ("GPT-2", "1:16", 87.81, 2.81, 87.812, 2.814, 90.466, 2.731),
]
MIS_ROUNDED = {("BERT-Base", "2:4"): 1.64, ("BERT-Base", "1:16"): 3.77}


def elements(model: str) -> list[int]:
    return [math.prod(shape) for shape in SHAPES[model]] * BLOCKS


def embedding_bytes(model: str) -> int:
    """Of the one dense tensor that the paper counts."""
    return 2 * VOCABULARY[model] * WIDTH


def dense_bytes(model: str) -> int:
    return embedding_bytes(model) + 2 * sum(elements(model))


@pytest.mark.parametrize(
    ("model", "megabytes"), [("BERT-Base", 216.751), ("GPT-2", 247.064)]
)
def test_dense_rows_of_table_5_are_token_embedding_and_sparse_layers(
    model: str, megabytes: float
) -> None:
    assert sum(elements(model)) == 84_934_656
    assert round(dense_bytes(model) / 1e6, 3) == megabytes


@pytest.mark.parametrize("row", TABLE_5, ids=lambda row: f"{row[0]}-{row[1]}")
def test_sparse_rows_of_table_5_are_values_only(
    row: tuple[str, str, float, float, float, float, float, float],
) -> None:
    model, text, printed, printed_ratio, values, ratio, both, both_ratio = row
    pattern = NMPattern.parse(text)
    dense, embedding = dense_bytes(model), embedding_bytes(model)
    ours = embedding + sum(values_bytes(count, pattern) for count in elements(model))
    full = embedding + sum(sparse_bytes(count, pattern) for count in elements(model))
    assert round(ours / 1e6, 2) == printed
    assert (round(ours / 1e6, 3), round(dense / ours, 3)) == (values, ratio)
    assert (round(full / 1e6, 3), round(dense / full, 3)) == (both, both_ratio)
    assert round(dense / ours, 2) == MIS_ROUNDED.get((model, text), printed_ratio)


def test_two_ratios_of_table_5_are_mis_rounded() -> None:
    printed = {row[:2]: row[3] for row in TABLE_5}
    for (model, text), right in MIS_ROUNDED.items():
        size, ratio = next(row[2:4] for row in TABLE_5 if row[:2] == (model, text))
        # From the megabytes as printed, too.
        assert round(round(dense_bytes(model) / 1e6, 2) / size, 2) == right != ratio
    assert len(MIS_ROUNDED) == 2 and set(MIS_ROUNDED) <= set(printed)


def test_a_16_bit_2_4_tensor_takes_nine_sixteenths() -> None:
    pattern = NMPattern(2, 4)
    assert values_bytes(1024, pattern) == 1024
    assert metadata_bytes(1024, pattern) == 128
    assert sparse_bytes(1024, pattern) / 2048 == 9 / 16


@pytest.mark.parametrize(
    ("pattern", "bits"), [("1:2", 1), ("2:4", 2), ("4:8", 3), ("3:5", 3), ("1:16", 4)]
)
def test_a_place_takes_the_bits_that_m_needs(pattern: str, bits: int) -> None:
    parsed = NMPattern.parse(pattern)
    assert metadata_bytes(8 * parsed.m, parsed) == parsed.n * bits


def test_parts_of_a_byte_count_as_one() -> None:
    assert metadata_bytes(4, NMPattern(2, 4)) == 1


def test_what_is_dense_needs_no_places() -> None:
    assert sparse_bytes(10, NMPattern(2, 2), value_bytes=4) == 40


def test_elements_without_whole_groups_are_refused() -> None:
    for count in (values_bytes, metadata_bytes, sparse_bytes):
        with pytest.raises(UsageError, match="10 elements are not a multiple of M=4"):
            count(10, NMPattern(2, 4))


def test_sizes_are_told_without_torch() -> None:
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1]);"
        "sys.exit('torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code, str(SIZES)]
    assert subprocess.run(words, check=False).returncode == 0
