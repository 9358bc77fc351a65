"""The tasks of the study: where their data come from, and what is measured on them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Task:
    """One training task.

    Attributes:
        name: Of its folder here, which holds `config.toml` and `data.py`.
        metric: What the recipes are compared by.
        higher_is_better: Its direction.
        rates: Learning rates tried for SR-STE, which the other methods take too.
        keys: Configuration keys, and the path below the task's data that each takes.
        scored: Whether `score.py` computes metrics after a run.
        own_rates: Learning rates tried for others, by method, where SR-STE's is too
            high for dense training: what starts from its weights has nothing to win.
    """

    name: str
    metric: str
    higher_is_better: bool
    rates: tuple[float, ...]
    keys: tuple[tuple[str, str], ...]
    scored: bool = False
    own_rates: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def tried(self, method: str) -> tuple[float, ...]:
        """The learning rates tried for a method, or for SR-STE in its place."""
        return self.own_rates.get(method, self.rates)

    @property
    def config(self) -> Path:
        """The configuration that all its runs share."""
        return HERE / self.name / "config.toml"

    @property
    def digest(self) -> str:
        """Of that configuration: results of another one do not count."""
        return sha256(self.config.read_bytes()).hexdigest()[:16]

    def paths(self, data: Path) -> list[str]:
        """What `--set` takes for data, and weights, that lie in `data`."""
        return [f'{key}="{data / below}"' for key, below in self.keys]

    def score(self, run_dir: Path, data: Path) -> dict[str, float]:
        """Metrics that are computed from a finished run."""
        if not self.scored:
            return {}
        module = import_module(f"benchmarks.evidence.{self.name}.score")
        score: Callable[[Path, Path], dict[str, float]] = module.score
        return score(run_dir, data)


TASKS = {
    task.name: task
    for task in (
        Task(
            "glosses",
            "eval_accuracy",
            True,
            (1e-4, 3e-4, 1e-3),
            (
                ("data.source", "glosses"),
                ("data.tokenizer", "minilm"),
                ("model.source", "minilm"),
            ),
        ),
        Task(
            "glyphs",
            "eval_accuracy",
            True,
            (3e-3, 1e-3, 1e-2, 3e-2),
            (("data.source", "glyphs"),),
        ),
        Task(
            "phonemes",
            "per",
            False,
            (4e-3, 2e-3, 8e-3, 1.6e-2, 3.2e-2),
            (("data.source", "phonemes"),),
            scored=True,
            own_rates={
                "dense": (4e-3, 2e-3, 8e-3, 1.6e-2),
                "asp": (8e-3, 4e-3, 1.6e-2, 3.2e-2, 6.4e-2),
                "step": (4e-3, 2e-3, 8e-3, 1.6e-2),
            },
        ),
        Task(
            "text",
            "eval_loss",
            False,
            (6e-3, 3e-3, 1.2e-2, 2.4e-2),
            (("data.source", "stdlib"),),
            own_rates={
                "dense": (6e-3, 3e-3, 1.2e-2),
                "asp": (1.2e-2, 6e-3, 2.4e-2, 4.8e-2),
                "step": (6e-3, 3e-3, 1.2e-2),
            },
        ),
        Task(
            "retext",
            "eval_loss",
            False,
            (3e-3, 1e-3, 6e-3),
            (("data.source", "wordnet"), ("model.weights", "start/model")),
        ),
    )
}
