"""Which runs the study is made of, in the order in which they are made.

A run is one recipe at one pattern with one seed. Seeds 0, 1 and 2 count; 50 is what
learning rates are tuned on. The order is by stage, then by seed, so that a study that
is cut off says something about every task.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.evidence.tasks import TASKS, Task

SEEDS = (0, 1, 2)
TUNING_SEED = 50
CHECK_SEEDS = (100, 101)
PATTERNS = ("2:4", "1:4", "1:8")
RECIPES = ("asp", "ste", "sr-ste", "step")
FRACTIONS = (0.1, 0.2, 0.5, 0.8)  # of the steps, where STEP switches: Figure 7
# Where AutoSwitch switches: there as soon as that may, or soon after; else by t_max.
DEFAULT_SWITCH = {"glosses": 0.1}
T_MAX = 0.5
# AutoSwitch loses glosses whole, so that nothing is left for an ablation to show.
ABLATED = {"glosses": "step-relative"}
BY_RELATIVE = ("switch.criterion=autoswitch-relative",)
LEARNS_V = "sparsity.options.learn_variance=true"
SGD_RATES = (0.1, 0.03, 0.3, 1.0)


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        task: Name of the task.
        label: Name of the method: a recipe, with what was changed of it.
        pattern: N:M, or "dense".
        seed: Of weights and data order.
        sets: Configuration keys it changes, beside recipe, pattern, seed and rate.
        tuned: The label whose tuned learning rate it takes.
        taught: It learns from a dense teacher too.
        rate: Its own learning rate: only of the runs that tune.
    """

    task: str
    label: str
    pattern: str
    seed: int
    sets: tuple[str, ...] = ()
    tuned: str = "sr-ste"
    taught: bool = False
    rate: float | None = None

    @property
    def name(self) -> str:
        """Of its file."""
        pattern = (
            "" if self.pattern == "dense" else "-" + self.pattern.replace(":", "of")
        )
        rate = "" if self.rate is None else f"-lr{self.rate:g}"
        return f"{self.label}{pattern}{rate}-seed{self.seed}"


@dataclass(frozen=True)
class Method:
    """What a label stands for.

    Attributes:
        label: Name of the method.
        sets: Configuration keys that make it.
        patterns: Where it is measured.
        tuned: The label whose learning rate it takes.
        taught: It learns from a dense teacher too.
    """

    label: str
    sets: tuple[str, ...]
    patterns: tuple[str, ...]
    tuned: str = "sr-ste"
    taught: bool = False


def recipe(name: str, *more: str) -> tuple[str, ...]:
    """The keys of a recipe."""
    return (f"sparsity.recipe={name}", *more)


def switched_at(task: str, fraction: float) -> str:
    """The label of STEP that switches after this fraction of the steps."""
    default = DEFAULT_SWITCH.get(task, T_MAX)
    return "step" if fraction == default else f"step-at-{100 * fraction:.0f}"


def by_switch(task: str) -> list[str]:
    """The labels of STEP by its switch point."""
    return [switched_at(task, fraction) for fraction in FRACTIONS]


def switch_at(fraction: float) -> tuple[str, ...]:
    """The keys of a switch after this fraction of the steps."""
    return "switch.criterion=fixed", f"switch.step={fraction}"


def switch_methods(task: str) -> tuple[Method, ...]:
    """STEP at other switch points than its default's, and by another criterion."""
    fixed = (
        Method(
            switched_at(task, fraction),
            recipe("step", *switch_at(fraction)),
            ("1:4",),
            "step",
        )
        for fraction in FRACTIONS
        if switched_at(task, fraction) != "step"
    )
    relative = recipe("step", *BY_RELATIVE)
    return (*fixed, Method("step-relative", relative, PATTERNS, "step"))


def ablated(task: str) -> str:
    """The label of the STEP whose ablations are measured on a task."""
    return ABLATED.get(task, "step")


def ablation(task: str, name: str, patterns: tuple[str, ...], *keys: str) -> Method:
    """STEP with something changed, switched as :func:`ablated` says."""
    label = ablated(task)
    criterion = BY_RELATIVE if label == "step-relative" else ()
    changed = recipe("step", *criterion, *keys)
    return Method(f"{label}-{name}", changed, patterns, "step")


DENSE = Method("dense", recipe("dense"), ("dense",), tuned="dense")
TUNED = {"asp": "asp", "step": "step"}  # by recipe; the others take SR-STE's
CORE = (
    DENSE,
    *(Method(r, recipe(r), PATTERNS, TUNED.get(r, "sr-ste")) for r in RECIPES),
)


def learning_v(task: str) -> Method:
    """STEP whose variance is updated in the mask-learning phase too."""
    return ablation(task, "learning-v", ("1:4",), LEARNS_V)


def as_printed(task: str) -> Method:
    """STEP as the paper prints it: epsilon inside the root, raw v."""
    keys = ("sparsity.options.eps_mode=inside", "sparsity.options.v_correction=none")
    return ablation(task, "as-printed", ("1:4",), *keys)


SPARSER = tuple(Method(name, recipe(name), ("1:16",)) for name in RECIPES)
DECAYING = (
    Method("decaying", recipe("decaying-mask"), ("1:4", "1:8")),
    Method(
        "decaying-no-dense",
        recipe("decaying-mask", "sparsity.options.dense=0"),
        ("1:4", "1:8"),
    ),
)
LAYERWISE = (
    Method("domino", recipe("domino-search"), ("1:8", "1:16")),
    Method(
        "step-domino",
        recipe("step", "sparsity.options.inner=domino-search"),
        ("1:8", "1:16"),
    ),
)
ROTATED = (
    Method("s-ste", recipe("s-ste"), ("2:4",)),
    Method("t-sr-ste", recipe("t-sr-ste"), ("2:4",)),
)
SGD = "train.optimizer=sgd"
BY_SGD = tuple(
    Method(
        f"sgd-{name}",
        recipe(name, SGD),
        ("dense",) if name == "dense" else ("1:4",),
        tuned="sgd-sr-ste",
    )
    for name in ("dense", "ste", "sr-ste", "asp")
)
# Beside the core, the switch point and the teacher, which every task has.
MORE = {
    "glyphs": (
        learning_v("glyphs"),
        as_printed("glyphs"),
        *BY_SGD,
        *SPARSER,
        *DECAYING,
        *LAYERWISE,
    ),
    "glosses": (learning_v("glosses"), as_printed("glosses")),
    "phonemes": (
        learning_v("phonemes"),
        as_printed("phonemes"),
        *DECAYING,
        *ROTATED,
    ),
    "text": (learning_v("text"), as_printed("text"), *ROTATED),
    "retext": (learning_v("retext"), as_printed("retext")),
}

# A teacher makes the loss smaller: here AutoSwitch then fires as soon as it may.
FIRES_WITH_TEACHER = "retext"
# STEP with one thing changed after another until it is nearly SR-STE, on the tasks and
# at the pattern where SR-STE is clearly better; with a seed that does not count.
CAUSE_TASKS, CAUSE_PATTERN = ("phonemes", "text"), "1:8"


def causes() -> dict[str, Method]:
    """What is tried to find out why SR-STE is better, by how a page says it."""
    tried = {
        "SR-STE": ("sr-ste", recipe("sr-ste"), "sr-ste"),
        "STEP": ("step", (), "step"),
        "switch at 25 %": ("step-at-25", switch_at(0.25), "step"),
        "switch at 10 %": ("step-at-10", switch_at(0.1), "step"),
        "v updated after the switch": ("step-learning-v", (LEARNS_V,), "step"),
        "epsilon inside the root": (
            "step-eps-inside",
            ("sparsity.options.eps_mode=inside",),
            "step",
        ),
        "SR-STE's decay after the switch": (
            "step-sr-ste",
            ("sparsity.options.inner=sr-ste",),
            "step",
        ),
        "learning rate of SR-STE": ("step-faster", (), "sr-ste"),
        "learning rate of SR-STE, v updated": (
            "step-faster-learning-v",
            (LEARNS_V,),
            "sr-ste",
        ),
        "learning rate and decay of SR-STE, v updated": (
            "step-faster-learning-v-sr-ste",
            (LEARNS_V, "sparsity.options.inner=sr-ste"),
            "sr-ste",
        ),
        "learning rate of SR-STE, v updated, switch at 10 %": (
            "step-faster-learning-v-at-10",
            (LEARNS_V, *switch_at(0.1)),
            "sr-ste",
        ),
    }
    return {
        said: Method(
            label,
            keys if label == "sr-ste" else recipe("step", *keys),
            (CAUSE_PATTERN,),
            tuned,
        )
        for said, (label, keys, tuned) in tried.items()
    }


def cause_runs(tasks: list[Task]) -> Iterator[Run]:
    """Those of :func:`causes`."""
    for task in tasks:
        if task.name in CAUSE_TASKS:
            for method in causes().values():
                yield Run(
                    task.name,
                    method.label,
                    CAUSE_PATTERN,
                    TUNING_SEED,
                    method.sets,
                    method.tuned,
                )


def taught_methods(task: str) -> tuple[Method, ...]:
    """SR-STE and STEP with a dense teacher."""
    patterns = ("2:4", "1:4")
    made = [
        Method("sr-ste-taught", recipe("sr-ste"), patterns),
        ablation(task, "taught", patterns),
    ]
    if task == FIRES_WITH_TEACHER:
        half = recipe("step", *switch_at(T_MAX))
        made.append(Method("step-at-50-taught", half, patterns, "step"))
    return tuple(replace(method, taught=True) for method in made)


def tuning_runs(tasks: list[Task]) -> Iterator[Run]:
    """SR-STE at 1:4 by each learning rate, and by SGD where SGD is measured.

    Dense training, ASP and STEP too, where they have learning rates of their own.
    """
    for task in tasks:
        for rate in task.rates:
            sets = recipe("sr-ste")
            yield Run(task.name, "sr-ste", "1:4", TUNING_SEED, sets, rate=rate)
        for label in task.own_rates:
            pattern = "dense" if label == "dense" else "1:4"
            for rate in task.tried(label):
                sets = recipe(label)
                yield Run(task.name, label, pattern, TUNING_SEED, sets, rate=rate)
    for task in tasks:
        if set(BY_SGD) <= set(MORE[task.name]):
            for rate in SGD_RATES:
                sets = recipe("sr-ste", SGD)
                yield Run(task.name, "sgd-sr-ste", "1:4", TUNING_SEED, sets, rate=rate)


def check_runs(tasks: list[Task]) -> Iterator[Run]:
    """Dense and ASP at 1:4, by which a task is seen to tell recipes apart."""
    for task in tasks:
        for seed in CHECK_SEEDS:
            dense, asp = recipe("dense"), recipe("asp")
            yield Run(task.name, "dense", "dense", seed, dense, "dense")
            yield Run(task.name, "asp", "1:4", seed, asp, "asp")


def runs_that_count(tasks: list[Task], seeds: tuple[int, ...] = SEEDS) -> Iterator[Run]:
    """All others: the core, then the switch point, the rest, and with a teacher."""
    stages = (
        {task.name: CORE for task in tasks},
        {task.name: switch_methods(task.name) for task in tasks},
        {task.name: MORE[task.name] for task in tasks},
        {task.name: taught_methods(task.name) for task in tasks},
    )
    for stage in stages:
        for seed in seeds:
            for task, methods in stage.items():
                for method in methods:
                    for pattern in method.patterns:
                        yield Run(
                            task,
                            method.label,
                            pattern,
                            seed,
                            method.sets,
                            method.tuned,
                            method.taught,
                        )


def quick_runs(tasks: list[Task]) -> Iterator[Run]:
    """Each method of each task once."""
    seen = set()
    for run in runs_that_count(tasks, SEEDS[:1]):
        if (run.task, run.label) not in seen:
            seen.add((run.task, run.label))
            yield run


def all_tasks() -> list[Task]:
    """Every task, in order."""
    return list(TASKS.values())
