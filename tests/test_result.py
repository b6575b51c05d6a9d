"""Saving a program: the file takes the example that the program was made with."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from hwprune.capture import capture
from hwprune.result import export_bytes


class Halves(nn.Module):
    """Two images through one layer and against each other, as in optical flow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        p, q = torch.chunk(self.conv(torch.cat([a, b])), 2, dim=0)
        return torch.matmul(p.flatten(2).transpose(1, 2), q.flatten(2))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_saved_program_takes_its_example(batch: int) -> None:
    """Traced with two images each, halves of one image each are guarded against."""
    torch.manual_seed(0)
    inputs = (torch.randn(batch, 3, 8, 8), torch.randn(batch, 3, 8, 8))
    program = capture(Halves().eval(), inputs)
    assert program.dynamic_batch
    loaded = torch.export.load(io.BytesIO(export_bytes(program))).module()
    assert torch.equal(loaded(*inputs), program.module(*inputs))


def test_a_batch_stays_dynamic_where_one_image_is_taken() -> None:
    x = torch.randn(1, 3, 8, 8)
    program = capture(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval(), (x,))
    loaded = torch.export.load(io.BytesIO(export_bytes(program))).module()
    assert loaded(x.expand(5, 3, 8, 8)).shape[0] == 5
