"""The sound checkpoints that fuzzing starts from: small, and of every kind."""

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
from attacks.onnx_attacks import linear, model
from attacks.torch_attacks import saved
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from step_cli.formats.checkpoint import NamedTensor
from step_cli.formats.compressed.writer import save_compressed
from step_cli.nm.pattern import NMPattern, NMSpec

Files = dict[str, bytes]


@dataclass(frozen=True)
class Good:
    """A checkpoint: its files, the one named to the command, the one to damage."""

    files: Files
    target: str
    victim: str


def sparse(shape: tuple[int, ...], axis: int = 1, seed: int = 0) -> np.ndarray:
    """Random numbers that hold 2:4 along ``axis``."""
    rng = np.random.default_rng(seed)
    groups = rng.normal(size=(*shape[:axis], shape[axis] // 4, 4, *shape[axis + 1 :]))
    rank = rng.random(groups.shape).argsort(axis=axis + 1).argsort(axis=axis + 1)
    return np.where(rank < 2, groups, 0).reshape(shape)


def goods() -> dict[str, list[Good]]:
    """All of them, by what is damaged."""
    plain, packed = _safetensors()
    return {
        "safetensors": [_alone("m.safetensors", data) for data in plain],
        "compressed": [_alone("m.safetensors", data) for data in packed],
        "torch": [_alone("m.pt", data) for data in _torch()],
        "onnx": [_alone("m.onnx", data) for data in _onnx()],
        "external": [_external()],
        "json": _directories(plain[0]),
    }


def _alone(name: str, data: bytes) -> Good:
    return Good({name: data}, name, name)


def _arrays() -> dict[str, np.ndarray[Any, Any]]:
    conv = sparse((4, 8, 3), seed=1).astype(ml_dtypes.bfloat16)
    return {
        "fc.weight": sparse((8, 16)).astype(np.float16),
        "conv.weight": conv,
        "fc.bias": np.arange(8, dtype=np.float32),
        "emb.weight": np.ones((8, 8), np.float32),
    }


PLAN = {"schema": "step-cli/plan/1", "layers": {"fc.weight": {}, "conv.weight": {}}}
for _layer in PLAN["layers"].values():  # type: ignore[attr-defined]
    _layer.update(pattern="2:4", axis=1)


def _safetensors() -> tuple[list[bytes], list[bytes]]:
    arrays = _arrays()
    wide = {"a.weight": sparse((4, 8)), "b.weight": sparse((8, 4), 0).astype("f4")}
    plain = [save(arrays), save(arrays, {"step_cli.plan": json.dumps(PLAN)})]
    pages = {f"{i}.weight": sparse((64, 256), 1, i).astype("f2") for i in range(3)}
    plain.append(save(pages))
    plain.append(save({**wide, "h.0.attn.c_attn.weight": sparse((8, 8), 0)}))
    codes = {
        "fc.weight": (sparse((8, 16)) * 20).astype(np.int8),
        "fc.weight_scale": np.full((8, 1), 0.5, np.float32),
        "conv.weight": sparse((4, 8, 3), 1, 1).astype(ml_dtypes.float8_e4m3fn),
        "conv.weight_scale": np.ones(4, np.float32),
    }
    return plain, [_compressed(arrays), _compressed(codes)]


def _compressed(arrays: dict[str, np.ndarray[Any, Any]]) -> bytes:
    layer = NMSpec(NMPattern(2, 4), 1)
    named = [
        NamedTensor(name, array.dtype.name, array.shape, lambda array=array: array)
        for name, array in arrays.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.safetensors"
        save_compressed(path, named, {"fc.weight": layer, "conv.weight": layer})
        return path.read_bytes()


def _torch() -> list[bytes]:
    weight = torch.from_numpy(sparse((8, 16))).half()
    pages = {"p.weight": torch.from_numpy(sparse((64, 256))).bfloat16()}
    bias = torch.arange(8.0)
    state = {
        "fc.weight": weight,
        "tied.weight": weight,
        "t.weight": weight.T,
        "b": bias,
    }
    legacy = saved(
        {"fc.weight": weight, "b": bias}, _use_new_zipfile_serialization=False
    )
    wrapped = {"state_dict": state, "epoch": 3}
    options = argparse.Namespace(lr=0.1, out=Path("runs"), best=np.float64(0.5))
    columns = {"part.weight": weight.repeat(1, 2)[:, 8:24], "b": bias}
    met = {"net": columns, "args": options, "optimizer": {"state": {0: {"m": bias}}}}
    old = saved(met, _use_new_zipfile_serialization=False)
    return [saved(state), saved(wrapped), legacy, saved(pages), saved(met), old]


def _with_lists(weight: np.ndarray) -> onnx.ModelProto:
    """A sparse initializer behind operators with constant arguments, and a scale."""
    at = np.flatnonzero(weight)
    proto = model(
        [
            helper.make_node("Constant", [], ["k"], value_floats=[0.5, 2, 1, 4]),
            helper.make_node("Reshape", ["w", "shape"], ["r"]),
            helper.make_node("Split", ["r"], ["s", "t"], axis=1, num_outputs=2),
            helper.make_node("Concat", ["t", "s"], ["c"], axis=1),
            helper.make_node("Mul", ["c", "k"], ["m"]),
            helper.make_node("MatMul", ["x", "m"], ["y"]),
        ],
        {"shape": np.array([8, 4])},
    )
    sparse_tensor = helper.make_sparse_tensor(
        numpy_helper.from_array(weight.ravel()[at], "w"),
        numpy_helper.from_array(at.astype(np.int64), "i"),
        [8, 4, 1],
    )
    proto.graph.sparse_initializer.append(sparse_tensor)
    return proto


def _with_body(weight: np.ndarray) -> onnx.ModelProto:
    """A stack of codes that a Scan hands to its body, and a loop around it."""
    info = helper.make_tensor_value_info
    names = [info(name, TensorProto.FLOAT, None) for name in ("s", "e", "o")]
    product = helper.make_node("MatMulInteger", ["s", "e", "", "z"], ["o"])
    body = helper.make_graph([product], "body", names[:2], names[2:])
    scan = helper.make_node("Scan", ["x", "w"], ["y"], body=body, num_scan_inputs=1)
    codes = np.stack([weight, weight]).astype(np.int8)
    return model([scan], {"w": codes, "z": np.array([0, 0, 0, 1], np.int8)})


def _onnx() -> list[bytes]:
    weight = sparse((8, 4), 0).astype(np.float32)
    make: Callable[..., onnx.NodeProto] = helper.make_node
    gemm = model([make("Gemm", ["x", "w"], ["y"], transB=1)], {"w": weight.T.copy()})
    codes = (sparse((8, 8), 0) * 40).astype(np.int8) + np.int8(3)
    quantised = model(
        [
            make("DequantizeLinear", ["q", "s", "z"], ["w"]),
            make("Transpose", ["w"], ["t"], perm=[1, 0]),
            make("MatMul", ["x", "t"], ["y"]),
        ],
        {"q": codes, "s": np.array(0.1, np.float32), "z": np.array(3, np.int8)},
    )
    constant = numpy_helper.from_array(weight.astype(np.float16), "c")
    body = helper.make_graph(
        [
            make("Constant", [], ["k"], value=constant),
            make("MatMul", ["x", "k"], ["r"]),
        ],
        "branch",
        [],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT16, [None, None])],
    )
    branch = make("If", ["cond"], ["y"], then_branch=body, else_branch=body)
    conv = model(
        [make("Conv", ["x", "w"], ["y"])], {"w": sparse((4, 8, 3, 3)).astype("f4")}
    )
    typed = linear()
    values = numpy_helper.to_array(typed.graph.initializer[0]).ravel().tolist()
    typed.graph.initializer[0].ClearField("raw_data")
    typed.graph.initializer[0].float_data.extend(values)
    called = model([make("Lin", ["x", "w"], ["y"], domain="f")], {"w": weight})
    body_of_lin = [make("MatMul", ["a", "b"], ["o"])]
    opsets = [helper.make_opsetid("", 20)]
    called.functions.append(
        helper.make_function("f", "Lin", ["a", "b"], ["o"], body_of_lin, opsets)
    )
    models = [gemm, quantised, model([branch], {"cond": np.array(True)}), conv, typed]
    models += [called, _with_lists(weight), _with_body(weight)]
    return [proto.SerializeToString() for proto in models]


def _external() -> Good:
    proto = linear()
    tensor = proto.graph.initializer[0]
    raw = sparse((8, 4), 0).astype(np.float32).tobytes()
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "m.data"), ("offset", "0"), ("length", len(raw))):
        tensor.external_data.add(key=key, value=str(value))
    files = {"m.onnx": proto.SerializeToString(), "m.data": raw}
    return Good(files, "m.onnx", "m.onnx")


def _directories(weights: bytes) -> list[Good]:
    """Directories and plans whose JSON is damaged, one file of each at a time."""
    names = ["s-1.safetensors", "s-2.safetensors"]
    shards = {
        names[0]: save({"fc.weight": sparse((8, 16)).astype(np.float16)}),
        names[1]: save({"h.0.mlp.c_fc.weight": sparse((8, 8), 0)}),
    }
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {"fc.weight": names[0], "h.0.mlp.c_fc.weight": names[1]},
    }
    config = {"model_type": "gpt2", "auto_map": {"AutoModel": "x--y.z"}, "n": [1, 2]}
    plan = {"schema": "step-cli/plan/1", "layers": {"fc.weight": {"pattern": "2:4"}}}
    plan["layers"]["fc.weight"]["axis"] = 1  # type: ignore[index]
    files = {
        **{f"d/{name}": data for name, data in shards.items()},
        "d/model.safetensors.index.json": json.dumps(index).encode(),
        "d/config.json": json.dumps(config).encode(),
        "d/nm_plan.json": json.dumps(plan).encode(),
    }
    found = [Good(files, "d", name) for name in files if name.endswith(".json")]
    alone = {"m.safetensors": weights, "plan.json": json.dumps(PLAN).encode()}
    return [*found, Good(alone, "m.safetensors", "plan.json")]
