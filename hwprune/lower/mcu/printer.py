"""PrimFuncs -> C: TVM's code generator without its runtime's calling convention.

The passes are those of `tvm.s_tir.pipeline` without MakePackedAPI; every parameter becomes a plain
pointer. TVM knows no `const`, so signatures are written here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

from hwprune.lower.mcu.emit import Argument, CKernel
from hwprune.tvm_runtime import load_tvm

_NAME = "kernel"
# Functions of math.h for which TVM's generator of C has no rule.
_MATH = {"tirx.fabs": "fabsf", "tirx.exp2": "exp2f", "tirx.fmod": "fmodf"}
C_TYPES = {
    "int8": "int8_t",
    "int16": "int16_t",
    "int32": "int32_t",
    "int64": "int64_t",
    "float32": "float",
}


def print_kernel(kernel: CKernel, name: str) -> str:
    """The C function of a kernel: `HWPRUNE_KERNEL void name(...)`."""
    source = _generate(kernel.func, [a.name for a in kernel.arguments])
    start = source.rindex(f"void {_NAME}(")
    body = source[source.index("{", start) :]
    body = re.sub(r"\n  return 0;\n\}", "\n}", body.rstrip())
    body = re.sub(r"\binff\b", "INFINITY", body)  # TVM's name for it is nobody's
    names = [a.name for a in kernel.arguments]
    unused = [n for n in names if not re.search(rf"\b{n}\b", body)]
    body = "{" + "".join(f"\n  (void){n};" for n in unused) + body[1:]
    arguments = ",\n    ".join(_argument(kernel, a) for a in kernel.arguments)
    return f"HWPRUNE_KERNEL void {name}(\n    {arguments}) {body}\n"


def _argument(kernel: CKernel, argument: Argument) -> str:
    """`const int8_t *restrict x`; what may lie in one place is not restricted."""
    shared = kernel.in_place and argument.name in (kernel.arguments[0].name, "y")
    kind = C_TYPES[argument.dtype]
    const, restrict = "const " * argument.const, "" if shared else "restrict "
    return f"{const}{kind} *{restrict}{argument.name}"


@cache
def _register_math() -> None:
    tirx = load_tvm().tirx

    def called(name: str, op: Any) -> Any:
        return tirx.call_pure_extern("float32", name, *op.args)

    for op_name, name in _MATH.items():
        tirx.op.register_intrin_lowering(op_name, "c", f=partial(called, name))


def _generate(func: Any, names: Sequence[str]) -> str:
    _register_math()
    tvm = load_tvm()
    transform = tvm.tirx.transform
    target = tvm.target.Target({"kind": "c"})
    module = tvm.IRModule({_NAME: func.with_attr("global_symbol", _NAME)})
    passes = [
        transform.BindTarget(target),
        transform.FlattenBuffer(),
        transform.NarrowDataType(32),
        transform.UnrollLoop(),
        transform.RemoveNoOp(),
    ]
    with target:
        module = tvm.transform.Sequential(passes)(module)
        module = tvm.IRModule({_NAME: _with_pointers(module[_NAME], names)})
        module = tvm.transform.Sequential([transform.LowerTVMBuiltin(), transform.LowerIntrin()])(
            module
        )
    return str(tvm.get_global_func("target.build.c")(module, target).inspect_source())


def _with_pointers(func: Any, names: Sequence[str]) -> Any:
    """The function with pointers for buffers: what the C code generator prints, by these names."""
    tvm = load_tvm()
    tirx = tvm.tirx
    called = {p.name: name for p, name in zip(func.params, names, strict=True)}
    pointers, statements = {}, []
    body = func.body.seq if isinstance(func.body, tirx.SeqStmt) else [func.body]
    for statement in body:
        if isinstance(statement, tirx.DeclBuffer):
            buffer = statement.buffer
            kind = tvm.ir.PointerType(tvm.ir.PrimType(buffer.dtype))
            pointers[buffer.name] = tirx.Var(called[buffer.name], kind)
            statement = tirx.DeclBuffer(buffer, data=pointers[buffer.name])
        statements.append(statement)
    params = [
        pointers[p.name]
        if p.name in pointers
        else tirx.Var(called[p.name], tvm.ir.PointerType(tvm.ir.PrimType("int8")))
        for p in func.params
    ]
    made = tirx.PrimFunc(params, tirx.SeqStmt(statements))
    for key, value in func.attrs.items():
        made = made.with_attr(key, value)
    return made
