"""Layers pruned in the order of the model, against running all of it every time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from step_cli.errors import InputError, NonFiniteError
from step_cli.formats.huggingface.model import without_cache
from step_cli.models.runnable import compute_in_fp32
from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.oneshot import block_by_block
from step_cli.oneshot.block_by_block import prune_in_order
from step_cli.oneshot.blocks import find_block_lists
from step_cli.oneshot.calibration import Calibration
from step_cli.oneshot.forward_pass import run_model
from step_cli.oneshot.inputs import TargetLayer
from step_cli.oneshot.layer_matrix import LayerMatrix
from step_cli.oneshot.sparsegpt import InputHessian, sparsegpt_weight
from step_cli.oneshot.wanda import InputNorms, wanda_keep
from step_cli.optim.mask import nm_mask

TWO_FOUR = NMPattern(2, 4)
Batches = list[dict[str, Tensor]]


def gpt2() -> nn.Module:
    pytest.importorskip("transformers")
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=50, n_positions=16, n_embd=16, n_layer=3, n_head=2,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def bert() -> nn.Module:
    pytest.importorskip("transformers")
    from transformers import BertConfig, BertForSequenceClassification

    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
    return BertForSequenceClassification(BertConfig(**sizes, **layers))


def llama() -> nn.Module:
    pytest.importorskip("transformers")
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def t5() -> nn.Module:
    pytest.importorskip("transformers")
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


class Residual(nn.Module):
    """A small residual network whose blocks stand in a Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 3, padding=1)
        self.stages = nn.Sequential(_Block(8), _Block(8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x).relu()).mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels, channels, 3, padding=1)
        self.two = nn.Conv2d(channels, channels, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.one(x).relu())


def tokens(count: int = 3) -> Batches:
    generator = torch.Generator().manual_seed(1)
    return [
        {"input_ids": torch.randint(1, 50, (2, 12), generator=generator)}
        for _ in range(count)
    ]


def pairs() -> Batches:
    return [
        batch | {"decoder_input_ids": batch["input_ids"][:, :5]} for batch in tokens()
    ]


def images() -> Batches:
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(2, 4, 6, 6, generator=generator)} for _ in range(3)]


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Batches]]] = {
    "gpt2": (gpt2, tokens),
    "bert": (bert, tokens),
    "llama": (llama, tokens),
    "t5": (t5, pairs),
    "residual": (Residual, images),
}


def built(name: str) -> tuple[nn.Module, Batches]:
    torch.manual_seed(0)
    make, data = MODELS[name]
    return without_cache(make().eval()), data()


def watched(model: nn.Module, without: str = "lm_head") -> list[TargetLayer]:
    """Every layer whose inputs and outputs divide by 4."""
    return [
        TargetLayer(f"{name}.weight", module)
        for name, module in model.named_modules()
        if LayerMatrix.fits(module)
        and name != without
        and module.weight.shape[LayerMatrix(module).input_axis] % 4 == 0  # type: ignore[union-attr, index]
    ]


def plan_of(module: nn.Module) -> NMSpec:
    return NMSpec(TWO_FOUR, LayerMatrix(module).input_axis)


def by_wanda(layer: TargetLayer, seen: InputNorms) -> None:
    weight = layer.module.weight
    assert isinstance(weight, nn.Parameter)
    keep = wanda_keep(
        weight.detach(), LayerMatrix(layer.module), seen, plan_of(layer.module)
    )
    weight.data *= torch.from_numpy(keep)


def by_sparsegpt(layer: TargetLayer, seen: InputHessian) -> None:
    weight = layer.module.weight
    assert isinstance(weight, nn.Parameter)
    view = LayerMatrix(layer.module)
    weight.data = sparsegpt_weight(weight.detach(), view, seen, plan_of(layer.module))


METHODS: dict[str, tuple[Callable[[], Any], Callable[[TargetLayer, Any], None]]] = {
    "wanda": (InputNorms, by_wanda),
    "sparsegpt": (InputHessian, by_sparsegpt),
}


def slowly(
    model: nn.Module, batches: Batches, groups: list[list[TargetLayer]], method: str
) -> None:
    """Run the whole model for each layer; prune those of a group together."""
    make, prune = METHODS[method]
    for group in groups:
        seen = [slowly_seen(model, batches, layer.module, make()) for layer in group]
        for layer, found in zip(group, seen, strict=True):
            prune(layer, found)


def slowly_seen(
    model: nn.Module, batches: Batches, module: nn.Module, into: Any
) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor]) -> None:
        into.add(LayerMatrix(module).of_input(args[0]))

    handle = module.register_forward_pre_hook(hook)
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    handle.remove()
    return into


def groups_of(
    model: nn.Module, layers: list[TargetLayer], names: list[str]
) -> list[list[TargetLayer]]:
    """Layers by the module in ``names`` that they are in, in that order."""
    found = [[x for x in layers if x.name.startswith(f"{name}.")] for name in names]
    assert sum(map(len, found)) == len(layers)
    return found


GROUPS = {
    "gpt2": [f"transformer.h.{i}" for i in range(3)],
    "bert": [
        *(f"bert.encoder.layer.{i}" for i in range(2)),
        "bert.pooler",
        "classifier",
    ],
    "llama": [f"model.layers.{i}" for i in range(2)],
    "t5": [f"{part}.block.{i}" for part in ("encoder", "decoder") for i in range(2)],
    "residual": ["stem", "stages.0", "stages.1", "head"],
}


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("name", sorted(MODELS))
def test_it_equals_running_the_whole_model_for_each_block(
    name: str, method: str
) -> None:
    fast, batches = built(name)
    slow, _ = built(name)
    make, prune = METHODS[method]
    layers = watched(fast)
    assert len(layers) >= 4
    prune_in_order(Calibration(fast, batches, make, prune), layers)
    slowly(slow, batches, groups_of(slow, watched(slow), GROUPS[name]), method)
    state = slow.state_dict()
    for layer in layers:
        weight = fast.state_dict()[layer.name]
        axis = LayerMatrix(layer.module).input_axis
        assert weight.ne(0).double().mean() == pytest.approx(0.5)
        assert torch.equal(weight.ne(0), nm_mask(weight.abs(), TWO_FOUR, axis))
        torch.testing.assert_close(weight, state[layer.name], rtol=1e-3, atol=1e-5)


def test_what_a_layer_never_sees_is_refused() -> None:
    model = Residual()
    model.idle = nn.Linear(8, 8)
    with pytest.raises(InputError, match="cannot be observed") as caught:
        prune_in_order(
            Calibration(model, images(), InputNorms, by_wanda), watched(model)
        )
    assert caught.value.tensor == "idle.weight"


def test_activations_that_are_not_finite_are_refused() -> None:
    model, batches = built("residual")
    model.stem.bias.data[0] = torch.inf  # type: ignore[union-attr, index]
    with pytest.raises(NonFiniteError, match="calibration data") as caught:
        prune_in_order(
            Calibration(model, batches, InputNorms, by_wanda), watched(model)
        )
    assert caught.value.tensor == "stages.0.one.weight"


def test_samples_that_do_not_fit_are_refused() -> None:
    model, _ = built("residual")
    with pytest.raises(InputError, match="does not take the calibration samples"):
        prune_in_order(
            Calibration(model, [{"x": torch.ones(1, 3)}], InputNorms, by_wanda),
            watched(model),
        )


@pytest.fixture
def by_parent(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The layers that are pruned by passes of the whole model, each time."""
    calls: list[list[str]] = []
    real = block_by_block._prune_by_parent

    def counting(work: Any, layers: Any) -> None:
        calls.append([layer.name for layer in layers])
        real(work, layers)

    monkeypatch.setattr(block_by_block, "_prune_by_parent", counting)
    return calls


def test_blocks_that_feed_each_other_are_run_apart(by_parent: list[list[str]]) -> None:
    model, batches = built("llama")
    prune_in_order(Calibration(model, batches, InputNorms, by_wanda), watched(model))
    assert by_parent == []
    model, batches = built("residual")
    prune_in_order(Calibration(model, batches, InputNorms, by_wanda), watched(model))
    assert by_parent == [["stem.weight"], ["head.weight"]]


class Borrowing(nn.Module):
    """A module that uses the weight of another, as MobileBERT does."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) @ self.two.weight


def test_a_16_bit_weight_that_another_module_uses_is_refused_with_what_to_do() -> None:
    model, batches = Borrowing().bfloat16(), [{"x": torch.ones(2, 8)}]
    compute_in_fp32(model)
    with pytest.raises(InputError, match=r"dtype.*store the checkpoint in fp32"):
        run_model(model, batches[0])
    run_model(model.float(), batches[0])
    with pytest.raises(InputError) as caught:
        run_model(model, {"x": torch.ones(2, 8, dtype=torch.int64)})
    assert "16-bit" not in str(caught.value)


class Skipping(nn.Module):
    """Blocks in a list that do not simply feed each other."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        first = self.blocks[0](x).relu()
        second = self.blocks[1](first).relu()
        return self.blocks[2](first + second)


def test_blocks_that_do_not_are_pruned_in_order_all_the_same() -> None:
    torch.manual_seed(0)
    fast, slow = Skipping(), Skipping()
    slow.load_state_dict(fast.state_dict())
    batches = [{"x": torch.randn(5, 8)} for _ in range(2)]
    assert len(find_block_lists(fast, [f"blocks.{i}" for i in range(3)])) == 1
    prune_in_order(
        Calibration(fast, batches, InputHessian, by_sparsegpt), watched(fast)
    )
    # Layers of one parent are pruned together.
    slowly(slow, batches, [watched(slow)], "sparsegpt")
    for name, weight in fast.state_dict().items():
        torch.testing.assert_close(weight, slow.state_dict()[name])


def test_inputs_that_are_one_tensor_are_counted_once() -> None:
    model, batches = built("llama")
    made: list[InputNorms] = []

    def make() -> InputNorms:
        made.append(InputNorms())
        return made[-1]

    prune_in_order(Calibration(model, batches, make, by_wanda), watched(model))
    # In each of two blocks: q, k and v; the output; gate and up; down.
    assert len(made) == 2 * 4


def test_blocks_that_work_in_place_leave_what_is_stored_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 8))
    batches = [{"input": torch.randn(5, 8)} for _ in range(2)]
    seen: dict[str, Tensor] = {}

    def note(layer: TargetLayer, found: InputNorms | None) -> None:
        assert found is not None
        seen[layer.name] = found.norms[0]

    prune_in_order(Calibration(model.eval(), batches, InputNorms, note), watched(model))
    with torch.no_grad():
        inner = torch.cat([model[0](batch["input"]).relu() for batch in batches])
    torch.testing.assert_close(seen["2.weight"], inner.norm(dim=0))


class Carrying(nn.Module):
    """Blocks that hand a second value on, as a tensor or in place."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Carrier(in_place=in_place) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        carried = torch.zeros_like(x)
        for block in self.blocks:
            x, carried = block(x, carried)
        return x + carried


class _Carrier(nn.Module):
    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.one = nn.Linear(8, 8)
        self.in_place = in_place

    def forward(self, x: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
        carried = carried.add_(x) if self.in_place else carried + x
        return torch.tanh(self.one(carried)), carried


class Alternating(nn.Module):
    """Two lists whose modules take turns."""

    def __init__(self) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8)) for _ in range(3))
        self.gates = nn.ModuleList(nn.Sequential(nn.Linear(8, 8)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for mixer, gate in zip(self.mixers, self.gates, strict=True):
            x = x + mixer(x)
            x = x * gate(x).sigmoid()
        return x


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: Carrying(in_place=False), [f"blocks.{i}" for i in range(3)]),
        (lambda: Carrying(in_place=True), [f"blocks.{i}" for i in range(3)]),
        (
            Alternating,
            [f"{part}.{i}" for i in range(3) for part in ("mixers", "gates")],
        ),
    ],
)
@pytest.mark.parametrize("method", sorted(METHODS))
def test_blocks_see_all_that_the_pruned_ones_before_them_give(
    method: str, make: Callable[[], nn.Module], names: list[str]
) -> None:
    torch.manual_seed(0)
    fast, slow = make(), make()
    slow.load_state_dict(fast.state_dict())
    batches = [{"x": torch.randn(5, 8)} for _ in range(3)]
    of_method, prune = METHODS[method]
    prune_in_order(Calibration(fast, batches, of_method, prune), watched(fast))
    slowly(slow, batches, groups_of(slow, watched(slow), names), method)
    for name, weight in fast.state_dict().items():
        torch.testing.assert_close(weight, slow.state_dict()[name])


class Repeated(nn.Module):
    """Layers that run several times, as those of ALBERT do."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))])

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = 1 + torch.tanh(3 * self.blocks[0](x))
        return x


@pytest.mark.parametrize("method", sorted(METHODS))
def test_of_layers_that_run_several_times_every_call_counts(method: str) -> None:
    torch.manual_seed(0)
    fast, slow = Repeated(), Repeated()
    slow.load_state_dict(fast.state_dict())
    batches = [{"x": torch.randn(5, 8)} for _ in range(2)]
    of_method, prune = METHODS[method]
    prune_in_order(Calibration(fast, batches, of_method, prune), watched(fast))
    slowly(slow, batches, [watched(slow)], method)
    for name, weight in fast.state_dict().items():
        torch.testing.assert_close(weight, slow.state_dict()[name])


class Masked(nn.Module):
    """Blocks with an argument of their own that is of the model's input alone."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Carrier(in_place=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        first = x
        for number, block in enumerate(self.blocks):
            x, _ = block(x, first * number)
        return x


def test_arguments_that_depend_on_no_block_leave_them_apart(
    by_parent: list[list[str]],
) -> None:
    batches = [{"x": torch.randn(5, 8)} for _ in range(3)]
    for model, apart in ((Masked(), True), (Carrying(in_place=False), False)):
        by_parent.clear()
        layers = watched(model)
        prune_in_order(Calibration(model, batches, InputNorms, by_wanda), layers)
        assert (by_parent == []) == apart
