"""Rows V01-V15: what `verify-nm` says of sound files and of almost sound ones."""

import re
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from attacks.compressed_attacks import Header, rewrite
from attacks.onnx_attacks import model
from bad_inputs.console import Row, Want, check, promised, state, step_cli
from bad_inputs.sound import NAME, broken, plan_of, put, put_bytes, put_json, sparse
from onnx import helper
from safetensors.numpy import save

from step_cli.formats.checkpoint import NamedTensor
from step_cli.formats.compressed.writer import save_compressed
from step_cli.formats.safetensors.writer import packed_header
from step_cli.nm.pattern import NMPattern, NMSpec

POSITIONS, VALUES = f"{NAME}.nm_positions", f"{NAME}.nm_values"


def v01(folder: Path) -> Row:
    layers = {f"model.layers.{at}.mlp.weight": sparse() for at in range(9)}
    path = put_bytes(folder / "m.safetensors", save(layers))
    near = r"matches no tensor; nearest: (model\.layers\.\d\.mlp\.weight(, |$)){5}"
    return Row([Want(path, 3, near)], ["--include", "model.layer.0.mlp"])


def v02(folder: Path) -> Row:
    arrays = {
        "vector.weight": np.ones(8, np.float32),
        "integer.weight": np.ones((4, 8), np.int32),
        "odd.weight": np.ones((4, 6), np.float32),
        "small.weight": np.ones((4, 2), np.float32),
    }
    path = put_bytes(folder / "m.safetensors", save(arrays))
    return Row([Want(path, 3, "skipped: 2 size, 1 rank, 1 dtype")])


def v02_strict(folder: Path) -> Row:
    return Row([Want(v02(folder).wants[0].path, 1, "size")], ["--strict"])


def v03(folder: Path) -> Row:
    arrays = {NAME: sparse(), "ln_f.weight": np.ones(8, np.float32)}
    arrays |= {"odd.weight": np.ones((4, 6), np.float32)}
    path = put_bytes(folder / "m.safetensors", save(arrays))
    warned = "--exclude 'nothing' matches no tensor"
    wants = [Want(path, 0, '"reason": "norm"'), Want(path, 0, '"reason": "size"')]
    return Row([*wants, Want(path, 0, warned)], ["--exclude", "nothing"])


def v03_strict(folder: Path) -> Row:
    return Row([Want(v03(folder).wants[0].path, 1, '"ok": false')], ["--strict"])


def v04(folder: Path) -> Row:
    turned = np.ascontiguousarray(sparse(16, 64).T)
    path = put(folder / "m.safetensors", turned)
    return Row([Want(path, 1, f"holds along axis 0; use --axis '{NAME}=0'")])


def v05(folder: Path) -> Row:
    """A correct file and its twin, for each dtype and container."""
    wants = []
    kinds = (
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
    )
    for at, kind in enumerate(kinds):
        for array, code in ((sparse(), 0), (broken(), 1)):
            data = array.astype(getattr(ml_dtypes, kind, kind))
            path = folder / f"{at}-{code}.safetensors"
            path.write_bytes(_saved(NAME, data))
            wants.append(Want(path, code, r'"index": \[3, 4\], "nonzeros": 3' * code))
            if at in (1, 2):
                node = helper.make_node("Gemm", ["x", NAME], ["y"], transB=1)
                proto = model([node], {NAME: data}).SerializeToString()
                wants.append(Want(put_bytes(path.with_suffix(".onnx"), proto), code))
    return Row(wants)


def _saved(name: str, array: np.ndarray) -> bytes:
    """As `save`, which takes the 8-bit types by another name."""
    codes = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "bfloat16": "BF16"}
    if array.dtype.name not in codes:
        return save({name: array})
    entry = {"dtype": codes[array.dtype.name], "shape": list(array.shape)}
    header = {name: {**entry, "data_offsets": [0, array.nbytes]}}
    return packed_header(header) + array.tobytes()


def v06(folder: Path) -> Row:
    path = put(folder / "m.safetensors", np.zeros((4, 8), np.float32))
    return Row([Want(path, 0, '"notes": .*"all zero"')])


def v06_exact(folder: Path) -> Row:
    return Row(
        [Want(v06(folder).wants[0].path, 1, "--exact requires exactly N")], ["--exact"]
    )


def v07(folder: Path) -> Row:
    wants = []
    for at, value in enumerate((np.nan, np.inf, -np.inf)):
        for place in ((0, 0), (3, 7), (7, 15)):
            array = broken()
            array[place] = value
            path = put(folder / f"{at}-{place[0]}.safetensors", array)
            first = rf"1 NaN or infinity, the first at \[{place[0]}, {place[1]}\]"
            wants.append(Want(path, 7, first))
    return Row(wants)


def v08(folder: Path) -> Row:
    arrays = {"negative-zero": sparse(), "subnormal": sparse()}
    for name, value in (("negative-zero", -0.0), ("subnormal", 1e-42)):
        group = arrays[name][0, :4]
        group[np.flatnonzero(group == 0)[0]] = value
    wants = [put(folder / f"{k}.safetensors", v) for k, v in arrays.items()]
    words = "are zero after a cast to fp16"
    return Row([Want(wants[0], 0), Want(wants[1], 1, words)])


def v10(folder: Path) -> Row:
    path = put(folder / "d" / "model.safetensors", np.ones((16, 16), np.float32))
    put_json(path.parent / "nm_plan.json", plan_of(NAME))
    return Row([Want(path.parent, 1, "plan promises 2:4, 64 of 64 groups break it")])


def v11(folder: Path) -> Row:
    other = put(folder / "other.safetensors", sparse()[:, ::-1].copy())
    path = put(folder / "m.safetensors")
    words = r"weights are kept in one of this and the baseline only, the first at \[0, "
    gone = put(folder / "gone.safetensors", name="renamed.weight")
    absent = Want(gone, 1, "the baseline lacks this tensor")
    return Row([Want(path, 1, words), absent], ["--baseline", other])


def v11_unreadable(folder: Path) -> Row:
    path = put(folder / "m.safetensors")
    options = ["--baseline", put_bytes(folder / "b.safetensors", b"")]
    return Row([Want(path, 4, "b.safetensors: file is empty")], options, code=4)


def v12(folder: Path) -> Row:
    good, bad = put(folder / "a.safetensors"), put(folder / "b.safetensors", broken())
    nan = put(folder / "c.safetensors", sparse() * np.float32(np.nan))
    empty = put_bytes(folder / "d.safetensors", b"")
    none = put(folder / "e.safetensors", name="bias")
    codes = {good: 0, bad: 1, nan: 7, empty: 4, none: 3}
    return Row([Want(path, code) for path, code in codes.items()], code=4)


Change = Callable[[Header, dict[str, bytes]], None]


def v14(folder: Path) -> Row:
    """Positions that do not rise or are out of range; counts that disagree."""

    def positions(byte: int) -> Change:
        return lambda header, data: data.update(
            {POSITIONS: bytes([byte]) * len(data[POSITIONS])}
        )

    def longer(part: str, row: int) -> Change:
        def change(header: Header, data: dict[str, bytes]) -> None:
            data[part] += bytes(row)
            header[part]["shape"][0] += 1

        return change

    two_four, six_twelve = sparse(4, 16), np.tile(np.float32([1, 0]), (4, 6))
    cases = {
        "not rising": (two_four, "2:4", positions(0), "group 0"),
        "out of range": (six_twelve, "6:12", positions(0xFF), "group 0"),
        "positions": (two_four, "2:4", longer(POSITIONS, 1), "9 bytes|has 9"),
        "values": (two_four, "2:4", longer(VALUES, 8), r"has \[17, 2\]"),
    }
    wants = []
    for name, (array, nm, change, words) in cases.items():
        path = folder / f"{name}.safetensors"
        tensor = NamedTensor(NAME, "float32", array.shape, lambda a=array: a)
        save_compressed(path, [tensor], {NAME: NMSpec(NMPattern.parse(nm), 1)})
        rewrite(path, change)
        wants.append(Want(path, 4, words))
    return Row(wants)


def v15(folder: Path) -> Row:
    """Codes of another type than the file says; a scale that is gone, or torn."""

    def other_codes(header: Header, data: dict[str, bytes]) -> None:
        header[VALUES]["dtype"] = "F8_E5M2"

    def gone(header: Header, data: dict[str, bytes]) -> None:
        del header[f"{NAME}_scale"], data[f"{NAME}_scale"]

    def torn(header: Header, data: dict[str, bytes]) -> None:
        header[f"{NAME}_scale"]["shape"], data[f"{NAME}_scale"] = [3, 1], bytes(12)

    codes, scale = (sparse() * 20).astype(np.int8), np.full((8, 1), 0.5, np.float32)
    cases = {
        "sound": (lambda header, data: None, 0, ""),
        "other type": (other_codes, 4, "described as I8, the file has F8_E5M2"),
        "gone": (gone, 4, f"its scale {NAME}_scale is missing"),
        "torn": (
            torn,
            4,
            r"is float32 of \[3, 1\], which does not fit codes of \[8, 16\]",
        ),
    }
    wants = []
    for name, (change, code, words) in cases.items():
        path = folder / f"{name}.safetensors"
        tensors = [
            NamedTensor(
                f"{NAME}{end}", array.dtype.name, array.shape, lambda a=array: a
            )
            for end, array in (("", codes), ("_scale", scale))
        ]
        save_compressed(path, tensors, {NAME: NMSpec(NMPattern(2, 4), 1)})
        rewrite(path, change)
        wants.append(Want(path, code, words))
    return Row(wants, code=4)


ROWS: dict[str, Callable[[Path], Row]] = {
    "V01": v01, "V02": v02, "V02, --strict": v02_strict, "V03": v03,
    "V03, --strict": v03_strict, "V04": v04, "V05": v05, "V06": v06,
    "V06, --exact": v06_exact, "V07": v07, "V08": v08, "V10": v10, "V11": v11,
    "V11, unreadable": v11_unreadable, "V12": v12, "V14": v14, "V15": v15,
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_row(row: str, tmp_path: Path) -> None:
    run = check(tmp_path, ROWS[row](tmp_path))
    verdicts = run.json.get("checkpoints", [])
    if row == "V07":  # the violation is reported as well
        assert all(v["totals"]["violations"] > 0 for v in verdicts)
    if row == "V12":
        assert [v["ok"] for v in verdicts] == [True, False, False, False, False]


USAGE = [
    *((["--nm", nm], "expected N:M such as 2:4|N") for nm in ("0:4", "4:4", "5:4")),
    *((["--nm", nm], "expected N:M such as 2:4") for nm in ("2:4:8", "two:four")),
    (["--json", "--format", "sarif"], "use one"),
    (["--axis", "*=2"], "--axis: axis 2 of a tensor of 2 axes"),
]


@pytest.mark.parametrize(("options", "words"), USAGE, ids=lambda v: str(v)[:30])
def test_V09_wrong_usage(options: list[str], words: str, tmp_path: Path) -> None:
    path = put(tmp_path / "m.safetensors")
    before = state(tmp_path)
    run = step_cli("verify-nm", path, *options)
    assert run.code == 2
    assert len(run.errors) == 1 and run.err.count("\n") == 1
    assert re.search(words, run.errors[0])
    assert state(tmp_path) == before
    promised(run)


def many_failures(folder: Path, count: int) -> Path:
    layers = {f"l{at:04d}.weight": np.ones((1, 4), np.float32) for at in range(count)}
    return put_bytes(folder / "m.safetensors", save(layers))


def test_V13_annotations_and_the_summary_stay_within_their_limits(
    tmp_path: Path,
) -> None:
    path, summary = many_failures(tmp_path, 100), tmp_path / "summary.md"
    env = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    run = step_cli("verify-nm", path, env=env)
    assert run.code == 1
    commands = [line for line in run.out.splitlines() if line.startswith("::error")]
    assert len(commands) == 10 and "and 90 more" in run.out
    assert summary.stat().st_size < 1 << 20
    promised(run)


def test_V13_a_summary_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    path = many_failures(tmp_path, 1)
    for summary in (tmp_path / "missing" / "s.md", tmp_path):
        env = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
        run = step_cli("verify-nm", path, env=env)
        assert run.code == 1 and "warning: cannot write the summary" in run.err
        promised(run)


def test_V13_sarif_has_at_most_5000_results(tmp_path: Path) -> None:
    run = step_cli("verify-nm", many_failures(tmp_path, 5100), "--format", "sarif")
    assert run.code == 1
    assert len(run.json["runs"][0]["results"]) == 5000
    promised(run)
