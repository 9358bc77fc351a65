import json
from pathlib import Path

import pytest

from step_cli.errors import InputError
from step_cli.formats.plan import parse_plan, plan_json, read_plan
from step_cli.nm.pattern import NMPattern, NMSpec


def document(**changes: object) -> str:
    layers = {"w": {"pattern": "2:4", "axis": 1}}
    return json.dumps({"schema": "step-cli/plan/1", "layers": layers, **changes})


def test_a_plan_reads_back_as_it_was_written() -> None:
    plan = {
        "z.weight": NMSpec(NMPattern(2, 4), 1),
        "a\n\x1b[/x].weight": NMSpec(NMPattern(4, 4), 0),
    }
    for indent in (None, 2):
        text = plan_json(plan, indent=indent, files={"m": {"size": 3}})
        assert parse_plan(text, file="m") == plan
    assert plan_json(plan) == plan_json(dict(reversed(plan.items())))


def test_unknown_fields_of_the_same_major_version_are_ignored() -> None:
    assert parse_plan(document(note="x", files=3), file="m") == {
        "w": NMSpec(NMPattern(2, 4), 1)
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ("[" * 100_000, "nested too deep"),
        (document(schema="step-cli/plan/2"), "newer step-cli"),
        (document(schema="step-cli/verify-nm/1"), "not a plan"),
        (document(schema=None), "not a plan"),
        (document(layers=[]), "no object 'layers'"),
        (document(layers={"w": 1}), "not an object"),
        (document(layers={"w": {"axis": 1}}), "no 'pattern'"),
        (document(layers={"w": {"pattern": "5:4", "axis": 1}}), "expected N:M"),
        (document(layers={"w": {"pattern": "2:4"}}), "axis None"),
        (document(layers={"w": {"pattern": "2:4", "axis": True}}), "axis True"),
        ('{"schema": "step-cli/plan/1", "layers": {}, "layers": {}}', "duplicate"),
    ],
)
def test_what_is_no_plan_is_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_plan(text, file="m.json")


def test_a_plan_file_is_read_within_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(document())
    assert set(read_plan(path)) == {"w"}
    path.write_text(document() + " " * (65 << 20))
    with pytest.raises(InputError, match="limit 64 MiB"):
        read_plan(path)
