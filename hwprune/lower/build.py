"""`build_kernels`: many kernels in one compiled module, each to be run or timed by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwprune.errors import LoweringError
from hwprune.lower.kernels import kernel_for, tvm_target
from hwprune.lower.spec import Kernel, TensorSpec, Workload
from hwprune.target import Target, check_runnable
from hwprune.tvm_runtime import compiling, load_tvm, set_threads


@dataclass(frozen=True)
class KernelModule:
    """Compiled kernels, by position. `library` is TVM's runtime module with `k0`, `k1`, …"""

    workloads: tuple[Workload, ...]
    kernels: tuple[Kernel, ...]
    library: Any
    lanes: int
    threads: int

    def run(self, i: int, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Run kernel i on physical inputs and logical parameters; returns the physical output."""
        workload, kernel = self.workloads[i], self.kernels[i]
        count = len(workload.inputs)
        packed = kernel.pack(tuple(arrays[count:]))
        output = _empty(workload.output, self.lanes)
        set_threads(self.threads)
        self.library[f"k{i}"](*map(_tensor, (*arrays[:count], *packed)), output)
        return np.asarray(output.numpy())

    def random_arguments(self, i: int, seed: int = 0) -> list[Any]:
        """TVM tensors for one launch of kernel i: inputs, packed parameters and the output."""
        workload, rng = self.workloads[i], np.random.default_rng(seed)
        inputs = [_random(s, s.physical(self.lanes), rng) for s in workload.inputs]
        params = tuple(_random(s, s.shape, rng) for s in workload.params)
        packed = self.kernels[i].pack(params)
        return [*map(_tensor, (*inputs, *packed)), _empty(workload.output, self.lanes)]

    def time(
        self, i: int, *, repeats: int = 10, min_repeat_ms: int = 2, number: int = 1
    ) -> list[float]:
        """Microseconds of one warm launch of kernel i, `repeats` times (each a mean of `number`).

        `number` is raised until a repeat lasts `min_repeat_ms`.
        """
        tvm = load_tvm()
        set_threads(self.threads)
        evaluator = self.library.time_evaluator(
            f"k{i}", tvm.cpu(), number=number, repeat=repeats, min_repeat_ms=min_repeat_ms
        )
        return [1e6 * seconds for seconds in evaluator(*self.random_arguments(i)).results]


def build_kernels(workloads: Sequence[Workload], target: Target, threads: int) -> KernelModule:
    """Compile kernels into one module, to run here.

    Raises LoweringError naming what TVM cannot compile, TargetError if it would not run here.
    """
    check_runnable(target)
    kernels, executable = compile_kernels(workloads, target, threads)
    return KernelModule(tuple(workloads), kernels, loaded(executable), target.lanes, threads)


def compile_kernels(
    workloads: Sequence[Workload], target: Target, threads: int
) -> tuple[tuple[Kernel, ...], Any]:
    """(kernels, TVM's executable with `k0`, `k1`, …), for any target.

    Raises LoweringError naming what TVM cannot compile.
    """
    kernels = tuple(kernel_for(w, target, threads) for w in workloads)
    return kernels, compile_numbered([kernel.func for kernel in kernels], target)


def compile_numbered(functions: Sequence[Any], target: Target) -> Any:
    """TVM's executable with functions as `k0`, `k1`, … Raises LoweringError."""
    tvm = load_tvm()
    named = {f"k{i}": f.with_attr("global_symbol", f"k{i}") for i, f in enumerate(functions)}
    try:
        with compiling():
            return tvm.compile(tvm.IRModule(named), target=tvm_target(target))
    except Exception as error:
        raise LoweringError(f"TVM cannot compile the kernels: {error}") from error


def loaded(executable: Any) -> Any:
    """TVM's runtime module of an executable, to run here."""
    return executable.jit() if hasattr(executable, "jit") else executable


def _tensor(array: np.ndarray) -> Any:
    return load_tvm().runtime.tensor(np.asarray(array, order="C"))


def _empty(spec: TensorSpec, lanes: int) -> Any:
    return _tensor(np.zeros(spec.physical(lanes), spec.dtype))


def _random(spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Normal values of the dtype's kind (integers are zero: they may be indices)."""
    if not spec.dtype.startswith("float"):
        return np.zeros(shape, spec.dtype)
    return rng.standard_normal(shape).astype(spec.dtype)
