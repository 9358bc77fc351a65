"""Fuzz `verify-nm`: damaged files in, every answer checked, findings kept.

    python tests/fuzz/run.py --minutes 30 [--seed 0] [--kind onnx] [--only NUMBER]

Each case is made from the seed, its kind and its number alone, so that one line repeats
it. Findings, and the case at work if the process dies, are kept under --keep.
"""

import argparse
import faulthandler
import io
import json
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz import clock, forked, grammar, mutations, oracle
from fuzz.good_files import Files, Good, goods

from step_cli.cli import app as cli

FORMATS = ("table", "jsonl", "markdown", "junit", "sarif", "github")
GRAMMAR = {
    "safetensors": mutations.safetensors,
    "compressed": mutations.compressed,
    "torch": grammar.torch_file,
    "onnx": grammar.onnx_model,
    "external": grammar.onnx_model,
    "json": mutations.json_text,
}


@dataclass(frozen=True)
class Case:
    """One damaged checkpoint and the options it is checked with."""

    kind: str
    name: str
    files: Files
    target: str
    options: list[str]


@dataclass
class Result:
    """What a run found."""

    codes: Counter[tuple[str, int]] = field(default_factory=Counter)
    judged: int = 0  # layers whose verdict the slow loop confirmed
    stricter: Counter[str] = field(default_factory=Counter)  # refused, library reads
    findings: list[tuple[str, str]] = field(default_factory=list)


def make(kind: str, seed: int, number: int, sound: Sequence[Good]) -> Case:
    """The case of that number."""
    rng = random.Random(f"{seed} {kind} {number}")
    good = rng.choice(sound)
    data = good.files[good.victim]
    by_grammar = rng.random() < 0.75
    out = GRAMMAR[kind](data, rng) if by_grammar else mutations.blind(data, rng)
    options = [o for o in ("--exact", "--strict", "--tensorrt") if rng.random() < 0.15]
    if rng.random() < 0.2:
        options += ["--nm", rng.choice(["1:4", "2:8", "1:2", "3:300"])]
    if good.victim == "plan.json":
        options += ["--plan", good.victim]
    elif rng.random() < 0.1:
        options += ["--baseline", good.target]
    files = {**good.files, good.victim: out}
    return Case(kind, f"{kind}-{seed}-{number}", files, good.target, options)


def write(case: Case, folder: Path) -> None:
    """Put its files there, and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def ask(case: Case, folder: Path, *options: str) -> oracle.Answer:
    """Run the command in this process, under a clock."""
    paths = [str(folder / word) if word in PATHS else word for word in case.options]
    words = ["verify-nm", str(folder / case.target), *paths, *options]
    out, err = io.StringIO(), io.StringIO()
    before = _reset_peak()
    began = time.process_time()  # others may keep the machine busy
    with CLOCK, redirect_stderr(err):
        code = cli.run(words, out)
    seconds = time.process_time() - began
    peak = max(0, _status("VmHWM") - before)
    return oracle.Answer(code, out.getvalue(), err.getvalue(), seconds, peak)


CLOCK = clock.Clock()
PATHS = {"plan.json", "m.safetensors", "m.onnx", "m.pt", "d"}


def _reset_peak() -> int:
    """Forget the peak so far; returns what is resident now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{key}:")[1].split()[0]) << 10


def judge(case: Case, folder: Path, number: int, result: Result) -> Iterator[str]:
    """Run a case; yield what is wrong with the answers."""
    before = {name: (folder / name).read_bytes() for name in case.files}
    answer = ask(case, folder, "--json")
    result.codes[case.kind, answer.code] += 1
    yield from oracle.complaints(answer)
    yield from _verdicts(case, folder, answer, result)
    if number % 10 == 0:
        format = FORMATS[number // 10 % len(FORMATS)]
        other = ask(case, folder, "--format", format)
        if other.code != answer.code:
            yield f"exit code {other.code} as {format}, {answer.code} as JSON"
        # A plan or baseline that is refused ends the command without a report.
        reported = "checkpoints" in json.loads(answer.out)
        if reported and oracle.unparsable(other.out, format):
            yield f"{format} does not parse"
    now = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    if now != set(before):
        yield f"files left: {sorted(now - set(before))}"
    if any((folder / name).read_bytes() != data for name, data in before.items()):
        yield "an input changed"


def _verdicts(
    case: Case, folder: Path, answer: oracle.Answer, result: Result
) -> Iterator[str]:
    if case.kind not in ("safetensors", "onnx", "external", "torch"):
        return
    if case.kind == "torch" and answer.code == 4:
        return  # not for this process to load
    arrays = oracle.arrays_of(folder / case.target)
    if answer.code in (0, 1, 7) and arrays is not None:
        checkpoint = json.loads(answer.out)["checkpoints"][0]
        known = [x for x in checkpoint["layers"] if "float" in x["dtype"]]
        if case.kind != "safetensors":  # weights in subgraphs are not looked up
            known = [layer for layer in known if layer["name"] in arrays]
        exact = "--exact" in case.options
        yield from oracle.wrong_verdicts({"layers": known}, arrays, exact=exact)
        result.judged += len(known)
    elif answer.code == 4 and arrays is not None:
        result.stricter[_words(json.loads(answer.out)["error"]["message"])] += 1
    elif answer.code in (0, 1, 7) and case.kind == "safetensors":
        yield "accepted, and the library refuses it"


def _words(message: str) -> str:
    """A message without its numbers and names."""
    plain = "".join(" " if c.isdigit() else c for c in message)
    return " ".join(plain.split())[:60]


def fuzz(options: argparse.Namespace) -> Result:
    """Cases of all kinds in turn until the time is over."""
    sound = goods()
    kinds = [options.kind] if options.kind else list(sound)
    result, end = Result(), time.monotonic() + 60 * options.minutes
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    number = options.only or 0
    while time.monotonic() < end:
        for kind in kinds:
            case = make(kind, options.seed, number, sound[kind])
            write(case, folder)
            _note(case, options.keep / "at-work")
            try:
                found = list(judge(case, folder, number, result))
            except clock.HangError:
                found = ["hangs"]
            for complaint in dict.fromkeys(found):
                print(f"{case.name} {' '.join(case.options)}: {complaint}", flush=True)
                result.findings.append((case.name, complaint))
            if found:
                keep(case, folder, found, options.keep / case.name)
        if options.only is not None:
            break
        number += 1
        if number % 5000 == 0:
            print(f"{number} of each kind", flush=True)
    shutil.rmtree(folder)
    return result


def keep(case: Case, folder: Path, found: Sequence[str], kept: Path) -> None:
    """Keep the files, and what the command says of them a second time, in full."""
    write(case, kept)
    try:
        answer = ask(case, folder, "--json", "--debug")
        again = f"exit code {answer.code}, {answer.seconds:.1f} s of processor time, "
        again += f"{answer.peak_bytes >> 20} MiB\n\n{answer.err}\n{answer.out}"
    except clock.HangError:
        again = "hangs\n"
    first = "".join(f"{complaint}\n" for complaint in found)
    text = f"{' '.join(case.options)}\n\nfirst:\n{first}\nagain: {again}"
    (kept / "answer.txt").write_text(text, errors="backslashreplace")


def _note(case: Case, path: Path) -> None:
    path.write_text(f"{case.name} {' '.join(case.options)}\n")


def report(result: Result, options: argparse.Namespace) -> str:
    """The counts, as Markdown."""
    total = sum(result.codes.values())
    lines = [f"{total} files in {options.minutes:g} minutes, seed {options.seed}; "]
    lines[0] += f"{result.judged} layers judged by the slow loop as well."
    lines += [
        "",
        "| damaged | " + " | ".join(f"exit {c}" for c in (0, 1, 3, 4, 7)) + " |",
    ]
    lines += ["|---" * 6 + "|"]
    for kind in dict.fromkeys(kind for kind, _ in result.codes):
        counts = [str(result.codes[kind, code]) for code in (0, 1, 3, 4, 7)]
        lines.append(f"| {kind} | " + " | ".join(counts) + " |")
    lines += ["", f"Findings: {len(result.findings)}", ""]
    lines += [f"* {name}: {complaint}" for name, complaint in result.findings[:100]]
    lines += ["", "Refused here, read by the format's own library:", ""]
    lines += [
        f"* {count} x {words}" for words, count in result.stricter.most_common(15)
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Parse the options, fuzz, report; 1 if there were findings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=list(GRAMMAR))
    parser.add_argument("--only", type=int, help="one number, to repeat a finding")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    options = parser.parse_args()
    options.keep.mkdir(exist_ok=True)
    faulthandler.enable()
    warnings.simplefilter("ignore")
    forked.instead_of_processes()
    result = fuzz(options)
    text = report(result, options)
    (options.keep / "report.md").write_text(text)
    print(text)
    return 1 if result.findings else 0


if __name__ == "__main__":
    sys.exit(main())
