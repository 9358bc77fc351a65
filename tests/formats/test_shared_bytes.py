"""Bytes of two tensors are not changed for one of them alone."""

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from commands.prune.test_prune import best
from onnx import TensorProto, helper

from step_cli.commands.prune import run as prune
from step_cli.config.commands import PruneConfig
from step_cli.errors import InputError, NothingSelectedError
from step_cli.formats.checkpoint import NamedTensor, Place
from step_cli.formats.files.mapped_file import map_file
from step_cli.formats.files.sharing import MOST_OPEN, with_sharing


def refused(source: Path, words: str, *named: str) -> None:
    out = source.with_name(f"out{source.suffix}")
    with pytest.raises(InputError, match=words):
        prune.run(PruneConfig(checkpoint=source, out=out, include=list(named)))
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
    words = "shares its data with 'a.weight', which changes"
    refused(tmp_path / "m.pt", words, "a.weight")
    with pytest.raises(NothingSelectedError, match="1 consumer"):
        prune.run(PruneConfig(checkpoint=tmp_path / "m.pt", out=tmp_path / "out.pt"))


def test_two_named_tensors_with_common_elements_are_refused(tmp_path: Path) -> None:
    torch.save({"a.weight": BIG[:8], "b.weight": BIG[4:]}, tmp_path / "m.pt")
    words = "shares its data with 'a.weight'; save them apart"
    refused(tmp_path / "m.pt", words, "a.weight", "b.weight")


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before 1.6"])
def test_columns_of_one_matrix_are_pruned_each(new: bool, tmp_path: Path) -> None:
    wide = torch.rand(24, 40, generator=torch.Generator().manual_seed(0)) + 1
    state = {
        "q.weight": wide[:, :16],
        "k.weight": wide[2:14, 16:32],
        "v.weight": wide[:, 32:36].t(),
        "o.bias": wide[:, 36],
        "even.weight": wide[14:, 16:32:2],
        "odd.weight": wide[14:, 17:32:2],
    }
    path, out = tmp_path / "m.pt", tmp_path / "out.pt"
    torch.save(state, path, _use_new_zipfile_serialization=new)
    prune.run(PruneConfig(checkpoint=path, out=out))
    written = torch.load(out, weights_only=True)
    for name, old in state.items():
        expected = old if name == "o.bias" else torch.from_numpy(best(old.numpy()))
        assert torch.equal(written[name], expected), name
    whole = written["q.weight"].as_strided((24, 40), (40, 1), 0)
    assert torch.equal(whole[:, 37:], wide[:, 37:])
    assert torch.equal(whole[:2, 16:32], wide[:2, 16:32])


def test_very_many_views_of_one_place_are_told_in_time(tmp_path: Path) -> None:
    wide = np.zeros((400, 400), np.float32)
    data = tmp_path / "data"
    data.write_bytes(wide.tobytes())
    file = map_file(data)
    tensors = [
        NamedTensor(
            f"{i}", "float32", (400,), partial(wide.__getitem__, (slice(None), i)),
            among=Place(file, 4 * i, 4 * (400 * 399 + i + 1), (0,), (1600,)),
        )
        for i in range(300)
    ]  # fmt: skip
    few = with_sharing(tensors[:MOST_OPEN])
    assert not any(tensor.shared_with for tensor in few)
    assert all(tensor.shared_with for tensor in with_sharing(tensors))


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
