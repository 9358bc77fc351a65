"""`verify-nm` from the command line: each verdict both ways, each exit code."""

import io
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import ml_dtypes
import numpy as np
import pytest
from pydantic import ValidationError
from sarif_schema import check_sarif

import step_cli
from step_cli.cli import app as cli

CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int8": "I8",
}
Run = Callable[..., tuple[int, dict]]


def write(
    path: Path, tensors: Mapping[str, np.ndarray], plan: dict | None = None
) -> str:
    """A safetensors file, written by hand so as to share nothing with the reader."""
    header: dict[str, object] = {}
    if plan is not None:
        document = {"schema": "step-cli/plan/1", "layers": plan}
        header["__metadata__"] = {"step_cli.plan": json.dumps(document)}
    blob = b""
    for name, array in tensors.items():
        header[name] = {
            "dtype": CODES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(blob), len(blob) + array.nbytes],
        }
        blob += array.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + blob)
    return str(path)


def sparse(rows: int = 8, columns: int = 16, dtype: str = "float32") -> np.ndarray:
    """Two non-zeros in each four of a row, never four in a column's."""
    array = np.zeros((rows, columns), getattr(ml_dtypes, dtype, None) or dtype)
    array[:, 0::4] = 1.5
    array[:, 1::4] = -0.5
    return array


def dense(rows: int = 8, columns: int = 16) -> np.ndarray:
    return np.ones((rows, columns), np.float32)


def bad(dtype: str = "float32") -> np.ndarray:
    array = sparse(dtype=dtype)
    array[3, 6] = 1
    return array


@pytest.fixture(autouse=True)
def _not_on_a_forge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def shown(*argv: str) -> tuple[int, str]:
    out = io.StringIO()
    return cli.run(["verify-nm", *argv], out), out.getvalue()


def verify(*argv: str) -> tuple[int, dict]:
    code, text = shown(*argv, "--json")
    return code, json.loads(text)


def only_layer(document: dict) -> dict:
    [checkpoint] = document["checkpoints"]
    [layer] = checkpoint["layers"]
    return layer


@pytest.mark.parametrize("dtype", [code for code in CODES if code != "int8"])
def test_a_file_passes_and_its_twin_with_one_weight_changed_does_not(
    dtype: str,
) -> None:
    good = write(Path("good.safetensors"), {"fc.weight": sparse(dtype=dtype)})
    twin = write(Path("twin.safetensors"), {"fc.weight": bad(dtype)})
    code, document = verify(good)
    assert (code, document["ok"], document["checkpoints"][0]["ok"]) == (0, True, True)
    code, document = verify(twin)
    assert (code, document["ok"]) == (1, False)
    layer = only_layer(document)
    assert layer["dtype"] == dtype
    assert layer["violations"] == 1
    assert layer["first_violation"] == {"index": [3, 4], "nonzeros": 3}


def test_the_document_has_the_fields_of_the_contract() -> None:
    path = write(Path("m.safetensors"), {"fc.weight": bad(), "embed.weight": dense()})
    _, document = verify(path)
    assert next(iter(document)) == "schema"
    assert document["schema"] == "step-cli/verify-nm/1"
    [checkpoint] = document["checkpoints"]
    assert checkpoint["path"] == path
    assert checkpoint["format"] == "safetensors"
    expected = {
        "name": "fc.weight",
        "shape": [8, 16],
        "dtype": "float32",
        "pattern": "2:4",
        "axis": 1,
        "axis_from": "default",
        "ok": False,
        "groups": 32,
        "violations": 1,
        "elements": 128,
        "nonzeros": 65,
        "density": 0.5078125,
        "first_violation": {"index": [3, 4], "nonzeros": 3},
    }
    assert expected.items() <= checkpoint["layers"][0].items()
    skipped = {"name": "embed.weight", "shape": [8, 16], "dtype": "float32"}
    assert {**skipped, "reason": "embedding"}.items() <= checkpoint["skipped"][
        0
    ].items()
    assert checkpoint["totals"] == {
        "layers": 1,
        "failed": 1,
        "skipped": 1,
        "groups": 32,
        "violations": 1,
        "elements": 128,
        "nonzeros": 65,
        "density": 0.5078125,
        "coverage": 1.0,
        "uncovered": 0,
    }


def message(path: str, *options: str) -> str:
    _, document = verify(path, *options)
    said: str = only_layer(document)["message"]
    return said


def message_of_last(document: dict[str, Any]) -> str:
    said: str = document["checkpoints"][0]["layers"][-1]["message"]
    return said


def test_a_wrong_axis_is_recognised_and_the_advice_works() -> None:
    turned = np.ascontiguousarray(sparse(16, 8).T)
    path = write(Path("m.safetensors"), {"fc.weight": turned})
    assert "holds along axis 0; use --axis 'fc.weight=0'" in message(path)
    assert verify(path, "--axis", "fc.weight=0")[0] == 0


def test_a_wrong_pattern_is_recognised_and_the_advice_works() -> None:
    path = write(Path("m.safetensors"), {"fc.weight": sparse()})
    assert "complies with 2:4" in message(path, "--nm", "1:4")
    assert verify(path, "--nm", "2:4")[0] == 0


def test_what_looks_like_nothing_else_is_to_be_pruned_or_left_out() -> None:
    weight = sparse()
    weight[0, :4] = 1
    path = write(Path("m.safetensors"), {"a.weight": weight, "b.weight": dense()})
    layers = verify(path)[1]["checkpoints"][0]["layers"]
    said = [layer["message"] for layer in layers]
    advice = "prune it, or leave it out with --exclude "
    assert said[0].endswith(f"non-zeros; {advice}'a.weight'")
    assert said[1].endswith(f"non-zeros; it is dense; {advice}'b.weight'")
    assert verify(path, "--exclude", "[ab].weight", "--include", "*")[0] == 3


def test_one_bad_group_of_many_is_no_other_pattern() -> None:
    weight = sparse(64, 16)
    weight[0, :4], weight[0, 4:16] = 1, 0
    path = write(Path("m.safetensors"), {"fc.weight": weight})
    assert "complies with" not in message(path)
    weight[:16, :4], weight[:16, 4:16] = 1, 0
    path = write(Path("m.safetensors"), {"fc.weight": weight})
    assert "complies with 4:8, if that is what it should be: use --nm" in message(path)


def test_a_dense_head_is_recognised_and_the_advice_works() -> None:
    tensors = {"fc.weight": sparse(), "model.lm_head.weight": dense()}
    path = write(Path("m.safetensors"), tensors)
    code, document = verify(path)
    hint = "a dense head? --exclude 'model.lm_head.*'"
    assert (code, document["checkpoints"][0]["hints"]) == (1, [hint])
    assert message_of_last(document).endswith(f"4 non-zeros; {hint}")
    assert verify(path, "--exclude", "model.lm_head.*")[0] == 0
    write(Path("m.safetensors"), {"fc.weight": dense(), "lm_head.weight": dense()})
    assert verify(path)[1]["checkpoints"][0]["hints"] == []


def test_a_broken_plan_says_what_was_promised() -> None:
    plan = {"fc.weight": {"pattern": "1:4", "axis": 1}}
    path = write(Path("m.safetensors"), {"fc.weight": sparse()}, plan)
    assert message(path).startswith("plan promises 1:4, 32 of 32 groups break it")
    assert verify(path, "--nm", "2:4")[0] == 0


def test_a_plan_may_leave_a_layer_dense() -> None:
    plan = {
        "a.weight": {"pattern": "2:4", "axis": 1},
        "b.weight": {"pattern": "4:4", "axis": 1},
    }
    tensors = {"a.weight": sparse(), "b.weight": dense()}
    code, document = verify(write(Path("m.safetensors"), tensors, plan))
    assert code == 0
    assert document["checkpoints"][0]["layers"][1]["notes"] == ["dense by plan"]


def test_a_plan_file_replaces_the_one_stored() -> None:
    plan = {"fc.weight": {"pattern": "1:4", "axis": 1}}
    path = write(Path("m.safetensors"), {"fc.weight": sparse()}, plan)
    plan["fc.weight"]["pattern"] = "2:4"
    document = {"schema": "step-cli/plan/1", "layers": plan}
    Path("other.json").write_text(json.dumps(document))
    assert verify(path)[0] == 1
    assert verify(path, "--plan", "other.json")[0] == 0


def test_exact_wants_n_in_every_group() -> None:
    path = write(Path("m.safetensors"), {"fc.weight": sparse()})
    assert verify(path, "--exact")[0] == 0
    zero = write(Path("zero.safetensors"), {"fc.weight": sparse() * 0})
    code, document = verify(zero)
    assert (code, only_layer(document)["notes"]) == (0, ["all zero"])
    assert verify(zero, "--exact")[0] == 1
    few = sparse()
    few[0, :4] = 0
    code, document = verify(
        write(Path("few.safetensors"), {"fc.weight": few}), "--exact"
    )
    message = only_layer(document)["message"]
    assert code == 1
    assert message.endswith("complies with at most 2:4, without --exact"), message


def test_strict_fails_selected_tensors_without_whole_groups_and_no_others() -> None:
    tensors = {"fc.weight": sparse(), "norm.weight": dense()[0], "fc.bias": dense()[0]}
    path = write(Path("m.safetensors"), tensors)
    assert verify(path, "--strict")[0] == 0
    odd = write(Path("odd.safetensors"), {**tensors, "odd.weight": dense(8, 6)})
    assert verify(odd)[0] == 0
    code, document = verify(odd, "--strict")
    assert code == 1
    failed = [t["name"] for t in document["checkpoints"][0]["skipped"] if not t["ok"]]
    assert failed == ["odd.weight"]
    alone = write(Path("alone.safetensors"), {"odd.weight": dense(8, 6)})
    assert (verify(alone)[0], verify(alone, "--strict")[0]) == (3, 1)


def test_baseline_compares_masks_and_not_values() -> None:
    path = write(Path("m.safetensors"), {"fc.weight": sparse()})
    same = write(Path("same.safetensors"), {"fc.weight": sparse(dtype="float64") * 7})
    assert verify(path, "--baseline", same)[0] == 0
    moved = sparse()
    moved[2, [0, 2]] = moved[2, [2, 0]]
    other = write(Path("other.safetensors"), {"fc.weight": moved})
    code, document = verify(path, "--baseline", other)
    layer = only_layer(document)
    assert (code, layer["ok"], layer["violations"]) == (1, False, 0)
    assert layer["baseline"]["count"] == 2
    assert layer["baseline"]["first_index"] == [2, 0]


@pytest.mark.parametrize("theirs", [{"x.weight": sparse()}, {"fc.weight": sparse(4)}])
def test_a_baseline_without_this_tensor_is_another_mask(
    theirs: dict[str, np.ndarray],
) -> None:
    path = write(Path("m.safetensors"), {"fc.weight": sparse()})
    other = write(Path("other.safetensors"), theirs)
    code, document = verify(path, "--baseline", other)
    assert code == 1
    assert "baseline" in only_layer(document)["message"]


def test_non_finite_numbers_win_over_violations(
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = bad()
    broken[5, 0] = np.nan
    path = write(Path("m.safetensors"), {"fc.weight": broken, "embed.weight": dense()})
    code, document = verify(path)
    layer = only_layer(document)
    assert code == 7 == document["error"]["exit"]
    assert (layer["nonfinite"], layer["first_nonfinite"]) == (1, [5, 0])
    assert layer["violations"] == 1
    assert capsys.readouterr().err.startswith(
        f"error: {path}: fc.weight: 1 NaN or infinity, the first at [5, 0]"
    )


def test_a_nan_in_a_tensor_that_is_not_checked_does_not_count() -> None:
    tensors = {"fc.weight": sparse(), "embed.weight": dense() * np.nan}
    assert verify(write(Path("m.safetensors"), tensors))[0] == 0


@pytest.fixture
def several() -> dict[int, str]:
    """One file for each exit code."""
    nan = sparse()
    nan[0, 0] = np.nan
    Path("4.safetensors").write_bytes(b"")
    return {
        0: write(Path("0.safetensors"), {"fc.weight": sparse()}),
        1: write(Path("1.safetensors"), {"fc.weight": bad()}),
        3: write(Path("3.safetensors"), {"fc.bias": sparse()[0]}),
        4: "4.safetensors",
        7: write(Path("7.safetensors"), {"fc.weight": nan}),
    }


@pytest.mark.parametrize(
    "codes", [[0], [0, 3], [3, 1, 0], [0, 1, 7, 3], [1, 7, 4, 3, 0], [3], [7, 4]]
)
def test_of_several_findings_the_gravest_decides(
    several: dict[int, str], codes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    code, document = verify(*[several[code] for code in codes])
    assert code == min(codes, key=[4, 7, 1, 3, 0].index)
    paths = [checkpoint["path"] for checkpoint in document["checkpoints"]]
    assert paths == [several[code] for code in codes]
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == sum(code >= 2 for code in codes)
    assert all(line.startswith("error: ") for line in errors)


def test_nothing_selected_lists_what_was_skipped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tensors = {"a.bias": dense()[0], "norm.weight": dense()[1]}
    path = write(Path("m.safetensors"), tensors)
    code, document = verify(path)
    assert code == 3
    assert len(document["checkpoints"][0]["skipped"]) == 2
    assert "skipped: 1 name, 1 norm" in capsys.readouterr().err
    empty = write(Path("empty.safetensors"), {})
    assert verify(empty)[0] == 3
    assert "no tensor with elements" in capsys.readouterr().err


def test_an_exclude_that_matches_nothing_is_a_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(Path("m.safetensors"), {"fc.weight": sparse()})
    assert verify(path, "--exclude", "fd.weight")[0] == 0
    assert capsys.readouterr().err.startswith(f"warning: {path}: --exclude 'fd.weight'")


@pytest.mark.parametrize(
    "options",
    [
        ["--nm", "4:4"],
        ["--nm", "0:4"],
        ["--nm", "5:4"],
        ["--nm", "2:4:8"],
        ["--nm", "two:four"],
        ["--axis", "fc.weight"],
        ["--axis", "fc.weight=2"],
        ["--json", "--format", "sarif"],
        ["--format=junit", "--json"],
        ["--format", "yaml"],
        ["--output", "m.safetensors"],
    ],
)
def test_wrong_usage(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    path = write(Path("m.safetensors"), {"fc.weight": sparse()})
    before = Path(path).read_bytes()
    assert shown(path, *options)[0] == 2
    assert capsys.readouterr().err.count("error: ") == 1
    assert Path(path).read_bytes() == before


def test_json_may_be_asked_for_in_both_ways() -> None:
    path = write(Path("m.safetensors"), {"fc.weight": sparse()})
    assert shown(path, "--json") == shown(path, "--format", "json")
    assert shown(path, "--json") == shown(path, "--json", "--format", "json")
    for asked in (["--json"], ["--format=json"], ["--format", "json"]):
        code, text = shown(path, *asked, "--plan", "missing.json")
        assert code == 4 == json.loads(text)["error"]["exit"]


def test_the_file_has_the_format_and_the_table_still_shows(tmp_path: Path) -> None:
    path = write(Path("m.safetensors"), {"fc.weight": bad()})
    Path("report").write_text("old")
    code, text = shown(path, "--format", "json", "--output", "report")
    assert code == 1
    assert json.loads(Path("report").read_text())["ok"] is False
    assert "FAILED" in text and not text.startswith("{")
    assert {file.name for file in tmp_path.iterdir()} == {"m.safetensors", "report"}


def test_an_output_that_cannot_be_written_wins() -> None:
    path = write(Path("m.safetensors"), {"fc.weight": bad()})
    code, document = verify(path, "--output", "missing/report.json")
    assert (code, document["error"]["exit"]) == (5, 5)


def test_tensorrt_view_tells_possible_from_likely() -> None:
    large = sparse(512, 512, "float16")
    tensors = {
        "large.weight": large,
        "small.weight": sparse(dtype="float16"),
        "single.weight": sparse(512, 512),
        "other.weight": np.ascontiguousarray(large.T),
    }
    path = write(Path("m.safetensors"), tensors)
    _, document = verify(path, "--tensorrt")
    views = {
        layer["name"]: (layer["tensorrt"]["possible"], layer["tensorrt"]["likely"])
        for layer in document["checkpoints"][0]["layers"]
    }
    assert views == {
        "large.weight": (True, True),
        "small.weight": (True, False),
        "single.weight": (False, False),
        "other.weight": (False, False),
    }


def test_from_python_it_returns_the_report() -> None:
    path = write(Path("m.safetensors"), {"fc.weight": bad()})
    report = step_cli.verify(path, nm="2:4")
    assert not report.ok and report.exit_code == 1
    assert report.document() + "\n" == shown(path, "--nm", "2:4", "--json")[1]
    assert step_cli.verify(path, nm="2:4", exclude=["*"]).exit_code == 3
    with pytest.raises(ValueError, match="unknown_option"):
        step_cli.verify(path, unknown_option=1)


def test_on_a_forge_annotations_and_a_summary_are_added(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(Path("m.safetensors"), {"fc.weight": bad()})
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    code, text = shown(path)
    assert code == 1
    assert text.splitlines()[-1].startswith("::error file=m.safetensors,")
    assert "fc.weight" in Path("summary.md").read_text()
    assert "::error" not in shown(path, "--json")[1]
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "missing/summary.md")
    assert shown(path)[0] == 1
    assert "warning: cannot write the summary" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--plan", "--baseline"])
@pytest.mark.parametrize("format", ["sarif", "junit", "markdown", "jsonl", "json"])
def test_a_refused_plan_or_baseline_is_in_the_file_that_was_asked_for(
    tmp_path: Path, option: str, format: str
) -> None:
    path = write(tmp_path / "m.safetensors", {"fc.weight": sparse()})
    refused, output = tmp_path / "refused.json", tmp_path / "out"
    refused.write_bytes(b"\xff not what it should be")
    words = [path, option, str(refused), "--format", format, "--output", str(output)]
    assert shown(*words)[0] == 4
    written = output.read_text()
    assert "refused.json" in written
    if format == "sarif":
        document = json.loads(written)
        check_sarif(document)
        [run] = document["runs"]
        assert not run["invocations"][0]["executionSuccessful"]
        assert [result["ruleId"] for result in run["results"]] == ["checkpoint-refused"]
    if format == "junit":
        root = ElementTree.fromstring(written)
        assert (root.attrib["errors"], root.attrib["tests"]) == ("1", "1")
    if format == "json":
        assert json.loads(written)["error"]["exit"] == 4
    code, document = verify(path, option, str(refused))
    assert code == 4 and document["ok"] is False and "checkpoints" not in document
    assert document["error"]["file"] == str(refused)


def test_a_report_does_not_change_once_it_is_made() -> None:
    report = step_cli.verify(write(Path("m.safetensors"), {"fc.weight": sparse()}))
    for part in (report, report.checkpoints[0], report.checkpoints[0].layers[0]):
        with pytest.raises(ValidationError, match="frozen"):
            part.ok = False
