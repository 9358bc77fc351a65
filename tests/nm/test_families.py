"""What a model's kind says of the group axis: each rule, and what it leaves alone."""

from collections.abc import Sequence

import pytest

from step_cli.nm.families import (
    ModelConfig,
    axis_by_config,
    family_rows,
    misnamed_rows,
    output_axis_by_config,
    reason_by_config,
)
from step_cli.nm.family_table import FAMILIES, Family
from step_cli.nm.misnamed_table import MISNAMED, Misnamed


def config(*model_types: str, hidden: Sequence[int] = ()) -> ModelConfig:
    return ModelConfig(model_types, frozenset(hidden))


def shape_of(family: Family) -> tuple[int, ...]:
    return tuple(range(5, 5 + len(family.stored)))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.module)
def test_each_tensor_of_the_table_under_any_prefix(family: Family) -> None:
    for kind in family.model_types:
        for end in family.tensors:
            for prefix in ("", "a.layers.0."):
                axis = axis_by_config(f"{prefix}{end}", shape_of(family), config(kind))
                assert axis == family.axis, (kind, end)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.module)
def test_no_other_rank_name_or_kind(family: Family) -> None:
    kind, end, shape = family.model_types[0], family.tensors[0], shape_of(family)
    assert axis_by_config(f"x{end}", shape, config(kind)) is None
    assert axis_by_config(f"{end}_bias", shape, config(kind)) is None
    assert axis_by_config(end, (1, 1, 1, *shape), config(kind)) is None
    assert axis_by_config(end, shape, config("bert")) is None
    assert axis_by_config(end, shape, ModelConfig()) is None


def test_conv1d_of_gpt2_and_its_kin() -> None:
    kind = config("vision-encoder-decoder", "vit", "gpt2")
    block = "decoder.transformer.h.3."
    assert axis_by_config(block + "attn.c_attn.weight", (16, 48), kind) == 0
    assert axis_by_config(block + "crossattention.c_attn.weight", (16, 32), kind) == 0
    assert axis_by_config(block + "attn.c_proj.weight", (16, 16), kind) == 0
    assert axis_by_config(block + "mlp.c_proj.weight", (64, 16), kind) == 0
    assert axis_by_config("lm_head.weight", (90, 16), kind) is None
    assert axis_by_config(block + "c_attn.lora_A.weight", (8, 16), kind) is None


def test_a_shape_that_no_conv1d_has_is_left_to_other_evidence() -> None:
    kind = config("gpt2")
    assert axis_by_config("h.0.attn.c_attn.weight", (48, 16), kind) is None
    assert axis_by_config("h.0.mlp.c_fc.weight", (64, 16), kind) is None
    assert axis_by_config("h.0.mlp.c_proj.weight", (16, 64), kind) is None
    assert axis_by_config("h.0.mlp.c_fc.weight", (16, 4), kind) is None
    narrow = config("gpt2", hidden=[16])  # n_inner may be anything
    assert axis_by_config("h.0.mlp.c_fc.weight", (16, 4), narrow) == 0
    assert axis_by_config("h.0.mlp.c_fc.weight", (20, 16), narrow) is None


def test_clvp_has_conv1d_in_its_mlp_only() -> None:
    assert axis_by_config("h.0.mlp.c_proj.weight", (64, 16), config("clvp")) == 0
    assert axis_by_config("h.0.attn.c_proj.weight", (16, 16), config("clvp")) is None


def test_linear_under_the_names_of_gpt2() -> None:
    kind = config("gpt_bigcode")
    assert axis_by_config("transformer.h.0.attn.c_attn.weight", (20, 16), kind) == 1
    assert axis_by_config("transformer.h.0.attn.c_proj.weight", (16, 16), kind) == 1


def test_parts_of_a_model_that_disagree_say_nothing() -> None:
    both = config("gpt2", "gpt_bigcode")
    assert axis_by_config("h.0.attn.c_proj.weight", (16, 16), both) is None


@pytest.mark.parametrize(("kind", "axis"), [("gpt_oss", 1), ("mixtral", 2)])
def test_fused_experts(kind: str, axis: int) -> None:
    name = "model.layers.0.mlp.experts.down_proj"
    assert axis_by_config(name, (4, 8, 8), config(kind)) == axis
    assert axis_by_config(name + "_bias", (4, 8), config(kind)) is None
    assert axis_by_config(name, (8, 8), config(kind)) is None


def test_the_hidden_size_tells_two_layouts_of_qwen3_vl_moe_apart() -> None:
    up, down = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
    for hidden in ([], [16], [16, 24]):  # unknown; as stored; no evidence
        kind = config("qwen3_vl_moe", "qwen3_vl_moe_text", hidden=hidden)
        assert axis_by_config(up, (4, 16, 24), kind) == 1
        assert axis_by_config(down, (4, 12, 16), kind) == 1
    turned = config("qwen3_vl_moe", hidden=[16])
    assert axis_by_config(up, (4, 24, 16), turned) == 2
    assert axis_by_config(down, (4, 16, 12), turned) == 2


@pytest.mark.parametrize(
    ("kind", "name", "shape", "axis"),
    [
        ("gpt2", "h.0.mlp.c_fc.weight", (16, 64), 1),
        ("gpt2", "h.0.mlp.c_fc.weight", (64, 16), None),
        ("gpt_bigcode", "h.0.mlp.c_fc.weight", (64, 16), 0),
        ("gpt_oss", "experts.down_proj", (2, 8, 8), 2),
        ("mixtral", "experts.down_proj", (2, 8, 8), 1),
        ("xlnet", "rel_attn.q", (8, 2, 4), 2),
        ("xlnet", "rel_attn.o", (8, 2, 4), 0),
        ("dbrx", "mlp.w2", (32, 8), 1),
        ("bert", "mlp.w2", (32, 8), None),
    ],
)
def test_the_axis_of_the_outputs(
    kind: str, name: str, shape: tuple[int, ...], axis: int | None
) -> None:
    assert output_axis_by_config(name, shape, config(kind)) == axis


def test_rows_of_the_table_say_what_the_rule_does() -> None:
    rows = {
        (row[0].split(", ")[0], row[1].split(", ")[0]): row for row in family_rows()
    }
    assert len(rows) == len(FAMILIES)
    assert rows["gpt_oss", "experts.gate_up_proj"][2:] == (
        "[E, in, out]",
        1,
        "GptOssExperts",
    )
    assert rows["dbrx", "mlp.w2"][2:4] == ("[E*in, out]", 0)


WHAT_IT_IS = {
    "Linear": (None, 1, 0),
    "Embedding": ("embedding", None, None),
    "Positions": ("embedding", None, None),
    "ConvTranspose1d": ("consumer", 0, 1),
    "ConvTranspose2d": ("consumer", 0, 1),
}


@pytest.mark.parametrize("entry", MISNAMED, ids=lambda entry: entry.owner)
def test_each_module_of_the_table_that_misses_by_name(entry: Misnamed) -> None:
    reason, inputs, outputs = WHAT_IT_IS[entry.module]
    shape = (8, 4, 2, 2)[: entry.rank]
    for kind in (config(known) for known in entry.model_types):
        for end in entry.names:
            name = f"a.layers.0.{end.replace('*', '12')}.weight"
            assert reason_by_config(name, shape, kind) == reason
            assert axis_by_config(name, shape, kind) == inputs
            assert output_axis_by_config(name, shape, kind) == outputs
            for other, size in (
                (f"x{name.removeprefix('a.layers.0.')}", shape),
                (f"{name}_bias", shape),
                (name, (*shape, 1, 1, 1)),
            ):
                assert reason_by_config(other, size, kind) is None
                assert axis_by_config(other, size, kind) is None
            assert reason_by_config(name, shape, config("bert")) is None
            assert axis_by_config(name, shape, config("bert")) is None


def test_a_number_stands_for_a_number_only() -> None:
    kind = config("bark")
    assert reason_by_config("input_embeds_layers.3.weight", (9, 4), kind) == "embedding"
    assert reason_by_config("input_embeds_layers.x.weight", (9, 4), kind) is None


def test_a_window_tells_transposed_convolutions_from_others_beside_them() -> None:
    name, kind = "decoder.layers.2.conv.weight", config("moshi", "mimi")
    assert reason_by_config(name, (64, 32, 16), kind) == "consumer"
    assert reason_by_config(name, (64, 32, 7), kind) is None
    assert axis_by_config(name, (64, 32, 7), kind) is None


def test_the_rows_of_the_other_table_for_its_page() -> None:
    rows = misnamed_rows()
    assert len(rows) == len(MISNAMED)
    assert ("Embedding", "ctrl", "`w`", "CTRLModel") in rows
