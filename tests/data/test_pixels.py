"""Images of every mode as what they look like, or refused by name."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from step_cli.data import pixels
from step_cli.data.pixels import read_image
from step_cli.errors import InputError

RAMP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)


@pytest.fixture(autouse=True)
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "_said", set())


def read(path: Path, image: Image.Image, **more: Any) -> np.ndarray[Any, Any]:
    image.save(path, **more)
    found = read_image(path)
    assert found.mode == "RGB"
    return np.asarray(found)


def test_grey_of_16_bits_keeps_its_shades(tmp_path: Path) -> None:
    found = read(tmp_path / "a.png", Image.fromarray(RAMP))
    np.testing.assert_array_equal(found[..., 0], (RAMP + 128.0) // 257)
    assert (found[..., 0] == found[..., 2]).all()
    assert found.min() == 0 and found.max() == 255


def test_16_bits_that_hold_less_are_doubted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "step_cli")
    read(tmp_path / "a.png", Image.fromarray(RAMP))
    assert not caplog.records
    read(tmp_path / "b.png", Image.fromarray(RAMP // 257))
    read(tmp_path / "c.png", Image.fromarray(RAMP // 257))
    (said,) = (record.getMessage() for record in caplog.records)
    assert f"{tmp_path / 'b.png'}: 16 bits a pixel and no value above 255" in said


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_opaque_modes_keep_their_colours(tmp_path: Path, mode: str) -> None:
    colours = np.zeros((8, 8, 3), np.uint8)
    colours[:4] = 255
    if mode in ("P", "RGB"):
        colours[:, 4:, 1] = 0
    image = Image.fromarray(colours).convert(mode)
    np.testing.assert_array_equal(read(tmp_path / "a.png", image), colours)


def test_print_colours_are_seen_as_light(tmp_path: Path) -> None:
    paper = read(tmp_path / "a.jpg", Image.new("CMYK", (8, 8)))
    ink = read(tmp_path / "b.jpg", Image.new("CMYK", (8, 8), (0, 0, 0, 255)))
    assert paper.min() > 250 and ink.max() < 5


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_lies_on_white(
    tmp_path: Path, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A black drawing whose ground is black too, but for its transparency."""
    clear = np.zeros((8, 8, 4), np.uint8)
    clear[2:6, 2:6, 3] = 255
    image, more = Image.fromarray(clear), {}
    if mode == "P":
        image, more = Image.fromarray(clear[..., 3] // 255, "L"), {"transparency": 0}
        image = image.convert("P")
        image.putpalette([0, 0, 0, 0, 0, 0])
    elif mode == "LA":
        image = image.convert("LA")
    found = read(tmp_path / "a.png", image, **more)
    drawn = np.full((8, 8, 3), 255, np.uint8)
    drawn[2:6, 2:6] = 0
    np.testing.assert_array_equal(found, drawn)
    assert "is transparent in part: laid on white" in caplog.text


def test_the_orientation_a_camera_notes_is_followed(tmp_path: Path) -> None:
    colours = np.zeros((8, 16, 3), np.uint8)
    colours[:, :8] = 255  # white on the left
    image = Image.fromarray(colours)
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned: the top is on the left
    for suffix in ("png", "jpg"):
        found = read(tmp_path / f"a.{suffix}", image, exif=exif)
        assert found.shape == (16, 8, 3)
        assert found[:8].min() > 240 and found[8:].max() < 15


@pytest.mark.parametrize(
    ("mode", "values", "words"),
    [
        ("F", np.ones((4, 4), np.float32), "its pixels are F, which have no fixed"),
        (
            "I",
            np.full((4, 4), 70_000, np.int32),
            "values are 70000 to 70000, more",
        ),
        ("I", np.full((4, 4), -1, np.int32), "values are -1 to -1, more than 16 bits"),
    ],
)
def test_numbers_that_are_no_colours_are_refused(
    mode: str, values: np.ndarray[Any, Any], words: str
) -> None:
    """No format that is read holds them by now, but one may come to."""
    with pytest.raises(InputError, match=words) as error:
        pixels._as_rgb(Image.fromarray(values), Path("x.png"))
    assert error.value.file == "x.png"
