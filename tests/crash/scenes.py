"""A `prune --force` over an old target, to be stopped, starved and failed at will."""

import io
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import forks
import numpy as np
import pytest
from safetensors.numpy import save_file

from step_cli.cli import app as cli

KINDS = ("file", "directory", "torch")
NAMES = {"file": "out.safetensors", "directory": "out", "torch": "out.pt"}

Content = dict[str, bytes]  # of all files, by relative path


@dataclass(frozen=True)
class Scene:
    """A folder with an input, an old target, and what the target is to become.

    Attributes:
        folder: The working directory of the command.
        kind: A file, a sharded directory or a torch file.
        source: The input's content.
        old: The target's content before.
        new: What a run that ends well makes of it.
    """

    folder: Path
    kind: str
    source: Content
    old: Content
    new: Content

    @property
    def words(self) -> list[str]:
        """The command that replaces the target."""
        return words_of(self.kind, "2:4")

    @property
    def command(self) -> list[str]:
        """The same as a process of its own."""
        return [sys.executable, "-m", "step_cli", *self.words]

    def run(self, prefix: Sequence[str] = ()) -> "subprocess.CompletedProcess[str]":
        """Run it, behind ``prlimit`` or the like."""
        return self.run_words([*prefix, *self.command])

    def run_words(self, words: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        """Run something else there."""
        return subprocess.run(
            words,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )

    def restore(self) -> None:
        """Put the old target back."""
        for name, data in self.old.items():
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)

    def target(self) -> Content:
        """What stands there now, of the target and beside it."""
        return content(self.folder, without="in")

    def check(self, *, follow: bool = True) -> None:
        """Whole, old or new; inputs as they were; the next run puts all in order."""
        # What a dead process leaves beside its target, the next run sweeps.
        found = {n: d for n, d in self.target().items() if not n.startswith(".")}
        assert found.keys() == self.old.keys()
        if self.kind == "torch":  # two files, each with a rename of its own
            assert all(d in (self.old[n], self.new[n]) for n, d in found.items())
        else:
            assert found in (self.old, self.new)
        assert content(self.folder, only="in") == self.source
        if follow:
            assert cli.run(absolute(self.words, self.folder), io.StringIO()) == 0
            assert self.target() == self.new
            self.restore()

    def staging(self) -> bool:
        """Whether the command has begun to write."""
        return any(".tmp-" in path.name for path in self.folder.iterdir())


def absolute(words: list[str], folder: Path) -> list[str]:
    """The command with whole paths, for a run in this process."""
    return [str(folder / w) if w.startswith(("in", "out")) else w for w in words]


def words_of(kind: str, pattern: str) -> list[str]:
    target = NAMES[kind]
    source = target.replace("out", "in")
    return ["-q", "prune", source, target, "--nm", pattern, "--force"]


def content(folder: Path, *, only: str = "", without: str = "/") -> Content:
    """The files of a folder; lock files count, as none may be left."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and str(path.relative_to(folder)).startswith(only)
        and not str(path.relative_to(folder)).startswith(without)
    }


def make(folder: Path, kind: str, columns: int = 64) -> Scene:
    """Write the input; what pruning it to 1:4 gives is the old target."""
    random = np.random.default_rng(0)
    weights = {
        f"{name}.weight": random.standard_normal((64, columns)).astype(np.float32)
        for name in "ab"
    }
    if kind == "directory":
        (folder / "in").mkdir()
        for number, (name, weight) in enumerate(weights.items()):
            save_file({name: weight}, folder / "in" / f"{number}.safetensors")
        shards = {name: f"{k}.safetensors" for k, name in enumerate(weights)}
        index = json.dumps({"metadata": {}, "weight_map": shards})
        (folder / "in" / "model.safetensors.index.json").write_text(index)
        (folder / "in" / "LICENSE").write_text("free")
    elif kind == "torch":
        import torch

        state = {name: torch.from_numpy(weight) for name, weight in weights.items()}
        torch.save(state, folder / "in.pt")
    else:
        save_file(weights, folder / "in.safetensors")
    contents = []
    for pattern in ("2:4", "1:4"):
        assert cli.run(absolute(words_of(kind, pattern), folder), io.StringIO()) == 0
        contents.append(content(folder, without="in"))
    new, old = contents
    assert new.keys() == old.keys() and new != old
    return Scene(folder, kind, content(folder, only="in"), old, new)


def kill_rounds(scene: Scene, rounds: int, save_s: float, seed: int = 0) -> int:
    """Kill the command within its write phase until ``rounds`` kills hit it alive.

    Returns:
        How many processes that took: on a busy machine more have ended before.
    """
    rng, tried, alive = random.Random(seed), 0, 0
    while alive < rounds:
        assert tried < 10 * rounds, (
            f"only {alive} of {tried} kills hit a living process"
        )
        tried += 1
        child = forks.Popen(
            scene.command,
            torch=False,
            cwd=scene.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while child.poll() is None and not scene.staging():
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, save_s))
        if child.poll() is None:
            alive += 1
            child.kill()
        child.wait()
        try:
            scene.check()
        except AssertionError as error:
            raise AssertionError(f"round {tried} of seed {seed}: {error}") from None
    return tried


def save_seconds(scene: Scene) -> float:
    """From the first staged byte to the end of one run."""
    child = forks.Popen(scene.command, torch=False, cwd=scene.folder)
    while child.poll() is None and not scene.staging():
        time.sleep(0.0005)
    began = time.monotonic()
    child.wait()
    scene.restore()
    return time.monotonic() - began


def until_it_ends_well(
    attempt: Callable[[int], int], most: int = 300
) -> Iterator[tuple[int, int]]:
    """Codes of an attempt with n = 1, 2, ... until one is 0."""
    for number in range(1, most):
        code = attempt(number)
        yield number, code
        if code == 0:
            return
    pytest.fail(f"still failing at call {most}")
