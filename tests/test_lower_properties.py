"""Any shape, border, tail or epilogue: every rule computes what PyTorch does in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hwprune.errors import TargetError
from hwprune.lower.cpu import schedule, winograd
from hwprune.lower.cpu.winograd_choice import SIZES, Choice
from hwprune.lower.spec import PACKED, Workload
from hwprune.target import Target, check_runnable, load_target
from tests import kernel_strategies as make
from tests import transformer_strategies as more
from tests.kernel_cases import packed, plain, run_kernel

TARGETS = pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4"])
THREADS = st.sampled_from((1, 2))
WINOGRAD_TOLERANCE = {2: 2e-5, 4: 4e-5}  # as in test_lower_winograd.py
TOLERANCE = 2e-5  # of the largest output, or of 1 where all outputs are smaller


def runnable(name: str) -> Target:
    target = load_target(name)
    try:
        check_runnable(target)
    except TargetError as error:
        pytest.skip(str(error))
    return target


def examples(count: int) -> settings:
    """The same examples in every run, each as long as it takes."""
    slow = [HealthCheck.too_slow]
    return settings(max_examples=count, derandomize=True, deadline=None, suppress_health_check=slow)


def check(workload: Workload, target: str, threads: int) -> None:
    found, wanted = run_kernel(workload, runnable(target), threads)
    scale = max(1.0, float(np.abs(wanted).max()))
    assert np.abs(found - wanted).max() < TOLERANCE * scale


@TARGETS
@examples(14)
@given(workload=make.dense(make.windows(5)), threads=THREADS)
def test_convolution(target: str, workload: Workload, threads: int) -> None:
    check(workload, target, threads)


@TARGETS
@examples(8)
@given(workload=make.dense(st.just(make.Window())), threads=THREADS)
def test_pointwise_convolution(target: str, workload: Workload, threads: int) -> None:
    check(workload, target, threads)


@TARGETS
@examples(10)
@given(workload=make.grouped(), threads=THREADS)
def test_grouped_convolution(target: str, workload: Workload, threads: int) -> None:
    check(workload, target, threads)


@TARGETS
@examples(9)
@given(data=st.data(), threads=THREADS)
def test_depthwise_convolution(target: str, data: st.DataObject, threads: int) -> None:
    widest = 7 if target == "x86-64-v4" else 5
    check(data.draw(make.depthwise(widest)), target, threads)


@TARGETS
@examples(12)
@given(data=st.data(), threads=THREADS)
def test_expansion_and_depthwise_convolution(
    target: str, data: st.DataObject, threads: int
) -> None:
    widest = 7 if target == "x86-64-v4" else 5
    check(data.draw(make.expansions(widest)), target, threads)


@TARGETS
@examples(10)
@given(workload=make.linears(), threads=THREADS)
def test_linear(target: str, workload: Workload, threads: int) -> None:
    check(workload, target, threads)


@TARGETS
@examples(8)
@given(workload=make.matmuls(), threads=THREADS)
def test_matmul(target: str, workload: Workload, threads: int) -> None:
    check(workload, target, threads)


@TARGETS
@examples(14)
@given(workload=st.one_of(make.pools(), make.pools(), make.means()), threads=THREADS)
def test_pools(target: str, workload: Workload, threads: int) -> None:
    check(workload, target, threads)


@TARGETS
@examples(24)
@given(
    workload=st.one_of(make.concats(), make.slices(), make.shuffles(), make.layouts),
    threads=THREADS,
)
def test_movement(target: str, workload: Workload, threads: int) -> None:
    check(workload, target, threads)


@TARGETS
@examples(15)
@given(workload=make.elementwise(), threads=THREADS)
def test_elementwise(target: str, workload: Workload, threads: int) -> None:
    check(workload, target, threads)


@TARGETS
@examples(12)
@given(
    workload=st.one_of(more.norms(), more.softmaxes(), more.attentions(), more.views()),
    threads=THREADS,
)
def test_transformers(target: str, workload: Workload, threads: int) -> None:
    check(workload, target, threads)


SQUARE = make.Window((3, 3), padding=(1, 0, 1, 2))


@TARGETS
@examples(5)
@given(
    workload=make.dense(st.just(SQUARE)).filter(lambda work: work.inputs[0].layout == PACKED),
    choice=st.builds(Choice, st.sampled_from(SIZES), st.integers(1, 40), st.just(0.0)),
    threads=THREADS,
)
def test_winograd(target: str, workload: Workload, choice: Choice, threads: int) -> None:
    """Whatever the model would choose; errors are those of the interpolation points."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "choose", lambda *_: choice)
        taken = schedule(workload, runnable(target), threads)
        assert taken is not None
        assert taken.rule == "cpu.conv2d_winograd"
        found, wanted = run_kernel(workload, runnable(target), threads)
    scale = max(1.0, float(np.abs(wanted).max()))
    assert np.abs(found - wanted).max() < WINOGRAD_TOLERANCE[choice.m] * scale


def test_a_border_below_only() -> None:
    """No tap reads the last row of the bordered plane."""
    window = make.Window((2, 1), (2, 1), (1, 1), (0, 0, 1, 0))
    attrs = (("dilation", window.dilation), ("padding", window.padding), ("stride", window.stride))
    workload = Workload(
        "conv2d", (packed(1, 16, 4, 4),), packed(1, 16, 2, 4), (plain(16, 16, 2, 1),), attrs
    )
    check(workload, "x86-64-v4", 1)
