"""`train --evaluate` of an ONNX file: its metrics are those of the checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_run import CONFIG, NET, set_words, small_config
from torch import Tensor, nn

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import step_cli  # noqa: E402
from step_cli.commands.evaluate import evaluate_checkpoint  # noqa: E402
from step_cli.config.train import TrainConfig  # noqa: E402
from step_cli.data.batch import IGNORED, TensorSplit  # noqa: E402
from step_cli.errors import InputError, MissingError, NonFiniteError, StepError  # noqa: E402
from step_cli.formats.onnx.exporter import export_onnx  # noqa: E402
from step_cli.formats.onnx.inputs import parse_input  # noqa: E402
from step_cli.formats.onnx.session import OrtSession  # noqa: E402
from step_cli.models.onnx_graph import OnnxGraph  # noqa: E402
from step_cli.nm.pattern import NMPattern, NMSpec  # noqa: E402
from step_cli.training.distributed import Processes  # noqa: E402
from step_cli.training.evaluate import evaluate  # noqa: E402

Run = Callable[..., Any]
ALONE = Processes(torch.device("cpu"))
Array = np.ndarray[Any, Any]


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def written(model: nn.Module, path: Path, *inputs: str, vocabulary: int = 9) -> Path:
    """``model`` as ONNX; a size that is a name stays dynamic."""
    taken = [parse_input(text) for text in inputs]
    examples = {}
    for given in taken:
        shape = [{"n": 3, "t": 5, "s": 4}.get(str(size), size) for size in given.shape]
        dtype = getattr(torch, given.dtype)
        values = seeded(*shape)
        if not dtype.is_floating_point:
            values = (values.abs() * 3 + 1).clamp(max=vocabulary - 1)
        examples[given.name] = values.to(dtype)
    matrices = [name for name, value in model.named_parameters() if value.dim() == 2]
    plan = dict.fromkeys(matrices, NMSpec(NMPattern(2, 4), 1))
    export_onnx(model.eval(), taken, examples, plan, path)
    return path


def node(operator: str, *inputs: str, to: str = "y", **attributes: Any) -> Any:
    return helper.make_node(operator, inputs, [to], **attributes)


def graph_of(
    path: Path,
    nodes: Sequence[Any],
    outputs: Sequence[str] = ("y",),
    weights: Mapping[str, Array] | None = None,
    **inputs: tuple[str, Sequence[object]],
) -> Path:
    """A graph of ``nodes``; inputs by their types and shapes."""
    kinds = {name: np.dtype(kind) for name, (kind, _) in inputs.items()}
    value = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [
                value(name, helper.np_dtype_to_tensor_dtype(kinds[name]), shape)
                for name, (_, shape) in inputs.items()
            ],
            [value(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(a, name) for name, a in (weights or {}).items()],
        ),
        opset_imports=[helper.make_opsetid("", 19)],
        ir_version=9,
    )
    onnx.save(model, path)
    return path


# ------------------------------------------------------------------ every kind of task


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Dropout(0.5))
        self.head = nn.Linear(12, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(pixels))
        return scores


class Numbers(Pictures):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 1)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 8), nn.Linear(8, 9)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        kept = self.embed(input_ids) * attention_mask[..., None]
        return {"logits": self.head(kept + kept.mean(1, keepdim=True))}


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = Tokens()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor
    ) -> Tensor:
        read = self.tokens(input_ids, attention_mask)["logits"].mean(1, keepdim=True)
        seen = self.tokens.embed(decoder_input_ids)
        scores: Tensor = self.tokens.head(seen) + read
        return scores


IDS, MASK = "input_ids:int64:{n},t", "attention_mask:int64:{n},t"
DECODER = "decoder_input_ids:int64:{n},s"
TASKS: dict[str, tuple[type[nn.Module], Sequence[str]]] = {
    "classes": (Pictures, ["pixels:float32:{n},6"]),
    "numbers": (Numbers, ["pixels:float32:{n},6"]),
    "tokens": (Tokens, [IDS, MASK]),
    "pairs": (Pairs, [IDS, MASK, DECODER]),
}


def held_out(task: str, count: int = 11) -> TensorSplit:
    """Samples, some of them with padding that is not scored."""
    if task in ("classes", "numbers"):
        labels = seeded(count, seed=2)
        pixels = {"pixels": seeded(count, 6)}
        return TensorSplit(pixels, (labels > 0).long() if task == "classes" else labels)
    ids = torch.arange(count * 5).reshape(count, 5) % 9
    mask = (torch.arange(5)[None] <= torch.arange(count)[:, None] % 5).long()
    if task == "tokens":
        labels = torch.where(mask == 1, (ids + 1) % 9, IGNORED)
        return TensorSplit({"input_ids": ids, "attention_mask": mask}, labels)
    seen = ids[:, :4] * 2 % 9
    labels = torch.where(mask[:, :4] == 1, (seen + 3) % 9, IGNORED)
    inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": seen}
    return TensorSplit(inputs, labels)


def measured(model: nn.Module, split: TensorSplit, size: int = 4) -> dict[str, float]:
    return evaluate(model, split, ALONE, batch_size=size)


@pytest.mark.parametrize("samples", ["n", "3"])
@pytest.mark.parametrize("task", TASKS)
def test_a_graph_has_the_metrics_of_its_model(
    tmp_path: Path, task: str, samples: str
) -> None:
    torch.manual_seed(1)
    kind, inputs = TASKS[task]
    model, split = kind(), held_out(task)
    texts = [text.format(n=samples) for text in inputs]
    graph = OnnxGraph(written(model, tmp_path / "m.onnx", *texts))
    assert graph.batch == (None if samples == "n" else int(samples))
    found, wanted = measured(graph, split), measured(model, split)
    assert found.keys() == wanted.keys()
    assert found == pytest.approx(wanted, abs=1e-4)
    spoilt = {name: values[[*range(1, 11), 0]] for name, values in split.inputs.items()}
    other = measured(graph, TensorSplit(spoilt, split.labels))["eval_loss"]
    assert other != pytest.approx(wanted["eval_loss"], abs=1e-3)


def test_what_fills_up_a_batch_changes_no_range_of_values(tmp_path: Path) -> None:
    # The graph subtracts the smallest value of the whole batch, and divides by the
    # largest, as dynamic quantization does: zeros in the copies would be seen.
    graph = OnnxGraph(
        graph_of(
            tmp_path / "m.onnx",
            [
                node("ReduceMin", "x", to="low", keepdims=0),
                node("ReduceMax", "x", to="high", keepdims=0),
                node("Sub", "x", "low", to="moved"),
                node("Div", "moved", "high", to="y"),
            ],
            x=("float32", [4, 2]),
        )
    )
    x = seeded(6, 2).abs() + 2
    wanted = torch.cat([(x - x.min()) / x.max() for x in (x[:4], x[4:])])
    assert torch.allclose(graph(x), wanted)
    alone = (x[:1] - x[:1].min()) / x[:1].max()
    assert torch.allclose(graph(x[:1]), alone)


# -------------------------------------------------------- the types that graphs come in


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the small net and its fp32 graph, which takes any batch."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(3)
    model = net()
    model.load_state_dict({k: 3 * v for k, v in model.state_dict().items()})
    save_file(model.state_dict(), folder / "m.safetensors")
    written(model, folder / "fp32.onnx", "input:float32:n,1,8,8")
    return folder


def net() -> nn.Module:
    scope: dict[str, Any] = {}
    exec(NET, scope)
    model: nn.Module = scope["build"]()
    return model


def config_of(folder: Path) -> TrainConfig:
    return small_config(folder, "train.batch_size=100")


def metrics(folder: Path, path: Path) -> dict[str, float]:
    return evaluate_checkpoint(config_of(folder), path).metrics


def test_the_command_runs_the_graph(
    step_cli: Run, trained: Path, tmp_path: Path
) -> None:
    net_file = tmp_path / "net.py"
    net_file.write_text(NET)
    words = set_words(net_file)
    asked = [
        step_cli("train", CONFIG, *words, "--evaluate", trained / name, "--json").json
        for name in ("m.safetensors", "fp32.onnx")
    ]
    assert asked[1]["metrics"] == pytest.approx(asked[0]["metrics"], abs=1e-4)
    assert asked[0]["runtime"] is None and "onnxruntime" in asked[1]["runtime"]
    assert asked[0]["density"] == asked[1]["density"] == 1.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.py"]


def test_the_model_of_the_configuration_is_not_needed(
    trained: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path)
    (tmp_path / "net.py").write_text("raise RuntimeError('nobody runs me')")
    assert evaluate_checkpoint(config, trained / "fp32.onnx").ok
    with pytest.raises(InputError, match="nobody runs me"):
        evaluate_checkpoint(config, trained / "m.safetensors")


@pytest.mark.parametrize(("kind", "near"), [("float16", 2e-3), ("bfloat16", 1e-4)])
def test_16_bits(trained: Path, tmp_path: Path, kind: str, near: float) -> None:
    dtype = getattr(torch, kind)
    rounded = {k: v.to(dtype) for k, v in load_file(trained / "m.safetensors").items()}
    model = net().to(dtype)
    model.load_state_dict(rounded)
    path = written(model, tmp_path / "m.onnx", f"input:{kind}:n,1,8,8")
    save_file({k: v.float() for k, v in rounded.items()}, tmp_path / "r.safetensors")
    report = evaluate_checkpoint(config_of(tmp_path), path)
    wanted = metrics(tmp_path, tmp_path / "r.safetensors")
    assert report.metrics == pytest.approx(wanted, abs=near)
    # ONNX Runtime's CPU has no bf16 products: the same rounded weights, in fp32.
    assert ("bf16 as fp32" in str(report.runtime)) == (kind == "bfloat16")


def coded(path: Path, out: Path, dtype: Any) -> dict[str, Array]:
    """A copy of a graph whose matrices are codes that it scales; and what they mean."""
    model, meaning = onnx.load(path), {}
    graph = model.graph
    for place in graph.initializer:
        array = numpy_helper.to_array(place)
        if array.ndim != 2:
            continue
        largest = 127 if dtype == np.int8 else float(ml_dtypes.finfo(dtype).max)
        scale = np.float32(np.abs(array).max() / largest)
        rounded = np.rint(array / scale) if dtype == np.int8 else array / scale
        codes = rounded.astype(dtype)
        name, meaning[place.name] = place.name, codes.astype(np.float32) * scale
        for user in graph.node:
            for at, used in enumerate(user.input):
                user.input[at] = f"{name}_dq" if used == name else used
        place.CopyFrom(numpy_helper.from_array(codes, f"{name}_codes"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        inputs = [f"{name}_codes", f"{name}_scale"]
        graph.node.insert(0, node("DequantizeLinear", *inputs, to=f"{name}_dq"))
    onnx.save(model, out)
    return meaning


@pytest.mark.parametrize(
    "dtype", [np.int8, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
)
def test_codes(trained: Path, tmp_path: Path, dtype: Any) -> None:
    path, weights = tmp_path / "m.onnx", tmp_path / "m.safetensors"
    meaning = coded(trained / "fp32.onnx", path, dtype)
    state = load_file(trained / "m.safetensors")
    assert {*meaning} == {name for name, value in state.items() if value.dim() == 2}
    save_file(state | {k: torch.from_numpy(v) for k, v in meaning.items()}, weights)
    found, wanted = metrics(tmp_path, path), metrics(tmp_path, weights)
    assert found == pytest.approx(wanted, abs=1e-4)
    assert found != metrics(tmp_path, trained / "m.safetensors")


def test_what_onnxruntime_quantizes(trained: Path, tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    path, pruned = tmp_path / "m.onnx", tmp_path / "p.onnx"
    step_cli.prune(trained / "fp32.onnx", pruned)
    quantization.quantize_dynamic(
        pruned, path, weight_type=quantization.QuantType.QInt8
    )
    report = evaluate_checkpoint(config_of(tmp_path), path)
    wanted = metrics(tmp_path, pruned)
    assert report.metrics == pytest.approx(wanted, rel=0.02)
    assert report.metrics != wanted
    assert report.overall_density is not None and 0.4 < report.overall_density <= 0.5


def test_the_density_is_that_of_the_graphs_weights(
    trained: Path, tmp_path: Path
) -> None:
    pruned = tmp_path / "p.onnx"
    step_cli.prune(trained / "fp32.onnx", pruned)
    report = evaluate_checkpoint(config_of(tmp_path), pruned)
    assert (report.density, report.overall_density) == (0.5, 0.5)
    assert report.pattern == "2:4"
    path = tmp_path / "codes.onnx"
    coded(pruned, path, np.int8)
    assert evaluate_checkpoint(config_of(tmp_path), path).overall_density <= 0.5


# --------------------------------------------------------------- what does not fit

DIGITS = ("float32", ["n", 1, 8, 8])
FLAT = node("Flatten", "x", to="f")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"x": ("float32", ["n", 8, 8])}, r"x is tensor\(float\) of \[n, 8, 8\], the"),
        (
            {"x": ("float32", ["n", 1, 9, 8])},
            r"\[n, 1, 9, 8\], the data give float32 of",
        ),
        ({"x": ("int64", ["n", 1, 8, 8])}, r"tensor\(int64\) .* the data give float32"),
        ({"x": DIGITS, "y": DIGITS}, "it takes y, which the data do not give"),
        ({"x": DIGITS, "attention_mask": ("int64", ["n", 1])}, r"attention_mask is"),
    ],
)
def test_other_inputs_are_told(
    step_cli: Run, tmp_path: Path, inputs: dict[str, Any], words: str
) -> None:
    nodes = [FLAT, helper.make_node("Cast", ["f"], ["scores"], to=TensorProto.FLOAT)]
    path = graph_of(tmp_path / "m.onnx", nodes, ["scores"], **inputs)
    with pytest.raises(InputError, match=words) as error:
        evaluate_checkpoint(config_of(tmp_path), path)
    assert error.value.file == str(path) and "\n" not in error.value.message
    outcome = step_cli("train", CONFIG, "--evaluate", path)
    assert outcome.code == 4
    assert outcome.error.startswith(f"error: {path}: the graph does not fit the data")


def test_inputs_of_two_numbers_of_samples_are_refused(tmp_path: Path) -> None:
    path = graph_of(
        tmp_path / "m.onnx", [node("Add", "a", "b")],
        a=("float32", [2, 3]), b=("float32", [1, 3]),
    )  # fmt: skip
    with pytest.raises(InputError, match=r"its inputs are of \[1, 2\] samples"):
        OnnxGraph(path)


def ids_graph(path: Path, kind: str = "int64") -> OnnxGraph:
    """Scores 3 of class 1 and the number of the token for class 0."""
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["f"], to=TensorProto.FLOAT),
        node("Unsqueeze", "f", "axis", to="one"),
        node("Concat", "one", "one", to="two", axis=-1),
        node("Mul", "two", "by"),
    ]
    weights = {"axis": np.array([-1]), "by": np.array([1, -1], np.float32)}
    return OnnxGraph(
        graph_of(path, nodes, weights=weights, input_ids=(kind, ["n", "t"]))
    )


def test_inputs_that_the_graph_lacks_are_told(tmp_path: Path) -> None:
    graph, split = ids_graph(tmp_path / "m.onnx"), held_out("tokens")
    labels = split.labels.clamp(max=1)
    with pytest.raises(
        InputError, match="takes no attention_mask, which the data give"
    ):
        measured(graph, TensorSplit(split.inputs, labels))
    alone = TensorSplit({"input_ids": split.inputs["input_ids"]}, labels)
    assert measured(graph, alone)["eval_loss"] > 0


def test_ids_of_another_width_are_cast_where_that_changes_none(tmp_path: Path) -> None:
    graph, ids = ids_graph(tmp_path / "m.onnx", "int32"), torch.arange(6).reshape(2, 3)
    assert graph(ids)[..., 0].tolist() == ids.tolist()
    with pytest.raises(InputError, match="the data give int64"):
        graph(ids + 2**31)


def test_without_a_mask_all_tokens_count(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, split = Tokens(), held_out("tokens")
    texts = [text.format(n="n") for text in (IDS, MASK)]
    graph = OnnxGraph(written(model, tmp_path / "m.onnx", *texts))
    ids = split.inputs["input_ids"]
    alone = TensorSplit({"input_ids": ids}, split.labels)
    ones = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    wanted = measured(model, TensorSplit(ones, split.labels))
    assert measured(graph, alone) == pytest.approx(wanted, abs=1e-4)


def test_which_output_is_the_scores(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def found(*outputs: str) -> float:
        nodes = [FLAT, node("Slice", "f", "begin", "end", "axis", to="scores")]
        nodes += [
            node("Neg", "scores", to=name) for name in outputs if name != "scores"
        ]
        weights = {"begin": np.array([0]), "end": np.array([10]), "axis": np.array([1])}
        path = graph_of(tmp_path / "m.onnx", nodes, outputs, weights, x=DIGITS)
        return evaluate_checkpoint(config_of(tmp_path), path).metrics["eval_loss"]

    plain, negated = found("scores"), found("other")
    assert plain != negated and not caplog.text
    assert found("scores", "logits") == negated and not caplog.text
    assert found("scores", "other") == plain
    assert "of its outputs scores, other, none called logits, the first" in caplog.text


@pytest.mark.parametrize(
    ("nodes", "value", "kind", "words"),
    [
        ([node("MatMul", "f", "w")], np.nan, NonFiniteError, "NaN or infinity"),
        (
            [node("Nowhere", "f", "w")],
            1,
            InputError,
            "ONNX Runtime refuses it: .*Nowhere",
        ),
        (
            [node("ReduceSum", "f", keepdims=0)],
            1,
            InputError,
            r"it returns \[\] for 100",
        ),
        ([node("Gather", "f", "i", axis=1)], 1, InputError, "does not fit the data"),
        (
            [node("Log", "f", to="l"), node("MatMul", "l", "w")],
            1,
            NonFiniteError,
            "loss",
        ),
    ],
)
def test_graphs_that_cannot_be_measured(
    step_cli: Run,
    tmp_path: Path,
    nodes: list[Any],
    value: float,
    kind: type[StepError],
    words: str,
) -> None:
    weights = {"w": np.full((64, 10), value, np.float32), "i": np.array([99])}
    path = graph_of(tmp_path / "m.onnx", [FLAT, *nodes], weights=weights, x=DIGITS)
    with pytest.raises(kind, match=words) as error:
        evaluate_checkpoint(config_of(tmp_path), path)
    assert error.value.file == str(path) and "\n" not in error.value.message
    outcome = step_cli("train", CONFIG, "--evaluate", path, "--json")
    assert outcome.code == kind.exit_code
    assert outcome.json["error"]["file"] == str(path)


def test_memory_that_runs_out_is_no_misfit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = graph_of(tmp_path / "m.onnx", [FLAT], ["f"], x=DIGITS)

    class Full:
        def run(self, *given: object) -> None:
            raise ValueError("Failed to allocate memory for requested buffer of size 9")

    made = OrtSession.__init__

    def init(self: OrtSession, *given: Any, **named: Any) -> None:
        made(self, *given, **named)
        self._session = Full()

    monkeypatch.setattr(OrtSession, "__init__", init)
    with pytest.raises(MissingError, match="not enough memory"):
        evaluate_checkpoint(config_of(tmp_path), path)
