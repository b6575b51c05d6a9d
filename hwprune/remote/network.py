"""Whole networks on a board: uploaded, checked against PyTorch there, and timed in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from hwprune.build import Build, compare, run_torch
from hwprune.capture import Program, specialize
from hwprune.deploy import LIBRARY
from hwprune.errors import TargetError
from hwprune.remote.measure import TRIES, BoardTable
from hwprune.remote.process import BoardLostError, BoardProcess
from hwprune.remote.session import connect


class Compiled(Protocol):
    """A compiled network and the program that it was made from."""

    @property
    def build(self) -> Build:
        """What `hwprune.build.build` made of it."""

    @property
    def program(self) -> Program:
        """The program."""


def time_networks(
    boards: BoardTable, networks: Sequence[Compiled], rounds: int, repeats: int
) -> np.ndarray:
    """(rounds, networks, repeats) microseconds of single inferences, by a board's clock.

    Raises LoweringError where outputs differ from PyTorch's by more than `TOLERANCE`, TargetError
    where the board is lost again and again.
    """
    static = [specialize(network.program) for network in networks]
    given = [
        (network.build.artifact.directory / LIBRARY, [t.detach().numpy() for t in program.inputs])
        for network, program in zip(networks, static, strict=True)
    ]
    process = BoardProcess("board")
    for left in reversed(range(TRIES)):
        try:
            connected = connect(boards.fleet.job, process)
            outputs, times = connected.time_networks(given, rounds, repeats)
            connected.close()
            break
        except BoardLostError as error:
            if not left:
                raise TargetError(
                    f"the board was lost while a network ran: {error.what}",
                    where=error.where,
                    hint="what was measured is kept; run it again to go on",
                ) from error
        finally:
            process.kill()
    boards.warn(connected.facts.warnings(worked=True))
    for program, found in zip(static, outputs, strict=True):
        compare(found, program, run_torch(program))
    return times
