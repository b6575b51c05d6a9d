"""The client's side of TVM's tracker, with time-outs: which keys it has, and a board of a key.

TVM's own client waits for ever for a key that nobody has, and a minute for a tracker that is not
there; the messages are TVM's.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from hwprune.errors import TargetError
from hwprune.remote.address import Address, Boards
from hwprune.tvm_runtime import load_tvm

SLICE_S = 0.2


def keys(boards: Boards) -> Counter[str]:
    """How many servers of every key the tracker knows. Raises TargetError."""
    with _connect(boards) as sock:
        answer = _ask(boards, sock, "SUMMARY")
    try:
        servers = answer[1]["server_info"]
        return Counter(str(server["key"]).removeprefix("server:") for server in servers)
    except (TypeError, KeyError, IndexError) as error:
        raise _not_a_tracker(boards) from error


def check_key(boards: Boards) -> int:
    """How many boards of the key there are. Raises TargetError listing the keys if none."""
    found = keys(boards)
    if not found[boards.key]:
        others = ", ".join(f"{key} ({count})" for key, count in sorted(found.items())) or "none"
        raise TargetError(
            f"the tracker has no board of key {boards.key!r}",
            where=str(boards.tracker),
            hint=f"its keys: {others}",
        )
    return found[boards.key]


def request(
    boards: Boards, wait_s: float, stopped: Callable[[], bool] = lambda: False
) -> tuple[Address, str]:
    """(address, key for this one session) of a free board. Raises TargetError if none gets free."""
    deadline = time.monotonic() + wait_s
    with _connect(boards) as sock:
        base = load_tvm().rpc.base
        _send(boards, sock, [base.TrackerCode.REQUEST, boards.key, "", 1])
        while not select.select([sock], [], [], SLICE_S)[0]:
            if stopped() or time.monotonic() > deadline:
                raise TargetError(
                    f"no board of key {boards.key!r} got free in {wait_s:.0f} s",
                    where=str(boards.tracker),
                )
        answer = _receive(boards, sock)
    try:
        host, port, key = answer[1]
        return Address(str(host), int(port)), str(key)
    except (TypeError, ValueError, IndexError) as error:
        raise _not_a_tracker(boards) from error


def explain_silence(where: Address, patience_s: float) -> str:
    """Why nothing comes from an address, as far as connecting to it tells."""
    try:
        socket.create_connection((where.host, where.port), timeout=patience_s).close()
    except TimeoutError:
        return "does not answer: is it on, and is the port open?"
    except OSError as error:
        return f"cannot be reached: {error.strerror or error}"
    return (
        "takes connections but says nothing: it is busy with another client, hangs after a crash "
        "(restart it), or is no RPC server"
    )


def _connect(boards: Boards) -> socket.socket:
    where, patience_s = boards.tracker, boards.patience.connect_s
    assert where is not None
    try:
        sock = socket.create_connection((where.host, where.port), timeout=patience_s)
    except OSError as error:
        reason = "does not answer" if isinstance(error, TimeoutError) else error.strerror or error
        raise TargetError(
            f"the tracker cannot be reached: {reason}",
            where=str(where),
            hint="start one with python -m tvm.exec.rpc_tracker",
        ) from error
    base = load_tvm().rpc.base
    try:
        sock.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
        if struct.unpack("<i", base.recvall(sock, 4))[0] != base.RPC_TRACKER_MAGIC:
            raise OSError("another greeting")
    except OSError as error:
        sock.close()
        raise _not_a_tracker(boards) from error
    return sock


def _ask(boards: Boards, sock: socket.socket, code: str) -> Any:
    _send(boards, sock, [getattr(load_tvm().rpc.base.TrackerCode, code)])
    return _receive(boards, sock)


def _send(boards: Boards, sock: socket.socket, message: list[Any]) -> None:
    try:
        load_tvm().rpc.base.sendjson(sock, message)
    except OSError as error:
        raise _not_a_tracker(boards) from error


def _receive(boards: Boards, sock: socket.socket) -> Any:
    try:
        return load_tvm().rpc.base.recvjson(sock)
    except (OSError, ValueError) as error:
        raise _not_a_tracker(boards) from error


def _not_a_tracker(boards: Boards) -> TargetError:
    return TargetError("does not answer as a TVM tracker does", where=str(boards.tracker))
