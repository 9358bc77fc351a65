"""A saved state, its parameters put in the order of an optimizer by their names.

Torch maps a state by position alone. Where both sides carry ``param_names`` they tell
which parameter is which, whatever wrappers have put into them and however the groups
were split.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from step_cli.errors import UsageError
from step_cli.nm.weight_rule import without_wrappers
from step_cli.optim.weights import spec_of

# Of the whole optimizer, kept in its first group.
COUNTERS = (
    "t",
    "switch_step",
    "switch_reason",
    "switch_memory",
    "switch_criterion",
    "recipe",
    "total_steps",
)
OF_THE_GROUP = ("params", "param_names", "pattern", "axis")

Groups = Sequence[Mapping[str, Any]]


def in_order_of(mine: Groups, saved: Groups) -> list[dict[str, Any]]:
    """The groups of a saved state, as if an optimizer with groups ``mine`` had saved.

    Without names on either side, or where they are not unique, they stay as they are.

    Args:
        mine: Those of the optimizer that is to go on.
        saved: Those of the state; ``params`` are keys of its states.

    Raises:
        UsageError: Other names, or one group is to take parameters of several whose
            options differ.
    """
    theirs = list(map(dict, saved))
    names, there = _common(_names(mine), _names(saved))
    if not names or not there:
        return theirs
    _refuse_others(names, there, mine, saved)
    if names == there and list(map(_size, mine)) == list(map(_size, saved)):
        return theirs
    place = {name: (group, key) for name, (group, key) in _places(there, saved)}
    left = iter(names)
    made = [_made(group, [next(left) for _ in group["params"]], place, saved)
            for group in mine]  # fmt: skip
    made[0].update({key: saved[0][key] for key in COUNTERS if key in saved[0]})
    return made


def _size(group: Mapping[str, Any]) -> int:
    return len(group["params"])


def _names(groups: Groups) -> list[str]:
    """All names in order; none if a group has none, or several are the same."""
    if not all(len(group.get("param_names") or ()) == _size(group) for group in groups):
        return []
    names = [name for group in groups for name in group["param_names"]]
    bare = [without_wrappers(name) for name in names]
    return next((each for each in (bare, names) if len(set(each)) == len(each)), [])


def _common(mine: list[str], theirs: list[str]) -> tuple[list[str], list[str]]:
    """Both, without a prefix such as ``model.`` that all names of one side have."""
    if set(mine) == set(theirs):
        return mine, theirs
    for one, other in ((mine, theirs), (theirs, mine)):
        first = next((name for name in one if name not in other), "")
        parts = first.split(".")
        for i in range(1, len(parts)):
            prefix = ".".join(parts[:i]) + "."
            if all(name.startswith(prefix) for name in one):
                rest = [name.removeprefix(prefix) for name in one]
                if set(rest) == set(other):
                    return (rest, theirs) if one is mine else (mine, rest)
    return mine, theirs


def _refuse_others(
    names: list[str], there: list[str], mine: Groups, saved: Groups
) -> None:
    lacking, unknown = (
        [name for name in one if name not in set(other)]
        for one, other in ((names, there), (there, names))
    )
    if not lacking and not unknown:
        return
    sizes = f"groups of {list(map(_size, saved))} parameters, these are of "
    found = [f"it lacks {lacking[0]!r}"] if lacking else []
    found += [f"it has {unknown[0]!r}"] if unknown else []
    raise UsageError(
        f"the state is of {sizes}{list(map(_size, mine))}: {' and '.join(found)}; it "
        "was saved for another model, or another choice of its parameters"
    )


def _places(
    names: list[str], saved: Groups
) -> Iterator[tuple[str, tuple[int, object]]]:
    """Each name with the number of its group and its key in the state."""
    left = iter(names)
    for number, group in enumerate(saved):
        for key in group["params"]:
            yield next(left), (number, key)


def _made(
    group: Mapping[str, Any],
    names: list[str],
    place: Mapping[str, tuple[int, object]],
    saved: Groups,
) -> dict[str, Any]:
    """One group as the state would hold it."""
    numbers = dict.fromkeys(place[name][0] for name in names)
    for name in names:
        other = saved[place[name][0]]
        if spec_of(other) != spec_of(group):
            raise UsageError(
                f"{name}: the state was saved for {spec_text(other)}, this optimizer "
                f"is for {spec_text(group)}"
            )
    options = [_options(saved[number]) for number in numbers]
    for other in options[1:]:
        for key in options[0].keys() | other.keys():
            if options[0].get(key) != other.get(key):
                raise UsageError(
                    f"{names[0]} and others of its group are in several groups of the "
                    f"state, whose {key} differs: {options[0].get(key)} and "
                    f"{other.get(key)}; split the groups as they were"
                )
    own = {key: group[key] for key in OF_THE_GROUP if key in group}
    chosen = options[0] if options else _options(group)
    return {**chosen, **own, "params": [place[name][1] for name in names]}


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in group.items()
        if key not in COUNTERS and key not in OF_THE_GROUP
    }


def spec_text(group: Mapping[str, Any]) -> str:
    """The pattern and axis of a group, in words."""
    spec = spec_of(group)
    return f"{spec.pattern} along axis {spec.axis}" if spec else "dense weights"
