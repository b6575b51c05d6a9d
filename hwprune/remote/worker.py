"""The process that talks to one board: it may hang or die with the board, and is killed then.

Started by `process.py` with the descriptor of a connection. In: `(operation, arguments)`. Out, any
number of `("step", what, seconds)`, each saying what comes next and how long it may take, then
`("done", result)` or `("error", text)`. Needs only NumPy and TVM's runtime.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

REPLY_BYTES = 4 << 20
CPUS = "/sys/devices/system/cpu/cpu"
FIXED_FILES = (
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/self/maps",
    "/proc/device-tree/model",
    *(f"{CPUS}0/cache/index{i}/{name}" for i in range(5) for name in ("level", "size", "type")),
)
STATE_FILES = (
    "/proc/meminfo",
    *(f"/sys/class/thermal/thermal_zone{i}/temp" for i in range(8)),
    "/sys/devices/platform/soc/soc:firmware/get_throttled",  # Raspberry Pi
)
DRIVER = "hwprune_driver.so"


class Session:
    """One RPC session with a board, its driver loaded."""

    def __init__(self, tell: Callable[..., None], connect: Mapping[str, Any]) -> None:
        from tvm import rpc

        tell("connect", connect["connect_s"])
        self.remote = rpc.connect(
            connect["host"], connect["port"], connect["key"], connect["session_s"]
        )
        self.tell, self.loaded, self.kernels = tell, 0, None
        self.device = self.remote.cpu(0)
        tell("load the driver", connect["transfer_s"])
        self.driver = self.load(connect["driver"], DRIVER)
        self.driver["hwprune_follow"]()
        tell("read the board", connect["transfer_s"])
        mask = int(self.driver["hwprune_cores"]())
        self.cores = [i for i in range(63) if mask >> i & 1]
        self.texts = self.read(FIXED_FILES)
        version = _version_file(self.texts.get("/proc/self/maps", ""))
        self.texts |= self.read([version]) if version else {}
        self.texts.pop("/proc/self/maps", None)

    def load(self, path: str, name: str) -> Any:
        """Upload a library and load it."""
        self.remote.upload(path, target=name)
        return self.remote.load_module(name)

    def read(self, paths: Any) -> dict[str, str]:
        """Files of the board that can be read, as text."""
        names = list(paths)
        out = self._tensor(np.zeros(REPLY_BYTES, np.uint8))
        used = int(self.driver["hwprune_read"](self._bytes("\n".join(names)), out))
        reply, found = out.numpy()[:used].tobytes(), {}
        for name in names:
            if len(reply) < 4:
                break
            length = int.from_bytes(reply[:4], "little", signed=True)
            if length >= 0:
                found[name] = reply[4 : 4 + length].decode("utf-8", "replace")
            reply = reply[4 + max(length, 0) :]
        return found

    def state(self) -> dict[str, str]:
        """What changes: memory, temperatures, and the clock of every core."""
        names = ("scaling_cur_freq", "cpuinfo_max_freq", "scaling_governor")
        clocks = [f"{CPUS}{i}/cpufreq/{name}" for i in self.cores for name in names]
        return self.read((*STATE_FILES, *clocks))

    def facts(self) -> dict[str, Any]:
        """Everything that is read of the board."""
        return {"cores": self.cores, "files": self.texts | self.state()}

    def pin(self, cores: Any) -> str:
        """Keep as many of the board's threads on these cores; why not, or nothing."""
        self.driver["hwprune_pin"](sum(1 << core for core in cores))
        self.remote.get_function("runtime.config_threadpool")(1, len(cores))
        threads = int(self.remote.get_function("runtime.NumThreads")())
        if threads == len(cores):
            return ""
        return f"TVM on the board runs {threads} of {len(cores)} threads"

    def open_kernels(self, job: Mapping[str, Any]) -> None:
        """Upload kernels and lay out what they read and write, as the plan says."""
        self.tell("upload kernels", job["transfer_s"])
        self.loaded += 1  # a library that is loaded must not be written over
        name = f"hwprune_kernels{self.loaded}.so"
        # Kept: TVM unloads a library that nobody holds, and with it what the kernels call of TVM.
        self.kernels = self.load(job["library"], name)
        self.tell("lay out memory", job["transfer_s"])
        path = self.remote.get_function("tvm.rpc.server.workpath")(name)
        plan = self._tensor(np.asarray(job["plan"], np.int64))
        self.driver["hwprune_open"](self._bytes(path), plan)

    def one(self, kernel: int, seconds: float) -> float:
        """Launch one kernel by itself; microseconds."""
        self.tell(("kernel", kernel), seconds + 5)
        return float(self.driver["hwprune_run"](kernel, max(1, int(seconds)))) / 1000

    def round(self, number: int, count: int, seconds: float, limit: float) -> np.ndarray:
        """Launch every kernel in turn; microseconds of each."""
        self.tell("a round of kernels", limit)
        out = self._tensor(np.zeros(count))
        self.driver["hwprune_round"](number, max(1, int(seconds)), out)
        return np.asarray(out.numpy())

    def alive(self) -> bool:
        """Whether the board still answers."""
        try:
            self.driver["hwprune_cores"]()
        except Exception:
            return False
        return True

    def _tensor(self, array: np.ndarray) -> Any:
        from tvm.runtime import tensor

        return tensor(array, self.device)

    def _bytes(self, text: str) -> Any:
        return self._tensor(np.frombuffer(text.encode(), np.uint8).copy())


class Worker:
    """Operations by name, on one session after another."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.session: Session | None = None

    def tell(self, what: Any, seconds: float) -> None:
        """Say what comes next and how long it may take."""
        self.connection.send(("step", what, seconds))

    def open(self, **connect: Any) -> dict[str, Any]:
        """Connect to a board; what was read of it."""
        self.session = Session(self.tell, connect)
        return self.session.facts()

    def close(self) -> None:
        """End the session: the board is free."""
        self.session = None
        gc.collect()

    def time_kernels(self, **job: Any) -> dict[str, Any]:
        """Time kernels in turn: `times` (rounds, kernels) in us; or `failed` and its `reason`."""
        session = self._session()
        if refusal := session.pin(job["cores"]):
            return {"refused": refusal}
        session.open_kernels(job)
        count, seconds = job["count"], job["kernel_s"]
        alone_us = []
        for kernel in range(count):
            try:
                alone_us.append(session.one(kernel, seconds))
            except Exception as error:
                self.tell(("kernel", kernel), 5)
                if session.alive():
                    return {"failed": kernel, "reason": _line(error)}
                raise
        least, most = job["rounds"]
        limit = 5 + seconds + 5e-6 * sum(alone_us)
        times: list[np.ndarray] = []
        for number in range(job["warm_up"] + most):
            enough = sum(row.sum() for row in times) > 1e6 * job["seconds"]
            if len(times) >= job["warm_up"] + least and enough:
                break
            times.append(session.round(number, count, seconds, limit))
        self.tell("read the board", job["transfer_s"])
        return {"times": np.array(times[job["warm_up"] :]), "facts": session.facts()}

    def time_networks(self, **job: Any) -> dict[str, Any]:
        """Outputs of networks, and seconds of their inferences, timed in turn: [round][network]."""
        session = self._session()
        if refusal := session.pin(job["cores"]):
            return {"refused": refusal}
        runners, outputs = [], []
        for number, (library, inputs) in enumerate(job["networks"]):
            self.tell("upload a network", job["transfer_s"])
            machine = _Network(session, library, f"hwprune_network{number}.so", inputs)
            outputs.append(machine.run(job["kernel_s"]))
            runners.append(machine)
        rounds = []
        for _ in range(job["rounds"]):
            rounds.append([n.time(job["repeats"], job["kernel_s"]) for n in runners])
        self.tell("read the board", job["transfer_s"])
        return {"outputs": outputs, "seconds": rounds, "facts": session.facts()}

    def _session(self) -> Session:
        if self.session is None:
            raise RuntimeError("no session is open")
        return self.session


class _Network:
    """A compiled network on the board, its inputs set."""

    def __init__(self, session: Session, library: str, name: str, inputs: Any) -> None:
        from tvm.runtime.vm import VirtualMachine

        self.session, self.library = session, session.load(library, name)
        self.machine = VirtualMachine(self.library, session.device)
        self.machine.set_input("main", *(session._tensor(array) for array in inputs))

    def run(self, seconds: float) -> list[np.ndarray]:
        """Outputs of one inference."""
        with _Guard(self.session, seconds):
            self.machine.invoke_stateful("main")
        result = self.machine.get_outputs("main")
        many = result if isinstance(result, (list, tuple)) else [result]
        return [np.asarray(tensor.numpy()) for tensor in many]

    def time(self, repeats: int, seconds: float) -> list[float]:
        """Seconds of inferences by the board's clock, after one that is not timed."""
        with _Guard(self.session, seconds * (repeats + 1)):
            evaluate = self.machine.time_evaluator(
                "invoke_stateful", self.session.device, number=1, repeat=repeats
            )
            return [float(t) for t in evaluate("main").results]


class _Guard:
    """The board ends the session itself if the block takes longer."""

    def __init__(self, session: Session, seconds: float) -> None:
        self.session, self.seconds = session, seconds

    def __enter__(self) -> None:
        self.session.tell("inference", self.seconds + 5)
        self.session.driver["hwprune_guard"](max(1, int(self.seconds)))

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.session.driver["hwprune_guard"](0)


def _version_file(maps: str) -> str:
    """The file that says TVM's version, found by the library that the server has loaded."""
    found = re.search(r"(/\S*/tvm)/lib/libtvm_runtime\S*\.so", maps)
    return f"{found.group(1)}/_version.py" if found else ""


def _line(error: BaseException) -> str:
    """What an error says, without the stack that TVM puts around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("File ", "Stack trace", "at ", "["))]
    return f"{type(error).__name__}: {(said or lines or [''])[-1]}"[:300]


def main() -> None:
    """Serve one connection until its other end is closed."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: never left alone
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TVM_USE_RUNTIME_LIB"] = "1"  # a third of the time to load
    sys.modules["torch"] = None  # type: ignore[assignment]
    import tvm.rpc

    connection = Connection(int(sys.argv[1]))
    worker = Worker(connection)
    connection.send(("done", str(Path(tvm.__file__).parent)))
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            os._exit(0)
        try:
            answer = ("done", getattr(worker, name)(**arguments))
        except Exception as error:
            answer = ("error", _line(error))
        if answer[0] == "error":
            worker.close()  # orderly, before this process is ended: else TVM's server is mute
        connection.send(answer)


if __name__ == "__main__":
    main()
