"""A network without one branch: x, and what x tells of f(x)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hwprune.capture import Program, capture
from hwprune.couple import couple
from hwprune.skipped import Skipped


class Residual(nn.Module):
    """A stem, a residual branch, a head."""

    def __init__(self, linear: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.f = nn.Sequential(nn.Conv2d(4, 6, 1), nn.Identity() if linear else nn.ReLU())
        self.g = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.g(self.f(x)) + x)


class Tokens(nn.Module):
    """The same of sequences, whose channels come last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.f, self.g = nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.g(self.f(x))


class Signal(nn.Module):
    """The same of signals, whose channels come second, as those of maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv1d(3, 4, 3), nn.Conv1d(4, 5, 3)
        self.f, self.g = nn.Conv1d(4, 6, 1), nn.Conv1d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.g(self.f(x)))


X = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def made(net: nn.Module, x: Tensor = X) -> tuple[Program, Skipped, Skipped]:
    """The program, and its runs with and without inputs to fit on."""
    program = capture(net.eval(), (x[:2],))
    coupling = couple(program, branches=True)
    assert len(coupling.branches) == 1
    module = program.module
    return program, Skipped(module, coupling), Skipped(module, coupling, [(x[16:],)])


def without(net: Residual, x: Tensor) -> Tensor:
    """The network with its branch gone and nothing in its place."""
    return net.head(net.stem(x))


def error(y: Tensor, y0: Tensor) -> float:
    """Of outputs."""
    return float((y - y0).square().sum() / y0.square().sum())


def test_without_inputs_to_fit_on_the_branch_is_nothing() -> None:
    torch.manual_seed(0)
    net = Residual(linear=False)
    _, bare, _ = made(net)
    (name,) = bare.branches
    with torch.no_grad():
        torch.testing.assert_close(bare.without(name)(X[:4]), without(net, X[:4]))


@pytest.mark.parametrize("linear", [True, False])
def test_what_the_shortcut_tells_of_the_branch(linear) -> None:
    torch.manual_seed(0)
    net = Residual(linear)
    program, bare, told = made(net)
    (name,) = told.branches
    judged = X[:16]
    with torch.no_grad():
        whole = program.module(judged)
        nothing, something = (s.without(name)(judged) for s in (bare, told))
    if linear:  # nothing is lost
        assert error(something, whole) < 1e-3 < error(nothing, whole)
    else:
        assert 1e-3 < error(something, whole) < 0.7 * error(nothing, whole)


@pytest.mark.parametrize(("net", "shape"), [(Tokens, (5, 4)), (Signal, (3, 40))])
def test_channels_of_sequences_and_signals(net: type[nn.Module], shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(32, *shape)
    program, _, told = made(net(), x)
    (name,) = told.branches
    with torch.no_grad():
        assert error(told.without(name)(x[:16]), program.module(x[:16])) < 1e-2
