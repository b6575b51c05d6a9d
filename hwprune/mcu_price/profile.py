"""`hwprune profile` for microcontrollers: the kernels of the int8 network on the emulated board."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hwprune.emulator.boards import board_of
from hwprune.errors import HwpruneError
from hwprune.forms import Forms
from hwprune.given import Model, as_program
from hwprune.mcu_price.network import emulated_target
from hwprune.mcu_price.prepared import fill_table, open_table, prepare_mcu
from hwprune.progress import Clock
from hwprune.remote.address import Boards
from hwprune.result import ProfileResult


def profile_emulated(
    model: Model,
    inputs: Sequence[Tensor] | None,
    target: str,
    forms: Forms,
    clock: Clock,
    name: str = "",
) -> ProfileResult:
    """Fill the target's table for this model's int8 kernels; resumes where it was stopped.

    Raises ToolchainError for a missing compiler or emulator, LoweringError for operators without
    an int8 kernel.
    """
    chosen = emulated_target(target)
    with clock.stage("capture"):
        program = as_program(model, inputs, name)
    with clock.stage("quantize"):
        ready = prepare_mcu(program, chosen, forms)
    with open_table(chosen) as table, clock.stage("measure kernels") as advance:
        done = fill_table(ready, table, advance)
        path = str(table.path)
        failed = table.failures(done.failed, 1)
    board = f"emulated {board_of(chosen).machine}, cycles by a model of the core"
    return ProfileResult(done.measured, done.reused, failed, done.seconds, path, board=board)


def check_single(threads: int, boards: Boards | None) -> None:
    """Raise HwpruneError for what a microcontroller has not: further cores, TVM's RPC server."""
    if threads != 1:
        raise HwpruneError("a microcontroller has one core", where="threads", hint="leave it at 1")
    if boards is not None:
        raise HwpruneError(
            "a microcontroller runs no RPC server", where="boards", hint="leave them out"
        )
