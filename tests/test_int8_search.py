"""A latency budget in int8: kernels timed on this machine, plans measured against the dense one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hwprune.errors import BudgetError
from hwprune.int8_compile import compile_int8
from hwprune.int8_price import measure_int8, time_kernels
from hwprune.lower.spec import TensorSpec, Workload
from hwprune.mcu_price.kernels import workload_of
from hwprune.provenance import provenance_of
from hwprune.table import LatencyTable
from hwprune.target import load_target
from hwprune.turns import MOST
from tests.test_mcu_kernels import Bench, convolutions, others


def net() -> nn.Module:
    """Two convolutions large enough that half their width is half their time."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(64 * 16 * 16, 4)).eval()


INPUTS = (torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0)),)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HWPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def workloads() -> list[Workload]:
    """The kernels of operators of every kind."""
    bench = Bench(1)
    convolutions(bench)
    others(bench)
    known = {tensor.name: tensor for tensor in bench.tensors}
    return [
        workload_of(op, [known[name] for name in op.inputs], known[op.output])
        for op in bench.operators
    ][::3]


def test_kernels_have_rows_that_are_reused(cache: Path) -> None:
    target, wanted = load_target("host"), workloads()
    with LatencyTable.open(provenance_of(target)) as table:
        first = measure_int8(wanted, target, 1, table)
        assert (first.measured, first.reused, first.failed) == (len(set(wanted)), 0, ())
        assert all(table.latency_us(workload, 1) > 0 for workload in wanted)
        again = measure_int8(wanted, target, 1, table)
        assert (again.measured, again.reused) == (0, len(set(wanted)))


def test_a_kernel_that_cannot_be_made_fails_alone(cache: Path) -> None:
    target = load_target("host")
    odd = Workload("float", (TensorSpec((1, 4)),), TensorSpec((1, 4)))
    with LatencyTable.open(provenance_of(target)) as table:
        found = measure_int8([odd, workloads()[0]], target, 1, table)
        assert found.failed == (odd,)
        assert table.latency_us(workloads()[0], 1) > 0


def test_rounds_of_all_kernels() -> None:
    times = time_kernels(workloads()[:3], load_target("host"), 1)
    assert times.shape[1] == 3
    assert np.all(times > 0)


@pytest.mark.slow
def test_a_share_of_the_dense_network_in_int8(cache: Path) -> None:
    out = cache / "out"
    result = compile_int8(net(), INPUTS, out=out, latency="60%", recover="none", name="net")
    facts = json.loads((out / "report.json").read_text())["latency_search"]
    assert facts["goal_us"] == pytest.approx(0.6 * facts["dense_int8_us"])
    assert facts["measured_us"] < facts["dense_int8_us"]
    assert 1 <= facts["turns"] <= MOST + 1
    assert facts["source"] == "device"
    assert result.pruned is not None
    dense, kept = (sum(p.numel() for p in m.module.parameters()) for m in (
        result.pruned.dense, result.pruned.program
    ))  # fmt: skip
    assert kept < dense
    assert result.report["bit_exact"] == 4
    assert result.report["plan"] == "latency 60% of the dense network in int8"


def test_a_hopeless_latency_is_refused(cache: Path) -> None:
    with pytest.raises(BudgetError, match="is the smallest reachable"):
        compile_int8(net(), INPUTS, out=cache / "out", latency=0.5e-3, name="net")
    assert not (cache / "out").exists()
