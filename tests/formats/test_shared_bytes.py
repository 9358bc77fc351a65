"""Bytes of two tensors are not changed for one of them alone."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from step_cli.commands.prune import run as prune
from step_cli.config.commands import PruneConfig
from step_cli.errors import InputError


def refused(source: Path, words: str) -> None:
    out = source.with_name(f"out{source.suffix}")
    with pytest.raises(InputError, match=words):
        prune.run(PruneConfig(checkpoint=source, out=out))
    assert not out.exists()


BIG = torch.arange(1.0, 129).view(16, 8)
VIEWS = {
    "before": (BIG[4:12], BIG[:5]),
    "behind": (BIG[4:12], BIG[11:]),
    "inside": (BIG[4:12], BIG[6:7]),
    "around": (BIG[4:12], BIG),
    "every second": (BIG[4:12], BIG[::2, 0]),
    "transposed": (BIG[:8], BIG[:8].t()),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_of_one_storage_in_a_torch_file(name: str, tmp_path: Path) -> None:
    weight, stays = VIEWS[name]
    torch.save({"a.weight": weight, "b.bias": stays}, tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "shares its data with 'a.weight', which changes")


def test_views_that_only_touch_are_fine(tmp_path: Path) -> None:
    state = {"a.weight": BIG[4:12], "b.bias": BIG[:4], "c.bias": BIG[12:]}
    torch.save(state, tmp_path / "m.pt")
    prune.run(PruneConfig(checkpoint=tmp_path / "m.pt", out=tmp_path / "out.pt"))
    written = torch.load(tmp_path / "out.pt", weights_only=True)
    assert torch.equal(written["b.bias"], BIG[:4])
    assert torch.equal(written["c.bias"], BIG[12:])
    assert int((written["a.weight"] != 0).sum()) == 32


def external(name: str, offset: int, *shape: int) -> TensorProto:
    tensor = TensorProto(
        name=name, dims=shape, data_type=TensorProto.FLOAT,
        data_location=TensorProto.EXTERNAL,
    )  # fmt: skip
    length = 4 * int(np.prod(shape))
    where = {"location": "m.data", "offset": str(offset), "length": str(length)}
    for key, value in where.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_external_data_that_two_onnx_tensors_share(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    (tmp_path / "m.data").write_bytes(weight.tobytes())
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 8])],
        [helper.make_tensor_value_info("y", 1, [1, 8])],
        [external("w", 0, 8, 8), external("b", 32, 8)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / "m.onnx")
    refused(tmp_path / "m.onnx", "shares its data with 'w', which changes")
