"""Damaged files end in a refusal or a sound reading, never in another exception."""

import random
from pathlib import Path

import numpy as np
import pytest
from attacks.onnx_attacks import linear
from attacks.torch_attacks import W, saved
from safetensors.numpy import save

from step_cli.errors import StepError
from step_cli.formats.files.mapped_file import map_file
from step_cli.formats.open import open_checkpoint
from step_cli.formats.pytorch.archive import read_members

ROUNDS = 400


def good(suffix: str) -> bytes:
    if suffix == ".onnx":
        return linear().SerializeToString()
    if suffix == ".pt":
        return saved({"w": W, "b": W[0]})
    plan = {"step_cli.plan": '{"schema": "step-cli/plan/1", "layers": {}}'}
    return save({"w": np.ones((4, 8), np.float32), "b": np.ones(3, np.int8)}, plan)


def damaged(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(min(len(out), rng.choice([40, 400, len(out)])))
        kind = rng.choice(["set", "set", "cut", "insert", "end"])
        if kind == "set":
            out[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif kind == "cut":
            del out[at : at + rng.randrange(1, 9)]
        elif kind == "insert":
            out[at:at] = rng.randbytes(rng.randrange(1, 5))
        else:
            del out[max(at, 1) :]
        out = out or bytearray(b"x")
    return bytes(out)


def opened(path: Path) -> None:
    if path.suffix == ".pt":  # the archive; the pickle is the child's to survive
        read_members(map_file(path))
        return
    for tensor in open_checkpoint(path).tensors:
        if tensor.skip != "kind" and 0 not in tensor.shape:
            tensor.read()


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx", ".pt"])
def test_random_damage_is_refused_or_harmless(suffix: str, tmp_path: Path) -> None:
    rng, data, refused = random.Random(suffix), good(suffix), 0
    for number in range(ROUNDS):
        path = tmp_path / f"m{number}{suffix}"
        path.write_bytes(damaged(data, rng))
        try:
            opened(path)
        except StepError:
            refused += 1
    assert refused > ROUNDS / 4  # the damage is real


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx", ".pt"])
def test_a_file_cut_anywhere_is_refused(suffix: str, tmp_path: Path) -> None:
    data = good(suffix)
    path = tmp_path / f"m{suffix}"
    path.write_bytes(data)
    opened(path)
    # An ONNX model may end between two fields: what is cut off there was optional.
    last = len(data) - (16 if suffix == ".onnx" else 1)
    for size in {*range(0, last, max(1, last // 64)), last}:
        path.write_bytes(data[:size])
        with pytest.raises(StepError):
            opened(path)
