"""`lower`: a `Program` and a `Target` -> `Lowered`, a compiled network that runs and is timed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hwprune.capture import Program
from hwprune.errors import LoweringError
from hwprune.lower.arena import Arena, plan_arena
from hwprune.lower.flat import FlatNetwork, flatten
from hwprune.lower.fold import fold_batch_norm
from hwprune.lower.for_target import fuse_for
from hwprune.lower.half import check_range, stored
from hwprune.lower.kernels import kernel_for, tvm_target
from hwprune.lower.limits import check_calls
from hwprune.lower.relax import compile_module, function_names, relax_module
from hwprune.lower.spec import Call, Kernel, Workload
from hwprune.quiet import SECONDS, quietest
from hwprune.target import FLOAT16, Target, check_runnable
from hwprune.toolchain import linker
from hwprune.tvm_runtime import load_tvm, set_threads

MOST_PROFILED = 500  # inferences


class Lowered:
    """A compiled network.

    `calls` are its kernel launches in order, `rules` says for each (by call name) which schedule
    rule took it and why, `arena` where the values between them lie. `executable` is TVM's; its
    function `main` takes and returns tensors.
    What runs it raises TargetError where it is for a target that this machine is not.
    """

    def __init__(
        self,
        executable: Any,
        calls: tuple[Call, ...],
        kernels: Mapping[Workload, Kernel],
        arena: Arena,
        target: Target,
        threads: int,
        flat: Callable[[], FlatNetwork],
    ) -> None:
        self.executable, self.calls = executable, calls
        self.flat = flat  # the network as `flat_runner.c` runs it, beside the library
        self.arena, self.target, self.threads = arena, target, threads
        self.rules: dict[str, tuple[str, str]] = {
            c.name: (kernels[c.workload].rule, kernels[c.workload].reason) for c in calls
        }
        self._symbols = function_names([call.workload for call in calls])
        self._machine: Any = None

    def run(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Run the network; one array per output, in the graph's order."""
        tensors = self._tensors(inputs)
        set_threads(self.threads)
        result = self._vm()["main"](*tensors)
        results = list(result) if _is_tuple(result) else [result]
        return [np.asarray(tensor.numpy()) for tensor in results]

    def export(self, path: str | os.PathLike[str]) -> Path:
        """Write a shared library that `tvm.runtime.load_module` loads for the Relax VM.

        Raises ToolchainError if there is nothing to link it with.
        """
        file, compiler = Path(path), linker(self.target)
        options: dict[str, Any] = {}
        if compiler is not None:
            options["fcompile"] = load_tvm().support.cc.cross_compiler(compiler)
        try:
            self.executable.export_library(str(file), **options)
        except Exception as error:
            raise LoweringError(f"cannot link {file.name}: {error}", where=str(file)) from error
        return file

    def cuda_source(self) -> str:
        """The CUDA code of a GPU's network."""
        from hwprune.lower.cuda.source import code_of

        return "\n".join(code_of(self.executable.mod))

    def latencies_us(
        self, inputs: Sequence[np.ndarray], repeats: int = 20, *, warmup: int = 3
    ) -> list[float]:
        """Microseconds of `repeats` whole inferences."""
        tensors = self._tensors(inputs)
        set_threads(self.threads)
        main = self._vm()["main"]
        for _ in range(warmup):
            main(*tensors)
        times = []
        for _ in range(repeats):
            start = time.perf_counter_ns()
            main(*tensors)
            times.append((time.perf_counter_ns() - start) / 1000)
        return times

    def profile(self, inputs: Sequence[np.ndarray], repeats: int = 20) -> dict[str, float]:
        """Microseconds of every call in its place in the network, by call name.

        The median of its quietest moment, of `repeats` inferences or more.
        """
        times = self.launches_us(inputs, repeats)
        more = int(min(1e6 * SECONDS / np.median(times.sum(axis=1)), MOST_PROFILED)) - repeats
        if more > 0:
            times = np.concatenate([times, self.launches_us(inputs, more)])
        median = np.median(quietest(times), axis=0)
        return {c.name: float(us) for c, us in zip(self.calls, median, strict=True)}

    def launches_us(
        self,
        inputs: Sequence[np.ndarray],
        repeats: int,
        *,
        before: Callable[[], object] | None = None,
    ) -> np.ndarray:
        """Microseconds (repeats, calls) of every launch; `before` runs, untimed, before each."""
        machine, tensors = self._vm(), self._tensors(inputs)
        set_threads(self.threads)
        recorder = _Recorder(frozenset(self._symbols.values()), before)
        machine.set_instrument(recorder.instrument)
        rows = []
        for _ in range(repeats + 2):
            recorder.times.clear()
            machine["main"](*tensors)
            if [name for name, _ in recorder.times] != [
                self._symbols[c.workload] for c in self.calls
            ]:
                raise LoweringError("the compiled network does not launch its kernels in order")
            rows.append([us for _, us in recorder.times])
        return np.asarray(rows[2:])

    def _vm(self) -> Any:
        if self._machine is None:
            check_runnable(self.target)
            tvm = load_tvm()
            self._machine = tvm.relax.VirtualMachine(self.executable, tvm.cpu())
        return self._machine

    def _tensors(self, inputs: Sequence[np.ndarray]) -> list[Any]:
        tvm = load_tvm()
        return [tvm.runtime.tensor(np.asarray(a, order="C")) for a in inputs]


class _Recorder:
    """Times kernel launches through the VM's instrument hook."""

    def __init__(self, symbols: frozenset[str], before: Callable[[], object] | None) -> None:
        self.symbols, self.before = symbols, before
        self.times: list[tuple[str, float]] = []
        self.start = 0

    def instrument(self, _function: Any, symbol: str, before: bool, *_rest: Any) -> int:
        """Called by the VM before and after every call."""
        now = time.perf_counter_ns()
        if symbol in self.symbols:
            if not before:
                self.times.append((symbol, (now - self.start) / 1000))
            else:
                if self.before is not None:
                    self.before()
                self.start = time.perf_counter_ns()
        return 0


def _is_tuple(result: Any) -> bool:
    return not hasattr(result, "numpy")


def lower(program: Program, target: Target, threads: int, images: Tensor | None = None) -> Lowered:
    """Compile a program (static shapes, see `specialize`) for a target, in its dtype.

    Raises LoweringError naming the operator and the user's source line of what has no kernel, or of
    a value that float16 cannot hold: of the example inputs, and of `images` (N, ...).
    """
    folded = fold_batch_norm(program)
    fused = fuse_for(folded, target)
    if target.dtype == FLOAT16:
        check_range(folded, images, stored(fused) if target.gpu is not None else None)
    check_calls(fused.calls, folded, target.lanes)
    kernels: dict[Workload, Kernel] = {}
    for call in fused.calls:
        if call.workload not in kernels:
            kernels[call.workload] = _kernel(call, folded, target, threads)
    arena = plan_arena(fused, kernels, target.lanes)
    inside = target.gpu is not None
    module = relax_module(fused, folded.module, kernels, arena, target.lanes, inside=inside)
    names = function_names([call.workload for call in fused.calls])
    beside = {} if inside else {name: kernels[workload].func for workload, name in names.items()}
    try:
        executable = compile_module(module, beside, tvm_target(target))
    except Exception as error:
        raise LoweringError(f"TVM cannot compile the network: {error}") from error

    def flat() -> FlatNetwork:
        return flatten(fused, folded.module, kernels, names, arena, target.lanes, threads)

    return Lowered(executable, fused.calls, kernels, arena, target, threads, flat)


def _kernel(call: Call, program: Program, target: Target, threads: int) -> Kernel:
    from hwprune.lower.functional import place

    try:
        return kernel_for(call.workload, target, threads)
    except LoweringError as error:
        name = call.output.partition("@")[0]
        where = [place(n) for n in program.module.graph.nodes if n.name == name]
        raise LoweringError(error.what, where=where[0] if where else name) from error
