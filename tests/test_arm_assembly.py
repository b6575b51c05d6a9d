"""What the compiler makes of the rules for Arm: multiply-adds by lane, nothing spilled."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import arm_kernels
from benchmarks.arm_kernels import assembly_of
from benchmarks.machine_code import Loop, analyse, analyser, hot_loop, innermost_loops, peak
from hwprune.dtype import in_dtype
from hwprune.errors import ToolchainError
from hwprune.lower.cpu import winograd
from hwprune.lower.spec import TensorSpec
from hwprune.target import load_target
from tests.test_lower_assembly import CASES

# A case, and the multiply-adds that its loop has at least: a step of a register tile.
LEAST = {
    "3x3@56": 48, "3x3-stride": 48, "1x1@14": 48, "1x1@7": 48, "1x1-narrow": 48,
    "first-3x3": 32, "first-7x7": 32, "expand-3x3": 48, "depthwise-3x3": 16, "depthwise-5x5": 25,
}  # fmt: skip
DEPTHWISE = ("depthwise-3x3", "depthwise-5x5")
BY_LANE = tuple(c for c in LEAST if c not in DEPTHWISE)
IN_ORDER = ("3x3-stride", "1x1@14", "expand-3x3", "depthwise-3x3")
KERNELS = [("cortex-a72", c) for c in LEAST] + [("cortex-a53", c) for c in IN_ORDER]
HALVES = [("cortex-a76", "3x3-stride"), ("cortex-a76", "depthwise-3x3"), ("cortex-a55", "1x1@14")]
_texts: dict[tuple[str, str], str] = {}


def assembly(core: str, case: str) -> str:
    """The assembly of a case; 3x3 convolutions by the direct rule."""
    if (core, case) not in _texts:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(winograd, "applies", lambda _: False)
            _texts[core, case] = assembly_of(CASES[case][0], load_target(core))
    return _texts[core, case]


@pytest.mark.parametrize(("core", "case"), KERNELS)
def test_the_hot_loop_is_multiply_adds_by_lane(core: str, case: str) -> None:
    loop = hot_loop(assembly(core, case))
    assert len(loop.multiply_adds) >= LEAST[case]
    assert all(".4s" in line for line in loop.multiply_adds), "less than whole vectors"
    assert loop.scalar == ()
    assert loop.having(r"^fmul\s+v") == (), "products that were not fused with their sum"
    assert loop.having(r"^bl\b") == (), "calls"
    if case in BY_LANE:  # but for single broadcasts that LLVM makes where a load comes anyway
        by_lane = loop.having(r"^fmla\s+v.*\.s\[\d\]$")
        assert len(by_lane) >= 0.75 * len(loop.multiply_adds)
        assert len(loop.having(r"^(dup|ld1r)\b")) <= 2


@pytest.mark.parametrize(("core", "case"), KERNELS)
def test_the_hot_loop_does_not_spill(core: str, case: str) -> None:
    spills = hot_loop(assembly(core, case)).spills
    assert len(spills) <= (1 if case in DEPTHWISE else 0), spills


@pytest.mark.parametrize(("core", "case"), HALVES)
def test_in_float16_eight_products_at_a_time(core: str, case: str) -> None:
    work, target = CASES[case][0], in_dtype(load_target(core), "float16")
    inputs, params = (tuple(map(_half, specs)) for specs in (work.inputs, work.params))
    work = replace(work, inputs=inputs, params=params, output=_half(work.output))
    loop = hot_loop(assembly_of(work, target))
    assert len(loop.multiply_adds) >= LEAST[case]
    assert all(".8h" in line for line in loop.multiply_adds)
    assert loop.scalar == loop.spills == loop.having(r"^(fmul|fcvt)") == ()
    if case not in DEPTHWISE:
        assert loop.multiply_adds == loop.having(r"^fmla\s+v.*\.h\[\d\]$")
        assert loop.having(r"^(dup|ld1r)\b") == ()


def _half(spec: TensorSpec) -> TensorSpec:
    return replace(spec, dtype="float16")


@pytest.mark.parametrize("case", ["1x1@14", "1x1@7", "1x1-narrow"])
def test_nothing_is_allocated(case: str) -> None:
    assert "AllocWorkspace" not in assembly("cortex-a72", case)


def test_threads_count_with_one_atomic_instruction() -> None:
    workload = CASES["1x1@14"][0]
    old = assembly_of(workload, load_target("cortex-a72"), threads=2)
    new = assembly_of(workload, load_target("cortex-a76"), threads=2)
    assert "ldxr" in old  # the exclusive pair, in a loop
    assert "ldadd" in new
    assert "__aarch64_ldadd" not in old + new  # no call of a library's
    assert len(hot_loop(old).multiply_adds) >= LEAST["1x1@14"]


@pytest.mark.parametrize("case", ["3x3-stride", "1x1@14", "1x1-narrow"])
def test_the_model_of_the_core_says_ninety_per_cent(case: str) -> None:
    try:
        analyser()
    except ToolchainError as error:
        pytest.skip(str(error))
    loop = hot_loop(assembly("cortex-a72", case))
    cycles = analyse(loop, "cortex-a72").cycles
    assert len(loop.multiply_adds) / cycles / peak("cortex-a72") >= 0.9


TEXT = """
first:
	add	x29, sp, #32
.LBB0_1:
\tldr\tq0, [sp, #16]
\tldp\tx1, x2, [sp]
\tfmla\tv1.4s, v0.4s, v2.s[1]  // a comment
\tstr\td3, [x29, #-16]
\tsubs\tx3, x3, #1
\tb.ne\t.LBB0_1
.LBB0_2:
\tfmadd\ts0, s1, s2, s3
\tcbnz\tw4, .LBB0_2
\tb\t.LBB0_9
.LBB0_9:
\tret
second:
.LBB1_1:
.LBB1_2:
	ldr	q0, [x29]
\tfmla\tv1.4s, v0.4s, v2.4s
\tfmla\tv3.4s, v0.4s, v2.4s
\ttbz\tw1, #0, .LBB1_2
\tb\t.LBB1_1
"""


def test_loops_and_spills_are_found() -> None:
    first, second, third = innermost_loops(TEXT)
    assert first.multiply_adds == ("fmla\tv1.4s, v0.4s, v2.s[1]",)
    assert [line.split()[0] for line in first.spills] == ["ldr", "str"]
    assert (second.scalar, second.spills) == (("fmadd\ts0, s1, s2, s3",), ())
    assert (len(third.multiply_adds), third.spills) == (2, ())  # no frame: x29 is like any other
    assert hot_loop(TEXT) == third  # two of four lines, where the first has one of six
    assert hot_loop("") == Loop(())


def test_cycles_by_what_a_core_starts() -> None:
    small, big = (load_target(name).core for name in ("cortex-a53", "cortex-a76"))
    assert small is not None
    assert big is not None
    lines = (
        "ldp q0, q1, [x1]",
        "ldr s2, [x2]",
        "ld1 { v3.4s }, [x3]",
        ".Ltmp",
        "fmla v4.4s, v0.4s",
    )
    assert Loop(lines).load_cycles(small) == 3 / 0.5 + 1
    assert Loop(lines).load_cycles(big) == 3 / 2 + 1 / 2
    assert Loop(lines).core_cycles(big) == 2
    assert Loop(lines[-1:] * 8).core_cycles(big) == 4  # multiply-adds
    assert Loop(("add x1, x1, x2",) * 8).core_cycles(big) == 2  # instructions


def test_the_expansion_of_an_inverted_residual_is_as_good() -> None:
    loops = innermost_loops(assembly("cortex-a72", "expand-3x3"))
    by_lane = [x for x in loops if len(x.having(r"^fmla\s+v.*\.s\[\d\]$")) >= 48]
    assert by_lane
    assert [x.spills for x in by_lane] == [()] * len(by_lane)


@pytest.mark.parametrize("core", ["cortex-a72", "cortex-a53"])
def test_a_row_of_the_benchmark_gives_its_reason(core: str) -> None:
    try:
        analyser()
    except ToolchainError as error:
        pytest.skip(str(error))
    made = arm_kernels.row("net", "conv", CASES["1x1@14"][0], core)
    assert 0 < made["share"] <= made["unit_share"] <= 1
    assert (made["share"] < arm_kernels.GOAL) == bool(made["reason"])
    assert (made["rule"], made["kind"], made["spills"]) == ("cpu.conv2d_1x1", "1x1", 0)
    line = arm_kernels.summary([made, made | {"share": 0.3, "spills": 2}])
    assert [row[:4] + row[-1:] for row in line] == [[core, "1x1", "2", "0.30", "1"]]


def test_a_missing_analyser_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolchainError, match="Debian package llvm"):
        analyser()
