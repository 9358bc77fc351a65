"""Which parameters of a model become N:M, and along which axis."""

from collections.abc import Callable

import pytest
import torch
from plans import plan_for
from torch import nn

from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.nm.selection import Selection
from step_cli.optim.layers import choose_layers, density, param_groups

TWO_FOUR = NMPattern(2, 4)


class Zoo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(10, 8)
        self.linear = nn.Linear(8, 12)
        self.conv1d = nn.Conv1d(8, 4, 3)
        self.conv2d = nn.Conv2d(8, 4, 3)
        self.conv3d = nn.Conv3d(8, 4, 3)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.up = nn.ConvTranspose2d(8, 4, 3)
        self.attention = nn.MultiheadAttention(8, 2)
        self.bn = nn.BatchNorm2d(8)
        self.odd = nn.Linear(6, 4)
        self.recurrent = nn.LSTM(8, 4)
        self.lookup = nn.Embedding(16, 8)


def test_the_zoo_is_sorted_as_the_contract_says() -> None:
    chosen = choose_layers(Zoo(), Selection())
    layers = {layer.tensor.name: layer.spec for layer in chosen.layers}
    assert layers == dict.fromkeys(
        [
            "linear.weight", "conv1d.weight", "conv2d.weight", "conv3d.weight",
            "grouped.weight", "attention.in_proj_weight", "attention.out_proj.weight",
            "recurrent.weight_ih_l0", "recurrent.weight_hh_l0",
        ],
        NMSpec(TWO_FOUR, 1),
    )  # fmt: skip
    skipped = {tensor.name: reason for tensor, reason in chosen.skipped}
    assert skipped["odd.weight"] == skipped["depthwise.weight"] == "size"
    assert skipped["up.weight"] == "consumer"
    assert skipped["tokens.weight"] == skipped["lookup.weight"] == "embedding"
    assert skipped["bn.weight"] == "norm"
    assert skipped["linear.bias"] in {"name", "rank"}
    assert layers.keys() | skipped.keys() == {
        name for name, _ in Zoo().named_parameters()
    }


@pytest.mark.parametrize("name", ["tokens.weight", "lookup.weight", "bn.weight"])
def test_embeddings_and_norms_are_known_by_their_class(name: str) -> None:
    assert name not in plan_for(Zoo(), Selection())


class Misnamed(nn.Module):
    """Modules whose names say something else than their types do."""

    def __init__(self) -> None:
        super().__init__()
        self.embedder = nn.Sequential(nn.Linear(8, 8))
        self.embed = nn.Linear(8, 8)
        self.patch_embed = nn.Conv2d(8, 8, 2)
        self.norm_proj = nn.Linear(8, 8)
        self.ln_out = nn.Linear(8, 1)
        self.weights = nn.Embedding(8, 8)
        self.proj = nn.ModuleList([nn.LayerNorm((8, 8))])
        self.cell = nn.GRUCell(8, 8)
        self.up_proj = nn.ConvTranspose1d(8, 8, 2)


def test_the_type_of_a_module_decides_and_not_its_name() -> None:
    chosen = choose_layers(Misnamed(), Selection())
    assert {layer.tensor.name: layer.spec.axis for layer in chosen.layers} == {
        **dict.fromkeys(["embedder.0.weight", "embed.weight", "patch_embed.weight"], 1),
        **dict.fromkeys(["norm_proj.weight", "ln_out.weight"], 1),
        **dict.fromkeys(["cell.weight_ih", "cell.weight_hh"], 1),
    }
    skipped = {tensor.name: reason for tensor, reason in chosen.skipped}
    assert skipped["weights.weight"] == "embedding"
    assert skipped["proj.0.weight"] == "norm"
    assert skipped["up_proj.weight"] == "consumer"


def test_a_name_alone_decides_where_no_type_is_known() -> None:
    model = nn.ModuleDict({"embed": Own(), "linear": Own()})
    assert list(plan_for(model, Selection())) == ["linear.weight"]


def test_a_table_tied_to_a_linear_stays_dense() -> None:
    model = nn.ModuleDict({"head": nn.Linear(8, 8), "tokens": nn.Embedding(8, 8)})
    model["head"].weight = model["tokens"].weight
    assert plan_for(model, Selection()) == {}
    assert list(plan_for(model, Selection(include=["head.weight"]))) == ["head.weight"]


class Own(nn.Module):
    """A module of the user's that multiplies by, or looks up, its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, 8))


@pytest.mark.parametrize("first", ["embed", "head"])
@pytest.mark.parametrize("name", ["embed", "mixer"])
def test_a_table_of_ones_own_that_is_tied_to_a_linear(first: str, name: str) -> None:
    pair = {name: Own(), "head": nn.Linear(8, 8)}
    order = [name, "head"] if first == "embed" else ["head", name]
    model = nn.ModuleDict({each: pair[each] for each in order})
    model["head"].weight = model[name].weight
    found = [] if name == "embed" else [f"{order[0]}.weight"]
    assert list(plan_for(model, Selection())) == found


def test_uses_along_several_axes_leave_a_weight_dense() -> None:
    model = nn.ModuleDict(
        {"down": nn.Conv1d(8, 8, 2), "up": nn.ConvTranspose1d(8, 8, 2)}
    )
    model["up"].weight = model["down"].weight
    assert plan_for(model, Selection()) == {}


def test_a_module_that_is_used_twice_is_one_layer() -> None:
    layer = nn.Linear(8, 8)
    assert list(plan_for(nn.Sequential(layer, layer), Selection())) == ["0.weight"]


@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_what_torch_computed_weights_from_in_older_ways_stays_dense(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    model = nn.ModuleDict({"embed": wrap(nn.Linear(8, 8)), "fc": nn.Linear(8, 8)})
    chosen = choose_layers(model, Selection())
    assert [layer.tensor.name for layer in chosen.layers] == ["fc.weight"]
    reasons = {t.name: reason for t, reason in chosen.skipped if len(t.shape) > 1}
    assert "reparametrized" in reasons.values() and "embedding" not in reasons.values()


def test_weights_of_eight_bits_are_not_trained() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    codes = torch.ones(8, 8).to(torch.float8_e4m3fn)
    model[0].weight = nn.Parameter(codes, requires_grad=False)
    chosen = choose_layers(model, Selection())
    assert [reason for t, reason in chosen.skipped if t.shape == (8, 8)] == ["dtype"]


def test_integer_codes_in_a_linear_are_no_weight() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    codes = torch.ones(8, 8, dtype=torch.int32)
    model[0].weight = nn.Parameter(codes, requires_grad=False)
    chosen = choose_layers(model, Selection())
    assert [(t.name, reason) for t, reason in chosen.skipped if t.shape == (8, 8)] == [
        ("0.weight", "dtype")
    ]


@pytest.mark.parametrize(("model_type", "axis"), [("gpt_oss", 1), ("mixtral", 2)])
def test_the_configuration_of_transformers_tells_the_axis_of_experts(
    model_type: str, axis: int
) -> None:
    transformers = pytest.importorskip("transformers")

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down_proj = nn.Parameter(torch.ones(2, 8, 8))

    inner = nn.ModuleDict({"experts": Experts()})
    inner.config = transformers.CONFIG_MAPPING[model_type]()
    model = nn.ModuleDict({"wrapped": inner})
    assert plan_for(model, Selection()) == {
        "wrapped.experts.down_proj": NMSpec(TWO_FOUR, axis)
    }


def test_conv1d_of_transformers_stores_its_inputs_first() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model = nn.Sequential(conv1d(12, 8))
    assert plan_for(model, Selection()) == {"0.weight": NMSpec(TWO_FOUR, 0)}


def test_tied_weights_are_one_parameter() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    assert list(plan_for(model, Selection())) == ["0.weight"]


def test_patterns_of_single_layers_come_first() -> None:
    selection = Selection(patterns=[("conv*", NMPattern(1, 8))], exclude=["linear.*"])
    plan = plan_for(Zoo(), selection)
    assert plan["conv2d.weight"].pattern == NMPattern(1, 8)
    assert plan["attention.out_proj.weight"].pattern == TWO_FOUR
    assert "linear.weight" not in plan


def test_what_does_not_divide_into_groups_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("WARNING", "step_cli"):
        plan_for(Zoo(), Selection(exclude=["depthwise.*"]))
    assert "odd.weight stays dense: shape [4, 6] has no whole groups" in caplog.text
    assert "depthwise.weight stays" not in caplog.text


def test_what_is_computed_from_a_parameter_is_said_to_stay_dense(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    nn.utils.parametrizations.weight_norm(model[0])
    with caplog.at_level("WARNING", "step_cli"):
        assert list(plan_for(model, Selection())) == ["1.weight"]
    name = "0.parametrizations.weight.original1"
    assert f"{name} stays dense: its module computes the weight" in caplog.text


def test_a_glob_that_matches_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "step_cli"):
        plan_for(Zoo(), Selection(exclude=["nothing.*"]))
    assert "'nothing.*' matches no tensor" in caplog.text


def test_every_trainable_parameter_is_in_one_group() -> None:
    model = Zoo()
    model.odd.weight.requires_grad_(False)
    groups = param_groups(model, plan_for(model, Selection()))
    names = [name for group in groups for name, _ in group["params"]]  # type: ignore[attr-defined]
    assert sorted(names) == sorted(
        name for name, p in model.named_parameters() if p.requires_grad
    )
    assert [group.get("pattern") for group in groups].count("2:4") == 1


def test_density_counts_planned_weights_only() -> None:
    weights = {"a": torch.tensor([[1.0, 0, 0, 2]]), "b": torch.ones(3)}
    assert density(weights, {"a": NMSpec(TWO_FOUR, 1)}) == 0.5
    assert density(weights, {}) == 1.0


class Experts(nn.Module):
    """Matrices of several experts in one parameter, as no type of module tells."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Module()
        self.experts.up_proj = nn.Parameter(torch.ones(2, 8, 12))
        self.head = nn.Linear(8, 4)


def test_an_axis_that_nothing_settles_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan = plan_for(Experts(), Selection())
    assert plan["experts.up_proj"] == NMSpec(TWO_FOUR, 2)
    assert "experts.up_proj: axis 2 of [2, 8, 12] is assumed" in caplog.text
    assert "head" not in caplog.text
