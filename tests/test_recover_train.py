"""The training loop: resumes bit for bit, stops at NaN, distils."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hwprune.capture import capture
from hwprune.errors import HwpruneError
from hwprune.recover import TrainConfig, finetune
from hwprune.recover.train import distillation_loss


def make_net() -> nn.Module:
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Linear(64, 3)).eval()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(96, 1, 6, 6, generator=generator)
    return images, images.mean((1, 2, 3)).mul(6).round().clamp(-1, 1).long() + 1


def loader() -> DataLoader:
    return DataLoader(TensorDataset(*data()), batch_size=16, shuffle=True)


CONFIG = TrainConfig(epochs=4, lr=0.05, label_smoothing=0.1)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resumed_training_is_bit_exact(tmp_path, optimizer):
    config = TrainConfig(epochs=4, lr=0.02, optimizer=optimizer)
    whole = make_net()
    result = finetune(whole, loader(), 6, config)
    assert len(result.losses) == 4
    assert result.losses[-1] < result.losses[0]

    class KilledError(Exception):
        pass

    def kill(step):
        if step.epoch == 2 and step.index == 3:
            raise KilledError

    checkpoint = tmp_path / "deep" / "net.pt"
    with pytest.raises(KilledError):
        finetune(make_net(), loader(), 6, config, checkpoint=checkpoint, progress=kill)
    resumed = make_net()
    again = finetune(resumed, loader(), 6, config, checkpoint=checkpoint)
    assert again.losses == result.losses
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert [f.name for f in checkpoint.parent.iterdir()] == ["net.pt"]


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_checkpoint_of_another_device_is_read_where_there_is_none(tmp_path, monkeypatch, ema):
    """Tensors that say they were written on a GPU; its training goes on, bit for bit."""
    config = TrainConfig(epochs=2, lr=0.02, ema=ema)
    whole, checkpoint = make_net(), tmp_path / "net.pt"
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")
        finetune(whole, loader(), 6, config, checkpoint=checkpoint)
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(checkpoint, weights_only=True)
    again = make_net()
    assert len(finetune(again, loader(), 6, config, checkpoint=checkpoint).losses) == 2
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_the_callers_random_state_is_untouched():
    torch.manual_seed(11)
    want = torch.rand(3)
    torch.manual_seed(11)
    finetune(make_net(), loader(), 2, TrainConfig(epochs=1))
    torch.manual_seed(11)
    net = make_net()  # seeds itself: seed again
    torch.manual_seed(11)
    finetune(net, loader(), 2, TrainConfig(epochs=1))
    assert torch.equal(torch.rand(3), want)


def test_nan_stops_and_keeps_the_last_good_weights():
    images, labels = data()
    net, before = make_net(), {}

    def batches(epoch):
        before[epoch] = {k: v.clone() for k, v in net.state_dict().items()}
        broken = images * math.nan if epoch == 2 else images
        return [(images[:48], labels[:48]), (broken[48:], labels[48:])]

    result = finetune(net, batches, 2, TrainConfig(epochs=5, lr=0.01))
    assert "nan at step 1 of epoch 2" in result.stopped
    assert len(result.losses) == 2
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[2][name]), name
    assert not torch.equal(before[2]["0.weight"], before[1]["0.weight"])
    assert not net.training


def test_an_infinite_loss_in_the_first_epoch_leaves_the_weights():
    images, labels = data()
    net = make_net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    batches = [(images[:32], labels[:32]), (images[:32] * math.inf, labels[:32])]
    result = finetune(net, batches, 2, TrainConfig(epochs=3))
    assert result.stopped
    assert result.losses == ()
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_distillation_without_labels_approaches_the_teacher():
    images, _ = data()
    teacher, student = make_net(), make_net()
    with torch.no_grad():
        student[-1].weight.normal_(0, 0.1)
    before = distillation_loss(student(images), teacher(images), 2.0)
    finetune(student, [images[:48], images[48:]], 2, TrainConfig(epochs=15), teacher=teacher)
    assert distillation_loss(student(images), teacher(images), 2.0) < 0.3 * before
    with pytest.raises(HwpruneError, match="need a teacher"):
        finetune(student, [images], 1, CONFIG)


def test_distillation_loss_is_the_kl_divergence():
    a, b = torch.randn(5, 7), torch.randn(5, 7)
    p, q = (b / 3).softmax(1), (a / 3).softmax(1)
    want = 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(distillation_loss(a, b, 3.0), want)
    assert float(distillation_loss(a, a, 3.0)) == pytest.approx(0.0, abs=1e-6)


def test_a_captured_program_trains():
    images, labels = data()
    program = capture(make_net(), (images[:2],))
    before = {k: v.clone() for k, v in program.module.state_dict().items()}
    finetune(program.module, [(images, labels)], 1, TrainConfig(epochs=2))
    after = program.module.state_dict()
    assert not torch.equal(after["1.running_mean"], before["1.running_mean"])
    assert not torch.equal(after["0.weight"], before["0.weight"])


def test_bad_checkpoints_and_loaders(tmp_path):
    path = tmp_path / "net.pt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(HwpruneError, match="cannot be read"):
        finetune(make_net(), loader(), 2, CONFIG, checkpoint=path)
    path.unlink()
    finetune(make_net(), loader(), 2, CONFIG, checkpoint=path)
    with pytest.raises(HwpruneError, match="other settings"):
        finetune(make_net(), loader(), 2, TrainConfig(epochs=9), checkpoint=path)
    with pytest.raises(HwpruneError, match="no batches"):
        finetune(make_net(), [], 2, CONFIG)
    with pytest.raises(HwpruneError, match="unknown optimizer"):
        finetune(make_net(), loader(), 2, TrainConfig(optimizer="lion"))
