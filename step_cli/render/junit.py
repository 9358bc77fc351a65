"""`--format junit`: a suite for each checkpoint, a case for each tensor."""

import unicodedata

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from step_cli.render.text import one_line
from step_cli.render.verify_words import unchecked, why_unchecked
from step_cli.reports import CheckpointVerdict, LayerVerdict, VerifyReport


def text(report: VerifyReport) -> str:
    """JUnit XML: failures for broken patterns, errors for what could not be read."""
    document = JUnitXml("step-cli verify-nm")
    for checkpoint in report.shown:
        suite = TestSuite(clean(checkpoint.path))
        for case in _cases(checkpoint):
            suite.add_testcase(case)
        document.add_testsuite(suite)
    document.update_statistics()  # type: ignore[no-untyped-call]
    written: bytes = document.tostring()  # type: ignore[no-untyped-call]
    return written.decode("utf-8").rstrip("\n") + "\n"


def _cases(checkpoint: CheckpointVerdict) -> list[TestCase]:
    cases = [_layer(layer, checkpoint) for layer in checkpoint.layers]
    failed = any(not layer.ok for layer in checkpoint.layers)
    unfit = {tensor.name: why_unchecked(tensor) for tensor in unchecked(checkpoint)}
    for tensor in checkpoint.skipped:
        case = _case(tensor.name, checkpoint)
        reason = clean(unfit.get(tensor.name, tensor.reason))
        if tensor.ok:
            case.result = [Skipped(reason)]
        else:
            case.result = [Failure(reason, "nm-skipped")]
        cases.append(case)
    if checkpoint.shortfall is not None:
        case = _case("coverage", checkpoint)
        case.result = [Failure(clean(checkpoint.shortfall), "nm-coverage")]
        cases.append(case)
    if checkpoint.error is not None and not failed:
        case = _case(checkpoint.error.tensor or "checkpoint", checkpoint)
        case.result = [Error(clean(checkpoint.error.message), "refused")]
        cases.append(case)
    return cases


def _layer(layer: LayerVerdict, checkpoint: CheckpointVerdict) -> TestCase:
    case = _case(layer.name, checkpoint)
    if not layer.ok:
        kind = "non-finite" if layer.nonfinite else "nm-violation"
        case.result = [Failure(clean(layer.message or ""), kind)]
    return case


def _case(name: str, checkpoint: CheckpointVerdict) -> TestCase:
    return TestCase(clean(name), clean(checkpoint.path))


def clean(text: str) -> str:
    """Text that XML can hold: control and undefined characters are written out."""
    return "".join(
        f"\\U{ord(character):08x}"
        if unicodedata.category(character) == "Cn"
        else character
        for character in one_line(text)
    )
