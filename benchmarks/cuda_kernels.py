"""What NVIDIA's compiler makes of whole networks' kernels: registers, shared memory and spills.

    python -m benchmarks.cuda_kernels [--quick] [--out FILE] [--model NAME ...] [--target NAME ...]
                                      [--dtype TYPE ...]

Every distinct kernel of the networks is compiled to machine code for the target's architecture by
nvcc, in every dtype, and what ptxas reports of it is compared with what the target has. A kernel
that does not compile is kept, with the compiler's message. Nothing was run: these numbers say that
the kernels can start, not how fast they are.

ptxas may spill a few registers so that one more block fits a multiprocessor. What spills is
compiled again for one block: `alone` is what it takes then; if that spills nothing, this is why.

Kernels are known by their source, architecture and compiler. Rows of FILE whose kernels are still
the same are kept, and so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks import common
from hwprune.nvcc import REGISTER_LIMIT

MODELS = ("resnet50", "mobilenet_v2", "efficientnet_lite0", "vit_small")
TARGETS = ("nvidia-h200", "nvidia-a100", "jetson-orin")  # sm_90, sm_80, sm_87
DTYPES = ("float16", "float32", "tf32", "bfloat16")
BATCH = 32
TOGETHER = 16  # kernels in one call of nvcc
TAKEN = ("registers", "static_shared_bytes", "spill_bytes", "stack_bytes", "alone", "failed")
BOUNDS = re.compile(r"__launch_bounds__\((\d+)\)")
Row = dict[str, Any]
Group = tuple[str, str, str]  # network, target, dtype


@dataclass(frozen=True)
class Entry:
    """A kernel of a network on a target, and the digest of what nvcc would compile."""

    model: str
    target: Any
    work: Any
    source: str


def workloads(model: str, target: Any, batch: int) -> list[Any]:
    """The distinct kernels of a network on a target, in order."""
    from hwprune.lower.for_target import fuse_for

    return list(dict.fromkeys(c.workload for c in fuse_for(_folded(model, batch), target).calls))


@cache
def _folded(model: str, batch: int) -> Any:
    """A network as every target's kernels are found in it."""
    import torch

    from examples.models import build, example_input
    from hwprune.capture import capture, specialize
    from hwprune.lower import fold_batch_norm

    torch.set_num_threads(1)
    program = capture(build(model).eval(), (example_input(model, batch),))
    return fold_batch_norm(specialize(program))


def digest(work: Any, target: Any, compiler: str) -> str:
    """What a compiled kernel is known by: 16 hexadecimal digits."""
    from hwprune.lower.cuda.source import cuda_source
    from hwprune.lower.kernels import kernel_for, tvm_target

    code = cuda_source({"k": kernel_for(work, target, 1).func}, tvm_target(target))
    text = "\0".join((code, target.gpu.architecture, compiler))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def taken(works: Sequence[Any], target: Any) -> list[Row]:
    """What each of some kernels takes, compiled in one call of nvcc; alone where that fails."""
    from hwprune.errors import HwpruneError, ToolchainError
    from hwprune.lower.cuda.source import cuda_source
    from hwprune.lower.kernels import kernel_for, tvm_target
    from hwprune.nvcc import compile_cubin

    functions = {f"k{i}": kernel_for(work, target, 1).func for i, work in enumerate(works)}
    try:
        source = cuda_source(functions, tvm_target(target))
        found = compile_cubin(source, target.gpu.architecture).kernels
    except ToolchainError:
        raise
    except HwpruneError as error:
        if len(works) == 1:
            return [{"failed": str(error)}]
        return [row for work in works for row in taken([work], target)]
    parts = [[r for n, r in found.items() if n.startswith(f"{f}_kernel")] for f in functions]
    rows = [_summed(part) for part in parts]
    for work, row in zip(works, rows, strict=True):
        if row.get("spill_bytes"):
            row["alone"] = alone(work, target)
    return rows


def alone(work: Any, target: Any) -> Row:
    """What a kernel takes where ptxas need not have more than one block on a multiprocessor."""
    from hwprune.lower.cuda.source import cuda_source
    from hwprune.lower.kernels import kernel_for, tvm_target
    from hwprune.nvcc import compile_cubin

    source = cuda_source({"k": kernel_for(work, target, 1).func}, tvm_target(target))
    bounded = BOUNDS.sub(r"__launch_bounds__(\1, 1)", source)
    return _summed(list(compile_cubin(bounded, target.gpu.architecture).kernels.values()))


def _summed(kernels: Sequence[Any]) -> Row:
    """Of the kernels that one call launches."""
    if not kernels:
        return {"failed": "no kernel in the machine code"}
    return {
        "registers": max(r.registers for r in kernels),
        "static_shared_bytes": max(r.shared_bytes for r in kernels),
        "spill_bytes": sum(r.spill_bytes for r in kernels),
        "stack_bytes": max(r.stack_bytes for r in kernels),
    }


def described(entry: Entry) -> Row:
    """What is known of a kernel before it is compiled."""
    from hwprune.lower.cuda.emit import LAUNCH
    from hwprune.lower.kernels import kernel_for
    from hwprune.table import describe

    kernel = kernel_for(entry.work, entry.target, 1)
    started = kernel.func.attrs.get(LAUNCH) if kernel.func.attrs else None
    return {
        "model": entry.model,
        "target": entry.target.name,
        "architecture": entry.target.gpu.architecture,
        "dtype": entry.target.dtype,
        "kernel": describe(entry.work),
        "rule": kernel.rule,
        "reason": kernel.reason,
        "source": entry.source,
        "dynamic_shared_bytes": int(started[3]) if started else None,
        "blocks": int(started[0]) * int(started[1]) if started else None,
    }


def rows_of(entries: Sequence[Entry], known: Mapping[str, Row]) -> Iterator[list[Row]]:
    """The rows of kernels, some at a time; those whose source is `known` are not compiled."""
    told = [e for e in entries if e.source in known]
    yield [described(e) | known[e.source] for e in told]
    fresh = [e for e in entries if e.source not in known]
    for begin in range(0, len(fresh), TOGETHER):
        chunk = fresh[begin : begin + TOGETHER]
        found = taken([e.work for e in chunk], chunk[0].target)
        yield [described(e) | row for e, row in zip(chunk, found, strict=True)]


def facts_of(rows: Sequence[Row]) -> dict[str, Row]:
    """What compiled kernels take, by the digest of their source."""
    whole = [r for r in rows if "source" in r and ("alone" in r or not r.get("spill_bytes"))]
    return {r["source"]: {k: r[k] for k in TAKEN if k in r} for r in whole}


def problems(rows: Sequence[Row], limits: Mapping[str, int]) -> list[Row]:
    """The kernels that do not compile, must spill, or take more than the target's blocks have."""
    return [
        r
        for r in rows
        if "failed" in r
        or (r["spill_bytes"] and not is_traded(r))
        or r["registers"] > REGISTER_LIMIT
        or (r["dynamic_shared_bytes"] or 0) + r["static_shared_bytes"] > limits[r["target"]]
    ]


def is_traded(row: Row) -> bool:
    """Whether a kernel spills by ptxas's choice, for the sake of one more block."""
    return "alone" in row and not row["alone"].get("spill_bytes", 1)


def why(row: Row) -> str:
    """What is wrong with a kernel, in a few words."""
    if "failed" in row:
        return str(row["failed"])
    text = f"{row['registers']} registers, {row['spill_bytes']} bytes spilled"
    if "alone" not in row:
        return text
    return f"{text}; of one block {row['alone']['registers']}, {row['alone']['spill_bytes']}"


def summary(rows: Sequence[Row], limits: Mapping[str, int]) -> list[Row]:
    """For every network, target and dtype: kernels, problems, `traded` ones, the most registers."""
    wrong = Counter(map(group_of, problems(rows, limits)))
    given = Counter(group_of(row) for row in rows if is_traded(row))
    found = []
    for group, count in Counter(map(group_of, rows)).items():
        most = [r["registers"] for r in rows if group_of(r) == group and "registers" in r]
        row: Row = dict(zip(("model", "target", "dtype"), group, strict=True))
        numbers = {"kernels": count, "problems": wrong[group], "traded": given[group]}
        found.append({**row, **numbers, "most_registers": max(most, default=0)})
    return found


def group_of(row: Row) -> Group:
    """The network, target and dtype of a row."""
    return row["model"], row["target"], row["dtype"]


def collect(
    asked: Sequence[Group], old: Sequence[Row], compiler: str, out: Path | None
) -> list[Row]:
    """The rows of all that is asked, and earlier ones of what is not; written as they come."""
    from hwprune.dtype import in_dtype
    from hwprune.target import load_target

    rows = [row for row in old if group_of(row) not in set(asked)]
    later = [row for row in old if group_of(row) in set(asked)]
    for model, name, dtype in asked:
        target = in_dtype(load_target(name), dtype)
        works = workloads(model, target, BATCH)
        entries = [Entry(model, target, work, digest(work, target, compiler)) for work in works]
        for part in rows_of(entries, facts_of([*later, *rows])):
            rows += part
            if out is not None and part:
                common.write(out, common.envelope([*rows, *_without(later, rows)]))
        later = [row for row in later if group_of(row) != (model, name, dtype)]
        print(f"{model} {name} {dtype}: {len(rows)} kernels so far", flush=True)
    return rows


def _without(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Earlier rows of kernels that have not been come to again."""
    have = {(*group_of(row), row["source"]) for row in new}
    return [row for row in old if (*group_of(row), row["source"]) not in have]


def main(argv: Sequence[str] | None = None) -> None:
    """Compile, show what is wrong, write the file."""
    from hwprune.measure_cuda import toolkit_version
    from hwprune.target import load_target

    parser = common.parser(__doc__, "one network, one target, float16")
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--target", action="append")
    parser.add_argument("--dtype", action="append", choices=DTYPES)
    options = parser.parse_args(argv)
    models = options.model or (MODELS[1:2] if options.quick else MODELS)
    targets = options.target or (TARGETS[:1] if options.quick else TARGETS)
    dtypes = options.dtype or (DTYPES[:1] if options.quick else DTYPES)
    compiler = "nvcc {}.{}".format(*toolkit_version())
    asked = [(m, t, d) for d in dtypes for t in targets for m in models]
    rows = collect(asked, common.rows_of(options.out), compiler, options.out)
    gpus = {name: load_target(name).gpu for name in {row["target"] for row in rows}}
    limits = {name: gpu.shared_bytes_per_block for name, gpu in gpus.items() if gpu}
    shown = [*problems(rows, limits), *filter(is_traded, rows)]
    common.table(
        "Kernels that do not compile, spill or do not fit",
        ("model", "target", "dtype", "kernel", "what"),
        [(*group_of(r), f"{r['rule']} {r['kernel']}", why(r)) for r in shown],
    )
    facts = {"nvcc": compiler, "summary": summary(rows, limits)}
    common.finish(options.out, rows, facts=facts)


if __name__ == "__main__":
    main()
