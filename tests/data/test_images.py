"""Image folders: decoded when asked for, varied as the seed says."""

from pathlib import Path

import numpy as np
import pytest
import torch
from data.written import write_images

from step_cli.config.data import DataSection
from step_cli.data.batch import Dataset
from step_cli.data.load import load_data
from step_cli.data.order import batch_at
from step_cli.errors import InputError


def load(path: Path, **more: object) -> Dataset:
    section = {"source": str(path), "image_size": 24, **more}
    return load_data(DataSection.model_validate(section))


def test_classes_are_folders_in_the_order_of_names(tmp_path: Path) -> None:
    dataset = load(write_images(tmp_path, ("zebra", "ant", "cat")))
    batch = dataset.train[torch.arange(9)]
    assert batch.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert batch.inputs["pixel_values"].shape == (9, 3, 24, 24)
    assert len(dataset.held_out) == 9


def test_a_held_out_image_is_the_scaled_centre(tmp_path: Path) -> None:
    from PIL import Image

    write_images(tmp_path)
    path = tmp_path / "val" / "n01" / "n01_0.JPEG"
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[4:60, 36:92] = 255  # 7/8 of the shorter side, in the middle
    Image.fromarray(pixels).save(path, "PNG")
    found = load(tmp_path).held_out[torch.tensor([0])].inputs["pixel_values"][0]
    white = torch.tensor(
        [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    )
    torch.testing.assert_close(found[:, 12, 12], white)
    # The filter looks one pixel beyond the border, and not further.
    assert torch.all(found[:, 1:-1, 1:-1] == found[:, 12:13, 12:13])
    assert torch.all(found[:, 0, 0] < white)


def test_training_sees_crops_that_follow_from_seed_and_step(tmp_path: Path) -> None:
    write_images(tmp_path)
    one, again, other, next_one, still = (
        batch_at(load(tmp_path, augment=a).train, index=i, size=4, seed=seed)
        for a, i, seed in ((True, 0, 1), (True, 0, 1), (True, 0, 2), (True, 1, 1),
                           (False, 0, 1))
    )  # fmt: skip
    pixels = [b.inputs["pixel_values"] for b in (one, again, other, next_one, still)]
    assert torch.equal(pixels[0], pixels[1])
    for different in pixels[2:]:
        assert not torch.equal(pixels[0], different)
    assert torch.equal(one.labels, still.labels)


def test_grey_and_transparent_images_become_three_colours(tmp_path: Path) -> None:
    from PIL import Image

    write_images(tmp_path)
    for name, mode in (("grey", "L"), ("alpha", "RGBA"), ("print", "CMYK")):
        suffix = ".jpg" if mode == "CMYK" else ".png"
        image = Image.new(mode, (30, 30))
        image.save(tmp_path / "train" / "n01" / f"a_{name}{suffix}")
    palette = Image.new("P", (30, 30))
    palette.save(tmp_path / "train/n01/b.png", transparency=bytes([0, 128]))
    (tmp_path / "train" / "n01" / "notes.txt").write_text("no image")
    dataset = load(tmp_path)
    assert len(dataset.train) == 10
    assert dataset.train[torch.arange(10)].inputs["pixel_values"].isfinite().all()


def test_a_share_is_held_out_evenly_and_not_trained_on(tmp_path: Path) -> None:
    write_images(tmp_path, count=10)
    dataset = load(tmp_path, held_out=0.2)
    assert (len(dataset.train), len(dataset.held_out)) == (16, 4)
    assert dataset.held_out[torch.arange(4)].labels.tolist() == [0, 0, 1, 1]
    varied = batch_at(dataset.train, index=0, size=4, seed=0).inputs["pixel_values"]
    plain = batch_at(load(tmp_path, held_out=0.2, augment=False).train,
                     index=0, size=4, seed=0).inputs["pixel_values"]  # fmt: skip
    assert not torch.equal(varied, plain)


def test_an_image_that_cannot_be_decoded_is_told_by_name(tmp_path: Path) -> None:
    write_images(tmp_path)
    cut = tmp_path / "train" / "n02" / "n02_1.JPEG"
    cut.write_bytes(cut.read_bytes()[:200])
    none = tmp_path / "val" / "n01" / "n01_2.JPEG"
    none.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    dataset = load(tmp_path)
    with pytest.raises(InputError, match="no image that can be decoded") as error:
        dataset.train[torch.arange(6)]
    assert error.value.file == str(cut)
    with pytest.raises(InputError, match="no image that can be decoded") as error:
        dataset.held_out[torch.arange(6)]
    assert error.value.file == str(none)
    assert len(dataset.train[torch.arange(4)]) == 4


def test_missing_folders_and_classes_are_told(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "val" / "n03").mkdir()
    with pytest.raises(InputError, match="class 'n03' is not among the 2 of "):
        load(tmp_path)
    (tmp_path / "train" / "n03").mkdir()
    with pytest.raises(InputError, match=r"has no \.jpg"):
        load(tmp_path)
    for path in (tmp_path / "val").rglob("*.JPEG"):
        path.unlink()
    (tmp_path / "val").rename(tmp_path / "other")
    (tmp_path / "train" / "n03").rmdir()
    with pytest.raises(
        InputError, match=r"no folder named valid.* give data\.held_out"
    ):
        load(tmp_path)
    with pytest.raises(InputError, match="has no folders, which are the classes"):
        load(tmp_path, held_out=str(tmp_path / "train" / "n01"))
