"""Rows P01-P13, and what the rows of reading a CHECKPOINT mean for `prune`."""

import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from bad_inputs import test_onnx, test_reading, test_torch
from bad_inputs.console import Row, Run, promised, state, step_cli
from bad_inputs.sound import broken, put, put_bytes, put_json, sharded, sparse
from safetensors.numpy import load_file, save_file

from step_cli.cli import app as cli
from step_cli.formats.files import patched_copy

READING: dict[str, Callable[[Path], Row]] = {
    **test_reading.ROWS,
    **test_onnx.ROWS,
    **test_torch.ROWS,
}
ROWS = [row for row in READING if "," not in row]  # not those on options of verify-nm


def out_of(path: Path, folder: Path) -> Path:
    return folder / ("out" if path.is_dir() else f"out{path.suffix}")


@pytest.mark.parametrize("row", ROWS)
def test_what_cannot_be_read_cannot_be_pruned(row: str, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    wanted = READING[row](source)
    before = state(source)
    for want in wanted.wants:
        said, out = io.StringIO(), out_of(want.path, tmp_path)
        code = cli.run(["prune", str(want.path), str(out), "--json"], said)
        document = json.loads(said.getvalue())
        assert code == (want.code if want.code > 1 else 0), (want, document)
        assert out.exists() == (code == 0)
        assert document["ok"] is (code == 0)
        if out.is_dir():
            for path in out.iterdir():
                path.unlink()
            out.rmdir()
        for path in tmp_path.glob("out*"):
            path.unlink()
    assert state(source) == before
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


def refused(folder: Path, code: int, words: str, *arguments: object) -> Run:
    """Run; one error line, and nothing in the folder changes."""
    before = state(folder)
    run = step_cli("prune", *arguments)
    assert (run.code, len(run.errors)) == (code, 1), run.err
    assert words in run.errors[0], run.err
    assert state(folder) == before
    promised(run)
    return run


@pytest.fixture
def refused_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., None]:
    """The same in this process, which has imported torch already."""

    def check(code: int, words: str, *arguments: object) -> None:
        before = state(tmp_path)
        assert cli.run(["prune", *map(str, arguments)], io.StringIO()) == code
        (line,) = [x for x in capsys.readouterr().err.splitlines() if "error: " in x]
        assert words in line
        assert state(tmp_path) == before

    return check


def done(*arguments: object) -> dict:
    run = step_cli("prune", *arguments, "--json")
    promised(run)
    assert run.code == 0, run.err
    return run.json


def dense(rows: int = 8, columns: int = 16) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((rows, columns)).astype(np.float32)


def test_P01_nothing_selected(tmp_path: Path) -> None:
    path, out = put(tmp_path / "m.safetensors"), tmp_path / "out.safetensors"
    run = refused(tmp_path, 3, "--include", path, out, "--include", "fc.weigth")
    assert "fc.weight" in run.err  # the nearest name
    odd = put(tmp_path / "odd.safetensors", dense(4, 6))
    run = refused(tmp_path, 3, "skipped: 1 size", odd, out)


def test_P02_the_output_is_no_input(tmp_path: Path) -> None:
    path = put(tmp_path / "m.safetensors", dense())
    folder = sharded(tmp_path / "d")
    os.link(path, tmp_path / "hard.safetensors")
    (tmp_path / "soft.safetensors").symlink_to(path)
    for out in (path, tmp_path / "hard.safetensors", tmp_path / "soft.safetensors"):
        refused(tmp_path, 2, "output is the input", path, out, "--force")
    refused(tmp_path, 2, "output is the input", folder, folder, "--force")
    refused(tmp_path, 2, "output is inside the input", folder, folder / "new")
    refused(tmp_path, 2, "output holds the input", folder, tmp_path, "--force")
    for source, out in ((path, "o.pt"), (path, "o"), (folder, "o.safetensors")):
        words = "OUT keeps the format of CHECKPOINT"
        refused(tmp_path, 2, words, source, tmp_path / out)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_P03_non_finite(bad: float, dtype: type, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    for place in ((0, 0), (3, 7), (7, 15)):
        array = dense()
        array[place] = bad
        path = put(tmp_path / "m.safetensors", array.astype(dtype))
        code = cli.run(["prune", str(path), str(out)], io.StringIO())
        assert code == 7 and not out.exists()
    words = f"fc.weight: NaN or infinity at {list(place)}"
    refused(tmp_path, 7, words, path, out)


def test_P04_equal_magnitudes_keep_the_lower_index(tmp_path: Path) -> None:
    path = put(tmp_path / "m.safetensors", np.tile([1, -1, 1, -1], (8, 4)) * 1.0)
    outs = [tmp_path / f"{n}.safetensors" for n in range(2)]
    for out, threads in zip(outs, ("1", "2"), strict=True):
        run = step_cli("prune", path, out, env={"OMP_NUM_THREADS": threads})
        assert run.code == 0, run.err
    assert outs[0].read_bytes() == outs[1].read_bytes()
    kept = load_file(outs[0])["fc.weight"] != 0
    assert (kept == np.tile([True, True, False, False], (8, 4))).all()


def test_P05_shapes_that_forbid_it_are_skipped_with_a_reason(
    tmp_path: Path, refused_here: Callable[..., None]
) -> None:
    path = tmp_path / "m.safetensors"
    save_file(
        {"a.weight": dense(), "b.weight": dense(8, 6), "c.weight": dense(6, 8)}, path
    )
    found = done(path, tmp_path / "o.safetensors")
    assert [(s["name"], s["reason"]) for s in found["skipped"]] == [
        ("b.weight", "size")
    ]
    said, out = io.StringIO(), tmp_path / "t.safetensors"
    words = ["prune", str(path), str(out), "--transposable", "--json"]
    assert cli.run(words, said) == 0
    found = json.loads(said.getvalue())
    assert [s["name"] for s in found["skipped"]] == ["b.weight", "c.weight"]
    odd = put(tmp_path / "odd.safetensors", dense(6, 8))
    out = tmp_path / "x.safetensors"
    refused_here(3, "skipped: 1 size", odd, out, "--transposable")


def test_P06_what_complies_stays(tmp_path: Path) -> None:
    array = sparse()
    array[0, np.flatnonzero(array[0, :4] == 0)[0]] = -0.0
    path, out = put(tmp_path / "m.safetensors", array), tmp_path / "o.safetensors"
    found = done(path, out)
    assert found["totals"]["changed"] == 0
    assert load_file(out)["fc.weight"].tobytes() == array.tobytes()
    again = tmp_path / "again.safetensors"
    done(out, again)
    assert again.read_bytes() == out.read_bytes()
    shown = step_cli("prune", path, tmp_path / "p.safetensors")
    assert "0 weights changed" in shown.out


def test_P07_all_else_in_a_torch_file_is_carried_over(tmp_path: Path) -> None:
    weight = torch.from_numpy(dense())
    whole = {
        "model": {"fc.weight": weight, "fc.bias": torch.ones(8)},
        "optimizer": {"state": {0: {"exp_avg": weight * 2, "step": 3}}},
        "ema": [weight.clone()],
        "step": 7,
    }
    torch.save(whole, tmp_path / "m.pt")
    found = done(tmp_path / "m.pt", tmp_path / "o.pt")
    assert [layer["name"] for layer in found["layers"]] == ["fc.weight"]
    loaded = torch.load(tmp_path / "o.pt", weights_only=True)
    assert int((loaded["model"]["fc.weight"] != 0).sum()) == weight.numel() // 2
    assert torch.equal(loaded["optimizer"]["state"][0]["exp_avg"], weight * 2)
    assert torch.equal(loaded["ema"][0], weight) and loaded["step"] == 7


def test_P08_one_shard_that_fails_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = sharded(tmp_path / "d"), tmp_path / "out"
    before, real = state(tmp_path), patched_copy._Counted.write

    def write(self: patched_copy._Counted, chunk: patched_copy.Bytes) -> None:
        if "s-2" in str(self._file.name):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        real(self, chunk)

    monkeypatch.setattr(patched_copy._Counted, "write", write)
    assert cli.run(["prune", str(source), str(out)], io.StringIO()) == 5
    assert "s-2.safetensors: disk quota exceeded" in capsys.readouterr().err
    assert state(tmp_path) == before


def test_P09_other_files_are_copied_and_links_out_are_not(tmp_path: Path) -> None:
    source, out = sharded(tmp_path / "d"), tmp_path / "out"
    config = {"model_type": "llama", "sparsity_config": {"format": "2:4"}}
    put_json(source / "config.json", config)
    files = {"tokenizer.json": b"{}", "LICENSE": b"free", "sub/more.txt": b"more"}
    for name, data in files.items():
        put_bytes(source / name, data)
    secret = put_bytes(tmp_path / "secret", b"secret")
    (source / "link").symlink_to(secret)
    (source / "inner").symlink_to("LICENSE")
    run = step_cli("prune", source, out)
    assert run.code == 0 and "link: not copied: link leaves" in run.err
    assert not (out / "link").exists() and (out / "inner").read_bytes() == b"free"
    assert str(secret) not in run.opened
    for name in (*files, "config.json", "model.safetensors.index.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize(
    "dtype",
    [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2],
)
def test_P10_narrow_types_keep_their_bits(dtype: type, tmp_path: Path) -> None:
    array = dense().astype(dtype)
    path, out = tmp_path / "m.safetensors", tmp_path / "o.safetensors"
    codes = {1: "F8_E4M3" if dtype is ml_dtypes.float8_e4m3fn else "F8_E5M2",
             2: "F16" if dtype is np.float16 else "BF16"}  # fmt: skip
    header = json.dumps(
        {"fc.weight": {"dtype": codes[array.itemsize], "shape": list(array.shape),
                       "data_offsets": [0, array.nbytes]}}
    ).encode()  # fmt: skip
    put_bytes(path, len(header).to_bytes(8, "little") + header + array.tobytes())
    assert done(path, out)["totals"]["density"] <= 0.5
    written = np.frombuffer(out.read_bytes()[-array.nbytes :], dtype)
    wide, kept = written.astype(np.float32), written.astype(np.float32) != 0
    assert ((wide != 0).reshape(-1, 4).sum(1) <= 2).all()
    assert written[kept].tobytes() == array.reshape(-1)[kept].tobytes()


def test_P11_what_is_missing(tmp_path: Path, refused_here: Callable[..., None]) -> None:
    path, out = put(tmp_path / "m.safetensors", dense()), tmp_path / "o.safetensors"
    text = put_bytes(tmp_path / "t.txt", b"text")
    for method in ("wanda", "sparsegpt"):
        refused_here(2, "--calibration", path, out, "--method", method)
        words = ["--method", method, "--calibration", text]
        refused_here(2, "--model", path, out, *words)
    refused_here(2, "--model", path, out, "--permute")
    for density in ("0", "1", "-0.1", "1.5", "nan"):
        refused_here(2, "--density", path, out, "--density", density)


NET = """
from torch import nn
def build():
    return nn.Sequential(nn.Linear(16, 8, bias=False))
"""


def test_P12_calibration_samples_that_do_not_serve(
    tmp_path: Path,
    refused_here: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, out = tmp_path / "m.safetensors", tmp_path / "o.safetensors"
    save_file({"0.weight": dense()}, path)
    put_bytes(tmp_path / "net.py", NET.encode())
    words = ["--method", "wanda", "--model", f"{tmp_path}/net.py:build"]
    samples = tmp_path / "s.npz"

    def given(**arrays: np.ndarray) -> list[object]:
        np.savez(samples, **arrays)
        return [path, out, *words, "--calibration", samples]

    x = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)
    refused_here(4, "no calibration sample", *given(input=x[:0]))
    refused_here(4, "does not take the calibration", *given(input=x[:, :7]))
    refused_here(4, "not numbers", *given(input=np.array(["a", "b"])))
    refused_here(4, "takes no 'other'", *given(other=x))
    refused_here(4, "is zero", *given(input=0 * x))
    refused_here(7, "sample 0", *given(input=np.where(x > 1, np.nan, x)))
    x[:, 3] = 0  # a channel that is never active
    words = ["prune", *map(str, given(input=x)), "-v"]
    assert cli.run(words, io.StringIO()) == 0
    assert "1 inputs were never active" in capsys.readouterr().err


def test_P13_a_dry_run_is_as_the_real_one_and_writes_nothing(tmp_path: Path) -> None:
    path, out = put(tmp_path / "m.safetensors", broken()), tmp_path / "o.safetensors"
    before = state(tmp_path)
    dry = done(path, out, "--dry-run")
    assert state(tmp_path) == before
    assert dry["bytes_needed"] > 0 and dry["bytes_free"] > 0
    wet = done(path, out)
    assert {k: v for k, v in dry.items() if k not in ("dry_run", "bytes_free")} == {
        k: v for k, v in wet.items() if k not in ("dry_run", "bytes_free")
    }
    array = broken()
    array[0, 0] = np.nan
    put(path, array)
    refused(tmp_path, 5, "exists", path, out, "--dry-run")
    refused(tmp_path, 7, "NaN", path, tmp_path / "new.safetensors", "--dry-run")
