"""Every format of `verify-nm`, with names as hostile as files can hold."""

import json
import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
from sarif_schema import check_sarif

from step_cli import render
from step_cli.render import github
from step_cli.render.github import in_data, in_property
from step_cli.render.markdown import escaped
from step_cli.render.sarif import uri_of
from step_cli.reports import (
    CheckpointVerdict,
    ErrorDetail,
    GroupAt,
    LayerVerdict,
    SkippedTensor,
    TargetView,
    VerifyReport,
    VerifyTotals,
)

HOSTILE = [
    "a\n::error::pwned",
    "::error::pwned",
    "  ::set-output name=x::y",
    "##[add-mask]secret",
    "\x1b[31mred\x1b]0;title\x07",
    "[/x][bold]",
    "<script>alert(1)</script>&amp;",
    "]]>",
    "a|b`c*d_e~f#1 @user :smile: [l](http://x)",
    "nul\0end",
    "right\u202eleft",
    "\ud800lone",
    "\uffff\ufdd0",
    "100%0A{0}",
    "x" * 1_000_000,
    "é\u2028中",
    "",
]
FORMATS = ["table", "json", "jsonl", "markdown", "junit", "sarif", "github", "html"]


def layer(name: str, ok: bool = False, **more: Any) -> LayerVerdict:
    fields: dict[str, Any] = {
        "name": name,
        "shape": [4, 4],
        "dtype": "float16",
        "pattern": "2:4",
        "axis": 1,
        "ok": ok,
        "groups": 4,
        "violations": 0 if ok else 1,
        "elements": 16,
        "nonzeros": 8,
        "density": 0.5,
        "first_violation": None if ok else GroupAt(index=[0, 0], nonzeros=3),
        "message": None if ok else f"1 of 4 groups break it; --axis '{name}=0'",
    }
    return LayerVerdict(**fields | more)


def checkpoint(
    layers: Sequence[LayerVerdict],
    skipped: Sequence[SkippedTensor] = (),
    path: str = "m.safetensors",
) -> CheckpointVerdict:
    failed = sum(not layer.ok for layer in layers)
    return CheckpointVerdict(
        path=path,
        format="safetensors",
        ok=not failed and all(tensor.ok for tensor in skipped),
        layers=list(layers),
        skipped=list(skipped),
        totals=VerifyTotals(
            layers=len(layers),
            failed=failed,
            skipped=len(skipped),
            groups=4 * len(layers),
            violations=failed,
            elements=16,
            nonzeros=8,
            density=0.5,
        ),
    )


def report(*checkpoints: CheckpointVerdict) -> VerifyReport:
    errors = [c.error for c in checkpoints if c.error is not None]
    ok = all(c.ok for c in checkpoints)
    return VerifyReport(
        ok=ok, checkpoints=list(checkpoints), error=errors[0] if errors else None
    )


def refused(path: str, message: str, tensor: str | None = None) -> CheckpointVerdict:
    error = ErrorDetail(exit=4, file=path, tensor=tensor, message=message)
    return CheckpointVerdict(path=path, format=None, ok=False, error=error)


def skip(name: str, ok: bool = True) -> SkippedTensor:
    return SkippedTensor(
        name=name, shape=[4, 6], dtype="float16", reason="size", selected=True, ok=ok
    )


def text(of: VerifyReport, format: str) -> str:
    return render.text(of, format, verbose=True)


def hostile(name: str) -> VerifyReport:
    # Paths are shorter, and their surrogates stand for bytes that are not UTF-8.
    path = name[:255].replace("\ud800", "\udcff")
    return report(
        checkpoint([layer(name), layer("ok", ok=True)], [skip(name)], path=path),
        refused("2" + path, f"found {name}", name),
    )


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("format", FORMATS)
def test_a_name_is_data_in_every_format(
    format: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    written = text(hostile(name), format)
    written.encode("utf-8")  # no lone surrogate
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028]", written)
    assert "##[" not in written
    if format != "json" and format != "jsonl":
        assert len(written) < 20_000
    if format not in ("github", "table"):
        assert not any(line.lstrip().startswith("::") for line in written.splitlines())


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_json_keeps_names_as_they_are(name: str) -> None:
    document = json.loads(text(hostile(name), "json"))
    assert document["checkpoints"][0]["layers"][0]["name"] == name
    lines = [json.loads(line) for line in text(hostile(name), "jsonl").splitlines()]
    assert [line["kind"] for line in lines] == [
        "layer",
        "layer",
        "skipped",
        "checkpoint",
        "checkpoint",
    ]
    assert lines[0]["name"] == name


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_junit_parses_and_counts(name: str) -> None:
    root = ElementTree.fromstring(text(hostile(name), "junit"))
    suites = root.findall("testsuite")
    assert [int(suite.attrib["tests"]) for suite in suites] == [3, 1]
    assert root.attrib["failures"] == "1"
    assert root.attrib["errors"] == "1"
    assert root.attrib["skipped"] == "1"


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_sarif_is_valid(name: str) -> None:
    document = json.loads(text(hostile(name), "sarif"))
    check_sarif(document)
    [run] = document["runs"]
    rules = [result["ruleId"] for result in run["results"]]
    assert rules == ["nm-violation", "nm-skipped", "checkpoint-refused"]
    known = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert [known[result["ruleIndex"]] for result in run["results"]] == rules


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["version"], "2.0.0"),
        (["runs", 0, "results", 0, "level"], "fatal"),
        (["runs", 0, "results", 0, "message"], {"txt": "a"}),
        (["runs", 0, "results", 0, "ruleIndex"], -2),
        (["runs", 0, "results", 0, "unheardOf"], 1),
        (["runs", 0, "tool"], {}),
        (
            ["runs", 0, "results", 0, "locations", 0, "physicalLocation"],
            {"artifactLocation": {"uri": "a b"}},
        ),
    ],
)
def test_what_is_no_sarif_is_found(place: list[Any], value: object) -> None:
    document = json.loads(text(report(checkpoint([layer("a")])), "sarif"))
    check_sarif(document)
    part = document
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check_sarif(document)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_each_annotation_is_one_command_and_stays_one(name: str) -> None:
    lines = text(hostile(name), "github").splitlines()
    assert len(lines) == 3
    for line in lines:
        match = re.fullmatch(
            r"::(error|warning) file=([^,:]*),title=([^,:]*)::.*", line
        )
        assert match is not None


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_markdown_row_keeps_its_cells(name: str) -> None:
    lines = text(hostile(name), "markdown").splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert {row.count("|") for row in rows} == {8}
    assert "<script" not in "".join(lines)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_on_github_no_line_of_the_table_is_a_command(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    written = text(hostile(name), "table").splitlines()
    stop = re.fullmatch(r"::stop-commands::([0-9a-f]{64})", written[0])
    assert stop is not None
    assert written[-1] == f"::{stop[1]}::"
    assert not any(stop[1] in line for line in written[1:-1])


def many(count: int) -> VerifyReport:
    return report(checkpoint([layer(f"layer{i:05}.weight") for i in range(count)]))


def test_ten_annotations_and_how_many_more() -> None:
    lines = text(many(100), "github").splitlines()
    assert [line.split(" ")[0] for line in lines] == ["::error"] * 10 + ["::notice"]
    assert lines[-1].endswith("::and 90 more")
    assert len(text(many(10), "github").splitlines()) == 10


def test_sarif_has_at_most_5000_results() -> None:
    [run] = json.loads(text(many(5003), "sarif"))["runs"]
    assert len(run["results"]) == 5000
    [notification] = run["invocations"][0]["toolExecutionNotifications"]
    assert notification["message"]["text"] == "and 3 more results"


def test_the_table_shows_the_worst_layers_first() -> None:
    layers = [layer(f"l{i:03}", ok=True) for i in range(50)]
    layers += [layer("few"), layer("most", violations=4)]
    lines = render.text(report(checkpoint(layers)), "table", verbose=False).splitlines()
    assert lines[2].startswith("most")
    assert lines[3].startswith("few")
    assert any("and 32 more, 0 failed; -v shows all" in line for line in lines)
    assert "l049" in text(report(checkpoint(layers)), "table")


def test_a_log_has_whole_lines_and_no_colour() -> None:
    long = "model." + 40 * "very.long." + "weight"
    layers = [layer("fc", ok=True), layer("中文", ok=True), layer(long, ok=True)]
    lines = text(report(checkpoint(layers)), "table").splitlines()
    assert lines[1] == "─" * len(lines[0])
    one, two, three = lines[2:5]
    # A wide letter takes two columns.
    assert one.index("2:4") == two.index("2:4") + 2 == three.index("2:4")
    assert long[:190] in three and three.endswith("ok")
    assert not any(line.endswith(" ") for line in lines)


def test_reasons_of_a_library_are_said_once() -> None:
    no = TargetView(possible=False, likely=False, advice="no kernels for float32")
    yes = TargetView(possible=True, likely=True, advice=None)
    layers = [layer(name, ok=True, targets={"torch": no}) for name in "abc"]
    layers.append(layer("d", ok=True, targets={"torch": yes}))
    shown = text(report(checkpoint(layers)), "table")
    assert shown.count("no kernels") == 1
    assert "torch: no for 3 layers: no kernels for float32: a, b, c\n" in shown
    everywhere = text(report(checkpoint(layers[:3])), "table")
    assert "torch: no for 3 layers: no kernels for float32\n" in everywhere
    assert [line.split()[-1] for line in shown.splitlines()[2:6]] == [
        *3 * ["no"],
        "likely",
    ]


def test_strict_failures_are_errors_and_others_warnings() -> None:
    for ok, level in ((True, "warning"), (False, "error")):
        of = report(checkpoint([layer("a", ok=True)], [skip("odd", ok=ok)]))
        assert text(of, "github").startswith(f"::{level} ")
        [result] = json.loads(text(of, "sarif"))["runs"][0]["results"]
        assert result["level"] == level
        root = ElementTree.fromstring(text(of, "junit"))
        assert root.attrib["failures"] == str(int(not ok))


def test_non_finite_numbers_have_a_rule_of_their_own() -> None:
    of = report(checkpoint([layer("a", nonfinite=2, first_nonfinite=[0, 0])]))
    [result] = json.loads(text(of, "sarif"))["runs"][0]["results"]
    assert result["ruleId"] == "non-finite"


def test_a_fingerprint_stays_when_the_finding_moves() -> None:
    def fingerprint(**more: Any) -> str:
        of = report(checkpoint([layer("a", **more)]))
        [result] = json.loads(text(of, "sarif"))["runs"][0]["results"]
        return str(result["partialFingerprints"])

    assert fingerprint(violations=1) == fingerprint(violations=3, message="other")
    assert fingerprint(pattern="1:4") != fingerprint(pattern="2:4")


def test_commands_are_escaped_as_github_says() -> None:
    assert in_data("100%\r\n::x") == "100%25%0D%0A::x"
    assert in_property("C:/a,b") == "C%3A/a%2Cb"


def test_paths_become_relative_references(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert uri_of("a b/ü.onnx") == "a%20b/%C3%BC.onnx"
    assert uri_of(str(tmp_path / "m.onnx")) == "m.onnx"
    assert uri_of("/elsewhere/m.onnx") == "file:///elsewhere/m.onnx"


def test_markdown_has_no_markup_left() -> None:
    assert escaped("a_b*c|<d>`") == "a&#95;b&#42;c&#124;&#60;d&#62;&#96;"
    assert escaped("expected 2:4, shape [3]") == "expected 2:4, shape &#91;3&#93;"


def test_a_summary_stays_below_what_github_takes(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    monkeypatch.setattr(github, "LARGEST_SUMMARY", 2000)
    for _ in range(3):
        github.append_summary(many(40))
        assert file.stat().st_size < 2000
    assert "shortened: see the log of the job" in file.read_text()
