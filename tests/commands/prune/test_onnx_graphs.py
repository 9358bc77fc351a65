"""`prune` on ONNX graphs: what nothing else uses, and only that."""

import hashlib
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from attacks.onnx_attacks import Arrays, model, with_external_data
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import step_cli
from step_cli.errors import InputError, NothingSelectedError

node = helper.make_node


def dense(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) + 3


def save(path: Path, nodes: list[onnx.NodeProto], arrays: Arrays) -> Path:
    path.write_bytes(model(nodes, arrays).SerializeToString())
    return path


def arrays_of(path: Path) -> Arrays:
    graph = onnx.load(path).graph
    return {one.name: numpy_helper.to_array(one) for one in graph.initializer}


def holds(array: NDArray[np.generic], axis: int) -> bool:
    groups = np.moveaxis(array, axis, -1).reshape(-1, 4)
    return bool(((groups != 0).sum(1) <= 2).all())


TIED = [
    node("Gather", ["table", "x"], ["e"], name="/emb"),
    node("MatMul", ["e", "w"], ["h"]),
    node("Gemm", ["h", "table"], ["y"], transB=1),
]


def test_a_tied_embedding_is_left_alone_unless_it_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before: Arrays = {"table": dense(20, 8), "w": dense(8, 8, seed=1)}
    path = save(tmp_path / "a.onnx", TIED, before)
    with caplog.at_level(logging.WARNING):
        report = step_cli.prune(path, tmp_path / "b.onnx")
    assert [layer.name for layer in report.layers] == ["w"]
    assert [(one.name, one.reason) for one in report.skipped] == [("table", "consumer")]
    assert "table is left alone" in caplog.text and "Gather node '/emb'" in caplog.text
    after = arrays_of(tmp_path / "b.onnx")
    np.testing.assert_array_equal(after["table"], before["table"])
    assert holds(after["w"], 0)
    named = {"include": ["table", "w"], "force": True}
    report = step_cli.prune(path, tmp_path / "b.onnx", **named)
    assert [layer.name for layer in report.layers] == ["table", "w"]
    assert holds(arrays_of(tmp_path / "b.onnx")["table"], 1)
    # The plan of such a file names it as well.
    report = step_cli.prune(tmp_path / "b.onnx", tmp_path / "c.onnx", nm="1:4")
    assert [layer.name for layer in report.layers] == ["table", "w"]


def test_a_wildcard_does_not_name_a_tensor(tmp_path: Path) -> None:
    path = save(tmp_path / "a.onnx", TIED, {"table": dense(20, 8), "w": dense(8, 8)})
    report = step_cli.prune(path, tmp_path / "b.onnx", include=["*"])
    assert [layer.name for layer in report.layers] == ["w"]
    with pytest.raises(NothingSelectedError):
        step_cli.prune(path, tmp_path / "c.onnx", include=["tab*"])


def test_a_weight_summed_over_two_axes_needs_an_axis(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Gemm", ["h", "w"], ["h2"], transB=1),
        node("MatMul", ["h2", "v"], ["y"]),
    ]
    arrays: Arrays = {"v": dense(8, 4), "w": dense(8, 8)}
    path = save(tmp_path / "a.onnx", nodes, arrays)
    with caplog.at_level(logging.WARNING):
        report = step_cli.prune(path, tmp_path / "b.onnx")
    assert [layer.name for layer in report.layers] == ["v"]
    assert caplog.text.count("sum over its axes 0 and 1") == 1
    report = step_cli.prune(path, tmp_path / "c.onnx", axis=["w=1"])
    assert [(one.name, one.axis) for one in report.layers] == [("v", 0), ("w", 1)]
    assert holds(arrays_of(tmp_path / "c.onnx")["w"], 1)


def test_a_weight_that_is_also_used_in_an_unknown_way_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Neg", ["w"], ["n"]),
        node("MatMul", ["h", "n"], ["h2"]),
        node("MatMul", ["h2", "v"], ["y"]),
    ]
    path = save(tmp_path / "a.onnx", nodes, {"v": dense(8, 4), "w": dense(8, 8)})
    with caplog.at_level(logging.WARNING):
        report = step_cli.prune(path, tmp_path / "b.onnx")
    assert [layer.name for layer in report.layers] == ["v"]
    assert "w is left alone" in caplog.text and "Neg node of 'n'" in caplog.text
    report = step_cli.prune(path, tmp_path / "c.onnx", include=["w"])
    assert [layer.name for layer in report.layers] == ["w"]
    (found,) = step_cli.verify(tmp_path / "c.onnx", strict=True).checkpoints
    assert [layer.ok for layer in found.layers] == [True] and not found.ok


def test_a_matrix_of_which_a_part_is_used_is_pruned_as_a_whole(tmp_path: Path) -> None:
    nodes = [
        node("Slice", ["w", "from", "to", "axis"], ["s"]),
        node("MatMul", ["x", "s"], ["y"]),
    ]
    bounds = {"from": np.array([4]), "to": np.array([12]), "axis": np.array([0])}
    path = save(tmp_path / "a.onnx", nodes, {"w": dense(16, 8), **bounds})
    step_cli.prune(path, tmp_path / "b.onnx")
    assert holds(arrays_of(tmp_path / "b.onnx")["w"], 0)
    (found,) = step_cli.verify(tmp_path / "b.onnx").checkpoints
    assert found.ok and found.layers[0].groups == 16
    # Its groups do not stand where those of the whole matrix do.
    bounds["from"], bounds["to"] = np.array([2]), np.array([10])
    path = save(tmp_path / "a.onnx", nodes, {"w": dense(16, 8), **bounds})
    with pytest.raises(NothingSelectedError, match="1 size"):
        step_cli.prune(path, tmp_path / "d.onnx")


def test_what_is_not_stored_row_by_row_is_refused(tmp_path: Path) -> None:
    array = dense(8, 4)
    flat = np.arange(array.size)
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(array.reshape(-1), "w"),
        numpy_helper.from_array(flat, "i"),
        [8, 4],
    )
    proto = model([node("MatMul", ["x", "w"], ["y"])], {})
    proto.graph.sparse_initializer.append(sparse)
    path = tmp_path / "a.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match="not stored in one piece"):
        step_cli.prune(path, tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


def test_transposable_masks_hold_along_the_outputs_of_the_node(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["y"])]
    path = save(tmp_path / "a.onnx", nodes, {"w": dense(3, 8, 12)})
    step_cli.prune(path, tmp_path / "b.onnx", transposable=True)
    after = arrays_of(tmp_path / "b.onnx")["w"]
    assert holds(after, 1) and holds(after, 2)


def test_checksums_of_external_data_are_renewed(tmp_path: Path) -> None:
    path = with_external_data(tmp_path / "a.onnx", {"checksum": "0" * 40})
    step_cli.prune(path, tmp_path / "b.onnx")
    graph = onnx.load(tmp_path / "b.onnx", load_external_data=False).graph
    (tensor,) = (one for one in graph.initializer if one.name == "w")
    entries = {entry.key: entry.value for entry in tensor.external_data}
    data = (tmp_path / entries["location"]).read_bytes()
    assert entries["checksum"] == hashlib.sha1(data).hexdigest()
    assert holds(arrays_of(tmp_path / "b.onnx")["w"], 0)
    # Without one, none is added.
    path = with_external_data(tmp_path / "a.onnx", {})
    step_cli.prune(path, tmp_path / "c.onnx")
    assert b"checksum" not in (tmp_path / "c.onnx").read_bytes()
