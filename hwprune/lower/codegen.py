"""Scheduled kernels to machine code, several modules side by side.

In: functions by name. Out: one of TVM's modules for every few of them. How they are grouped follows
from the functions alone, so that the code is the same on any number of cores.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hwprune.tvm_runtime import compiling, load_tvm

GROUP = 8  # kernels in a module: enough to share what one costs, few enough to be shared out


def groups(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Names dealt out to modules: neighbours, which are often alike, go to different ones."""
    count = -(-len(names) // GROUP)
    return [tuple(names[i::count]) for i in range(count)]


def compile_functions(functions: Mapping[str, Any], target: Any) -> list[Any]:
    """TVM's modules of all functions. Compilation leaves Python's lock to others, so threads do."""
    tvm = load_tvm()

    def compile_group(names: Sequence[str]) -> Any:
        module = tvm.IRModule({name: functions[name] for name in names})
        with target, compiling():  # both are the thread's own
            return tvm.compile(module, target=target).mod

    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        return list(pool.map(compile_group, groups(list(functions))))
    finally:
        pool.shutdown(cancel_futures=True)
