import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from attacks.onnx_attacks import linear, with_external_data
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

import step_cli
from step_cli.commands.prune import run as prune
from step_cli.config.commands import PruneConfig
from step_cli.errors import (
    NonFiniteError,
    NothingSelectedError,
    OutputError,
    UsageError,
)
from step_cli.formats import rewrite as rewriter
from step_cli.formats.open import open_checkpoint
from step_cli.formats.plan import read_plan
from step_cli.nm.pattern import NMPattern
from step_cli.reports import PruneReport

RNG = np.random.default_rng(0)
Arrays = dict[str, np.ndarray]


def dense(shape: tuple[int, ...], dtype: object = np.float32) -> np.ndarray:
    return (np.random.default_rng(len(shape)).standard_normal(shape) + 3).astype(dtype)  # type: ignore[call-overload, no-any-return]


def weights(dtype: object = np.float32) -> Arrays:
    return {
        "embed.weight": dense((10, 16), dtype),
        "norm.weight": dense((16,), dtype),
        "fc1.weight": dense((32, 16), dtype),
        "fc1.bias": dense((32,), dtype),
        "conv.weight": dense((4, 8, 3, 3), dtype),
    }


def run(source: Path, out: Path, **options: object) -> PruneReport:
    before = snapshot(source)
    try:
        return prune.run(PruneConfig(checkpoint=source, out=out, **options))  # type: ignore[arg-type]
    finally:
        assert snapshot(source) == before


def snapshot(path: Path) -> dict[str, bytes]:
    files = path.rglob("*") if path.is_dir() else [path]
    return {str(file): file.read_bytes() for file in files if file.is_file()}


def holds(array: np.ndarray, n: int = 2, m: int = 4, axis: int = 1) -> bool:
    rows = np.moveaxis(array.astype(np.float64), axis, -1)
    groups = rows.reshape(-1, m)
    return bool(((groups != 0).sum(axis=1) <= n).all())


def best(array: np.ndarray, n: int = 2, m: int = 4, axis: int = 1) -> np.ndarray:
    """The N largest of each group, one group after another."""
    out = array.copy()
    rows = np.moveaxis(out, axis, -1)
    for row in np.ndindex(*rows.shape[:-1]):
        for start in range(0, rows.shape[-1], m):
            group = rows[row][start : start + m]
            size = [abs(float(value)) for value in group]
            for i in sorted(range(m), key=lambda i: (-size[i], i))[n:]:
                group[i] = 0
    return out


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8_e4m3fn"])
def test_safetensors_in_and_out(dtype: str, tmp_path: Path) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    given = weights(kind)
    source, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    plain = {k: torch.from_numpy(v.view(f"u{kind.itemsize}")) for k, v in given.items()}
    torch_kind = getattr(torch, dtype)
    from safetensors.torch import save_file as save_torch

    save_torch({k: v.view(torch_kind) for k, v in plain.items()}, source, {"a": "b"})
    report = run(source, out)
    found = {tensor.name: tensor.read() for tensor in open_checkpoint(out).tensors}
    for name, array in given.items():
        pruned = name in ("fc1.weight", "conv.weight")
        expected = best(array) if pruned else array
        assert found[name].tobytes() == expected.tobytes(), name
    assert [layer.name for layer in report.layers] == ["conv.weight", "fc1.weight"]
    for layer in report.layers:
        old, new = given[layer.name], found[layer.name]
        sums = [np.abs(x.astype(np.float64)).sum() for x in (new, old)]
        assert layer.retained == pytest.approx(sums[0] / sums[1], rel=1e-12)
        assert layer.density == 0.5
    assert {(s.name, s.reason) for s in report.skipped} == {
        ("embed.weight", "embedding"),
        ("norm.weight", "norm"),
        ("fc1.bias", "name"),
    }
    plan = open_checkpoint(out).plan
    assert plan is not None and set(plan) == {"conv.weight", "fc1.weight"}
    assert out.stat().st_mode & 0o777 == 0o666 & ~umask()
    assert names(tmp_path) == ["a.safetensors", "b.safetensors"]


def umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def hf_directory(
    folder: Path, config: dict[str, object], **tensors: np.ndarray
) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_directory_keeps_its_other_files_and_its_config(tmp_path: Path) -> None:
    name = "transformer.h.0.attn.c_attn.weight"
    array = dense((16, 12))
    source = hf_directory(tmp_path / "in", {"model_type": "gpt2"}, **{name: array})
    (source / "tokenizer").mkdir()
    (source / "tokenizer" / "vocab.txt").write_bytes(b"a\0b")
    (source / "empty").touch()
    (source / "outside").symlink_to(sys.executable)
    out = tmp_path / "out"
    (row,) = run(source, out).layers
    assert (row.name, row.axis) == (name, 0)
    assert (out / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert (out / "tokenizer" / "vocab.txt").read_bytes() == b"a\0b"
    assert names(out) == [
        "config.json",
        "empty",
        "model.safetensors",
        "nm_plan.json",
        "tokenizer",
    ]
    found = load_file(out / "model.safetensors")[name]
    assert found.tobytes() == best(array, axis=0).tobytes()
    assert open_checkpoint(out).plan is not None
    again = tmp_path / "again"
    assert run(out, again).totals.changed == 0
    assert (again / "model.safetensors").read_bytes() == (
        out / "model.safetensors"
    ).read_bytes()


def test_shards_are_written_one_by_one_and_untouched_ones_are_copied(
    tmp_path: Path,
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    weight_map = {"a.weight": "s-1.safetensors", "norm.weight": "s-2.safetensors"}
    save_file({"a.weight": dense((4, 8))}, source / "s-1.safetensors")
    save_file({"norm.weight": dense((8,))}, source / "s-2.safetensors")
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    out = tmp_path / "out"
    run(source, out)
    assert (out / index.name).read_bytes() == index.read_bytes()
    assert (out / "s-2.safetensors").read_bytes() == (
        source / "s-2.safetensors"
    ).read_bytes()
    assert holds(load_file(out / "s-1.safetensors")["a.weight"])


def test_a_cache_snapshot_becomes_a_directory_of_files(tmp_path: Path) -> None:
    blobs = hf_directory(tmp_path / "blobs", {}, **{"a.weight": dense((4, 8))})
    snapshot_dir = tmp_path / "snapshots" / "0f1e"
    snapshot_dir.mkdir(parents=True)
    for name in names(blobs):
        (snapshot_dir / name).symlink_to(blobs / name)
    out = tmp_path / "out"
    run(snapshot_dir, out)
    assert not any(path.is_symlink() for path in out.iterdir())
    assert holds(load_file(out / "model.safetensors")["a.weight"])


def test_a_run_keeps_all_but_its_model(tmp_path: Path) -> None:
    source = tmp_path / "run"
    source.mkdir()
    (source / "metrics.jsonl").write_text("{}\n")
    hf_directory(source / "model", {}, **{"a.weight": dense((4, 8))})
    out = tmp_path / "out"
    run(source, out)
    assert names(out) == ["metrics.jsonl", "model"]
    assert open_checkpoint(out).format == "run"
    assert holds(load_file(out / "model" / "model.safetensors")["a.weight"])


def test_torch_files_carry_all_else_over(tmp_path: Path) -> None:
    weight = torch.from_numpy(dense((8, 16)))
    last = torch.from_numpy(dense((4, 8, 3, 3))).to(memory_format=torch.channels_last)
    state = {
        "fc.weight": torch.nn.Parameter(weight),
        "head.weight": weight,  # tied
        "t.weight": torch.from_numpy(dense((8, 12))).t(),
        "conv.weight": last,
        "norm.weight": torch.ones(16),
    }
    whole = {"epoch": 3, "state_dict": state, "optimizer": {"m": torch.ones(8, 16)}}
    source, out = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save(whole, source)
    report = run(source, out)
    found = torch.load(out, weights_only=True)
    assert found["epoch"] == 3
    assert torch.equal(found["optimizer"]["m"], torch.ones(8, 16))
    for name, tensor in state.items():
        old = tensor.detach().numpy()
        new = found["state_dict"][name].detach()
        expected = old if name == "norm.weight" else best(old)
        np.testing.assert_array_equal(new.numpy(), expected)
        assert new.stride() == tensor.stride()
    pointers = {found["state_dict"][name].data_ptr() for name in list(state)[:2]}
    assert len(pointers) == 1
    assert names(tmp_path) == ["a.pt", "b.pt", "b.pt.nm_plan.json"]
    plan = read_plan(tmp_path / "b.pt.nm_plan.json")
    assert set(plan) == set(state) - {"norm.weight"}
    assert report.totals.layers == 3 and len(report.layers) == 4
    with pytest.raises(UsageError, match="select both or neither"):
        run(source, tmp_path / "c.pt", exclude=["head.*"])


def test_onnx_inline_runs_with_the_pruned_weight(tmp_path: Path) -> None:
    proto = linear((8, 4))
    proto.metadata_props.add(key="mine", value="kept")
    source, out = tmp_path / "a.onnx", tmp_path / "b.onnx"
    source.write_bytes(proto.SerializeToString())
    (row,) = run(source, out).layers
    assert (row.name, row.axis) == ("w", 0)
    onnx.checker.check_model(out, full_check=True)
    found = onnx.load(out)
    weight = numpy_helper.to_array(found.graph.initializer[0])
    old = numpy_helper.to_array(proto.graph.initializer[0])
    np.testing.assert_array_equal(weight, best(old, axis=0))
    x = np.ones((1, 8), np.float32)
    (y,) = onnxruntime.InferenceSession(out).run(None, {"x": x})
    np.testing.assert_allclose(y, x @ weight, rtol=1e-6)
    keys = [item.key for item in found.metadata_props]
    assert keys == ["mine", "step_cli.plan"]
    run(out, tmp_path / "c.onnx", nm=NMPattern(1, 4))
    again = onnx.load(tmp_path / "c.onnx").metadata_props
    assert [item.key for item in again] == ["mine", "step_cli.plan"]
    assert "1:4" in again[1].value


@pytest.mark.skipif(shutil.which("polygraphy") is None, reason="needs polygraphy")
def test_nvidia_s_own_check_finds_every_onnx_weight_sparse(tmp_path: Path) -> None:
    node, random = onnx.helper.make_node, np.random.default_rng(0)
    weights = {
        "conv": random.standard_normal((32, 16, 3, 3)),
        "matmul": random.standard_normal((32, 64)),
        "gemm": random.standard_normal((16, 64)),
    }
    graph = onnx.helper.make_graph(
        [
            node("Conv", ["x", "conv"], ["a"], pads=[1, 1, 1, 1]),
            node("GlobalAveragePool", ["a"], ["b"]),
            node("Flatten", ["b"], ["c"]),
            node("MatMul", ["c", "matmul"], ["d"]),
            node("Gemm", ["d", "gemm"], ["y"], transB=1),
        ],
        "net",
        [onnx.helper.make_tensor_value_info("x", 1, [1, 16, 8, 8])],
        [onnx.helper.make_tensor_value_info("y", 1, [1, 16])],
        [numpy_helper.from_array(w.astype(np.float32), k) for k, w in weights.items()],
    )
    imports = [onnx.helper.make_opsetid("", 17)]
    source, out = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=imports, ir_version=8), source
    )
    run(source, out)
    for file, sparse in ((source, 0), (out, 3)):
        command = ["polygraphy", "inspect", "sparsity", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.count("Found sparse tensor") == sparse, done.stdout


def test_onnx_data_files_are_written_under_names_of_their_own(tmp_path: Path) -> None:
    source = with_external_data(tmp_path / "a.onnx", {})
    out = tmp_path / "a much longer name, so that every length around it grows.onnx"
    run(source, out)
    onnx.checker.check_model(out, full_check=True)
    assert names(tmp_path) == sorted([out.name, f"{out.name}.data", "a.onnx", "m.data"])
    first = numpy_helper.to_array(onnx.load(out).graph.initializer[0])
    assert holds(first, axis=0)
    run(source, out, force=True, nm=NMPattern(1, 4))
    assert names(tmp_path) == sorted(
        [out.name, f"{out.name}.1.data", "a.onnx", "m.data"]
    )
    second = numpy_helper.to_array(onnx.load(out).graph.initializer[0])
    assert holds(second, 1, axis=0)
    run(source, tmp_path / "short.onnx")
    (tmp_path / "taken.onnx.data").touch()
    with pytest.raises(OutputError, match="exists"):
        run(source, tmp_path / "taken.onnx")
    assert not (tmp_path / "taken.onnx").exists()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    save_file(weights(), path)
    return path


def test_the_plan_decides_and_options_override_it(source: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    layers = {
        "fc1.weight": {"pattern": "4:4", "axis": 1},
        "conv.weight": {"pattern": "1:2", "axis": 0},
    }
    plan.write_text(json.dumps({"schema": "step-cli/plan/1", "layers": layers}))
    out = tmp_path / "b.safetensors"
    report = run(source, out, plan=plan)
    patterns = {row.name: (row.pattern, row.axis, row.density) for row in report.layers}
    assert patterns == {
        "fc1.weight": ("4:4", 1, 1.0),
        "conv.weight": ("1:2", 0, 0.5),
    }
    report = run(out, tmp_path / "c.safetensors", exclude=["fc1.*"])
    assert [(row.name, row.changed) for row in report.layers] == [("conv.weight", 0)]
    report = run(out, tmp_path / "d.safetensors", nm=NMPattern(1, 4))
    assert {row.pattern for row in report.layers} == {"1:4"}
    report = run(source, tmp_path / "e.safetensors", axis=[("fc1.*", 0)])
    assert {row.name: row.axis for row in report.layers}["fc1.weight"] == 0


def test_random_is_the_same_for_the_same_seed(source: Path, tmp_path: Path) -> None:
    outs = [tmp_path / f"{i}.safetensors" for i in range(4)]
    for out, seed in zip(outs, (0, 0, 1), strict=False):
        run(source, out, method="random", seed=seed)
    run(source, outs[3])
    bytes_of = [out.read_bytes() for out in outs]
    assert bytes_of[0] == bytes_of[1]
    assert len(set(bytes_of)) == 3
    assert holds(load_file(outs[2])["fc1.weight"])


def test_a_dry_run_says_the_same_and_writes_nothing(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "b.safetensors"
    said = run(source, out, dry_run=True)
    assert names(tmp_path) == ["a.safetensors"]
    done = run(source, out)
    assert said.layers == done.layers and said.totals == done.totals
    assert said.bytes_needed == source.stat().st_size and said.bytes_free > 0


def test_nothing_to_prune_is_an_error_and_writes_nothing(
    source: Path, tmp_path: Path
) -> None:
    with pytest.raises(NothingSelectedError, match="nearest"):
        run(source, tmp_path / "b.safetensors", include=["nope*"])
    with pytest.raises(NothingSelectedError, match="2 size"):
        run(source, tmp_path / "b.safetensors", nm=NMPattern(2, 7))
    assert names(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (15, 7), (31, 15)])
def test_non_finite_weights_are_refused_and_nothing_is_left(
    value: float, place: tuple[int, int], tmp_path: Path
) -> None:
    source, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    given = weights()
    given["fc1.weight"][place] = value
    given["embed.weight"][0, 0] = np.nan  # not selected, so nobody minds
    save_file(given, source)
    out.write_bytes(b"old")
    with pytest.raises(NonFiniteError, match=rf"\[{place[0]}, {place[1]}\]") as caught:
        run(source, out, force=True)
    assert caught.value.tensor == "fc1.weight"
    assert caught.value.file == str(source)
    assert out.read_bytes() == b"old"
    assert names(tmp_path) == ["a.safetensors", "b.safetensors"]
    run(source, out, force=True, exclude=["fc1.*"])


def test_the_output_is_judged_before_any_work(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "b.safetensors"
    out.touch()
    cases: list[tuple[Path, type[Exception], str, bool]] = [
        (out, OutputError, "exists, use --force", False),
        (source, UsageError, "output is the input", True),
        (tmp_path / "b.pt", UsageError, "OUT keeps the format", False),
        (tmp_path / "b", UsageError, "OUT keeps the format", False),
        (tmp_path / "none" / "b.safetensors", OutputError, "no such directory", False),
    ]
    for target, kind, words, force in cases:
        with pytest.raises(kind, match=words):
            run(source, target, force=force)
    folder = hf_directory(tmp_path / "hf", {}, **{"a.weight": dense((4, 8))})
    for inside in (folder, folder / "x"):
        with pytest.raises(UsageError, match="output is"):
            run(folder, inside, force=True)


def test_a_head_is_pruned_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "a.safetensors"
    save_file({"lm_head.weight": dense((8, 8)), "a.weight": dense((8, 8))}, source)
    run(source, tmp_path / "b.safetensors")
    assert [r.getMessage() for r in caplog.records if "output head" in r.getMessage()]
    assert "a.weight" not in caplog.text


def test_a_byte_that_flips_on_the_way_is_found(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rewriter.rewrite_safetensors

    def damaging(file: object, path: Path, *rest: object) -> None:
        real(file, path, *rest)  # type: ignore[arg-type]
        data = bytearray(path.read_bytes())
        zeros = np.flatnonzero(np.frombuffer(data[-600:], np.float32) == 0)
        data[len(data) - 600 + 4 * int(zeros[0]) + 3] = 0x40
        path.write_bytes(data)

    monkeypatch.setattr(rewriter, "rewrite_safetensors", damaging)
    with pytest.raises(OutputError, match="does not read back"):
        run(source, tmp_path / "b.safetensors")
    assert names(tmp_path) == ["a.safetensors"]


def command(*arguments: object) -> list[str]:
    words = [str(argument) for argument in arguments]
    return [sys.executable, "-m", "step_cli", "prune", *words]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_full_disk_leaves_the_old_output(
    share: float, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "b.safetensors"
    out.write_bytes(b"old")
    limit = int(source.stat().st_size * share)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        command(source, out, "--force"), capture_output=True, preexec_fn=limited
    )
    assert done.returncode == 5, done.stderr
    assert done.stderr.count(b"error: ") == 1 and b"Traceback" not in done.stderr
    assert out.read_bytes() == b"old"
    assert names(tmp_path) == ["a.safetensors", "b.safetensors"]


def test_killed_at_any_rename_it_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace")
    source = hf_directory(tmp_path / "in", {}, **{"a.weight": dense((4, 8))})
    out, good = tmp_path / "out", tmp_path / "good"
    run(source, good)
    hf_directory(out, {"old": True}, **{"a.weight": dense((4, 8))})
    old = snapshot_of(out)
    calls = "rename,renameat,renameat2"
    inject = f"inject={calls}:signal=KILL:when=1"
    traced = [strace, "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", "-e"]
    subprocess.run([*traced, inject, *command(source, out, "--force")], check=False)
    assert snapshot_of(out) in (old, snapshot_of(good))
    run(source, out, force=True)
    assert snapshot_of(out) == snapshot_of(good)
    assert names(tmp_path) == ["good", "in", "out"]


def snapshot_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_command_prints_a_table_or_one_document(
    source: Path, tmp_path: Path, step_cli: Callable[..., object]
) -> None:
    out = tmp_path / "b.safetensors"
    shown = step_cli("prune", source, out)
    assert shown.code == 0 and "fc1.weight" in shown.out  # type: ignore[attr-defined]
    document = step_cli("prune", source, out, "--json", "--force").json  # type: ignore[attr-defined]
    assert document["schema"] == "step-cli/prune/1" and document["ok"] is True
    assert document["output"] == str(out)
    wanted = {"name", "pattern", "axis", "shape", "density", "retained"}
    assert wanted <= set(document["layers"][0])
    again = step_cli("prune", source, out)
    assert again.code == 5 and "--force" in again.error  # type: ignore[attr-defined]


def test_from_python_it_returns_the_report(tmp_path: Path) -> None:
    source, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({"fc.weight": dense((8, 16))}, source)
    report = step_cli.prune(str(source), str(out), nm="1:4", dry_run=True)
    assert report.dry_run and not out.exists()
    report = step_cli.prune(source, out, nm="1:4")
    assert (report.layers[0].pattern, report.totals.density) == ("1:4", 0.25)
    assert step_cli.verify(out).ok
    with pytest.raises(OutputError, match="--force"):
        step_cli.prune(source, out)
    with pytest.raises(ValueError, match="unknown_option"):
        step_cli.prune(source, out, unknown_option=1)
    with pytest.raises(NothingSelectedError):
        step_cli.prune(source, out, exclude=["*"], force=True)


def test_a_plan_of_no_layer_is_said(tmp_path: Path) -> None:
    source, plan = tmp_path / "model.safetensors", tmp_path / "plan.json"
    text = json.dumps({"schema": "step-cli/plan/1", "layers": {}})
    plan.write_text(text)
    weights, out = {"fc.weight": dense((8, 16))}, tmp_path / "b.safetensors"
    words = "the plan names no layer; give another with --plan"

    def said(path: Path, **options: Any) -> None:
        report = step_cli.verify(path, **options)
        assert report.exit_code == 3
        (error,) = report.problems
        assert words in error.message

    save_file(weights, source, {"step_cli.plan": text})
    said(source)
    said(source, nm="1:4", include=["*"])
    said(tmp_path)  # the directory that it is in
    save_file(weights, source)
    said(source, plan=plan)
    with pytest.raises(NothingSelectedError, match=words):
        step_cli.prune(source, out, plan=plan)
    with pytest.raises(NothingSelectedError, match=words):
        step_cli.export(source, out, to="compressed", plan=plan)
    assert step_cli.verify(source).exit_code == 1
