"""`lower_int8`: an `IntegerGraph` and a `Target` -> `Lowered`, a compiled network of integers.

The graph becomes kernel calls as those of float networks are (`lower/network.py`): one function for
every kernel, values in one arena, weights packed at compile time. Inputs and outputs are float32 as
torch has them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import tvm_ffi
from torch import fx, nn

from hwprune.errors import LoweringError
from hwprune.lower.arena import plan_arena
from hwprune.lower.cpu.context import Context
from hwprune.lower.flat import FlatNetwork, flatten
from hwprune.lower.fuse import Fused
from hwprune.lower.int8.emit import Code
from hwprune.lower.int8.ends import with_float_ends
from hwprune.lower.int8.layout import same_memory, spec_of
from hwprune.lower.int8.machine import Machine, machine_of
from hwprune.lower.int8.rules import code_for
from hwprune.lower.kernels import tvm_target
from hwprune.lower.network import Lowered
from hwprune.lower.relax import compile_module, function_names, relax_module
from hwprune.lower.spec import Call, Kernel, TensorSpec, Workload
from hwprune.quantize.graph import IntegerGraph, Operator, Reshape
from hwprune.target import Target


def lower_int8(
    graph: IntegerGraph, target: Target, threads: int, *, float_ends: bool = True
) -> Lowered:
    """Compile a network of integers for a CPU.

    With `float_ends` it takes and gives float32 as torch has it; without, what the graph takes and
    gives, as `layout.stored` lays it out.

    Raises LoweringError naming an operator without a kernel, or what TVM cannot compile.
    """
    machine, context = machine_of(target), Context.of(target, threads)
    network = _Network(with_float_ends(graph) if float_ends else graph, machine, context)
    fused, module, kernels = network.write()
    arena = plan_arena(fused, kernels, target.lanes)
    names = function_names([call.workload for call in fused.calls])
    beside = {name: kernels[workload].func for workload, name in names.items()}
    relax = relax_module(fused, module, kernels, arena, target.lanes)
    try:
        executable = compile_module(relax, beside, tvm_target(target))
    except Exception as error:
        raise LoweringError(f"TVM cannot compile the network: {error}") from error

    def flat() -> FlatNetwork:
        return flatten(fused, module, kernels, names, arena, target.lanes, threads)

    return Lowered(executable, fused.calls, kernels, arena, target, threads, flat)


@dataclass
class _Network:
    """Kernel calls in the making; `constants` by name."""

    graph: IntegerGraph
    machine: Machine
    context: Context
    calls: list[Call] = field(default_factory=list)
    kernels: dict[Workload, Kernel] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def write(self) -> tuple[Fused, fx.GraphModule, dict[Workload, Kernel]]:
        graph = self.graph
        for op in graph.operators:
            source, output = graph.by_name[op.inputs[0]], graph.by_name[op.output]
            if isinstance(op, Reshape) and same_memory(source, output):
                self.aliases[op.output] = op.inputs[0]
            else:
                self._call(op)
        specs = {t.name: spec_of(t, self.machine) for t in graph.tensors}
        fused = Fused(tuple(self.calls), self.aliases, graph.inputs, graph.outputs, {}, specs)
        return fused, self._module(), self.kernels

    def _call(self, op: Operator) -> None:
        inputs = [self.graph.by_name[name] for name in op.inputs]
        output = self.graph.by_name[op.output]
        code = code_for(op, inputs, output, self.machine, self.context)
        names = tuple(f"c{len(self.constants) + i}" for i in range(len(code.constants)))
        self.constants |= dict(zip(names, code.constants, strict=True))
        workload = Workload(
            f"int8_{op.kind}",
            tuple(spec_of(t, self.machine) for t in inputs),
            spec_of(output, self.machine),
            tuple(TensorSpec(array.shape, str(array.dtype)) for array in code.constants),
            (("code", _digest(code)),),
        )
        if workload not in self.kernels:
            self.kernels[workload] = Kernel(
                workload, code.func, code.rule, code.reason, lambda arrays: tuple(arrays)
            )
        self.calls.append(Call(op.name, workload, op.inputs, names, op.output, (op.name,)))

    def _module(self) -> fx.GraphModule:
        """Inputs and constants as those who write modules read them."""
        made, inputs = fx.Graph(), self.graph.inputs
        for name in inputs:
            node = made.placeholder(name)
            spec = spec_of(self.graph.by_name[name], self.machine)
            dtype = getattr(torch, spec.dtype)
            node.meta["val"] = torch.empty(spec.shape, dtype=dtype, device="meta")
        made.output(tuple(made.nodes))
        owner = nn.Module()
        for name, array in self.constants.items():
            owner.register_buffer(name, torch.from_numpy(array))
        module = fx.GraphModule(owner, made)
        for name, array in self.constants.items():
            module.register_buffer(name, torch.from_numpy(array))
        return module


def _digest(code: Code) -> str:
    """A text that two calls share exactly where one function does both."""
    return f"{tvm_ffi.structural_hash(code.func) & (1 << 64) - 1:016x}"
