"""A file that builds a model finds what lies beside it, and nothing else changes."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from step_cli.errors import InputError, UsageError  # noqa: E402
from step_cli.models import user_code  # noqa: E402
from step_cli.models.spec import build_model  # noqa: E402

NET = """
from torch import nn
from layers_beside import Block
from parts_beside.wide import WIDTH

def build():
    return nn.Sequential(Block(WIDTH))

def late():
    import late_beside
    return late_beside.make()

def reading():
    return open("sizes.json")
"""
BLOCK = """
from torch import nn

class Block(nn.Linear):
    def __init__(self, width):
        super().__init__(width, {scores})

    def forward(self, x):
        import forward_beside
        return super().forward(x) * forward_beside.FACTOR
"""
NAMES = ("layers_beside", "parts_beside", "late_beside", "forward_beside")


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(user_code, "_folders", set())
    yield
    for name in [n for n in sys.modules if n.partition(".")[0] in NAMES]:
        del sys.modules[name]


def write(folder: Path, scores: int = 2) -> str:
    (folder / "parts_beside").mkdir(parents=True)
    (folder / "net.py").write_text(NET)
    (folder / "layers_beside.py").write_text(BLOCK.format(scores=scores))
    (folder / "parts_beside" / "wide.py").write_text("WIDTH = 3\n")
    (folder / "late_beside.py").write_text(
        "from layers_beside import Block\n\ndef make():\n    return Block(5)\n"
    )
    (folder / "forward_beside.py").write_text("FACTOR = 0\n")
    (folder / "sizes.json").write_text("{}")
    return f"{folder / 'net.py'}"


def test_modules_beside_the_file_are_found_at_any_time(tmp_path: Path) -> None:
    file, here = write(tmp_path / "a"), Path.cwd()
    model = build_model(f"{file}:build").model
    assert model[0].weight.shape == (2, 3)
    assert build_model(f"{file}:late").model.weight.shape == (2, 5)
    assert model(torch.ones(1, 3)).sum() == 0  # forward imports, too
    assert Path.cwd() == here
    assert (
        sys.path[0] != str(tmp_path / "a") and sys.path.count(str(tmp_path / "a")) == 1
    )


def test_modules_of_one_name_beside_two_files_are_two(tmp_path: Path) -> None:
    for folder, scores in (("a", 2), ("b", 7), ("a", 2)):
        path = tmp_path / folder
        file = f"{path / 'net.py'}" if path.exists() else write(path, scores)
        assert build_model(f"{file}:late").model.weight.shape == (scores, 5)


def test_a_model_of_the_user_can_be_pickled(tmp_path: Path) -> None:
    (tmp_path / "my.net.py").write_text(
        "from torch import nn\n\nclass Net(nn.Linear):\n    pass\n\n"
        "def build():\n    return Net(2, 2)\n"
    )
    model = build_model(f"{tmp_path / 'my.net.py'}:build").model
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is type(model)
    assert torch.equal(again.weight, model.weight)
    assert "." not in type(model).__module__


def test_every_process_has_the_same_names(tmp_path: Path) -> None:
    """So that what one process pickles another that built the model can read."""
    file = write(tmp_path)
    build_model(f"{file}:build")
    code = (
        "import sys; from step_cli.models.user_code import module_name; "
        "from pathlib import Path; print(module_name(Path(sys.argv[1])))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, os.path.relpath(file, tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout.strip() in sys.modules


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    file = write(tmp_path)
    with pytest.raises(InputError, match=r"FileNotFoundError: .*it lies in .*: open"):
        build_model(f"{file}:reading")
    (tmp_path / "layers_beside.py").unlink()
    (tmp_path / "other.py").write_text("import layers_beside\n\ndef build(): ...\n")
    with pytest.raises(UsageError, match="cannot be imported: No module named 'layers"):
        sys.modules.pop("layers_beside", None)
        build_model(f"{tmp_path / 'other.py'}:build")
