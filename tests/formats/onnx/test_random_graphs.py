"""Random ONNX graphs around known products, with ONNX Runtime as the witness.

A graph is written twice: as it is checked, and with its stored tensors as inputs, so
that ONNX Runtime can show which stored numbers a product sums up. What `verify-nm`
answers is compared with that. Nothing here is taken from how `step_cli` follows graphs.
"""

import functools
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest
from formats.onnx.group_comparison import disagreements, listing
from formats.onnx.group_oracle import Ambiguous, Witness, session_of
from formats.onnx.group_verdicts import expected
from formats.onnx.random_graphs.example import Example
from formats.onnx.random_graphs.opaque import OPAQUE_STEPS
from formats.onnx.random_graphs.planning import MAKERS, random_example
from formats.onnx.random_graphs.values import LISTED, OPAQUE

import step_cli

GRAPHS = 700  # in `make test`
BLOCK = 20
MORE = 4000  # in `make test-slow`


@dataclass
class Outcome:
    """What came of one seed.

    Attributes:
        discarded: Why the graph says nothing, or None.
        said: Disagreements between the verdict and ONNX Runtime.
        parts: The products, steps, places and forms that the graph holds.
    """

    discarded: str | None = None
    said: list[str] = field(default_factory=list)
    parts: set[str] = field(default_factory=set)
    judged: list[bool] = field(default_factory=list)  # whether each layer is ok


@functools.cache
def outcome(seed: int) -> Outcome:
    example = random_example(seed)
    model = example.model()
    onnx.checker.check_model(model)
    parts = parts_of(example)
    try:
        witness = Witness(example)
        pairs = outputs_of(example, witness, session_of(model.SerializeToString()))
    except Exception as error:  # whatever ONNX Runtime does not know
        return Outcome(f"refused: {error}")
    for stored, fed in pairs:
        same = np.allclose(stored, fed, rtol=1e-3, atol=1e-3)
        if not same and any(function.overload for function in model.functions):
            return Outcome("confused: ONNX Runtime took another overload")
        assert same, f"{seed}: fed tensors change what is computed"
    try:
        wanted = expected(example, witness)
    except Ambiguous as error:
        return Outcome(f"ambiguous: {error}")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "random.onnx"
        path.write_bytes(model.SerializeToString())
        nm = "{}:{}".format(*example.pattern)
        report = step_cli.verify(path, nm=nm)
        strict = step_cli.verify(path, nm=nm, strict=True)
    said = disagreements(example, wanted, report, strict)
    judged = [layer.ok for layer in report.checkpoints[0].layers]
    return Outcome(None, said, parts, judged)


def outputs_of(example: Example, witness: Witness, session: Any) -> list[Any]:
    """What each product gives: as it is checked, and with fed tensors."""
    known = {info.name for info in session.get_inputs()}
    pairs = []
    for placed in example.placed:
        feeds = witness.runtime_feeds(placed)
        given = {name: array for name, array in feeds.items() if name in known}
        stored = session.run([placed.output], given)[0]
        fed = witness.run({**feeds, **witness.stored_feeds()}, placed.output)
        pairs.append((stored, fed))
    return pairs


def parts_of(example: Example) -> set[str]:
    parts = {stored.form for stored in example.stored}
    parts |= {stored.dtype for stored in example.stored}
    parts |= {"{}:{}".format(*example.pattern), "old opset" if example.old else ""}
    for placed in example.placed:
        parts.add(placed.product.kind)
        parts |= {wrapper.kind for wrapper in placed.place.wrappers}
        parts |= {"both branches"} if placed.is_guest else set()
        for path in placed.all_paths:
            parts |= {f"{step.op} {step.kind}" for step in path.steps}
            parts |= {"step in a function" for step in path.steps if step.inside}
    return parts


def report_of(seeds: range) -> str:
    """The disagreements on these graphs, each with its graph."""
    failed = [seed for seed in seeds if outcome(seed).said]
    return "\n\n".join(
        "\n".join([*outcome(seed).said, listing(random_example(seed))])
        for seed in failed
    )


@pytest.mark.parametrize("first", range(0, GRAPHS, BLOCK))
def test_a_verdict_agrees_with_what_onnx_runtime_computes(first: int) -> None:
    said = report_of(range(first, first + BLOCK))
    assert not said, said


@pytest.mark.slow
@pytest.mark.parametrize("first", range(GRAPHS, MORE, BLOCK * 10))
def test_many_more_graphs(first: int) -> None:
    said = report_of(range(first, first + BLOCK * 10))
    outcome.cache_clear()
    assert not said, said


def test_the_graphs_hold_every_product_and_step() -> None:
    outcomes = [outcome(seed) for seed in range(GRAPHS)]
    discarded = [one.discarded for one in outcomes if one.discarded]
    assert len(discarded) < GRAPHS / 10, Counter(discarded)
    held = set().union(*(one.parts for one in outcomes))
    steps = (
        "Transpose",
        "Identity",
        "Cast",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Slice",
        "Split",
        "Concat",
        "Mul",
        "Div",
        "Cast+Mul",
        "DequantizeLinear",
        "QuantizeLinear",
        "QuantizeLinear+DequantizeLinear",
        "Scan input",
    )
    hidden = {"mask": "Mul", "mask-div": "Div", "turned-sub": "Sub"}
    wanted = {
        *MAKERS,
        *(f"{step} {LISTED}" for step in steps),
        *(f"{hidden.get(step, step)} {OPAQUE}" for step in OPAQUE_STEPS),
        *("function", "if", "loop", "scan", "step in a function", "both branches"),
        *("initializer", "constant", "reference", "constant-floats"),
        *("sparse-initializer", "sparse-constant"),
        *("float32", "float64", "float16", "bfloat16", "float8_e4m3fn"),
        *("int8", "uint8", "2:4", "1:2", "1:4", "2:8", "old opset"),
    }
    assert held >= wanted, wanted - held
    judged = Counter(ok for one in outcomes for ok in one.judged)
    assert min(judged[True], judged[False]) > GRAPHS / 4
