"""A character as a camera might see it: 32 x 32 pixels in colour, among others.

All that varies is drawn from one generator for each picture, so that a picture depends
on its face, its character and its number alone.
"""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIDE = 32
FINE = 2 * SIDE  # pictures are turned at twice the size, then halved
CANVAS = 160
CAPITAL = 40  # height of an H on the canvas
SCALE = (0.75, 1.25)  # of that height in the picture, where 1 is 17.5 of 32 pixels
BASE = 17.5 / SIDE * FINE / CAPITAL
TURN = math.radians(10)
SLANT = 0.15
SHIFT = 2.0 * FINE / SIDE
NEIGHBOURS = 0.25  # how often other characters stand to the left and right
CONTRAST = (0.2, 0.9)  # of paper and ink, where white and black are 1 apart
TINT = 0.1
NOISE = (0.02, 0.1)

Font = ImageFont.FreeTypeFont


def font_of(path: str) -> Font:
    """The face, with capitals of the same height whatever face it is."""
    layout = ImageFont.Layout.BASIC
    probe = ImageFont.truetype(path, 100, layout_engine=layout)
    _, top, _, bottom = probe.getbbox("H")
    size = round(100 * CAPITAL / (bottom - top))
    return ImageFont.truetype(path, size, layout_engine=layout)


def picture(
    font: Font, character: str, others: str, draw: np.random.Generator
) -> NDArray[np.uint8]:
    """One picture of a character.

    Args:
        font: Of `font_of`.
        character: What the picture is of.
        others: What its neighbours are drawn from.
        draw: Used up in an order that is part of the data.

    Returns:
        uint8 ``[3, 32, 32]``, red, green and blue planes.
    """
    ink = _turned(_line(font, character, others, draw), draw)
    paper, pen = _colours(draw)
    slope = draw.uniform(-0.15, 0.15, (2, 1, 1)).astype(np.float32)
    across = np.linspace(-1, 1, SIDE, dtype=np.float32)
    light = slope[0] * across[None, :] + slope[1] * across[:, None]
    shown = paper + (pen - paper) * ink[None] + light[None]
    noise = draw.standard_normal((3, SIDE, SIDE), np.float32) * draw.uniform(*NOISE)
    return np.clip(np.rint((shown + noise) * 255), 0, 255).astype(np.uint8)


def _line(
    font: Font, character: str, others: str, draw: np.random.Generator
) -> Image.Image:
    """The character in the middle of a canvas, where it stands on its line."""
    left, right = (others[i] for i in draw.integers(0, len(others), 2))
    if draw.uniform() >= NEIGHBOURS:
        left = right = ""
    canvas = Image.new("L", (CANVAS, CANVAS))
    brush = ImageDraw.Draw(canvas)
    width = font.getlength(character)
    begin, base = (CANVAS - width) / 2, (CANVAS + CAPITAL) / 2
    for text, x in (
        (left, begin - font.getlength(left)),
        (character, begin),
        (right, begin + width),
    ):
        brush.text((round(x), base), text, fill=255, font=font, anchor="ls")
    return canvas


def _turned(canvas: Image.Image, draw: np.random.Generator) -> NDArray[np.float32]:
    """Ink from 0 to 1, ``[32, 32]``: the canvas turned, slanted, scaled, moved."""
    scale = BASE * math.exp(draw.uniform(*map(math.log, SCALE)))
    angle, slant = draw.uniform(-TURN, TURN), draw.uniform(-SLANT, SLANT)
    shift = draw.uniform(-SHIFT, SHIFT, 2)
    # From a pixel of the picture to one of the canvas, as Pillow wants it.
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    a, b, d, e = cos + slant * sin, -sin + slant * cos, sin, cos
    x, y = FINE / 2 + shift
    c, f = CANVAS / 2 - a * x - b * y, CANVAS / 2 - d * x - e * y
    fine = canvas.transform(
        (FINE, FINE),
        Image.Transform.AFFINE,
        (a, b, c, d, e, f),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(fine.reduce(2), np.float32) / 255


def _colours(draw: np.random.Generator) -> NDArray[np.float32]:
    """Light paper and darker ink, ``[2, 3, 1, 1]``, both a little coloured."""
    contrast = draw.uniform(*CONTRAST)
    paper = draw.uniform(contrast, 1)
    shades = np.array([[paper], [paper - contrast]]) + draw.uniform(-TINT, TINT, (2, 3))
    return shades.astype(np.float32)[:, :, None, None]
