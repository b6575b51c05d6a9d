"""Steps, scheme and float weights -> `IntegerGraph`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import fx
from torch.utils._pytree import tree_leaves

from hwprune.errors import LoweringError
from hwprune.lower.aten import aten_call
from hwprune.lower.root import shape
from hwprune.program import Program
from hwprune.quantize import emit_arithmetic, emit_movement
from hwprune.quantize import graph as ops
from hwprune.quantize.emitter import Emitter
from hwprune.quantize.graph import FLOAT32, IntegerGraph
from hwprune.quantize.placement import Order, Placement, plain, usual
from hwprune.quantize.scheme import Scheme
from hwprune.quantize.steps import QuantStep, check_float


def emit(
    program: Program, steps: Sequence[QuantStep], scheme: Scheme
) -> tuple[IntegerGraph, dict[str, tuple[str, Order]]]:
    """The integer graph, and where the value of every node lies: (tensor, order of axes).

    Raises LoweringError where an accumulator can overflow.
    """
    emitter = Emitter(program, scheme, Placement(scheme))
    inputs = [node for node in program.module.graph.nodes if node.op == "placeholder"]
    names = tuple(emitter.at.put(node, usual(len(shape(node)))) for node in inputs)
    for step in steps:
        _EMIT[step.kind](emitter, step)
    results = tree_leaves(program.module.graph.output_node().args[0])
    if not all(isinstance(node, fx.Node) and node in emitter.at.placed for node in results):
        raise LoweringError("an output is no tensor that depends on the input", where=program.name)
    outputs = tuple(emitter.at.read(node, usual(len(shape(node)))) for node in results)
    tensors = tuple(emitter.at.tensors.values())
    graph = IntegerGraph(program.name, tensors, tuple(emitter.at.operators), names, outputs)
    return graph, {node.name: found for node, found in emitter.at.placed.items()}


def _float(e: Emitter, step: QuantStep) -> None:
    """The operator in float32 between dequantize and quantize."""
    check_float(step)
    call = aten_call(step.node)
    names = [e.at.read_float(value) for value in call.inputs]
    order = plain(len(shape(step.result)))
    real = e.at.put(step.result, order, f"{step.result.name}_result", FLOAT32)
    params = tuple(e.tensor(p).numpy() for p in call.params)
    e.at.emit(ops.Float, step.node, names, real, workload=call.workload, params=params)
    e.at.emit(ops.Quantize, step.node, (real,), e.at.put(step.result, order))


_EMIT: dict[str, Callable[[Emitter, QuantStep], None]] = {
    "conv2d": emit_arithmetic.layer,
    "linear": emit_arithmetic.layer,
    "affine": emit_arithmetic.affine,
    "add": emit_arithmetic.add,
    "mul": emit_arithmetic.mul,
    "mean": emit_arithmetic.mean,
    "max_pool": emit_movement.pool,
    "avg_pool": emit_movement.pool,
    "pad": emit_movement.pad,
    "concat": emit_movement.concat,
    "reshape": emit_movement.reshape,
    "transpose": emit_movement.transpose,
    "lookup": emit_movement.lookup,
    "prelu": emit_arithmetic.prelu,
    "softmax": emit_arithmetic.softmax,
    "float": _float,
}
