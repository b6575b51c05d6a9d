"""Join kernels to one executable: `Fused` calls + kernels -> a Relax module for TVM's VM.

The main function is a straight list of kernel launches. Weights are packed here, once, and
stored as constants; identical workloads share one function; values lie in one arena.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import fx

from hwprune.lower import parameters
from hwprune.lower.arena import Arena
from hwprune.lower.codegen import compile_functions
from hwprune.lower.fuse import Fused
from hwprune.lower.spec import Call, Kernel, Workload
from hwprune.tvm_runtime import compiling, load_tvm


def relax_module(
    fused: Fused,
    module: fx.GraphModule,
    kernels: Mapping[Workload, Kernel],
    arena: Arena,
    lanes: int,
    *,
    inside: bool = False,
) -> Any:
    """An IRModule with `main(inputs) -> tensor or tuple`, which calls kernels by name.

    `inside`: the kernels are functions of the module; otherwise they are compiled beside it.
    """
    return _Writer(fused, module, kernels, arena, lanes).write(inside)


def function_names(workloads: Sequence[Workload]) -> dict[Workload, str]:
    """A readable, unique function name for every distinct workload, in order."""
    names: dict[Workload, str] = {}
    for workload in workloads:
        if workload not in names:
            names[workload] = f"k{len(names)}_{workload.op}"
    return names


class _Writer:
    def __init__(
        self,
        fused: Fused,
        module: fx.GraphModule,
        kernels: Mapping[Workload, Kernel],
        arena: Arena,
        lanes: int,
    ) -> None:
        self.fused, self.module, self.kernels, self.lanes = fused, module, kernels, lanes
        self.arena, self.storage = arena, None
        self.relax = load_tvm().relax
        self.values: dict[str, Any] = {}
        self.constants: dict[Any, Any] = {}
        self.inputs = {n.name: n.meta["val"] for n in module.graph.nodes if n.op == "placeholder"}

    def write(self, inside: bool) -> Any:
        """Emit the whole module."""
        relax, bb = self.relax, self.relax.BlockBuilder()
        names = function_names([call.workload for call in self.fused.calls])
        functions = {
            w: bb.add_func(self.kernels[w].func.with_attr("global_symbol", name), name)
            if inside
            else relax.ExternFunc(name)
            for w, name in names.items()
        }
        params = [self._input(name) for name in self.fused.inputs]
        with bb.function("main", params):
            size = self.relax.ShapeExpr([max(self.arena.size_bytes, 1)])
            self.storage = bb.emit(relax.op.memory.alloc_storage(size, 0, "global", "uint8"))
            for call in self.fused.calls:
                self._launch(bb, call, functions[call.workload])
            results = [self._read(bb, name) for name in self.fused.outputs]
            bb.emit_func_output(results[0] if len(results) == 1 else relax.Tuple(results))
        return bb.get()

    def _input(self, name: str) -> Any:
        val = self.inputs[name]
        dtype = str(val.dtype).removeprefix("torch.")
        dtype = self.fused.dtype if dtype == "float32" else dtype
        var = self.relax.Var(name, self._type(tuple(val.shape), dtype))
        self.values[name] = var
        return var

    def _type(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self.relax.TensorType(shape, dtype)

    def _launch(self, bb: Any, call: Call, function: Any) -> None:
        """A kernel that writes to its place in the arena, or to a result's own memory."""
        relax, workload = self.relax, call.workload
        args = [self._read(bb, name) for name in call.args]
        args += self._weights(call)
        shape = relax.ShapeExpr(workload.output.physical(self.lanes))
        dtype = workload.output.dtype
        offset = self.arena.offsets.get(call.output)
        if offset is None:
            made = relax.op.builtin.alloc_tensor(shape, dtype, 0)
        else:
            made = relax.op.memory.alloc_tensor(self.storage, offset, shape, dtype, 0)
        output = bb.emit(made)
        bb.emit(relax.Call(function, [*args, output]))
        self.values[call.output] = output

    def _read(self, bb: Any, name: str) -> Any:
        """The variable of a value; other shapes of a value are reshaped once."""
        if name in self.values:
            return self.values[name]
        if name in self.fused.constants:
            self.values[name] = self._constant_value(name)
        else:
            base = self._read(bb, self.fused.aliases[name])
            memory = self.fused.specs[name].physical(self.lanes)
            if memory == tuple(int(s) for s in base.ty.shape):
                self.values[name] = base
            else:
                shape = self.relax.ShapeExpr(memory)
                self.values[name] = bb.emit(self.relax.op.reshape(base, shape))
        return self.values[name]

    def _constant_value(self, name: str) -> Any:
        return self._constant(parameters.constant(name, self.fused, self.module, self.lanes))

    def _weights(self, call: Call) -> list[Any]:
        """The packed parameters of a call as constants, shared between calls that read the same."""
        key = (call.params, call.workload)
        if key not in self.constants:
            packed = parameters.weights(call, self.kernels, self.module)
            self.constants[key] = [self._constant(a) for a in packed]
        return self.constants[key]

    def _constant(self, array: np.ndarray) -> Any:
        """A constant of the array's own dtype and rank (Relax would narrow 64-bit numbers)."""
        tensor = load_tvm().runtime.tensor(np.asarray(array, order="C"))
        return self.relax.const(tensor, str(array.dtype))


def compile_module(module: Any, kernels: Mapping[str, Any], target: Any) -> Any:
    """Compile a module, and the kernels beside it that it calls by name, to a VM executable.

    One kernel goes into the module: TVM would add an empty C file to one that has none. On a GPU
    all launches whose tensors stay in place become one CUDA graph, captured by the first call.
    """
    tvm = load_tvm()
    transform = tvm.relax.transform
    cuda = str(target.kind.name) == "cuda"
    graph: list[Any] = []
    if cuda:
        from hwprune.lower.cuda.graph import cuda_graphs
        from hwprune.lower.cuda.source import install_header

        install_header()
        graph = cuda_graphs()
    passes = [
        transform.RemovePurityChecking(),
        *graph,
        transform.LowerAllocTensor(),
        transform.LowerRuntimeBuiltin(),
        transform.ComputePrimValue(),
        transform.VMShapeLower(),
        transform.AttachGlobalSymbol(),
    ]
    functions = {name: func.with_attr("global_symbol", name) for name, func in kernels.items()}
    if functions:
        last, func = functions.popitem()
        module[last] = func
    if functions:
        module = module.with_attr("external_mods", compile_functions(functions, target))
    with target, compiling(cuda=cuda):
        return tvm.relax.build(module, target, relax_pipeline=tvm.transform.Sequential(passes))
