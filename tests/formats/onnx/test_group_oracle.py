"""The oracle of random graphs, against groups written by hand and planned ones."""

import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from formats.onnx.group_comparison import disagreements
from formats.onnx.group_oracle import Ambiguous, Learned, Witness
from formats.onnx.group_verdicts import Layer, expected
from formats.onnx.random_graphs.example import Example, Placed
from formats.onnx.random_graphs.extras import multiply
from formats.onnx.random_graphs.growth import Grower
from formats.onnx.random_graphs.planning import random_example
from formats.onnx.random_graphs.values import LISTED, Leaf

import step_cli

PLANNED = 60


def one_product(axis: int) -> Example:
    """Gemm by a dense matrix of 3 x 8 that is summed along ``axis``."""
    example = Example(0)
    grower = Grower(random.Random(0), (), (), example.stored)
    stored = grower.store("float32", (8, 3) if axis == 0 else (3, 8))
    stored.form, stored.data = "initializer", stored.zero + 1.0
    multiply(example, Leaf(stored.shape, "float32", stored=stored), axis)
    return example


@pytest.mark.parametrize(
    ("axis", "groups"),
    [
        (1, {(r, r + 1, r + 2, r + 3) for r in (0, 4, 8, 12, 16, 20)}),
        (0, {(c, c + 3, c + 6, c + 9) for c in (0, 1, 2, 12, 13, 14)}),
    ],
)
def test_the_groups_of_a_gemm(axis: int, groups: set[tuple[int, ...]]) -> None:
    example = one_product(axis)
    learned = Witness(example).learn(example.placed[0], 0)
    assert learned.groups == {"w0": groups}
    assert not learned.rest and not learned.joined


def planned(placed: Placed, number: int, m: int) -> Learned | None:
    """The groups of an operand as they were planned, or None for those that overlap."""
    where: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for path in placed.paths(number):
        for place, i in enumerate(path.ids.reshape(-1).tolist()):
            if i >= 0:
                where[i].append((path.stored.name, place))
    if any(len(places) > 1 for places in where.values()):
        return None
    learned = Learned()
    for lane in placed.product.operands[number].lanes().tolist():
        elements = [where[i][0] for i in lane]
        learned.rest |= {name for name, _ in elements[len(lane) - len(lane) % m :]}
        for first in range(0, len(lane) - m + 1, m):
            group = elements[first : first + m]
            names = {name for name, _ in group}
            if len(names) > 1:
                learned.joined |= names
            else:
                places = tuple(place for _, place in group)
                learned.groups.setdefault(group[0][0], set()).add(places)
    return learned


def test_onnx_runtime_shows_the_groups_that_were_planned() -> None:
    compared = 0
    for seed in range(PLANNED):
        example = random_example(seed)
        try:
            witness = Witness(example)
        except Exception:  # whatever ONNX Runtime does not know
            continue
        for placed in example.placed:
            for number in range(len(placed.values)):
                if {path.kind for path in placed.paths(number)} != {LISTED}:
                    continue
                wanted = planned(placed, number, example.pattern[1])
                if wanted is None:
                    continue
                try:
                    shown = witness.learn(placed, number)
                except Ambiguous:
                    continue
                groups = {name: found for name, found in shown.groups.items() if found}
                assert groups == wanted.groups, seed
                assert shown.rest == wanted.rest, seed
                assert shown.joined == wanted.joined, seed
                compared += 1
    assert compared > PLANNED / 2


@pytest.mark.parametrize("wrong", [{"axis": 0}, {"violations": 5}, {"groups": 7}])
def test_a_wrong_verdict_is_noticed(wrong: dict[str, int], tmp_path: Path) -> None:
    example = one_product(axis=1)
    path = tmp_path / "one.onnx"
    path.write_bytes(example.model().SerializeToString())
    report = step_cli.verify(path, nm="2:4")
    strict = step_cli.verify(path, nm="2:4", strict=True)
    wanted = expected(example, Witness(example))
    assert wanted["w0"].layers == {1: Layer(1, 6, 6, ([0, 0], 4))}
    assert disagreements(example, wanted, report, strict) == []

    other = replace(wanted["w0"].layers[1], **wrong)
    wanted["w0"].layers = {other.axis: other}
    assert disagreements(example, wanted, report, strict) != []


def test_a_pass_for_what_was_not_judged_is_noticed(tmp_path: Path) -> None:
    example = one_product(axis=1)
    path = tmp_path / "one.onnx"
    path.write_bytes(example.model().SerializeToString())
    report = step_cli.verify(path, nm="1:2", strict=True)
    wanted = expected(example, Witness(example))
    wanted["w0"].refused, wanted["w0"].judged = True, False
    said = disagreements(example, wanted, report, report)
    assert any("must not be" in one for one in said)
