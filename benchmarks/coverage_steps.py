"""One model through the whole of pruning, step by step, with what is found at each.

In: a library and a model's name. Out: facts, yielded after every step so that those before a
failure or a time-out are kept.
"""

from __future__ import annotations

import io
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from benchmarks.coverage_models import build
from hwprune.capture import capture, fingerprint, specialize
from hwprune.couple import couple
from hwprune.coupling import Coupling, Extent
from hwprune.errors import ModelError
from hwprune.plan import Plan
from hwprune.program import Program
from hwprune.result import export_program
from hwprune.rewrite import rewrite
from hwprune.rules.engine import argument, operator_names
from hwprune.score import score
from hwprune.verify import verify

MACS_SHARE = 0.5
_TRAIN_BATCH = 2  # batch norm over a 1x1 image needs more than one
Facts = dict[str, Any]
Extents = tuple[Extent, ...]


def steps(library: str, model: str) -> Iterator[tuple[str, Facts]]:
    """Yield (step, facts), a pair for each of `coverage.STEPS`.

    Seconds are processor time, one thread. A model that cannot be exported ends with "declined".
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    module, inputs = build(library, model)
    shapes = [list(x.shape) for x in inputs]
    yield "build", {"inputs": shapes, "parameters": sum(p.numel() for p in module.parameters())}
    watch = time.process_time()
    try:
        program = capture(module, inputs, name=model)
    except ModelError as error:
        if "cannot be exported" not in error.what:
            raise
        yield "declined", {"reason": str(error)}
        return
    facts = _since(watch, "capture") | {"dynamic_batch": program.dynamic_batch}
    yield "capture", facts
    watch = time.process_time()
    fixed = specialize(program)
    coupling = couple(fixed)
    yield "couple", _since(watch, "couple") | _coupling_facts(program, coupling)
    watch = time.process_time()
    plan, macs_share = half_the_macs(program, fixed, coupling)
    yield "plan", _since(watch, "plan") | {"macs_share": round(macs_share, 4)}
    watch = time.process_time()
    smaller = rewrite(program, coupling, plan)
    yield "rewrite", _since(watch, "rewrite")
    watch = time.process_time()
    certificate = verify(program, coupling, plan, smaller)
    certificate.check()
    errors = {"max_rel_error": certificate.max_rel_error}
    gradients = {"gradient_rel_error": certificate.gradient_rel_error}
    yield "verify", _since(watch, "verify") | errors | gradients
    watch = time.process_time()
    yield "save", _saved_and_loaded(smaller) | _since(watch, "save")
    watch = time.process_time()
    _train(smaller)
    yield "train", _since(watch, "train")


def _since(start: float, step: str) -> Facts:
    return {f"{step}_seconds": round(time.process_time() - start, 3)}


def _coupling_facts(program: Program, coupling: Coupling) -> Facts:
    """Groups, units, the share of parameters that can be pruned, frozen channels by reason."""
    reasons: Counter[str] = Counter()
    for frozen in coupling.frozen:
        reasons[frozen.reason] += frozen.width
    return {
        "groups": len(coupling.groups),
        "units": sum(g.width for g in coupling.groups),
        "prunable_share": round(prunable_share(program, coupling), 4),
        "frozen": dict(reasons.most_common()),
    }


def prunable_share(program: Program, coupling: Coupling) -> float:
    """The share of all parameters that lie in a row, column or slice of some group's unit."""
    total = stays = 0
    for name, parameter in program.module.named_parameters():
        total += parameter.numel()
        known = coupling.aliases.get(name, name) in coupling.parameter_shapes
        extents = coupling.parameter_extents(name) if known else ()
        stays += prod(e.const for e in extents) if known else parameter.numel()
    return 1 - stays / total if total else 0.0


def half_the_macs(program: Program, fixed: Program, coupling: Coupling) -> tuple[Plan, float]:
    """(a random plan with half the multiply-accumulates, the share that it keeps).

    Every group keeps the same share of its units, those with the highest random scores. Where
    half cannot be reached, each keeps half of its units.
    """
    products = contractions(fixed, coupling)
    scores = score(program, coupling, "random")

    def widths(share: float) -> dict[str, int]:
        return {g.name: max(1, round(share * g.width)) for g in coupling.groups}

    def macs(of: dict[str, int]) -> int:
        return sum(prod(extent.at(of) for extent in extents) for extents in products)

    dense = max(1, macs(widths(1.0)))
    low, high = 0.0, 1.0
    while high - low > 1e-3:
        share = (low + high) / 2
        low, high = (low, share) if macs(widths(share)) > MACS_SHARE * dense else (share, high)
    chosen = widths(low if macs(widths(low)) <= MACS_SHARE * dense else MACS_SHARE)
    kept = {g.name: _highest(scores[g.name], chosen[g.name]) for g in coupling.groups}
    return Plan(fingerprint(program), kept), macs(chosen) / dense


def _highest(scores: np.ndarray, count: int) -> tuple[int, ...]:
    return tuple(sorted(np.argsort(-scores, kind="stable")[:count].tolist()))


def contractions(fixed: Program, coupling: Coupling) -> list[Extents]:
    """The sizes whose product is a node's multiply-accumulates, for every node that has any."""
    found: list[Extents] = []
    for node in fixed.module.graph.nodes:
        if node.op == "call_function":
            sizes = _contraction(node, coupling)
            found += [sizes] if sizes else []
    return found


def _contraction(node: fx.Node, coupling: Coupling) -> Extents:
    """The output's sizes and those that are summed over; nothing for other operators."""

    def sizes(of: Any) -> Extents:
        return tuple(coupling.extent(of.name, d) for d in range(len(coupling.shapes[of.name])))

    name = operator_names(node)[1]
    if name.startswith("conv_transpose") or (name == "convolution" and node.args[6]):
        return (*sizes(node.args[0]), *sizes(node.args[1])[1:])
    if name in ("conv1d", "conv2d", "conv3d", "convolution"):
        return (*sizes(node), *sizes(node.args[1])[1:])
    if name in ("linear", "matmul", "mm", "bmm"):
        return (*sizes(node), sizes(node.args[0])[-1])
    if name in ("addmm", "baddbmm"):
        return (*sizes(node), sizes(node.args[1])[-1])
    if name == "scaled_dot_product_attention":
        doubled = (Extent(2), *sizes(node.args[0]), sizes(argument(node, 1, "key"))[-2])
        return doubled  # queries by keys, then weights by values
    return ()


def _saved_and_loaded(smaller: Program) -> Facts:
    """Save as `.pt2`, load, compare. Raises ValueError where an output differs."""
    buffer = io.BytesIO()
    torch.export.save(export_program(smaller), buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    with torch.no_grad():
        wanted = tree_leaves(smaller.module.eval()(*(x.clone() for x in smaller.inputs)))
        found = tree_leaves(loaded(*(x.clone() for x in smaller.inputs)))
    for a, b in zip(wanted, found, strict=True):
        if isinstance(a, Tensor) and not torch.equal(a, b):
            raise ValueError("the saved program computes something else once loaded")
    return {"saved_bytes": buffer.getbuffer().nbytes}


def _train(smaller: Program) -> None:
    """One step of gradient descent in training mode. Raises ValueError where nothing moves."""
    module = smaller.module.train()
    batch = _TRAIN_BATCH if smaller.dynamic_batch else 1
    inputs = [torch.cat([x] * batch) if batch > 1 else x.clone() for x in smaller.inputs]
    optimiser = torch.optim.SGD(module.parameters(), lr=1e-3)
    outputs = [y for y in tree_leaves(module(*inputs)) if isinstance(y, Tensor)]
    used = [y for y in outputs if y.requires_grad]
    loss = torch.stack([(y - 1).square().mean() for y in used]).sum()
    loss.backward()
    moved = [p for p in module.parameters() if p.grad is not None and bool((p.grad != 0).any())]
    finite = all(bool(torch.isfinite(p.grad).all()) for p in moved if p.grad is not None)
    optimiser.step()
    if not moved or not finite:
        raise ValueError(f"a train step moved {len(moved)} parameters, finite: {finite}")
