"""Whether LLVM knows what a target asks of it: it would print a line and go on with less."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from hwprune.errors import TargetError
from hwprune.target import Target
from hwprune.tvm_runtime import load_tvm


def check_llvm(target: Target) -> None:
    """Raise TargetError naming the first of triple, CPU and attributes that LLVM does not know."""
    if target.tvm_target.get("kind") == "llvm":
        _check(target.name, json.dumps(target.tvm_target, sort_keys=True))


@lru_cache(maxsize=32)
def _check(name: str, text: str) -> None:
    asked: Mapping[str, Any] = json.loads(text)
    tvm = load_tvm()
    codegen = tvm.target.codegen
    where = f"target {name!r}: tvm"
    triple = str(asked.get("mtriple") or codegen.llvm_get_system_triple())
    cpu = str(asked.get("mcpu") or "generic")
    if not codegen.llvm_is_valid_cpu(cpu, triple):
        generic = {"kind": "llvm", "mtriple": triple}
        if not any(codegen.llvm_is_valid_cpu(c, triple) for c in ("generic", "x86-64")):
            raise TargetError(
                f"LLVM does not know the triple {triple!r}",
                where=f"{where}.mtriple",
                hint="e.g. aarch64-linux-gnu or x86_64-linux-gnu",
            )
        known = [str(c) for c in codegen.llvm_get_cpu_archlist(tvm.target.Target(generic))]
        near = difflib.get_close_matches(cpu, known, n=3)
        raise TargetError(
            f"LLVM does not know the CPU {cpu!r}",
            where=f"{where}.mcpu",
            hint=f"did you mean {', '.join(near)}?" if near else f"one of {', '.join(known)}",
        )
    features = {str(f) for f in codegen.llvm_get_cpu_features(tvm.target.Target(dict(asked)))}
    for attribute in asked.get("mattr", ()):
        if not attribute.startswith("-") and attribute.removeprefix("+") not in features:
            raise TargetError(
                f"LLVM does not know the attribute {attribute!r} of {cpu}",
                where=f"{where}.mattr",
                hint="+ or - before a feature's name, e.g. +dotprod",
            )
