"""The short tables of README.md and docs/choosing.md, from the results that are there."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.evidence.pictures import known
from benchmarks.evidence.results import Study
from benchmarks.evidence.tasks import Task

# The criterion of `train`'s default: what is called STEP in the short tables.
STEP = "step"
TITLES = {
    "glosses": "fine-tuning MiniLM on dictionary glosses, accuracy in %",
    "glyphs": "ResNet on images of characters, from scratch, accuracy in %",
    "phonemes": "encoder-decoder, spelling to phonemes, from scratch, error rate in %",
    "text": "GPT on Python source text, from scratch, held-out loss",
    "retext": "the same GPT, trained further on dictionary text, held-out loss",
}
NAMES = {"asp": "ASP", "ste": "STE", "sr-ste": "SR-STE"}
BLOCK = re.compile(r"<!-- evidence -->\n.*?<!-- /evidence -->", re.S)


def headline_rows(study: Study, tasks: Sequence[Task]) -> Iterator[str]:
    """One row a task: dense, and ASP, SR-STE and STEP at 2:4 and at 1:4."""
    labels = ("asp", "sr-ste", STEP)
    heads = [
        f"{NAMES.get(label, 'STEP')} {p}" for p in ("2:4", "1:4") for label in labels
    ]
    yield f"| task | better is | dense | {' | '.join(heads)} |"
    yield "|---|---|---:|" + "---:|" * len(heads)
    for task in tasks:
        cells = [
            mean(study, task, label, p) for p in ("2:4", "1:4") for label in labels
        ]
        better = "higher" if task.higher_is_better else "lower"
        yield (
            f"| {TITLES[task.name]} | {better} | {mean(study, task, 'dense', 'dense')} | "
            f"{' | '.join(cells)} |"
        )


def pattern_rows(study: Study, tasks: Sequence[Task], label: str) -> Iterator[str]:
    """One row a task: what each pattern keeps of dense, by one recipe."""
    patterns = ("2:4", "1:4", "1:8")
    yield f"| task | dense | {' | '.join(patterns)} |"
    yield "|---|---:|" + "---:|" * len(patterns)
    for task in tasks:
        cells = [mean(study, task, label, pattern) for pattern in patterns]
        dense = mean(study, task, "dense", "dense")
        yield f"| {task.name} | {dense} | {' | '.join(cells)} |"


def mean(study: Study, task: Task, label: str, pattern: str) -> str:
    """The mean over the seeds, in percent where the metric is a share."""
    found = known(study, task, label, pattern)
    if not found:
        return ""
    value = fmean(found)
    return f"{value:.3f}" if task.metric == "eval_loss" else f"{100 * value:.1f}"


def write_headline(study: Study, tasks: Sequence[Task], readme: Path) -> None:
    """Put the table into README.md, between its marks."""
    rows = "\n".join(headline_rows(study, tasks))
    block = f"<!-- evidence -->\n{rows}\n<!-- /evidence -->"
    text = BLOCK.sub(lambda _: block, readme.read_text(encoding="utf-8"))
    readme.write_text(text, encoding="utf-8")
