"""Row R27: names as hostile as files can hold, in every format, end to end."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from bad_inputs.console import promised, state, step_cli
from bad_inputs.sound import broken, put_bytes, sparse
from sarif_schema import check_sarif

NAMES = [
    "a\n::error::pwned.weight",
    "::error::pwned.weight",
    "##[add-mask]secret.weight",
    "\x1b[31mred\x1b]0;title\x07.weight",
    "[/x][bold].weight",
    "<script>alert(1)</script>&amp;]]>.weight",
    "a|b`c*d_e~f#1 @user :smile: [l](http://x).weight",
    "nul\0end.weight",
    "right\u202eleft\u2066.weight",
    "\uffff\ufdd0\u2028.weight",
    "100%0A{0}$(touch marker);`touch marker`.weight",
    "x" * 1_000_000 + ".weight",
]
FORMATS = ("table", "json", "jsonl", "markdown", "junit", "sarif", "github")
UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066\u2028]")


def hostile_file(path: Path) -> Path:
    """Each name three times: a broken weight, a sound one, and one that is skipped."""
    header, data = {}, bytearray()
    kinds = (("1", broken()), ("2", sparse()), ("3", np.ones((4, 6), np.float32)))
    for name in NAMES:
        for number, array in kinds:
            begin, raw = len(data), array.tobytes()
            data += raw
            header[number + name] = {
                "dtype": "F32",
                "shape": list(array.shape),
                "data_offsets": [begin, begin + len(raw)],
            }
    text = json.dumps(header).encode()
    return put_bytes(path, len(text).to_bytes(8, "little") + text + bytes(data))


def parsed(text: str, format: str) -> Any:
    """The report, read as whoever gets it reads it."""
    if format == "junit":
        return ElementTree.fromstring(text)
    if format == "jsonl":
        return [json.loads(line) for line in text.splitlines()]
    if format in ("json", "sarif"):
        return json.loads(text)
    return text


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile_file(tmp_path_factory.mktemp("names") / "m.safetensors")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("on_forge", [False, True], ids=["shell", "forge"])
def test_R27_a_name_is_data(
    format: str, on_forge: bool, hostile: Path, tmp_path: Path
) -> None:
    output, summary = tmp_path / "report", tmp_path / "summary.md"
    env = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    options = ["--format", format, "--strict", "-v", "--output", output]
    before = state(hostile.parent)
    run = step_cli("verify-nm", hostile, *options, env=env if on_forge else {})
    assert run.code == 1, run.err
    assert state(hostile.parent) == before
    assert not (tmp_path / "marker").exists() and not Path("marker").exists()
    written = output.read_text()
    check_text(written, format)
    check_table(run.out + run.err, on_forge=on_forge)
    if format == "table":
        check_table(written, on_forge=on_forge)
    promised(run)
    found = parsed(written, format)
    if format == "json":
        names = {layer["name"] for layer in found["checkpoints"][0]["layers"]}
        assert names == {number + name for name in NAMES for number in "12"}
    if format == "sarif":
        check_sarif(found)
    if format == "junit":
        assert len(list(found.iter("testcase"))) >= 2 * len(NAMES)


def check_text(written: str, format: str) -> None:
    assert not UNPRINTABLE.search(written), format
    assert "##[" not in written
    if format not in ("json", "jsonl"):
        assert len(written) < 200_000  # names are shortened for people
    if format not in ("github", "table"):
        assert not any(line.lstrip().startswith("::") for line in written.splitlines())
    if format == "markdown":
        assert "<script>" not in written
    if format == "github":
        assert all(
            re.match(r"::(error|warning|notice)( [^:]*)?::", line)
            for line in written.splitlines()
        )


def check_table(text: str, *, on_forge: bool) -> None:
    """On a forge, commands are stopped while the table is shown."""
    assert not UNPRINTABLE.search(text)
    commands = [line for line in text.splitlines() if line.startswith("::")]
    if on_forge:
        token = commands[0].removeprefix("::stop-commands::")
        assert commands[-1] == f"::{token}::"
    else:
        assert commands == []


@pytest.mark.parametrize("format", FORMATS)
def test_R27_the_exit_code_is_that_of_the_verdict(
    format: str, hostile: Path, tmp_path: Path
) -> None:
    """The same code in every format, shown or written, and for each verdict."""
    sound = put_bytes(tmp_path / "a.safetensors", _one(sparse()))
    nan = put_bytes(tmp_path / "b.safetensors", _one(sparse() * np.float32(np.nan)))
    empty = put_bytes(tmp_path / "\n::error::x.safetensors", b"")
    cases = [([sound], 0, 0), ([sound, hostile], 1, 0), ([hostile, nan], 7, 1)]
    for paths, code, errors in [*cases, ([nan, empty, sound], 4, 2)]:
        run = step_cli("verify-nm", *paths, "--format", format)
        assert run.code == code
        assert len(run.errors) == errors
        promised(run)
        parsed(run.out, format)


def _one(array: np.ndarray) -> bytes:
    shape = list(array.shape)
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, array.nbytes]}
    text = json.dumps({"fc.weight": entry}).encode()
    return len(text).to_bytes(8, "little") + text + array.tobytes()
