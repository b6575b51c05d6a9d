"""One CUDA graph of many launches: TVM's rewriting, but for regions that its machine cannot run.

In: a Relax module. Out: a pass over it. A region of a single launch writes to a tensor from before
it and returns nothing; TVM 0.27's virtual machine fails on the result of such a region, and a graph
of one launch gains nothing: it is launched as it is.
"""

from __future__ import annotations

from typing import Any

from hwprune.tvm_runtime import load_tvm

_CAPTURE = "vm.builtin.cuda_graph.run_or_capture"


def cuda_graphs() -> list[Any]:
    """The passes that make launches whose tensors stay in place CUDA graphs."""
    tvm = load_tvm()

    def launched(module: Any, _context: Any) -> Any:
        return _without_single_launches(module)

    after = tvm.transform.module_pass(launched, opt_level=0, name="LaunchSingles")
    return [tvm.relax.transform.RewriteCUDAGraph(), after]


def _without_single_launches(module: Any) -> Any:
    """The module with regions that return nothing put back where they are run."""
    tvm = load_tvm()
    relax = tvm.relax
    alone = {gv: f for gv, f in module.functions.items() if _returns_nothing(f)}

    @relax.expr_functor.mutator
    class Launch(relax.PyExprMutator):  # type: ignore[misc, name-defined]
        def visit_call_(self, call: Any) -> Any:
            if _captured(call) not in alone:
                return super().visit_call_(call)
            function = alone[_captured(call)]
            given = call.args[1].fields[1].fields
            places = dict(zip(function.params, given, strict=True))
            (launch,) = [
                binding.value
                for block in function.body.blocks
                for binding in block.bindings
                if isinstance(binding.value, relax.Call)
            ]
            arguments = [places.get(argument, argument) for argument in launch.args]
            return relax.Call(launch.op, arguments, launch.attrs, launch.ty_args)

    mutator = Launch(module)
    for gv, function in module.functions.items():
        if isinstance(function, relax.Function) and gv not in alone:
            mutator.builder_.update_func(gv, mutator.visit_expr(function))
    made = mutator.builder_.get()
    for gv in alone:
        made = _removed(made, gv)
    return made


def _removed(module: Any, gv: Any) -> Any:
    kept = {other: f for other, f in module.functions.items() if other.name_hint != gv.name_hint}
    return load_tvm().IRModule(kept, attrs=module.attrs)


def _captured(call: Any) -> Any:
    """The function that a call captures; None for any other call."""
    first = call.args[0] if len(call.args) > 1 else None
    if getattr(first, "global_symbol", "") != _CAPTURE:
        return None
    return call.args[1].fields[0]


def _returns_nothing(function: Any) -> bool:
    """Whether a function is a region without results."""
    relax = load_tvm().relax
    if not isinstance(function, relax.Function):
        return False
    found = function.ret_ty
    return isinstance(found, relax.TupleType) and not len(found.fields)
