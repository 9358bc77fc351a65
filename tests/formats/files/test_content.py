import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from attacks.onnx_attacks import linear
from attacks.safetensors_attacks import entry, tensors
from attacks.torch_attacks import W, saved

from step_cli.errors import InputError
from step_cli.formats.open import open_checkpoint

CONTENTS = {
    "safetensors": tensors(32, w=entry(0, 32)),
    "torch": saved({"w": W}),
    "onnx": linear().SerializeToString(),
}
SUFFIXES = {
    "m.safetensors": "safetensors",
    "m.pt": "torch",
    "m.PTH": "torch",
    "m.ckpt": "torch",
    "m.bin": "torch",
    "m.th": "torch",
    "m.Pth.tar": "torch",
    "m.onnx": "onnx",
}


def tarred(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def refused(path: Path, data: bytes, words: str) -> None:
    path.write_bytes(data)
    with pytest.raises(InputError, match=words):
        open_checkpoint(path)


@pytest.mark.parametrize("name", SUFFIXES)
@pytest.mark.parametrize("content", CONTENTS)
def test_a_suffix_that_lies_is_told(name: str, content: str, tmp_path: Path) -> None:
    if content != SUFFIXES[name]:
        suffix = name.lower().removeprefix("m")
        words = f"content is {content}, name says {suffix}, rename"
        refused(tmp_path / name, CONTENTS[content], words)


@pytest.mark.parametrize("name", SUFFIXES)
def test_pages_and_pointers_are_told_under_every_suffix(
    name: str, tmp_path: Path
) -> None:
    refused(tmp_path / name, b"", "file is empty")
    refused(tmp_path / name, b"version https://git-lfs.github.com/\n", "git lfs pull")
    refused(tmp_path / name, b"<html><body>404", "looks like HTML")
    refused(tmp_path / name, b'{"error":"gone"}', "looks like JSON")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("m.plan", b"ptrt....", "engines are programs and are not loaded"),
        ("m.engine", b"anything", "engines are programs and are not loaded"),
        ("m.keras", b"PK\x03\x04....", "Keras"),
        ("m.joblib", b"x", "joblib pickle"),
        ("m.pkl", b"\x80\x04.", "pickle"),
        ("m.h5", b"\x89HDF\r\n", "HDF5"),
        ("m.gguf", b"GGUF", "GGUF"),
        ("m.tar", CONTENTS["torch"], "content is torch, name says .tar, rename it"),
        ("__0_0.distcp", CONTENTS["torch"], "its metadata is a pickle; convert"),
        ("__0_0.distcp", b"raw", "dcp_to_torch DIR FILE.pt"),
        (".metadata", b"\x80\x04}.", "a torch distributed checkpoint"),
        ("m.pth.tar", tarred("sys_info", "pickle"), "first versions of torch"),
        ("m.pth.tar", tarred("run/m.pth", "log"), "'run/m.pth', ...*; unpack it"),
        ("m.pt", tarred("run/m.pth"), "a tar archive of files"),
        ("m.tar", tarred("run/m.pth"), "a tar archive of files"),
        ("m.pth.tar", tarred("è" * 200), "a tar archive of files; unpack it"),
        ("m.txt", b"hello", "not a checkpoint; known are .safetensors"),
        ("m", CONTENTS["onnx"], "content is onnx, name says nothing"),
    ],
)
def test_other_kinds_are_refused(
    name: str, data: bytes, words: str, tmp_path: Path
) -> None:
    refused(tmp_path / name, data, words)


def test_a_header_bomb_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    sizes = b",".join([b"1"] * 2_000_000)
    body = b'{"w":{"dtype":"F32","data_offsets":[0,4],"shape":[' + sizes + b"]}}"
    for header in (body, b'{"a":[' + b"[]," * 5_000_000 + b"1]}", b"1," * 45_000_000):
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
        code = (
            "import sys; from pathlib import Path\n"
            "from step_cli.errors import InputError\n"
            "from step_cli.formats.open import open_checkpoint\n"
            "try: open_checkpoint(Path(sys.argv[1]))\n"
            "except InputError: pass\n"
            "else: raise SystemExit('not refused')\n"
            "status = Path('/proc/self/status').read_text()\n"
            "print(status.split('VmHWM:')[1].split()[0])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, check=True
        )
        assert int(done.stdout) < 200 << 10  # KiB, the imports included
