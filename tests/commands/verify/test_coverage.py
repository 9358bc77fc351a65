"""What a verdict covers: the share judged, --min-coverage, --strict, assumed axes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import save_file

from step_cli import render
from step_cli.commands.prune import run as prune
from step_cli.commands.verify.run import run
from step_cli.config.commands import PruneConfig, VerifyConfig
from step_cli.errors import UsageError
from step_cli.reports import VerifyReport

pytestmark = pytest.mark.usefixtures("in_tmp_path")


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sparse(*shape: int, axis: int = -1) -> np.ndarray:
    """2:4 along one axis, the first two of each four."""
    one = np.ones(shape, np.float32)
    kept = np.moveaxis(one, axis, -1)
    kept[..., 2::4] = kept[..., 3::4] = 0
    return np.ascontiguousarray(one)


def verify(path: str, **options: Any) -> VerifyReport:
    return run(VerifyConfig(checkpoint=[Path(path)], **options))


def save(path: str, **tensors: np.ndarray) -> str:
    save_file({name.replace("__", "."): data for name, data in tensors.items()}, path)
    return path


def last_line(report: VerifyReport) -> str:
    return render.text(report, "table", verbose=False).splitlines()[-1]


@pytest.fixture
def half() -> str:
    """As many elements of packed codes as of a layer that holds."""
    codes = np.ones((8, 16), np.int32)
    return save("half.safetensors", fc__weight=sparse(8, 16), up__qweight=codes)


@pytest.mark.parametrize(
    ("least", "code"), [(None, 0), (0, 0), (0.5, 0), (0.51, 1), (1, 1)]
)
def test_min_coverage_fails_what_lies_below_it(
    half: str, least: float | None, code: int
) -> None:
    report = verify(half, min_coverage=least)
    totals = report.checkpoints[0].totals
    assert totals is not None
    assert (report.exit_code, totals.coverage, totals.uncovered) == (code, 0.5, 128)


def test_the_last_line_tells_what_was_not_judged_and_why(half: str) -> None:
    assert last_line(verify(half)).endswith("coverage 0.5, not judged: 1 packed")
    failed = last_line(verify(half, min_coverage=0.9))
    assert failed.startswith("FAILED")
    assert "coverage 0.5 is below --min-coverage 0.9: 128 elements" in failed
    whole = save("whole.safetensors", fc__weight=sparse(8, 16), fc__bias=np.ones(8))
    assert "coverage" not in last_line(verify(whole, min_coverage=1.0))


@pytest.mark.parametrize("format", ["junit", "sarif", "github", "markdown", "json"])
def test_every_format_fails_it_too(half: str, format: str) -> None:
    low = verify(half, min_coverage=0.9)
    words = "is below --min-coverage 0.9"
    assert words in render.text(low, format, verbose=False)
    assert words not in render.text(verify(half), format, verbose=False)


def test_a_share_close_to_one_is_not_shown_as_one() -> None:
    tensors = {"fc__weight": sparse(512, 512), "odd__weight": np.ones((1, 3))}
    path = save("most.safetensors", **tensors)
    assert "coverage 0.9999, not judged: 1 size" in last_line(verify(path))


def test_nothing_judged_is_nothing_matched_or_a_failed_check() -> None:
    path = save("none.safetensors", up__qweight=np.ones((8, 16), np.int32))
    assert verify(path).exit_code == 3
    assert verify(path, strict=True).exit_code == 1
    assert verify(path, min_coverage=0.1).exit_code == 1
    assert verify(path, min_coverage=0).exit_code == 3


@pytest.mark.parametrize("value", [1.01, -0.1, float("nan"), "most"])
def test_a_share_lies_between_0_and_1(half: str, value: object) -> None:
    with pytest.raises(ValidationError, match="min_coverage"):
        verify(half, min_coverage=value)


def test_a_storage_with_two_names_is_missed_once(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    odd = torch.ones(16, 6)
    state = {"fc.weight": torch.from_numpy(sparse(8, 16)), "wte.weight": odd}
    for names, missed in ((("head.weight",), 96), (("a.weight", "b.weight"), 96)):
        path = tmp_path / f"{len(names)}.pt"
        torch.save({**state, **dict.fromkeys(names, odd)}, path)
        totals = verify(str(path)).checkpoints[0].totals
        assert totals is not None and totals.uncovered == missed


def experts(axis: int) -> str:
    return save("e.safetensors", l__experts__up_proj=sparse(2, 16, 8, axis=axis))


@pytest.mark.parametrize(("axis", "code", "other"), [(2, 0, "fail"), (1, 1, "pass")])
def test_an_assumed_axis_is_said_with_what_the_other_one_would_give(
    axis: int, code: int, other: str
) -> None:
    report = verify(experts(axis))
    [layer] = report.checkpoints[0].layers
    assert (report.exit_code, layer.axis, layer.axis_from) == (code, 2, "default")
    assert layer.notes == [f"axis 2 is assumed, axis 1 would {other}"]
    settled = verify("e.safetensors", axis=[("*", axis)])
    assert settled.exit_code == 0
    assert settled.checkpoints[0].layers[0].notes == []


def test_prune_refuses_an_axis_that_nothing_settles() -> None:
    path = Path(experts(2))
    with pytest.raises(UsageError, match=r"--axis 'l\.experts\.up_proj=1' or"):
        prune.run(PruneConfig(checkpoint=path, out=Path("out.safetensors")))
    config = Path("config.json")
    for model_type, axis in (("gpt_oss", 1), ("unheard_of", None)):
        config.write_text(json.dumps({"model_type": model_type}))
        out = Path(f"{model_type}.safetensors")
        if axis is None:
            with pytest.raises(UsageError):
                prune.run(PruneConfig(checkpoint=path, out=out))
        else:
            report = prune.run(PruneConfig(checkpoint=path, out=out))
            assert report.layers[0].axis == axis


def test_prune_warns_of_an_axis_that_only_the_name_tells(
    caplog: pytest.LogCaptureFixture,
) -> None:
    weight = np.ones((8, 8), np.float32)
    path = save("square.safetensors", h__0__attn__c_proj__weight=weight)
    report = prune.run(PruneConfig(checkpoint=Path(path), out=Path("o.safetensors")))
    assert report.layers[0].axis == 0
    assert "axis 0 of [8, 8] is assumed" in caplog.text


def test_prune_says_what_it_left_dense(half: str) -> None:
    report = prune.run(PruneConfig(checkpoint=Path(half), out=Path("o.safetensors")))
    assert report.totals.coverage == 0.5
    shown = render.text(report, "table", verbose=False)
    assert "coverage 0.5, not pruned: 1 packed" in shown


Masked = Callable[[np.ndarray], VerifyReport]


@pytest.fixture
def masked() -> Masked:
    def report(mask: np.ndarray) -> VerifyReport:
        orig = np.ones((8, 16), np.float32)
        path = "masked.safetensors"
        save(path, fc__weight_orig=orig, fc__weight_mask=mask)
        return verify(path, strict=True)

    return report


def test_a_weight_with_a_mask_is_told_what_it_would_be(masked: Masked) -> None:
    good, bad = masked(sparse(8, 16)), masked(np.ones((8, 16), np.float32))
    for report, word in ((good, "holds"), (bad, "breaks")):
        [orig] = [x for x in report.checkpoints[0].skipped if not x.ok]
        assert (report.exit_code, orig.reason) == (1, "reparametrized")
        assert orig.note is not None
        assert orig.note.startswith(
            f"weight_orig * weight_mask {word} 2:4 along axis 1"
        )


@pytest.mark.parametrize("rows", [1, 8])
def test_codes_are_zero_where_they_equal_their_zero_point(rows: int) -> None:
    zero = np.arange(rows, dtype=np.int8)[:, None] + 5
    codes = np.where(sparse(8, 16) != 0, np.int8(-9), zero).astype(np.int8)
    scale = np.ones((8, 1), np.float32)
    good = {"l__weight": codes, "l__weight_scale": scale, "l__weight_zero_point": zero}
    assert verify(save("good.safetensors", **good)).exit_code == 0
    bad = {**good, "l__weight_zero_point": zero - 1}
    assert verify(save("bad.safetensors", **bad)).exit_code == 1
    blocks = {
        **good,
        "l__weight_zero_point": np.arange(32, dtype=np.int8).reshape(8, 4),
    }
    report = verify(save("blocks.safetensors", **blocks))
    assert [x.reason for x in report.checkpoints[0].skipped if x.selected] == ["kind"]
