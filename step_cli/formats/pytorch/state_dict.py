"""Where in what a torch file holds the state dict lies, and what lies beside it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from step_cli.formats.pytorch.stand_ins import NumpyArray, StandIn

WRAPPERS = ("state_dict", "model", "module", "model_state_dict")
TOP = "."  # as --key: the outermost map itself
DEEPEST = 4  # keys, one inside the other, that are looked through
MOST_NAMED = 8
SAVE = "save model.state_dict()"

State = dict[str, Any]


class Unfit(Exception):
    """The file is sound, but holds no state dict, or several; with what to do."""


@dataclass(frozen=True)
class Found:
    """A state dict.

    Attributes:
        state: Names, and tensors among other values.
        key: Its keys, joined by dots, where the choice is not the usual one.
        rest: The outermost keys beside it.
        others: Where further maps of names to tensors lie.
    """

    state: State
    key: str | None
    rest: list[str]
    others: list[str]


def find_state_dict(loaded: Any, key: str | None = None) -> Found:
    """Find the state dict in what ``torch.load`` returned.

    Args:
        loaded: What it returned.
        key: The keys to the state dict, joined by dots; None: where it usually lies.

    Raises:
        Unfit: There is none, or there are several.
    """
    if key is not None and isinstance(loaded, dict | list | tuple):
        return _chosen(loaded, key)
    if not isinstance(loaded, dict):
        raise Unfit(_no_map(loaded))
    wrapped = [name for name in WRAPPERS if holds_tensors(dict.get(loaded, name))]
    if len(wrapped) == 1:
        return _found(loaded, loaded[wrapped[0]], wrapped[0], usual=True)
    paths = wrapped or _candidates(loaded)
    if len(paths) > 1:
        raise Unfit(f"holds tensors under {_named(paths)}; choose one with --key")
    if not paths:
        raise Unfit(_without_tensors(loaded))
    if paths == [TOP]:
        return Found(loaded, None, [], [])
    (state,) = (state for _, path, state in _inside(loaded) if path == paths[0])
    return _found(loaded, state, paths[0])


def pairs(value: Any) -> list[tuple[Any, Any]]:
    """The keys and values of a map; none of anything else.

    A file may give an OrderedDict attributes in place of its methods, which are not
    used therefore.
    """
    return list(dict.items(value)) if isinstance(value, dict) else []


def holds_tensors(value: Any) -> bool:
    """Whether it is a map of names, some of them to tensors."""
    return bool(_tensors(value)) and all(
        isinstance(key, str) for key, _ in pairs(value)
    )


def _tensors(value: Any) -> list[Any]:
    from torch import Tensor

    return [item for _, item in pairs(value) if isinstance(item, Tensor)]


def _found(loaded: Any, state: State, path: str, *, usual: bool = False) -> Found:
    first = path if path in _items(loaded) else path.partition(".")[0]
    rest = [] if path == TOP else [key for key in _items(loaded) if key != first]
    others = [other for _, other, value in _inside(loaded) if value is not state]
    return Found(state, None if usual else path, rest, others)


def _chosen(loaded: Any, key: str) -> Found:
    """The map under the keys that the user named."""
    there = [loaded] if key == TOP else list(_under(loaded, key, DEEPEST))
    for value in there:
        if holds_tensors(value):
            return _found(loaded, value, key)
    what = f"--key {key!r:.80}: {'no tensors by name' if there else 'no such key'}"
    known = [TOP] if holds_tensors(loaded) else []
    known += [path for _, path, _ in _inside(loaded)]
    if known:
        raise Unfit(f"{what}; tensors lie under {_named(known)}")
    raise Unfit(f"{what}, nor tensors elsewhere; {SAVE}")


def _under(value: Any, path: str, depth: int) -> Iterator[Any]:
    """What lies under a path; its keys may contain dots themselves."""
    items = _items(value)
    if path in items:
        yield items[path]
    end = path.rfind(".") if depth else 0
    while end > 0:
        if path[:end] in items:
            yield from _under(items[path[:end]], path[end + 1 :], depth - 1)
        end = path.rfind(".", 0, end)


def _items(value: Any) -> dict[str, Any]:
    """What a map holds by key, and a list by index, both as text."""
    listed = enumerate(value) if isinstance(value, list | tuple) else pairs(value)
    return {str(key): item for key, item in listed}


def _candidates(loaded: Any) -> list[str]:
    """The maps of names to tensors, of which one has to be meant."""
    inside = _inside(loaded)
    direct = [path for level, path, _ in inside if level == 1]
    found = direct or [path for _, path, _ in inside]
    own = _tensors(loaded)
    if own and not holds_tensors(loaded) and not found:
        raise Unfit(f"holds tensors under keys that are not text; {SAVE}")
    # Counters and states of generators lie beside a state dict, matrices in one.
    if own and (not found or any(len(value.shape) > 1 for value in own)):
        return [TOP, *found]
    return found


def _inside(loaded: Any) -> list[tuple[int, str, State]]:
    """The maps of names to tensors inside, the outer ones first.

    Of each how many keys deep it lies, and these keys. Those that are no text are not
    followed, nor is the state of an optimizer.
    """
    found, seen = [], set[int]()
    maps = [("", loaded)]
    for level in range(1, DEEPEST + 1):
        maps = [
            (f"{path}.{key}" if path else key, item)
            for path, value in maps
            for key, item in pairs(value)
            # What modules save beside their tensors belongs to these.
            if isinstance(key, str) and not key.endswith("_extra_state")
        ]
        maps = [entry for entry in maps if not _of_optimizer(entry[1])]
        found += [(level, path, item) for path, item in maps if holds_tensors(item)]
        maps = [(path, item) for path, item in maps if id(item) not in seen]
        seen.update(id(item) for _, item in maps)
    return found


def _of_optimizer(value: Any) -> bool:
    return isinstance(value, dict) and {"state", "param_groups"} <= {*dict.keys(value)}


def _named(paths: list[str]) -> str:
    """The paths for people, at most so many of them."""
    words = [
        "its outermost keys (--key .)" if path == TOP else f"{path!r:.80}"
        for path in paths[:MOST_NAMED]
    ]
    if len(paths) > MOST_NAMED:
        words.append(f"{len(paths) - MOST_NAMED} more")
    *head, last = words
    if not head:
        return last
    return f"{'both ' if len(words) == 2 else ''}{', '.join(head)} and {last}"


def _without_tensors(loaded: Any) -> str:
    values = [item for _, item in pairs(loaded)]
    values += [item for value in values for _, item in pairs(value)]
    if any(isinstance(item, NumpyArray) for item in values):
        return "holds NumPy arrays, no tensors; save them with safetensors.numpy"
    keys = ", ".join(f"{key!r:.40}" for key, _ in pairs(loaded)[:3])
    return f"holds a dict without tensors (keys {keys or 'none'}); {SAVE}"


def _no_map(value: Any) -> str:
    """What else than a map the file holds, and what to do."""
    from torch import Tensor

    name = "piece of metadata" if isinstance(value, StandIn) else type(value).__name__
    words = f"holds a{'n' if name[0] in 'aeiou' else ''} {name}"
    if isinstance(value, Tensor):
        words = "holds a lone tensor"
    there = [path for path, item in _items(value).items() if holds_tensors(item)]
    if there:
        return f"{words}, with tensors under {_named(there)}; choose one with --key"
    return f"{words}, not a state dict; {SAVE}"
