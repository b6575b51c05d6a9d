"""Every schedule rule against float64, on AVX2 and AVX-512, one and two threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprune.lower.cpu import schedule, tiles, winograd
from hwprune.lower.spec import PLAIN, Step, Workload
from hwprune.target import load_target
from tests.kernel_cases import conv, packed, plain, relative_error, runnable

S = Step
POOL = (("kernel", (3, 3)), ("padding", (1, 1, 1, 1)), ("stride", (2, 2)))
CASES = {
    "3x3": conv(24, 40, (9, 14), steps=(S("bias"), S("relu"))),
    "3x3-odd": conv(13, 40, (13, 13), steps=(S("bias"), S("add"), S("silu"))),
    "3x3-stride": conv(
        16, 24, (14, 14), stride=2, padding=(0, 0, 1, 1), steps=(S("clamp", (0, 6)),)
    ),
    "3x3-dilated": conv(20, 17, (12, 9), dilation=2, steps=(S("affine"), S("hardswish"))),
    "5x5": conv(8, 16, (7, 7), kernel=5, steps=(S("leaky_relu", (0.1,)),)),
    "1x1": conv(24, 144, (7, 7), kernel=1, steps=(S("bias"), S("gelu"))),
    "1x1-tail": conv(40, 13, (5, 11), kernel=1, steps=(S("prelu"),)),
    "1x1-stride": conv(32, 48, (8, 8), kernel=1, stride=2),
    "first": conv(3, 32, (17, 20), stride=2, layout=PLAIN, steps=(S("bias"), S("tanh"))),
    "grouped": conv(32, 64, (6, 6), groups=8, steps=(S("elu", (1.0,)),)),
    "grouped-odd": conv(24, 36, (7, 7), groups=3, steps=(S("mul"), S("sigmoid"))),
    "depthwise": conv(40, 40, (14, 13), groups=40, steps=(S("bias"), S("clamp", (0, 6)))),
    "depthwise-stride": conv(24, 24, (15, 15), groups=24, stride=2),
    "depthwise-5": conv(17, 17, (9, 40), kernel=5, groups=17, steps=(S("hardsigmoid"),)),
    "depthwise-dilated": conv(16, 16, (9, 9), groups=16, dilation=2),
    "linear": Workload(
        "linear", (plain(1, 70),), plain(1, 43), (plain(43, 70), plain(43)), (), (S("bias"),)
    ),
    "linear-rows": Workload(
        "linear",
        (plain(2, 5, 30), plain(2, 5, 70)),
        plain(2, 5, 70),
        (plain(70, 30), plain(70)),
        (),
        (S("bias"), S("add"), S("gelu_tanh")),
    ),
    "matmul": Workload("matmul", (plain(3, 4, 21, 30), plain(3, 4, 30, 32)), plain(3, 4, 21, 32)),
    "matmul-tail": Workload("matmul", (plain(1, 50, 33), plain(1, 33, 43)), plain(1, 50, 43)),
    "matmul-row": Workload("matmul", (plain(1, 70), plain(70, 150)), plain(1, 150)),
    "max_pool": Workload(
        "max_pool2d",
        (packed(1, 40, 13, 13),),
        packed(1, 40, 7, 7),
        (),
        (("dilation", (1, 1)), *POOL),
    ),
    "avg_pool": Workload(
        "avg_pool2d",
        (packed(1, 24, 13, 13),),
        packed(1, 24, 7, 7),
        (),
        (("count_include_pad", False), ("divisor", None), *POOL),
    ),
    "global-flat": Workload("global_avg_pool", (packed(2, 41, 7, 7),), plain(2, 41)),
    "global": Workload("global_avg_pool", (packed(1, 41, 7, 7),), packed(1, 41, 1, 1)),
    "gate": Workload(
        "elementwise",
        (packed(1, 24, 9, 9), packed(1, 24, 1, 1)),
        packed(1, 24, 9, 9),
        (),
        (),
        (S("mul"),),
    ),
    "affine": Workload(
        "elementwise",
        (packed(1, 24, 5, 5),),
        packed(1, 24, 5, 5),
        (plain(24), plain(24)),
        (),
        (S("affine"), S("relu")),
    ),
    "plain": Workload(
        "elementwise", (plain(3, 41), plain(3, 41)), plain(3, 41), (), (), (S("add"), S("sigmoid"))
    ),
    "concat": Workload(
        "concat",
        (packed(1, 32, 5, 5), packed(1, 13, 5, 5), packed(1, 20, 5, 5)),
        packed(1, 65, 5, 5),
        (),
        (("axis", 1),),
    ),
    "slice": Workload(
        "slice",
        (packed(1, 65, 5, 5),),
        packed(1, 30, 5, 5),
        (),
        (("axis", 1), ("start", 32), ("step", 1), ("stop", 62)),
    ),
    "slice-odd": Workload(
        "slice",
        (packed(1, 65, 5, 5),),
        packed(1, 20, 5, 5),
        (),
        (("axis", 1), ("start", 5), ("step", 3), ("stop", 65)),
    ),
    "pack": Workload("layout", (plain(1, 13, 5, 5),), packed(1, 13, 5, 5)),
    "unpack": Workload("layout", (packed(1, 13, 5, 5),), plain(1, 13, 5, 5)),
}


@pytest.fixture(scope="module", autouse=True)
def directly() -> Iterator[None]:
    """Convolutions by the direct rules: Winograd's have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "applies", lambda _: False)
        yield


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("case", CASES)
def test_rule_matches_float64(case: str, name: str, threads: int) -> None:
    assert relative_error(CASES[case], runnable(name), threads) < 2e-6


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    channels=st.integers(1, 40),
    outputs=st.integers(1, 40),
    size=st.tuples(st.integers(3, 16), st.integers(3, 16)),
    kernel=st.sampled_from([1, 3]),
    stride=st.integers(1, 2),
    op=st.sampled_from(["relu", "hardswish", "sigmoid"]),
)
def test_any_convolution(channels, outputs, size, kernel, stride, op) -> None:
    workload = conv(channels, outputs, size, kernel, stride, steps=(S("bias"), S(op)))
    assert relative_error(workload, runnable("x86-64-v3"), 1) < 2e-6


def test_the_same_workload_gives_the_same_code() -> None:
    target = load_target("x86-64-v4")
    texts = {schedule(CASES["3x3"], target, 1).func.script() for _ in range(2)}
    assert len(texts) == 1


def test_tiles_cover_every_position_once() -> None:
    for extent in range(1, 60):
        for size in (1, 3, 7, 14, 28):
            found = [
                s.start + i * s.size + j
                for s in tiles.segments(extent, size)
                for i in range(s.count)
                for j in range(s.size)
            ]
            assert found == list(range(extent))


def test_tiles_stay_within_the_registers() -> None:
    for registers in (16, 32):
        for rows, cols, blocks in ((7, 7, 32), (1, 3136, 4), (56, 56, 1), (1, 1, 1), (3, 5, 7)):
            tile = tiles.choose(rows, cols, blocks, registers, one_row=rows == 1)
            assert tiles.fits(tile, registers)
