"""The rules of the protocol: when a claim is seen, not seen, or neither."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.evidence import pictures
from benchmarks.evidence.claims import (
    NOT_SEEN,
    SEEN,
    UNTOLD,
    Claim,
    Comparison,
    gain,
    spread_of_switch,
    switch_verdict,
    verdict,
)
from benchmarks.evidence.grid import (
    SEEDS,
    Run,
    all_tasks,
    by_switch,
    cause_runs,
    runs_that_count,
    switched_at,
    tuning_runs,
)
from benchmarks.evidence.report import DOCS, choosing, page, state
from benchmarks.evidence.results import Study
from benchmarks.evidence.study import same_run
from benchmarks.evidence.summary import headline_rows
from benchmarks.evidence.tasks import TASKS

Write = Callable[[str, str, str, list[float]], None]
NOISE = (0.001, -0.001, 0.0)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


@pytest.fixture
def write(study: Study) -> Write:
    def write(task: str, label: str, pattern: str, found: list[float]) -> None:
        for seed, value in zip(SEEDS, found, strict=False):
            run = Run(task, label, pattern, seed)
            study.write(run, result(run, value))

    return write


def result(run: Run, value: float) -> dict[str, Any]:
    """A result as the driver writes it."""
    return {
        "config": TASKS[run.task].digest,
        "metrics": {TASKS[run.task].metric: value},
        "switch": {"step": 50, "reason": "t_max"} if run.label == "step" else None,
        "criteria": {
            "autoswitch": {"raw_step": 40},
            "autoswitch-relative": {"raw_step": 9, "switch_step": 9},
        },
        "curve": [{"step": 100}],
        "seconds": 60.0,
        "machine": "a machine",
        "versions": {"torch": "0"},
    }


def claim(*tasks: str, equal: bool = False) -> Claim:
    floor = ("asp", "2:4") if equal else None
    return Claim(
        "first is better",
        "a paper",
        "1 against 2",
        tuple(Comparison(task, ("a", "2:4"), ("b", "2:4"), floor) for task in tasks),
        equal=equal,
    )


def around(mean: float, noise: tuple[float, ...] = NOISE) -> list[float]:
    return [mean + more for more in noise]


def test_a_claim_is_seen_only_where_it_is_clear_and_never_against_it(
    study: Study, write: Write
) -> None:
    for task in ("glosses", "glyphs", "text"):
        write(task, "b", "2:4", around(0.5, (0, 0, 0)))
    write("glosses", "a", "2:4", around(0.6))
    write("glyphs", "a", "2:4", around(0.6))
    write("text", "a", "2:4", around(0.4))  # a loss: lower is better
    all_three = claim("glosses", "glyphs", "text")
    assert verdict(study, all_three) == SEEN
    assert verdict(study, claim("glosses")) == SEEN
    write("text", "a", "2:4", around(0.6))
    assert verdict(study, all_three) == UNTOLD  # clear both ways
    assert verdict(study, claim("text")) == NOT_SEEN
    write("glyphs", "a", "2:4", around(0.4))
    assert verdict(study, all_three) == NOT_SEEN


def test_what_is_not_clear_is_not_seen_only_if_it_points_the_other_way(
    study: Study, write: Write
) -> None:
    wide = (0.2, -0.2, 0.0)
    write("glosses", "b", "2:4", around(0.5, (0, 0, 0)))
    write("glosses", "a", "2:4", around(0.52, wide))
    assert verdict(study, claim("glosses")) == UNTOLD
    write("glosses", "a", "2:4", around(0.48, wide))
    assert verdict(study, claim("glosses")) == NOT_SEEN


def test_a_missing_run_gives_no_verdict(study: Study, write: Write) -> None:
    write("glosses", "b", "2:4", around(0.5))
    write("glosses", "a", "2:4", around(0.6)[:2])
    assert verdict(study, claim("glosses")) is None
    found = gain(study, claim("glosses").comparisons[0])
    assert found is not None
    assert found.seeds == (0, 1)


def test_as_good_is_within_a_tenth_of_what_asp_loses(
    study: Study, write: Write
) -> None:
    write("glosses", "b", "2:4", around(0.8, (0, 0, 0)))
    write("glosses", "asp", "2:4", around(0.6))
    equal = claim("glosses", equal=True)
    write("glosses", "a", "2:4", around(0.79, (0.03, -0.03, 0)))
    assert verdict(study, equal) == SEEN
    write("glosses", "a", "2:4", around(0.77, (0.03, -0.03, 0)))
    assert verdict(study, equal) == UNTOLD
    write("glosses", "a", "2:4", around(0.77))
    assert verdict(study, equal) == NOT_SEEN


def test_the_switch_point_matters_where_its_means_lie_far_apart(
    study: Study, write: Write
) -> None:
    for task in TASKS:
        better = 0.8 if TASKS[task].higher_is_better else 0.2
        write(task, "dense", "dense", around(better))
        write(task, "asp", "1:4", around(1 - better))
        for number, label in enumerate(by_switch(task)):
            write(task, label, "1:4", around(0.5 + 0.01 * number))
    assert spread_of_switch(study, "text") == pytest.approx(0.03 / 0.6)
    assert switch_verdict(study) == SEEN
    for task in ("text", "retext", "glyphs"):
        write(task, switched_at(task, 0.8), "1:4", around(0.9))
    assert switch_verdict(study) == NOT_SEEN


def test_results_of_another_configuration_do_not_count(
    study: Study, write: Write
) -> None:
    run = Run("text", "a", "2:4", 0)
    study.write(run, result(run, 0.5))
    assert study.value(run) == 0.5
    study.write(run, result(run, 0.5) | {"config": "another"})
    assert study.value(run) is None
    assert study.missing(iter([run])) == [run]


def test_the_best_learning_rate_is_taken_once_all_are_there(study: Study) -> None:
    task = TASKS["text"]
    runs = [run for run in tuning_runs([task]) if run.label == "sr-ste"]
    for run, loss in zip(runs, (2.0, 1.5, 1.9, 1.8), strict=True):
        assert study.rate(task, "sr-ste") is None
        study.write(run, result(run, loss))
    assert study.rate(task, "sr-ste") == task.rates[1]


def test_step_is_trained_once_where_both_criteria_switch_at_the_same_step(
    study: Study,
) -> None:
    relative, other = (Run("text", label, "2:4", 0) for label in ("step-relative", "a"))
    assert same_run(study, relative) is None
    dense, step = Run("text", "dense", "dense", 0), Run("text", "step", "2:4", 0)
    for run in (dense, step):
        study.write(run, result(run, 0.5))
    assert same_run(study, relative) is None  # at 9, not at 50
    told = {"criteria": {"autoswitch-relative": {"switch_step": 50}}}
    study.write(dense, result(dense, 0.5) | told)
    assert same_run(study, relative) == study.result(step)
    assert same_run(study, other) is None


def test_every_run_has_a_file_of_its_own_and_every_claim_is_measured() -> None:
    from benchmarks.evidence.claims import CLAIMS

    tasks = all_tasks()
    runs = [*tuning_runs(tasks), *runs_that_count(tasks), *cause_runs(tasks)]
    assert len({(run.task, run.name) for run in runs}) == len(runs)
    made = {(run.task, run.label, run.pattern) for run in runs if run.rate is None}
    for found in CLAIMS:
        for comparison in found.comparisons:
            assert (comparison.task, *comparison.first) in made
            assert (comparison.task, *comparison.second) in made
            assert (
                comparison.floor is None or (comparison.task, *comparison.floor) in made
            )


def test_the_page_is_written_from_nothing_and_from_everything(study: Study) -> None:
    tasks = all_tasks()
    assert "0 of" in page(study, tasks)
    for run in (*tuning_runs(tasks), *runs_that_count(tasks), *cause_runs(tasks)):
        study.write(run, result(run, 0.5 + 0.01 * len(run.label) + 0.001 * run.seed))
    written = page(study, tasks)
    assert "| |" not in choosing(study, tasks)
    assert "not measured yet" not in written


def test_a_training_that_stands_for_two_runs_is_counted_once(study: Study) -> None:
    run, same = (Run("text", label, "2:4", 0) for label in ("step", "step-relative"))
    hour = result(run, 0.5) | {"seconds": 3600.0}
    study.write(run, hour)
    assert "1 of 81 runs are finished, by 1 trainings (1.0 h" in state(
        study, [TASKS["text"]]
    )
    study.write(same, hour | {"same_as": "step"})
    assert "2 of 81 runs are finished, by 1 trainings (1.0 h" in state(
        study, [TASKS["text"]]
    )


def test_the_picture_shows_each_seed_in_which_a_criterion_switches(
    study: Study,
) -> None:
    for seed, step in zip(SEEDS, (None, 27, 83), strict=True):
        run = Run("text", "dense", "dense", seed)
        told = {"autoswitch": {"raw_step": None}}
        told["autoswitch-relative"] = {"raw_step": step}
        study.write(run, result(run, 0.5) | {"criteria": told})
    places: list[float] = []
    axis = SimpleNamespace(axvline=lambda place, **_: places.append(place))
    for name in pictures.CRITERIA:
        pictures._switched(axis, study, TASKS["text"], name, "red")
    assert places == [27, 83]


def test_the_pages_are_what_the_results_give() -> None:
    committed, tasks = Study(), all_tasks()
    assert (DOCS / "evidence.md").read_text("utf-8") == page(committed, tasks)
    assert (DOCS / "choosing.md").read_text("utf-8") == choosing(committed, tasks)
    rows = "\n".join(headline_rows(committed, tasks))
    assert rows in (DOCS.parent / "README.md").read_text("utf-8")
