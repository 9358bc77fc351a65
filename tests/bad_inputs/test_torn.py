"""Section 6.4: torn and damaged files, each cut, flipped or mixed in many places."""

import io
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from attacks.onnx_attacks import linear
from attacks.torch_attacks import saved
from bad_inputs.sound import NAME, plan_of, put, put_json, sharded, sparse
from safetensors.numpy import save

from step_cli.cli import app as cli
from step_cli.formats.checkpoint import NamedTensor
from step_cli.formats.compressed.writer import save_compressed
from step_cli.formats.plan import digests
from step_cli.nm.pattern import NMPattern, NMSpec

PAGE = 4096
PLACES = 64


def code_of(path: Path) -> int:
    out = io.StringIO()
    return cli.run(["verify-nm", str(path), "--json"], out)


def write_good(path: Path, kind: str) -> bytes:
    """A sound file of four pages or more; returns its bytes."""
    big = sparse(64, 128)
    if kind == "compressed":
        tensor = NamedTensor(NAME, "float32", big.shape, lambda: big)
        save_compressed(path, [tensor], {NAME: NMSpec(NMPattern(2, 4), 1)})
    elif kind == "onnx":
        path.write_bytes(linear((128, 64)).SerializeToString())
    elif kind == "torch":
        import torch

        path.write_bytes(saved({NAME: torch.from_numpy(big)}))
    else:
        path.write_bytes(save({NAME: big}))
    return path.read_bytes()


def cuts(data: bytes) -> Iterator[bytes]:
    header = int.from_bytes(data[:8], "little") + 8
    ends = {len(data) * at // PLACES for at in range(PLACES)}
    ends |= {header - 1, header, header + 1, len(data) - 1}
    yield from (data[:end] for end in sorted(ends) if 0 <= end < len(data))


def flips(data: bytes) -> Iterator[bytes]:
    rng = random.Random(0)
    for at in range(PLACES):
        out = bytearray(data)
        out[len(data) * at // PLACES] ^= 1 << rng.randrange(8)
        yield bytes(out)


def pages(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data) - PAGE, PAGE):
        yield data[:at] + bytes(PAGE) + data[at + PAGE :]
    first, second = data[:PAGE], data[PAGE : 2 * PAGE]
    yield second + first + data[2 * PAGE :]


SUFFIX = {"onnx": ".onnx", "torch": ".pt"}


@pytest.mark.parametrize(
    "kind",
    [
        "safetensors",
        "compressed",
        "onnx",
        pytest.param("torch", marks=pytest.mark.slow),
    ],
)
def test_a_torn_or_damaged_file_is_refused_or_judged(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{SUFFIX.get(kind, '.safetensors')}"
    data = write_good(path, kind)
    assert code_of(path) in (0, 1)
    for number, torn in enumerate([*cuts(data), *flips(data), *pages(data)]):
        path.write_bytes(torn)
        code, cut = code_of(path), len(torn) < len(data)
        assert code in ((4,) if cut or kind == "compressed" else (0, 1, 3, 4, 7)), (
            number
        )
        if kind == "torch" and not cut and torn[PAGE:] != data[PAGE:]:
            assert code in (0, 1, 4)  # 0, 1: between the members, where nothing lies


def test_two_generations_of_shards_are_told_apart(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "d")
    files = sorted(folder.glob("*.safetensors"))
    plan = plan_of("a.weight", "b.weight") | {"files": digests(files)}
    put_json(folder / "nm_plan.json", plan)
    assert code_of(folder) == 0
    put(files[1], sparse() * np.float32(2), name="b.weight")
    assert code_of(folder) == 4
