"""The rows of what torch's exporter does to weights, on one model that has them all."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from torch import Tensor, nn  # noqa: E402

from step_cli.errors import InputError, UsageError  # noqa: E402
from step_cli.formats.onnx.exporter import OnnxExport, export_onnx  # noqa: E402
from step_cli.formats.onnx.inputs import (  # noqa: E402
    GraphInput,
    example_tensors,
    inputs_of_onnx,
)
from step_cli.formats.onnx.publish import OnnxPlace, staged_onnx  # noqa: E402
from step_cli.formats.onnx.session import (  # noqa: E402
    OrtSession,
    difference,
    feeds_of,
    torch_outputs,
)
from step_cli.formats.onnx.weight_uses import nodes_of_weights  # noqa: E402
from step_cli.formats.open import open_checkpoint  # noqa: E402
from step_cli.nm.pattern import (  # noqa: E402
    NMPattern,
    NMSpec,
    Plan,
)
from step_cli.optim.mask import nm_mask  # noqa: E402

TWO_FOUR = NMPattern(2, 4)
INPUTS = [
    GraphInput("ids", "int64", ("batch", "seq")),
    GraphInput("image", "float32", ("batch", 4, 8, 8)),
]
# The model's name of each weight, and its group axis in the graph.
AXES = {
    "up.weight": 0,  # Linear on a 3-D input: transposed
    "twice.weight": 0,  # the same, without a bias, called twice
    "attention.in_proj_weight": 0,
    "attention.out_proj.weight": 1,
    "conv.weight": 1,  # a norm is folded into it
    "grouped.weight": 1,
    "pool.weight": 1,  # Linear on a 2-D input
    "lm_head.weight": 0,  # tied to the embedding: stored twice
}


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.up = nn.Linear(8, 16)
        self.twice = nn.Linear(16, 16, bias=False)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.pool = nn.Linear(8, 8)
        self.down = nn.Linear(16, 8, bias=False)
        self.lm_head = nn.Linear(8, 16, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, ids: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self.up(self.embed(ids)))
        hidden = self.twice(torch.relu(self.twice(hidden)))
        hidden = self.attention(hidden, hidden, hidden)[0]
        pixels = self.grouped(torch.relu(self.norm(self.conv(image))))
        return self.lm_head(self.down(hidden)), self.pool(pixels.mean((2, 3)))


@dataclass(frozen=True)
class Made:
    model: nn.Module
    examples: dict[str, Tensor]
    path: Path
    export: OnnxExport


def sparse_model() -> nn.Module:
    torch.manual_seed(0)
    model = Everything().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and weight.shape[1] % 4 == 0 and "embed" not in name:
                weight.mul_(nm_mask(weight.abs(), TWO_FOUR, 1))
    return model


def plan_of(model: nn.Module) -> Plan:
    return {name: NMSpec(TWO_FOUR, 1) for name in AXES}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    model = sparse_model()
    examples = example_tensors(INPUTS, highest=16)
    return Made(
        model,
        examples,
        path,
        export_onnx(model, INPUTS, examples, plan_of(model), path),
    )


def test_every_weight_keeps_its_name_and_tells_its_axis(made: Made) -> None:
    opened = open_checkpoint(made.path)
    assert opened.plan == {name: NMSpec(TWO_FOUR, axis) for name, axis in AXES.items()}
    weights = {tensor.name: tensor for tensor in opened.tensors if tensor.is_weight}
    for name, axis in AXES.items():
        assert weights[name].axis == axis, name


def test_values_are_those_of_the_module_in_the_direction_of_the_axis(
    made: Made,
) -> None:
    weights = {tensor.name: tensor for tensor in open_checkpoint(made.path).tensors}
    state = made.model.state_dict()
    for name, axis in AXES.items():
        own = state[name].numpy()
        stored = weights[name].read()
        if name == "conv.weight":  # its rows are scaled by the norm that was folded
            assert np.array_equal(stored == 0, own == 0)
        else:
            assert np.array_equal(stored, own if axis == 1 else own.T), name


def test_nodes_are_named_after_modules_and_every_name_is_unique(made: Made) -> None:
    nodes = nodes_of_weights(made.path)
    assert nodes["up.weight"] == ["up"]
    assert nodes["twice.weight"] == ["twice", "twice.2"]
    assert nodes["attention.in_proj_weight"] == ["attention"]
    assert nodes["lm_head.weight"] == ["lm_head"]
    names = [node.name for node in onnx.load(str(made.path)).graph.node]
    assert len(set(names)) == len(names)


def test_onnx_runtime_agrees_with_torch(made: Made) -> None:
    onnx.checker.check_model(str(made.path))
    session = OrtSession(made.path)
    found = session.run(feeds_of(made.examples))
    expected = torch_outputs(made.model, made.examples)
    assert difference(session.outputs, found, expected).within(1e-5)
    spoiled = [expected[0] + 1e-3, *expected[1:]]
    assert not difference(session.outputs, found, spoiled).within(1e-5)


def test_dimensions_stay_dynamic_and_no_source_path_leaks(made: Made) -> None:
    assert inputs_of_onnx(made.path) == INPUTS
    content = made.path.read_bytes()
    for secret in (str(Path(__file__).parent), "pkg.torch", "stack_trace", ".py"):
        assert secret.encode() not in content


def test_nothing_is_said_twice_of_initializers(made: Made) -> None:
    """A quantizer that turns a weight around would leave its old shape behind."""
    graph = onnx.load(made.path).graph
    stored = {tensor.name for tensor in graph.initializer}
    assert stored and stored.isdisjoint(value.name for value in graph.value_info)


def test_the_same_model_gives_the_same_bytes(made: Made, tmp_path: Path) -> None:
    again = tmp_path / "again.onnx"
    export_onnx(made.model, INPUTS, made.examples, plan_of(made.model), again)
    assert again.read_bytes() == made.path.read_bytes()


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x)
        return out


SMALL = [GraphInput("x", "float32", (2, 32))]


def write_small(place: OnnxPlace, seed: int = 0) -> None:
    torch.manual_seed(seed)
    export_onnx(
        Small().eval(),
        SMALL,
        example_tensors(SMALL),
        {},
        place.path,
        data_name=place.data_name,
        largest_file=0,  # as if the weights were above 2 GiB
    )


def names_in(folder: Path) -> list[str]:
    return sorted(
        path.name for path in folder.iterdir() if not path.name.endswith(".lock")
    )


def test_large_weights_go_into_a_data_file_that_moves_with_the_model(
    tmp_path: Path,
) -> None:
    target = tmp_path / "m.onnx"
    for seed in (0, 1, 2):
        with staged_onnx(target, force=seed > 0, inputs=[]) as place:
            write_small(place, seed)
            OrtSession(place.path)
        OrtSession(target)
        data = [name for name in names_in(tmp_path) if name.endswith(".data")]
        assert len(data) == 1, "the old data file is gone"
    (tmp_path / data[0]).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError):
        OrtSession(target)


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 8) * 2


class NoOperator(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(x).real


@pytest.mark.parametrize(
    ("model", "given", "kind", "message"),
    [
        (Small(), GraphInput("y", "float32", (2, 8)), UsageError, "takes no y; .* x"),
        (
            Fixed(),
            GraphInput("x", "float32", ("batch", 8)),
            UsageError,
            "cannot vary|does not let batch vary",
        ),
        (
            NoOperator(),
            GraphInput("x", "float32", (4, 4)),
            InputError,
            "no ONNX form of the operator .*linalg_eig",
        ),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    model: nn.Module,
    given: GraphInput,
    kind: type[Exception],
    message: str,
) -> None:
    with pytest.raises(kind, match=message) as caught:
        export_onnx(
            model.eval(), [given], example_tensors([given]), {}, tmp_path / "m.onnx"
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m.onnx").exists()
    assert capfd.readouterr() == ("", "")


def test_example_tensors_are_seeded_and_fit_their_inputs() -> None:
    inputs = [*INPUTS, GraphInput("attention_mask", "int64", ("batch", "seq"))]
    first, second = (example_tensors(inputs, highest=16) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["ids"].shape == first["attention_mask"].shape == (2, 5)
    assert first["image"].shape == (2, 4, 8, 8)
    assert int(first["ids"].max()) < 16
    assert bool((first["attention_mask"] == 1).all())
