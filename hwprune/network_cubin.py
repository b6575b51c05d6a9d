"""The machine code of a GPU's network; where nvcc refuses it, which kernel, of which layer.

In: a `Lowered` network and the folded `Program` that it comes from. Out: CUDA source and `Cubin`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hwprune.capture import Program
from hwprune.errors import LoweringError
from hwprune.lower import Lowered
from hwprune.lower.functional import place
from hwprune.lower.kernels import kernel_for, tvm_target
from hwprune.lower.spec import Call, Workload
from hwprune.nvcc import Cubin, compile_cubin
from hwprune.row import describe


def network_cubin(lowered: Lowered, program: Program) -> tuple[str, Cubin]:
    """(CUDA source, machine code) of all kernels.

    Raises ToolchainError without a compiler; LoweringError where it knows no such architecture, or
    refuses a kernel, which is named with its layer.
    """
    assert lowered.target.gpu is not None
    source = lowered.cuda_source()
    try:
        return source, compile_cubin(source, lowered.target.gpu.architecture)
    except LoweringError as error:
        raise _named(error, lowered, program) from error


def _named(error: LoweringError, lowered: Lowered, program: Program) -> LoweringError:
    """The error of the kernel that is at fault; as it is where each compiles by itself."""
    gpu = lowered.target.gpu
    assert gpu is not None
    try:
        compile_cubin("", gpu.architecture)
    except LoweringError:
        return error  # of the architecture, or the compiler itself: no kernel's

    def compiles(workloads: Sequence[Workload]) -> LoweringError | None:
        from hwprune.lower.cuda.source import cuda_source

        kernels = [kernel_for(w, lowered.target, lowered.threads) for w in workloads]
        functions = {f"k{i}": kernel.func for i, kernel in enumerate(kernels)}
        try:
            compile_cubin(cuda_source(functions, tvm_target(lowered.target)), gpu.architecture)
        except LoweringError as refused:
            return refused
        return None

    found = first_refused(tuple(dict.fromkeys(c.workload for c in lowered.calls)), compiles)
    if found is None:
        return error
    workload, refused = found
    call = next(c for c in lowered.calls if c.workload == workload)
    return LoweringError(
        f"{refused.what}; the kernel is {describe(workload)}",
        where=_layer(call, program),
        hint="keep the layer at another width, or choose another --dtype",
    )


def first_refused(
    workloads: Sequence[Workload],
    compiles: Callable[[Sequence[Workload]], LoweringError | None],
) -> tuple[Workload, LoweringError] | None:
    """A kernel that does not compile, by halves, and why; None where all do."""
    error = compiles(workloads) if workloads else None
    if error is None:
        return None
    if len(workloads) == 1:
        return workloads[0], error
    half = len(workloads) // 2
    found = first_refused(workloads[:half], compiles)
    return found or first_refused(workloads[half:], compiles)


def _layer(call: Call, program: Program) -> str:
    """The parameter that a call reads, and the user's line."""
    where = [place(n) for n in program.module.graph.nodes if n.name in call.nodes][:1]
    parameter = [call.params[0].removesuffix(".weight")] if call.params else []
    return ", ".join([*parameter, *where]) or call.name
