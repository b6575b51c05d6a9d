"""The benchmarks of kernels: the staircase's verdict, peaks, the roofline, peers' kernels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import kernel_losses, peaks, roofline, staircase
from hwprune.lower.cpu import schedule
from hwprune.lower.kernels import tvm_target
from hwprune.lower.spec import PLAIN, Workload
from hwprune.target import load_target
from hwprune.tvm_runtime import compiling, load_tvm
from tests.assembly import hot_loop
from tests.kernel_cases import conv, expansion, packed, plain
from tests.test_benchmarks import run_benchmark

DEPTHWISE = staircase.all_series((64,))[-1]


def times(*runs: Sequence[float]):
    """A timer that gives each run's microseconds in three rounds, the machine slower each time."""
    waiting = iter(runs)
    return lambda _: np.outer([1.0, 1.5, 3.0], next(waiting))


def test_the_widths_between_two_multiples_are_compared_with_the_second() -> None:
    found = staircase.steps(4, 40, 16)
    assert [(step[0], step[-1]) for step in found] == [(4, 16), (17, 32), (33, 48)]
    assert [w for step in found for w in step] == list(range(4, 49))
    whole = staircase.steps(*staircase.WIDTHS, 16)
    assert [w for step in whole for w in step] == list(range(4, 257))


def test_every_series_is_a_kernel_with_a_rule() -> None:
    names = []
    for series in staircase.all_series(staircase.INPUTS):
        kernel = schedule(series.workload(20), load_target("x86-64-v4"), 1)
        assert kernel is not None
        names.append((series.name, kernel.rule))
    assert names == [
        ("1x1 of 64 channels", "cpu.conv2d_1x1"),
        ("1x1 of 256 channels", "cpu.conv2d_1x1"),
        ("3x3 of 64 channels", "cpu.conv2d_winograd"),
        ("3x3 of 256 channels", "cpu.conv2d_direct"),
        ("depthwise", "cpu.depthwise"),
    ]


def test_a_width_that_costs_more_in_every_run_is_an_offender() -> None:
    timer = times([8, 13, 11, 10], [8, 10, 12, 10], [8, 10, 11, 10])
    rows = staircase.measure(DEPTHWISE, [13, 14, 15, 16], timer)
    assert [row["to_next"] for row in rows] == [0.8, 1.0, 1.1, 1.0]
    assert [row["offender"] for row in rows] == [False, False, True, False]
    assert rows[0] | {"median_us": 12.0, "us_per_channel": 0.9231, "inputs": 13} == rows[0]
    found = staircase.verdict(rows)
    assert not found["holds"]
    wanted = {"series": "depthwise", "outputs": 15, "next": 16, "to_next": 1.1}
    assert found["offenders"] == [wanted]


def test_within_the_margin_nothing_is_run_again(tmp_path: Path) -> None:
    rows = staircase.measure(DEPTHWISE, [15, 16], times([10.6, 10]))
    assert staircase.verdict(rows)["holds"]
    staircase.plot(rows, tmp_path / "new" / "plot.png")
    assert (tmp_path / "new" / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("name", "register"), [("x86-64-v3", "ymm"), ("x86-64-v4", "zmm")])
def test_the_peak_is_multiply_adds_of_registers_alone(name: str, register: str) -> None:
    target, tvm = load_target(name), load_tvm()
    function = peaks.fma_function(target, 1).with_attr("global_symbol", "main")
    with compiling():
        module = tvm.compile(tvm.IRModule({"main": function}), target=tvm_target(target))
    loop = hot_loop(module.mod.inspect_source("s"))
    assert len(loop.multiply_adds) % peaks.LATENCY_HIDING == 0
    assert all(register in line and "(" not in line for line in loop.multiply_adds)
    assert loop.having(r"^v") == loop.multiply_adds


def test_peaks_are_measured_and_levels_hold_what_they_can(monkeypatch) -> None:
    monkeypatch.setattr(peaks, "REPEATS", 2)
    monkeypatch.setattr(peaks, "MEMORY_BYTES", 1 << 20)
    target = load_target("host")
    assert peaks.multiply_adds(target, 1) > 1e9
    assert peaks.bandwidth(target, 2, 1 << 20) > 1e8
    found = peaks.Peaks(1, 1e11, {"L2": 3.0, "L3": 2.0, "memory": 1.0}, {"L2": 100, "L3": 900})
    assert [found.level(size) for size in (100, 101, 901)] == ["L2", "L3", "memory"]
    json.dumps(found.to_json())


def test_kernels_have_kinds() -> None:
    workloads = {
        "3x3": conv(16, 32, (8, 8)),
        "1x1": conv(16, 32, (8, 8), kernel=1),
        "first 7x7": conv(3, 32, (8, 8), kernel=7, layout=PLAIN),
        "depthwise": conv(16, 16, (8, 8), groups=16),
        "grouped": conv(16, 32, (8, 8), groups=16),
        "expand_depthwise": expansion(16, 32, (8, 8)),
        "linear": Workload("linear", (plain(1, 8),), plain(1, 4), (plain(4, 8),)),
        "global_avg_pool": Workload("global_avg_pool", (packed(1, 8, 4, 4),), plain(1, 8)),
    }
    assert [roofline.kind(w) for w in workloads.values()] == list(workloads)
    assert roofline.shape(workloads["3x3"]) == "16x8x8 to 32x8x8"


def row(kind: str, us: float, of_flops: float, of_roof: float) -> dict:
    shares = {"of_flops": of_flops, "of_bytes": 0.1, "of_roof": of_roof, "share": us / 100}
    more = {"gflops": 1.0, "gbytes_per_s": 1.0, "kernel": f"{kind} {us}", "shape": ""}
    return {"rule": "cpu.conv", "kind": kind, "us": us, **shares, **more}


def test_means_are_weighted_by_time() -> None:
    rows = [row("3x3", 30, 0.9, 0.9), row("1x1", 60, 0.8, 0.8), row("3x3", 10, 0.5, 0.1)]
    assert roofline.headlines(rows) == {"3x3": 0.8, "1x1": 0.8}
    assert roofline.headlines(rows[1:2]) == {"3x3": None, "1x1": 0.8}
    first, second = roofline.groups(rows)
    assert (first["kind"], first["share"], first["kernels"]) == ("1x1", 0.6, 1)
    assert (second["kind"], second["us"], second["kernels"]) == ("3x3", 40, 2)
    assert [r["kernel"] for r in roofline.worst(rows)] == ["1x1 60", "3x3 10", "3x3 30"]


def test_a_row_is_an_account_of_a_kernel() -> None:
    workload = conv(16, 16, (4, 4))
    launch = type("Call", (), {"name": "c", "workload": workload})
    machine = peaks.Peaks(1, 1e11, {"L2": 1e11, "memory": 1e10}, {"L2": 1 << 20})
    found = roofline._row(launch, "cpu.conv", 2.0, 2.0 * 1e11, machine, 16)
    operations, size = 2 * 16 * 16 * 9 * 16, 4 * (2 * 16 * 16 + 16 * 16 * 9)
    assert found["gflops"] == pytest.approx(operations / 2e3, abs=0.01)
    assert found["of_flops"] == pytest.approx(operations / 2e-6 / 1e11, abs=1e-4)
    assert found["of_bytes"] == pytest.approx(size / 2e-6 / 1e11, abs=1e-4)
    assert found["of_roof"] == max(found["of_flops"], found["of_bytes"])
    assert found["level"] == "L2"


@pytest.mark.slow
def test_staircase_quick(monkeypatch, tmp_path) -> None:
    document = run_benchmark(monkeypatch, staircase, tmp_path / "rows.json")
    assert {r["op"] for r in document["rows"]} == {"1x1", "3x3", "depthwise"}
    assert document["verdict"]["widths"] == len(document["rows"]) > 40
    assert all(0 < r["p10_us"] <= r["median_us"] for r in document["rows"])
    assert sorted(f.name for f in tmp_path.iterdir()) == ["rows.json", "rows.png"]


@pytest.mark.slow
def test_roofline_quick(monkeypatch, tmp_path) -> None:
    options = ("--model", "rnet")
    document = run_benchmark(monkeypatch, roofline, tmp_path / "rows.json", *options)
    assert document["failures"] == []
    (measured,) = document["peaks"]
    assert set(measured["bytes_per_s"]) == {"L2", "L3", "memory"}
    assert sum(r["share"] for r in document["rows"]) == pytest.approx(1, abs=1e-3)
    assert document["headlines"][0]["3x3"] > 0


def _node(kind: str, name: str, inputs: list[str], output: str) -> SimpleNamespace:
    return SimpleNamespace(op_type=kind, name=name, input=inputs, output=[output])


def test_a_peers_kernels_find_their_convolutions():
    """A residual block whose shortcut is a convolution: the sum is of the other one."""
    nodes = [
        _node("Conv", "node_a", ["x", "wa"], "a"),
        _node("Relu", "node_relu", ["a"], "relu"),
        _node("Conv", "node_b", ["relu", "wb"], "b"),
        _node("Conv", "node_down", ["x", "wd"], "down"),
        _node("Add", "node_add", ["b", "down"], "add"),
        _node("Relu", "node_relu_1", ["add"], "relu_1"),
    ]
    kernels = [("relu_nchwc", 5), ("node_down", 2), ("relu_1_nchwc", 7), ("Reorder", 1)]
    events = [
        {"name": f"{name}_kernel_time", "cat": "Node", "dur": us + 10 * run,
         "args": {"op_name": "Reorder" if name == "Reorder" else "Conv"}}
        for run in range(2)
        for name, us in kernels
    ]  # fmt: skip
    found = kernel_losses.runs_of(events, SimpleNamespace(node=nodes))
    assert found == [{-1: 1, 0: 5, 2: 2, 1: 7}, {-1: 11, 0: 15, 2: 12, 1: 17}]


def test_a_kernel_of_two_convolutions_is_compared_with_both():
    rows = kernel_losses.compare(
        [{"kernel": "both", "convolutions": [0, 1]}, {"kernel": "rest", "convolutions": [-1]}],
        {
            "hwprune": {0: 4.0, -1: 3.0},
            "onnxruntime": {0: 2.0, 1: 1.5, -1: 4.0},
            "openvino": {0: 3.0, 1: 3.0, -1: 5.0},
        },
    )
    assert [(r["hwprune_us"], r["onnxruntime_us"], r["openvino_us"]) for r in rows] == [
        (4.0, 3.5, 6.0),
        (3.0, 4.0, 5.0),
    ]
    assert [r["best_peer"] for r in rows] == ["onnxruntime"] * 2
    assert [r["lost_us"] for r in rows] == [0.5, -1.0]
