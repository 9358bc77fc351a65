"""The section on a training run in the ``README.md`` of its model, and its metadata."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from step_cli.render.markdown import escaped
from step_cli.render.text import one_line
from step_cli.reports import TrainReport

COMMAND = "step-cli verify-nm ."
METRICS = {"eval_accuracy": "accuracy", "eval_loss": "loss"}  # known to the Hub
OTHER_METADATA = (
    "The metadata at the top of this file, with its numbers, are those of the model "
    "that the training started from."
)


@dataclass(frozen=True)
class CountedLayers:
    """What was counted in the stored weights of the plan.

    Attributes:
        patterns: Each pattern, and how many layers have it.
        groups: In all layers.
        violations: Groups that break their pattern.
    """

    patterns: Sequence[tuple[str, int]]
    groups: int
    violations: int

    @property
    def words(self) -> str:
        """``2:4 in 6 layers, 1:8 in 1 layer``."""
        return ", ".join(
            f"{pattern} in {count} layer{'' if count == 1 else 's'}"
            for pattern, count in self.patterns
        )


@dataclass(frozen=True)
class ModelCard:
    """All that the section shows.

    Attributes:
        name: Of the run.
        report: Of the run.
        counted: None for a dense model.
        facts: Further labels and values.
        dataset: What it was trained and measured on.
        task: As the Hub calls it; None where that is not known.
        library: What loads the model; empty for step-cli.
        other_metadata: Whether the top of the file is somebody else's.
    """

    name: str
    report: TrainReport
    counted: CountedLayers | None
    facts: Sequence[tuple[str, str]]
    dataset: str
    task: str | None
    library: str
    other_metadata: bool


def section(card: ModelCard) -> str:
    """The section, in Markdown; what comes from files cannot change its form."""
    lines = ["## N:M sparsity" if card.counted else "## Training", ""]
    if card.counted:
        lines += [
            "In each group of M weights in a row, along the axis that a matrix product "
            "sums over, at most N are not 0. The zeros are stored, so the files load "
            "as those of any other model.",
            "",
        ]
    if card.other_metadata:
        lines += [OTHER_METADATA, ""]
    lines += ["| | |", "|---|---|"]
    lines += [f"| {label} | {_words(value)} |" for label, value in _facts(card)]
    lines += ["", *_metrics(card.report)]
    if card.counted:
        lines += ["", *_verified(card.counted)]
    return "\n".join(lines) + "\n"


def _words(text: str) -> str:
    """Escaped but for what is plain text in the middle of words."""
    shown = escaped(text).replace("&#37;", "%")
    return re.sub(r"(?<=[a-zA-Z0-9])&#95;(?=[a-zA-Z0-9])", "_", shown)


def _facts(card: ModelCard) -> list[tuple[str, str]]:
    report = card.report
    facts = [("pattern", card.counted.words if card.counted else "none, dense")]
    if card.counted:
        facts.append(("density of these layers", f"{report.density:.4f}"))
    if card.counted and report.overall_density is not None:
        facts.append(("density of all layers", f"{report.overall_density:.4f}"))
    facts.append(("recipe", report.recipe or ""))
    if report.switch is not None:
        step, why = report.switch.step, report.switch.reason
        switch = f"after step {step} ({report.switch.criterion}, {why})"
        facts.append(("dense until the switch", switch))
    return [*facts, *card.facts]


def _metrics(report: TrainReport) -> list[str]:
    twin = report.dense_metrics
    titles = ["metric", "this model", *([] if twin is None else ["dense weights"])]
    lines = [
        f"On held-out data after step {report.steps}:",
        "",
        "| " + " | ".join(titles) + " |",
        "|" + "|".join(["---", *["--:"] * (len(titles) - 1)]) + "|",
    ]
    for key, value in report.metrics.items():
        row = [escaped(key.removeprefix("eval_").replace("_", " ")), f"{value:.4f}"]
        row += [] if twin is None else [f"{twin[key]:.4f}"]
        lines.append("| " + " | ".join(row) + " |")
    if twin is not None:
        lines += [
            "",
            "Dense weights: those that the optimizer updated in the same run.",
        ]
    return lines


def _verified(counted: CountedLayers) -> list[str]:
    return [
        "### How it was verified",
        "",
        "When the files were written, every group of these layers was counted in them: "
        f"{counted.groups:,} groups, of which {counted.violations:,} break their "
        "pattern. To count again, in this directory:",
        "",
        "```",
        COMMAND,
        "```",
        "",
        "Exit code 0 means that every layer of the plan, which is stored with the "
        "weights, holds its pattern; 1 means that one does not. The accuracy is not "
        "checked by it.",
    ]


def metadata(card: ModelCard) -> str:
    """The metadata that the Hugging Face Hub reads, as YAML."""
    tags = ["step-cli"]
    if card.counted:
        tags += ["sparsity", *(pattern for pattern, _ in card.counted.patterns)]
    lines = [f"library_name: {quoted(card.library or 'step-cli')}"]
    if card.library and card.task:
        lines.append(f"pipeline_tag: {quoted(card.task)}")
    lines += ["tags:", *(f"- {quoted(tag)}" for tag in tags)]
    if card.task:
        lines += _results(card, card.task)
    return "\n".join(lines) + "\n"


def _results(card: ModelCard, task: str) -> list[str]:
    known = {METRICS[k]: v for k, v in card.report.metrics.items() if k in METRICS}
    lines = [
        "model-index:",
        f"- name: {quoted(card.name)}",
        "  results:",
        "  - task:",
        f"      type: {quoted(task)}",
        "    dataset:",
        f"      name: {quoted(card.dataset)}",
        f"      type: {quoted(card.dataset)}",
        "      split: held-out",
        "    metrics:",
    ]
    for name, value in known.items():
        lines += [f"    - type: {name}", f"      value: {value:.6f}"]
    return lines if known else []


def quoted(text: str) -> str:
    """A string of YAML in ASCII, whatever its letters are."""
    letters = (
        letter if letter.isascii() and letter not in '"\\' else f"\\U{ord(letter):08x}"
        for letter in one_line(text)
    )
    return f'"{"".join(letters)}"'
