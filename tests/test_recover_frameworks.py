"""Pruners as callbacks of Lightning and of the Hugging Face Trainer, inside their own loops."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hwprune
from examples import torchvision_ops
from hwprune.errors import ToolchainError
from hwprune.recover import Callback, Step
from hwprune.recover.frameworks import lightning_callback, trainer_callback

X = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))


class Told(Callback):
    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.epochs: list[int] = []

    def after_step(self, step: Step) -> None:
        self.steps.append(step)

    def after_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def state_dict(self):
        return {"steps": len(self.steps)}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))


def data() -> TensorDataset:
    images = torch.randn(48, 8, generator=torch.Generator().manual_seed(1))
    return TensorDataset(images, images[:, :3].argmax(1))


def check(told: Told, pruner: hwprune.GrowingRegularizer) -> None:
    assert [s.epoch for s in told.steps] == [i // 6 for i in range(24)]
    assert told.epochs == [0, 1, 2, 3]
    assert all(s.loss > 0 for s in told.steps[1:])
    assert pruner.count == 24
    assert pruner.finish().report["removal"]["max_rel_change"] < 1e-3


@pytest.fixture(params=["pytorch_lightning", "transformers"])
def framework(request, monkeypatch):
    torchvision_ops.declare()
    return pytest.importorskip(request.param)


@pytest.mark.slow
def test_told_by_the_framework(framework, tmp_path) -> None:
    model, told = network(), Told()
    pruner = hwprune.GrowingRegularizer(model, (X,), steps=24, macs="50%")
    if framework.__name__ == "transformers":
        _with_trainer(framework, model, [told, pruner], tmp_path)
    else:
        _with_lightning(framework, model, [told, pruner], tmp_path)
    check(told, pruner)


def _with_lightning(lightning, model: nn.Module, told: list[Callback], folder) -> None:
    class Task(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    callbacks = [lightning_callback(c) for c in told]
    assert callbacks[0].state_dict() == {"steps": 0}
    trainer = lightning.Trainer(
        max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
        default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(Task(), DataLoader(data(), batch_size=8))


def _with_trainer(transformers, model: nn.Module, told: list[Callback], folder) -> None:
    class Task(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.model(pixels)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    arguments = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=4, per_device_train_batch_size=8, use_cpu=True,
        logging_steps=1, report_to=[], save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    rows = [{"pixels": x, "labels": y} for x, y in data()]
    trainer = transformers.Trainer(
        model=Task(), args=arguments, train_dataset=rows,
        callbacks=[trainer_callback(c) for c in told],
    )  # fmt: skip
    trainer.train()


@pytest.mark.parametrize("make", [lightning_callback, trainer_callback])
def test_a_framework_that_is_not_there(make, monkeypatch) -> None:
    def absent(name: str):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ToolchainError, match="is not installed"):
        make(Told())
