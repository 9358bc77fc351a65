"""Rows R23-R26: ONNX models whose data lies elsewhere, or whose bytes are no model."""

import os
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from attacks.onnx_attacks import linear, nested_graphs, with_external_data
from bad_inputs.console import Row, Want, check
from bad_inputs.sound import put, put_bytes, put_json

Changes = dict[str, str | None]


def external(folder: Path, cases: dict[str, tuple[Changes, str]]) -> list[Want]:
    """The linear model with other external data, each in a directory of its own."""
    (folder / "outside").mkdir()
    put_bytes(folder / "outside" / "secret", bytes(128))
    wants = []
    for name, (changes, words) in cases.items():
        model = folder / name
        model.mkdir()
        os.symlink(folder / "outside" / "secret", model / "link")
        os.symlink(folder / "outside", model / "folder")
        os.symlink("/dev/zero", model / "zero")
        wants.append(Want(with_external_data(model / "m.onnx", changes), 4, words))
    return wants


def r23(folder: Path) -> Row:
    words = "external data outside the model directory"
    locations = {
        "parent": "../outside/secret",
        "absolute": str(folder / "outside" / "secret"),
        "directory-link": "folder/secret",
        "link": "link",
        "device": "/dev/zero",
        "link-to-device": "zero",
    }
    cases: dict[str, tuple[Changes, str]] = {
        name: ({"location": where}, words) for name, where in locations.items()
    }
    cases["NUL"] = ({"location": "m\0.data"}, "null")
    return Row(external(folder, cases), outside=folder / "outside", most_mib=200)


def r24(folder: Path) -> Row:
    (bad,) = external(folder, {"link": ({"location": "link"}, "outside the model dir")})
    cache = folder / "models--a--b"
    snapshot = cache / "snapshots" / "0f1e"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    with_external_data(cache / "blobs" / "m.onnx", {})
    for name in ("m.onnx", "m.data"):
        os.symlink(f"../../blobs/{name}", snapshot / name)
    dense = Want(snapshot / "m.onnx", 1, "expected 2:4")
    return Row([bad, dense], outside=folder / "outside")


def r25(folder: Path) -> Row:
    cases: dict[str, tuple[Changes, str]] = {
        "offset": ({"offset": "1"}, "truncated: needs 129 bytes, m.data has 128"),
        "length": ({"length": "129"}, "needs 128 bytes, its external data has length"),
        "far": ({"offset": str(2**62)}, "truncated: needs"),
        "long": ({"length": str(2**62)}, "has length"),
        "negative": ({"offset": "-1"}, "'-1' is no size"),
        "text": ({"length": "many"}, "'many' is no size"),
        "short": ({"length": "64"}, "needs 128 bytes"),
        "missing": ({"location": "gone"}, "no such file"),
    }
    return Row(external(folder, cases), most_mib=200)


def r26(folder: Path) -> Row:
    no_model = "not an ONNX model"
    wants = [
        Want(put_bytes(folder / f"{at}.onnx", data), 4, no_model)
        for at, data in enumerate(
            [b"\xff" * 100, b"\x08\x0a\x12\x05hello", nested_graphs(5000)]
        )
    ]
    config = {
        "auto_map": {"AutoModel": "x--evil.Model"},
        "sparsity_config": {"format": "evil.module"},
        "model_type": ["gpt2"],
    }
    hostile = put(folder / "d" / "model.safetensors").parent
    put_json(hostile / "config.json", config)
    deep = put(folder / "e" / "model.safetensors").parent
    put_bytes(deep / "config.json", b'{"a":' + b"[" * 200_000)
    return Row([*wants, Want(hostile, 0), Want(deep, 0)])


ROWS: dict[str, Callable[[Path], Row]] = {
    "R23": r23, "R24": r24, "R25": r25, "R26": r26,
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_row(row: str, tmp_path: Path) -> None:
    run = check(tmp_path, ROWS[row](tmp_path))
    if row == "R25":
        assert all(": w: " in line for line in run.errors)  # the tensor is named
    assert not any("evil" in name for name in run.opened)


def test_R26_a_model_that_onnx_itself_wrote_is_read(tmp_path: Path) -> None:
    onnx.save(linear(), tmp_path / "m.onnx")
    assert check(tmp_path, Row([Want(tmp_path / "m.onnx", 1)])).code == 1
