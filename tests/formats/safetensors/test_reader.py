import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from attacks.safetensors_attacks import attacks, entry, file_of, pages, tensors
from safetensors.numpy import save

from step_cli.errors import InputError
from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.open import open_checkpoint
from step_cli.formats.plan import KEY

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "U8": "uint8",
    "BOOL": "bool",
}


def opened(tmp_path: Path, data: bytes, name: str = "m.safetensors") -> Checkpoint:
    path = tmp_path / name
    path.write_bytes(data)
    return open_checkpoint(path)


@pytest.mark.parametrize("name", attacks())
def test_a_header_that_does_not_hold_is_refused_by_name(
    name: str, tmp_path: Path
) -> None:
    data, words = attacks()[name]
    began = time.process_time()
    with pytest.raises(InputError) as caught:
        opened(tmp_path, data)
    assert words in caught.value.message
    assert caught.value.file == str(tmp_path / "m.safetensors")
    assert time.process_time() - began < 5


@pytest.mark.parametrize("name", pages())
def test_what_is_no_safetensors_file_is_told_apart(name: str, tmp_path: Path) -> None:
    data, words = pages()[name]
    with pytest.raises(InputError, match=words):
        opened(tmp_path, data)


def test_what_the_library_wrote_reads_back_mapped_and_read_only(tmp_path: Path) -> None:
    given = {
        "a": np.arange(12, dtype=np.float32).reshape(3, 4),
        "b": np.ones((2, 2), np.float16),
        "n": np.zeros((0, 5), np.int64),
    }
    found = opened(tmp_path, save(given, {"format": "pt"}))
    assert found.format == "safetensors" and found.plan is None
    for tensor in found.tensors:
        np.testing.assert_array_equal(tensor.read(), given[tensor.name])
        assert not tensor.read().flags.writeable
        assert tensor.read().base is not None


@pytest.mark.parametrize("code", DTYPES)
def test_every_dtype_is_viewed_with_its_numpy_name(code: str, tmp_path: Path) -> None:
    dtype = np.dtype(getattr(ml_dtypes, DTYPES[code], DTYPES[code]))
    raw = np.arange(6, dtype=np.uint8).repeat(dtype.itemsize)
    raw = raw % 2 if code == "BOOL" else raw
    header = json.dumps({"w": entry(0, raw.size, [2, 3], code)})
    (tensor,) = opened(tmp_path, file_of(header, raw.tobytes())).tensors
    assert tensor.dtype == DTYPES[code]
    assert tensor.read().dtype == dtype and tensor.read().shape == (2, 3)
    assert tensor.read().tobytes() == raw.tobytes()


def test_types_narrower_than_a_byte_are_listed_but_not_read(tmp_path: Path) -> None:
    data = tensors(4, w=entry(0, 4, [2, 4], "F4"))
    (tensor,) = opened(tmp_path, data).tensors
    assert (tensor.skip, tensor.shape) == ("kind", (2, 4))
    with pytest.raises(InputError, match="packed"):
        tensor.read()


def test_shapes_of_no_elements_are_sound(tmp_path: Path) -> None:
    (tensor,) = opened(tmp_path, tensors(0, w=entry(0, 0, [0, 2**62]))).tensors
    assert tensor.shape == (0, 2**62)
    assert opened(tmp_path, file_of("{}")).tensors == []


def test_the_plan_in_the_metadata_is_read(tmp_path: Path) -> None:
    plan = {
        "schema": "step-cli/plan/1",
        "layers": {"w": {"pattern": "2:4", "axis": 1, "later": 1}},
    }
    header = {"__metadata__": {KEY: json.dumps(plan)}, "w": entry(0, 32)}
    found = opened(tmp_path, file_of(json.dumps(header), bytes(32)))
    assert found.plan is not None
    assert str(found.plan["w"].pattern) == "2:4" and found.plan["w"].axis == 1


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    (tensor,) = opened(tmp_path, tensors(32, w=entry(0, 32))).tensors
    tensor.read()
    with open(tmp_path / "m.safetensors", "ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match="changed during the read"):
        tensor.read()


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "p.safetensors"
    os.mkfifo(pipe)
    path = tmp_path / "s.safetensors"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        for other in (pipe, path):
            with pytest.raises(InputError):
                open_checkpoint(other)
    for device in ("/dev/zero", "/proc/self/status"):
        link = tmp_path / f"{Path(device).name}.safetensors"
        link.symlink_to(device)
        with pytest.raises(InputError, match="not a regular file"):
            open_checkpoint(link)


def test_missing_files_and_dangling_links_say_so(tmp_path: Path) -> None:
    dangling = tmp_path / "d.safetensors"
    dangling.symlink_to("nowhere")
    for path in (dangling, tmp_path / "none.safetensors", tmp_path / "nul\0.onnx"):
        with pytest.raises(InputError, match=r"no such file|null byte"):
            open_checkpoint(path)


def test_reading_imports_neither_torch_nor_onnx(tmp_path: Path) -> None:
    opened(tmp_path, tensors(32, w=entry(0, 32)))
    code = (
        "import sys; from pathlib import Path;"
        "from step_cli.formats.open import open_checkpoint;"
        "open_checkpoint(Path(sys.argv[1])).tensors[0].read();"
        "assert not {'torch', 'onnx', 'safetensors'} & set(sys.modules)"
    )
    path = str(tmp_path / "m.safetensors")
    subprocess.run([sys.executable, "-c", code, path], check=True)
