"""Python's standard library as text: the bytes of its top-level modules.

    python benchmarks/evidence/text/data.py OUT

Writes OUT/stdlib/train.bin and OUT/stdlib/valid.bin, and OUT/about.json with Python's
version and the SHA-256 of both texts.
"""

import argparse
import hashlib
import json
import platform
import sys
import sysconfig
from pathlib import Path

import numpy as np

HELD_OUT_FILES = 10  # every tenth file, by name, is held out
PIECES, PIECE_SIZE = 32, 2048  # of them are measured on, so that it takes a second
# Of the text that the study was measured on.
PYTHON = "3.11.7"
TRAIN_SHA256 = "bc9a71a5bf9072dfaa2632b96a173b8fdda46da470d74897b5258f5df9e688cd"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    files = modules(Path(sysconfig.get_path("stdlib")))
    held_out = files[::HELD_OUT_FILES]
    train = [file for file in files if file not in held_out]
    texts = {
        "train.bin": joined(train),
        "valid.bin": pieces_of(joined(held_out), PIECES, PIECE_SIZE),
    }
    about = write(out / "stdlib", texts)
    (out / "about.json").write_text(json.dumps(about, indent=2) + "\n")
    if about["sha256"]["train.bin"] != TRAIN_SHA256:
        print(
            f"warning: this text of Python {platform.python_version()} is not that of "
            f"{PYTHON}, on which the study was measured",
            file=sys.stderr,
        )


def modules(library: Path) -> list[Path]:
    """The modules, by name; without the one that describes this very build."""
    found = [path for path in library.glob("*.py") if "sysconfigdata" not in path.name]
    if len(found) < 100:
        sys.exit(f"error: {library}: not the source of a whole standard library")
    return sorted(found, key=lambda path: path.name)


def joined(files: list[Path]) -> bytes:
    """The text of all files, one after the other."""
    return b"".join(file.read_bytes() for file in files)


def pieces_of(text: bytes, count: int, size: int) -> bytes:
    """``count`` pieces from all over the text, of whole lines, ``size`` bytes or more.

    They are long, since what follows a piece is not what followed it in the text.
    """
    pieces = []
    for number in range(count):
        begin = text.index(b"\n", len(text) * number // count) + 1
        end = text.index(b"\n", begin + size) + 1
        pieces.append(text[begin:end])
    return b"".join(pieces)


def write(folder: Path, texts: dict[str, bytes]) -> dict[str, object]:
    """Write the texts, each byte as a number of 16 bits; returns what they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        np.frombuffer(text, np.uint8).astype("<u2").tofile(folder / name)
    return {
        "python": platform.python_version(),
        "bytes": {name: len(text) for name, text in texts.items()},
        "sha256": {n: hashlib.sha256(text).hexdigest() for n, text in texts.items()},
    }


if __name__ == "__main__":
    main()
