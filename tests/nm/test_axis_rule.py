"""The group axis of a weight: which evidence speaks first, and what is assumed."""

import pytest

from step_cli.nm.axis_rule import Axis, AxisRule
from step_cli.nm.families import ModelConfig
from step_cli.nm.weight_rule import Description

GPT2 = ModelConfig(("gpt2",))


def tensor(name: str, *shape: int, **more: object) -> Description:
    return Description(name, "float32", shape, **more)  # type: ignore[arg-type]


def axis(
    name: str,
    shape: tuple[int, ...],
    *others: Description,
    config: ModelConfig = ModelConfig(),  # noqa: B008
) -> Axis:
    given = tensor(name, *shape)
    return AxisRule([*others, given], config).of(given)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("fc.weight", (8, 16), (1, "default", False)),
        ("conv.weight", (8, 16, 3), (1, "default", False)),
        ("conv.weight", (8, 16, 3, 3), (1, "default", False)),
        ("l.weight", (8, 16, 32), (1, "default", False)),
        ("l.weight", (8, 16, 33), (1, "default", True)),
        ("wave_conv.weight", (8, 16, 128), (1, "default", False)),
        ("mlp.experts.gate_up_proj", (4, 32, 16), (2, "default", True)),
        ("mlp.experts.w1.weight", (4, 32, 16), (2, "default", True)),
        ("mlp.experts.w_gate", (4, 32, 16), (2, "default", True)),
        ("mlp.experts.3.w1.weight", (32, 16), (1, "default", False)),
        # GPT-2's names.
        ("h.0.attn.c_attn.weight", (16, 48), (0, "shape", False)),
        ("h.0.attn.c_attn.weight", (48, 16), (1, "shape", False)),
        ("h.0.mlp.c_fc.weight", (16, 64), (0, "shape", False)),
        ("visual.0.mlp.c_fc.weight", (64, 16), (1, "shape", False)),
        ("h.0.mlp.c_proj.weight", (64, 16), (0, "shape", False)),
        ("h.0.mlp.c_proj.weight", (16, 64), (1, "shape", False)),
        ("h.1.crossattention.c_attn.weight", (16, 32), (0, "shape", False)),
        ("h.1.crossattention.q_attn.weight", (16, 16), (0, "name", True)),
        ("transformer.h.1.attn.c_proj.weight", (16, 16), (0, "name", True)),
        ("pool.attn.c_proj.weight", (16, 16), (0, "name", True)),
        ("c_proj.weight", (16, 16), (0, "name", True)),
        ("block.c_fc.weight", (16, 64), (0, "shape", False)),
        ("h.0.self_attention.c_attn.weight", (16, 48), (0, "shape", False)),
        ("h.0.feed_forward.c_fc.weight", (64, 16), (1, "shape", False)),
        ("h.0.attn.c_proj.weight", (16, 64), (0, "name", True)),
        ("h.1.attn.c_attn.weight", (16, 48, 1), (1, "default", False)),
    ],
)
def test_without_a_config(
    name: str, shape: tuple[int, ...], expected: tuple[int, str, bool]
) -> None:
    assert axis(name, shape) == expected


@pytest.mark.parametrize(
    ("name", "shape", "model_type", "expected"),
    [
        ("h.0.attn.c_proj.weight", (16, 16), "gpt2", (0, "config", False)),
        ("a.b.mlp.c_fc.weight", (16, 40), "clvp", (0, "config", False)),
        ("q.weight", (16, 48), "gpt2", (1, "default", False)),
        ("h.0.attn.c_proj.weight", (16, 16), "llama", (1, "config", False)),
        ("l.experts.up_proj", (2, 16, 24), "gpt_oss", (1, "config", False)),
        ("l.experts.up_proj", (2, 16, 24), "no_such_kind", (2, "default", True)),
    ],
)
def test_the_config_speaks_before_shapes_and_names(
    name: str, shape: tuple[int, ...], model_type: str, expected: tuple[int, str, bool]
) -> None:
    assert axis(name, shape, config=ModelConfig((model_type,))) == expected


def test_linear_layers_beside_the_config_of_gpt2_are_known_by_their_shapes() -> None:
    linear = tensor("h.0.attn.c_attn.weight", 48, 16)
    square = "h.0.attn.c_proj.weight", (16, 16)
    assert axis(*square, linear, config=GPT2) == (1, "shape", False)
    conv1d = tensor("h.0.attn.c_attn.weight", 16, 48)
    assert axis(*square, conv1d, config=GPT2) == (0, "config", False)


def test_wrappers_in_a_name_change_nothing() -> None:
    name = "module.h.0._orig_mod.attn.c_proj.base_layer.weight"
    assert axis(name, (16, 16), config=GPT2) == (0, "config", False)


def test_one_shape_settles_the_square_matrices_of_its_file() -> None:
    square = "h.1.attn.c_proj.weight", (16, 16)
    conv1d = tensor("h.0.attn.c_attn.weight", 16, 48)
    linear = tensor("h.2.mlp.c_fc.weight", 64, 16)
    assert axis(*square, conv1d) == (0, "shape", False)
    assert axis(*square, linear) == (1, "shape", False)
    assert axis(*square, conv1d, linear) == (0, "name", True)
    own = tensor("h.1.attn.c_attn.weight", 48, 16)
    assert axis(*square, conv1d, own) == (1, "shape", False)


def test_the_source_speaks_before_all_others() -> None:
    given = tensor("h.0.attn.c_attn.weight", 16, 48, axis=1, output_axis=0)
    assert AxisRule([given], GPT2).of(given) == (1, "node", False)


@pytest.mark.parametrize(
    ("given", "group_axis", "expected"),
    [
        (tensor("fc.weight", 8, 16), 1, 0),
        (tensor("fc.weight", 8, 16), 0, 1),
        (tensor("conv.weight", 8, 16, 3), 1, 0),
        (tensor("conv.weight", 8, 16, 3, 3), 1, 0),
        (tensor("l.experts.up_proj", 2, 8, 16), 2, 1),
        (tensor("l.experts.up_proj", 2, 8, 16), 1, 2),
        (tensor("stack.weight", 2, 8, 64), 1, 2),
        (tensor("w", 2, 8, 16, axis=1, output_axis=2), 1, 2),
        (tensor("w", 2, 8, 16, axis=1, output_axis=2), 2, 1),
    ],
)
def test_the_axis_of_the_outputs(
    given: Description, group_axis: int, expected: int
) -> None:
    assert AxisRule([given]).outputs(given, group_axis) == expected
