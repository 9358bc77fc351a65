"""Every snippet of docs/python.md runs as it stands."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from integration import snippets

from step_cli.training.distillation import distill_loss

DOCUMENT = Path(__file__).parent.parent / "docs" / "python.md"
SNIPPET = re.compile(r"(?:<!-- with: (\w+) -->\n)?```python\n(.*?)```", re.DOTALL)
SNIPPETS = SNIPPET.findall(DOCUMENT.read_text())
NAMES = {"plain": snippets.plain, "gpt2": snippets.gpt2, "classes": snippets.classes,
         "lightning": snippets.lightning, "ranks": snippets.plain,
         "files": snippets.files}  # fmt: skip


def titled() -> list[Any]:
    return [
        pytest.param(kind, code, id=f"{kind}-{i}")
        for i, (kind, code) in enumerate(SNIPPETS)
    ]


def test_every_snippet_says_what_it_runs_with() -> None:
    assert {kind for kind, _ in SNIPPETS} == set(NAMES)


@pytest.mark.parametrize(("kind", "code"), titled())
def test_a_snippet_runs(
    kind: str,
    code: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kind == "ranks":
        request.getfixturevalue("ranks").run(snippets.run_on_rank, code, tmp_path)
        return
    if kind == "gpt2":
        pytest.importorskip("accelerate")
    if kind == "files":
        monkeypatch.chdir(tmp_path)
    names = NAMES[kind](tmp_path)
    if kind == "lightning":
        monkeypatch.setitem(sys.modules, "lightning", names["lightning"])
        monkeypatch.setitem(
            sys.modules, "lightning.pytorch", names["lightning"].pytorch
        )
        # It is imported with the stand-in, and forgotten afterwards.
        callback = "step_cli.integrations.lightning"
        monkeypatch.setitem(sys.modules, callback, sys.modules.get(callback))
        del sys.modules[callback]
    snippets.run(code, names)
    if kind == "classes":  # what is shown is what `train` does
        scores = names["scores"].detach()
        taught = names["teacher"](names["inputs"])
        given = distill_loss(scores, taught, names["labels"], temperature=names["T"])
        assert torch.equal(names["distill"].detach(), given)
        assert names["optimizer"].steps_taken == len(names["loader"])
        assert names["teacher"].weight.grad is None
    if kind == "lightning":
        assert names["Module"]().configure_optimizers().phase == "precondition"
        assert len(names["callbacks"]) == 1
