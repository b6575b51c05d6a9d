"""Time several systems fairly: a process of its own for each, rounds interleaved, others stopped.

The thread pools of inference runtimes spin while they wait and disturb each other, and a shared
machine drifts. So every system is loaded by its own process, only one process is awake at any
moment (the others are held by SIGSTOP, spinning threads included), and every round visits every
system. In: `System`s. Out: a `Timing` each, or the reason why there is none.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.child import (
    SPAWN,
    cores_for,
    describe,
    end,
    isolate,
    last_words,
    resolve,
    thread_environment,
)

Runner = Callable[[], object]


@dataclass(frozen=True)
class System:
    """One contestant: `load` ("module:function") is called with `arguments` in its own process.

    It returns a function of no arguments that runs one inference.
    """

    name: str
    load: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Timing:
    """Microseconds per inference by round; or, where `reason` is given, why there are none."""

    name: str
    rounds_us: tuple[tuple[float, ...], ...] = ()
    reason: str | None = None

    @property
    def samples_us(self) -> list[float]:
        return [sample for one in self.rounds_us for sample in one]


def time_interleaved(
    systems: Sequence[System],
    *,
    threads: int,
    rounds: int,
    slice_s: float = 0.2,
    load_timeout_s: float = 900.0,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Timing]:
    """Time systems against each other.

    Args:
        threads: cores that every worker is pinned to; thread pools are limited by environment.
        rounds: visits to every system; the order rotates.
        slice_s: seconds of inference in one visit, after warming up again.
        load_timeout_s: seconds that a system may take to load and to answer.
    """
    results: dict[str, Timing] = {}
    with contextlib.ExitStack() as stack:
        workers: list[Worker] = []
        for system in systems:
            progress(f"load {system.name}")
            worker = stack.enter_context(Worker(system, threads, load_timeout_s))
            if worker.reason is None:
                workers.append(worker)
            else:
                results[system.name] = Timing(system.name, reason=worker.reason)
        for i in range(rounds):
            progress(f"round {i + 1}/{rounds}")
            start = i % max(1, len(workers))
            for worker in (*workers[start:], *workers[:start]):
                worker.round(slice_s)
        for worker in workers:
            results[worker.system.name] = worker.timing()
    return {system.name: results[system.name] for system in systems}


class Worker:
    """A process that has loaded one system; stopped whenever it is not being timed."""

    def __init__(self, system: System, threads: int, timeout_s: float) -> None:
        self.system = system
        self.reason: str | None = None
        self._timeout_s = timeout_s
        self._rounds_us: list[tuple[float, ...]] = []
        self._log = tempfile.NamedTemporaryFile(prefix="benchmark-", suffix=".log")  # noqa: SIM115
        self._connection, theirs = SPAWN.Pipe()
        cores = cores_for(threads)
        arguments = (theirs, system.load, dict(system.arguments), cores, self._log.name)
        self._process = SPAWN.Process(target=_serve, args=arguments, daemon=True)
        with thread_environment(threads):
            self._process.start()
        theirs.close()
        self._receive()
        self._signal(signal.SIGSTOP)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._signal(signal.SIGCONT)
        self._connection.close()
        end(self._process)
        self._log.close()

    def round(self, slice_s: float) -> None:
        """Wake the process, let it time inferences for `slice_s`, stop it again."""
        if self.reason is not None:
            return
        self._signal(signal.SIGCONT)
        try:
            self._connection.send(slice_s)
        except OSError as error:
            self.reason = f"died: {error}"
            return
        samples = self._receive()
        self._signal(signal.SIGSTOP)
        if samples is not None:
            self._rounds_us.append(tuple(samples))

    def timing(self) -> Timing:
        """What was measured; nothing if the system failed on the way."""
        rounds = () if self.reason else tuple(self._rounds_us)
        return Timing(self.system.name, rounds, self.reason)

    def _receive(self) -> Any:
        """The worker's answer; None after a failure, whose reason is kept."""
        try:
            if not self._connection.poll(self._timeout_s):
                self.reason = f"no answer within {self._timeout_s:.0f} s"
                self._process.kill()
                return None
            kind, value = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            self.reason = f"exit status {self._process.exitcode}{last_words(Path(self._log.name))}"
            return None
        if kind == "error":
            self.reason = value
            return None
        return value

    def _signal(self, number: int) -> None:
        if self._process.is_alive() and self._process.pid is not None:
            os.kill(self._process.pid, number)


def _serve(
    connection: Connection, load: str, arguments: dict[str, Any], cores: list[int], log: str
) -> None:
    """Load the system, say so, then answer every request for a slice of timed inferences."""
    isolate(cores, log)
    try:
        run = resolve(load)(**arguments)
        _warm_up(run, 3)
        gc.collect()
        gc.freeze()
        gc.disable()
        connection.send(("ready", None))
        while True:
            slice_s = connection.recv()
            connection.send(("samples", _time_slice(run, slice_s)))
    except EOFError:
        return
    except BaseException as error:
        connection.send(("error", describe(error)))


def _warm_up(run: Runner, times: int) -> None:
    for _ in range(times):
        run()


def _time_slice(run: Runner, slice_s: float) -> list[float]:
    """Microseconds of single inferences until `slice_s` has passed; at least three."""
    _warm_up(run, 2)
    samples: list[float] = []
    end = time.perf_counter() + slice_s
    while len(samples) < 3 or time.perf_counter() < end:
        start = time.perf_counter_ns()
        run()
        samples.append((time.perf_counter_ns() - start) / 1000)
    return samples
