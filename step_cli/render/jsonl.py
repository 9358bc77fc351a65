"""`--format jsonl`: one JSON object a line, for tools that read streams.

Kinds of lines: ``layer`` and ``skipped`` for tensors, then ``checkpoint`` for a file.
"""

import json
from typing import Any

from step_cli.reports import VerifyReport


def text(report: VerifyReport) -> str:
    """One line for each tensor, and one for each checkpoint after its tensors."""
    lines = []
    for checkpoint in report.shown:
        body = checkpoint.model_dump(mode="json")
        layers, skipped = body.pop("layers"), body.pop("skipped")
        path = body["path"]
        lines += [_line("layer", {"path": path, **layer}) for layer in layers]
        lines += [_line("skipped", {"path": path, **tensor}) for tensor in skipped]
        lines.append(_line("checkpoint", body))
    return "".join(lines)


def _line(kind: str, body: dict[str, Any]) -> str:
    line = json.dumps({"kind": kind, **body}, allow_nan=False)
    return line.replace("##[", "\\u0023#[") + "\n"
