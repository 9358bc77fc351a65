"""`prune --permute`: the same function before pruning, more magnitude after it."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from channels.networks import spread
from commands.prune.small_models import run
from conftest import Outcome
from onnx import helper, numpy_helper
from safetensors.torch import load_file, save_file
from torch import nn

from step_cli.commands.prune import permuted as prune_permuted
from step_cli.commands.prune.tensors import choose_layers
from step_cli.config.commands import PruneConfig
from step_cli.errors import InputError, NothingSelectedError, UsageError
from step_cli.formats.open import open_checkpoint
from step_cli.models.spec import build_model

pytest.importorskip("transformers")

from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

IDS = torch.arange(20).view(2, 10)
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=4,
            bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip


def bert() -> nn.Module:
    config = BertConfig(vocab_size=64, intermediate_size=48, **SMALL)
    return BertForMaskedLM(config)


def llama() -> nn.Module:
    config = LlamaConfig(
        vocab_size=64, intermediate_size=48, num_key_value_heads=2, **SMALL
    )
    return LlamaForCausalLM(config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "gpt2": gpt2,
    "bert": bert,
    "llama": llama,
}


def permuted_state(source: Path, **options: object) -> dict[str, torch.Tensor]:
    """The checkpoint in its new order, not pruned."""
    config = PruneConfig(checkpoint=source, out=source.parent / "x", **options)  # type: ignore[arg-type]
    checkpoint = open_checkpoint(source)
    layers, _ = choose_layers(checkpoint, config)
    found = prune_permuted.permuted(config, checkpoint, layers, None)
    with closing(found.arrays):
        tensors = found.checkpoint.tensors
        return {t.name: torch.from_numpy(t.read().copy()) for t in tensors}


@pytest.mark.parametrize("kind", MODELS)
def test_a_transformer_computes_what_it_did_and_keeps_more(
    kind: str, tmp_path: Path
) -> None:
    source = tmp_path / "model"
    model = spread(MODELS[kind]())
    model.save_pretrained(source)  # type: ignore[operator]
    with torch.no_grad():
        before = model(input_ids=IDS).logits
        state = permuted_state(source)
        moved = [name for name, own in model.state_dict().items() if name in state]
        assert any(not torch.equal(state[n], model.state_dict()[n]) for n in moved)
        model.load_state_dict(state, strict=False)
        after = model(input_ids=IDS).logits
    scale = max(1.0, float(before.abs().max()))
    assert float((before - after).abs().max()) <= 1e-5 * scale
    plain = run(source, tmp_path / "plain")
    report = run(source, tmp_path / "permuted", permute=True)
    assert report.totals.retained > plain.totals.retained + 0.01
    for ours, theirs in zip(report.layers, plain.layers, strict=True):
        assert ours.permuted is True and ours.not_permuted is None
        assert theirs.permuted is None
    written = load_file(tmp_path / "permuted" / "model.safetensors")
    for name, value in load_file(source / "model.safetensors").items():
        assert written[name].shape == value.shape
        if value.dim() == 1:  # moved, not changed
            assert torch.equal(written[name].sort().values, value.sort().values)
    config = "config.json"
    assert (tmp_path / "permuted" / config).read_bytes() == (
        source / config
    ).read_bytes()


def test_what_was_pruned_is_the_permuted_model(tmp_path: Path) -> None:
    source = tmp_path / "model"
    spread(gpt2()).save_pretrained(source)  # type: ignore[operator]
    state = permuted_state(source)
    run(source, tmp_path / "out", permute=True)
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in written.items():
        kept = value != 0
        assert torch.equal(value[kept], state[name][kept]), name


def test_a_second_run_and_another_thread_count_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "model"
    spread(llama()).save_pretrained(source)  # type: ignore[operator]
    run(source, tmp_path / "one", permute=True)
    monkeypatch.setattr("step_cli.nm.threads.workers", lambda: 1)
    run(source, tmp_path / "two", permute=True)
    one, two = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")
    )
    assert one == two
    run(tmp_path / "one", tmp_path / "again", permute=True)  # it complies already
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == one


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_weights_move_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    source = tmp_path / "model"
    spread(llama()).to(dtype).save_pretrained(source)  # type: ignore[operator]
    run(source, tmp_path / "out", permute=True)
    before = load_file(source / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.norm.weight"
    assert after[name].dtype == dtype
    assert not torch.equal(before[name], after[name])
    assert torch.equal(before[name].sort().values, after[name].sort().values)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_calibrated_methods_see_the_permuted_model(method: str, tmp_path: Path) -> None:
    source, samples = tmp_path / "model", tmp_path / "samples.npz"
    spread(gpt2()).save_pretrained(source)  # type: ignore[operator]
    np.savez(samples, input_ids=np.arange(64).reshape(4, 16))
    options = {"method": method, "calibration": samples}
    run(source, tmp_path / "plain", **options)
    report = run(source, tmp_path / "out", permute=True, **options)
    assert all(layer.permuted for layer in report.layers)
    if method == "wanda":  # which keeps weights as they are
        state = permuted_state(source)
        for name, value in load_file(tmp_path / "out" / "model.safetensors").items():
            assert torch.equal(value[value != 0], state[name][value != 0])


def digits(tmp_path: Path) -> tuple[nn.Module, Path]:
    model = spread(build_model("sample:digits-resnet").model)
    path = tmp_path / "net.pt"
    torch.save({"state_dict": model.state_dict(), "step": 7}, path)
    return model, path


def test_a_convolutional_sample_in_a_torch_file(tmp_path: Path) -> None:
    model, source = digits(tmp_path)
    x = torch.randn(2, 1, 8, 8)
    options = {"model": "sample:digits-resnet", "permute": True}
    with torch.no_grad():
        before = model(x)
        model.load_state_dict(permuted_state(source, **options))
        after = model(x)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    plain = run(source, tmp_path / "plain.pt")
    report = run(source, tmp_path / "out.pt", **options)
    assert report.totals.retained > plain.totals.retained
    loaded = torch.load(tmp_path / "out.pt", weights_only=True)
    assert loaded["step"] == 7
    assert "blocks.0.norm1.running_var" in loaded["state_dict"]


def test_code_of_the_user_with_inputs(
    tmp_path: Path, step_cli: Callable[..., Outcome]
) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))\n"
    )
    weights = {
        name: torch.randn(shape) * torch.rand(shape[-1])
        for name, shape in (("0.weight", (32, 8)), ("0.bias", (32,)))
    } | {"2.weight": torch.randn(8, 32) * torch.rand(32), "2.bias": torch.randn(8)}
    source, out = tmp_path / "net.safetensors", tmp_path / "out.safetensors"
    save_file(weights, source)
    words = ["prune", str(source), str(out), "--permute"]
    missing = step_cli(*words)
    assert missing.code == 2 and "--model" in missing.err
    words += ["--model", f"{tmp_path}/net.py:build"]
    unknown = step_cli(*words)
    assert unknown.code == 2 and "--input" in unknown.err
    done = step_cli(*words, "--input", "input:float32:3x8", "--json")
    assert done.code == 0, done.err
    found = {layer["name"]: layer for layer in done.json["layers"]}
    assert found["2.weight"]["permuted"] is True
    assert found["0.weight"]["permuted"] is False
    assert found["0.weight"]["not_permuted"] == "it enters the model"
    shown = step_cli(*words, "--input", "input:float32:3x8", "--force")
    assert "1 of 2 layers permuted" in shown.out
    assert "0.weight: it enters the model" in shown.out


def test_where_nothing_may_move_nothing_is_written(
    tmp_path: Path, step_cli: Callable[..., Outcome]
) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef build(): return nn.Sequential(nn.Linear(8, 8))\n"
    )
    source, out = tmp_path / "net.safetensors", tmp_path / "out.safetensors"
    save_file({"0.weight": torch.randn(8, 8), "0.bias": torch.randn(8)}, source)
    done = step_cli(
        "prune", str(source), str(out), "--permute",
        "--model", f"{tmp_path}/net.py:build", "--input", "input:float32:3x8",
    )  # fmt: skip
    assert done.code == 3
    assert "no layer can be permuted" in done.err and "it enters the model" in done.err
    assert not out.exists()


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    source = tmp_path / "net.safetensors"
    save_file({"a.weight": torch.randn(8, 8)}, source)
    for options, said in (
        ({"permute": True, "transposable": True}, "--transposable"),
        ({"model": "sample:digits-resnet"}, "without --permute"),
        ({"input": ["x:float32:1x8"]}, "--permute only"),
    ):
        with pytest.raises(UsageError, match=said):
            run(source, tmp_path / "out.safetensors", **options)


def test_outputs_that_would_change_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the proof were wrong: one tensor of a chain stays behind."""
    _, source = digits(tmp_path)
    real = prune_permuted.reordered

    def torn(checkpoint: Any, orders: Any, arrays: Any) -> Any:
        assert orders.pop("blocks.1.conv2.weight")
        return real(checkpoint, orders, arrays)

    monkeypatch.setattr(prune_permuted, "reordered", torn)
    with pytest.raises(InputError, match="would change by"):
        run(source, tmp_path / "out.pt", model="sample:digits-resnet", permute=True)
    assert {path.name for path in tmp_path.iterdir()} == {"net.pt"}


def onnx_file(path: Path, *, breaker: str | None = None) -> Path:
    """Conv, BatchNormalization, residual Add, Conv, pooling, Gemm and MatMul."""
    random = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        spread = random.random((1, shape[1], *(1,) * (len(shape) - 2))) * 3
        return (random.standard_normal(shape) * spread).astype(np.float32)

    given = {
        "stem": weight(16, 4, 3, 3), "stem_b": random.random(16, np.float32),
        "scale": random.random(16, np.float32), "shift": random.random(16, np.float32),
        "mean": random.random(16, np.float32), "var": random.random(16, np.float32),
        "inner": weight(16, 16, 1, 1), "fc": weight(24, 16),
        "fc_b": random.random(24, np.float32), "out": weight(24, 8),
        "shape": np.array([0, -1], np.int64),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "stem", "stem_b"], ["a"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["b"]),
        node("Relu", ["b"], ["c"]),
        node("Conv", ["c", "inner"], ["d"]),
        node("Add", ["c", "d"], ["e"]),
        node("GlobalAveragePool", ["e"], ["f"]),
        node("Reshape", ["f", "shape"], ["g"]),
        node("Gemm", ["g", "fc", "fc_b"], ["h"], transB=1),
        node(breaker or "Relu", ["h"], ["i"], **({"axis": 1} if breaker else {})),
        node("MatMul", ["i", "out"], ["y"]),
    ]
    if breaker == "CumSum":
        nodes[8] = node("CumSum", ["h", "one"], ["i"])
        given["one"] = np.array(1, np.int64)
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", 1, ["batch", 4, 6, 6])],
        [helper.make_tensor_value_info("y", 1, ["batch", 8])],
        [numpy_helper.from_array(value, name) for name, value in given.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def outputs(path: Path) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((3, 4, 6, 6)).astype(np.float32)
    return np.asarray(onnxruntime.InferenceSession(str(path)).run(None, {"x": x})[0])


@pytest.mark.parametrize("external", [False, True])
def test_an_onnx_graph_proves_its_own_chains(external: bool, tmp_path: Path) -> None:
    source = onnx_file(tmp_path / "net.onnx")
    if external:
        model = onnx.load(source)
        onnx.save(
            model, source, save_as_external_data=True, size_threshold=99,
            location="net.data",
        )  # fmt: skip
    plain = run(source, tmp_path / "plain.onnx")
    report = run(source, tmp_path / "out.onnx", permute=True)
    found = {layer.name: layer for layer in report.layers}
    assert {name for name, layer in found.items() if layer.permuted} == {
        "inner", "fc", "out",
    }  # fmt: skip
    assert found["stem"].not_permuted == "it enters the model"
    assert report.totals.retained > plain.totals.retained
    # What was written, its zeros filled in again, computes what the source does.
    state = permuted_state(source, permute=True)
    model = onnx.load(tmp_path / "out.onnx")
    for tensor in model.graph.initializer:
        written = numpy_helper.to_array(tensor)
        kept = written != 0
        whole = state[tensor.name].numpy()
        np.testing.assert_array_equal(written[kept], whole[kept])
        tensor.CopyFrom(numpy_helper.from_array(whole, tensor.name))
    onnx.save(model, tmp_path / "whole.onnx")
    before, after = outputs(source), outputs(tmp_path / "whole.onnx")
    assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()


def test_an_operator_of_onnx_that_tells_channels_apart(tmp_path: Path) -> None:
    source = onnx_file(tmp_path / "net.onnx", breaker="CumSum")
    report = run(source, tmp_path / "out.onnx", permute=True)
    found = {layer.name: layer for layer in report.layers}
    said = "CumSum may treat each channel in its own way"
    assert found["out"].not_permuted == said
    assert found["inner"].permuted is True


def test_onnx_outputs_that_would_change_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = onnx_file(tmp_path / "net.onnx")
    real = prune_permuted.reordered

    def torn(checkpoint: Any, orders: Any, arrays: Any) -> Any:
        assert orders.pop("fc_b")
        return real(checkpoint, orders, arrays)

    monkeypatch.setattr(prune_permuted, "reordered", torn)
    with pytest.raises(InputError, match="would change by"):
        run(source, tmp_path / "out.onnx", permute=True)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("kind", ["FLOAT16", "BFLOAT16"])
def test_half_precision_in_onnx(kind: str, tmp_path: Path) -> None:
    code = getattr(onnx.TensorProto, kind)
    half = np.dtype(ml_dtypes.bfloat16 if kind == "BFLOAT16" else np.float16)
    random, node = np.random.default_rng(0), helper.make_node
    given = {n: random.standard_normal((16, 16)).astype(half) for n in ("a", "b")}
    graph = helper.make_graph(
        [node("MatMul", ["x", "a"], ["h"]), node("MatMul", ["h", "b"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", code, [2, 16])],
        [helper.make_tensor_value_info("y", code, [2, 16])],
        [
            helper.make_tensor(name, code, value.shape, value.tobytes(), raw=True)
            for name, value in given.items()
        ],
    )
    source, out = tmp_path / "net.onnx", tmp_path / "out.onnx"
    imports = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), source)
    if kind == "FLOAT16":
        assert run(source, out, permute=True).totals.retained > 0.75
        return
    with pytest.raises(UsageError, match="no bf16 kernels"):
        run(source, out, permute=True)
    assert not out.exists()
    assert run(source, out).ok


def test_tensors_that_are_tied_move_together_or_not_at_all(tmp_path: Path) -> None:
    source = tmp_path / "model"
    model = spread(gpt2())
    model.save_pretrained(source)  # type: ignore[operator]
    state = dict(load_file(source / "model.safetensors"))
    (source / "model.safetensors").unlink()
    state["lm_head.weight"] = state["transformer.wte.weight"]  # one storage, two names
    torch.save(state, source / "pytorch_model.bin")
    report = run(source, tmp_path / "out", permute=True, exclude=["lm_head.*"])
    assert report.ok
    written = torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True)
    one, other = written["lm_head.weight"], written["transformer.wte.weight"]
    assert torch.equal(one, other)
    assert not torch.equal(one, state["lm_head.weight"])
    assert one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def test_layers_of_different_patterns_that_share_channels_stay(tmp_path: Path) -> None:
    source, plan = tmp_path / "model", tmp_path / "plan.json"
    spread(llama()).save_pretrained(source)  # type: ignore[operator]
    names = [t.name for t in open_checkpoint(source).tensors if "proj" in t.name]
    layers = {
        name: {"pattern": "1:4" if "gate" in name else "2:4", "axis": 1}
        for name in names
    }
    plan.write_text(json.dumps({"schema": "step-cli/plan/1", "layers": layers}))
    report = run(source, tmp_path / "out", permute=True, plan=plan)
    found = {layer.name: layer for layer in report.layers}
    assert found["model.layers.0.mlp.down_proj.weight"].permuted
    up = found["model.layers.0.mlp.up_proj.weight"]
    assert up.not_permuted == "layers of different patterns share its channels"


def test_dry_run_permutes_and_writes_nothing(tmp_path: Path) -> None:
    source = tmp_path / "model"
    spread(bert()).save_pretrained(source)  # type: ignore[operator]
    dry = run(source, tmp_path / "out", permute=True, dry_run=True)
    assert list(tmp_path.iterdir()) == [source]
    wet = run(source, tmp_path / "out", permute=True)
    assert dry.totals == wet.totals
    with pytest.raises(NothingSelectedError):
        run(source, tmp_path / "two", permute=True, include=["*query.bias"])
