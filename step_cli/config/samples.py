"""The sample models: found in the checkout or in the wheel, loaded by path."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from step_cli.errors import EXTRA_OF, MissingError, UsageError, nearest

PACKAGE = Path(__file__).resolve().parents[1]
PLACES = (
    PACKAGE / "sample_models",
    PACKAGE.parent / "sample_models",
)  # wheel, checkout


def sample_names() -> list[str]:
    """The names that ``sample:NAME`` may have."""
    return sorted(
        {path.parent.name for place in PLACES for path in place.glob("*/model.py")}
    )


def sample_directory(name: str) -> Path:
    """The folder of the sample model ``name``.

    Raises:
        UsageError: There is none.
    """
    if name in sample_names():
        return next(place / name for place in PLACES if (place / name).is_dir())
    raise UsageError(f"no sample model {name!r}{nearest(name, sample_names())}")


def load_sample(name: str, part: str) -> ModuleType:
    """Import ``part``.py of a sample model.

    Raises:
        UsageError: There is no such sample.
        MissingError: A library it needs is not installed.
    """
    path = sample_directory(name) / f"{part}.py"
    try:
        return load_module(path, f"step_cli_sample_{name.replace('-', '_')}_{part}")
    except ModuleNotFoundError as error:
        extra = EXTRA_OF.get(str(error.name).partition(".")[0], "samples")
        raise MissingError(
            f"sample {name!r} needs {error.name}: pip install 'step-cli[{extra}]'"
        ) from None


def load_module(path: Path, name: str) -> ModuleType:
    """Run a Python file as the module ``name``, once."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
