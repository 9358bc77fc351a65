"""Which tensors are weights, and why the others are not: name by name."""

import pytest

from step_cli.nm.weight_rule import (
    Description,
    is_head,
    skip_reason,
    without_wrappers,
)


def reason(
    name: str, shape: tuple[int, ...] = (8, 16), dtype: str = "float16", *beside: str
) -> str | None:
    return skip_reason(Description(name, dtype, shape), {name, *beside})


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
        # A matrix is no norm.
        "layernorm_qkv.weight",
        "layernorm_mlp.fc1_weight",
        "pred_normal.weight",
        "norm.weight",
        "ln_1.weight",
        # What lies inside a module whose name says embed.
        "embedder.0.weight",
        "patch_Embed.proj.weight",
        "vision_embed_tokens.layers.0.fc1.weight",
        "time_emb_proj.weight",
        "module.embed.base_layer.0.weight",
    ],
)
def test_these_matrices_are_weights(name: str) -> None:
    assert reason(name) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fc.bias", "name"),
        ("fc.weight_mask", "name"),
        ("fc.weight_scale", "name"),
        ("pos_table", "name"),
        ("tok_embeddings.weight", "embedding"),
        ("wte.weight", "embedding"),
        ("transformer.wpe.weight", "embedding"),
        ("shared.weight", "embedding"),
        ("emb.weight", "embedding"),
        ("tok_emb.weight", "embedding"),
        ("pos_emb.module.weight", "embedding"),
        ("_orig_mod.wte._fsdp_wrapped_module.weight", "embedding"),
        ("embed_tokens.base_layer.weight", "embedding"),
        ("attn.relative_attention_bias.weight", "embedding"),
    ],
)
def test_these_matrices_are_not(name: str, expected: str) -> None:
    assert reason(name) == expected


def test_an_embedding_is_a_matrix() -> None:
    assert reason("patch_embed.weight", (8, 3, 4, 4)) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("encoder.norm.weight", "norm"),
        ("h.0.ln_1.weight", "norm"),
        ("input_layernorm.weight", "norm"),
        ("layernorm_qkv.layer_norm_weight", "norm"),
        ("bn1.weight", "rank"),
        ("scale.weight", "rank"),
        ("fc.bias", "name"),
    ],
)
def test_vectors_are_no_weights(name: str, expected: str) -> None:
    assert reason(name, (8,)) == expected


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float64", None),
        ("float32", None),
        ("float16", None),
        ("bfloat16", None),
        ("float8_e4m3fn", None),
        ("float8_e5m2", None),
        ("float8_e8m0fnu", "dtype"),
        ("int8", "dtype"),
        ("uint8", "dtype"),
        ("complex64", "dtype"),
        ("bool", "dtype"),
    ],
)
def test_weights_are_floating(dtype: str, expected: str | None) -> None:
    assert reason("fc.weight", (8, 16), dtype) == expected


def test_signed_codes_beside_their_scale_are_a_weight() -> None:
    assert reason("l.weight", (8, 16), "int8", "l.weight_scale") is None
    assert (
        reason("x.experts.up_proj", (2, 8, 16), "int8", "x.experts.up_proj_scale")
        is None
    )
    assert reason("l.weight", (8, 16), "int8", "m.weight_scale", "l.scale") == "dtype"
    assert reason("l.table", (8, 16), "int8", "l.table_scale") == "name"


@pytest.mark.parametrize(
    ("name", "dtype", "beside"),
    [
        ("q.qweight", "int32", "q.scales"),
        ("q.weight_packed", "int32", "q.weight_scale"),
        ("mlp.experts.up_proj_blocks", "uint8", "mlp.experts.up_proj_scales"),
        ("q.weight", "uint8", "q.weight.quant_map"),
        ("q.weight", "uint8", "q.weight_scale_2"),
        ("q.weight", "float4_e2m1fn_x2", "q.bias"),
        ("q.B", "int32", "q.s"),
        ("q.W_q", "uint8", "q.meta"),
    ],
)
def test_packed_codes_are_called_so(name: str, dtype: str, beside: str) -> None:
    assert reason(name, (8, 16), dtype, beside) == "packed"


def test_what_only_looks_like_packed_codes() -> None:
    assert reason("q.B", (8, 16), "int32", "q.bias") == "name"
    assert reason("q.up_blocks", (8, 16), "uint8", "q.bias") == "name"
    assert reason("q.qzeros", (8, 16), "int32", "q.qweight") == "name"
    assert reason("q.qweight", (8, 16), "float16") is None
    assert reason("embed_tokens.qweight", (8, 16), "int32") == "embedding"


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("fc.weight_orig", "fc.weight_mask"),
        ("weight_orig", "weight_u"),
        ("attn.in_proj_weight_orig", "attn.in_proj_weight_mask"),
        ("rnn.weight_hh_l0_orig", "rnn.weight_hh_l0_mask"),
        ("rnn.weight_ih_l1_reverse_v", "rnn.weight_ih_l1_reverse_g"),
        ("conv.weight_v", "conv.weight_g"),
        ("fc.parametrizations.weight.original", "fc.bias"),
        ("parametrizations.weight.original", "bias"),
        (
            "fc.parametrizations.weight.original1",
            "fc.parametrizations.weight.original0",
        ),
        ("m.parametrizations.weight_hh_l0.original", "m.bias"),
    ],
)
def test_what_a_module_computes_its_weight_from(name: str, beside: str) -> None:
    assert reason(name, (8, 16), "float32", beside) == "reparametrized"


@pytest.mark.parametrize(
    ("name", "beside", "expected"),
    [
        ("conv.weight_v", "conv.bias", "name"),
        ("rnn.weight_hh_l0_v", "rnn.weight_hh_l0", "name"),
        ("table_orig", "table_mask", "name"),
        ("conv.weight_g", "conv.weight_v", "name"),
        (
            "fc.parametrizations.weight.original0",
            "fc.parametrizations.weight.original1",
            "name",
        ),
        ("wte.parametrizations.weight.original", "x", "embedding"),
        ("fc.parametrizations.bias.original", "x", "name"),
        ("fc.original", "x", "name"),
    ],
)
def test_scales_and_embeddings_are_not(name: str, beside: str, expected: str) -> None:
    assert reason(name, (8, 16), "float32", beside) == expected


@pytest.mark.parametrize(
    "name", ["_flat_param", "l.0._fsdp_wrapped_module._flat_param"]
)
def test_flat_parameters(name: str) -> None:
    assert reason(name, (8000,)) == "flat"
    assert reason(name + ".weight") is None


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


def test_wrappers_are_dropped_wherever_they_stand_but_not_at_the_end() -> None:
    name = "module._checkpoint_wrapped_module._fsdp_wrapped_module.0.base_layer.weight"
    assert without_wrappers(name) == "0.weight"
    assert without_wrappers("_orig_mod.weight") == "weight"
    assert without_wrappers("module") == "module"
    assert without_wrappers("modules.weight") == "modules.weight"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlp.experts.gate_and_up_projs", None),
        ("mlp.experts.w_gate", None),
        ("mlp.routed_experts.wi_0", None),
        ("mlp.experts.mlp.w1", None),
        ("mlp.experts.gate_up_proj_scale_inv", "name"),
        ("mlp.experts.up_bias", "name"),
        ("mlp.experts.router.table", "name"),
    ],
)
def test_fused_experts_under_many_names(name: str, expected: str | None) -> None:
    assert reason(name, (2, 8, 16)) == expected
