"""Rows R01-R11, R19-R22 and R28-R31: files and directories that are not sound."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from attacks.onnx_attacks import linear, with_external_data
from attacks.safetensors_attacks import attacks, entry, file_of, tensors
from attacks.torch_attacks import W, archive, saved, torchscript
from bad_inputs.console import Row, Want, check
from bad_inputs.sound import NAME, plan_of, put, put_bytes, put_json, sharded, sparse
from safetensors.numpy import save

from step_cli.formats.plan import digests

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".th", ".pth.tar", ".onnx")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n"


def each(folder: Path, contents: dict[str, bytes], words: str) -> list[Want]:
    return [Want(put_bytes(folder / k, v), 4, words) for k, v in contents.items()]


def r01(folder: Path) -> Row:
    dangling = folder / "link.safetensors"
    dangling.symlink_to("gone")
    gone = "no such file"
    return Row([Want(folder / "x.safetensors", 4, gone), Want(dangling, 4, gone)])


def r02(folder: Path) -> Row:
    (folder / "empty").mkdir()
    put_bytes(folder / "run" / "config.toml", b"[train]\n")
    put_bytes(folder / "run" / "metrics.jsonl", b"{}\n")
    looked = r"no weights in it; looked for model\.safetensors"
    unfinished = "training not finished, use --resume"
    adapter = put(folder / "adapter" / "adapter_model.safetensors").parent
    several = [put(folder / "two" / f"model.{x}.safetensors") for x in ("a", "b")]
    return Row(
        [
            Want(folder / "empty", 4, looked),
            Want(folder / "run", 4, unfinished),
            Want(adapter, 4, r"adapter_model\.safetensors .*merge_and_unload"),
            Want(several[0].parent, 4, r"model\.a\.safetensors, model\.b\.safeten"),
        ]
    )


def r03(folder: Path) -> Row:
    wants = each(folder, {f"e{s}": b"" for s in SUFFIXES}, "file is empty")
    wants += each(folder, {f"p{s}": POINTER for s in SUFFIXES}, "run git lfs pull")
    pages = {f"h{s}": b"<html>404</html>" for s in SUFFIXES}
    wants += each(folder, pages, "looks like HTML")
    errors = {f"j{s}": b'{"error": "gone"}' for s in SUFFIXES}
    return Row(wants + each(folder, errors, "looks like JSON"))


def r04(folder: Path) -> Row:
    kinds = {
        "safetensors": (save({NAME: sparse()}), (".pt", ".bin", ".onnx")),
        "torch": (saved({"w": W}), (".safetensors", ".onnx")),
        "onnx": (linear().SerializeToString(), (".safetensors", ".ckpt")),
    }
    wants = []
    for kind, (data, suffixes) in kinds.items():
        for suffix in suffixes:
            words = rf"content is {kind}, name says \{suffix}, rename it"
            wants += each(folder, {f"{kind}{suffix}": data}, words)
    return Row(wants)


def r05(folder: Path) -> Row:
    whole = save({NAME: sparse()})
    archived = saved({"w": W})
    cut = {
        "a.safetensors": whole[:-1],
        "b.safetensors": whole[:40],
        "c.safetensors": whole[:4],
    }
    wants = each(folder, cut, r"truncated.*needs \d+ bytes.*, file has \d+")
    wants += each(folder, {"m.pt": archived[: len(archived) // 2]}, "truncated")
    (folder / "onnx").mkdir()
    short = with_external_data(folder / "onnx" / "m.onnx", {}, bytes(100))
    return Row([*wants, Want(short, 4, "truncated: needs 128 bytes, m.data has 100")])


def r06(folder: Path) -> Row:
    data = bytearray(saved({"w": W}))
    data[data.find(W.numpy().tobytes()) + 5] ^= 4
    torch_file = put_bytes(folder / "m.pt", bytes(data))
    shard = put(folder / "d" / "model.safetensors")
    plan = plan_of(NAME) | {"files": digests([shard])}
    put_json(folder / "d" / "nm_plan.json", plan)
    put(shard, sparse() * 2)
    flipped = bytearray(save({NAME: sparse()}))
    flipped[-1] ^= 1
    bare = put_bytes(folder / "m.safetensors", bytes(flipped))
    return Row(
        [
            Want(torch_file, 4, "CRC mismatch in '.*data/0'"),
            Want(folder / "d", 4, "sha256 differs"),
            Want(bare, 0, '"integrity": "unchecked"'),
        ]
    )


def headers(folder: Path, names: list[str]) -> list[Want]:
    made = {name: attacks()[name] for name in names}
    paths = [folder / f"{at}.safetensors" for at in range(len(made))]
    return [
        Want(put_bytes(path, data), 4, words.replace("(", r"\("))
        for path, (data, words) in zip(paths, made.values(), strict=True)
    ]


def r07(folder: Path) -> Row:
    beyond = (2**40).to_bytes(8, "little") + b"{}" * 8
    far = put_bytes(folder / "far.safetensors", beyond)
    wants = headers(folder, ["length 2^63", "length beyond"])
    return Row([*wants, Want(far, 4, "header length 1099511627776")], most_mib=200)


def r08(folder: Path) -> Row:
    one = b'"layer.%07d.weight":{"dtype":"F32","shape":[],"data_offsets":[0,4]},'
    many = b"{" + b"".join(one % at for at in range(1_500_000)) + b'"z":0}'
    sizes = b"[" + b",".join([b"1"] * 50_000) + b"]"
    shapes = b"{" + b",".join(b'"%d":%b' % (at, sizes) for at in range(900)) + b"}"
    paths = [folder / "many.safetensors", folder / "shapes.safetensors"]
    wants = []
    for path, header in zip(paths, (many, shapes), strict=True):
        put_bytes(path, file_of(header))
        wants.append(Want(path, 4, r"header 8\d MiB, limit 16 MiB|header 10\d MiB"))
    return Row([*wants, *headers(folder, ["deep", "many"])], most_mib=200)


def r09(folder: Path) -> Row:
    return Row(headers(folder, ["duplicate"]))


def r10(folder: Path) -> Row:
    other = ("length 2^63", "length beyond", "header 17 MiB", "deep", "many")
    names = [name for name in attacks() if name not in (*other, "duplicate")]
    return Row(headers(folder, names), most_mib=200)


def r11(folder: Path) -> Row:
    zero = tensors(0, **{NAME: entry(0, 0, [0, 2**62])})
    wants = [
        Want(put_bytes(folder / "a.safetensors", save({})), 3, "no tensor with elemen"),
        Want(put_bytes(folder / "b.safetensors", zero), 3, "no tensor with elements"),
    ]
    return Row(wants, most_mib=200)


def r19(folder: Path) -> Row:
    (folder / "outside").mkdir()
    target = put(folder / "outside" / "x.safetensors", name="a.weight")
    hostile = ["../outside/x.safetensors", str(target), "sub/x.safetensors"]
    hostile += ["a\0.safetensors", "c:x.safetensors", "..\\x.safetensors", ".."]
    wants = [
        Want(sharded(folder / str(at), {"a.weight": shard}), 4, "plain file name")
        for at, shard in enumerate(hostile)
    ]
    return Row(wants, outside=folder / "outside")


def r20(folder: Path) -> Row:
    first = "s-1.safetensors"
    keys = {f"{letter}.weight": "gone.safetensors" for letter in "vwxyz"}
    missing = sharded(folder / "missing", keys)
    absent = sharded(folder / "absent", {k: first for k in ["a.weight", *keys]})
    twice = sharded(folder / "twice")
    put(twice / first, name="b.weight")
    put_bytes(twice / first, save({"a.weight": sparse(), "b.weight": sparse()}))
    extra = sharded(folder / "extra")
    put(extra / "s-3.safetensors", name="c.weight")
    three = "'v.weight', 'w.weight', 'x.weight' and 2 more"
    return Row(
        [
            Want(missing, 4, f"shard gone.safetensors is missing, with {three}"),
            Want(absent, 4, f"promises {three}, absent"),
            Want(twice, 4, "stands in two shards"),
            Want(extra, 0, "s-3.safetensors is not in the index"),
        ]
    )


def r21(folder: Path) -> Row:
    put(sharded(folder / "index") / "model.safetensors", name="whole.weight")
    both = put(folder / "both" / "model.safetensors").parent
    put_bytes(both / "pytorch_model.bin", b"not opened")
    return Row(
        [
            Want(
                folder / "index", 0, "reads model.safetensors, not model.safetensors.i"
            ),
            Want(both, 0, r"reads model.safetensors, not pytorch_model.bin"),
        ]
    )


def r22(folder: Path) -> Row:
    repository = folder / "models--a--b"
    put(repository / "blobs" / "0f1e")
    put(folder / "outside" / "x")
    wants = []
    for name, link in (("good", "../../blobs/0f1e"), ("bad", "../../../outside/x")):
        snapshot = repository / "snapshots" / name
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").symlink_to(link)
        words = "huggingface" if name == "good" else "link leaves the checkpoint"
        wants.append(Want(snapshot, 0 if name == "good" else 4, words))
    return Row(wants, outside=folder / "outside")


def r28(folder: Path) -> Row:
    gadget = b"cposix\nsystem\n(S'touch " + bytes(folder / "marker") + b"'\ntR."
    put_bytes(folder / "dcp" / ".metadata", gadget)
    put_bytes(folder / "dcp" / "__0_0.distcp", b"PK\x03\x04")
    words = "its metadata is a pickle; convert it first"
    return Row([Want(folder / "dcp", 4, words)])


def r29(folder: Path) -> Row:
    programs = "programs and are not loaded"
    wants = each(folder, {"a.plan": b"ptrt" + bytes(60), "b.engine": b"x"}, programs)
    wants += each(folder, {"c.onnx": b"ptrt" + bytes(60)}, programs)
    wants += each(folder, {"d.pt": torchscript()}, "TorchScript is a program")
    keras = archive({"config.json": b"{}"})
    wants += each(folder, {"e.keras": keras}, "Keras")
    wants += each(folder, {"f.joblib": b"\x80\x04x"}, "joblib pickle")
    wants += each(folder, {"g.bin": b"\x7fELF" + bytes(60)}, "programs are not loaded")
    return Row(wants)


def r30(folder: Path) -> Row:
    pipe = folder / "pipe.safetensors"
    os.mkfifo(pipe)
    there = Path.cwd()
    os.chdir(folder)  # the name of a socket may not be long
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.safetensors")
    os.chdir(there)
    zero = folder / "zero.safetensors"
    zero.symlink_to("/dev/zero")
    proc = folder / "proc.safetensors"
    proc.symlink_to("/proc/self/status")
    paths = [pipe, folder / "socket.safetensors", zero, proc, Path("/dev/zero")]
    return Row([Want(path, 4, "not a regular file|no such device") for path in paths])


def r31(folder: Path) -> Row:
    texts = {
        "a": ("{", "the plan is not JSON"),
        "b": (plan_of(NAME, schema="step-cli/plan/2"), "written by a newer step-cli"),
        "c": (plan_of(*"vwxyz"), "'v', 'w', 'x' and 2 more"),
        "d": ([1], "not a JSON object"),
    }
    wants = []
    for name, (document, words) in texts.items():
        put(folder / name / "model.safetensors")
        put_json(folder / name / "nm_plan.json", document)
        if document == "{":
            put_bytes(folder / name / "nm_plan.json", b"{")
        wants.append(Want(folder / name, 4, words))
    return Row(wants)


ROWS: dict[str, Callable[[Path], Row]] = {
    "R01": r01, "R02": r02, "R03": r03, "R04": r04, "R05": r05, "R06": r06,
    "R07": r07, "R08": r08, "R09": r09, "R10": r10, "R11": r11, "R19": r19,
    "R20": r20, "R21": r21, "R22": r22, "R28": r28, "R29": r29, "R30": r30,
    "R31": r31,
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_row(row: str, tmp_path: Path) -> None:
    run = check(tmp_path, ROWS[row](tmp_path))
    assert not (tmp_path / "marker").exists()
    if row in ("R07", "R30"):
        assert run.cpu_seconds < 5  # the start of the process included
