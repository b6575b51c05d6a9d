import math
import multiprocessing
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwprune import provenance
from hwprune.errors import TableError
from hwprune.host_cpu import read_cpu
from hwprune.lower.spec import Step, TensorSpec, Workload
from hwprune.provenance import (
    Provenance,
    cache_directory,
    device_fingerprint,
    provenance_of,
    schedule_version,
)
from hwprune.table import LatencyTable, Row, describe
from hwprune.target import load_target

PROVENANCE = Provenance("machine", "tvm 1", "abc", "test")


def kernel(channels: int) -> Workload:
    shape = TensorSpec((1, channels, 8, 8), layout="packed")
    return Workload("elementwise", (shape,), shape, epilogue=(Step("relu"),))


def row(channels: int, median_us: float = 5.0, **more: object) -> Row:
    made = Row(kernel(channels), 1, median_us, median_us * 0.9, median_us * 1.2, 10)
    return replace(made, **more)  # type: ignore[arg-type]


def test_rows_come_back_with_provenance(tmp_path: Path) -> None:
    with LatencyTable.open(PROVENANCE, tmp_path) as table:
        table.put([row(16), row(32, 7.0)])
    with LatencyTable.open(PROVENANCE, tmp_path) as table:
        found = table.get(kernel(32), 1)
        assert found is not None
        assert (found.median_us, found.source, found.versions) == (7.0, "device", "test")
        assert found.date.startswith("20")
        assert table.latency_us(kernel(16), 1) == 5.0
        assert table.get(kernel(32), 2) is None
        assert table.missing([kernel(16), kernel(64), kernel(64)], 1) == (kernel(64),)
        assert [r.workload for r in table.rows()] == [kernel(16), kernel(32)]
        assert table.check() == 2


@pytest.mark.parametrize("other", [{"toolchain": "tvm 2"}, {"schedule": "abd"}])
def test_stale_rows_are_not_seen(tmp_path: Path, other: dict[str, str]) -> None:
    with LatencyTable.open(PROVENANCE, tmp_path) as table:
        table.put([row(16)])
    with LatencyTable.open(replace(PROVENANCE, **other), tmp_path) as table:
        assert table.get(kernel(16), 1) is None


def test_missing_row_is_an_error_that_names_it(tmp_path: Path) -> None:
    with (
        LatencyTable.open(PROVENANCE, tmp_path) as table,
        pytest.raises(TableError, match=r"elementwise\+relu 1x16x8x8"),
    ):
        table.latency_us(kernel(16), 1)


def test_failed_kernels_are_kept_and_not_priced(tmp_path: Path) -> None:
    with LatencyTable.open(PROVENANCE, tmp_path) as table:
        table.put([Row(kernel(16), 1, math.nan, math.nan, math.nan, 0, failure="no schedule")])
        assert table.missing([kernel(16)], 1) == ()
        with pytest.raises(TableError, match="no schedule"):
            table.latency_us(kernel(16), 1)


@pytest.mark.parametrize(
    "bad",
    [row(16, -1.0), row(16, 0.0), row(16, math.inf), row(16, p90_us=1.0), row(16, source="?")],
)
def test_bad_rows_are_not_written(tmp_path: Path, bad: Row) -> None:
    with LatencyTable.open(PROVENANCE, tmp_path) as table:
        with pytest.raises(TableError):
            table.put([row(32), bad])
        assert table.check() == 0  # all or nothing


@pytest.mark.parametrize(
    "damage",
    [
        "median_us = 'fast'",
        "median_us = -3.0",
        "median_us = NULL",
        "p10_us = 1e9",
        "repeats = 'x'",
        "source = 'guess'",
        "workload = '{}'",
        "workload = 'not json'",
    ],
)
def test_corrupt_row_is_named(tmp_path: Path, damage: str) -> None:
    with LatencyTable.open(PROVENANCE, tmp_path) as table:
        table.put([row(16), row(32)])
        path = table.path
    with sqlite3.connect(path) as database:
        database.execute(f"UPDATE latency SET {damage} WHERE rowid = 2")
    with (
        LatencyTable.open(PROVENANCE, tmp_path) as table,
        pytest.raises(TableError, match=r"1x32x8x8|row 2") as caught,
    ):
        table.check()
    assert str(path) in str(caught.value)


def test_corrupt_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "machine.sqlite"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(TableError, match=r"machine\.sqlite"):
        LatencyTable.open(PROVENANCE, tmp_path)


def test_another_machines_file_is_refused(tmp_path: Path) -> None:
    LatencyTable(tmp_path / "t.sqlite", PROVENANCE).close()
    with pytest.raises(TableError, match="fingerprint"):
        LatencyTable(tmp_path / "t.sqlite", replace(PROVENANCE, fingerprint="other"))


def test_unusable_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TableError, match="cannot be opened"):
        LatencyTable.open(PROVENANCE, tmp_path / "file")


def fill(directory: Path, log: Path, count: int) -> None:
    """What `measure` does, with a file in place of a device."""
    with LatencyTable.open(PROVENANCE, directory) as table:
        for channels in range(1, count + 1):
            with table.measuring():
                for workload in table.missing([kernel(channels)], 1):
                    with log.open("a") as file:
                        file.write(f"{channels}\n")
                    time.sleep(0.002)
                    table.put([row(workload.output.shape[1])])


def test_processes_share_a_table_and_measure_nothing_twice(tmp_path: Path) -> None:
    log, count = tmp_path / "log", 20
    spawn = multiprocessing.get_context("fork")
    workers = [spawn.Process(target=fill, args=(tmp_path, log, count)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert sorted(map(int, log.read_text().split())) == list(range(1, count + 1))
    with LatencyTable.open(PROVENANCE, tmp_path) as table:
        assert table.check() == count


def die(directory: Path) -> None:
    import os
    import signal

    table = LatencyTable.open(PROVENANCE, directory)
    with table.measuring():
        table.put([row(16)])
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_loses_nothing_and_holds_no_lock(tmp_path: Path) -> None:
    worker = multiprocessing.get_context("fork").Process(target=die, args=(tmp_path,))
    worker.start()
    worker.join(30)
    assert worker.exitcode == -9
    with LatencyTable.open(PROVENANCE, tmp_path) as table, table.measuring():
        assert table.latency_us(kernel(16), 1) == 5.0


def test_provenance_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    v3 = provenance_of(load_target("x86-64-v3"))
    v4 = provenance_of(load_target("x86-64-v4"))
    assert v3.fingerprint == v4.fingerprint == device_fingerprint(read_cpu())
    assert v3.toolchain != v4.toolchain
    assert v3.schedule == schedule_version()
    other = replace(read_cpu(), model="another")
    assert device_fingerprint(other) != v3.fingerprint
    monkeypatch.setenv("HWPRUNE_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path


def test_a_gpu_is_measured_anew_when_its_device_functions_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are C, which no hash of Python sources sees; a CPU's rows stay."""
    header = "hwprune_cuda.h"
    gpu, cpu = load_target("nvidia-h200"), load_target("x86-64-v3")
    before = {t.name: provenance_of(t).schedule for t in (gpu, cpu)}
    read = Path.read_text

    def changed(path: Path, *rest: Any, **named: Any) -> str:
        return read(path, *rest, **named) + ("// changed" if path.name == header else "")

    monkeypatch.setattr(Path, "read_text", changed)
    provenance._sources.cache_clear()
    try:
        assert provenance_of(gpu).schedule != before[gpu.name]
        assert provenance_of(cpu).schedule == before[cpu.name]
    finally:
        provenance._sources.cache_clear()


def test_a_gpu_keeps_its_rows_when_rules_of_other_devices_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A table that ships with a GPU would be of no use after any change to a CPU's kernels."""
    gpu, cpu = load_target("nvidia-h200"), load_target("x86-64-v3")
    read = Path.read_text

    def schedules(folder: str) -> tuple[str, str]:
        def changed(path: Path, *rest: Any, **named: Any) -> str:
            return read(path, *rest, **named) + ("# changed" if path.parent.name == folder else "")

        monkeypatch.setattr(Path, "read_text", changed)
        for cached in (provenance._sources, provenance.schedule_version):
            cached.cache_clear()
        return provenance_of(gpu).schedule, provenance_of(cpu).schedule

    try:
        now, rules, shared = (schedules(folder) for folder in ("", "cpu", "lower"))
        assert rules[0] == now[0]
        assert rules[1] != now[1]
        assert shared[0] != now[0]
    finally:
        monkeypatch.undo()
        for cached in (provenance._sources, provenance.schedule_version):
            cached.cache_clear()


def test_kernels_are_described_in_words() -> None:
    assert describe(kernel(16)) == "elementwise+relu 1x16x8x8 -> 1x16x8x8"
