"""A board, connected and found fit: the one session in which something is measured on it.

In: `Boards`, a target and its driver. Out: `Connected`, its facts and the calls on it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwprune.errors import HwpruneError, TargetError
from hwprune.measure import KERNEL_SECONDS, ROUNDS, WARM_UP
from hwprune.remote import tracker
from hwprune.remote.address import Address, Boards
from hwprune.remote.compile import Batch
from hwprune.remote.facts import BoardFacts, check_board, read_facts
from hwprune.remote.process import BoardLostError, BoardProcess
from hwprune.target import Target

SESSION_S = 1800  # TVM's server ends a session after this: a board outlives its client


@dataclass(frozen=True)
class Job:
    """What is measured for: a target, the threads, and the driver compiled for it."""

    boards: Boards
    target: Target
    threads: int
    driver: Path


@dataclass(frozen=True)
class KernelFault:
    """A kernel, by its position, that the board could not run, and why."""

    kernel: int
    reason: str


class Connected:
    """An open session with a board."""

    def __init__(self, job: Job, process: BoardProcess, facts: BoardFacts, where: str) -> None:
        self.job, self.process, self.facts, self.where = job, process, facts, where

    def time_kernels(self, batch: Batch) -> np.ndarray | KernelFault:
        """(rounds, kernels) microseconds; or the kernel that fails.

        Raises BoardLostError, TargetError where the board's TVM runs fewer threads.
        """
        count = len(batch.workloads)
        answer = self._call(
            "time_kernels", library=str(batch.library), plan=batch.plan.numbers, count=count,
            rounds=ROUNDS, warm_up=WARM_UP, seconds=KERNEL_SECONDS * count,
        )  # fmt: skip
        if "failed" in answer:
            return KernelFault(answer["failed"], answer["reason"])
        return np.asarray(answer["times"])

    def time_networks(
        self,
        networks: Sequence[tuple[Path, Sequence[np.ndarray]]],
        rounds: int,
        repeats: int,
    ) -> tuple[list[list[np.ndarray]], np.ndarray]:
        """Outputs of every network, and (rounds, networks, repeats) microseconds.

        Raises BoardLostError.
        """
        answer = self._call(
            "time_networks", networks=[(str(path), list(inputs)) for path, inputs in networks],
            rounds=rounds, repeats=repeats,
        )  # fmt: skip
        return answer["outputs"], 1e6 * np.asarray(answer["seconds"])

    def close(self) -> None:
        """End the session; the board is free for others, if it is still there."""
        with contextlib.suppress(BoardLostError):
            self.process.call("close")

    def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        patience = self.job.boards.patience
        answer: dict[str, Any] = self.process.call(
            operation, cores=self.facts.pinned, kernel_s=patience.kernel_s,
            transfer_s=patience.transfer_s, **arguments,
        )  # fmt: skip
        if "refused" in answer:
            raise TargetError(
                answer["refused"],
                where=self.where,
                hint=f"start its server with TVM_NUM_THREADS={self.job.threads} or more",
            )
        if "facts" in answer:
            self.facts = _facts(answer["facts"], self.job)
        return answer


def connect(
    job: Job, process: BoardProcess, stopped: Callable[[], bool] = lambda: False
) -> Connected:
    """A session with a board that can run the target's code.

    Raises BoardLostError where none answers, TargetError or ToolchainError where one is unfit.
    """
    boards, patience = job.boards, job.boards.patience
    if boards.server is not None:
        address, key = boards.server, boards.key
    else:
        try:
            tracker.check_key(boards)
            address, key = tracker.request(boards, patience.return_s, stopped)
        except TargetError as error:
            raise BoardLostError(error.what, where=error.where, hint=error.hint) from error
    process.name = str(address)
    try:
        found = process.call(
            "open", host=address.host, port=address.port, key=key, driver=str(job.driver),
            session_s=SESSION_S, connect_s=patience.connect_s, transfer_s=patience.transfer_s,
        )  # fmt: skip
    except BoardLostError as error:
        raise _explained(error, job, address) from error
    facts = _facts(found, job)
    check_board(facts, job.target, str(address))
    return Connected(job, process, facts, str(address))


def _facts(found: dict[str, Any], job: Job) -> BoardFacts:
    return read_facts(found["cores"], found["files"], job.target, job.threads)


def _explained(error: BoardLostError, job: Job, address: Address) -> HwpruneError:
    """Why a session did not begin; a wrong key or kind of board will not get better by waiting."""
    patience_s = job.boards.patience.connect_s
    where = str(address)
    if "cannot find server that matches key" in error.what:
        given = f"not {job.boards.key!r}" if job.boards.key else "and none was given"
        return TargetError(
            f"the server has another key, {given}", where=where, hint="pass its --key"
        )
    if "is not TVM RPC server" in error.what or "ersion mismatch" in error.what:
        return TargetError(
            "is no RPC server of our TVM", where=where, hint="see docs/boards.md for the board's"
        )
    if error.step == "connect":
        return BoardLostError(
            tracker.explain_silence(address, patience_s), where=where, step=error.step
        )
    if error.step == "load the driver" and any(
        word in error.what for word in ("ELF", "cannot open shared object", "GLIBC", "dlopen")
    ):
        return TargetError(
            f"the board cannot load code for {job.target.name!r}: {error.what}",
            where=where,
            hint="choose the board's target; its system needs glibc 2.34 or later",
        )
    return error
