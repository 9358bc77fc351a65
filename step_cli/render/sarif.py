"""`--format sarif`: SARIF 2.1.0, for code scanning.

Source: OASIS, Static Analysis Results Interchange Format Version 2.1.0. GitHub shows at
most 5,000 results of a run.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from importlib import metadata
from typing import Any
from urllib.parse import quote

from step_cli.render.text import one_line
from step_cli.render.verify_words import failing, unchecked, why_unchecked
from step_cli.reports import CheckpointVerdict, LayerVerdict, VerifyReport

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
MOST_RESULTS = 5000
RULES = {
    "nm-violation": "A weight breaks its N:M pattern, or differs from the baseline.",
    "nm-skipped": "A matrix could not be checked.",
    "nm-coverage": "Too small a share of the weights could be judged.",
    "non-finite": "A weight holds NaN or infinity.",
    "checkpoint-refused": "A checkpoint could not be read, or nothing was selected.",
}
Json = dict[str, Any]


def text(report: VerifyReport) -> str:
    """One run; a result for each failing layer, the worst first."""
    results = [result for checkpoint in report.shown for result in _results(checkpoint)]
    hidden = len(results) - MOST_RESULTS
    notifications = []
    if hidden > 0:
        more = {"text": f"and {hidden} more results"}
        notifications = [{"level": "warning", "message": more}]
    run = {
        "tool": {"driver": _driver()},
        "invocations": [
            {
                "executionSuccessful": report.error is None,
                "exitCode": report.exit_code,
                "toolExecutionNotifications": notifications,
            }
        ],
        "results": results[:MOST_RESULTS],
        "columnKind": "unicodeCodePoints",
    }
    document = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    dumped = json.dumps(document, indent=2, allow_nan=False)
    return dumped.replace("##[", "\\u0023#[") + "\n"


def _driver() -> Json:
    rules = [
        {"id": rule, "shortDescription": {"text": text}} for rule, text in RULES.items()
    ]
    return {
        "name": "step-cli",
        "version": metadata.version("step-cli"),
        "rules": rules,
    }


def _results(checkpoint: CheckpointVerdict) -> Iterator[Json]:
    layers = failing(checkpoint)
    for layer in layers:
        rule = "non-finite" if layer.nonfinite else "nm-violation"
        message = layer.message or ""
        yield _result(rule, "error", checkpoint, message, layer.name, layer)
    for tensor in unchecked(checkpoint):
        level = "warning" if tensor.ok else "error"
        message = why_unchecked(tensor)
        yield _result("nm-skipped", level, checkpoint, message, tensor.name)
    if checkpoint.shortfall is not None:
        yield _result("nm-coverage", "error", checkpoint, checkpoint.shortfall, None)
    error = checkpoint.error
    if error is not None and not layers:
        yield _result(
            "checkpoint-refused", "error", checkpoint, error.message, error.tensor
        )


def _result(
    rule: str,
    level: str,
    checkpoint: CheckpointVerdict,
    message: str,
    tensor: str | None,
    layer: LayerVerdict | None = None,
) -> Json:
    # Forges require a region, so one is given: the first line.
    location: Json = {
        "physicalLocation": {
            "artifactLocation": {"uri": uri_of(checkpoint.path)},
            "region": {"startLine": 1},
        }
    }
    text = message
    if tensor is not None:
        shown = one_line(tensor)
        location["logicalLocations"] = [{"fullyQualifiedName": shown}]
        text = f"{shown}: {message}"
    identity = [rule, tensor or "", layer.pattern if layer else ""]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return {
        "ruleId": rule,
        "ruleIndex": list(RULES).index(rule),
        "level": level,
        "message": {"text": _plain(text)},
        "locations": [location],
        "partialFingerprints": {"tensorPattern/v1": digest[:32]},
    }


def _plain(text: str) -> str:
    """Message text in which no brace is a placeholder and no bracket a link."""
    shown = one_line(text).replace("\\", "\\\\")
    shown = shown.replace("[", "\\[").replace("]", "\\]")
    return shown.replace("{", "{{").replace("}", "}}")


def uri_of(path: str) -> str:
    """A path as a URI reference, relative if it is below the working directory."""
    if os.path.isabs(path):
        relative = os.path.relpath(path)
        outside = relative.split(os.sep)[0] == os.pardir
        path = path if outside else relative
    quoted = quote(os.fsencode(path.replace(os.sep, "/")))
    return f"file://{quoted}" if quoted.startswith("/") else quoted
