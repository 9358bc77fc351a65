"""Write docs/evidence.md and its pictures from the results that are there.

python -m benchmarks.evidence.report
"""

import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.evidence.claims import (
    CLAIMS,
    Comparison,
    gain,
    spread_of_switch,
    switch_verdict,
    verdict,
)
from benchmarks.evidence.grid import (
    CAUSE_TASKS,
    CORE,
    MORE,
    SEEDS,
    Method,
    Run,
    all_tasks,
    cause_runs,
    causes,
    runs_that_count,
    switch_methods,
    taught_methods,
)
from benchmarks.evidence.pictures import draw_recipes, draw_switch, known
from benchmarks.evidence.results import ROOT, Study
from benchmarks.evidence.summary import (
    pattern_rows,
    recipe_rows,
    signed,
    size,
    switch_rows,
    taught_rows,
    write_headline,
)
from benchmarks.evidence.tasks import TASKS, Task
from step_cli.commands.compare.statistics import Difference

DOCS = ROOT / "docs"
MISSING = "not measured yet"
INCOMPLETE = "runs are missing"  # the verdict until all of its runs are there


def main() -> None:
    """Write all of it."""
    study, tasks = Study(), all_tasks()
    begun = [task for task in tasks if known(study, task, "dense", "dense")]
    draw_recipes(study, begun, DOCS / "evidence-recipes.svg")
    draw_switch(study, begun, DOCS / "evidence-switch.svg")
    (DOCS / "evidence.md").write_text(page(study, tasks), encoding="utf-8")
    (DOCS / "choosing.md").write_text(choosing(study, tasks), encoding="utf-8")
    write_headline(study, tasks, ROOT / "README.md")


def page(study: Study, tasks: Sequence[Task]) -> str:
    """The page; what is written by hand is in evidence.template.md."""
    return template("evidence").substitute(
        state=state(study, tasks),
        claims="\n".join(claim_rows(study)),
        tasks="\n".join(line for task in tasks for line in task_table(study, task)),
        switch="\n".join(switch_rows(study, tasks)),
        criteria="\n".join(criterion_rows(study, tasks)),
        causes="\n".join(cause_rows(study)),
        tuning="\n".join(rate_rows(study, tasks)),
    )


def choosing(study: Study, tasks: Sequence[Task]) -> str:
    """What follows for a user; what is written by hand is in choosing.template.md."""
    return template("choosing").substitute(
        state=progress(study, tasks),
        recipes="\n".join(recipe_rows(study, tasks)),
        patterns="\n".join(pattern_rows(study, tasks)),
        switch="\n".join(switch_rows(study, tasks)),
        taught="\n".join(taught_rows(study, tasks)),
    )


def template(name: str) -> string.Template:
    """The words of a page, with $names where its tables go."""
    path = Path(__file__).parent / f"{name}.template.md"
    return string.Template(path.read_text(encoding="utf-8"))


def progress(study: Study, tasks: Sequence[Task]) -> str:
    """Whether the study is finished, in a sentence."""
    runs = list(runs_that_count(list(tasks)))
    missing = len(study.missing(iter(runs)))
    if not missing:
        return "The study is finished."
    return f"The study is not finished: {len(runs) - missing} of {len(runs)} runs are."


def state(study: Study, tasks: Sequence[Task]) -> str:
    """How much of the study there is, and on what it was made."""
    runs = list(runs_that_count(list(tasks)))
    made = [found for run in runs if (found := study.result(run))]
    trained = [result for result in made if "same_as" not in result]
    hours = sum(result["seconds"] for result in trained) / 3600
    machines = sorted({result["machine"] for result in made})
    versions = sorted(
        {
            ", ".join(f"{name} {value}" for name, value in result["versions"].items())
            for result in made
        }
    )
    return (
        f"{len(made)} of {len(runs)} runs are finished, by {len(trained)} trainings "
        f"({hours:.1f} h of one thread); "
        f"{'; '.join(machines)}; {'; '.join(versions)}."
    )


def claim_rows(study: Study) -> Iterator[str]:
    """One row a claim."""
    yield "| claim | published | measured here | verdict |"
    yield "|---|---|---|---|"
    for claim in CLAIMS:
        said = [_said(study, each) for each in claim.comparisons]
        ours = "; ".join(each for each in said if each is not None) or MISSING
        found = verdict(study, claim) or INCOMPLETE
        there = f"{claim.source}: {claim.published}"
        yield f"| {claim.text} | {there} | {ours} | {found} |"
    spreads = "; ".join(
        f"{name} {spread:.0%}"
        for name in TASKS
        if (spread := spread_of_switch(study, name)) is not None
    )
    yield (
        "| The switch point hardly matters from 10 to 80 % of the steps | STEP, Figure "
        "7: a plot without numbers | largest minus smallest mean, as a share of what "
        "dense gains over ASP: "
        f"{spreads or MISSING} | {switch_verdict(study) or INCOMPLETE} |"
    )


def _said(study: Study, comparison: Comparison) -> str | None:
    """The gain of one comparison, in the unit of its task; clear ones are bold."""
    found = gain(study, comparison)
    if found is None:
        return None
    pattern = next(p for p in (comparison.first[1], comparison.second[1]) if ":" in p)
    task = TASKS[comparison.task]
    number = f"{signed(task, found.mean)} ± {size(task, half(found))}"
    return f"{comparison.task} {pattern} {f'**{number}**' if found.clear else number}"


def half(found: Difference) -> float:
    """How far its interval reaches to each side."""
    assert found.interval is not None
    return (found.interval[1] - found.interval[0]) / 2


def task_table(study: Study, task: Task) -> Iterator[str]:
    """Mean, spread and difference to dense of every method of a task."""
    unit = {"eval_accuracy": "accuracy, %", "per": "phoneme error rate, %"}
    yield f"### {task.name}"
    yield ""
    yield (
        f"| method | pattern | {unit.get(task.metric, 'held-out loss')} | sd | gain "
        "over dense, 95 % interval | seeds | switch |"
    )
    yield "|---|---|---:|---:|---|---:|---|"
    name = task.name
    more = (*switch_methods(name), *MORE[name], *taught_methods(name))
    for method in (*CORE, *more):
        for pattern in method.patterns:
            yield _method_row(study, task, method, pattern)
    yield ""


def _method_row(study: Study, task: Task, method: Method, pattern: str) -> str:
    found = known(study, task, method.label, pattern)
    head = f"| {method.label} | {'' if pattern == 'dense' else pattern} |"
    if not found:
        return f"{head} {MISSING} | | | 0 | |"
    spread = size(task, stdev(found)) if len(found) > 1 else ""
    dense = ("sgd-dense" if method.label.startswith("sgd-") else "dense", "dense")
    to_dense = gain(study, Comparison(task.name, (method.label, pattern), dense))
    gained = ""
    if to_dense is not None and (method.label, pattern) != dense:
        gained = f"{signed(task, to_dense.mean)} ± {size(task, half(to_dense))}"
    switches = _switches(study, task, method.label, pattern)
    return (
        f"{head} {size(task, fmean(found))} | {spread} | {gained} | {len(found)} | "
        f"{switches} |"
    )


def _switches(study: Study, task: Task, label: str, pattern: str) -> str:
    """The steps after which the runs switched, with what decided."""
    results = [study.result(Run(task.name, label, pattern, seed)) for seed in SEEDS]
    points = [result["switch"] for result in results if result and result["switch"]]
    steps = sorted({point["step"] for point in points})
    reasons = sorted({point["reason"] for point in points})
    return f"{', '.join(map(str, steps))} ({', '.join(reasons)})" if points else ""


def criterion_rows(study: Study, tasks: Sequence[Task]) -> Iterator[str]:
    """Where each criterion would have switched the dense runs, unclipped."""
    made = {
        task.name: [
            result
            for seed in SEEDS
            if (result := study.result(Run(task.name, "dense", "dense", seed)))
        ]
        for task in tasks
    }
    names = next(
        (list(results[0]["criteria"]) for results in made.values() if results), []
    )
    yield f"| task | steps | {' | '.join(names)} |"
    yield "|---|---:|" + "---:|" * len(names)
    for task, results in made.items():
        if not results:
            continue
        steps = [_raw_steps(results, name) for name in names]
        length = results[0]["curve"][-1]["step"]
        yield f"| {task} | {length} | {' | '.join(steps)} |"


def _raw_steps(results: Sequence[dict[str, Any]], name: str) -> str:
    """Where a criterion would have switched each run, in order; "never" last."""
    found = {result["criteria"][name]["raw_step"] for result in results}
    known = map(str, sorted(step for step in found if step))
    return ", ".join([*known, *(["never"] if None in found else [])])


def cause_rows(study: Study) -> Iterator[str]:
    """STEP with one thing changed after another, up to SR-STE; one seed."""
    yield f"| method | {' | '.join(CAUSE_TASKS)} |"
    yield "|---|" + "---:|" * len(CAUSE_TASKS)
    runs = {name: list(cause_runs([TASKS[name]])) for name in CAUSE_TASKS}
    for number, said in enumerate(causes()):
        found = [study.value(made[number]) for made in runs.values()]
        cells = [
            MISSING if value is None else size(TASKS[name], value)
            for name, value in zip(CAUSE_TASKS, found, strict=True)
        ]
        yield f"| {said} | {' | '.join(cells)} |"


def rate_rows(study: Study, tasks: Sequence[Task]) -> Iterator[str]:
    """The learning rates that were tried with the tuning seed."""
    from benchmarks.evidence.grid import tuning_runs

    yield "| task | tuned | learning rates tried, and the metric at each | taken |"
    yield "|---|---|---|---:|"
    runs = list(tuning_runs(list(tasks)))
    for name, label in dict.fromkeys((run.task, run.label) for run in runs):
        task = TASKS[name]
        tried = [run for run in runs if (run.task, run.label) == (name, label)]
        cells = [
            f"{run.rate:g}: {size(task, value)}"
            for run in tried
            if (value := study.value(run)) is not None
        ]
        rate = study.rate(task, label)
        taken = "" if rate is None else f"{rate:g}"
        yield f"| {name} | {label} | {', '.join(cells) or MISSING} | {taken} |"


if __name__ == "__main__":
    main()
