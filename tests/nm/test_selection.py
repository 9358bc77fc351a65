"""Which tensors are weights: the contract's rule, name by name."""

import pytest

from step_cli.errors import InputError, NothingSelectedError, UsageError
from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.nm.selection import (
    Selection,
    parse_axis,
)
from step_cli.nm.weight_rule import (
    Description,
    default_axis,
    is_head,
    weight_skip_reason,
)

TWO_FOUR = NMPattern(2, 4)


def tensor(name: str, shape: tuple[int, ...] = (8, 16), **more: object) -> Description:
    return Description(name, str(more.pop("dtype", "float32")), shape, **more)  # type: ignore[arg-type]


def names(pairs: list) -> list[str]:
    return [tensor.name for tensor, _ in pairs]


@pytest.mark.parametrize(
    "name",
    [
        "fc.weight",
        "weight",
        "self_attn.in_proj_weight",
        "rnn.weight_ih_l0",
        "rnn.weight_hh_l1_reverse",
        "lm_head.weight",
        "mlp.shared_expert.up_proj.weight",
        "normal.up.weight",
    ],
)
def test_these_names_are_weights(name: str) -> None:
    assert weight_skip_reason(name, "float16", (8, 16)) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fc.bias", "name"),
        ("fc.weight_orig", "name"),
        ("fc.weight_mask", "name"),
        ("pos_table", "name"),
        ("tok_embeddings.weight", "embedding"),
        ("wte.weight", "embedding"),
        ("transformer.wpe.weight", "embedding"),
        ("shared.weight", "embedding"),
        ("attn.relative_attention_bias.weight", "embedding"),
        ("patch_Embed.proj.weight", "embedding"),
        ("encoder.norm.weight", "norm"),
        ("h.0.ln_1.weight", "norm"),
        ("input_layernorm.weight", "norm"),
        ("embeddings.LayerNorm.weight", "norm"),
    ],
)
def test_these_names_are_not(name: str, reason: str) -> None:
    assert weight_skip_reason(name, "float16", (8, 16)) == reason


@pytest.mark.parametrize(
    ("dtype", "reason"),
    [
        ("float64", None),
        ("float32", None),
        ("float16", None),
        ("bfloat16", None),
        ("float8_e4m3fn", None),
        ("float8_e5m2", None),
        ("float8_e8m0fnu", "dtype"),
        ("int8", "dtype"),
        ("complex64", "dtype"),
        ("bool", "dtype"),
    ],
)
def test_weights_are_floating(dtype: str, reason: str | None) -> None:
    assert weight_skip_reason("fc.weight", dtype, (8, 16)) == reason


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lm_head.weight", True),
        ("model.score.weight", True),
        ("cls.seq_classhead.dense.weight", True),
        ("classifier.1.weight", True),
        ("headless.weight", False),
        ("lm_head", False),
    ],
)
def test_a_head_is_known_by_a_module_of_its_name(name: str, expected: bool) -> None:
    assert is_head(name) is expected


def test_a_vector_is_no_weight() -> None:
    assert weight_skip_reason("bn1.weight", "float32", (8,)) == "rank"
    assert weight_skip_reason("scale.weight", "float32", ()) == "rank"


@pytest.mark.parametrize(
    ("name", "shape", "axis"),
    [
        ("fc.weight", (8, 16), 1),
        ("conv.weight", (8, 16, 3), 1),
        ("conv.weight", (8, 16, 3, 3), 1),
        ("transformer.h.0.attn.c_attn.weight", (16, 48), 0),
        ("h.11.mlp.c_proj.weight", (64, 16), 0),
        ("h.1.crossattention.q_attn.weight", (16, 16), 0),
        ("h.1.attn.c_attn.weight", (16, 48, 1), 1),
        ("block.c_fc.weight", (16, 64), 1),
        ("mlp.experts.gate_up_proj", (4, 32, 16), 2),
        ("mlp.experts.w1.weight", (4, 32, 16), 2),
        ("mlp.experts.3.w1.weight", (32, 16), 1),
    ],
)
def test_groups_run_along_the_reduction_axis(
    name: str, shape: tuple[int, ...], axis: int
) -> None:
    assert weight_skip_reason(name, "float32", shape) is None
    assert default_axis(name, shape) == axis


def test_every_tensor_is_a_layer_or_skipped_with_a_reason() -> None:
    given = [
        tensor("b.weight"),
        tensor("a.weight"),
        tensor("odd.weight", (8, 6)),
        tensor("empty.weight", (0, 16)),
        tensor("a.bias", (8,)),
        tensor("n", is_weight=True, dtype="int8", axis=0),
        tensor("other", skip="consumer"),
        tensor("sparse.weight", skip="kind"),
        tensor("sparse.bias", skip="kind"),
    ]
    chosen = Selection().choose(given)
    assert [(t.name, plan) for t, plan in chosen.layers] == [
        ("b.weight", NMSpec(TWO_FOUR, 1)),
        ("a.weight", NMSpec(TWO_FOUR, 1)),
        ("n", NMSpec(TWO_FOUR, 0)),
    ]
    assert {t.name: reason for t, reason in chosen.skipped} == {
        "odd.weight": "size",
        "empty.weight": "size",
        "a.bias": "name",
        "other": "consumer",
        "sparse.weight": "kind",
        "sparse.bias": "kind",
    }
    assert {t.name for t in chosen.unchecked} == {
        "odd.weight",
        "empty.weight",
        "sparse.weight",
    }


def test_include_crosses_dots_and_exclude_wins() -> None:
    given = [tensor(f"encoder.{n}.fc.weight") for n in (1, 2)] + [tensor("head.weight")]
    chosen = Selection(include=["enc*weight"], exclude=["*.2.*"]).choose(given)
    assert names(chosen.layers) == ["encoder.1.fc.weight"]
    assert {reason for _, reason in chosen.skipped} == {"excluded"}
    assert chosen.warnings == []


def test_an_exact_name_selects_what_the_rule_would_not_a_wildcard_does_not() -> None:
    given = [tensor("embed.weight"), tensor("fc.weight"), tensor("a[0].table")]
    assert names(Selection(include=["embed.weight"]).choose(given).layers) == [
        "embed.weight"
    ]
    assert names(Selection(include=["a[0].table"]).choose(given).layers) == [
        "a[0].table"
    ]
    assert names(Selection(include=["*"]).choose(given).layers) == ["fc.weight"]


def test_an_exact_name_cannot_make_a_vector_checkable() -> None:
    chosen = Selection(include=["fc.bias"]).choose([tensor("fc.bias", (8,))])
    assert chosen.layers == []
    assert [t.name for t in chosen.unchecked] == ["fc.bias"]


def test_an_include_that_matches_nothing_names_the_nearest() -> None:
    given = [tensor(f"layer{n}.weight") for n in range(9)]
    with pytest.raises(NothingSelectedError, match=r"nearest: layer\d") as caught:
        Selection(include=["layr1.weight"]).choose(given)
    assert caught.value.message.count("layer") == 5
    assert caught.value.message.startswith("--include 'layr1.weight' matches no tensor")


def test_a_configuration_s_own_names_are_told() -> None:
    given, prefix = [tensor("fc.weight")], "sparsity."
    with pytest.raises(NothingSelectedError, match=r"^sparsity\.include 'x' matches"):
        Selection(include=["x"], prefix=prefix).choose(given)
    with pytest.raises(InputError, match=r"with sparsity\.plan"):
        Selection(plan=PLAN, prefix=prefix).choose(given)
    chosen = Selection(exclude=["head"], prefix=prefix).choose(given)
    assert chosen.warnings[0].startswith("sparsity.exclude 'head' matches no tensor")


def test_an_exclude_or_axis_that_matches_nothing_warns() -> None:
    chosen = Selection(exclude=["head"], axes=[("x", 0)]).choose([tensor("fc.weight")])
    assert [warning.split(" ")[0] for warning in chosen.warnings] == [
        "--exclude",
        "--axis",
    ]


PLAN = {
    "embed.weight": NMSpec(NMPattern(4, 8), 1),
    "a.weight": NMSpec(NMPattern(1, 4), 0),
    "c.weight": NMSpec(NMPattern(4, 4), 1),
}
PLANNED = [tensor(name) for name in (*PLAN, "b.weight", "a.bias")]


def test_a_plan_selects_its_layers_and_no_others() -> None:
    chosen = Selection(plan=PLAN).choose(PLANNED)
    assert {t.name: layer for t, layer in chosen.layers} == PLAN
    assert [reason for _, reason in chosen.skipped] == ["excluded", "name"]


def test_nm_changes_the_patterns_of_a_plan_not_its_selection() -> None:
    chosen = Selection(plan=PLAN, pattern=TWO_FOUR).choose(PLANNED)
    assert {t.name: layer for t, layer in chosen.layers} == {
        name: NMSpec(TWO_FOUR, layer.axis) for name, layer in PLAN.items()
    }


def test_include_and_exclude_narrow_a_plan() -> None:
    narrowed = Selection(plan=PLAN, include=["*.weight"], exclude=["c.*"])
    assert names(narrowed.choose(PLANNED).layers) == ["embed.weight", "a.weight"]
    exact = Selection(plan=PLAN, include=["b.weight"])
    assert exact.choose(PLANNED).layers == []


def test_a_plan_of_another_checkpoint_is_refused() -> None:
    with pytest.raises(InputError, match=r"'embed\.weight', 'a\.weight', 'c\.weight'"):
        Selection(plan=PLAN).choose([tensor("x.weight")])


def test_the_axis_is_that_of_the_option_then_the_plan_then_the_file() -> None:
    def axis_of(given: Description, selection: Selection) -> int:
        return selection.choose([given]).layers[0][1].axis

    plan = {"a.weight": NMSpec(TWO_FOUR, 0)}
    given = tensor("a.weight", (4, 8, 12), axis=1)
    assert axis_of(given, Selection(axes=[("*", 0), ("a*", -1)], plan=plan)) == 2
    assert axis_of(given, Selection(plan=plan)) == 0
    assert axis_of(given, Selection()) == 1


@pytest.mark.parametrize("axis", [2, -3])
def test_an_axis_beyond_the_rank_is_refused(axis: int) -> None:
    with pytest.raises(UsageError, match="use 0 to 1"):
        Selection(axes=[("fc*", axis)]).choose([tensor("fc.weight")])
    with pytest.raises(InputError, match="plan"):
        Selection(plan={"fc.weight": NMSpec(TWO_FOUR, axis)}).choose(
            [tensor("fc.weight")]
        )


def test_axis_is_read_from_its_last_equals_sign() -> None:
    assert parse_axis("a=b*=0") == ("a=b*", 0)
    assert parse_axis("fc*=-1") == ("fc*", -1)
    for wrong in ("fc", "=1", "fc=x", "fc="):
        with pytest.raises(ValueError, match="GLOB=AXIS"):
            parse_axis(wrong)
