"""Which values depend on stored tensors alone, and on which of them."""

from dataclasses import dataclass, field

from step_cli.formats.onnx.model import Tensor
from step_cli.formats.onnx.weights.loops import is_loop
from step_cli.formats.onnx.weights.scopes import Entering, Made, Source
from step_cli.formats.onnx.weights.tracer import Tracer, is_choice, looked_through

# What these make is new each time, whatever they are given.
RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormalLike", "RandomUniformLike"}
)


@dataclass(eq=False)
class Dependence:
    """Asks for each value only once.

    Args:
        tracer: Finds what makes a value.
    """

    tracer: Tracer
    _alone: dict[int, bool] = field(default_factory=dict)

    def on_stored_alone(self, source: Source | None) -> bool:
        """Whether a value depends on stored tensors, and on nothing else.

        What decides how often a loop runs, or which branch is taken, does not count.
        """
        if source is None:
            return False
        if id(source) in self._alone:
            return self._alone[id(source)]
        users: dict[int, list[int]] = {id(source): []}
        waiting, other = [source], list[int]()
        while waiting:
            one = waiting.pop()
            needs = self._needs(one)
            if None in needs:
                other.append(id(one))
            for need in needs:
                if need is None or self._alone.get(id(need)):
                    continue
                if id(need) in self._alone:
                    other.append(id(one))
                    continue
                if id(need) not in users:
                    users[id(need)] = []
                    waiting.append(need)
                users[id(need)].append(id(one))
        self._alone |= dict.fromkeys(users, True)
        while other:
            one_id = other.pop()
            if self._alone[one_id]:
                self._alone[one_id] = False
                other += users[one_id]
        return self._alone[id(source)]

    def shown(self, source: Source) -> list[Source]:
        """The values that this one depends on; of a known operator, those it shows."""
        if isinstance(source, Made) and looked_through(source) is not None:
            self.tracer.view(source)
            return [one for _, one in self.tracer.followed(source)]
        return [one for one in self._needs(source) if one is not None]

    def _needs(self, source: Source) -> list[Source | None]:
        """Everything that a value depends on, None for what is not known."""
        if isinstance(source, Tensor):
            return []
        names, node = source.node.inputs, source.node
        if isinstance(source, Entering):
            found = [self.tracer.source(source.scope, names[source.index])]
            if source.axis is None:
                found.append(self.tracer.source(source.body, source.output))
            return found
        inner = self.tracer.branches(source)
        if is_choice(node):
            return inner or [None]
        if node.op_type in RANDOM or not any(names):
            return [None]
        if is_loop(node):
            names = names[2:] if node.op_type == "Loop" else names
        return inner + [self.tracer.source(source.scope, n) for n in names if n]
