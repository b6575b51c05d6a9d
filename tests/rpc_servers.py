"""TVM's own RPC servers and tracker on loopback, each in a process group of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hwprune.remote import tracker
from hwprune.remote.address import Address, Boards, Patience

PATIENCE = Patience(connect_s=20, kernel_s=2, transfer_s=20, return_s=5)
START_S = 120.0


@dataclass(frozen=True)
class Process:
    """A running server or tracker."""

    popen: subprocess.Popen[bytes]
    address: Address

    def signal(self, number: int) -> None:
        """To the whole group: TVM's server has children of its own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, number)


@contextmanager
def start(
    folder: Path, what: str, *options: str, packages: Path | None = None, threads: int = 2
) -> Iterator[Process]:
    """`rpc_server` or `rpc_tracker`, once it listens; its group is ended with the block."""
    folder.mkdir(exist_ok=True)
    log = folder / f"{what}-{len(list(folder.iterdir()))}.log"
    environment = os.environ | {"TVM_USE_RUNTIME_LIB": "1", "TVM_NUM_THREADS": str(threads)}
    if packages is not None:
        environment["PYTHONPATH"] = str(packages)
    first = 20000 + os.getpid() % 20000
    with log.open("wb") as file:
        popen = subprocess.Popen(
            [
                sys.executable, "-m", f"tvm.exec.{what}", "--host", "127.0.0.1",
                "--port", str(first), "--port-end", str(first + 500), *options,
            ],
            stdout=file, stderr=file, start_new_session=True, env=environment, cwd=folder,
        )  # fmt: skip
    try:
        yield Process(popen, _listening(popen, log))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()


@contextmanager
def fleet(folder: Path, count: int, key: str = "box") -> Iterator[tuple[Boards, list[Process]]]:
    """A tracker that knows `count` servers of a key."""
    with contextlib.ExitStack() as stack:
        leader = stack.enter_context(start(folder, "rpc_tracker"))
        options = ("--tracker", str(leader.address), "--key", key)
        servers = [stack.enter_context(start(folder, "rpc_server", *options)) for _ in range(count)]
        boards = Boards(None, leader.address, key, count, PATIENCE)
        deadline = time.monotonic() + START_S
        while tracker.keys(boards)[key] < count:
            assert time.monotonic() < deadline, "the servers did not register"
            time.sleep(0.1)
        yield boards, servers


def _listening(popen: subprocess.Popen[bytes], log: Path) -> Address:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and popen.poll() is None:
        found = re.search(r"bind to 127\.0\.0\.1:(\d+)", log.read_text())
        if found:
            return Address("127.0.0.1", int(found.group(1)))
        time.sleep(0.05)
    raise AssertionError(f"did not start: {log.read_text()}")
