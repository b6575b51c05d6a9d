"""What NVIDIA's compiler makes of whole networks' kernels: registers, shared memory and spills.

    python -m benchmarks.cuda_kernels [--quick] [--out FILE] [--model NAME ...] [--target NAME ...]

Every distinct kernel of the networks is compiled to machine code for the target's architecture by
nvcc, in every dtype, and what ptxas reports of it is compared with what the target has. A kernel
that does not compile is kept, with the compiler's message. Nothing was run: these numbers say that
the kernels can start, not how fast they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import common
from hwprune.nvcc import REGISTER_LIMIT

MODELS = ("resnet50", "mobilenet_v2", "efficientnet_lite0", "vit_small")
TARGETS = ("nvidia-a100", "jetson-orin", "nvidia-h200")  # sm_80, sm_87, sm_90
DTYPES = ("float16", "float32")
BATCH = 32

Row = dict[str, Any]


def workloads(model: str, target: Any, batch: int) -> list[Any]:
    """The distinct kernels of a network on a target, in order."""
    import torch

    from examples.models import build, example_input
    from hwprune.capture import capture, specialize
    from hwprune.lower import fold_batch_norm
    from hwprune.lower.for_target import fuse_for

    torch.set_num_threads(1)
    network = build(model).eval()
    program = specialize(capture(network, (example_input(model, batch),)))
    return list(dict.fromkeys(c.workload for c in fuse_for(fold_batch_norm(program), target).calls))


def rows_of(model: str, works: Sequence[Any], target: Any) -> list[Row]:
    """Every kernel compiled, all at once; one by one where that fails."""
    from hwprune.errors import HwpruneError
    from hwprune.lower.cuda.source import cuda_source
    from hwprune.lower.kernels import kernel_for, tvm_target
    from hwprune.nvcc import compile_cubin

    def compiled(chosen: Sequence[int]) -> Mapping[str, Any]:
        functions = {f"k{i}": kernel_for(works[i], target, 1).func for i in chosen}
        source = cuda_source(functions, tvm_target(target))
        return compile_cubin(source, target.gpu.architecture).kernels

    numbers = range(len(works))
    failed: dict[int, str] = {}
    try:
        found = dict(compiled(numbers))
    except HwpruneError:
        found = {}
        for i in numbers:
            try:
                found |= compiled([i])
            except HwpruneError as error:
                failed[i] = str(error)
    return [row(model, i, works[i], target, found, failed) for i in numbers]


def row(
    model: str,
    i: int,
    work: Any,
    target: Any,
    found: Mapping[str, Any],
    failed: Mapping[int, str],
) -> Row:
    """What is known of one kernel."""
    from hwprune.lower.cuda.emit import LAUNCH
    from hwprune.lower.kernels import kernel_for

    kernel = kernel_for(work, target, 1)
    started = kernel.func.attrs.get(LAUNCH) if kernel.func.attrs else None
    made: Row = {
        "model": model,
        "target": target.name,
        "architecture": target.gpu.architecture,
        "dtype": target.dtype,
        "op": work.op,
        "rule": kernel.rule,
        "reason": kernel.reason,
        "dynamic_shared_bytes": int(started[3]) if started else None,
        "blocks": int(started[0]) * int(started[1]) if started else None,
    }
    kernels = [r for name, r in found.items() if name.startswith(f"k{i}_kernel")]
    if i in failed or not kernels:
        return {**made, "failed": failed.get(i, "no kernel in the machine code")}
    return {
        **made,
        "registers": max(r.registers for r in kernels),
        "static_shared_bytes": max(r.shared_bytes for r in kernels),
        "spill_bytes": sum(r.spill_bytes for r in kernels),
        "stack_bytes": max(r.stack_bytes for r in kernels),
    }


def problems(rows: Sequence[Row], limits: Mapping[str, int]) -> list[Row]:
    """The kernels that do not compile, spill, or take more than the target's blocks have."""
    return [
        r
        for r in rows
        if "failed" in r
        or r["spill_bytes"]
        or r["registers"] > REGISTER_LIMIT
        or (r["dynamic_shared_bytes"] or 0) + r["static_shared_bytes"] > limits[r["target"]]
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Compile, show what is wrong, write the file."""
    from hwprune.dtype import in_dtype
    from hwprune.target import load_target

    parser = common.parser(__doc__, "one network, one target, float16")
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--target", action="append")
    options = parser.parse_args(argv)
    models = options.model or (MODELS[1:2] if options.quick else MODELS)
    targets = options.target or (TARGETS[-1:] if options.quick else TARGETS)
    rows: list[Row] = []
    for dtype in DTYPES[:1] if options.quick else DTYPES:
        for model in models:
            for name in targets:
                target = in_dtype(load_target(name), dtype)
                rows += rows_of(model, workloads(model, target, BATCH), target)
                print(f"{model} {name} {dtype}: {len(rows)} kernels so far", flush=True)
                if options.out is not None:
                    common.write(options.out, common.envelope(rows))
    limits = {name: load_target(name).gpu.shared_bytes_per_block for name in targets}
    common.table(
        "Kernels that do not compile, spill or do not fit",
        ("model", "target", "dtype", "rule", "what"),
        [
            (r["model"], r["target"], r["dtype"], r["rule"],
             str(r.get("failed") or f"{r['registers']} registers, {r['spill_bytes']} spilled"))
            for r in problems(rows, limits)
        ],
    )  # fmt: skip
    common.finish(options.out, rows)


if __name__ == "__main__":
    main()
