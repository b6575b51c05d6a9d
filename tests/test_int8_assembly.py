"""What the compiler makes of the int8 rules: dot products in the inner loop, nothing spilled."""

from __future__ import annotations

import re

import pytest

from benchmarks.machine_code import innermost_loops as arm_loops
from hwprune.lower.cpu.context import Context
from hwprune.lower.int8.machine import machine_of
from hwprune.lower.int8.rules import code_for
from hwprune.lower.kernels import tvm_target
from hwprune.target import Target, load_target
from hwprune.tvm_runtime import compiling, load_tvm
from tests.assembly import innermost_loops as x86_loops
from tests.int8_helpers import x86_targets
from tests.test_mcu_kernels import Bench

X86 = x86_targets()
SHAPES = {
    "3x3": {"size": (14, 14, 64), "outputs": 64, "kernel": (3, 3), "pads": (1, 1, 1, 1)},
    "1x1": {"size": (14, 14, 128), "outputs": 128, "kernel": (1, 1)},
    "stem": {"size": (64, 64, 3), "outputs": 64, "kernel": (7, 7), "stride": (2, 2)},
}
DEPTHWISE = {"size": (28, 28, 96), "outputs": 96, "kernel": (3, 3), "groups": 96}
# The instructions of a step, how many there are at least, and what does the same less well.
X86_UNITS = {"vpdpbusd": (12, r"vpmadd|vpmulld"), "vpmaddwd": (10, r"vpmulld|vpdp")}
ARM_UNITS = {"sdot": (48, r"smlal|mul\b"), "smlal": (56, r"\bmul\b|sdot")}


def assembly(target: Target, shape: dict) -> str:
    """The assembly of a convolution."""
    bench = Bench(0)
    bench.conv(**shape)
    x, y = bench.tensors
    machine, context = machine_of(target), Context.of(target, 1)
    func = code_for(bench.operators[0], [x], y, machine, context).func
    with tvm_target(target), compiling():
        module = load_tvm().IRModule({"k": func.with_attr("global_symbol", "k")})
        return str(load_tvm().compile(module, target=tvm_target(target)).mod.inspect_source("s"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", X86)
def test_x86(name: str, shape: str) -> None:
    unit = machine_of(X86[name]).unit
    least, others = X86_UNITS[unit]
    text = assembly(X86[name], SHAPES[shape])
    found = [(loop, len(loop.having(rf"^{unit}\b"))) for loop in x86_loops(text)]
    loops = [loop for loop, products in found if 8 * products > len(loop.lines)]  # not a whole tile
    hot = max(loops, key=lambda loop: len(loop.having(rf"^{unit}\b")))
    assert len(hot.having(rf"^{unit}\b")) >= least
    assert [loop.spills for loop in loops] == [[]] * len(loops)
    assert [loop.having(others) for loop in loops] == [[]] * len(loops)
    register = "zmm" if machine_of(X86[name]).lanes == 16 else "ymm"
    assert all(register in line for line in hot.having(rf"^{unit}\b"))


@pytest.mark.parametrize("shape", ["3x3", "1x1"])
@pytest.mark.parametrize("core", ["cortex-a72", "cortex-a76", "neoverse-n1"])
def test_arm(core: str, shape: str) -> None:
    target = load_target(core)
    unit = machine_of(target).unit
    least, others = ARM_UNITS[unit]
    loops = [x for x in arm_loops(assembly(target, SHAPES[shape])) if x.having(rf"^{unit}2?\b")]
    hot = max(loops, key=lambda loop: len(loop.having(rf"^{unit}2?\b")))
    products = hot.having(rf"^{unit}2?\b")
    assert len(products) >= least
    assert hot.having(others) == ()
    assert hot.spills == ()
    if unit == "sdot":  # a lane of what is held, no broadcasts
        assert all(re.search(r"\.4b\[\d\]", line) for line in products)
        assert hot.having(r"^(dup|ld1r)\b") == ()


@pytest.mark.parametrize("name", X86)
def test_depthwise_multiplies_pairs(name: str) -> None:
    unit = "vpdpwssd" if machine_of(X86[name]).unit == "vpdpbusd" else "vpmaddwd"
    loops = x86_loops(assembly(X86[name], DEPTHWISE))
    hot = max(loops, key=lambda loop: len(loop.having(rf"^{unit}\b")))
    assert len(hot.having(rf"^{unit}\b")) >= 18
    assert hot.having("vpmulld") == []
