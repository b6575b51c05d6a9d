"""How long the analysis takes: capture, coupling, allocation, rewriting; against two peers.

    python -m benchmarks.analysis_time [--quick] [--out FILE] [--model NAME] [--timeout SECONDS]

One thread, each model and system in a child process, first use of each library paid on a tiny
network before. hwprune prunes to half the MACs; Torch-Pruning to 30 % fewer channels and
torch-kirigami to half the parameters, each with its magnitude criterion and the classifier kept.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import common
from benchmarks.child import call

MODELS = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "densenet121",
    "shufflenet_v2_x1_0",
    "squeezenet1_0",
    "googlenet",
    "vgg11_bn",
    "efficientnet_b0",
    "mnasnet0_5",
    "resnext50_32x4d",
    "regnet_y_400mf",
    "efficientnet_lite0",
    "rnet",
    "onet",
    "swin_t",
    "maxvit_t",
    "vit_b_16",
)
QUICK_MODELS = ("rnet",)
STAGES = {
    "hwprune": ("capture", "couple", "score", "price", "allocate", "rewrite"),
    "torch-pruning": ("graph", "prune"),
    "torch-kirigami": ("graph", "discover", "prune"),
}
MACS_SHARES = (0.5, 0.75, 0.9)  # the next one where much is frozen and less cannot be reached
SETUP_S = 300.0
Row = dict[str, Any]
Stages = Iterator[tuple[str, float]]


@dataclass
class Watch:
    """Seconds since the last stage ended."""

    last: float

    def stage(self, name: str) -> tuple[str, float]:
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        return name, round(seconds, 4)


def hwprune_stages(model: str) -> Stages:
    """Yield "setup", then every stage of hwprune with its seconds."""
    yield from _stages(model, _hwprune)


def torch_pruning_stages(model: str) -> Stages:
    """Yield "setup", then the stages of Torch-Pruning."""
    yield from _stages(model, _torch_pruning)


def torch_kirigami_stages(model: str) -> Stages:
    """Yield "setup", then the stages of torch-kirigami."""
    yield from _stages(model, _torch_kirigami)


def _stages(model: str, analyse: Callable[[Any, Any], Stages]) -> Stages:
    import torch
    from torch import nn

    from examples.models import build, example_input

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    hidden = (nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 1))
    tiny = nn.Sequential(*hidden, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 8))
    for _ in analyse(tiny.eval(), torch.randn(1, 3, 16, 16)):
        pass
    module, x = build(model), example_input(model)
    yield "setup", 0.0
    yield from analyse(module, x)


def _hwprune(module: Any, x: Any) -> Stages:
    from hwprune.allocate import allocate
    from hwprune.budget import MACS
    from hwprune.capture import capture, fingerprint, specialize
    from hwprune.cost import full_widths
    from hwprune.counted import macs_costs
    from hwprune.couple import couple
    from hwprune.errors import BudgetError
    from hwprune.lower import fold_batch_norm, fuse
    from hwprune.plan import Plan
    from hwprune.rewrite import rewrite
    from hwprune.score import score
    from hwprune.target import load_target
    from hwprune.workload import sites, width_candidates

    target = load_target("host")
    watch = Watch(time.perf_counter())
    program = capture(module, (x,))
    yield watch.stage("capture")
    coupling = couple(program)
    yield watch.stage("couple")
    scores = score(program, coupling)
    yield watch.stage("score")
    folded = fold_batch_norm(specialize(program))
    candidates = {g.name: width_candidates(g, coupling, target) for g in coupling.groups}
    costs = macs_costs(sites(fuse(folded), coupling, folded), candidates)
    full = full_widths(coupling.groups)
    dense = sum(cost.at(full) for cost in costs)
    yield watch.stage("price")
    for share in MACS_SHARES:
        try:
            chosen = allocate(scores, candidates, {MACS: costs}, {MACS: share * dense})
            break
        except BudgetError:
            if share == MACS_SHARES[-1]:
                raise
    yield watch.stage("allocate")
    plan = Plan(fingerprint(program), chosen.kept, dict(chosen.predicted))
    rewrite(program, coupling, plan)
    yield watch.stage("rewrite")


def _torch_pruning(module: Any, x: Any) -> Stages:
    import torch_pruning

    ignored = _heads(module, x)
    watch = Watch(time.perf_counter())
    pruner = torch_pruning.pruner.MagnitudePruner(
        module,
        x,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.3,
        ignored_layers=ignored,
    )
    yield watch.stage("graph")
    pruner.step()
    module(x)  # a model that no longer runs was not pruned
    yield watch.stage("prune")


def _torch_kirigami(module: Any, x: Any) -> Stages:
    from torch_kirigami import DependencyGraph
    from torch_kirigami.pruning import Greedy, GroupMagnitude, ParameterBudget, Pruner

    budget = ParameterBudget(max_params=sum(p.numel() for p in module.parameters()) // 2)
    watch = Watch(time.perf_counter())
    graph = DependencyGraph.build(module, args=(x,))
    yield watch.stage("graph")
    pruner = Pruner(module, graph=graph)
    candidates = pruner.discover_candidates()
    yield watch.stage("discover")
    pruned, _ = pruner.prune(candidates, budget=budget, strategy=Greedy(GroupMagnitude(p=2)))
    pruned(x)
    yield watch.stage("prune")


def _heads(module: Any, x: Any) -> list[Any]:
    """The layers that make the outputs: Torch-Pruning does not protect them by itself."""
    import torch
    from torch import nn
    from torch.utils._pytree import tree_leaves

    with torch.no_grad():
        widths = {t.shape[1] for t in tree_leaves(module(x))}
    linears = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    found = [m for m in linears if getattr(m, "out_features", None) in widths]
    return found or linears[-1:]


def measure(model: str, system: str, timeout_s: float) -> list[Row]:
    """Rows of one system on one model: every stage, then the total with the peak memory."""
    function = f"benchmarks.analysis_time:{system.replace('-', '_')}_stages"
    outcome = call(function, {"model": model}, threads=1, timeout_s=timeout_s, setup_s=SETUP_S)
    seconds = {name: value for name, value in outcome.values if name != "setup"}
    failed = "timeout" if outcome.timed_out else "failed"
    rows: list[Row] = []
    for stage in STAGES[system]:
        row = {"model": model, "system": system, "stage": stage, "seconds": seconds.get(stage)}
        missing = len(rows) == len(seconds)
        row["status"] = "ok" if stage in seconds else failed if missing else "not reached"
        rows.append(row)
    total: Row = {"model": model, "system": system, "stage": "total"}
    total["seconds"] = round(sum(seconds.values()), 4) if outcome.reason is None else None
    total["status"] = "ok" if outcome.reason is None else failed
    total["peak_rss_mib"] = outcome.peak_rss_mib
    if outcome.reason is not None:
        total["reason"] = outcome.reason
    return [*rows, total]


def show(rows: Sequence[Row]) -> None:
    """Print seconds by model, a column for each stage; then what failed, and why."""
    systems = dict.fromkeys(row["system"] for row in rows)
    columns = [(s, stage) for s in systems for stage in (*STAGES[s], "total")]
    cells = {(r["model"], r["system"], r["stage"]): r for r in rows}
    for system in systems:
        stages = [stage for s, stage in columns if s == system]
        common.table(
            f"{system}: seconds, one thread",
            ("model", *stages, "peak MiB"),
            [
                [m, *(_cell(cells[m, system, s]) for s in stages), _peak(cells[m, system, "total"])]
                for m in dict.fromkeys(r["model"] for r in rows)
            ],
        )
    for row in rows:
        if row.get("reason"):
            where = f"{row['system']} on {row['model']}"
            common.console.print(f"{where}: {row['reason']}", style="yellow", markup=False)


def _cell(row: Row) -> str:
    seconds = row["seconds"]
    return row["status"] if seconds is None else f"{seconds:.2f}"


def _peak(row: Row) -> str:
    peak = row.get("peak_rss_mib")
    return "-" if peak is None else f"{peak:.0f}"


def main() -> None:
    parser = common.parser(__doc__, f"{', '.join(QUICK_MODELS)} only, time-out 15 s")
    parser.add_argument("--model", action="append", help="only this network (repeatable)")
    parser.add_argument("--system", action="append", choices=STAGES, help="only this (repeatable)")
    parser.add_argument("--timeout", type=float, help="seconds for each model and system, 60")
    options = parser.parse_args()
    timeout_s = options.timeout or (15.0 if options.quick else 60.0)
    rows: list[Row] = []
    for model in options.model or (QUICK_MODELS if options.quick else MODELS):
        for system in options.system or STAGES:
            with common.console.status(f"{model}: {system}"):
                rows += measure(model, system, timeout_s)
    show(rows)
    common.finish(options.out, rows, ("torch-pruning", "torch-kirigami", "torchvision"))


if __name__ == "__main__":
    main()
