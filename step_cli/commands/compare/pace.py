"""How long the runs of a comparison that are still to come will take."""

from collections.abc import Sequence

from step_cli.commands.compare.runs import Run


class Pace:
    """Seconds per step of the runs so far, everything around the steps included."""

    def __init__(self) -> None:
        self._by_recipe: dict[str, list[float]] = {}

    def add(self, run: Run, seconds: float, steps: int) -> None:
        """A run took ``steps`` steps in ``seconds``."""
        if steps > 0:
            self._by_recipe.setdefault(run.recipe, []).append(seconds / steps)

    def seconds_for(self, runs: Sequence[Run], per_s: float | None) -> float | None:
        """How long ``runs`` will take.

        Args:
            runs: None of them begun.
            per_s: Steps per second of the run under way, for recipes not seen yet.

        Returns:
            Seconds; None where nothing tells.
        """
        if not runs:
            return 0.0
        seen = [each for many in self._by_recipe.values() for each in many]
        seen = seen or ([1 / per_s] if per_s else [])
        if not seen:
            return None
        total = 0.0
        for run in runs:
            like = self._by_recipe.get(run.recipe, seen)
            total += run.config.train.steps * sum(like) / len(like)
        return total
