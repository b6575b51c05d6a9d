from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hwprune.capture import capture, specialize
from hwprune.cost import Cost, full_widths
from hwprune.counted import macs_costs, params_costs
from hwprune.couple import couple
from hwprune.coupling import Coupling, Extent
from hwprune.errors import TableError
from hwprune.interpolate import multilinear, sparse_points, spread
from hwprune.lower import fold_batch_norm, fuse
from hwprune.lower.spec import TensorSpec, Workload
from hwprune.macs import macs
from hwprune.price import count_sources, latency_costs, predict_us, required, roughness
from hwprune.provenance import Provenance
from hwprune.table import LatencyTable, Row
from hwprune.target import load_target
from hwprune.workload import Site, sites, width_candidates

PROVENANCE = Provenance("machine", "tvm 1", "abc", "test")
V4 = load_target("x86-64-v4")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 128, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(128, 128, 3, padding=1, groups=128),
        nn.Conv2d(128, 64, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    ).eval()


class Net:
    """A network ready to be priced."""

    def __init__(self) -> None:
        self.module = net()
        program = capture(self.module, (torch.randn(1, 3, 8, 8),))
        self.coupling: Coupling = couple(program)
        folded = fold_batch_norm(specialize(program))
        self.sites: tuple[Site, ...] = sites(fuse(folded), self.coupling, folded)
        self.full = full_widths(self.coupling.groups)
        self.candidates = {
            g.name: width_candidates(g, self.coupling, V4) for g in self.coupling.groups
        }
        self.shapes = {n: tuple(p.shape) for n, p in self.module.named_parameters()}


@pytest.fixture(scope="module")
def ready() -> Net:
    return Net()


def model_us(workload: Workload) -> float:
    """A made-up device: bilinear in the channels, so that interpolation must be exact."""
    return 2.0 + 1e-3 * macs(workload) + 1e-2 * workload.output.shape[1]


def filled(directory: Path, ready: Net) -> LatencyTable:
    table = LatencyTable.open(PROVENANCE, directory)
    rows = []
    for work in required(ready.sites, ready.candidates):
        us = model_us(work)
        rows.append(Row(work, 1, us, us * 0.95, us * 1.1, 10))
    table.put(rows)
    return table


def test_latency_is_exact_on_a_bilinear_device(tmp_path: Path, ready: Net) -> None:
    with filled(tmp_path, ready) as table:
        costs = latency_costs(ready.sites, ready.candidates, table, 1)
    rng = np.random.default_rng(0)
    for _ in range(20):
        widths = {g: int(rng.integers(c[0], c[-1] + 1)) for g, c in ready.candidates.items()}
        expected = sum(model_us(site.workload(widths)) for site in ready.sites)
        us, low, high = predict_us(costs, widths)
        assert us == pytest.approx(expected)
        assert low < us < high
    assert predict_us(costs, ready.full, lambda total: total + 5.0)[0] == pytest.approx(
        5.0 + sum(model_us(site.call.workload) for site in ready.sites)
    )


def test_points_are_counted_by_their_source(tmp_path: Path, ready: Net) -> None:
    with filled(tmp_path, ready) as table:
        costs = latency_costs(ready.sites, ready.candidates, table, 1)
    counted = count_sources(costs)
    assert counted.measured == len(required(ready.sites, ready.candidates))
    assert counted.interpolated > 0
    assert counted.modelled == counted.dense == 0
    for cost in costs:
        assert cost.measured is not None
        assert cost.measured.shape == cost.values.shape
        assert cost.measured.flat[0]
        assert cost.measured.flat[-1]


def test_corrections_scale_their_call(tmp_path: Path, ready: Net) -> None:
    first = ready.sites[0].call.name
    with filled(tmp_path, ready) as table:
        plain = latency_costs(ready.sites, ready.candidates, table, 1)
        scaled = latency_costs(ready.sites, ready.candidates, table, 1, {first: 1.5})
    for before, after in zip(plain, scaled, strict=True):
        ratio = 1.5 if first in before.calls else 1.0
        assert after.at(ready.full) == pytest.approx(ratio * before.at(ready.full))


def test_a_missing_kernel_is_never_free(tmp_path: Path, ready: Net) -> None:
    with (
        LatencyTable.open(PROVENANCE, tmp_path) as table,
        pytest.raises(TableError, match="no row"),
    ):
        latency_costs(ready.sites, ready.candidates, table, 1)


def test_nothing_is_extrapolated() -> None:
    axis = Extent(0, (("g", 2),))
    cost = Cost("conv", (axis,), (np.array([8, 16]),), np.array([1.0, 2.0]), count=3)
    assert cost.at({"g": 6}) == pytest.approx(3 * 1.5)
    for width in (3, 9):
        with pytest.raises(TableError, match="outside"):
            cost.at({"g": width})


def test_macs_and_parameters_equal_those_of_the_module(ready: Net) -> None:
    count = sum(p.numel() for p in ready.module.parameters())
    params = params_costs(ready.coupling, ready.shapes, ready.candidates)
    assert sum(c.at(ready.full) for c in params) == count
    spatial = 64
    convs = [3 * 64 * 9, 64 * 128 * 9, 128 * 9, 128 * 64]
    costs = macs_costs(ready.sites, ready.candidates)
    assert sum(c.at(ready.full) for c in costs) == spatial * sum(convs) + 640


def test_macs_and_parameters_of_the_pruned_network(ready: Net) -> None:
    widths = {g: c[len(c) // 2] for g, c in ready.candidates.items()}
    expected = sum(macs(site.workload(widths)) for site in ready.sites)
    costs = macs_costs(ready.sites, ready.candidates)
    assert sum(c.at(widths) for c in costs) == pytest.approx(expected)
    elements = 0
    for name in ready.shapes:
        extents = ready.coupling.parameter_extents(name)
        elements += int(np.prod([e.at(widths) for e in extents]))
    params = params_costs(ready.coupling, ready.shapes, ready.candidates)
    assert sum(c.at(widths) for c in params) == pytest.approx(elements)


def test_identical_kernels_are_merged() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.conv(x))  # type: ignore[no-any-return]

    program = capture(Twice(), (torch.randn(1, 16, 8, 8),))
    folded = fold_batch_norm(specialize(program))
    found = sites(fuse(folded), couple(program), folded)
    convs = [c for c in macs_costs(found, {})]
    assert sum(c.at({}) for c in convs) == 2 * 16 * 16 * 9 * 64
    packed = [s for s in found if s.call.workload.op == "conv2d"]
    assert len(convs) == len({s.call.workload for s in packed})


@given(
    st.lists(st.integers(1, 500), min_size=2, max_size=6, unique=True),
    st.lists(st.integers(1, 500), min_size=2, max_size=6, unique=True),
    st.data(),
)
def test_multilinear_is_exact_for_bilinear_functions(
    xs: list[int], ys: list[int], data: st.DataObject
) -> None:
    gx, gy = np.array(sorted(xs)), np.array(sorted(ys))
    values = 3.0 + 2.0 * gx[:, None] + 0.5 * gy[None, :] + 0.1 * gx[:, None] * gy[None, :]
    x = data.draw(st.integers(int(gx[0]), int(gx[-1])))
    y = data.draw(st.integers(int(gy[0]), int(gy[-1])))
    assert multilinear((gx, gy), values, (x, y)) == pytest.approx(3 + 2 * x + 0.5 * y + 0.1 * x * y)


def test_multilinear_refuses_to_extrapolate() -> None:
    with pytest.raises(ValueError, match="outside"):
        multilinear((np.array([1, 2]),), np.array([1.0, 2.0]), (3,))


def test_measured_points_hold_both_ends() -> None:
    sizes = np.arange(16, 513, 16)
    assert list(sparse_points(sizes, 1)) == [16, 144, 256, 384, 512]
    assert len(sparse_points(sizes, 2)) == 4
    assert list(sparse_points(np.array([8, 40]), 2)) == [8, 40]
    apart = np.array([8, 16, 24, 32, 40, 128])
    assert list(sparse_points(apart, 2)) == [8, 16, 32, 40, 128]
    assert list(sparse_points(apart, 1)) == [8, 16, 24, 32, 40, 128]
    inner = spread(20, 130, 16)
    assert (inner[0], inner[-1]) == (20, 130)
    assert all(size % 16 == 0 for size in inner[1:-1])


def test_roughness_is_the_error_of_leaving_a_point_out() -> None:
    grid = (np.array([0, 1, 2]),)
    assert roughness(grid, np.array([1.0, 2.0, 3.0])) == pytest.approx(0)
    assert roughness(grid, np.array([1.0, 4.0, 3.0])) == pytest.approx(0.5)


def test_macs_of_fallback_kernels() -> None:
    a, b = TensorSpec((2, 3, 4)), TensorSpec((2, 4, 5))
    attrs = (
        ("args", '{"args": [{"input": 0}, {"input": 1}], "kwargs": {}}'),
        ("target", "aten.bmm.default"),
    )
    assert macs(Workload("aten", (a, b), TensorSpec((2, 3, 5)), attrs=attrs)) == 2 * 3 * 4 * 5
    assert macs(Workload("elementwise", (a,), a)) == 0
