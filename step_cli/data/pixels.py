"""An image file as three colours of eight bits, whatever it holds.

Pillow converts most modes as they are meant. Not so what has more than eight bits,
which it cuts off at white, transparency, which it takes away from whatever colour lies
below, and the orientation that a camera notes.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from step_cli.errors import InputError
from step_cli.formats.files.mapped_file import reason_of

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

# Whatever the file is called; others, such as EPS, would have Pillow run programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # grey of 16 bits
WHITE = 65535  # of 16 bits
DARK = 4095  # what 12 bits reach, of 16 a sixteenth of white
PLAIN = ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LA", "PA", "RGBA", "La", "RGBa")

_said = set[tuple[str, Path]]()  # what was said, and of which folder of classes


def read_image(path: Path) -> "Image":
    """An image as RGB, the way up it was taken, on white where it is transparent.

    Raises:
        InputError: It cannot be decoded, or its numbers have no meaning as colours.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=FORMATS) as opened:
            # Pillow gives the image back as it is where nothing is to be turned.
            return _as_rgb(ImageOps.exif_transpose(opened), path)
    except InputError:
        raise
    except Exception as error:  # Pillow raises of every kind
        raise InputError(
            f"is no image that can be decoded: {reason_of(error)}", file=path
        ) from None


def _as_rgb(image: "Image", path: Path) -> "Image":
    from PIL import Image

    if image.mode in DEEP:
        return _from_16_bits(image, path)
    if image.mode not in PLAIN:
        raise InputError(
            f"its pixels are {image.mode}, which have no fixed white; save it as 8-bit "
            "grey or RGB",
            file=path,
        )
    if not image.has_transparency_data:
        return image.convert("RGB")
    clear = image.convert("RGBA")
    if clear.getchannel("A").tobytes().strip(b"\xff"):  # not all of it is opaque
        _say_once("alpha", path, "is transparent in part: laid on white, as others")
    ground = Image.new("RGBA", clear.size, "white")
    return Image.alpha_composite(ground, clear).convert("RGB")


def _from_16_bits(image: "Image", path: Path) -> "Image":
    from PIL import Image

    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > WHITE:
        raise InputError(
            f"its grey values are {low} to {high}, more than 16 bits; save it as 8-bit "
            "grey or RGB",
            file=path,
        )
    if 0 < high <= DARK:
        _say_once(
            "dark",
            path,
            f"16 bits a pixel and no value above {high}, so it is read as nearly "
            f"black: {WHITE} is white; scale the files if white is less in them",
        )
    grey = ((values + 128) // 257).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _say_once(what: str, path: Path, words: str) -> None:
    """Log what is so of an image, and mostly of all in the folders of its classes."""
    key = what, path.parent.parent
    if key not in _said:
        _said.add(key)
        logger.warning("%s: %s", path, words)
