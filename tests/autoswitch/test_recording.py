"""Recordings: what is read of them, and what is refused with its line."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from autoswitch.recordings import record, write
from autoswitch.variance_streams import WORKED, random_samples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from step_cli.autoswitch import recording
from step_cli.autoswitch.autoswitch import VarianceSample
from step_cli.autoswitch.recording import Recording
from step_cli.autoswitch.variance_log import (
    RecordedLayer,
    VarianceHeader,
    header_line,
    sample_line,
)
from step_cli.errors import InputError, NonFiniteError, StepError

Run = Callable[..., Any]
SOUND = '{"step": 3, "v_l1": 1, "v_l2": 1, "dv_l1": 1, "dv_log": 0, "d": 1}'


def read(path: Path) -> list[VarianceSample]:
    """All samples."""
    return [sample for sample, _ in Recording(path).steps()]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("header", [VarianceHeader(0.9, 1e-8, 80), None])
def test_what_was_written_is_read(
    tmp_path: Path, seed: int, header: VarianceHeader | None
) -> None:
    stream = random_samples(seed, 80, 0.9)
    path = write(tmp_path / "v.jsonl", stream, header)
    assert Recording(path).header == (header or VarianceHeader())
    assert Recording(path).count() == 80
    assert read(path) == stream


def test_layers_are_read_too(tmp_path: Path) -> None:
    layers = (RecordedLayer("a {b} true", 3), RecordedLayer("c", 2**40))
    stream = random_samples(1, 30, 0.9)
    text = header_line(VarianceHeader(0.9, 1e-8, 30, layers))
    for sample in stream:
        told = [(0.5, sample.dv_l1), (0.25, 1e-9)] if sample.step % 7 == 0 else []
        text += sample_line(sample, told)
    path = tmp_path / "v.jsonl"
    path.write_text(text)
    assert Recording(path).header.layers == layers
    found = {sample.step: told for sample, told in Recording(path).steps() if told}
    assert list(found) == [7, 14, 21, 28]
    assert found[14] == [(0.5, stream[13].dv_l1), (0.25, 1e-9)]


NUMBERS = [
    "0", "-0.0", "1", "1.5", "1e5", "1E-300", "1e-400", "1e400", "-1", "-1e-30", "NaN",
    "Infinity", "-Infinity", "null", "true", "false", '"1"', "[1]", "{}", "1e289",
    "1e290", "9223372036854775807", "9223372036854775808", "18446744073709551616",
    "1" + 400 * "0", "699.9", "700", "-701.0", "-1e289", "-1e290", "2.0", "01",
    "1_0", "+1",
]  # fmt: skip
STRANGE = [
    "", " ", "{}", "[]", "null", "nonsense", "{", "}", SOUND + SOUND, SOUND + ",",
    " " + SOUND, SOUND + " ", SOUND + "\r", "\r" + SOUND, SOUND.replace(" ", ""),
    SOUND.replace("{", '{"x": {}, '), SOUND.replace("{", '{"x": "}", '),
    SOUND.replace("{", '{"x": "{", '), SOUND.replace("{", '{"step": 99, '),
    '{"x": "}', '{", ' + SOUND[1:], "[" + SOUND, SOUND + "]", SOUND + "], [" + SOUND,
    "\ufeff" + SOUND, SOUND.replace("step", "st\\u0065p"),
    SOUND.replace("step", "Step"),
]  # fmt: skip


def answer(path: Path) -> object:
    """What is read, or how it is refused."""
    try:
        return read(path)
    except StepError as error:
        return error.exit_code, error.message


def plainly(text: str) -> list[VarianceSample] | None:
    """The samples of lines that are all as `train` writes them, else None."""
    samples: list[VarianceSample] = []
    for line in text.split("\n"):
        try:
            record = json.loads(line)
            step, d = (record[name] for name in ("step", "d"))
            v_l1, v_l2, dv_l1 = (record[name] for name in ("v_l1", "v_l2", "dv_l1"))
            log = record["dv_log"]
            numbers = [v_l1, v_l2, dv_l1, *([] if log is None else [log])]
            ok = {type(step), type(d)} == {int} and 0 < d < 2**62 and step < 2**62
            ok &= {type(number) for number in numbers} <= {int, float}
            ok &= min(v_l1, v_l2, dv_l1) >= 0 and max(v_l1, v_l2, dv_l1) < 1e290
            ok &= log is None or -1e290 < log < 700
            ok &= not any(number != number for number in numbers)
            ok &= step > (samples[-1].step if samples else 0)
        except (ValueError, TypeError, KeyError):
            return None
        if not ok:
            return None
        samples.append(VarianceSample(step, d, v_l1, v_l2, dv_l1, log))
    return samples


@given(data=st.data())
@settings(
    max_examples=400,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_strange_lines_are_read_or_refused_with_their_number(
    tmp_path: Path, data: st.DataObject
) -> None:
    lines = []
    for step in range(1, data.draw(st.integers(1, 6)) + 1):
        record = dict.fromkeys(("v_l1", "v_l2", "dv_l1", "dv_log"), "0.5")
        record |= {"step": str(step), "d": "3"}
        if data.draw(st.integers(0, 4)) == 0:
            record[data.draw(st.sampled_from(sorted(record)))] = data.draw(
                st.sampled_from(NUMBERS)
            )
        line = "{" + ", ".join(f'"{k}": {v}' for k, v in record.items()) + "}"
        if data.draw(st.integers(0, 5)) == 0:
            line = data.draw(st.sampled_from(STRANGE))
        lines.append(line)
    ends = data.draw(st.sampled_from(["\n", "\r\n"]))
    path = tmp_path / "v.jsonl"
    path.write_bytes((ends.join(lines) + ends).encode())
    found, expected = answer(path), plainly("\n".join(lines))
    if expected is None:
        assert isinstance(found, tuple), found
        assert "line " in found[1]
    else:
        assert found == expected


def test_objects_that_only_brackets_would_join_are_refused(tmp_path: Path) -> None:
    # Between brackets these three lines are three objects, and no line is one.
    first = SOUND.replace("}", ', "x": "}')
    second = '{"}, ' + SOUND.replace('"step": 3', '"step": 4')
    third = SOUND.replace('"step": 3', '"step": 5')
    path = tmp_path / "v.jsonl"
    path.write_text(f"{SOUND}\n{first}\n{second}\n{third}\n".replace(": 3", ": 2", 1))
    with pytest.raises(InputError, match="line 2: not JSON"):
        read(path)


@pytest.mark.parametrize(
    ("line", "error", "words"),
    [
        ('{"step": 3}', InputError, "line 4: v_l1, v_l2, dv_l1, dv_log, d missing"),
        ("[1, 2]", InputError, "line 4: not a JSON object"),
        ("nonsense", InputError, "line 4: not JSON"),
        ("", InputError, "line 4: not JSON"),
        ("[" * 100_000, InputError, "line 4: not JSON"),
        (SOUND.replace('l1": 1', 'l1": NaN', 1), NonFiniteError, "v_l1 is nan"),
        (SOUND.replace('log": 0', 'log": -Infinity'), NonFiniteError, "dv_log is -inf"),
        (SOUND.replace('l2": 1', 'l2": 1e300'), NonFiniteError, "beyond all bounds"),
        (SOUND.replace('v_l1": 1', 'v_l1": -1', 1), InputError, "v_l1 is negative"),
        (SOUND.replace('v_l1": 1', 'v_l1": "x"', 1), InputError, "not a number"),
        (SOUND.replace('"step": 3', '"step": 2'), InputError, "step 2 after step 2"),
        (SOUND.replace('"step": 3', '"step": 1'), InputError, "step 1 after step 2"),
        (SOUND.replace('"step": 3', '"step": 3.5'), InputError, "whole numbers"),
        (SOUND.replace('"d": 1', '"d": 1.0'), InputError, "whole numbers"),
        (SOUND.replace('"d": 1', '"d": 0'), InputError, "whole numbers"),
        (SOUND.replace('"d": 1', '"d": true'), InputError, "not a number"),
    ],
)
@pytest.mark.parametrize("more", [0, 3])
def test_what_is_wrong_is_told_with_its_line(
    tmp_path: Path, line: str, error: type[StepError], words: str, more: int
) -> None:
    path = record(tmp_path / "variance.jsonl", [(1.0,)] * 2, 0.5)
    after = [SOUND.replace('"step": 3', f'"step": {4 + at}') for at in range(more)]
    with path.open("a") as file:
        file.write("\n".join([line, *after]) + "\n")
    with pytest.raises(error, match="line 4") as caught:
        read(path)
    assert words in caught.value.message
    assert caught.value.file == str(path)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ('"step-cli/variance/2"', "newer step-cli"),
        ('"step-cli/variance/1", "beta2": 1', "beta2 \\(below 1\\)"),
        ('"step-cli/variance/1", "beta2": -1', "positive numbers"),
        ('"step-cli/variance/1", "eps": NaN', "positive numbers"),
        ('"step-cli/variance/1", "steps": 0.5', "whole"),
        ('"step-cli/variance/1", "steps": 1e400', "positive numbers"),
        ('"step-cli/variance/1", "layers": 3', "not a list"),
        ('"step-cli/variance/1", "layers": [3]', "a name and a whole number d"),
        ('"step-cli/variance/1", "layers": [{"name": "x", "d": 0}]', "a name and a"),
    ],
)
def test_a_first_line_that_says_nonsense_is_refused(
    tmp_path: Path, header: str, words: str
) -> None:
    path = tmp_path / "variance.jsonl"
    path.write_text(f'{{"schema": {header}}}\n{SOUND}\n')
    with pytest.raises(InputError, match=words):
        Recording(path)


def test_a_torn_last_line_crlf_and_a_byte_order_mark_are_fine(tmp_path: Path) -> None:
    path = record(tmp_path / "a.jsonl", WORKED, 0.5)
    whole = Recording(path)
    expected = read(path)
    other = tmp_path / "b.jsonl"
    text = path.read_text().replace("\n", "\r\n") + '{"step": 25, "v_l'
    other.write_bytes(b"\xef\xbb\xbf" + text.encode())
    torn = Recording(other)
    assert torn.header == whole.header
    assert len(list(torn.steps())) == torn.count() == 24
    assert torn.torn
    assert read(other) == expected
    list(whole.steps())
    assert not whole.torn


def test_a_last_line_without_its_end_counts_if_it_is_whole(tmp_path: Path) -> None:
    path = record(tmp_path / "a.jsonl", WORKED, 0.5)
    path.write_text(path.read_text().rstrip("\n"))
    found = Recording(path)
    assert (len(read(path)), found.count()) == (24, 24)


def test_what_a_growing_run_writes_later_is_not_read(tmp_path: Path) -> None:
    path = record(tmp_path / "a.jsonl", WORKED, 0.5)
    found = Recording(path)
    with path.open("a") as file:
        file.write('{"step": 25, ')
    assert len(list(found.steps())) == 24 and not found.torn


def test_a_line_without_end_is_refused_before_memory_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "LONGEST", 5000)
    path = record(tmp_path / "a.jsonl", WORKED, 0.5)
    with path.open("a") as file:
        file.write("[" * 20_000)
    with pytest.raises(InputError, match="line 26: longer than"):
        read(path)


def test_random_bytes_never_end_in_anything_but_an_answer(tmp_path: Path) -> None:
    rng = random.Random(0)
    sound = record(tmp_path / "a.jsonl", WORKED, 0.5).read_bytes()
    path = tmp_path / "b.jsonl"
    for _ in range(300):
        damaged = bytearray(sound)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(damaged))
            damaged[at : at + rng.choice([0, 1, 1, 30])] = rng.randbytes(
                rng.choice([0, 1])
            )
        path.write_bytes(damaged)
        assert json.dumps(answer(path) is not None)


def test_without_a_header_nobody_knows_what_layers_are_told_of(tmp_path: Path) -> None:
    stream = random_samples(1, 30, 0.9)
    path = tmp_path / "v.jsonl"
    path.write_text("".join(sample_line(s, [(0.5, s.dv_l1)]) for s in stream))
    steps = list(Recording(path).steps())
    assert len(steps) == 30
    assert not any(layers for _, layers in steps)


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ("[1, 1]", InputError, "layer_v_l1 is not a list of 1 numbers"),
        ("1", InputError, "layer_v_l1 is not a list of 1 numbers"),
        ('["x"]', InputError, "layer_v_l1 is not a number"),
        ("[true]", InputError, "layer_v_l1 is not a number"),
        ("[-1]", InputError, "layer_v_l1 is negative"),
        ("[NaN]", NonFiniteError, "layer_v_l1 is nan"),
        ("[1e300]", NonFiniteError, "layer_v_l1 is 1e"),
        (f"[1{'0' * 400}]", NonFiniteError, "(401 digits), not finite"),
    ],
)
def test_what_is_wrong_with_layers_is_told(
    tmp_path: Path, values: str, error: type[StepError], words: str
) -> None:
    path = tmp_path / "v.jsonl"
    header = header_line(VarianceHeader(0.9, 1e-8, 30, (RecordedLayer("a", 3),)))
    told = f'{{"layer_v_l1": {values}, "layer_dv_l1": [1], '
    path.write_text(header + SOUND.replace("{", told) + "\n")
    with pytest.raises(error) as caught:
        read(path)
    assert words in caught.value.message and "line 2" in caught.value.message
