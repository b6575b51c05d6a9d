"""Winograd's convolutions: against float64, both tile sizes; where they are chosen and how."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from hwprune.lower.cpu import winograd
from hwprune.lower.cpu.emit import Context
from hwprune.lower.cpu.geometry import Geometry
from hwprune.lower.cpu.winograd_choice import CACHE_SHARE, Choice, choose
from hwprune.lower.kernels import kernel_for
from hwprune.lower.spec import PLAIN, Step, Workload
from hwprune.target import load_target
from tests.kernel_cases import conv, packed, relative_error, runnable

S = Step
# Errors grow with the interpolation points (Lavin and Gray, section 4.1; 1e-4 is the bound here).
TOLERANCE = {2: 4e-6, 4: 4e-5}
CASES = {
    "even": conv(24, 40, (16, 16), steps=(S("bias"), S("relu"))),
    "odd": conv(13, 23, (13, 11), steps=(S("bias"), S("add"), S("silu"))),
    "unpadded": conv(20, 17, (9, 14), padding=(0, 0, 0, 0), steps=(S("bias"),)),
    "one-sided": conv(16, 16, (10, 10), padding=(0, 1, 2, 1), steps=(S("clamp", (0, 6)),)),
    "small": conv(33, 48, (3, 3), steps=(S("prelu"),)),
    "many": conv(16, 80, (28, 28), steps=(S("affine"), S("mul"))),
}


@pytest.mark.parametrize(("name", "threads"), [("x86-64-v3", 2), ("x86-64-v4", 1)])
@pytest.mark.parametrize(("m", "chunk"), [(2, 7), (4, 3), (4, 100)])
@pytest.mark.parametrize("case", CASES)
def test_winograd_matches_float64(
    case: str, m: int, chunk: int, name: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "choose", lambda *_: Choice(m, chunk, 0.0))
    target = runnable(name)
    assert relative_error(CASES[case], target, threads) < TOLERANCE[m]


def test_two_images() -> None:
    one = conv(64, 64, (28, 28), steps=(S("bias"),))
    two = one.with_shapes([(2, 64, 28, 28)], (2, 64, 28, 28), [(64, 64, 3, 3), (64,)])
    target = load_target("x86-64-v3")
    assert kernel_for(two, target, 1).rule == "cpu.conv2d_winograd"
    assert relative_error(two, runnable("x86-64-v3"), 2) < TOLERANCE[4]


@pytest.mark.parametrize("channels", [16, 64, 100, 512])
@pytest.mark.parametrize("size", [14, 28, 56, 112])
def test_the_choice_is_legal(channels: int, size: int) -> None:
    context = Context.of(load_target("x86-64-v4"), 1)
    workload = conv(channels, channels, (size, size))
    choice = choose(Geometry.of(workload), context)
    if choice is None:
        return
    tiles = math.ceil(size / choice.m) ** 2
    assert 1 <= choice.chunk <= tiles
    inputs = 4 * (choice.m + 2) ** 2 * channels * choice.chunk
    assert inputs <= CACHE_SHARE * context.l2_bytes or choice.chunk <= 4


def test_large_planes_are_taken_in_large_tiles() -> None:
    context = Context.of(load_target("x86-64-v4"), 1)
    choice = choose(Geometry.of(conv(64, 64, (56, 56))), context)
    assert choice is not None
    assert choice.m == 4


@pytest.mark.parametrize(("channels", "size"), [(16, 28), (16, 14), (64, 7)])
def test_narrow_planes_pay_where_vectors_are_halved(channels: int, size: int) -> None:
    """Measured on Zen 4: 33, 8.6 and 33 us directly, 14, 5.3 and 22 by Winograd."""
    workload = conv(channels, channels, (size, size))
    wide = load_target("x86-64-v4")
    zen4 = replace(wide, tvm_target={**wide.tvm_target, "mcpu": "znver4"})
    assert choose(Geometry.of(workload), Context.of(wide, 1)) is None
    assert choose(Geometry.of(workload), Context.of(zen4, 1)) is not None


@pytest.mark.parametrize(
    "workload",
    [
        conv(64, 64, (56, 56), kernel=1),
        conv(64, 64, (56, 56), kernel=5),
        conv(64, 64, (56, 56), stride=2),
        conv(64, 64, (56, 56), dilation=2),
        conv(64, 64, (56, 56), groups=4),
        conv(3, 64, (56, 56), layout=PLAIN),
        Workload("global_avg_pool", (packed(1, 41, 7, 7),), packed(1, 41, 1, 1)),
    ],
)
def test_what_it_leaves_to_others(workload: Workload) -> None:
    assert winograd.schedule(workload, Context.of(load_target("x86-64-v4"), 1)) is None
