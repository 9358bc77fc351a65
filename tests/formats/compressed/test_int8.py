"""int8 and fp8 weights with scales beside them: plain, behind a bitmask, compressed."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import step_cli
from step_cli.errors import InputError
from step_cli.formats.open import open_checkpoint
from step_cli.formats.safetensors.writer import save_safetensors

Array = np.ndarray[Any, Any]
NAME = "model.fc.weight"


def codes(dtype: Any = np.int8, zero: int = 0) -> Array:
    """2:4 along axis 1, none of the kept values the zero."""
    kept = np.tile([True, False, True, False], (6, 4))
    values = np.arange(6 * 16).reshape(6, 16) % 50 + 10
    return np.where(kept, values, zero).astype(dtype)


def scales() -> dict[str, Array]:
    return {f"{NAME}_scale": np.full((6, 1), 0.01, np.float32)}


def packed(dense: Array, flat: bool = False) -> dict[str, Array]:
    """As compressed-tensors stacks a bitmask on a quantized weight."""
    kept = dense.astype(np.float32) != 0
    values = dense[kept]
    base = NAME.removesuffix(".weight")
    return {
        f"{base}.shape": np.array([[6], [16]], np.int64),
        f"{base}.bitmask": np.packbits(kept, 1, bitorder="little"),
        f"{base}.compressed": values if flat else values.reshape(6, 8),
        **scales(),
    }


def saved(path: Path, tensors: dict[str, Array]) -> Path:
    save_safetensors(path, tensors, {"format": "pt"})
    return path


def verdict(path: Path, **options: Any) -> tuple[int, list[str], dict[str, str]]:
    report = step_cli.verify(path, **options)
    (found,) = report.checkpoints
    reasons = {tensor.name: tensor.reason for tensor in found.skipped}
    return report.exit_code, [layer.name for layer in found.layers], reasons


@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.float8_e4m3fn])
def test_quantized_values_behind_a_bitmask_are_judged(
    tmp_path: Path, dtype: Any
) -> None:
    path = saved(tmp_path / "m.safetensors", packed(codes(dtype)))
    (weight,) = (t for t in open_checkpoint(path).tensors if t.name == NAME)
    assert weight.read().tobytes() == codes(dtype).tobytes()
    assert verdict(path)[:2] == (0, [NAME])
    bad = packed(codes(dtype))
    bad["model.fc.bitmask"][2, 1] = 0b0001_0111  # four values, three in one group
    assert verdict(saved(path, bad))[:2] == (1, [NAME])


def test_they_come_back_dense_and_go_into_our_own_format(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors", packed(codes()))
    dense, ours = tmp_path / "d.safetensors", tmp_path / "c.safetensors"
    step_cli.export(path, dense, "dense")
    assert verdict(dense)[:2] == (0, [NAME])
    step_cli.export(dense, ours, "compressed")
    read = {tensor.name: tensor.read() for tensor in open_checkpoint(ours).tensors}
    assert read[NAME].tobytes() == codes().tobytes()
    assert verdict(ours)[:2] == (0, [NAME])


def test_without_a_scale_codes_mean_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors", {NAME: codes()})
    assert verdict(path) == (3, [], {NAME: "dtype"})
    assert verdict(saved(path, {NAME: codes(), **scales()}))[:2] == (0, [NAME])


@pytest.mark.parametrize("each_row", [False, True])
def test_the_zero_point_beside_the_codes_is_their_zero(
    tmp_path: Path, each_row: bool
) -> None:
    points = np.full((6, 1) if each_row else (1,), 7, np.int8)
    dense = codes(zero=7)
    if each_row:
        points[3], dense[3][dense[3] == 7] = -5, -5
    tensors = {NAME: dense, f"{NAME}_zero_point": points, **scales()}
    path = saved(tmp_path / "m.safetensors", tensors)
    assert verdict(path)[:2] == (0, [NAME])
    with pytest.raises(InputError, match="zero is another code than 0"):
        step_cli.export(path, tmp_path / "c.safetensors", "compressed")
    dense[0, 1] = 0  # a number like any other here
    assert verdict(saved(path, tensors))[:2] == (1, [NAME])
    zeros = tensors | {NAME: codes(), f"{NAME}_zero_point": np.zeros_like(points)}
    assert verdict(saved(path, zeros))[:2] == (0, [NAME])


def test_a_zero_point_for_each_group_of_a_row_cannot_be_judged(tmp_path: Path) -> None:
    points = np.arange(24, dtype=np.int8).reshape(6, 4)
    tensors = {NAME: codes(), f"{NAME}_zero_point": points, **scales()}
    path = saved(tmp_path / "m.safetensors", tensors)
    code, layers, reasons = verdict(path)
    assert (code, layers, reasons[NAME]) == (3, [], "kind")
    assert verdict(path, strict=True)[0] == 1


def test_pruning_writes_the_code_that_means_zero(tmp_path: Path) -> None:
    dense = np.arange(-48, 48, dtype=np.int8).reshape(6, 16)
    point = np.array([7], np.int8)
    tensors = {NAME: dense, f"{NAME}_zero_point": point, **scales()}
    path, out = saved(tmp_path / "m.safetensors", tensors), tmp_path / "p.safetensors"
    step_cli.prune(path, out)
    assert verdict(out)[:2] == (0, [NAME])
    (weight,) = (t for t in open_checkpoint(out).tensors if t.name == NAME)
    assert (weight.read() == 7).sum() == dense.size // 2
