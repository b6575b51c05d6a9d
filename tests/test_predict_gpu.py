"""Prediction of GPU kernels: tiles, waves and pipes; templates; plans on the staircase."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hwprune.dtype import in_dtype
from hwprune.errors import TableError, TargetError
from hwprune.gpu import Gpu
from hwprune.lower.precision import on_gpu
from hwprune.lower.spec import NHWC, PLAIN, Step, TensorSpec, Workload
from hwprune.macs import macs
from hwprune.pipeline import prune
from hwprune.predict.calibration import TVM, Calibrated, find_model
from hwprune.predict.conv_shape import ConvShape
from hwprune.predict.device import described, device_of, works_of
from hwprune.predict.fill import predict
from hwprune.predict.gpu_described import described_gpu_model
from hwprune.predict.gpu_divided import best_tile, gpu_divided_work
from hwprune.predict.gpu_planned import gpu_planned_works
from hwprune.predict.gpu_work import GPU_TERMS, GpuWork
from hwprune.predict.model import LatencyModel, Sample, cross_validate
from hwprune.predict.own import calibrate
from hwprune.predict.work import DEPTHWISE, DIRECT, WINOGRAD
from hwprune.provenance import provenance_of
from hwprune.report import facts
from hwprune.report.summary import heading
from hwprune.table import Row
from hwprune.tables import Document, Entry, Origin
from hwprune.target import Target, load_target


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWPRUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def h200() -> Target:
    return in_dtype(load_target("nvidia-h200"), "float16")


@pytest.fixture
def tx2() -> Gpu:
    gpu = load_target("jetson-tx2").gpu
    assert gpu is not None
    return gpu


def conv(
    channels: int, out: int, size: int, kernel: int = 3, *, batch: int = 32, groups: int = 1,
    dtype: str = "float16",
) -> Workload:  # fmt: skip
    pad = kernel // 2
    return Workload(
        "conv2d",
        (TensorSpec((batch, channels, size, size), dtype, NHWC),),
        TensorSpec((batch, out, size, size), dtype, NHWC),
        (TensorSpec((out, channels // groups, kernel, kernel), dtype),),
        (("dilation", (1, 1)), ("padding", (pad,) * 4), ("stride", (1, 1))),
    )


def us(workload: Workload, target: Target) -> float:
    return predict(workload, target, 1).median_us


def shape(channels: int, out: int, size: int, kernel: int = 1, groups: int = 1) -> ConvShape:
    border = size + kernel - 1
    return ConvShape(1, channels, out, border, border, size, size, kernel, kernel, 1, groups)


def test_no_kernel_is_faster_than_the_data_sheet(h200: Target) -> None:
    gpu = h200.gpu
    assert gpu is not None
    for work in (conv(64, 64, 56), conv(256, 1024, 14, 1), conv(512, 512, 7), conv(24, 40, 9)):
        peak_us = 2 * macs(work) / gpu.tensor_flop_per_s["float16"] * 1e6
        assert us(work, h200) > peak_us + gpu.launch_us
    large = conv(1024, 4096, 64, 1, batch=64)
    peak_us = 2 * macs(large) / gpu.tensor_flop_per_s["float16"] * 1e6
    assert us(large, h200) < 4 * peak_us  # what a large product is limited by is near its rates


def test_latency_is_a_staircase_over_channels(h200: Target) -> None:
    times = np.array([us(conv(256, out, 28), h200) for out in range(8, 264, 8)])
    rises = np.diff(times) / times[:-1]
    flat = rises < 0.02
    assert 0.5 < flat.mean() < 1.0  # most steps of eight channels cost nothing
    assert rises.max() > 0.1  # and some cost much
    inner = np.array([us(conv(channels, 256, 28), h200) for channels in range(8, 136, 8)])
    assert (np.diff(inner) > -0.01 * inner[:-1]).all()
    unaligned, aligned = (us(conv(channels, 256, 28), h200) for channels in (57, 64))
    assert unaligned == pytest.approx(aligned, rel=0.01)  # a pixel has whole loads


def test_waves_are_counted_by_the_multiprocessors(h200: Target) -> None:
    gpu = h200.gpu
    assert gpu is not None
    for batch in (1, 8, 32, 256):
        (work,) = works_of(conv(256, 256, 14, batch=batch), h200, 1)
        assert isinstance(work, GpuWork)
        least = batch * 14 * 14 * 256 * 256 * 9 / gpu.sms
        rate = gpu.tensor_flop_per_s["float16"] / (2 * gpu.sms * gpu.clock_hz)
        assert work.multiply_cycles >= least / rate
    one, many = (us(conv(256, 256, 14, batch=n), h200) for n in (1, 256))
    assert 20 * one < many < 256 * one  # a small batch leaves multiprocessors idle


def test_types_have_their_rates(h200: Target) -> None:
    heavy = conv(512, 512, 28)
    whole = us(conv(512, 512, 28, dtype="float32"), load_target("nvidia-h200"))
    assert 3 * us(heavy, h200) < whole
    assert us(heavy, in_dtype(load_target("nvidia-a100"), "float16")) > us(heavy, h200)
    tf32 = us(on_gpu(conv(512, 512, 28, dtype="float32"), "tf32"), load_target("nvidia-h200"))
    assert 1.5 * us(heavy, h200) < tf32 < whole / 2  # half of float16's rate
    wide = conv(512, 512, 28, groups=512)
    moved = sum(2 * np.prod(t.physical(1)) for t in (wide.inputs[0], wide.output))
    gpu = h200.gpu
    assert gpu is not None
    assert us(wide, h200) > 1e6 * moved / gpu.l2_bytes_per_s  # depthwise: what is moved counts


def test_every_kind_of_kernel_has_a_price(h200: Target) -> None:
    image, flat = TensorSpec((8, 64, 28, 28), "float16", NHWC), TensorSpec((8, 64), "float16")
    half = TensorSpec((8, 64, 14, 14), "float16", NHWC)
    heads = TensorSpec((8, 4, 49, 32), "float16", PLAIN)
    pool = (("dilation", (1, 1)), ("kernel", (2, 2)), ("padding", (0,) * 4), ("stride", (2, 2)))
    weight = TensorSpec((1000, 64), "float16")
    found = [
        Workload("max_pool2d", (image,), half, attrs=pool),
        Workload("elementwise", (image, image), image, epilogue=(Step("add"), Step("relu"))),
        Workload("global_avg_pool", (image,), flat),
        Workload("linear", (flat,), TensorSpec((8, 1000), "float16"), (weight,)),
        Workload("softmax", (flat,), flat),
        Workload(
            "attention", (heads, heads, heads), heads, attrs=(("causal", False), ("scale", 1.0))
        ),
    ]
    times = [us(work, h200) for work in found]
    gpu = h200.gpu
    assert gpu is not None
    assert all(gpu.launch_us < time < 100 for time in times)
    assert times[0] < times[1]  # a pool reads and writes less than an addition


def test_what_a_gpu_cannot_do_is_said(h200: Target) -> None:
    with pytest.raises(TargetError, match="2 threads: a GPU uses all"):
        device_of(h200, 2)
    with pytest.raises(TargetError, match="unknown type 'float15'"):
        in_dtype(h200, "float15")
    with pytest.raises(TargetError, match="no arithmetic in float16"):
        in_dtype(load_target("cortex-a72"), "float16")
    for dtype in ("float16", "tf32"):
        with pytest.raises(TargetError, match=f"sm_62 has no tensor cores for {dtype}"):
            in_dtype(load_target("jetson-tx2"), dtype)
    for name in ("host", "cortex-a76", "cortex-m4"):
        with pytest.raises(TargetError, match=r"in tf32 \(leave it out, or choose a GPU\)"):
            in_dtype(load_target(name), "tf32")
    none = replace(h200.gpu, tensor_flop_per_s={"float16": 1e12}) if h200.gpu else None
    with pytest.raises(TargetError, match=r"no tensor cores for tf32 \(it has them for float16\)"):
        in_dtype(replace(h200, gpu=none), "tf32")
    with pytest.raises(ValueError, match=r"no \[gpu\]"):
        gpu_planned_works(conv(8, 8, 8), replace(h200, gpu=None))


def test_templates_need_divisors(tx2: Gpu) -> None:
    good, poor = (best_tile(128, (s, s), 128, (1, 1), 1, 1, tx2) for s in (16, 17))
    per_pixel = [t.shared_bytes / s**2 for t, s in ((good, 16), (poor, 17))]
    assert per_pixel[1] > 1.3 * per_pixel[0]  # rows of 17 are read one by one
    apart = best_tile(128, (16, 16), 128, (1, 1), 2, 1, tx2)
    assert apart.shared_bytes > good.shared_bytes
    assert apart.level2_bytes > good.level2_bytes
    direct = gpu_divided_work(shape(64, 64, 56, 3), DIRECT, tx2)
    winograd = gpu_divided_work(shape(64, 64, 56, 3), WINOGRAD, tx2)
    assert winograd.multiply_cycles < direct.multiply_cycles / 3
    assert winograd.memory_bytes > direct.memory_bytes
    assert winograd.launches == 3
    deep = gpu_divided_work(shape(64, 64, 56, 3, groups=64), DEPTHWISE, tx2).terms(tx2)
    assert deep.busy == deep.memory == max(deep.array()[1:5])


def test_a_known_gpu_is_found_again(tx2: Gpu) -> None:
    random = np.random.default_rng(0)
    known = LatencyModel(
        dict.fromkeys(described_gpu_model().coefficients, np.array([1.5, 0, 0.3, 0.2, 0, 2, 1.0])),
        (0.0, 0.0),
    )
    works = []
    for _ in range(80):
        channels, out = (int(8 * random.integers(1, 32)) for _ in range(2))
        works.append(gpu_divided_work(shape(channels, out, int(random.choice((7, 14, 28)))),
                                      DIRECT, tx2))  # fmt: skip
    times = known.median_us(works, tx2) * np.exp(0.01 * random.normal(size=80))
    samples = [Sample(w, t, str(i)) for i, (w, t) in enumerate(zip(works, times, strict=True))]
    left_out = cross_validate(samples, tx2, described_gpu_model(), smooth=False)
    assert np.abs(left_out / times - 1).mean() < 0.03
    blind = described_gpu_model().median_us(works, tx2)
    assert np.abs(blind / times - 1).mean() > 0.1


def test_calibrations_of_gpus_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = load_target("nvidia-a100")
    device = device_of(target, 1)
    plain = find_model(target, device)
    assert (plain.rows, plain.model.interval) == (0, (-1.0, 1.0))
    assert plain.describe().startswith("not calibrated")
    file = tmp_path / "nvidia-a100" / "model.json"
    file.parent.mkdir()
    model = replace(described(device), interval=(-0.1, 0.1))
    Calibrated(model, target.name, TVM, "a table", 99, (-0.5, 0.5)).save(file)
    assert Calibrated.load(file).terms == GPU_TERMS
    monkeypatch.setenv("HWPRUNE_TARGETS", str(tmp_path))
    found = find_model(target, device)
    assert "99 of TVM's kernels on nvidia-a100" in found.describe()
    assert found.model.interval == (-0.5, 0.5)  # of another's schedules
    file.write_text(file.read_text().replace('"busy"', '"idle"'))
    with pytest.raises(TableError, match="its terms are not multiply"):
        find_model(target, device)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 48, 3, 2, 1), nn.Conv2d(48, 160, 3, 1, 1)
        self.deep, self.last = nn.Conv2d(160, 160, 3, 1, 1, groups=160), nn.Linear(160, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x).relu()).relu()
        return self.last(self.deep(x).relu().mean((2, 3)))


@pytest.mark.slow
def test_a_plan_stands_on_the_staircase() -> None:
    torch.manual_seed(0)
    given = (torch.randn(16, 3, 64, 64),)
    result = prune(
        Net().eval(), given, target="nvidia-h200", latency="70%", dtype="float16", name="net"
    )
    report = result.report
    assert heading(report) == "net on nvidia-h200, batch 16, float16; latency predicted by a model"
    assert facts(report)[0][0] == "latency, predicted by a model"
    assert "not calibrated" in facts(report)[0][1]
    assert report["ratio"] <= 0.7
    sources = report["sources"]
    assert (sources["measured"], sources["interpolated"]) == (0, 0)  # every width has its row
    estimate = result.outcome.estimate
    assert estimate is not None
    widths = result.outcome.allocation.widths()
    spent = sum(cost.at(widths) for cost in estimate.costs)
    assert spent == pytest.approx(report["pruned"]["latency_us"], rel=1e-6)  # nothing interpolated
    for group in result.coupling.groups:  # no width is to be had beside one that costs no more
        for width in range(widths[group.name] + 8, group.width + 1, 8):
            there = sum(cost.at(widths | {group.name: width}) for cost in estimate.costs)
            assert there > spent * 1.0001


def test_rows_of_all_types_teach_the_model(h200: Target) -> None:
    """Those of float16 have a toolchain of their own, and are a GPU's most."""
    half = in_dtype(h200, "float16")
    today = provenance_of(half)
    origin = Origin("gpu-h200", today.toolchain, today.schedule)
    works = [conv(c, out, size, 1) for c in (64, 128, 256) for out in (64, 96, 160, 256)
             for size in (7, 14, 28, 56)]  # fmt: skip
    truth = {work: 3.0 * predict(work, half, 1).median_us for work in works}
    rows = [Row(work, 1, us, us, us, 9, date="2026") for work, us in truth.items()]
    found = calibrate(Document.of(h200.name, [Entry(origin, row) for row in rows]), h200)
    assert found.rows == len(works)
    device = device_of(half, 1)
    for work in (conv(96, 128, 14, 1), conv(192, 64, 28, 1)):
        median_us = float(found.model.median_us(works_of(work, half, 1), device).sum())
        assert median_us == pytest.approx(3.0 * predict(work, half, 1).median_us, rel=0.1)
