"""Metadata beside a state dict is read past; nothing that a file names is used."""

import argparse
import array
import collections
import datetime
import decimal
import enum
import fractions
import functools
import io
import pathlib
import pickle
import random
import re
import sys
import types
import uuid
import zoneinfo
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacks.opcodes import as_archive, as_old_file, hidden, reaching
from attacks.torch_attacks import W, saved

from step_cli.errors import InputError
from step_cli.formats.open import open_checkpoint
from step_cli.formats.pytorch import stand_ins
from step_cli.formats.pytorch.refusal import in_words


class Config:
    """A class of the user's."""


class Mode(enum.Enum):
    FAST = 1


METADATA: dict[str, Any] = {
    "number": np.float64(1.5),
    "truth": np.bool_(True),
    "old number": np.float16(1),
    "array": np.arange(6).reshape(2, 3),
    "names": np.array(["a", "b"]),
    "objects": np.array([{"a": 1}, None], dtype=object),
    "structured": np.zeros(2, [("a", "<i4"), ("b", "<f8")]),
    "masked": np.ma.masked_array([1, 2], [0, 1]),
    "day64": np.datetime64("2024-05-06"),
    "type": np.float32,
    "dtype": np.dtype("float32"),
    "generator": np.random.default_rng(0),
    "state": np.random.RandomState(0),
    "legacy state": np.random.RandomState(0).get_state(),
    "Namespace": argparse.Namespace(lr=0.1, nested=argparse.Namespace(a=[1, {2}])),
    "SimpleNamespace": types.SimpleNamespace(a=1),
    "path": pathlib.Path("a/b"),
    "windows path": pathlib.PureWindowsPath("a"),
    "defaultdict": collections.defaultdict(list, a=[1], b=[]),
    "OrderedDict": collections.OrderedDict(a=1),
    "Counter": collections.Counter("aab"),
    "deque": collections.deque([1, 2, 3], 2),
    "ChainMap": collections.ChainMap({"a": 1}),
    "datetime": datetime.datetime(2024, 5, 6, tzinfo=datetime.UTC),
    "date": datetime.date(2024, 5, 6),
    "time": datetime.time(1, 2),
    "timedelta": datetime.timedelta(1),
    "decimal": decimal.Decimal("0.1"),
    "fraction": fractions.Fraction(1, 3),
    "complex": 1 + 2j,
    "slice": slice(1, 2),
    "range": range(3),
    "frozenset": frozenset({1}),
    "set": {1, 2},
    "bytes": b"abc",
    "bytearray": bytearray(b"abc"),
    "ellipsis": ...,
    "classes": (int, float, str, bool, dict, list, tuple, bytes, type(None), object),
    "uuid": uuid.UUID(int=5),
    "pattern": re.compile("a+"),
    "array.array": array.array("f", [1.0]),
    "Random": random.Random(1),
    "state of random": random.Random(1).getstate(),
    "BytesIO": io.BytesIO(b"abc"),
    "Size": torch.Size([2, 3]),
    "device": torch.device("cuda:0"),
    "torch dtype": torch.bfloat16,
    "layout": torch.strided,
    "Generator": torch.Generator(),
    "state of Generator": torch.Generator().get_state(),
    "version": torch.__version__,
    "large": 1 << 200,
}
REFUSED: dict[str, tuple[Any, str]] = {
    "class": (Config(), r"test_stand_ins\.Config, refused"),
    "class inside": (argparse.Namespace(a=[{"b": Config()}]), r"\.Config, refused"),
    "enum": (Mode.FAST, r"\.Mode, refused"),
    "partial": (functools.partial(int, "1"), r"functools\.partial, refused"),
    "function": (np.load, r"numpy\.load, refused"),
    "builtin": (eval, "eval, refused"),
    "method": (zoneinfo.ZoneInfo("UTC"), "getattr, refused"),
    "module": (torch.nn.ReLU(), r"torch\.nn\..*ReLU, refused"),
    "dtype gadget": (np.frombuffer, r"numpy\.frombuffer, refused"),
}


def load(data: bytes) -> Any:
    with stand_ins.standing_in():
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("new", [True, False], ids=["zip", "before 1.6"])
def test_metadata_is_read_past(name: str, new: bool) -> None:
    value = {"state_dict": {"w": W}, "x": METADATA[name]}
    loaded = load(saved(value, _use_new_zipfile_serialization=new))
    assert torch.equal(loaded["state_dict"]["w"], W)


def foreign(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str, *bases: type
) -> Any:
    """A class that only pretends to be of a library."""
    made = types.new_class(name, bases)
    made.__module__ = module
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        monkeypatch.setitem(sys.modules, path, types.ModuleType(path))
    setattr(sys.modules[module], name, made)
    return made


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before 1.6"])
def test_options_of_known_libraries_are_read_past(
    new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = foreign(monkeypatch, "yacs.config", "CfgNode", dict)(a=1)
    node.__dict__["frozen"] = True
    options = foreign(monkeypatch, "omegaconf.dictconfig", "DictConfig")()
    options.content = {"a": 1}
    module = "pytorch_lightning.callbacks.model_checkpoint"
    callback = foreign(monkeypatch, module, "ModelCheckpoint")
    beside = {"cfg": node, "options": options, "callbacks": {callback: {"best": 1.0}}}
    data = saved({"w": W, "x": beside}, _use_new_zipfile_serialization=new)
    monkeypatch.undo()
    assert "yacs" not in sys.modules
    loaded = load(data)
    assert torch.equal(loaded["w"], W)
    assert loaded["x"]["cfg"]["a"] == 1
    assert type(loaded["x"]["options"]) is stand_ins.StandIn


@pytest.mark.parametrize("name", REFUSED)
def test_other_objects_are_refused_by_name(name: str) -> None:
    value, words = REFUSED[name]
    with pytest.raises(Exception, match="nsupported") as caught:
        load(saved({"state_dict": {"w": W}, "x": value}))
    assert re.search(words, in_words(caught.value))
    assert in_words(caught.value).endswith("or a safetensors file")


def test_the_whole_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.ckpt"
    path.write_bytes(saved({"state_dict": {"w": W}, **METADATA}))
    found = open_checkpoint(path)
    np.testing.assert_array_equal(found.tensors[0].read(), W.numpy())


@pytest.mark.parametrize("name", reaching(Path("m")))
def test_nothing_is_reached_through_any_opcode(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pickled = reaching(marker)[name]
    for make in (as_archive, as_old_file):
        with pytest.raises((pickle.UnpicklingError, RuntimeError, TypeError)) as caught:
            load(make(pickled))
        said = in_words(caught.value)
        assert "weights_only" not in said and "\n" not in said
    assert not marker.exists()


def test_a_gadget_is_refused_by_the_child_too(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "m.pt"
    path.write_bytes(as_archive(reaching(marker)["BUILD of a Namespace"]))
    with pytest.raises(InputError, match=r"wants to call posix\.system, refused"):
        open_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize("name", hidden(Path("m")))
def test_what_numpy_would_unpickle_stays_bytes(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pickled = b"\x80\x02" + hidden(marker)[name] + b"."
    assert type(load(as_archive(pickled))) is stand_ins.StandIn
    assert not marker.exists()


def test_a_stand_in_is_one_of_ours_and_keeps_nothing() -> None:
    ours = {
        stand_ins.StandIn,
        stand_ins.NumpyArray,
        stand_ins.MapStandIn,
        stand_ins.ListStandIn,
    }
    assert set(stand_ins.names().values()) == ours
    made = stand_ins.StandIn(1, a=2)
    made.__setstate__({"a": 1})
    assert not hasattr(made, "__dict__")
    with pytest.raises(AttributeError):
        made.a = 1  # type: ignore[attr-defined]
    assert stand_ins.MapStandIn([1]) == {}  # type: ignore[comparison-overlap]
    assert stand_ins.ListStandIn([1, 2]) == []  # type: ignore[comparison-overlap]


def test_no_name_is_that_of_something_that_runs_code() -> None:
    forbidden = "getattr eval exec open __import__ compile partial system load loads"
    last = {name.rpartition(".")[2] for name in stand_ins.names()}
    assert not last & set(forbidden.split())


def test_outside_of_a_read_torch_is_as_it_was() -> None:
    data = saved({"x": METADATA["Namespace"]})
    load(data)
    with pytest.raises(Exception, match=r"argparse\.Namespace"):
        torch.load(io.BytesIO(data), weights_only=True)
