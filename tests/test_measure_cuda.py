"""Timing kernels on a GPU, by a driver that counts instead of running; what can be wrong."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from hwprune import measure_cuda
from hwprune.cuda_driver import Driver
from hwprune.cuda_errors import cuda_error, explained, too_old
from hwprune.dtype import in_dtype
from hwprune.errors import HwpruneError, LoweringError, TargetError
from hwprune.lower.spec import Kernel, Workload
from hwprune.measure_cuda import measure_gpu, open_gpu, parse_release
from hwprune.nvcc import Cubin
from hwprune.pipeline import prune
from hwprune.profiling import profile
from hwprune.remote.address import read_boards
from hwprune.report import facts
from hwprune.target import Target, load_target
from tests.fake_gpu import make_driver
from tests.small_net import small_net
from tests.test_measure import held
from tests.test_predict_gpu import conv

Open = Callable[[], Driver]
MADE: dict[tuple[Workload, ...], tuple[str, bytes]] = {}  # the same kernels are compiled once


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_driver(tmp_path_factory.mktemp("cuda"), "libfake.so")


@pytest.fixture
def fake(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """That driver; what nvcc would make is the source, in which the kernels' names are."""
    monkeypatch.setenv("HWPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measure_cuda, "toolkit_version", lambda: (13, 0))
    monkeypatch.setattr(measure_cuda, "compile_cubin", lambda source, _: Cubin(source.encode(), {}))
    real = measure_cuda.compiled

    def once(kernels: Sequence[Kernel], target: Target) -> tuple[str, bytes]:
        key = tuple(kernel.workload for kernel in kernels)
        if key not in MADE:
            MADE[key] = real(kernels, target)
        return MADE[key]

    monkeypatch.setattr(measure_cuda, "compiled", once)
    return partial(Driver, str(library))


@pytest.fixture
def h200() -> Target:
    return in_dtype(load_target("nvidia-h200"), "float16")


def kernels() -> list[Workload]:
    return [conv(64, 8, 14, 1), conv(64, 128, 14, 1), conv(16, 32, 14)]


def test_kernels_are_timed_and_kept(fake: Open, h200: Target) -> None:
    seen: list[tuple[int, int]] = []
    with open_gpu(h200, fake) as gpu:
        done = measure_gpu(gpu, kernels(), lambda *counts: seen.append(counts))
        rows = [gpu.table.get(work, 1) for work in kernels()]
    assert (done.measured, done.reused, done.failed) == (3, 0, ())
    assert seen[-1] == (3, 3)
    for row in rows:
        assert row is not None
        assert row.source == "device"
        assert "NVIDIA Fake" in row.versions
        assert 10 < row.p10_us <= row.median_us <= row.p90_us < 500
        assert row.repeats >= 11 * 10
    with open_gpu(h200, fake) as gpu:
        again = measure_gpu(gpu, [*kernels(), conv(32, 32, 14)])
    assert (again.measured, again.reused) == (1, 3)


def test_one_process_at_a_time_measures(
    fake: Open, h200: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = Driver.start, list[bool]()
    with open_gpu(h200, fake) as gpu:

        def start(*given: object) -> object:
            seen.append(held(gpu.table))
            return real(*given)  # type: ignore[arg-type]

        monkeypatch.setattr(Driver, "start", start)
        measure_gpu(gpu, kernels())
        assert seen == [True] * 3
        assert not held(gpu.table)


def test_a_kernel_that_breaks_costs_only_itself(
    fake: Open, h200: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CUDA_CRASH", "k1_kernel")
    with open_gpu(h200, fake) as gpu:
        done = measure_gpu(gpu, kernels())
        broken = gpu.table.get(kernels()[1], 1)
    assert done.failed == (kernels()[1],)
    assert done.measured == 3
    assert broken is not None
    assert "ILLEGAL_ADDRESS" in broken.failure


def test_a_gpu_that_a_crash_takes_from_the_process_is_said_and_nothing_is_lost(
    fake: Open, h200: Target, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA may want a new process after a crash: another run goes on behind the kernel."""
    monkeypatch.setenv("FAKE_CUDA_CRASH", "k1_kernel")
    monkeypatch.setenv("FAKE_CUDA_LOST", "1")
    with open_gpu(h200, fake) as gpu:
        with pytest.raises(TargetError, match=r"lost to this process.*run it again to go on"):
            measure_gpu(gpu, kernels())
        rows = [gpu.table.get(work, 1) for work in kernels()]
    assert rows[0] is not None
    assert not rows[0].failure
    assert rows[1] is not None
    assert "ILLEGAL_ADDRESS" in rows[1].failure
    assert rows[2] is None
    monkeypatch.delenv("FAKE_CUDA_LOST")
    ctypes.CDLL(str(library)).cuDevicePrimaryCtxReset_v2(0)  # as a new process begins
    monkeypatch.delenv("FAKE_CUDA_CRASH")
    with open_gpu(h200, fake) as gpu:
        again = measure_gpu(gpu, kernels())
    assert (again.measured, again.reused) == (1, 2)


def test_the_context_is_left_to_others_in_the_process(fake: Open, library: Path) -> None:
    """TVM and PyTorch use the same one: it is released, not reset, and nothing stays in it."""
    cuda = ctypes.CDLL(str(library))
    used = ctypes.c_size_t.in_dll(cuda, "fake_used")
    holders = ctypes.c_int.in_dll(cuda, "fake_retained")
    with fake() as others:
        others.allocate(1000, b"12")
        with fake() as driver:
            driver.allocate(500, b"12")
            assert (used.value, holders.value) == (1500, 2)
        assert (used.value, holders.value) == (1000, 1)
    assert (used.value, holders.value) == (0, 0)


def test_a_kernel_that_does_not_compile_costs_only_itself(
    fake: Open, h200: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = measure_cuda.kernel_for

    def refuse(workload: Workload, *rest: object) -> object:
        if workload == kernels()[2]:
            raise LoweringError("nvcc cannot compile a kernel: too many registers")
        return real(workload, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(measure_cuda, "kernel_for", refuse)
    with open_gpu(h200, fake) as gpu:
        done = measure_gpu(gpu, kernels())
        row = gpu.table.get(kernels()[2], 1)
    assert done.failed == (kernels()[2],)
    assert row is not None
    assert "too many registers" in row.failure


def test_memory_that_is_full_suggests_a_smaller_batch(fake: Open, h200: Target) -> None:
    with open_gpu(h200, fake) as gpu, pytest.raises(TargetError) as caught:
        measure_gpu(gpu, [conv(64, 64, 224, batch=256)])
    assert "out of memory" in str(caught.value)
    assert "1568 MiB more" in str(caught.value)
    assert "smaller --batch" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("FAKE_CUDA_INIT", "100", "finds no GPU"),
        ("FAKE_CUDA_INIT", "34", "the toolkit's stub"),
        ("FAKE_CUDA_VERSION", "12040", r"knows CUDA 12\.4.*compiled by CUDA 13\.0.*newer driver"),
        ("FAKE_CUDA_SM", "80", r"is for sm_90, this GPU .* is sm_80 \(choose nvidia-a100\)"),
        ("FAKE_CUDA_SM", "75", "copy a target"),
    ],
)
def test_the_wrong_gpu_is_one_message(
    fake: Open, h200: Target, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(TargetError, match=said), open_gpu(h200, fake):
        pass


def test_without_a_driver_there_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TargetError, match=r"no NVIDIA driver.*Debian package nvidia-driver"):
        Driver("libcuda-that-is-not-there.so.1")
    missing = partial(Driver, "libcuda-that-is-not-there.so.1")
    monkeypatch.setattr("hwprune.profile_gpu.open_gpu", partial(open_gpu, driver=missing))
    with pytest.raises(TargetError, match="no NVIDIA driver"):
        profile(small_net(), (torch.zeros(1, 3, 32, 32),), target="nvidia-h200")


def test_what_cuda_says_is_explained() -> None:
    for name, said in (
        ("CUDA_ERROR_NO_BINARY_FOR_GPU", "hwprune targets"),
        ("CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "a newer driver"),
        ("CUDA_ERROR_OUT_OF_MEMORY", "a smaller --batch"),
        ("CUDA_ERROR_TOO_NEW_TO_KNOW", "says CUDA_ERROR_TOO_NEW_TO_KNOW"),
    ):
        assert said in str(cuda_error(name, "GPU"))
    for text, said in (
        ("CUDAError: cuModuleLoadData failed: CUDA_ERROR_NO_BINARY_FOR_GPU", "hwprune targets"),
        ("CUDA driver version is insufficient for CUDA runtime version", "a newer driver"),
        ("cudaMalloc failed: out of memory", "a smaller --batch"),
    ):
        found = explained(text, "model.so")
        assert found is not None
        assert said in str(found)
    assert explained("a list index is out of range", "") is None
    assert "GPU: " in str(cuda_error("CUDA_ERROR_NO_DEVICE", "GPU"))
    assert too_old(12040, (12, 8)) is None  # machine code of a generation runs on all its drivers
    assert parse_release("Cuda compilation tools, release 12.4, V12.4.131") == (12, 4)
    with pytest.raises(TargetError, match="does not say"):
        parse_release("command not found")


@pytest.mark.slow
def test_measured_kernels_price_a_network(fake: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwprune.profile_gpu.open_gpu", partial(open_gpu, driver=fake))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 128, 3, 2), nn.ReLU(), nn.Conv2d(128, 8, 1)).eval()
    given = net, (torch.zeros(4, 3, 32, 32),)
    done = profile(*given, target="nvidia-h200", dtype="float16")
    assert (done.predicted, done.failed, done.board) == (0, (), "NVIDIA Fake, level 2 not flushed")
    report = prune(*given, target="nvidia-h200", dtype="float16", latency="80%").report
    assert report["sources"]["measured"] > 0
    assert report["sources"]["modelled"] == 0
    assert "measured on a board" in report["latency_model"]
    boards = read_boards("there:9090")
    with pytest.raises(HwpruneError, match="not measured over RPC"):
        profile(*given, target="nvidia-h200", boards=boards)


@pytest.mark.slow
def test_a_width_that_does_not_compile_is_priced_as_unmeasured(
    fake: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row is kept as failed, it is reported by both commands, and the model prices it."""
    monkeypatch.setattr("hwprune.profile_gpu.open_gpu", partial(open_gpu, driver=fake))
    real, refused = measure_cuda.compiled, "nvcc cannot compile a kernel: too many registers"

    def compiled(kernels: Sequence[Kernel], target: Target) -> tuple[str, bytes]:
        if any(k.workload.output.shape[1] == 64 for k in kernels if k.workload.op == "conv2d"):
            raise LoweringError(refused)
        return real(kernels, target)

    monkeypatch.setattr(measure_cuda, "compiled", compiled)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 128, 3, 2), nn.ReLU(), nn.Conv2d(128, 8, 1)).eval()
    given = net, (torch.zeros(4, 3, 32, 32),)
    for measured in (True, False):  # a second run tries nothing again and says the same
        done = profile(*given, target="nvidia-h200", dtype="float16")
        assert (done.measured > 0) == measured
        (line,) = done.failed
        assert line == f"conv2d+bias+relu 4x3x32x32 64x3x3x3 64 -> 4x64x15x15: {refused}"
    report = prune(*given, target="nvidia-h200", dtype="float16", latency="80%").report
    assert report["sources"]["failed"] == [line.partition(":")[0]]
    assert report["sources"]["measured"] > 0  # of the other convolution
    assert report["sources"]["modelled"] > 0
    assert "1 could not be measured" in dict(facts(report))["kernel latencies"]
