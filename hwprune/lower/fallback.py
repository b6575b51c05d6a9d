"""Kernels that no schedule rule takes: imported by Relax, fused into one, plainly scheduled.

In: a `Workload` alone (so the same workload gives the same code in a network and under
measurement). Out: a `Kernel` with rule "fallback". Correct for whatever TVM's importer knows;
slow for heavy operators, which is why reports list these kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from hwprune.errors import LoweringError
from hwprune.lower.reference import ReferenceModule
from hwprune.lower.spec import Kernel, TensorSpec, Workload
from hwprune.tvm_runtime import load_tvm

_SPATIAL = 0  # the kind of a block's axis that is no sum's
_MIN_PARALLEL = 1 << 14  # scalar iterations below which a second thread does not pay


def fallback_kernel(workload: Workload, lanes: int, threads: int) -> Kernel:
    """A kernel through TVM's importer.

    Raises LoweringError naming the operator where the importer or the legaliser has no rule.
    """
    return _kernel(workload, lanes, lambda function: _schedule(function, threads))


def plain_fallback(workload: Workload) -> Kernel:
    """The same in plain loops of one thread: what becomes C for a microcontroller."""
    return _kernel(workload, 1, _schedule_plain)


def gpu_fallback(workload: Workload) -> Kernel:
    """The same on a GPU, scheduled by TVM's own rules (dlight)."""
    return _kernel(workload, 1, _schedule_gpu)


def _kernel(workload: Workload, lanes: int, scheduled: Callable[[Any], Any]) -> Kernel:
    tvm = load_tvm()
    name = _operator(workload)
    try:
        module = _import(workload, lanes)
        module = tvm.relax.transform.LegalizeOps()(module)
        function, constants = _single_function(module)
        _check_result(function, workload.output.physical(lanes), name)
    except LoweringError:
        raise
    except Exception as error:
        text = str(error).strip().splitlines()
        raise LoweringError(
            f"TVM cannot compile {name}: {text[-1] if text else type(error).__name__}"
        ) from error
    function = scheduled(function)

    def pack(params: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        return (*(np.asarray(p, order="C") for p in params), *constants)

    reason = f"no schedule rule for {name}"
    return Kernel(workload, function, "fallback", reason, pack, placeable=False)


def _check_result(function: Any, wanted: tuple[int, ...], name: str) -> None:
    """LoweringError where the importer took another of an operator's results for the one asked."""
    made = tuple(int(size) for size in function.params[-1].ty.shape)
    if made != wanted:
        raise LoweringError(f"TVM's importer gives {name} the shape {made}, PyTorch {wanted}")


def _operator(workload: Workload) -> str:
    return str(workload.attr("target")) if workload.op == "aten" else workload.op


def _import(workload: Workload, lanes: int) -> Any:
    """A Relax module with one function `main(inputs, params) -> tensor`."""
    from tvm.relax.frontend.torch import from_exported_program

    module = ReferenceModule(workload, lanes).eval()
    inputs = tuple(_example(s, s.physical(lanes)) for s in workload.inputs)
    params = tuple(_example(s, s.shape) for s in workload.params)
    with torch.no_grad():
        exported = torch.export.export(module, (*inputs, *params))
    failure: Exception | None = None
    for decompose in (False, True):
        try:
            return from_exported_program(
                exported, run_ep_decomposition=decompose, unwrap_unit_return_tuple=True
            )
        except Exception as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _example(spec: TensorSpec, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.zeros(shape, dtype=getattr(torch, spec.dtype))


def _single_function(module: Any) -> tuple[Any, tuple[np.ndarray, ...]]:
    """All `call_tir`s of `main` as one PrimFunc, and the constants it takes after parameters."""
    tvm = load_tvm()
    relax = tvm.relax
    main = module["main"]
    bindings = [b for block in main.body.blocks for b in block.bindings]
    constants = _constants(bindings)
    lifted = [relax.Var(f"constant_{i}", c.ty) for i, c in enumerate(constants)]
    params = [relax.Var(f"p{i}", v.ty) for i, v in enumerate(main.params)]
    bb = relax.BlockBuilder(module)
    with bb.function("fused", [*params, *lifted], attrs={"Primitive": True}, private=True):
        with bb.dataflow():
            values = dict(zip(main.params, params, strict=True))
            for binding in bindings:
                value = _rebuild(binding.value, values, constants, lifted)
                values[binding.var] = bb.emit(value)
            result = bb.emit_output(values[main.body.body])
        fused = bb.emit_func_output(result)
    outer = [relax.Var(f"a{i}", v.ty) for i, v in enumerate([*params, *lifted])]
    with bb.function("caller", outer):
        with bb.dataflow():
            out = bb.emit_output(relax.Call(fused, outer))
        bb.emit_func_output(out)
    whole = bb.get()
    del whole["main"]
    whole = relax.transform.FuseTIR()(whole)
    functions = [f for f in whole.functions.values() if isinstance(f, tvm.tirx.PrimFunc)]
    merged = [f for g, f in whole.functions.items() if g.name_hint == "fused"]
    if len(merged) != 1 or merged[0] not in functions:
        raise LoweringError("TVM did not fuse the operator into one function")
    return merged[0], tuple(c.value.numpy() for c in constants)


def _constants(bindings: list[Any]) -> list[Any]:
    """The distinct tensor constants that the calls read."""
    found: list[Any] = []
    for binding in bindings:
        for argument in _arguments(binding.value):
            if _is_constant(argument) and argument not in found:
                found.append(argument)
    return found


def _is_constant(expression: Any) -> bool:
    return isinstance(expression, load_tvm().ir.GenericConst)


def _arguments(value: Any) -> list[Any]:
    relax = load_tvm().relax
    if isinstance(value, relax.Call) and value.op.name == "relax.call_tir":
        return list(value.args[1].fields)
    return []


def _rebuild(value: Any, values: dict[Any, Any], constants: list[Any], lifted: list[Any]) -> Any:
    """A binding's value over the variables of the fused function."""
    relax = load_tvm().relax

    def new(expression: Any) -> Any:
        if _is_constant(expression):
            return lifted[constants.index(expression)]
        return values[expression]

    if isinstance(value, relax.Call) and value.op.name == "relax.call_tir":
        if len(value.args) != 2:
            raise LoweringError("the operator needs symbolic sizes")
        fields = relax.Tuple([new(a) for a in value.args[1].fields])
        return relax.Call(value.op, [value.args[0], fields], value.attrs, value.ty_args)
    if isinstance(value, relax.TupleGetItem):
        return relax.TupleGetItem(new(value.tuple_value), value.index)
    if isinstance(value, relax.Tuple):
        return relax.Tuple([new(f) for f in value.fields])
    if isinstance(value, relax.Var):
        return new(value)
    left = getattr(getattr(value, "op", None), "name", type(value).__name__)
    raise LoweringError(f"TVM has no kernel for {left} on a CPU")


def _schedule(function: Any, threads: int) -> Any:
    """Inline what can be, run outer loops in parallel, vectorise where it is trivially legal."""
    schedule, blocks = _inlined(function)
    for block in blocks:
        _schedule_block(schedule, block, threads)
    return schedule.mod["main"].with_attr("tirx.is_scheduled", True)


def _schedule_plain(function: Any) -> Any:
    """Inline what can be; sums begin before their loops."""
    schedule, blocks = _inlined(function)
    for block in blocks:
        for var, loop in zip(
            schedule.get(block).iter_vars, schedule.get_loops(block), strict=False
        ):
            if int(var.iter_type) != 0:
                _try(schedule.decompose_reduction, block, loop)
                break
    return schedule.mod["main"].with_attr("tirx.is_scheduled", True)


def _inlined(function: Any) -> tuple[Any, list[Any]]:
    """A schedule in which what can be is computed where it is read, and the blocks left."""
    schedule = load_tvm().s_tir.Schedule(function)
    root = schedule.get_sblock("root")
    for block in schedule.get_child_blocks(root)[:-1]:
        _try(schedule.compute_inline, block)
    return schedule, list(schedule.get_child_blocks(root))


def _schedule_gpu(function: Any) -> Any:
    """By the first of dlight's rules that fits."""
    tvm = load_tvm()
    from tvm.s_tir import dlight

    gpu = dlight.gpu
    rules = (gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback())
    with tvm.target.Target({"kind": "cuda", "arch": "sm_80"}):
        module = dlight.ApplyDefaultSchedule(*rules)(tvm.IRModule({"main": function}))
    return module["main"].with_attr("tirx.is_scheduled", True)


def _try(primitive: Any, *args: Any) -> bool:
    """Apply a schedule primitive; False where it does not apply."""
    try:
        primitive(*args)
    except Exception:
        return False
    return True


def _schedule_block(schedule: Any, block: Any, threads: int) -> None:
    iters = schedule.get(block).iter_vars
    loops = schedule.get_loops(block)
    if len(iters) != len(loops):
        return
    spatial = []
    for var, loop in zip(iters, loops, strict=True):
        if int(var.iter_type) != _SPATIAL:
            break
        spatial.append(loop)
    if not spatial:
        return
    extents = [int(schedule.get(loop).extent) for loop in loops]
    work = int(np.prod(extents, dtype=np.int64))
    if len(spatial) == len(loops):
        fused = schedule.fuse(*spatial)
        total = int(np.prod(extents, dtype=np.int64))
        width = next(w for w in (16, 8, 4, 1) if total % w == 0)
        outer, inner = schedule.split(fused, [None, width])
        if width > 1:
            _try(schedule.vectorize, inner)
    else:
        outer = schedule.fuse(*spatial)
    if threads > 1 and work >= _MIN_PARALLEL:
        _try(schedule.parallel, outer)
