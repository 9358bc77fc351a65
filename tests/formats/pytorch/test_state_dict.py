import collections
from typing import Any

import pytest
import torch
from attacks.torch_attacks import W, unfit

from step_cli.formats.pytorch.refusal import in_words
from step_cli.formats.pytorch.stand_ins import MapStandIn, NumpyArray
from step_cli.formats.pytorch.state_dict import WRAPPERS, Unfit, find_state_dict, pairs

STATE = {"fc.weight": W, "fc.bias": W[0]}
MOMENTS = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": W}}, "param_groups": []}


@pytest.mark.parametrize("name", unfit())
def test_what_is_no_state_dict_is_told_in_words(name: str) -> None:
    value, words = unfit()[name]
    with pytest.raises(Unfit, match=words) as caught:
        find_state_dict(value)
    assert in_words(caught.value).endswith(("save model.state_dict()", "with --key"))


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_state_dict_is_found_in_its_wrapper(wrapper: str) -> None:
    found = find_state_dict({wrapper: STATE, "epoch": 3, "ema": {"w": W}})
    assert (found.state, found.key) == (STATE, None)
    assert (found.rest, found.others) == (["epoch", "ema"], ["ema"])


@pytest.mark.parametrize(
    ("loaded", "key"),
    [
        (STATE, None),
        ({"fc.bias": W[0]}, None),
        (STATE | {"fc._extra_state": {"scale": W[0]}}, None),
        (STATE | {"a._extra_state": None, "b._extra_state": W[0]}, None),
        ({"model_state": STATE, "step": 12, "optimizer": MOMENTS}, "model_state"),
        ({"net": STATE, "rng": W[0].byte(), "loss": torch.tensor(1.0)}, "net"),
        (
            {"trainer": {"state": {"net": STATE}, "optimizer": MOMENTS}},
            "trainer.state.net",
        ),
        ({"model": {"state_dict": STATE}, "optimizer": MOMENTS}, "model.state_dict"),
        ({"params_ema": STATE, "params": {}}, "params_ema"),
        ({"net": STATE, "other": {"net": {"w": W}}}, "net"),
        ({"net": STATE, "optimizer": {"state": {"w": {"m": W}}}, "adam": {}}, "net"),
        (
            {"a": {"b": STATE}, "o": {"state": {"w": {"m": W}}, "param_groups": []}},
            "a.b",
        ),
    ],
)
def test_the_only_map_of_names_to_tensors_is_meant(
    loaded: dict[str, Any], key: str | None
) -> None:
    found = find_state_dict(loaded)
    assert found.key == key
    assert found.state is (STATE if key else loaded)


@pytest.mark.parametrize(
    ("loaded", "named"),
    [
        ({"params": STATE, "params_ema": STATE}, "both 'params' and 'params_ema'"),
        ({"model": STATE, "state_dict": STATE}, "both 'state_dict' and 'model'"),
        ({"ema": {"net": STATE}, "raw": {"net": STATE}}, "'ema.net' and 'raw.net'"),
        (
            {"lm": {"embed": {"weight": W}, "body": {"0": STATE}}},
            "'lm.embed' and 'lm.bo",
        ),
        (STATE | {"net": STATE}, r"outermost keys \(--key \.\) and 'net'"),
    ],
)
def test_several_are_named(loaded: dict[str, Any], named: str) -> None:
    with pytest.raises(Unfit, match=f"{named}.*; choose one with --key"):
        find_state_dict(loaded)


def test_what_lies_deeper_is_told() -> None:
    found = find_state_dict(
        {"model": STATE | {"head": {"weight": W}}, "x": {"y": STATE}}
    )
    assert found.others == ["model.head", "x.y"]


CHOICES = {
    "model": STATE,
    "state_dict": {"w": W},
    "ema": {"net": {"v": W}, "decay": 0.9},
    "a.b": {"c.d": {"u": W}},
    "nets": [{"x": W}, {"y": W}],
    "epoch": 3,
}


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model", "fc.weight"),
        ("state_dict", "w"),
        ("ema.net", "v"),
        ("a.b.c.d", "u"),
        ("nets.1", "y"),
    ],
)
def test_a_key_chooses(key: str, name: str) -> None:
    found = find_state_dict(CHOICES, key)
    assert next(iter(found.state)) == name
    assert key.partition(".")[0] not in found.rest


@pytest.mark.parametrize(
    ("key", "what"),
    [("net", "no such key"), ("epoch", "no tensors by name"), ("ema", "no tensors by"),
     ("model.fc.weight", "no tensors by"), (".", "no tensors by"), ("", "no such")],
)  # fmt: skip
def test_a_key_without_tensors_is_refused_with_what_there_is(
    key: str, what: str
) -> None:
    with pytest.raises(Unfit, match=what) as caught:
        find_state_dict(CHOICES, key)
    assert "tensors lie under 'model', 'state_dict', 'ema.net' and 'a.b.c.d'" in str(
        caught.value
    )


def test_a_list_of_state_dicts_needs_a_key() -> None:
    with pytest.raises(Unfit, match="a tuple, with tensors under '0'; choose one with"):
        find_state_dict((STATE, MOMENTS))
    assert find_state_dict((STATE, MOMENTS), "0").state is STATE


def test_a_dot_chooses_the_outermost_map() -> None:
    loaded = STATE | {"net": {"w": W}}
    assert find_state_dict(loaded, ".").state is loaded
    assert find_state_dict(loaded, "net").state is loaded["net"]


def test_a_map_that_holds_itself_ends() -> None:
    loaded: dict[str, Any] = {"epoch": 1}
    loaded["self"] = {"again": loaded}
    with pytest.raises(Unfit, match="without tensors"):
        find_state_dict(loaded)


def test_arrays_that_are_no_tensors_are_told() -> None:
    with pytest.raises(Unfit, match="NumPy arrays, no tensors"):
        find_state_dict({"model": {"fc.weight": NumpyArray()}})


@pytest.mark.parametrize("method", ["items", "values", "keys", "get", "__iter__"])
def test_a_map_whose_methods_the_file_replaced_is_read_as_stored(method: str) -> None:
    shadowed = collections.OrderedDict(STATE)
    shadowed.__dict__[method] = MapStandIn
    loaded = collections.OrderedDict(state_dict=shadowed, model={"w": 1})
    loaded.__dict__[method] = MapStandIn
    found = find_state_dict(loaded)
    assert found.state is shadowed
    assert [name for name, _ in pairs(shadowed)] == list(STATE)
