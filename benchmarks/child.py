"""Run a function in a process of its own: pinned, with a time-out, its peak memory recorded.

In: a reference "module:function" and its arguments. Out: an `Outcome` with everything the function
gave before it ended, failed or ran out of time.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import inspect
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SPAWN = multiprocessing.get_context("spawn")
_PDEATHSIG = 1  # prctl: signal this process when its parent dies, even while it is stopped
_GOODBYE_S = 5.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TVM_NUM_THREADS")


@dataclass(frozen=True)
class Outcome:
    """What a function returned, or yielded until it ended; `reason` if it did not end well."""

    values: tuple[Any, ...]
    reason: str | None
    timed_out: bool
    peak_rss_mib: float | None

    @property
    def value(self) -> Any:
        """The last value."""
        return self.values[-1]


def call(
    reference: str,
    arguments: Mapping[str, Any],
    *,
    threads: int,
    timeout_s: float,
    setup_s: float | None = None,
    context: Any = SPAWN,
) -> Outcome:
    """Call "module:function" in a child process, which `context` starts.

    If it is a generator function, every value that it yields reaches us at once, so those before
    a failure or a time-out are kept. Where `setup_s` is given, `timeout_s` runs from the first
    value on, which must come within `setup_s`.
    """
    ours, theirs = context.Pipe()
    with tempfile.NamedTemporaryFile(prefix="benchmark-", suffix=".log") as log:
        given = (theirs, reference, dict(arguments), cores_for(threads), log.name)
        process = context.Process(target=_run, args=given)
        with thread_environment(threads):
            process.start()
        theirs.close()
        try:
            return _collect(ours, process, timeout_s, setup_s, Path(log.name))
        finally:
            ours.close()
            end(process)


def preloaded(*modules: str) -> Any:
    """A context whose children are forked from a process that has imported `modules`.

    Call before the first child: the process is started once, single-threaded.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    return context


def end(process: Any) -> None:
    """Let a process that has nothing left to do end by itself; kill it if it does not."""
    process.join(_GOODBYE_S)
    process.kill()
    process.join()


def _collect(
    connection: Connection, process: Any, timeout_s: float, setup_s: float | None, log: Path
) -> Outcome:
    values: list[Any] = []
    limit_s = timeout_s if setup_s is None else setup_s
    end = time.perf_counter() + limit_s
    while True:
        if not connection.poll(max(0.0, end - time.perf_counter())):
            reason, peak = f"not finished in {limit_s:g} s", _peak_rss_mib(process.pid)
            process.kill()
            return Outcome(tuple(values), reason, True, peak)
        try:
            kind, value = connection.recv()
        except EOFError:
            process.join()
            reason = f"exit status {process.exitcode}{last_words(log)}"
            return Outcome(tuple(values), reason, False, None)
        if kind == "value":
            if setup_s is not None and not values:
                limit_s, end = timeout_s, time.perf_counter() + timeout_s
            values.append(value)
            continue
        error, peak = value
        return Outcome(tuple(values), error, False, peak)


def _run(
    connection: Connection, reference: str, arguments: dict[str, Any], cores: list[int], log: str
) -> None:
    isolate(cores, log)
    error = None
    try:
        result = resolve(reference)(**arguments)
        for value in result if inspect.isgenerator(result) else (result,):
            connection.send(("value", value))
    except Exception as raised:
        traceback.print_exc()
        error = describe(raised)
    connection.send(("end", (error, _own_peak_rss_mib())))


def _own_peak_rss_mib() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def _peak_rss_mib(pid: int) -> float | None:
    """Peak memory of a running process."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return round(int(line.split()[1]) / 1024, 1)
    return None


def last_words(log: Path) -> str:
    """The last line that a process wrote, as the end of a sentence."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return f": {lines[-1]}" if lines else ""


@contextlib.contextmanager
def thread_environment(threads: int) -> Iterator[None]:
    """Limit the thread pools of processes that are started meanwhile."""
    with _environment({name: str(threads) for name in _THREAD_VARIABLES}):
        yield


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def cores_for(threads: int) -> list[int]:
    """The cores to pin `threads` threads to: the last ones, as the first serves interrupts."""
    return sorted(os.sched_getaffinity(0))[-threads:]


def isolate(cores: Sequence[int] | None, log: str) -> None:
    """Set up a child process: die with the parent, pin to cores, keep output out of the way."""
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
    if cores is not None:
        os.sched_setaffinity(0, cores)
    target = os.open(log, os.O_WRONLY | os.O_APPEND)
    sys.stdout.flush()
    for descriptor in (1, 2):
        os.dup2(target, descriptor)


def resolve(reference: str) -> Callable[..., Any]:
    """The function that "module:function" names."""
    module, _, name = reference.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def describe(error: BaseException) -> str:
    """One line for an exception, with where it was raised if it has no text of its own."""
    text = " ".join(str(error).split())
    if not text:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = f"in {frame.name}"
    return f"{type(error).__name__}: {text}"[:300]
