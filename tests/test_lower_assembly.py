"""What the compiler makes of every rule's hot loop: multiply-adds of vectors, nothing spilled."""

from __future__ import annotations

from typing import Any

import pytest

from hwprune.lower.cpu import winograd
from hwprune.lower.spec import PLAIN, Step, Workload
from hwprune.target import load_target
from tests.assembly import Loop, assembly_of, hot_loop, innermost_loops
from tests.kernel_cases import conv, expansion, plain

BIAS_RELU = (Step("bias"), Step("relu"))
RESIDUAL = (Step("bias"), Step("add"), Step("relu"))


def linear(rows: int, depth: int, outputs: int) -> Workload:
    tensors = (plain(rows, depth),), plain(rows, outputs), (plain(outputs, depth), plain(outputs))
    return Workload("linear", *tensors, (), (Step("bias"),))


def matmul(rows: int, depth: int, columns: int) -> Workload:
    inputs = plain(6, rows, depth), plain(6, depth, columns)
    return Workload("matmul", inputs, plain(6, rows, columns))


def depthwise(channels: int, size: int, kernel: int, stride: int = 1) -> Workload:
    return conv(channels, channels, (size,) * 2, kernel, stride, groups=channels, steps=BIAS_RELU)


def expand(channels: int, wide: int, size: int, kernel: int, stride: int) -> Workload:
    return expansion(channels, wide, (size,) * 2, BIAS_RELU, kernel=kernel, stride=stride)


# Networks' own shapes: a workload, and the multiply-adds that its loop has at least on (AVX2,
# AVX-512), which is one step of the smallest register tile that hides their latency.
CASES: dict[str, tuple[Workload, tuple[int, int]]] = {
    "3x3@56": (conv(64, 64, (56, 56), steps=BIAS_RELU), (32, 64)),
    "3x3@28": (conv(128, 128, (28, 28), steps=RESIDUAL), (32, 64)),
    "3x3@14": (conv(256, 256, (14, 14), steps=BIAS_RELU), (32, 64)),
    "3x3@7": (conv(512, 512, (7, 7), steps=RESIDUAL), (32, 64)),
    "3x3-stride": (conv(64, 128, (56, 56), stride=2, steps=BIAS_RELU), (32, 64)),
    "3x3-odd": (conv(50, 70, (14, 14), steps=BIAS_RELU), (32, 64)),
    "first-7x7": (conv(3, 64, (224,) * 2, 7, 2, layout=PLAIN, steps=BIAS_RELU), (8, 16)),
    "first-3x3": (conv(3, 32, (224,) * 2, 3, 2, layout=PLAIN, steps=BIAS_RELU), (8, 16)),
    "1x1@56": (conv(64, 256, (56, 56), kernel=1, steps=BIAS_RELU), (32, 64)),
    "1x1@14": (conv(1024, 256, (14, 14), kernel=1, steps=BIAS_RELU), (32, 64)),
    "1x1@7": (conv(320, 1280, (7, 7), kernel=1, steps=BIAS_RELU), (32, 64)),
    "1x1-narrow": (conv(24, 144, (56, 56), kernel=1, steps=BIAS_RELU), (32, 64)),
    "1x1-stride": (conv(256, 512, (56, 56), 1, 2, steps=BIAS_RELU), (32, 64)),
    "grouped": (conv(128, 128, (28, 28), groups=32, steps=BIAS_RELU), (32, 64)),
    "grouped-1x1": (conv(120, 240, (14, 14), 1, groups=3, steps=BIAS_RELU), (32, 64)),
    "depthwise-3x3": (depthwise(96, 56, 3), (9, 24)),
    "depthwise-stride": (depthwise(96, 112, 3, 2), (9, 24)),
    "depthwise-5x5": (depthwise(240, 14, 5), (10, 25)),
    "depthwise-7x7": (depthwise(96, 14, 7), (14, 28)),
    "expand-3x3": (expand(16, 96, 112, 3, 2), (32, 64)),
    "expand-5x5": (expand(40, 240, 28, 5, 1), (32, 64)),
    "expand-odd": (expand(13, 50, 33, 3, 1), (32, 64)),
    "linear-row": (linear(1, 512, 1000), (8, 8)),
    "linear-rows": (linear(197, 384, 1536), (8, 16)),
    "linear-tail": (linear(7, 100, 43), (8, 16)),
    "matmul": (matmul(197, 64, 197), (8, 16)),
}  # fmt: skip
TARGETS = {"x86-64-v3": ("ymm", 0), "x86-64-v4": ("zmm", 1)}
# What is known to spill, and why. Strict: an entry must go when its kernel no longer does.
SPILLS = {
    "x86-64-v3": {
        "grouped": "LLVM loads four weights ahead",
        "grouped-1x1": "twelve accumulators, and LLVM loads four weights ahead",
    },
    "x86-64-v4": {},
}  # fmt: skip


def parameters(spills: bool) -> list[Any]:
    """Every case on every target, those expected to fail marked with the reason."""
    made = []
    for target in TARGETS:
        for case in CASES:
            marks, at = [], (target, case)
            if spills and case in SPILLS[target]:
                wanted = {"raises": AssertionError, "reason": SPILLS[target][case]}
                marks.append(pytest.mark.xfail(strict=True, **wanted))
            made.append(pytest.param(*at, marks=marks, id=f"{case}-{target}"))
    return made


_loops: dict[tuple[str, str], Loop] = {}


def loop_of(target: str, case: str) -> Loop:
    """The hot loop of a case; 3x3 convolutions by the direct rule."""
    if (target, case) not in _loops:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(winograd, "applies", lambda _: False)
            _loops[target, case] = hot_loop(assembly_of(CASES[case][0], load_target(target)))
    return _loops[target, case]


@pytest.mark.parametrize(("target", "case"), parameters(spills=False))
def test_the_hot_loop_is_fused_multiply_adds_of_whole_vectors(target: str, case: str) -> None:
    register, column = TARGETS[target]
    loop = loop_of(target, case)
    whole = [line for line in loop.multiply_adds if line.split()[0].endswith("ps")]
    assert len(whole) >= CASES[case][1][column]
    assert all(register in line for line in whole)
    assert loop.multiply_adds == whole, "scalar multiply-adds"
    assert not loop.having(r"^v(mul|add|sub)[ps]s\b"), "products that were not fused with their sum"
    assert not loop.having(r"^call"), "calls"


@pytest.mark.parametrize(("target", "case"), parameters(spills=True))
def test_the_hot_loop_does_not_spill(target: str, case: str) -> None:
    assert loop_of(target, case).spills == []


@pytest.mark.parametrize(("case", "least"), [("1x1@56", 2), ("1x1-stride", 2), ("3x3@56", 0)])
def test_inputs_of_the_next_tile_are_fetched(case: str, least: int) -> None:
    """Six pixels of a vector of channels, in the four steps that such a vector has."""
    fetched = loop_of("x86-64-v4", case).having(r"^prefetch")
    assert len(fetched) == least, fetched


@pytest.mark.parametrize("case", ["1x1@14", "depthwise-3x3", "linear-rows"])
def test_the_loop_of_a_thread_is_as_good(case: str) -> None:
    loop = hot_loop(assembly_of(CASES[case][0], load_target("x86-64-v4"), threads=2))
    assert len(loop.multiply_adds) >= CASES[case][1][1]
    assert loop.spills == []


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", ["1x1@14", "1x1@7", "3x3@7", "3x3-stride", "linear-row", "matmul"])
def test_sums_stay_in_registers(case: str, threads: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "applies", lambda _: False)
        assembly = assembly_of(CASES[case][0], load_target("x86-64-v4"), threads)
    assert not hot_loop(assembly).having(r"^vmov\w+\s+%zmm\d+, .*\("), "stored in the hot loop"
    if case.startswith(("1x1", "linear")):  # others copy a border, or pack an operand
        assert "AllocWorkspace" not in assembly


@pytest.mark.parametrize("case", ["3x3@56", "3x3@28"])
def test_the_products_of_winograd_do_not_spill(case: str) -> None:
    loops = innermost_loops(assembly_of(CASES[case][0], load_target("x86-64-v4")))
    loop = max(loops, key=lambda loop: len(loop.multiply_adds) / len(loop.lines))
    assert len(loop.multiply_adds) >= 48  # not a transform: most of it multiplies and adds
    assert all("zmm" in line for line in loop.multiply_adds)
    assert loop.spills == []


@pytest.mark.parametrize(("kernel", "least"), [(3, 24), (5, 25)])
def test_the_depthwise_loop_of_an_expansion_is_as_good(kernel: int, least: int) -> None:
    loops = innermost_loops(assembly_of(expand(24, 96, 56, kernel, 1), load_target("x86-64-v4")))
    hot = [loop for loop in loops if len(loop.multiply_adds) >= least]
    reads = [loop for loop in hot if not loop.having(r"vbroadcastss|1to16")]
    assert len(reads) >= 1, "only the expansion broadcasts its inputs"
    assert [loop.spills for loop in hot] == [[]] * len(hot)


TEXT = """
framed:
\tmovq\t%rsp, %rbp
.LBB0_1:
.LBB0_2:
\tvmovaps\t-64(%rbp), %ymm0
\tvfmadd231ps\t(%rax), %ymm0, %ymm1
\tjne\t.LBB0_2
\tjne\t.LBB0_1
plain:
.LBB1_1:
\tvfmadd213ss\t(%rbp,%rax), %xmm0, %xmm1
\tvmovups\t%ymm3, 32(%rsp)
\tmovq\t8(%rsp), %rax
\tvfmadd231ps\t(%rsp), %ymm0, %ymm1
\tjb\t.LBB1_1
\tjmp\t.LBB1_3
.LBB1_3:
\tretq
"""


def test_loops_and_spills_are_found_in_assembly() -> None:
    first, second = innermost_loops(TEXT)
    assert (len(first.lines), first.framed, len(first.spills)) == (4, True, 1)
    assert (len(second.lines), second.framed) == (6, False)
    assert [line.split()[0] for line in second.spills] == ["vmovups", "vfmadd231ps"]
    assert hot_loop(TEXT) == second
    assert len(second.multiply_adds) == 2
