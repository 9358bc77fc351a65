"""Branches of the build process, on a fake library; it stands in for no real build."""

import enum
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from step_cli.formats.tensorrt import build as trt_build


class BuilderFlag(enum.IntEnum):  # values recorded from TensorRT 11.4 and RTX 1.7
    SPARSE_WEIGHTS = 7


class ProfilingVerbosity(enum.IntEnum):
    LAYER_NAMES_ONLY = 0
    DETAILED = 2


class MemoryPoolType(enum.IntEnum):
    WORKSPACE = 0


class Severity(enum.IntEnum):
    ERROR = 1
    VERBOSE = 4


class Fake(types.ModuleType):
    """A library that notes what it is asked and fails where it is told to."""

    def __init__(self, **failures: bool) -> None:
        super().__init__("fake_trt")
        self.failures = failures
        self.asked: dict[str, Any] = {"flags": []}
        self.BuilderFlag = BuilderFlag
        self.ProfilingVerbosity = ProfilingVerbosity
        self.MemoryPoolType = MemoryPoolType
        self.ILogger = type("ILogger", (), {})
        self.Builder = lambda logger: _Builder(self, logger)
        self.OnnxParser = lambda network, logger: _Parser(self)


class _Parser:
    num_errors = 1

    def __init__(self, fake: Fake) -> None:
        self.fake = fake

    def parse_from_file(self, path: str) -> bool:
        return not self.fake.failures.get("parse")

    def get_error(self, index: int) -> Any:
        return types.SimpleNamespace(desc=lambda: "Failed to parse the ONNX model")


class _Builder:
    def __init__(self, fake: Fake, logger: Any) -> None:
        self.fake, self.logger = fake, logger

    def create_network(self, flags: int) -> Any:
        layers = 0 if self.fake.failures.get("empty") else 1
        return types.SimpleNamespace(num_layers=layers, num_outputs=1)

    def create_builder_config(self) -> "_Config":
        return _Config(self.fake)

    def create_optimization_profile(self) -> Any:
        return types.SimpleNamespace(
            set_shape=lambda *given: self.fake.asked.update(shape=given)
        )

    def build_serialized_network(self, network: Any, config: "_Config") -> bytes | None:
        self.fake.asked["verbosity"] = config.profiling_verbosity
        self.logger.log(Severity.VERBOSE, "building")
        if self.fake.failures.get("build"):
            self.logger.log(Severity.ERROR, "no tactics within workspace limit")
            return None
        return b"plan"


class _Config:
    profiling_verbosity: Any = None

    def __init__(self, fake: Fake) -> None:
        self.fake = fake
        self.cache: bytes | None = None
        if hasattr(fake, "set_compute_capability"):  # TensorRT-RTX alone has it
            self.set_compute_capability = fake.set_compute_capability

    def set_flag(self, flag: BuilderFlag) -> None:
        self.fake.asked["flags"].append(flag)

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        self.fake.asked["pool"] = (pool, size)

    def add_optimization_profile(self, profile: Any) -> int:
        return -1 if self.fake.failures.get("profile") else 0

    def create_timing_cache(self, content: bytes) -> bytes | None:
        return None if content == b"damaged" else content

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return types.SimpleNamespace(serialize=lambda: (self.cache or b"") + b"+")


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(fake: Fake, **changes: Any) -> dict[str, Any]:
        request = {
            "module": "fake_trt",
            "onnx": "m.onnx",
            "plan": str(tmp_path / "plan"),
            "log": str(tmp_path / "log"),
            "sparse": True,
            "profiles": [],
            "compute_capabilities": [],
            "workspace_mib": None,
            "timing_cache": None,
            "new_timing_cache": None,
            "inspect": False,
        } | changes
        monkeypatch.setitem(sys.modules, "fake_trt", fake)
        return trt_build.build(request)

    return run


def test_a_build_asks_for_details_and_permits_sparse_weights(
    build: Any, tmp_path: Path
) -> None:
    fake = Fake()
    outcome = build(fake, workspace_mib=64)
    assert outcome["ok"]
    assert (tmp_path / "plan").read_bytes() == b"plan"
    assert fake.asked["flags"] == [BuilderFlag.SPARSE_WEIGHTS]
    assert fake.asked["verbosity"] == ProfilingVerbosity.DETAILED
    assert fake.asked["pool"] == (MemoryPoolType.WORKSPACE, 64 << 20)
    assert "VERBOSE: building" in (tmp_path / "log").read_text()


def test_without_a_layer_that_fits_nothing_is_permitted(build: Any) -> None:
    fake = Fake()
    assert build(fake, sparse=False)["ok"]
    assert fake.asked["flags"] == []


def test_targets_are_left_alone_where_the_library_has_none(build: Any) -> None:
    assert build(Fake(), compute_capabilities=["8.6"])["ok"]  # 10.x and 11.x


def test_a_target_that_the_library_refuses_is_a_failure(build: Any) -> None:
    fake = Fake()
    fake.ComputeCapability = types.SimpleNamespace(SM86=1, SM89=2)
    taken: list[int] = []
    fake.set_compute_capability = lambda member, index: (
        taken.append(member) or (member == 1)
    )
    assert build(fake, compute_capabilities=["8.6"])["ok"]
    outcome = build(fake, compute_capabilities=["8.6", "8.9"])
    assert outcome["raised"] == "compute capability 8.9 was refused"
    assert taken == [1, 1, 2]


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ("parse", "could not be parsed"),
        ("empty", "at least one output"),
        ("profile", "profile was refused"),
        ("build", "returned no plan"),
    ],
)
def test_none_false_and_minus_one_are_failures(
    build: Any, tmp_path: Path, failure: str, said: str
) -> None:
    profiles = [{"name": "x", "shapes": [[1], [2], [3]]}]
    outcome = build(Fake(**{failure: True}), profiles=profiles)
    assert not outcome["ok"]
    assert said in outcome["raised"]
    assert not (tmp_path / "plan").exists()
    if failure == "build":
        assert outcome["records"] == ["no tactics within workspace limit"]


@pytest.mark.parametrize("content", [b"timings", b"damaged"])
def test_a_damaged_timing_cache_is_rebuilt_with_a_warning(
    build: Any, tmp_path: Path, content: bytes
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(content)
    outcome = build(Fake(), timing_cache=str(old), new_timing_cache=str(new))
    assert outcome["ok"]
    assert old.read_bytes() == content
    assert new.read_bytes() == (b"+" if content == b"damaged" else b"timings+")
    assert bool(outcome["warnings"]) == (content == b"damaged")
