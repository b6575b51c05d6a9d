"""Reading a directory of calibration images."""

import numpy as np
import pytest
import torch

from hwprune.errors import HwpruneError, ModelError
from hwprune.recover import load_images

image_module = pytest.importorskip("PIL.Image", reason="needs pillow")


def test_pictures_are_scaled_cropped_and_normalised(tmp_path):
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 30:50] = (255, 0, 0)
    (tmp_path / "deep").mkdir()
    image_module.fromarray(pixels).save(tmp_path / "deep" / "red.png")
    image_module.new("L", (16, 16), 255).save(tmp_path / "white.JPG")
    (tmp_path / "notes.txt").write_text("no image")
    images = load_images(tmp_path, (1, 3, 14, 14))
    assert images.shape == (2, 3, 14, 14)
    assert images.dtype == torch.float32
    red, white = images
    assert torch.equal(white, torch.ones(3, 14, 14))
    torch.testing.assert_close(red[:, 7, 7], torch.tensor([1.0, -1.0, -1.0]))
    torch.testing.assert_close(red[:, 7, 0], torch.tensor([-1.0, -1.0, -1.0]))
    one = load_images(tmp_path, (1, 3, 14, 14), limit=1, mean=(0.0, 0.5, 1.0), std=(1.0, 1.0, 2.0))
    assert one.shape == (1, 3, 14, 14)


def test_transparency_shows_white_and_grey_models_get_one_channel(tmp_path):
    image_module.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert torch.equal(load_images(tmp_path, (4, 1, 8, 8)), torch.ones(1, 1, 8, 8))


def test_arrays_are_taken_as_they_are(tmp_path):
    array = np.random.default_rng(0).normal(size=(5, 7))
    np.save(tmp_path / "a.npy", array)
    got = load_images(tmp_path, (1, 5, 7))
    torch.testing.assert_close(got[0], torch.from_numpy(array).float())
    with pytest.raises(ModelError, match=r"a\.npy: the array has shape \(5, 7\).*\(5, 8\)"):
        load_images(tmp_path, (1, 5, 8))
    np.save(tmp_path / "a.npy", array * np.nan)
    with pytest.raises(HwpruneError, match="not finite"):
        load_images(tmp_path, (1, 5, 7))


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(HwpruneError, match="no such directory"):
        load_images(tmp_path / "absent", (1, 3, 8, 8))
    with pytest.raises(HwpruneError, match="no images"):
        load_images(tmp_path, (1, 3, 8, 8))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(HwpruneError, match=r"broken\.png: not a readable picture"):
        load_images(tmp_path, (1, 3, 8, 8))
    with pytest.raises(ModelError, match="cannot be an input of shape"):
        load_images(tmp_path, (1, 784))
    (tmp_path / "broken.png").rename(tmp_path / "broken.npy")
    with pytest.raises(HwpruneError, match="not a readable array"):
        load_images(tmp_path, (1, 3, 8, 8))
