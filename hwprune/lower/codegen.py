"""Scheduled kernels to machine code, several modules side by side.

In: functions by name. Out: an object file, as one of TVM's modules, for every few of them. How they
are grouped follows from the functions alone, so that the code is the same on any number of cores.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hwprune.tvm_runtime import compiling, load_tvm

GROUP = 8  # kernels in a module: enough to share what one costs, few enough to be shared out


def groups(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Names dealt out to modules: neighbours, which are often alike, go to different ones."""
    count = -(-len(names) // GROUP)
    return [tuple(names[i::count]) for i in range(count)]


def compile_functions(functions: Mapping[str, Any], target: Any) -> list[Any]:
    """The machine code of all functions, as modules that a linker joins; a GPU's as TVM has them.

    Compilation and code generation leave Python's lock to others, so threads do both.
    """
    tvm = load_tvm()

    def compile_group(names: Sequence[str]) -> Any:
        module = tvm.IRModule({name: functions[name] for name in names})
        with target, compiling():  # both are the thread's own
            made = tvm.compile(module, target=target).mod
        return made if made.imports else _object(made, names)

    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        return list(pool.map(compile_group, groups(list(functions))))
    finally:
        pool.shutdown(cancel_futures=True)


def _object(module: Any, names: Sequence[str]) -> Any:
    """An LLVM module as an object file in memory, so that nobody generates its code again."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "kernels.o")
        module.write_to_file(file)
        return load_tvm().runtime.load_static_library(file, list(names))
