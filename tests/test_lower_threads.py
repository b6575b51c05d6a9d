"""Sharing work between threads: every unit is done, and done once."""

from __future__ import annotations

import numpy as np
import pytest

from hwprune.lower.cpu import emit
from hwprune.lower.cpu.emit import Buffer, T, const, loop
from hwprune.lower.kernels import tvm_target
from hwprune.target import load_target
from hwprune.tvm_runtime import compiling, load_tvm, set_threads

LANES = 16


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("extent", [1, 2, 5, 7, 64, 97])
def test_every_unit_is_done_once(extent: int, threads: int) -> None:
    tvm, target = load_tvm(), load_target("host")
    calls = 50

    def body(_: list[Buffer], __: list[Buffer], y: Buffer) -> None:
        with emit.split_threads(extent, threads) as (first, count), loop(count) as i:
            with T.vectorized(LANES) as lane:
                T.buffer_store(y, y[first + i, lane] + const(1.0), [first + i, lane])

    function = emit.build_function("count", (), (), (extent, LANES), body)
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    with compiling():
        library = tvm.compile(module, target=tvm_target(target)).jit()
    set_threads(2)
    done = tvm.runtime.tensor(np.zeros((extent, LANES), np.float32))
    for _ in range(calls):
        library["main"](done)
    assert (done.numpy() == calls).all()


def test_threads_have_scratch_of_their_own() -> None:
    workers: list[object] = []
    with emit.IRBuilder(), T.prim_func(s_tir=True):
        T.func_name("shares")
        with emit.share_threads(8, 2) as (worker, _, __):
            workers.append(worker)
            T.evaluate(worker)
    assert len(workers) == 1
    assert not isinstance(workers[0], int)
