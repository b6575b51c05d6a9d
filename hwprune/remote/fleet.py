"""`Fleet`: boards that share work, each served by a thread that outlives the loss of its board.

In: batches of workloads. Out: what became of each, in the order in which they end. What is tried
again is not decided here but in `remote/measure.py`.
"""

from __future__ import annotations

import queue
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hwprune import interrupt
from hwprune.errors import HwpruneError
from hwprune.lower.spec import Workload
from hwprune.remote import tracker
from hwprune.remote.address import Boards
from hwprune.remote.compile import Batch, build_batch, build_driver
from hwprune.remote.facts import BoardFacts
from hwprune.remote.process import BoardLostError, BoardProcess
from hwprune.remote.session import Connected, Job, KernelFault, connect
from hwprune.target import Target

COOL_S = 30.0  # rest of a board that is hot
RETRY_S = 1.0  # between attempts to reach a lost board
USABLE = 0.8  # of a board's free memory
_compiling = threading.Lock()  # TVM's compiler, one thread at a time


@dataclass(frozen=True)
class Timed:
    """Microseconds (rounds, kernels) of a batch, and the board right after it."""

    workloads: tuple[Workload, ...]
    times: np.ndarray
    facts: BoardFacts


@dataclass(frozen=True)
class Unbuilt:
    """A batch that cannot be compiled, or does not fit the board's memory, and why."""

    workloads: tuple[Workload, ...]
    error: Exception
    needs_memory: bool = False


@dataclass(frozen=True)
class Broken:
    """A batch that was not timed: the board was lost, or `kernel` (a position) failed alone."""

    workloads: tuple[Workload, ...]
    reason: str
    kernel: int | None


@dataclass(frozen=True)
class Gone:
    """A board that did not come back, or an error that ends the run."""

    error: Exception
    fatal: bool


Outcome = Timed | Unbuilt | Broken | Gone


class Fleet:
    """Boards at work; a context manager."""

    def __init__(self, boards: Boards, target: Target, threads: int) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="hwprune-boards-")
        self.directory = Path(self._temporary.name)
        self.job = Job(boards, target, threads, build_driver(target, self.directory))
        self.fingerprint = ""  # that all boards must have, once one is known
        self._work: queue.Queue[tuple[Workload, ...] | None] = queue.Queue()
        self._outcomes: queue.Queue[Outcome] = queue.Queue()
        self._threads: list[threading.Thread] = []
        self._processes: list[BoardProcess] = []
        self._stopped = threading.Event()
        self._numbers = iter(range(1_000_000_000))

    def identify(self) -> BoardFacts:
        """The facts of one of the boards, and with them the fingerprint of all of them.

        Raises HwpruneError where none answers or that one is unfit.
        """
        boards = self.job.boards
        for left in reversed(range(tracker.check_key(boards) if boards.tracker else 1)):
            process = BoardProcess("board")
            try:
                connected = connect(self.job, process)
                connected.close()
            except BoardLostError:  # the tracker may know of boards that are no more
                if not left:
                    raise
                continue
            finally:
                process.kill()
            break
        self.fingerprint = connected.facts.fingerprint
        return connected.facts

    def start(self, devices: int) -> None:
        """Set so many boards to work."""
        self._stopped.clear()
        for _ in range(devices):
            process = BoardProcess("board")
            thread = threading.Thread(target=self._serve, args=(process,), daemon=True)
            self._processes.append(process)
            self._threads.append(thread)
            thread.start()

    def submit(self, workloads: Sequence[Workload]) -> None:
        """Have a batch measured."""
        self._work.put(tuple(workloads))

    def outcome(self) -> Outcome:
        """What became of some batch. Ctrl-C is noticed."""
        while True:
            interrupt.check()
            try:
                return self._outcomes.get(timeout=0.2)
            except queue.Empty:
                continue

    def rest(self) -> None:
        """Let all boards go; what they are still at is given up."""
        self._stopped.set()
        for process in self._processes:
            process.stop()
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()
        self._threads, self._processes = [], []
        self._work, self._outcomes = queue.Queue(), queue.Queue()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.rest()
        self._temporary.cleanup()

    def _serve(self, process: BoardProcess) -> None:
        """One board after another: connect, take a batch, measure it, let the board go."""
        try:
            while not self._stopped.is_set():
                connected = self._reach(process)
                workloads = self._work.get()
                if workloads is None:
                    connected.close()
                    return
                outcome = self._measure(connected, workloads)
                self._outcomes.put(outcome)
                if isinstance(outcome, Timed) and outcome.facts.hot:
                    self._stopped.wait(COOL_S)
        except BoardLostError as error:
            self._outcomes.put(Gone(error, fatal=False))
        except Exception as error:
            self._outcomes.put(Gone(error, fatal=True))
        finally:
            process.kill()

    def _reach(self, process: BoardProcess) -> Connected:
        """A session, waited for while a board may be starting again. Raises BoardLostError."""
        deadline = time.monotonic() + self.job.boards.patience.return_s
        while True:
            try:
                connected = connect(self.job, process, self._stopped.is_set)
            except BoardLostError:
                if self._stopped.is_set() or time.monotonic() > deadline:
                    raise
                self._stopped.wait(RETRY_S)
                continue
            if connected.facts.fingerprint != self.fingerprint:
                raise BoardLostError(
                    "is another kind of board than the first: they cannot share a table",
                    where=connected.where,
                    hint="give boards of different kinds different keys",
                )
            return connected

    def _measure(self, connected: Connected, workloads: tuple[Workload, ...]) -> Outcome:
        try:
            batch = self._build(workloads)
        except (HwpruneError, RuntimeError, ValueError, TypeError) as error:
            connected.close()
            return Unbuilt(workloads, error)
        needed, free = batch.plan.memory_bytes, connected.facts.available_bytes
        if free and needed > USABLE * free:
            connected.close()
            reason = f"needs {needed / 1e6:.0f} MB for its buffers, {free / 1e6:.0f} MB are free"
            return Unbuilt(workloads, HwpruneError(reason, where=connected.where), True)
        try:
            answer = connected.time_kernels(batch)
            if isinstance(answer, KernelFault):
                connected.close()
                return Broken(workloads, answer.reason, answer.kernel)
            connected.close()
        except BoardLostError as error:
            return Broken(workloads, str(error), error.kernel)
        finally:
            batch.library.unlink(missing_ok=True)
        return Timed(workloads, answer, connected.facts)

    def _build(self, workloads: tuple[Workload, ...]) -> Batch:
        library = self.directory / f"kernels{next(self._numbers)}.so"
        with _compiling:
            return build_batch(workloads, self.job.target, self.job.threads, library)
