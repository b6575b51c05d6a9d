"""The order of a convolution's loops: the operand that does not fit the cache is read once."""

from __future__ import annotations

import pytest

from hwprune.lower.cpu.emit import Context
from hwprune.lower.cpu.order import Work, choose

SMALL, LARGE = 64 << 10, 8 << 20


def context(threads: int = 1) -> Context:
    return Context(lanes=16, registers=32, threads=threads, l1_bytes=32 << 10, l2_bytes=1 << 20)


@pytest.mark.parametrize(
    ("weight_bytes", "input_bytes", "outer"),
    [
        (LARGE, SMALL, "block"),  # a late layer: its weights once
        (SMALL, LARGE, "row"),  # an early layer: its input once
        (SMALL, SMALL, "block"),
    ],
)
def test_the_large_operand_is_read_once(weight_bytes, input_bytes, outer):
    work = Work(8, 8, 8, weight_bytes, input_bytes)
    order = choose(work, context())
    assert order.loops[0] == outer
    assert order.axis == outer


def test_groups_read_their_own_share_of_the_input():
    work = Work(64, 8, 8, SMALL, LARGE)
    assert choose(work, context()).loops[0] == "row"
    grouped = Work(64, 8, 8, SMALL, LARGE, grouped=True)
    assert choose(grouped, context()).loops[0] == "block"


def test_threads_share_the_loop_that_splits_evenly():
    work = Work(block_tiles=1, row_tiles=8, col_tiles=3, weight_bytes=SMALL, input_bytes=SMALL)
    assert choose(work, context(threads=2)).axis == "row"
