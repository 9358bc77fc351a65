"""The floor plan: imports point down the list of rooms, and nowhere in a circle.

`docs/architecture.md` says what is in each room.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import step_cli

PACKAGE = Path(step_cli.__file__).parent
MOST_FILES = 25  # in one folder, else nothing is found in it any more

# A room may import from itself and from those below it.
ROOMS = (
    "__main__",
    "__init__",  # when a name is used
    "cli",
    "commands",
    "integrations",
    "training",
    "oneshot",
    "channels",
    "data",
    "recipes",
    "optim",
    "plots",
    "models",
    "render",
    "config",
    "autoswitch",
    "formats",
    "nm",
    "reports",
    "torchrun",
    "errors",
)
WITHOUT_TORCH = ("autoswitch", "cli", "config", "errors", "nm", "reports")


def modules() -> dict[str, Path]:
    """Each module of the package by its dotted name."""
    return {_dotted(path): path for path in PACKAGE.rglob("*.py")}


def _dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports_of(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in known else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known.keys()


def _running(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        if not checking:
            yield child
            yield from _running(child)


def test_imports_point_down_the_list_of_rooms() -> None:
    known = modules()
    place = {room: number for number, room in enumerate(ROOMS)}
    upward = [
        f"{name} imports {other}"
        for name, path in known.items()
        for other in imports_of(path, known)
        if place[room_of(path)] > place[room_of(known[other])]
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    known = modules()
    waiting = {name: imports_of(path, known) - {name} for name, path in known.items()}
    # Take away what imports nothing that is left, until nothing more goes.
    while free := {
        name for name, needs in waiting.items() if not needs & waiting.keys()
    }:
        waiting = {name: needs for name, needs in waiting.items() if name not in free}
    assert sorted(waiting) == []


def test_nothing_lies_loose_at_the_top() -> None:
    loose = {path.stem for path in PACKAGE.glob("*.py")}
    assert loose == {"__init__", "__main__", "errors", "torchrun"}


def test_no_folder_holds_more_files_than_a_reader_can_look_through() -> None:
    folders = {path.parent for path in modules().values()}
    full = {f.name: len(list(f.glob("*.py"))) for f in folders}
    assert {name: count for name, count in full.items() if count > MOST_FILES} == {}


def test_rooms_that_promise_it_never_import_torch() -> None:
    heavy = [
        f"{name} imports {word}"
        for name, path in modules().items()
        if room_of(path) in WITHOUT_TORCH
        for node in _running(ast.parse(path.read_text(encoding="utf-8")))
        for word in _named(node)
        if word.split(".")[0] in ("torch", "onnxruntime", "transformers")
    ]
    assert heavy == []


def _named(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def test_the_page_on_the_layout_names_every_room_and_only_files_that_exist() -> None:
    page = PACKAGE.parent / "docs" / "architecture.md"
    text = page.read_text(encoding="utf-8")
    rooms = re.search(r"^\| folder \|.*?\n\n", text, re.M | re.S)
    assert rooms is not None
    named = re.findall(
        r"`(\w+)/?`", " ".join(re.findall(r"^\| (.*?) \|", rooms[0], re.M))
    )
    assert named == list(ROOMS)
    for path in re.findall(r"`([\w/]+\.(?:py|c))`", text):
        assert (PACKAGE / path).exists() or (PACKAGE.parent / path).exists(), path
