"""What the tests of the command line share: networks, how a command ended, what a refusal is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
NET = ("tests.small_net:small_net", "--input", "1,3,32,32")
LINEAR = ("tests.command_line:linear", "--input", "2,12")

WIDE = ("tests.command_line:wide", "--input", "2,64")


def linear() -> torch.nn.Module:
    """The smallest network that can be compiled."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.ReLU(), torch.nn.Linear(16, 7))


def wide() -> torch.nn.Module:
    """A network whose files are larger than a disk's probe."""
    return torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Linear(512, 64))


def broken() -> torch.nn.Module:
    """A network whose code fails."""
    raise ZeroDivisionError("no such weights")


@dataclass
class Done:
    status: int
    out: str
    err: str


def refused(done: Done, *parts: str) -> None:
    """One message with these parts, and exit status 2."""
    assert done.status == 2, done.err
    messages = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert len(messages) == 1, done.err
    assert done.err.rstrip().endswith(messages[0])  # the last thing that is said
    for part in parts:
        assert part in messages[0]


def nothing_in(directory: Path) -> None:
    assert list(directory.iterdir()) == []
