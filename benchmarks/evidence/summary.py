"""The short tables of README.md and docs/choosing.md, and how numbers are written."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.evidence.grid import FRACTIONS, PATTERNS, by_switch
from benchmarks.evidence.pictures import known
from benchmarks.evidence.results import Study
from benchmarks.evidence.tasks import Task

# STEP of the short tables switches after half of the steps: by AutoSwitch, which did
# not fire before and was clipped there, or by another criterion where it did.
HALF = {"glosses": "step-relative"}
HALF_TAUGHT = {"glosses": "step-relative-taught", "retext": "step-at-50-taught"}
RECIPES = {"ASP": "asp", "STE": "ste", "SR-STE": "sr-ste", "STEP": "step"}
TAUGHT = ("SR-STE + teacher", "STEP + teacher")
TITLES = {
    "glosses": "fine-tuning MiniLM to classify glosses: accuracy, %",
    "glyphs": "ResNet on images of characters: accuracy, %",
    "phonemes": "encoder-decoder, spelling to phonemes: error rate, %, lower is better",
    "text": "GPT on source text: loss, lower is better",
    "retext": "that GPT trained further on other text: loss, lower is better",
}
BLOCK = re.compile(r"<!-- evidence -->\n.*?<!-- /evidence -->", re.S)


def headline_rows(study: Study, tasks: Sequence[Task]) -> Iterator[str]:
    """One row a task: dense, and three recipes at 2:4, two of them with a teacher."""
    names = ("ASP", "SR-STE", "STEP", *TAUGHT)
    yield f"| task, at 2:4 | dense | {' | '.join(names)} |"
    yield "|---|---:|" + "---:|" * len(names)
    for task in tasks:
        cells = [mean(study, task, "dense", "dense")]
        cells += [by_recipe(study, task, name, "2:4") for name in names]
        yield f"| {TITLES[task.name]} | {' | '.join(cells)} |"


def recipe_rows(study: Study, tasks: Sequence[Task]) -> Iterator[str]:
    """One row a task and pattern: dense and the recipes of the core."""
    yield f"| task | pattern | dense | {' | '.join(RECIPES)} |"
    yield "|---|---|---:|" + "---:|" * len(RECIPES)
    for task in tasks:
        for pattern in PATTERNS:
            cells = [mean(study, task, "dense", "dense")]
            cells += [by_recipe(study, task, name, pattern) for name in RECIPES]
            yield f"| {task.name} | {pattern} | {' | '.join(cells)} |"


def taught_rows(study: Study, tasks: Sequence[Task]) -> Iterator[str]:
    """One row a task and pattern: SR-STE and STEP, without and with a teacher."""
    names = ("SR-STE", "SR-STE + teacher", "STEP", "STEP + teacher")
    yield f"| task | pattern | dense | {' | '.join(names)} |"
    yield "|---|---|---:|" + "---:|" * len(names)
    for task in tasks:
        for pattern in ("2:4", "1:4"):
            cells = [mean(study, task, "dense", "dense")]
            cells += [by_recipe(study, task, name, pattern) for name in names]
            yield f"| {task.name} | {pattern} | {' | '.join(cells)} |"


def pattern_rows(study: Study, tasks: Sequence[Task]) -> Iterator[str]:
    """One row a task: STEP at each pattern."""
    yield f"| task | dense | {' | '.join(PATTERNS)} |"
    yield "|---|---:|" + "---:|" * len(PATTERNS)
    for task in tasks:
        cells = [mean(study, task, "dense", "dense")]
        cells += [by_recipe(study, task, "STEP", p) for p in PATTERNS]
        yield f"| {TITLES[task.name]} | {' | '.join(cells)} |"


def switch_rows(study: Study, tasks: Sequence[Task]) -> Iterator[str]:
    """One row a task: STEP at 1:4 by its switch point, and by two criteria."""
    names = [f"{fraction:.0%}".replace("%", " %") for fraction in FRACTIONS]
    yield f"| task | dense | {' | '.join(names)} | autoswitch | autoswitch-relative |"
    yield "|---|" + "---:|" * (len(names) + 3)
    for task in tasks:
        labels = (*by_switch(task.name), "step", "step-relative")
        cells = [mean(study, task, "dense", "dense")]
        cells += [mean(study, task, label, "1:4") for label in labels]
        yield f"| {task.name} | {' | '.join(cells)} |"


def mean(study: Study, task: Task, label: str, pattern: str) -> str:
    """The mean over the seeds; empty where nothing was measured."""
    found = known(study, task, label, pattern)
    return size(task, fmean(found)) if found else ""


def by_recipe(study: Study, task: Task, name: str, pattern: str) -> str:
    """The mean of a recipe; of STEP with its switch after half of the steps."""
    own = {
        "STEP": HALF.get(task.name, "step"),
        "STEP + teacher": HALF_TAUGHT.get(task.name, "step-taught"),
        "SR-STE + teacher": "sr-ste-taught",
    }
    return mean(study, task, own.get(name) or RECIPES[name], pattern)


def signed(task: Task, gained: float) -> str:
    """A gain with its sign: points of a share, or nats."""
    return ("+" if gained > 0 else "-" if gained < 0 else "") + size(task, gained)


def size(task: Task, value: float) -> str:
    """An amount without its sign, in percent where the metric is a share."""
    share = task.metric != "eval_loss"
    return f"{100 * abs(value):.2f}" if share else f"{abs(value):.4f}"


def write_headline(study: Study, tasks: Sequence[Task], readme: Path) -> None:
    """Put the first table into README.md, between its marks."""
    rows = "\n".join(headline_rows(study, tasks))
    block = f"<!-- evidence -->\n{rows}\n<!-- /evidence -->"
    text = BLOCK.sub(lambda _: block, readme.read_text(encoding="utf-8"))
    readme.write_text(text, encoding="utf-8")
