import fcntl
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwprune import measure as measure_module
from hwprune.errors import LoweringError, TargetError
from hwprune.lower.spec import Step, TensorSpec, Workload
from hwprune.measure import ROUNDS, WARM_UP, by_halves, fill, measure, time_rounds
from hwprune.provenance import provenance_of
from hwprune.quiet import SECONDS
from hwprune.table import LatencyTable, Row
from hwprune.target import load_target

HOST = load_target("host")


def kernel(channels: int, size: int = 14) -> Workload:
    shape = TensorSpec((1, channels, size, size), layout="packed")
    weight = TensorSpec((channels, channels, 1, 1))
    attrs = (("dilation", (1, 1)), ("padding", (0, 0, 0, 0)), ("stride", (1, 1)))
    return Workload("conv2d", (shape,), shape, (weight,), attrs, (Step("relu"),))


NONSENSE = Workload(
    "aten",
    (TensorSpec((1, 8)),),
    TensorSpec((1, 8)),
    attrs=(("args", '{"args": [{"input": 0}], "kwargs": {}}'), ("target", "aten.none.default")),
)


def test_kernels_are_timed_once_and_reused(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    work = [kernel(32), kernel(64), kernel(32)]
    with LatencyTable.open(provenance_of(HOST), tmp_path) as table:
        first = measure(work, HOST, 1, table, progress=lambda *a: seen.append(a))
        assert (first.reused, first.measured, first.failed) == (0, 2, ())
        assert seen == [(2, 2)]
        rows = [table.get(w, 1) for w in work]
    with LatencyTable.open(provenance_of(HOST), tmp_path) as table:
        second = measure(work, HOST, 1, table)
        assert (second.reused, second.measured) == (2, 0)
        assert [table.get(w, 1) for w in work] == rows
        for row in rows:
            assert row is not None
            assert 0.1 < row.p10_us <= row.median_us <= row.p90_us < 1e5
            assert row.source == "device"


def test_more_work_takes_longer(tmp_path: Path) -> None:
    small, large = kernel(16), kernel(256, 28)  # 1,000 times the multiply-accumulates
    with LatencyTable.open(provenance_of(HOST), tmp_path) as table:
        measure([small, large], HOST, 1, table)
        rows = [table.get(w, 1) for w in (small, large)]
    assert rows[0] is not None
    assert rows[1] is not None
    assert rows[1].p10_us > 5 * rows[0].p10_us


def test_a_kernel_that_fails_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    with LatencyTable.open(provenance_of(HOST), tmp_path) as table:
        report = measure([kernel(32), NONSENSE, kernel(48)], HOST, 1, table)
        assert report.failed == (NONSENSE,)
        row = table.get(NONSENSE, 1)
        assert row is not None
        assert "none" in row.failure
        assert table.latency_us(kernel(48), 1) > 0
        assert measure([NONSENSE], HOST, 1, table).reused == 1


def test_interrupted_profile_keeps_finished_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(measure_module, "BATCH", 1)
    work = [kernel(16), kernel(32), kernel(48)]
    with LatencyTable.open(provenance_of(HOST), tmp_path) as table:
        with pytest.raises(KeyboardInterrupt):
            measure(work, HOST, 1, table, progress=interrupt)
        assert table.missing(work, 1) == (kernel(48),)
        report = measure(work, HOST, 1, table)
        assert (report.reused, report.measured) == (2, 1)


def held(table: LatencyTable) -> bool:
    """Whether somebody holds the machine for measuring."""
    with open(table.path.with_suffix(".lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_a_batch_is_timed_under_the_lock_without_what_others_measured(tmp_path: Path) -> None:
    work = [kernel(n) for n in (16, 32, 48, 64)]
    seen: list[tuple[Workload, ...]] = []

    def row(workload: Workload, failure: str = "") -> Row:
        return Row(workload, 1, 2.0, 1.0, 3.0, 1, failure=failure)

    with LatencyTable.open(provenance_of(HOST), tmp_path) as table:

        def time_batch(batch: Sequence[Workload]) -> list[Row]:
            assert held(table)
            seen.append(tuple(batch))
            if len(seen) == 1:  # meanwhile somebody else measures one of the next batch
                table.put([row(work[2])])
            return [row(workload, "broken" if workload == work[3] else "") for workload in batch]

        done = fill(table, work, 1, 2, time_batch)
        assert not held(table)
        assert table.missing(work, 1) == ()
    assert seen == [(work[0], work[1]), (work[3],)]
    assert (done.reused, done.measured, done.failed) == (1, 3, (work[3],))


def test_a_batch_that_fails_is_halved_until_the_kernel_is_found() -> None:
    work = [kernel(n) for n in range(1, 6)]
    tried: list[int] = []

    def attempt(some: Sequence[Workload]) -> list[Row]:
        tried.append(len(some))
        if work[3] in some:
            raise LoweringError("too many registers")
        return [Row(workload, 1, 2.0, 1.0, 3.0, 1) for workload in some]

    rows = list(by_halves(work, attempt, 1, source="emulator"))
    assert [row.workload for row in rows] == work
    assert [row.failure for row in rows] == ["", "", "", "too many registers", ""]
    assert rows[3].source == "emulator"
    assert tried == [5, 2, 3, 1, 2, 1, 1]
    with pytest.raises(LoweringError):
        list(by_halves(work, attempt, 1, fatal=(LoweringError,)))
    assert list(by_halves([], attempt, 1)) == []


def test_a_target_that_cannot_run_here_is_refused(tmp_path: Path) -> None:
    alien = replace(HOST, name="alien", isa=("warp_drive",))
    with (
        LatencyTable.open(provenance_of(alien), tmp_path) as table,
        pytest.raises(TargetError, match="warp_drive"),
    ):
        measure([kernel(16)], alien, 1, table)


def test_every_launch_is_timed_in_every_round_right_after_its_preparation() -> None:
    events: list[str] = []

    def launch(name: str, seconds: float) -> Callable[[int], None]:
        def run(number: int) -> None:
            events.append(f"{name}{number}")
            time.sleep(seconds)

        return run

    def prepare() -> None:
        events.append("ready")
        time.sleep(0.001)

    times = time_rounds([launch("a", 0.0002), launch("b", 0.002)], [prepare, prepare])
    assert len(times) >= ROUNDS[1]
    assert len(events) == 4 * (len(times) + WARM_UP)
    assert events[:4] == ["ready", "a0", "ready", "b0"]
    assert times[:, 0].min() >= 200
    assert times[:, 1].min() >= 2000
    assert np.median(times[:, 0]) < 1000  # without the preparation


def test_rounds_last_a_while_but_slow_kernels_are_timed_a_few_times_only() -> None:
    launches = [lambda _: time.sleep(0.0001), lambda _: None]
    started = time.perf_counter()
    assert len(time_rounds(launches, [lambda: None] * 2)) > ROUNDS[1]
    assert time.perf_counter() - started > SECONDS
    assert len(time_rounds([lambda _: time.sleep(0.1)], [lambda: None])) == ROUNDS[0]


def test_copies_of_weights_fill_the_near_caches() -> None:
    target = replace(HOST, l2_bytes=2**20)
    assert measure_module.weight_copies(0, target) == measure_module.MOST_COPIES
    assert measure_module.weight_copies(2**24, target) == 1
    assert measure_module.weight_copies(2**21, target) == 2


def test_measured_kernels_add_up_to_the_network(tmp_path: Path) -> None:
    """Kernels in turn take what they take inside a network (loosely: the machine is shared)."""
    import torch
    from torch import nn

    from hwprune.capture import capture, specialize
    from hwprune.lower import lower

    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU()]
    program = capture(nn.Sequential(*layers).eval(), (torch.randn(1, 64, 28, 28),))
    lowered = lower(specialize(program), HOST, 1)
    with LatencyTable.open(provenance_of(HOST), tmp_path) as table:
        measure([call.workload for call in lowered.calls], HOST, 1, table)
        alone = sum(table.latency_us(call.workload, 1) for call in lowered.calls)
    x = torch.randn(1, 64, 28, 28).numpy()
    network = float(np.median(lowered.latencies_us([x], 30)))
    assert 0.4 < alone / network < 2.0
