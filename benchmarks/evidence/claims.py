"""The claims of the papers, and by what rule each is seen, not seen, or cannot tell.

The rules are those of protocol.md. A gain is positive where the first method is better,
whatever the direction of the task's metric.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from benchmarks.evidence.grid import SEEDS, Run, ablated, by_switch
from benchmarks.evidence.results import Study
from benchmarks.evidence.tasks import TASKS
from step_cli.commands.compare.statistics import Difference, paired_difference

ALL = tuple(TASKS)
FLAT = 0.2  # of what dense gains over ASP: a smaller spread hardly matters
SEEN, NOT_SEEN, UNTOLD = "seen", "not seen", "cannot tell"


@dataclass(frozen=True)
class Comparison:
    """Two methods on one task.

    Attributes:
        task: Name of the task.
        first, second: Label and pattern of each.
        floor: Label and pattern of the method that says how much there is to gain.
    """

    task: str
    first: tuple[str, str]
    second: tuple[str, str]
    floor: tuple[str, str] | None = None


@dataclass(frozen=True)
class Claim:
    """A claim and what it is measured by.

    Attributes:
        text: The claim.
        source: Paper, and table or figure.
        published: Its numbers there.
        comparisons: One for each task and pattern.
        equal: It says "as good as", not "better than".
    """

    text: str
    source: str
    published: str
    comparisons: tuple[Comparison, ...]
    equal: bool = False


def better(
    first: str, second: str, tasks: Sequence[str], patterns: Sequence[str]
) -> tuple[Comparison, ...]:
    """The first method against the second, on each task at each pattern."""
    return tuple(
        Comparison(task, (first, pattern), (second, pattern))
        for task in tasks
        for pattern in patterns
    )


def ablations(name: str, patterns: Sequence[str]) -> tuple[Comparison, ...]:
    """STEP with something changed against STEP without, on every task."""
    return tuple(
        each
        for task in ALL
        for each in better(f"{ablated(task)}-{name}", ablated(task), (task,), patterns)
    )


def turned(comparison: Comparison) -> Comparison:
    """The second against the first."""
    return replace(comparison, first=comparison.second, second=comparison.first)


def as_good(
    first: str, second: str, tasks: Sequence[str], pattern: str
) -> tuple[Comparison, ...]:
    """The first method at a pattern against a dense one; ASP is the floor."""
    asp = "sgd-asp" if first.startswith("sgd-") else "asp"
    return tuple(
        Comparison(task, (first, pattern), (second, "dense"), (asp, pattern))
        for task in tasks
    )


PATTERNS = ("2:4", "1:4", "1:8")
DECAYING = ("phonemes", "glyphs")
PRETRAINING = ("phonemes", "text")
CLAIMS = (
    Claim(
        "STEP is better than SR-STE under Adam",
        "STEP, Tables 2 and 3, Figures 4 and 5",
        "GLUE average 80.7 against 78.3 %; WikiText-2 perplexity 23.85 against 28.54",
        better("step", "sr-ste", ALL, PATTERNS),
    ),
    Claim(
        "STEP is better than ASP",
        "STEP, Tables 2 and 3, Figures 4 and 5",
        "GLUE average 80.7 against 75.8 %; WikiText-2 perplexity 23.85 against 37.09",
        better("step", "asp", ALL, PATTERNS),
    ),
    Claim(
        "At 2:4, STEP is as good as dense training",
        "STEP, Tables 2 and 3",
        "GLUE average 80.7 against 81.0 %; WikiText-2 perplexity 23.85 against 21.15",
        as_good("step", "dense", ALL, "2:4"),
        equal=True,
    ),
    Claim(
        "STEP by autoswitch-relative is better than SR-STE",
        "ours",
        "none",
        better("step-relative", "sr-ste", ALL, PATTERNS),
    ),
    Claim(
        "STEP by autoswitch-relative is better than ASP",
        "ours",
        "none",
        better("step-relative", "asp", ALL, PATTERNS),
    ),
    Claim(
        "At 2:4, STEP by autoswitch-relative is as good as dense training",
        "ours",
        "none",
        as_good("step-relative", "dense", ALL, "2:4"),
        equal=True,
    ),
    Claim(
        "STEP is better by autoswitch-relative than by AutoSwitch",
        "ours",
        "none",
        better("step-relative", "step", ALL, PATTERNS),
    ),
    Claim(
        "From random weights at 1:4, STEP is as good as dense training",
        "STEP, Figure 4",
        "a plot without numbers, CIFAR-10 and CIFAR-100",
        as_good("step", "dense", ("glyphs",), "1:4"),
        equal=True,
    ),
    Claim(
        "At 1:8 and 1:16, STEP is better than SR-STE",
        "STEP, Figure 5",
        "a plot without numbers, CIFAR-10 and CIFAR-100",
        better("step", "sr-ste", ("glyphs",), ("1:8", "1:16")),
    ),
    Claim(
        "With momentum SGD at 1:4, SR-STE is as good as dense training",
        "STEP, Figure 1",
        "a plot without numbers, CIFAR-10",
        as_good("sgd-sr-ste", "sgd-dense", ("glyphs",), "1:4"),
        equal=True,
    ),
    Claim(
        "With Adam at 1:4, SR-STE is worse than dense training",
        "STEP, Figure 1",
        "a plot without numbers, CIFAR-10",
        (Comparison("glyphs", ("dense", "dense"), ("sr-ste", "1:4")),),
    ),
    Claim(
        "Decaying Mask is better with its dense phase than without",
        "STEP, Figure 6",
        "a plot without numbers, WMT17 De-En",
        better("decaying", "decaying-no-dense", DECAYING, ("1:4", "1:8")),
    ),
    Claim(
        "STEP is better than Decaying Mask without its dense phase",
        "STEP, Figure 6",
        "a plot without numbers, WMT17 De-En",
        better("step", "decaying-no-dense", DECAYING, ("1:4", "1:8")),
    ),
    Claim(
        "Updating v after the switch hurts",
        "STEP, Figure 8",
        "a plot without numbers, CIFAR-10 and CIFAR-100",
        tuple(map(turned, ablations("learning-v", ("1:4",)))),
    ),
    Claim(
        "STEP is better as printed, with epsilon inside the root",
        "ours",
        "none",
        ablations("as-printed", ("1:4",)),
    ),
    Claim(
        "DominoSearch is better when STEP trains the patterns it chose",
        "STEP, Table 4",
        "mixed N:8 91.42 against 89.94 %, N:16 90.93 against 87.08 % (CIFAR-10)",
        better("step-domino", "domino", ("glyphs",), ("1:8", "1:16")),
    ),
    Claim(
        "S-STE is better than SR-STE in pre-training at 2:4",
        "S-STE, Table 4",
        "WMT14: BLEU of S-STE 26.11, dense 26.42 (from a secondary source)",
        better("s-ste", "sr-ste", PRETRAINING, ("2:4",)),
    ),
    Claim(
        "S-STE is better than STEP in pre-training at 2:4",
        "S-STE, Table 4",
        "as in the row above",
        better("s-ste", "step", PRETRAINING, ("2:4",)),
    ),
    Claim(
        "S-STE is better than T-SR-STE",
        "S-STE",
        "a comparison with T-SR-STE that ends dense",
        better("s-ste", "t-sr-ste", PRETRAINING, ("2:4",)),
    ),
    Claim(
        "A dense teacher helps SR-STE",
        "AST (Huang et al., AAAI 2025)",
        "GPT-2 at 2:4, WikiText-2 perplexity 32.2 with one, 30.0 dense",
        better("sr-ste-taught", "sr-ste", ALL, ("2:4", "1:4")),
    ),
    Claim(
        "A dense teacher helps STEP",
        "ours",
        "none",
        ablations("taught", ("2:4", "1:4")),
    ),
)


def values(study: Study, task: str, method: tuple[str, str]) -> list[float | None]:
    """The metric of each seed that counts; None where it is missing."""
    label, pattern = method
    return [study.value(Run(task, label, pattern, seed)) for seed in SEEDS]


def gain(study: Study, comparison: Comparison) -> Difference | None:
    """By how much the first is better; None until two seeds have both."""
    sign = 1 if TASKS[comparison.task].higher_is_better else -1
    first, second = (
        {
            seed: sign * value
            for seed, value in enumerate(values(study, comparison.task, method))
            if value is not None
        }
        for method in (comparison.first, comparison.second)
    )
    found = paired_difference(first, second)
    return found if found is not None and found.interval is not None else None


def verdict(study: Study, claim: Claim) -> str | None:
    """By the rules of the protocol; None while a run of it is missing."""
    gains = [gain(study, comparison) for comparison in claim.comparisons]
    if any(found is None or len(found.seeds) < len(SEEDS) for found in gains):
        return None
    known = [found for found in gains if found is not None]
    if claim.equal:
        return _as_good(study, claim, known)
    ahead = sum(found.clear and found.mean > 0 for found in known)
    behind = sum(found.clear and found.mean < 0 for found in known)
    if 2 * ahead > len(known) and not behind:
        return SEEN
    mostly_worse = 2 * sum(found.mean < 0 for found in known) > len(known)
    if (behind and behind >= ahead) or (not ahead and mostly_worse):
        return NOT_SEEN
    return UNTOLD


def _as_good(study: Study, claim: Claim, gains: Sequence[Difference]) -> str:
    behind = sum(found.clear and found.mean < 0 for found in gains)
    if 2 * behind > len(gains):
        return NOT_SEEN
    near = 0
    for comparison, found in zip(claim.comparisons, gains, strict=True):
        assert comparison.floor is not None
        reach = gain(
            study, Comparison(comparison.task, comparison.second, comparison.floor)
        )
        near += reach is not None and found.mean >= -abs(reach.mean) / 10
    return SEEN if not behind and 2 * near > len(gains) else UNTOLD


def spread_of_switch(study: Study, task: str) -> float | None:
    """How far apart STEP's means at the switch points lie.

    As a share of what dense gains over ASP at 1:4; None while a run is missing.
    """
    means = []
    for label in by_switch(task):
        found = values(study, task, (label, "1:4"))
        if None in found:
            return None
        means.append(fmean(value for value in found if value is not None))
    reach = gain(study, Comparison(task, ("dense", "dense"), ("asp", "1:4")))
    if reach is None or len(reach.seeds) < len(SEEDS):
        return None
    return (max(means) - min(means)) / abs(reach.mean)


def switch_verdict(study: Study) -> str | None:
    """Whether the switch point hardly matters from 10 to 80 % of the steps."""
    spreads = [spread_of_switch(study, task) for task in ALL]
    known = [spread for spread in spreads if spread is not None]
    if len(known) < len(spreads):
        return None
    flat = sum(spread <= FLAT for spread in known)
    return SEEN if 2 * flat > len(known) else NOT_SEEN
