"""What the compiler makes of convolutions for Arm cores: the inner loop against the core's peak.

    python -m benchmarks.arm_kernels [--quick] [--out FILE] [--core NAME ...] [--model NAME ...]
                                     [--dtype float16]

Every fused convolution of the networks is compiled for every core. Of its hot loop (the innermost
loop with the densest multiply-adds, of those with at least half of the most): how many there are,
what is spilled, and the cycles of one iteration by LLVM's machine-code analyser, whose model of the
core knows no caches. `share` is multiply-adds a cycle
against the most that the same model starts. `unit_share` leaves out what the model makes
instructions wait for: the busiest unit alone. `core_share` is by the target's own table of what a
core starts in a cycle. A kernel below `GOAL` has its `reason`. Nothing was
timed: these are numbers of a model of the core, and say nothing of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks import common
from benchmarks.machine_code import Loop, analyse, analyser_version, hot_loop, peak
from benchmarks.roofline import kind
from hwprune.target import FLOAT16, FLOAT32, Target

MODELS = ("resnet18", "mobilenet_v2", "efficientnet_lite0")
CORES = ("cortex-a53", "cortex-a72", "cortex-a76")
HALF_CORES = ("cortex-a55", "cortex-a76")  # that have float16
OPS = ("conv2d", "expand_depthwise")
GOAL = 0.9
Row = dict[str, Any]


def convolutions(model: str, target: Target) -> dict[str, Any]:
    """The distinct fused convolutions of a network, by the name of the first call of each."""
    import torch

    from examples.models import build, example_input
    from hwprune.capture import capture, specialize
    from hwprune.lower import fold_batch_norm
    from hwprune.lower.for_target import fuse_for
    from hwprune.lower.limits import check_calls

    torch.set_num_threads(1)
    program = fold_batch_norm(specialize(capture(build(model), (example_input(model),))))
    calls = fuse_for(program, target).calls
    check_calls(calls, program, target.lanes)
    found: dict[Any, str] = {}
    for call in calls:
        if call.workload.op in OPS:
            found.setdefault(call.workload, call.name)
    return {name: workload for workload, name in found.items()}


def row(model: str, name: str, workload: Any, core: str) -> Row:
    """A kernel compiled for a core, in the type that it is of, and its hot loop analysed."""
    from hwprune.lower.kernels import kernel_for

    target = target_of(core, workload.output.dtype)
    assert target.core is not None
    assembly = assembly_of(workload, target)
    loop, cpu = hot_loop(assembly), target.core.mca_cpu
    kernel, found = kernel_for(workload, target, 1), analyse(loop, cpu)
    count, most = len(loop.multiply_adds), peak(cpu, target.dtype)
    made: Row = {
        "model": model,
        "kernel": name,
        "core": core,
        "dtype": target.dtype,
        "rule": kernel.rule,
        "kind": kind(workload),
        "tile": kernel.reason,
        "fmla": count,
        "instructions": loop.instructions,
        "spills": len(loop.spills),
        "cycles": round(found.cycles, 2),
        "share": round(count / found.cycles / most, 4),
        "unit_share": round(count / found.unit_cycles / most, 4),
        "core_share": round(count / target.core.fma_per_cycle / loop.core_cycles(target.core), 4),
    }
    return made | {"reason": reason(made, loop, target.core.in_order)}


def target_of(core: str, dtype: str) -> Target:
    """A core as it computes in a type."""
    from hwprune.dtype import in_dtype
    from hwprune.target import load_target

    return in_dtype(load_target(core), dtype)


def assembly_of(workload: Any, target: Any, threads: int = 1) -> str:
    """The assembly of the kernel that a rule makes of a workload."""
    from hwprune.lower.kernels import kernel_for, tvm_target
    from hwprune.tvm_runtime import compiling, load_tvm

    function = kernel_for(workload, target, threads).func.with_attr("global_symbol", "main")
    tvm = load_tvm()
    with compiling():
        made = tvm.compile(tvm.IRModule({"main": function}), target=tvm_target(target))
    return str(made.mod.inspect_source("s"))


def reason(made: Row, loop: Loop, in_order: bool) -> str:
    """Why a loop is below the goal, from what it holds and what the model says of it."""
    if made["share"] >= GOAL:
        return ""
    loads = len(loop.having(r"^ld"))
    waits = made["unit_share"] - made["share"] > 0.05
    if in_order and waits:
        what = "results are written in order by the model: a load after a multiply-add waits for it"
        return f"{what} ({loads} loads, {made['spills']} of spills)" if made["spills"] else what
    if made["spills"]:
        return f"{made['spills']} spills"
    return f"{loads} loads for {made['fmla']} multiply-adds"


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """A line for every core and kind of convolution."""
    lines = []
    for core, sort in dict.fromkeys((r["core"], r["kind"]) for r in rows):
        mine = [r for r in rows if (r["core"], r["kind"]) == (core, sort)]
        shares = sorted(r["share"] for r in mine)
        lines.append(
            [
                core,
                sort,
                str(len(mine)),
                f"{shares[0]:.2f}",
                f"{shares[len(shares) // 2]:.2f}",
                f"{min(r['unit_share'] for r in mine):.2f}",
                f"{min(r['core_share'] for r in mine):.2f}",
                str(sum(s >= GOAL for s in shares)),
                str(sum(r["spills"] > 0 for r in mine)),
            ]
        )
    return lines


HEADS = (
    *("core", "kind", "kernels", "least", "median", "least, units", "least, core"),
    *("≥ 0.9", "with spills"),
)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    made = common.parser(__doc__ or "", "one core, one network")
    made.add_argument("--core", action="append", choices=(*CORES, *HALF_CORES), metavar="NAME")
    made.add_argument("--model", action="append", choices=MODELS, metavar="NAME")
    made.add_argument("--dtype", choices=(FLOAT32, FLOAT16), default=FLOAT32)
    args = made.parse_args(argv)
    every = HALF_CORES if args.dtype == FLOAT16 else CORES
    cores = args.core or (every[1:2] if args.quick else every)
    models = args.model or (MODELS[1:2] if args.quick else MODELS)
    rows: list[Row] = []
    for model in models:
        for name, workload in convolutions(model, target_of(cores[0], args.dtype)).items():
            rows += [row(model, name, workload, core) for core in cores]
        common.console.print(f"{model}: {len(rows)} loops so far")
    common.table("Inner loops of convolutions (a model)", HEADS, summary(rows), text=2)
    facts = {"analyser": f"llvm-mca {analyser_version()}", "source": "model"}
    common.finish(args.out, rows, facts=facts)


if __name__ == "__main__":
    main()
