"""Rows R12-R18 and R32: torch files, unpickled in a child process only."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import forks
import ml_dtypes
import numpy as np
import pytest
import torch
from attacks.gadgets import gadgets
from attacks.torch_attacks import W, archives, pickles, saved, unfit
from bad_inputs.console import Row, Want, check, promised, state, step_cli
from bad_inputs.sound import put, put_bytes, sparse
from torch import nn

from step_cli.errors import MissingError
from step_cli.formats.checkpoint import NamedTensor
from step_cli.formats.compressed.writer import save_compressed
from step_cli.formats.files.mapped_file import map_file
from step_cli.nm.pattern import NMPattern, NMSpec

GOOD = torch.from_numpy(sparse())


def files(folder: Path, found: dict[str, tuple[bytes, str]]) -> list[Want]:
    return [
        Want(put_bytes(folder / f"{at}.pt", data), 4, words)
        for at, (data, words) in enumerate(found.values())
    ]


def chosen(
    found: dict[str, tuple[bytes, str]], *names: str
) -> dict[str, tuple[bytes, str]]:
    return {name: found[name] for name in names}


def r12(folder: Path) -> Row:
    made = chosen(pickles(folder / "marker"), "memory", "stride 0")
    return Row(files(folder, made), new=True)


def r13(folder: Path) -> Row:
    names = ("compressed", "two pickles", "absolute", "parent", "many members")
    return Row(files(folder, chosen(archives(), *names)))


def r14(folder: Path) -> Row:
    names = ("gadget", "gadget, then broken")
    return Row(files(folder, chosen(pickles(folder / "marker"), *names)))


def r15(folder: Path) -> Row:
    found = {name: (saved(value), words) for name, (value, words) in unfit().items()}
    return Row(files(folder, chosen(found, "list", "two wrappers")))


def kinds() -> dict[str, object]:
    return {
        "complex.weight": W.to(torch.complex64),
        "sparse.weight": W.to_sparse(),
        "meta.weight": torch.empty(4, 8, device="meta"),
    }


def r16(folder: Path) -> Row:
    mixed = put_bytes(folder / "a.pt", saved({"fc.weight": GOOD, **kinds()}))
    alone = put_bytes(folder / "b.pt", saved(kinds()))
    listed = r'"name": "complex.weight".*"reason": "kind"'
    return Row([Want(mixed, 0, listed), Want(alone, 3, "skipped: 3 kind")])


def r16_strict(folder: Path) -> Row:
    mixed = put_bytes(folder / "a.pt", saved({"fc.weight": GOOD, **kinds()}))
    return Row([Want(mixed, 1, '"selected": true')], ["--strict"])


def r17(folder: Path) -> Row:
    tied = saved({"fc.weight": GOOD, "tied.weight": GOOD, "b": GOOD[0].clone()})
    path = put_bytes(folder / "m.pt", tied)
    return Row([Want(path, 0, r'"tied_to": "fc.weight".*"totals": {"layers": 1,')])


def r17_skipped(folder: Path) -> Row:
    """The first name is an embedding: the two that are left are one weight."""
    names = ("wte.weight", "z.weight", "lm_head.weight")
    path = put_bytes(folder / "m.pt", saved(dict.fromkeys(names, GOOD)))
    words = '"lm_head.weight".*"tied_to": "wte.weight".*'
    words += '"z.weight".*"tied_to": "lm_head.weight".*"totals": {"layers": 1,'
    return Row([Want(path, 0, words)])


def r17_order(folder: Path) -> Row:
    """Of the two listed by name the second is tied, whatever the order in the file."""
    path = put_bytes(folder / "m.pt", saved({"b.weight": GOOD, "a.weight": GOOD}))
    words = '"a.weight".*"tied_to": null.*"b.weight".*"tied_to": "a.weight"'
    return Row([Want(path, 0, words)])


ROWS: dict[str, Callable[[Path], Row]] = {
    "R12": r12, "R13": r13, "R14": r14, "R15": r15, "R16": r16,
    "R16, --strict": r16_strict, "R17": r17,
    "R17, the first skipped": r17_skipped, "R17, in another order": r17_order,
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_row(row: str, tmp_path: Path) -> None:
    run = check(tmp_path, ROWS[row](tmp_path))
    assert not (tmp_path / "marker").exists()
    assert "weights_only=False" not in run.err + run.out


MANY = """
import json, sys
from step_cli.formats.pytorch import child as torch_child
for path in sys.argv[1:]:
    try:
        legacy = open(path, "rb").read(2) != b"PK"
        found = torch_child.main(path, legacy=legacy)
    except Exception as error:
        found = {"error": torch_child.in_words(error)}
    print(json.dumps(found))
"""


def asked_in_one_child(paths: list[Path]) -> list[dict[str, object]]:
    """What the child says of each file; one process for all, as torch starts slowly."""
    words = [sys.executable, "-P", "-c", MANY, *map(str, paths)]
    done = forks.run(words, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_R14_no_gadget_runs(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    made = gadgets(marker)
    paths = [put_bytes(tmp_path / f"{at}.pt", made[k]) for at, k in enumerate(made)]
    answers = asked_in_one_child(paths)
    assert len(answers) == len(made) >= 20
    for name, answer in zip(made, answers, strict=True):
        assert re.search("wants to call|UnpicklingError", str(answer["error"])), name
        assert "weights_only=False" not in str(answer)
    assert not marker.exists()


def test_R15_what_is_no_state_dict_is_told_in_words(tmp_path: Path) -> None:
    made = {**unfit(), "module": (nn.Linear(2, 2), r"torch\.nn\.modules")}
    paths = [
        put_bytes(tmp_path / f"{at}.pt", saved(value))
        for at, (value, _) in enumerate(made.values())
    ]
    for (_, words), answer in zip(
        made.values(), asked_in_one_child(paths), strict=True
    ):
        assert words.replace("\\", "") in str(answer["error"])
        several = "--key" in str(answer["error"])
        assert several or "save model.state_dict()" in str(answer["error"])


def test_R18_tied_tensors_are_pruned_together_or_not_at_all(tmp_path: Path) -> None:
    path = put_bytes(tmp_path / "m.pt", saved({"a.weight": W, "b.weight": W}))
    before = state(tmp_path)
    run = step_cli("prune", path, tmp_path / "out.pt", "--exclude", "b.*")
    assert (run.code, len(run.errors)) == (2, 1), run.err
    assert "select both or neither" in run.errors[0]
    assert state(tmp_path) == before
    promised(run)


def test_R32_what_does_not_fit_into_memory_is_a_lack(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    # Compressed tensors are the ones that cannot be viewed in the file.
    dense = np.zeros((16384, 16384), ml_dtypes.bfloat16)
    tensor = NamedTensor("fc.weight", "bfloat16", dense.shape, lambda: dense)
    save_compressed(path, [tensor], {"fc.weight": NMSpec(NMPattern(1, 16), 1)})
    limited = "import resource as r; r.setrlimit(r.RLIMIT_DATA, (300 << 20, 300 << 20))"
    words = [
        sys.executable,
        "-c",
        f"{limited}\nfrom step_cli.cli.app import main; main()",
    ]
    words += ["verify-nm", str(path), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 6, done.stderr
    assert json.loads(done.stdout)["error"]["exit"] == 6
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    assert "not enough memory" in done.stderr and "512" in done.stderr


def test_R32_a_big_endian_host_is_a_lack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "m.safetensors")
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(MissingError, match="little-endian, this machine is not"):
        map_file(path)
