"""The memory plan: nothing overlaps, nothing smaller is known, in place where that is legal."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprune.lower.arena import Lifetime, place
from hwprune.lower.mcu.memory import (
    ALIGNMENT,
    aligned,
    extent,
    lower_bound,
    plan_memory,
    reuse_blocks,
)
from hwprune.lower.mcu.model import lower_to_c
from hwprune.quantize import graph as ops
from hwprune.quantize.graph import IntegerGraph, IntegerTensor
from hwprune.target import load_target
from hwprune.tvm_runtime import load_tvm

VALUES = st.lists(
    st.tuples(st.integers(1, 400), st.integers(0, 12), st.integers(0, 6)), min_size=1, max_size=14
)


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_no_plan_overlaps_and_none_is_beaten(drawn: list[tuple[int, int, int]]) -> None:
    values = [
        Lifetime(f"v{i}", aligned(size), first, first + length)
        for i, (size, first, length) in enumerate(drawn)
    ]
    plan = plan_memory(values)
    for a, b in combinations(values, 2):
        if a.meets(b):
            low, high = sorted((a, b), key=lambda v: plan.offsets[v.name])
            assert plan.offsets[low.name] + low.size <= plan.offsets[high.name]
    assert all(offset % ALIGNMENT == 0 for offset in plan.offsets.values())
    assert plan.size_bytes == extent(values, plan.offsets)
    assert lower_bound(values)[0] == plan.least_bytes <= plan.size_bytes
    assert plan.size_bytes <= extent(values, place(values))
    assert plan.size_bytes <= extent(values, reuse_blocks(values))


def test_search_finds_what_greedy_misses() -> None:
    # Greedy by size leaves a gap here that no order of time would leave.
    values = [
        Lifetime("a", 48, 0, 1),
        Lifetime("b", 40, 1, 2),
        Lifetime("c", 32, 2, 3),
        Lifetime("d", 56, 3, 4),
        Lifetime("e", 24, 0, 3),
        Lifetime("f", 16, 1, 4),
    ]
    assert plan_memory(values).size_bytes == lower_bound(values)[0]


def _tvm_plan(sizes: list[int]) -> int:
    """Bytes of the storages that TVM's StaticPlanBlockMemory makes for a chain of such values."""
    tvm = load_tvm()
    relax, te = tvm.relax, tvm.te
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((sizes[0],), "int8"))
    with bb.function("main", [x]):
        value: Any = x
        for size in sizes:
            count = int(value.ty.shape[0])
            value = bb.emit_te(
                lambda a, n=size, m=count: te.compute((n,), lambda i: a[i % m], name="t"), value
            )
        bb.emit_func_output(value)
    transform = relax.transform
    passes = [transform.ToNonDataflow(), transform.RemovePurityChecking()]
    passes += [transform.CallTIRRewrite(), transform.StaticPlanBlockMemory()]
    with tvm.target.Target({"kind": "llvm"}):
        module = tvm.transform.Sequential(passes)(bb.get())
    total = 0

    def visit(node: Any) -> None:
        nonlocal total
        if isinstance(node, relax.Call) and "alloc_storage" in str(getattr(node.op, "name", "")):
            total += int(node.args[0].values[0])

    relax.analysis.post_order_visit(module["main"], visit)
    return total


def test_never_above_tvms_plan() -> None:
    rng = np.random.default_rng(0)
    for _ in range(3):
        sizes = [int(s) * 8 for s in rng.integers(4, 60, 7)]
        values = [Lifetime(f"v{i}", s, i, i + 1) for i, s in enumerate(sizes[:-1])]
        theirs = _tvm_plan(sizes)
        assert theirs > 0
        assert plan_memory(values).size_bytes <= theirs


def _chain(*operators: str) -> IntegerGraph:
    """A network of elementwise steps over 16 values: "lookup", "add" (to the first value)."""
    tensors = [IntegerTensor(f"t{i}", (1, 16)) for i in range(len(operators) + 1)]
    table = np.arange(-128, 128).astype(np.int8)
    made: list[ops.Operator] = []
    for i, (kind, (x, y)) in enumerate(zip(operators, pairwise(tensors), strict=True)):
        if kind == "add":
            numbers = dict(multiplier=(1 << 30,) * 3, shift=(0, 0, -19), clamp=(-128, 127))
            made.append(ops.Add(f"n{i}", (x.name, "t1"), y.name, "", **numbers))
        else:
            made.append(ops.Lookup(f"n{i}", (x.name,), y.name, "", table, "identity"))
    return IntegerGraph("chain", tuple(tensors), tuple(made), ("t0",), (tensors[-1].name,))


@pytest.mark.parametrize(
    ("operators", "in_place", "arena"),
    [
        (("lookup", "lookup", "lookup"), ("t2",), 16),  # inputs and outputs are the caller's
        (("lookup", "lookup", "add", "lookup"), ("t3",), 32),  # t1 is read again by the sum
        (("lookup", "lookup"), (), 16),
    ],
)
def test_in_place_where_nobody_reads_again(
    operators: tuple[str, ...], in_place: tuple[str, ...], arena: int
) -> None:
    model = lower_to_c(_chain(*operators), load_target("cortex-m4"))
    assert model.storage.in_place == in_place
    assert model.arena_bytes == arena
