"""Pictures of 62 characters in the binary form of CIFAR-100.

    python -m benchmarks.evidence.glyphs.data OUT

Writes OUT/glyphs/train.bin and test.bin, and faces.json: which faces are in which, what
was left out and why, and the SHA-256 of all pixels.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import features

from benchmarks.evidence.glyphs.faces import (
    CHARACTERS,
    Face,
    number_of,
    packages,
    usable_faces,
)
from benchmarks.evidence.glyphs.render import font_of, picture

HERE = Path(__file__).parent
SEED = 19
COPIES = {"train.bin": 5, "test.bin": 1}  # pictures of a character of a face


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT")
    folder = parser.parse_args().out / "glyphs"
    listed = packages(HERE / "fonts.txt")
    folder.mkdir(parents=True, exist_ok=True)
    faces, left_out = usable_faces(listed)
    sides = {
        "train.bin": [face for face in faces if not face.held_out],
        "test.bin": [face for face in faces if face.held_out],
    }
    digest = hashlib.sha256()
    counts = {}
    for name, chosen in sides.items():
        records = records_of(chosen, COPIES[name])
        digest.update(records)
        (folder / name).write_bytes(records)
        counts[name] = len(chosen) * len(CHARACTERS) * COPIES[name]
    document = {
        "pixels": digest.hexdigest(),
        "records": counts,
        "pillow": metadata.version("pillow"),
        "freetype": features.version("freetype2"),
        "faces": {name: named(chosen) for name, chosen in sides.items()},
        "left_out": dict(left_out),
    }
    (folder / "faces.json").write_text(json.dumps(document, indent=1) + "\n")
    for name, count in counts.items():
        print(f"{folder / name}: {count} pictures, {len(sides[name])} faces")
    print(f"pixels {document['pixels']}")


def named(faces: Sequence[Face]) -> dict[str, list[str]]:
    """The file names of each package's faces."""
    found: dict[str, list[str]] = {}
    for face in faces:
        found.setdefault(face.package.name, []).append(face.path.name)
    return found


def records_of(faces: Sequence[Face], copies: int) -> bytes:
    """Records as CIFAR-100 has them: a coarse class, which is 0, the class, pixels."""
    parts = []
    for face in faces:
        font = font_of(str(face.path))
        for label, character in enumerate(CHARACTERS):
            for copy in range(copies):
                seeds = [SEED, number_of(str(face.path)), label, copy]
                draw = np.random.default_rng(seeds)
                pixels = picture(font, character, CHARACTERS, draw)
                parts.append(bytes([0, label]) + pixels.tobytes())
    return b"".join(parts)


if __name__ == "__main__":
    main()
