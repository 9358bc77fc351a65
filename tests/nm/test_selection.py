"""What a selection takes, what it leaves out, and what of that is not covered."""

import pytest

from step_cli.errors import InputError, NothingSelectedError, UsageError
from step_cli.nm.families import ModelConfig
from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.nm.selection import Layer, Selection, parse_axis
from step_cli.nm.tensor_data import Part
from step_cli.nm.weight_rule import Description

TWO_FOUR = NMPattern(2, 4)


def tensor(name: str, shape: tuple[int, ...] = (8, 16), **more: object) -> Description:
    return Description(name, str(more.pop("dtype", "float32")), shape, **more)  # type: ignore[arg-type]


def names(layers: list[Layer[Description]]) -> list[str]:
    return [layer.tensor.name for layer in layers]


def specs(layers: list[Layer[Description]]) -> dict[str, NMSpec]:
    return {layer.tensor.name: layer.spec for layer in layers}


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
    assert list(specs(chosen.layers).items()) == [
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
    assert specs(chosen.layers) == PLAN
    assert [reason for _, reason in chosen.skipped] == ["excluded", "name"]


def test_nm_changes_the_patterns_of_a_plan_not_its_selection() -> None:
    chosen = Selection(plan=PLAN, pattern=TWO_FOUR).choose(PLANNED)
    assert specs(chosen.layers) == {
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


def test_what_the_user_or_a_plan_leaves_out_is_not_missed() -> None:
    given = [tensor("fc.weight"), tensor("odd.weight", (8, 6)), tensor("l.qweight")]
    for selection in (
        Selection(exclude=["odd*", "l.*"]),
        Selection(include=["fc*"]),
        Selection(plan={"fc.weight": NMSpec(TWO_FOUR, 1)}),
    ):
        chosen = selection.choose(given)
        assert names(chosen.layers) == ["fc.weight"]
        assert chosen.unchecked == []
        assert {reason for _, reason in chosen.skipped} == {"excluded"}
    assert [t.name for t in Selection().choose(given).unchecked] == ["odd.weight"]


def test_each_layer_says_what_tells_its_axis() -> None:
    plan = {"a.weight": NMSpec(TWO_FOUR, 0)}
    given = tensor("a.weight", (8, 16), axis=1)

    def source(selection: Selection) -> str:
        return selection.choose([given]).layers[0].axis_from

    assert source(Selection(axes=[("a*", 0)], plan=plan)) == "option"
    assert source(Selection(plan=plan)) == "plan"
    assert source(Selection()) == "node"
    assert Selection().choose([tensor("b.weight")]).layers[0].axis_from == "default"


@pytest.mark.parametrize("skip", ["consumer", "untraced"])
def test_a_tensor_without_a_product_has_an_axis_if_the_user_gives_one(
    skip: str,
) -> None:
    given = [tensor("fc.weight", skip=skip), tensor("x.weight")]
    with pytest.raises(UsageError, match=r"--axis 'fc\.weight=1'"):
        Selection(include=["fc.weight"]).choose(given)
    axes = [("fc.weight", 0)]
    chosen = Selection(include=["fc.weight"], axes=axes).choose(given)
    assert specs(chosen.layers) == {"fc.weight": NMSpec(TWO_FOUR, 0)}


def test_of_a_tensor_that_is_used_in_part_the_parts_must_have_whole_groups() -> None:
    def selected(*parts: Part) -> bool:
        given = tensor("w", (18, 8), axis=0, is_weight=True, parts=parts)
        return bool(Selection().choose([given]).layers)

    assert selected(Part((1, 0), (17, 8)))
    assert selected(Part((1, 0), (17, 4)), Part((5, 4), (9, 8), phase=8))
    assert not selected(Part((1, 0), (15, 8)))
    assert not selected(Part((1, 0), (17, 8), phase=2))
    assert not selected()  # all 18


def test_a_tensor_used_along_two_axes_is_two_layers_unless_one_is_named() -> None:
    given = [tensor("w", (8, 8), axis=axis, is_weight=True) for axis in (0, 1)]
    assert [layer.spec.axis for layer in Selection().choose(given).layers] == [0, 1]
    one = Selection(axes=[("w", 1)]).choose(given).layers
    assert [layer.spec.axis for layer in one] == [1]


def test_a_weight_that_the_config_knows_needs_no_name_of_one() -> None:
    given = [tensor("blocks.0.ffn.experts.mlp.w1", (64, 16)), tensor("x.w1", (8, 8))]
    assert names(Selection().choose(given).layers) == []
    chosen = Selection().choose(given, ModelConfig(("dbrx",)))
    assert specs(chosen.layers) == {given[0].name: NMSpec(TWO_FOUR, 1)}


def test_the_kind_of_model_tells_what_a_name_does_not() -> None:
    known = ModelConfig(model_types=("sam3_video", "fuyu", "lw_detr"))
    given = [
        tensor("model._orig_mod.class_embed.weight"),
        tensor("module.vision_embed_tokens.base_layer.weight"),
        tensor("language_model.embed_tokens.weight"),
        tensor("detr_decoder.presence_token.weight"),
        tensor("tracker.mask_decoder.upscale_conv1.weight", (8, 16, 2, 2)),
        tensor("detr_decoder.fc.weight"),
    ]
    chosen = Selection().choose(given, known)
    assert [(x.tensor, x.spec.axis, x.axis_from) for x in chosen.layers] == [
        (given[0], 1, "config"),
        (given[1], 1, "config"),
        (given[5], 1, "default"),
    ]
    assert [reason for _, reason in chosen.skipped] == [
        "embedding",
        "embedding",
        "consumer",
    ]
    assert chosen.unchecked == []  # so they do not lower the coverage
    by_name = Selection().choose(given)
    assert [layer.tensor for layer in by_name.layers] == given[3:]


def test_a_transposed_convolution_that_the_user_names_is_judged_along_inputs() -> None:
    known = ModelConfig(model_types=("sam",))
    up = tensor("mask_decoder.upscale_conv1.weight", (8, 16, 2, 2))
    (layer,) = Selection(include=[up.name]).choose([up], known).layers
    assert (layer.spec.axis, layer.outputs, layer.axis_from) == (0, 1, "config")
    assert Selection(include=["*"]).choose([up], known).skipped == [(up, "consumer")]


def test_the_kind_of_model_tells_of_the_weight_that_a_module_computes() -> None:
    known = ModelConfig(model_types=("fuyu", "vits"))
    given = [
        tensor("vision_embed_tokens.weight_orig"),
        tensor("vision_embed_tokens.weight_mask"),
        tensor("decoder.upsampler.0.weight_v", (8, 16, 4)),
        tensor("decoder.upsampler.0.weight_g", (8, 1, 1)),
        tensor("embed_tokens.weight_orig"),
    ]
    chosen = Selection().choose(given, known)
    assert chosen.layers == []
    assert {t.name: reason for t, reason in chosen.skipped} == {
        "vision_embed_tokens.weight_orig": "reparametrized",
        "vision_embed_tokens.weight_mask": "embedding",
        "decoder.upsampler.0.weight_v": "consumer",
        "decoder.upsampler.0.weight_g": "name",
        "embed_tokens.weight_orig": "embedding",
    }
    assert chosen.unchecked == given[:1]
    without = Selection().choose(given)
    assert without.unchecked == [given[2]]
