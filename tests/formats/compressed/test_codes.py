"""Codes and their scales: the bytes worked out in docs/format.md, both ways."""

import json
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from attacks.compressed_attacks import Header, rewrite, sign

import step_cli
from step_cli.errors import InputError
from step_cli.formats.compressed.flaws import CompressedFileError, Flaw
from step_cli.formats.compressed.writer import KEY
from step_cli.formats.files.mapped_file import map_file
from step_cli.formats.open import open_checkpoint
from step_cli.formats.plan import KEY as PLAN_KEY
from step_cli.formats.plan import plan_json
from step_cli.formats.safetensors.header import DTYPES, read_header
from step_cli.formats.safetensors.writer import packed_header, save_safetensors
from step_cli.nm.pattern import NMPattern, NMSpec, Plan

Array = np.ndarray[Any, Any]
PAGE = Path(__file__).parents[3] / "docs" / "format.md"
ROW = re.compile(r"^\| `(w\S*)` \| `(\w+)` \| `\[(.+)\]` \| `([0-9A-F ]+)` \|$", re.M)
PLAN: Plan = {"w": NMSpec(NMPattern(2, 4), 1)}
NUMBERS = [[0, 2.5, 0, -3.5, 4, 0, 0, 0], [0, 0, 0.75, -1, 0, 0, 0, 0]]
SCALE = np.array([[0.5], [0.25]], np.float32)
KINDS = ["I8", "F8_E4M3", "F8_E5M2"]


def worked(kind: str) -> dict[str, tuple[str, list[int], bytes]]:
    """The tensors that the page works out, of codes of one type."""
    found = {}
    for name, dtype, shape, data in ROW.findall(PAGE.read_text(encoding="utf-8")):
        if name != "w.nm_values" or dtype == kind:
            found[name] = dtype, json.loads(f"[{shape}]"), bytes.fromhex(data)
    assert sorted(found) == ["w.nm_positions", "w.nm_values", "w_scale"]
    return found


def codes(kind: str) -> Array:
    dtype = np.dtype(DTYPES[kind][0])
    return (np.array(NUMBERS) / SCALE).astype(dtype)


def dense(path: Path, plan: Plan = PLAN, **tensors: Array) -> Path:
    save_safetensors(path, tensors, {PLAN_KEY: plan_json(plan)})
    return path


def stored(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    file = map_file(path)
    return {
        entry.name: (
            entry.code,
            list(entry.shape),
            file.data[entry.begin : entry.end].tobytes(),
        )
        for entry in read_header(file).entries
    }


def description(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(read_header(map_file(path)).metadata[KEY])
    return found


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def small(path: Path, kind: str = "I8", scale: Array = SCALE) -> Path:
    """The worked example as `export` writes it."""
    source = dense(path.with_suffix(".dense.safetensors"), w=codes(kind), w_scale=scale)
    assert step_cli.export(source, path, "compressed").ok
    return path


def test_export_writes_the_worked_bytes(tmp_path: Path, kind: str) -> None:
    path = small(tmp_path / "c.safetensors", kind)
    assert stored(path) == worked(kind)
    assert description(path)["schema"] == "step-cli/compressed/2"
    assert description(path)["codes"] == {"w": {"type": kind, "scale": "w_scale"}}
    back = tmp_path / "back.safetensors"
    step_cli.export(path, back, "dense")
    assert stored(back) == stored(tmp_path / "c.dense.safetensors")
    assert step_cli.verify(path).ok
    assert step_cli.verify(path, nm="1:4").exit_code == 1


def test_a_file_of_the_worked_bytes_is_read(tmp_path: Path, kind: str) -> None:
    header: Header = {}
    data, begin = {}, 0
    for name, (dtype, shape, raw) in worked(kind).items():
        offsets = [begin, begin + len(raw)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data[name], begin = raw, begin + len(raw)
    about = {
        "schema": "step-cli/compressed/2",
        "shapes": {"w": [2, 8]},
        "sha256": {name: sha256(raw).hexdigest() for name, raw in data.items()},
        "negative_zeros": 0,
        "codes": {"w": {"type": kind, "scale": "w_scale"}},
    }
    plan = {"layers": {"w": {"pattern": "2:4", "axis": 1}}}
    plan["schema"] = "step-cli/plan/1"  # type: ignore[assignment]
    header["__metadata__"] = {KEY: json.dumps(about), PLAN_KEY: json.dumps(plan)}
    sign(header, data)
    path = tmp_path / "hand.safetensors"
    path.write_bytes(packed_header(header) + b"".join(data.values()))
    (found,) = (t.read() for t in open_checkpoint(path).tensors if t.name == "w")
    assert found.dtype == codes(kind).dtype
    assert found.tobytes() == codes(kind).tobytes()
    state = step_cli.load_compressed(path)
    assert sorted(state) == ["w", "w_scale"]
    assert state["w"].float().tolist() == codes(kind).astype(np.float32).tolist()
    meant = step_cli.load_compressed(path, dequantize=torch.float32)
    assert {name: value.tolist() for name, value in meant.items()} == {"w": NUMBERS}


def test_the_numbers_of_codes_are_what_a_model_takes(tmp_path: Path) -> None:
    path = small(tmp_path / "c.safetensors", "I8", np.array([0.5, 0.25], np.float16))
    layer = torch.nn.Linear(8, 2, bias=False, dtype=torch.bfloat16)
    state = step_cli.load_compressed(path, dequantize=torch.bfloat16)
    layer.load_state_dict({"weight": state["w"]}, assign=True)
    assert layer(torch.eye(8, dtype=torch.bfloat16)).T.tolist() == NUMBERS


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("form", ["number", "outputs", "rows", "blocks"])
def test_each_form_of_scale(tmp_path: Path, form: str, axis: int) -> None:
    rng = np.random.default_rng(0)
    shape = (8, 8)  # square, so that only the plan tells what its outputs are
    kept = rng.integers(1, 100, shape).astype(np.int8)
    kept[tuple(slice(None) if at != axis else slice(1, None, 2) for at in (0, 1))] = 0
    sizes = {"number": (), "outputs": (8,), "rows": (8, 1), "blocks": (4, 2)}[form]
    scale = rng.random(sizes).astype(np.float32)
    wanted = np.zeros(shape)
    for i, j in np.ndindex(shape):
        at: tuple[int, ...] = ()
        if form == "outputs":
            at = (i,) if axis == 1 else (j,)
        elif form != "number":
            at = (i, 0) if form == "rows" else (i // 2, j // 4)
        wanted[i, j] = float(kept[i, j]) * float(scale[at])
    plan = {"w": NMSpec(NMPattern(2, 4), axis)}
    source = dense(tmp_path / "d.safetensors", plan, w=kept, w_scale=scale)
    path = tmp_path / "c.safetensors"
    assert step_cli.export(source, path, "compressed").ok
    assert "codes" in description(path)
    found = step_cli.load_compressed(path, dequantize=torch.float32)["w"]
    assert np.allclose(found.numpy(), wanted, atol=0, rtol=1e-6)


def test_only_files_of_compressed_codes_are_of_version_2(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"

    def version(plan: Plan = PLAN, **tensors: Array) -> str:
        source = dense(tmp_path / "d.safetensors", plan, **tensors)
        step_cli.export(source, path, "compressed", force=True)
        return str(description(path)["schema"]).rpartition("/")[2]

    fp16, fp8 = codes("I8").astype(np.float16), codes("F8_E4M3")
    assert version(w=fp8, w_scale=SCALE) == "2"
    assert version(w=fp16, w_scale=SCALE) == "1"
    assert version(w=fp8) == "1"  # numbers, not codes
    assert version(w=fp8, w_scale=SCALE[:1].repeat(3, 0)) == "1"  # not understood
    assert version(w=fp16, v=codes("I8"), v_scale=SCALE) == "1"  # a head left dense
    both = {"w": fp8, "w_scale": SCALE, "v": codes("I8"), "v_scale": SCALE}
    assert version(**both) == "2"
    assert description(path)["codes"]["v"] == {"type": "I8", "scale": "v_scale"}
    meant = step_cli.load_compressed(path, dequantize=torch.float32)
    assert meant["v"].tolist() == meant["w"].tolist() == NUMBERS


def test_version_1_with_codes_is_read_as_before(tmp_path: Path) -> None:
    path = small(tmp_path / "c.safetensors")

    def as_before(header: Header, data: dict[str, bytes]) -> None:
        about = json.loads(header["__metadata__"][KEY])
        del about["codes"]
        about["schema"] = "step-cli/compressed/1"
        header["__metadata__"][KEY] = json.dumps(about)

    rewrite(path, as_before)
    assert step_cli.verify(path).ok
    state = step_cli.load_compressed(path)
    assert state["w"].tolist() == codes("I8").tolist()
    assert step_cli.load_compressed(path, dequantize=torch.float32)["w"].tolist() == (
        NUMBERS
    )


def test_codes_whose_scale_says_nothing_are_not_guessed(tmp_path: Path) -> None:
    torn = np.ones((3, 1), np.float32)
    path = small(tmp_path / "c.safetensors", "I8", torn)
    assert step_cli.load_compressed(path)["w"].tolist() == codes("I8").tolist()
    with pytest.raises(InputError, match="w_scale is not one number") as error:
        step_cli.load_compressed(path, dequantize=torch.float32)
    assert (error.value.file, error.value.tensor) == (str(path), "w")


def test_the_zero_point_of_codes_that_are_not_compressed(tmp_path: Path) -> None:
    moved = (codes("I8") + 7).astype(np.int8)
    more = {"v": moved, "v_scale": SCALE, "v_zero_point": np.array([7, 7], np.int8)}
    source = dense(tmp_path / "d.safetensors", w=codes("I8"), w_scale=SCALE, **more)
    path = tmp_path / "c.safetensors"
    assert step_cli.export(source, path, "compressed").ok
    meant = step_cli.load_compressed(path, dequantize=torch.float32)
    assert {name: value.tolist() for name, value in meant.items()} == {
        "v": NUMBERS, "w": NUMBERS,
    }  # fmt: skip


# ------------------------------------------------------------------------------- flaws

Change = Callable[[Header, dict[str, bytes]], None]


def described(**codes: Any) -> Change:
    def change(header: Header, data: dict[str, bytes]) -> None:
        about = json.loads(header["__metadata__"][KEY]) | codes
        header["__metadata__"][KEY] = json.dumps(about)

    return change


def no_scale(header: Header, data: dict[str, bytes]) -> None:
    del header["w_scale"], data["w_scale"]


def torn_scale(header: Header, data: dict[str, bytes]) -> None:
    header["w_scale"]["shape"], data["w_scale"] = [3], bytes(12)


def scale_of_codes(header: Header, data: dict[str, bytes]) -> None:
    header["w_scale"] |= {"dtype": "I32"}


def torn_zero_point(header: Header, data: dict[str, bytes]) -> None:
    header["w_zero_point"] = {"dtype": "I8", "shape": [5]}
    data["w_zero_point"] = bytes(5)


def values_of_another_type(header: Header, data: dict[str, bytes]) -> None:
    header["w.nm_values"]["dtype"] = "F8_E4M3"


ITS = {"type": "I8", "scale": "w_scale"}
OTHER = {"type": "F16", "scale": "w_scale"}
NEWER = "step-cli/compressed/3"


@pytest.mark.parametrize(
    ("change", "flaw", "tensor", "words"),
    [
        (no_scale, Flaw.SCALE_MISSING, "w", "its scale w_scale is missing"),
        (torn_scale, Flaw.SCALE_DISAGREES, "w", r"w_scale is float32 of \[3\], which"),
        (scale_of_codes, Flaw.SCALE_DISAGREES, "w", r"w_scale is int32 of \[2, 1\]"),
        (torn_zero_point, Flaw.SCALE_DISAGREES, "w", r"w_zero_point is int8 of \[5\]"),
        (
            values_of_another_type,
            Flaw.CODES_DISAGREE,
            "w",
            "as I8, the file has F8_E4M3",
        ),
        (
            described(codes={"w": ITS | {"type": "F16"}}),
            Flaw.CODES_DISAGREE,
            "w",
            "F16",
        ),
        (described(codes={"v": ITS}), Flaw.CODES_MISSING, "v", "not in the file"),
        (described(codes={"w": "I8"}), Flaw.NOT_A_DESCRIPTION, None, "known schema"),
        (described(codes=["w"]), Flaw.NOT_A_DESCRIPTION, None, "known schema"),
        (described(codes=None), Flaw.NOT_A_DESCRIPTION, None, "known schema"),
        (
            described(schema="step-cli/compressed/3"),
            Flaw.NEWER,
            None,
            "update step-cli",
        ),
    ],
)
def test_each_flaw_of_codes(
    tmp_path: Path, change: Change, flaw: Flaw, tensor: str | None, words: str
) -> None:
    path = small(tmp_path / "c.safetensors")
    rewrite(path, lambda header, data: None)  # as sound as before
    assert step_cli.load_compressed(path, dequantize=torch.float32)["w"].tolist() == (
        NUMBERS
    )
    rewrite(path, change)
    with pytest.raises(CompressedFileError, match=words) as error:
        open_checkpoint(path)
    assert (error.value.flaw, error.value.tensor) == (flaw, tensor)
    assert (error.value.exit_code, error.value.file) == (4, str(path))
    assert "\n" not in error.value.message


def test_fp8_without_a_sign_of_zero(tmp_path: Path) -> None:
    # Of E4M3FNUZ the bits 0x80 are NaN, of E4M3 they are -0.0, which is a zero.
    bits = np.array([[0x38, 0x80, 0x80, 0x39]], np.uint8)
    plan = {"w": NMSpec(NMPattern(2, 4), 1)}
    for dtype, negative in ((ml_dtypes.float8_e4m3fn, 2), (ml_dtypes.float8_e5m2, 2)):
        source = tmp_path / f"{np.dtype(dtype).name}.safetensors"
        one = np.ones((), np.float32)
        dense(source, plan, w=bits.view(dtype), w_scale=one)
        path = source.with_suffix(".nm.safetensors")
        report = step_cli.export(source, path, "compressed")
        assert report.ok and report.negative_zeros == negative
        found = step_cli.load_compressed(path)["w"].view(torch.uint8)
        assert found.tolist() == [[0x38, 0, 0, 0x39]]
