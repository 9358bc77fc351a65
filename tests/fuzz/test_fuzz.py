"""A short, seeded stretch of what `make fuzz` does, and proof that its oracle sees."""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz import clock, mutations, oracle, run
from fuzz.good_files import goods, sparse

ROUNDS = 150


@pytest.fixture(scope="module")
def sound() -> dict[str, Any]:
    return goods()


# Torch files need a process each; `make fuzz` forks one that has torch already.
@pytest.mark.parametrize(
    "kind", ["safetensors", "compressed", "onnx", "external", "json"]
)
def test_damaged_files_are_refused_or_judged(
    kind: str, sound: dict[str, Any], tmp_path: Path
) -> None:
    result = run.Result()
    for number in range(ROUNDS):
        case = run.make(kind, 0, number, sound[kind])
        folder = tmp_path / "case"
        run.write(case, folder)
        found = list(run.judge(case, folder, number, result))
        assert found == [], (case.name, case.options)
    codes = {code for _, code in result.codes}
    assert 4 in codes and codes & {0, 1}  # the damage is real, and not all of it fatal


def test_sound_files_pass(sound: dict[str, Any], tmp_path: Path) -> None:
    for kind in ("safetensors", "compressed", "external"):
        for number, good in enumerate(sound[kind]):
            folder = tmp_path / f"{kind}{number}"
            case = run.Case(kind, kind, good.files, good.target, [])
            run.write(case, folder)
            assert run.ask(case, folder, "--json").code in (0, 1)
            assert list(run.judge(case, folder, 0, run.Result())) == []


def test_a_hang_is_told_apart_from_a_bug(
    sound: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = sound["safetensors"][0]
    case = run.Case("safetensors", "slow", good.files, good.target, [])
    run.write(case, tmp_path / "case")

    def hang(words: list[str], out: object) -> int:
        try:
            while True:
                pass
        except BaseException:  # as the command does
            return 70

    monkeypatch.setattr(run.cli, "run", hang)
    monkeypatch.setattr(clock, "HANG_S", 0.05)
    with pytest.raises(clock.HangError):
        run.ask(case, tmp_path / "case")
    run.keep(case, tmp_path / "case", ["hangs"], tmp_path / "kept")
    assert "again: hangs" in (tmp_path / "kept" / "answer.txt").read_text()
    assert (tmp_path / "kept" / good.target).read_bytes() == good.files[good.target]


def test_a_case_can_be_made_again(sound: dict[str, Any]) -> None:
    first, again = (run.make("onnx", 3, 17, sound["onnx"]) for _ in range(2))
    assert first == again
    assert first != run.make("onnx", 3, 18, sound["onnx"])


def test_signing_makes_a_compressed_file_sound_again(sound: dict[str, Any]) -> None:
    data = sound["compressed"][0].files["m.safetensors"]
    assert mutations.signed(data[:-1] + b"\x7f") != data
    assert mutations.compressed(data, random.Random(0)) != data


def layer(**changes: Any) -> dict[str, Any]:
    found = {"name": "w", "pattern": "2:4", "axis": 1, "shape": [4, 8], "groups": 8}
    found |= {"violations": 0, "nonzeros": 16, "nonfinite": 0, "first_violation": None}
    return {"layers": [found | changes]}


@pytest.mark.parametrize(
    ("changes", "complaints"),
    [
        ({}, 0),
        ({"violations": 1}, 1),
        ({"nonzeros": 15, "groups": 9}, 2),
        ({"shape": [8, 4]}, 1),
        ({"name": "v"}, 1),
        ({"pattern": "1:4"}, 2),
    ],
)
def test_the_oracle_sees_a_wrong_verdict(
    changes: dict[str, Any], complaints: int
) -> None:
    arrays = {"w": sparse((4, 8))}
    found = list(oracle.wrong_verdicts(layer(**changes), arrays, exact=False))
    assert len(found) == complaints, found


def test_the_oracle_sees_a_nan() -> None:
    array = sparse((4, 8))
    array[0, np.flatnonzero(array[0])[0]] = np.nan
    assert list(oracle.wrong_verdicts(layer(), {"w": array}, exact=False))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({}, None),
        ({"code": 70}, "exit code 70"),
        ({"seconds": 11.0}, "took"),
        ({"peak_bytes": 1 << 30}, "needed 1024 MiB"),
        ({"err": "error: a\nerror: b\n"}, "2 error lines"),
        ({"err": "Traceback"}, "traceback"),
        ({"err": "\x1b[31m"}, "control"),
        ({"out": "[NaN"}, "no strict JSON"),
        ({"out": '{"ok": false, "error": null}'}, "ok disagrees"),
    ],
)
def test_the_oracle_sees_a_wrong_answer(
    changes: dict[str, Any], complaint: str | None
) -> None:
    fields = {"code": 0, "out": json.dumps({"ok": True, "error": None}), "err": ""}
    answer = oracle.Answer(**{**fields, "seconds": 0.1, "peak_bytes": 0} | changes)
    found = "; ".join(oracle.complaints(answer))
    assert found == "" if complaint is None else complaint in found


def test_the_report_counts(tmp_path: Path) -> None:
    result = run.Result()
    result.codes["onnx", 4] += 3
    text = run.report(result, argparse.Namespace(minutes=1.0, seed=0))
    assert "| onnx | 0 | 0 | 0 | 3 | 0 |" in text
