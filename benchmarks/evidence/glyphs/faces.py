"""Which faces of the installed font packages are drawn, and which are held out.

A face is one font file. ``fonts.txt`` names the packages; whole origins (a package, or
several of one drawing) lie on one side, so no family is both trained on and held out.
Monofur, which is derived from Eurofurence, is the one exception: see README.md.
"""

import hashlib
import string
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont
from numpy.typing import NDArray
from PIL import Image, ImageFont

CHARACTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits
FACES_OF_A_PACKAGE = 4
HELD_OUT = 4  # about every fourth origin
# Letters whose lower case has another shape than its capital.
CASED = "abdefghnqrt"
SIDE = 24  # of the pictures that faces are compared by
SMALL_CAPITAL = 0.85  # correlation of a lower-case letter with its capital
SAME_FACE = 0.97  # correlation of all letters of two faces
SMALL_CAPITALS_ALLOWED = 2
PROBE_SIZE = 64


@dataclass(frozen=True)
class Package:
    """A line of ``fonts.txt``; packages of one origin stem from one drawing."""

    name: str
    version: str
    origin: str
    licence: str


@dataclass(frozen=True)
class Face:
    """A font file, and the pictures that it is compared by, ``[62, SIDE * SIDE]``."""

    path: Path
    package: Package
    shapes: NDArray[np.float32]

    @property
    def held_out(self) -> bool:
        """By a hash of the origin's name: no seed, the same whatever else is there."""
        return number_of(self.package.origin) % HELD_OUT == 0


def number_of(name: str) -> int:
    """A number that depends on nothing but the name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def packages(path: Path) -> list[Package]:
    """The packages of a list, which all have to be installed."""
    lines = path.read_text().splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    found = [Package(*row) for row in rows]
    for package in found:
        version = installed_version(package.name)
        if version is None:
            raise SystemExit(f"error: apt-get install {package.name}: not installed")
        if version != package.version:
            print(
                f"note: {package.name} {version} instead of {package.version}: "
                "the pixels will differ",
                file=sys.stderr,
            )
    return found


def installed_version(package: str) -> str | None:
    """Of a Debian package; None where it is not installed."""
    words = ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", package]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SystemExit("error: dpkg-query: not found; this needs Debian") from None
    status, _, version = done.stdout.partition(" ")
    return version if status == "installed" else None


def usable_faces(listed: list[Package]) -> tuple[list[Face], list[tuple[str, str]]]:
    """All that are drawn, and why others are not, each with its reason."""
    faces: list[Face] = []
    left_out: list[tuple[str, str]] = []
    for package in listed:
        taken = 0
        for path in sorted(files_of(package.name), key=lambda p: number_of(str(p))):
            if taken == FACES_OF_A_PACKAGE:
                break
            reason = unusable(path)
            shapes = np.empty(0, np.float32) if reason else shapes_of(path)
            reason = reason or twin(shapes, faces)
            if reason:
                left_out.append((str(path), reason))
                continue
            taken += 1
            faces.append(Face(path, package, shapes))
    return faces, left_out


def files_of(package: str) -> Iterator[Path]:
    """Its font files, each once."""
    listing = subprocess.run(
        ["dpkg-query", "-L", package], capture_output=True, text=True, check=True
    )
    for line in listing.stdout.splitlines():
        path = Path(line)
        if path.suffix.lower() in (".ttf", ".otf") and not path.is_symlink():
            yield path


def unusable(path: Path) -> str:
    """Why a file has no real Latin letters of both cases, or nothing."""
    with TTFont(path, lazy=True) as font:
        present = font.getBestCmap() or {}
    missing = "".join(c for c in CHARACTERS if ord(c) not in present)
    if missing:
        return f"lacks {missing}"
    shapes = dict(zip(CHARACTERS, shapes_of(path), strict=True))
    blank = "".join(c for c, shape in shapes.items() if not np.any(shape))
    if blank:
        return f"{blank} is blank"
    small = [c for c in CASED if shapes[c] @ shapes[c.upper()] > SMALL_CAPITAL]
    if len(small) > SMALL_CAPITALS_ALLOWED:
        return f"{''.join(small)} look like their capitals"
    return ""


def shapes_of(path: Path) -> NDArray[np.float32]:
    """Each character scaled to a square, with mean 0 and length 1."""
    font = ImageFont.truetype(path, PROBE_SIZE, layout_engine=ImageFont.Layout.BASIC)
    rows = []
    for character in CHARACTERS:
        mask = font.getmask(character, mode="L")
        width, height = mask.size
        if not width or not height:
            rows.append(np.zeros(SIDE * SIDE, np.float32))
            continue
        picture = Image.frombytes("L", mask.size, bytes(mask))
        picture = picture.resize((SIDE, SIDE), Image.Resampling.BOX)
        pixels = np.asarray(picture, np.float32).ravel()
        pixels = pixels - pixels.mean()
        rows.append(pixels / max(float(np.linalg.norm(pixels)), 1e-6))
    return np.stack(rows)


def twin(shapes: NDArray[np.float32], faces: list[Face]) -> str:
    """Which face before it looks the same, or nothing."""
    for face in faces:
        likeness = float((shapes * face.shapes).sum() / len(CHARACTERS))
        if likeness > SAME_FACE:
            return f"looks like {face.path.name} ({likeness:.3f})"
    return ""
