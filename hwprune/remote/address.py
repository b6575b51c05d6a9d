"""Where boards are: one at HOST:PORT, or several of one key at a tracker; and how long to wait.

Out: `Boards`, checked, before anything is connected.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hwprune.errors import HwpruneError


@dataclass(frozen=True)
class Patience:
    """Seconds after which a board is given up: each for one thing that it is asked to do."""

    connect_s: float = 20.0
    kernel_s: float = 10.0  # one launch of one kernel, or one inference
    transfer_s: float = 120.0  # one file
    return_s: float = 120.0  # until a board that was lost is back: a Raspberry Pi boots in 40


@dataclass(frozen=True)
class Address:
    """A host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Boards:
    """Boards to measure on: `server` is an RPC server, or `tracker` knows some by their `key`.

    `key` is also what a server must have been started with where it was started with one.
    """

    server: Address | None = None
    tracker: Address | None = None
    key: str = ""
    devices: int = 1  # at most so many at a time
    patience: Patience = field(default_factory=Patience)

    def __str__(self) -> str:
        if self.server is not None:
            return f"RPC server {self.server}"
        return f"tracker {self.tracker}, key {self.key!r}"


def read_boards(
    rpc: str | None,
    tracker: str | None = None,
    key: str | None = None,
    devices: int | None = None,
    timeout_s: float | None = None,
) -> Boards | None:
    """Boards as they are written; None where neither a server nor a tracker is.

    `timeout_s` is that of one launch of one kernel. Raises HwpruneError naming the option.
    """
    if rpc is None and tracker is None:
        for name, value in (("--key", key), ("--devices", devices), ("--timeout", timeout_s)):
            if value is not None:
                raise HwpruneError("needs --rpc or --tracker", where=name)
        return None
    if rpc is not None and tracker is not None:
        raise HwpruneError("exclude each other", where="--rpc and --tracker", hint="pass one")
    if rpc is not None and devices is not None:
        raise HwpruneError("needs --tracker: one server is one board", where="--devices")
    if tracker is not None and not key:
        raise HwpruneError("is missing", where="--key", hint="boards at a tracker have a key")
    if devices is not None and devices < 1:
        raise HwpruneError(f"{devices} boards", where="--devices", hint="at least 1")
    if timeout_s is not None and not 1 <= timeout_s < 3600:
        raise HwpruneError(f"{timeout_s:g} s", where="--timeout", hint="1 to 3600 seconds")
    patience = Patience() if timeout_s is None else Patience(kernel_s=timeout_s)
    if rpc is not None:
        return Boards(read_address(rpc, "--rpc"), key=key or "", patience=patience)
    found = read_address(tracker or "", "--tracker")
    return Boards(None, found, key or "", devices or 1, patience)


def read_address(text: str, where: str) -> Address:
    """HOST:PORT, with the host of an IPv6 address in brackets. Raises HwpruneError."""
    host, colon, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise HwpruneError(f"{text!r} is not HOST:PORT", where=where, hint="as 192.168.1.20:9090")
    return Address(host, int(port))
