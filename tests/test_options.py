"""The options of the command line: how images are read as the network was trained to see them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hwprune.errors import HwpruneError, ModelError
from hwprune.model_ref import example_inputs, in_batch
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


def test_inputs_are_of_the_type_that_is_asked() -> None:
    images, ids, mask, halves = example_inputs(
        ["2,3,4,4", "2,5:int64", "2,5:bool", "2,5:float16"], torch.nn.Identity()
    )
    assert (images.dtype, tuple(images.shape)) == (torch.float32, (2, 3, 4, 4))
    assert ids.dtype is torch.int64
    assert set(ids.flatten().tolist()) == {0, 1}
    assert (mask.dtype, halves.dtype) == (torch.bool, torch.float16)
    torch.nn.Embedding(2, 4)(ids)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2,5:int65", "'int65' is not the type of an input .*int64"),
        ("2,5:", "'' is not the type"),
        ("2,x:int64", "'2,x:int64' is not a shape"),
    ],
)
def test_inputs_that_are_not(text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        example_inputs([text], torch.nn.Identity())


def test_a_batch_is_the_first_size_of_every_input() -> None:
    _, inputs, _ = read_inputs(NET, None, SHAPE, batch=5)
    assert [tuple(x.shape) for x in inputs] == [(5, 3, 32, 32)]
    assert torch.equal(inputs[0][0], inputs[0][4])
    (fewer,) = in_batch([torch.arange(6).reshape(3, 2)], 2)
    assert fewer.tolist() == [[0, 1], [2, 3]]
    with pytest.raises(ModelError, match="without a batch"):
        in_batch([torch.tensor(1.0)], 2)
