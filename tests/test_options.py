"""The options of the command line: how images are read as the network was trained to see them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwprune.errors import HwpruneError
from hwprune.options import read_inputs

NET, SHAPE = "tests.small_net:small_net", ["1,3,32,32"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    from PIL import Image

    Image.fromarray(np.full((40, 40, 3), 255, np.uint8)).save(tmp_path / "white.png")
    return tmp_path


def test_pictures_are_scaled_per_channel(pictures: Path) -> None:
    _, _, images = read_inputs(NET, None, SHAPE, pictures, "0,0.5,1", "1,0.5,2")
    np.testing.assert_allclose(images[0].mean((1, 2)), [1.0, 1.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("text", ["0.5,0.5", "1,2,3,4"])
def test_as_many_numbers_as_channels(pictures: Path, text: str) -> None:
    with pytest.raises(HwpruneError, match="3 channels"):
        read_inputs(NET, None, SHAPE, pictures, text)


@pytest.mark.parametrize("text", ["", "a", "0.5,", "nan", "0", "-1"])
def test_a_deviation_is_a_positive_number(text: str) -> None:
    with pytest.raises(HwpruneError, match="positive numbers"):
        read_inputs(NET, None, SHAPE, None, std=text)
