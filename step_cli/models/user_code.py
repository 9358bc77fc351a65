"""Code of the user that builds a model: a file and what lies beside it, or a package.

Python finds what lies beside a file it is given to run; the same holds for a file that
a configuration names. The working directory stays as it is.
"""

import hashlib
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from step_cli.config.samples import load_module
from step_cli.errors import UsageError

_folders = set[str]()  # of the files that were named


def user_module(place: str, spec: str) -> ModuleType:
    """The module of a file or of a dotted name; what it raises is passed on.

    Raises:
        UsageError: There is no such file.
    """
    if not place.endswith(".py"):
        return importlib.import_module(place)
    path = Path(place)
    if not path.is_file():
        raise UsageError(f"model source {spec!r}: no such file {path}")
    return load_module(path, module_name(path))


def module_name(path: Path) -> str:
    """A name of its own, the same in all processes, without dots.

    ``pickle`` finds a class by the name of its module, and takes a dot for a package.
    """
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    return f"step_cli_user_{path.stem.replace('.', '_')}_{digest}"


@contextmanager
def beside(spec: str) -> Iterator[None]:
    """Modules in the folder of the file that ``spec`` names are found.

    First of all while the block runs, as for a file that Python is given to run; last
    of all from then on, for what the model imports while it computes. A module of the
    same name beside another file is forgotten.
    """
    place = spec.rpartition(":")[0]
    if not place.endswith(".py") or not Path(place).is_file():
        yield
        return
    folder = str(Path(place).resolve().parent)
    _forget_others(Path(folder))
    _folders.add(folder)
    importlib.invalidate_caches()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)


def _forget_others(folder: Path) -> None:
    """Forget what was imported from beside another file and is in ``folder`` too."""
    others = [Path(other) for other in _folders if other != str(folder)]
    again = {
        name
        for name, module in list(sys.modules.items())
        if "." not in name
        and any(_place(module) in _places(other, name) for other in others)
        and any(place.exists() for place in _places(folder, name))
    }
    for name in list(sys.modules):
        if name.partition(".")[0] in again:
            del sys.modules[name]


def _place(module: ModuleType) -> Path | None:
    """The file of a module, or the folder of a package without one."""
    file = getattr(module, "__file__", None)
    if file is None:
        file = next(iter(getattr(module, "__path__", ())), None)
    return Path(file) if isinstance(file, str) else None


def _places(folder: Path, name: str) -> tuple[Path, Path, Path]:
    return folder / f"{name}.py", folder / name / "__init__.py", folder / name


def hint(error: BaseException, spec: str) -> str:
    """The end of a message on code that looked for a file in the wrong place."""
    name = getattr(error, "filename", None)
    home = Path(spec.rpartition(":")[0]).parent
    if not isinstance(error, FileNotFoundError) or not isinstance(name, str):
        return ""
    if Path(name).is_absolute() or not (home / name).exists():
        return ""
    return f"; it lies in {home}: open it as Path(__file__).parent / {name!r}"
