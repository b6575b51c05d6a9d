"""`BoardProcess`: calls on a board that end in time, whatever the board does.

Every call runs in a process of its own (`worker.py`), which says before each step how long that may
take; one that is late is killed. Raises `BoardLostError` where the board or its process is gone.
"""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
import threading
import time
from multiprocessing import Pipe
from typing import Any

from hwprune import interrupt
from hwprune.errors import HwpruneError

START_S = 120.0  # to import TVM on a loaded machine
SLICE_S = 0.2
GRACE_S = 3.0  # a client that goes while a session begins takes TVM's server with it
Step = str | tuple[str, int]


class BoardLostError(HwpruneError):
    """A board does not answer, or its session ended, at a step of the work.

    `kernel` is the position of the kernel that it was running alone; None at other steps.
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "", step: Step = "") -> None:
        super().__init__(what, where=where, hint=hint)
        self.step = step
        self.kernel = step[1] if isinstance(step, tuple) else None


class BoardProcess:
    """A process that talks to boards, one at a time; started when it is needed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Any = None
        self._stop_by = math.inf

    def call(self, operation: str, **arguments: Any) -> Any:
        """The result of an operation of `worker.Worker`. Raises BoardLostError."""
        if self._process is None:
            self._start()
        try:
            self._connection.send((operation, arguments))
        except OSError:
            self.kill()
            raise BoardLostError("its process ended", where=self.name, step=operation) from None
        return self._answer(operation, START_S)

    def stop(self) -> None:
        """From another thread: what goes on is given up in `GRACE_S` seconds."""
        self._stop_by = time.monotonic() + GRACE_S

    def kill(self) -> None:
        """End the process, at once."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.kill()
            self._process.wait()
            self._connection.close()
            self._process = None

    def _start(self) -> None:
        ours, theirs = Pipe()
        command = [sys.executable, "-m", "hwprune.remote.worker", str(theirs.fileno())]
        self._process = subprocess.Popen(
            command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        theirs.close()
        self._connection = ours
        self._answer("start", START_S)

    def _answer(self, step: Step, seconds: float) -> Any:
        """The last message of a call; each step before it has its own time."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if not self._connection.poll(SLICE_S):
                    if time.monotonic() > min(deadline, self._stop_by):
                        raise self._late(step, seconds)
                    if threading.current_thread() is threading.main_thread():
                        interrupt.check()
                    continue
                kind, *rest = self._connection.recv()
            except (EOFError, OSError):
                self.kill()
                raise BoardLostError("its process ended", where=self.name, step=step) from None
            if kind == "step":
                step, seconds = rest
                deadline = time.monotonic() + seconds
            elif kind == "done":
                return rest[0]
            else:
                raise BoardLostError(rest[0], where=self.name, step=step)

    def _late(self, step: Step, seconds: float) -> BoardLostError:
        self.kill()
        what = step if isinstance(step, str) else f"run a {step[0]}"
        return BoardLostError(
            f"took more than {seconds:.0f} s to {what}", where=self.name, step=step
        )
