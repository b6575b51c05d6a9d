"""Kernels timed over TVM's RPC: real servers and a tracker on loopback, lost, slow and silent."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from hwprune.capture import capture
from hwprune.errors import HwpruneError, TableError, TargetError, ToolchainError
from hwprune.front_times import times_of
from hwprune.lower.spec import Step, TensorSpec, Workload
from hwprune.measure import time_together
from hwprune.provenance import provenance_of
from hwprune.remote import fleet as fleet_module
from hwprune.remote import measure as measure_module
from hwprune.remote.address import Address, Boards, Patience
from hwprune.remote.compile import Batch
from hwprune.remote.measure import measure_on, open_boards
from hwprune.remote.plan import launch_plan
from hwprune.result import export_bytes
from hwprune.table import LatencyTable
from hwprune.target import Target, load_target
from tests.command_line import ROOT, Done
from tests.rpc_servers import PATIENCE, Process, fleet, start

TARGET = load_target("x86-64-v3")
HANGS, CRASHES, RAISES = 3, 5, 7  # channels of the kernels that do


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWPRUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with start(tmp_path_factory.mktemp("server"), "rpc_server") as process:
        yield process


def board(process: Process, **patience: float) -> Boards:
    return Boards(process.address, patience=replace(PATIENCE, **patience))


def relu(channels: int) -> Workload:
    shape = TensorSpec((1, channels, 4, 4), layout="packed")
    return Workload("elementwise", (shape,), shape, epilogue=(Step("relu"),))


def convolution(channels: int, size: int = 14) -> Workload:
    shape = TensorSpec((1, channels, size, size), layout="packed")
    weight = TensorSpec((channels, channels, 1, 1))
    attrs = (("dilation", (1, 1)), ("padding", (0, 0, 0, 0)), ("stride", (1, 1)))
    return Workload("conv2d", (shape,), shape, (weight,), attrs, (Step("relu"),))


SOURCE = """
#include <stdint.h>
#include <unistd.h>
#include <tvm/ffi/c_api.h>
__attribute__((visibility("default"))) void* __TVMBackendAllocWorkspace; /* TVM sets it */
#define SLEEP(n) __attribute__((visibility("default"))) int __tvm_ffi_k##n(\
  void* s, const TVMFFIAny* a, int32_t c, TVMFFIAny* r) { \
  if (__TVMBackendAllocWorkspace) { usleep(PAUSE##n); return 0; } \
  TVMFFIErrorSetRaisedFromCStr("RuntimeError", "was unloaded"); return -1; }
#define HANG(n) __attribute__((visibility("default"))) int __tvm_ffi_k##n(\
  void* s, const TVMFFIAny* a, int32_t c, TVMFFIAny* r) { for (;;) pause(); }
#define CRASH(n) __attribute__((visibility("default"))) int __tvm_ffi_k##n(\
  void* s, const TVMFFIAny* a, int32_t c, TVMFFIAny* r) { return *(volatile int*)8; }
#define RAISE(n) __attribute__((visibility("default"))) int __tvm_ffi_k##n(\
  void* s, const TVMFFIAny* a, int32_t c, TVMFFIAny* r) { \
  TVMFFIErrorSetRaisedFromCStr("ValueError", "will not run"); return -1; }
"""


class _NoParameters:
    @staticmethod
    def pack(params: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        return tuple(params)


@pytest.fixture
def written_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels in C instead of TVM's: they sleep 2 ms; some hang, crash or raise."""
    from tvm_ffi import libinfo

    def build(work: Sequence[Workload], target: Target, threads: int, library: Path) -> Batch:
        kinds = {HANGS: "HANG", CRASHES: "CRASH", RAISES: "RAISE"}
        channels = [w.output.shape[1] for w in work]
        source = library.with_suffix(".c")
        lines = [f"{kinds.get(c, 'SLEEP')}({i})" for i, c in enumerate(channels)]
        source.write_text(SOURCE + "\n".join(lines))
        pauses = [f"-DPAUSE{i}=2000" for i in range(len(work))]
        includes = [
            f"-I{p}" for p in (libinfo.find_include_path(), libinfo.find_dlpack_include_path())
        ]
        subprocess.run(
            ["gcc", "-shared", "-fPIC", *pauses, *includes, str(source), "-o", str(library)],
            check=True,
        )
        plan = launch_plan(work, [_NoParameters] * len(work), target)  # type: ignore[list-item]
        return Batch(tuple(work), library, plan)

    monkeypatch.setattr(fleet_module, "build_batch", build)
    monkeypatch.setattr(measure_module, "BATCH", 3)


@pytest.fixture
def puts(monkeypatch: pytest.MonkeyPatch) -> Counter[Workload]:
    """How often a row of each kernel is written."""
    counted: Counter[Workload] = Counter()
    put = LatencyTable.put

    def counting(self: LatencyTable, rows: Any) -> None:
        rows = tuple(rows)
        put(self, rows)
        counted.update(row.workload for row in rows)

    monkeypatch.setattr(LatencyTable, "put", counting)
    return counted


@pytest.mark.parametrize("threads", [1, 2])
def test_kernels_take_as_long_as_here(server: Process, threads: int) -> None:
    if threads > len(os.sched_getaffinity(0)):
        pytest.skip("this machine has one core")
    work = [convolution(64, 28), convolution(32)]
    with open_boards(board(server), TARGET, threads) as boards:
        assert len(boards.facts.pinned) == threads
        done = measure_on(boards, work)
        assert (done.measured, done.reused, done.failed) == (2, 0, ())
        rows = [boards.table.get(w, threads) for w in work]
        assert boards.table.path.stem == boards.facts.fingerprint
        assert boards.facts.fingerprint != provenance_of(TARGET).fingerprint
        again = measure_on(boards, work)
        assert (again.measured, again.reused) == (0, 2)
    here = np.median(time_together(work, TARGET, 1), axis=0)
    for row, us in zip(rows, here, strict=True):
        assert row is not None
        assert row.source == "device"
        assert row.repeats >= 5
        assert 0 < row.p10_us <= row.median_us <= row.p90_us
        if threads == 1:  # two wait for each other where others use the machine too
            assert us / 4 < row.median_us < us * 4
        assert "board" in row.versions
        assert "its tvm 0." in row.versions
    assert rows[0].p10_us > rows[1].p10_us  # type: ignore[union-attr]


@pytest.mark.usefixtures("written_kernels")
def test_a_kernel_that_hangs_crashes_or_raises_fails_alone(
    server: Process, puts: Counter[Workload]
) -> None:
    bad = [relu(HANGS), relu(CRASHES), relu(RAISES)]
    good = [relu(8), relu(16), relu(24)]
    work = [good[0], *bad, *good[1:]]
    with open_boards(board(server, kernel_s=1), TARGET, 1) as boards:
        done = measure_on(boards, work)
        assert set(done.failed) == set(bad)
        rows = {w: boards.table.get(w, 1) for w in work}
    for workload in good:
        row = rows[workload]
        assert row is not None
        assert 2000 <= row.p10_us < 100_000
    assert "will not run" in rows[relu(RAISES)].failure  # type: ignore[union-attr]
    assert all(rows[w].failure for w in bad)  # type: ignore[union-attr]
    assert puts == Counter(work)
    assert server.popen.poll() is None
    with open_boards(board(server), TARGET, 1) as boards:  # the server has survived it all
        assert measure_on(boards, [*work, relu(40)]).measured == 1


@pytest.mark.usefixtures("written_kernels")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_boards_share_the_work_and_one_is_lost(
    number: int, tmp_path: Path, puts: Counter[Workload]
) -> None:
    work = [relu(8 * (1 + i)) for i in range(30)]
    seen: list[int] = []
    with fleet(tmp_path, 2) as (boards, servers):

        def lose(done: int, total: int) -> None:
            seen.append(done)
            if len(seen) == 2:
                servers[0].signal(number)

        with open_boards(boards, TARGET, 1) as found:
            done = measure_on(found, work, lose)
            rows = [found.table.get(w, 1) for w in work]
    assert done.failed == ()
    assert done.measured == len(work)
    assert puts == Counter(work)
    assert all(row is not None and row.median_us >= 2000 for row in rows)
    assert seen == sorted(seen)
    assert seen[-1] == len(work)


@pytest.mark.usefixtures("written_kernels")
def test_a_stopped_run_goes_on(server: Process, puts: Counter[Workload]) -> None:
    work = [relu(8 * (1 + i)) for i in range(12)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_boards(board(server), TARGET, 1) as boards:
        measure_on(boards, work, stop)
    kept = set(puts)
    assert 0 < len(kept) < len(work)
    with open_boards(board(server), TARGET, 1) as boards:
        done = measure_on(boards, work)
    assert (done.reused, done.measured) == (len(kept), len(work) - len(kept))
    assert puts == Counter(work)


@pytest.mark.usefixtures("written_kernels")
def test_the_only_board_is_lost(tmp_path: Path) -> None:
    with start(tmp_path, "rpc_server") as process:
        boards = board(process, return_s=1, connect_s=5)
        with open_boards(boards, TARGET, 1) as found:
            with pytest.raises(TargetError, match="no board is left: cannot be reached") as error:
                measure_on(found, [relu(8 * i) for i in range(1, 10)], _once(process))
        assert "what was measured is kept" in str(error.value)
    with LatencyTable(found.table.path, found.table.provenance) as table:
        assert 0 < sum(not row.failure for row in table.rows()) < 9
        assert not any(row.failure for row in table.rows())


def _once(process: Process) -> Callable[[int, int], None]:
    return lambda done, total: process.signal(signal.SIGKILL)


def _refused(boards: Boards, target: Target = TARGET) -> HwpruneError:
    with pytest.raises(HwpruneError) as error:
        with open_boards(boards, target, 1):
            pass
    return error.value


def test_nobody_is_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = Address("127.0.0.1", port)
    error = _refused(Boards(where, patience=PATIENCE))
    assert str(error) == f"{where}: cannot be reached: Connection refused"
    error = _refused(Boards(None, where, "pi", patience=PATIENCE))
    assert "the tracker cannot be reached: Connection refused" in str(error)


@contextlib.contextmanager
def _peer(greeting: bytes) -> Iterator[Address]:
    """A TCP server that says `greeting`, or nothing, and then waits."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        taken: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(listening.accept()[0])
                    taken[-1].sendall(greeting)

        threading.Thread(target=accept, daemon=True).start()
        yield Address(*listening.getsockname()[:2])
        listening.shutdown(socket.SHUT_RDWR)
    for sock in taken:
        sock.close()


def test_a_silent_peer_is_given_up() -> None:
    patience = Patience(connect_s=1, kernel_s=1, transfer_s=1, return_s=1)
    with _peer(b"") as where:
        started = time.monotonic()
        error = _refused(Boards(where, patience=patience))
        assert "takes connections but says nothing" in str(error)
        assert error.where == str(where)
        error = _refused(Boards(None, where, "pi", patience=patience))
        assert "does not answer as a TVM tracker does" in str(error)
        assert time.monotonic() - started < 100


def test_a_peer_of_another_kind() -> None:
    with _peer(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n") as where:
        assert "no RPC server of our TVM" in str(_refused(Boards(where, patience=PATIENCE)))
        error = _refused(Boards(None, where, "pi", patience=PATIENCE))
        assert "does not answer as a TVM tracker does" in str(error)


def test_a_wrong_key(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, key="pi4") as (boards, servers):
        error = _refused(replace(boards, key="pi5"))
        assert str(error) == (
            f"{boards.tracker}: the tracker has no board of key 'pi5' (its keys: pi4 (1))"
        )
        error = _refused(Boards(servers[0].address, key="pi5", patience=PATIENCE))
        assert "the server has another key, not 'pi5'" in str(error)


def test_another_version_of_tvm(tmp_path: Path) -> None:
    import tvm

    packages = tmp_path / "packages"

    def link(source: str, goal: str) -> None:
        try:
            os.link(source, goal)
        except OSError:  # another disk
            shutil.copyfile(source, goal)

    def needed(folder: str, names: list[str]) -> list[str]:
        return [n for n in names if n in ("include", "src", "3rdparty") or "compiler" in n]

    shutil.copytree(Path(tvm.__file__).parent, packages / "tvm", ignore=needed, copy_function=link)
    version = packages / "tvm/_version.py"
    text = version.read_text()
    version.unlink()
    version.write_text(text.replace(tvm.__version__, "0.26.1"))
    with start(tmp_path / "log", "rpc_server", packages=packages) as process:
        error = _refused(board(process))
    assert isinstance(error, ToolchainError)
    assert f"the board has TVM 0.26.1, this machine {tvm.__version__}" in str(error)
    assert f"pip install apache-tvm=={tvm.__version__}" in error.hint


def test_code_for_another_architecture(server: Process) -> None:
    target = load_target("cortex-a72")
    if shutil.which(target.toolchain) is None:
        pytest.skip(f"{target.toolchain} is not installed")
    error = _refused(board(server), target)
    assert "the board cannot load code for 'cortex-a72'" in str(error)
    assert error.where == str(server.address)


def test_a_missing_compiler(server: Process) -> None:
    target = replace(load_target("cortex-a72"), toolchain="armv9-linux-gnu-g++")
    with pytest.raises(ToolchainError, match=r"Debian package g\+\+-armv9-linux-gnu"):
        with open_boards(board(server), target, 1):
            pass


def test_more_threads_than_cores(server: Process) -> None:
    with pytest.raises(TargetError, match="4096 threads on a board with"):
        with open_boards(board(server), TARGET, 4096):
            pass


@pytest.mark.usefixtures("written_kernels")
def test_fewer_threads_on_the_board_than_asked(tmp_path: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this machine has one core")
    with start(tmp_path, "rpc_server", threads=1) as process:
        with open_boards(board(process), TARGET, 2) as boards:
            with pytest.raises(TargetError, match="runs 1 of 2 threads") as error:
                measure_on(boards, [relu(8)])
            assert "TVM_NUM_THREADS=2" in error.value.hint
            assert boards.table.missing([relu(8)], 2) == (relu(8),)


def test_a_kernel_that_needs_more_memory_than_is_free(server: Process) -> None:
    big = TensorSpec((1, 8, 16384, 16000), layout="packed")  # 8 GB
    sums = Workload("elementwise", (big,) * 16, big, epilogue=(Step("add"),) * 15)
    with open_boards(board(server), TARGET, 1) as boards:
        with pytest.raises(TargetError, match=r"too little memory for the kernel .* MB are free"):
            measure_on(boards, [sums])
        assert boards.table.missing([sums], 1) == (sums,)


def test_a_table_of_another_board(server: Process) -> None:
    with open_boards(board(server), TARGET, 1) as boards:
        path, provenance = boards.table.path, boards.table.provenance
    other = replace(provenance, fingerprint="aarch64-0123456789abcdef")
    with pytest.raises(TableError, match="is of fingerprint"):
        LatencyTable(path, other)


@pytest.mark.usefixtures("written_kernels")
def test_the_example_server_comes_back_after_a_failed_session(tmp_path: Path) -> None:
    """It serves as TVM's does, and again when a session's process was killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = Address("127.0.0.1", free.getsockname()[1])
    command = ["--host", "127.0.0.1", "--port", str(where.port)]
    popen = subprocess.Popen(
        [sys.executable, ROOT / "examples/board_server.py", *command],
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        boards = Boards(where, patience=replace(PATIENCE, return_s=60))
        deadline = time.monotonic() + 120
        while socket.socket().connect_ex((where.host, where.port)):
            assert time.monotonic() < deadline
            time.sleep(0.2)

        def fail(done: int, total: int) -> None:
            if done == 3:
                _kill_a_session(popen.pid)

        with open_boards(boards, TARGET, 1) as found:
            done = measure_on(found, [relu(8 * i) for i in range(1, 10)], fail)
        assert (done.measured, done.failed) == (9, ())
    finally:
        os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()


def _kill_a_session(server: int) -> None:
    """Kill the process that the server has forked for a session, once there is one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        serving = psutil.Process(server).children()
        sessions = [child for process in serving for child in process.children()]
        if sessions:
            sessions[0].kill()
            return
        time.sleep(0.05)
    raise AssertionError("no session")


def test_the_networks_of_a_front_are_timed_in_turn(server: Process, tmp_path: Path) -> None:
    files = []
    for width in (64, 8):
        net = nn.Sequential(nn.Linear(512, width), nn.ReLU(), nn.Linear(width, 512)).eval()
        files.append(tmp_path / f"{width}.pt2")
        files[-1].write_bytes(export_bytes(capture(net, (torch.randn(64, 512),))))
    times = times_of(files, TARGET.name, 1, board(server), lambda done, total: None)
    assert times.source == "device"
    assert times.origin.startswith("board ")
    dense, small = times.latencies
    assert dense.ratio == 1.0
    assert small.ratio < 0.8
    assert small.median_us < dense.median_us
    assert (dense.low_us, dense.high_us) == (None, None)


@pytest.mark.slow
def test_a_budget_is_met_on_the_board(
    server: Process, tmp_path: Path, run: Callable[..., Done]
) -> None:
    done = run(
        "compile", "examples.models:rnet", "--input", "8,3,24,24", "--target", TARGET.name,
        "--latency", "60%", "--rpc", server.address, "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert done.status == 0, done.err
    report = json.loads(done.out)
    assert report["board"].startswith("board ")
    assert 0 < report["ratio"] < 1
    assert report["sources"]["newly_measured"] > 10
    assert report["pruned"]["latency_us"] < report["dense"]["latency_us"]
    assert report["max_rel_error_compiled"] <= 1e-4
    assert (tmp_path / "out/model.so").is_file()
