"""What must hold of every network: the certificate, twice is once, nothing is nothing, JSON, sizes.

Used with random networks by tests/test_networks.py and benchmarks/fuzz.py.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hwprune.couple import couple
from hwprune.coupling import Coupling
from hwprune.plan import Plan
from hwprune.program import Program, fingerprint, get_tensor, symbolic_dims, tensor_value
from hwprune.rewrite import kept_indices, rewrite
from hwprune.verify import verify

Kept = dict[str, dict[int, np.ndarray]]
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Facts:
    """What a network was: how much of it could be pruned, and whether it could be twice."""

    groups: int
    units: int
    frozen: int
    twice: bool


def check_network(program: Program, seed: int = 0) -> Facts:
    """AssertionError (or hwprune's own error) where a property does not hold."""
    random_ = random.Random(seed)
    coupling = couple(program)
    check_nothing(program, coupling)
    frozen = sum(f.width for f in coupling.frozen)
    if not coupling.groups:
        return Facts(0, 0, frozen, twice=False)
    plan = random_plan(program, coupling, random_)
    assert Plan.from_json(plan.to_json()) == plan
    smaller = rewrite(program, coupling, plan)
    verify(program, coupling, plan, smaller, seed=seed).check()
    check_sizes(coupling, plan, smaller)
    twice = check_twice(program, coupling, plan, smaller, random_)
    units = sum(g.width for g in coupling.groups)
    return Facts(len(coupling.groups), units, frozen, twice)


def random_plan(program: Program, coupling: Coupling, random_: random.Random) -> Plan:
    """Every group keeps a share of its own, at least one unit."""
    kept = {}
    for group in coupling.groups:
        share = random_.choice((0.0, 0.3, 0.5, 0.7, 0.9))
        least = 2 if group.through_norm_statistics else 1  # of one channel nothing is left
        count = min(max(least, round(group.width * share)), group.width)
        kept[group.name] = tuple(sorted(random_.sample(range(group.width), count)))
    return Plan(fingerprint(program), kept)


def check_nothing(program: Program, coupling: Coupling) -> None:
    """Keeping everything gives the same graph, which computes the same to the last bit."""
    same = rewrite(program, coupling, Plan.full(coupling, fingerprint(program)))
    assert fingerprint(same) == fingerprint(program)
    for a, b in zip(_outputs(program), _outputs(same), strict=True):
        assert torch.equal(a, b)


def check_sizes(coupling: Coupling, plan: Plan, smaller: Program) -> None:
    """Every value is a dense box of the size that the widths say."""
    widths = plan.widths()
    for node in smaller.module.graph.nodes:
        value = tensor_value(node)
        if value is not None and node.name in coupling.shapes and node.op != "output":
            wanted = [coupling.extent(node.name, d).at(widths) for d in range(value.ndim)]
            for d in set(range(value.ndim)) - symbolic_dims(node):
                assert int(value.shape[d]) == wanted[d], (node, tuple(value.shape), wanted)


def check_twice(
    program: Program, coupling: Coupling, first: Plan, smaller: Program, random_: random.Random
) -> bool:
    """Pruning what is pruned is pruning once with both; False where it cannot be said again.

    The smaller program may have coarser units (a channel less, and a group has no choice left),
    so that not every plan of the original is two plans.
    """
    again = couple(smaller)
    once = {g: _some(random_, units) for g, units in first.kept.items()}
    both = Plan(first.fingerprint, once)
    wanted = kept_indices(coupling, both, program)
    before = kept_indices(coupling, first, program)
    second = Plan(fingerprint(smaller), _units(again, _relative(wanted, before)))
    if not all(second.kept.values()):
        return False
    after = kept_indices(again, second, smaller)
    if not _same(_composed(before, after), wanted, program):
        return False
    twice, direct = rewrite(smaller, again, second), rewrite(program, coupling, both)
    state = direct.module.state_dict()
    for name, tensor in twice.module.state_dict().items():
        assert "_positions" in name or torch.equal(tensor, state[name]), name
    for a, b in zip(_outputs(twice), _outputs(direct), strict=True):
        assert a.shape == b.shape
        scale = float(a.abs().max().clamp_min(1e-30)) if a.numel() else 1.0
        assert a.numel() == 0 or float((a - b).abs().max()) <= TOLERANCE * scale
    return True


def _some(random_: random.Random, units: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(random_.sample(units, random_.randint(1, len(units)))))


def _relative(wanted: Kept, before: Kept) -> Kept:
    """The indices of `wanted`, counted within those of `before`."""
    return {
        name: {dim: np.searchsorted(before[name][dim], index) for dim, index in dims.items()}
        for name, dims in wanted.items()
    }


def _composed(before: Kept, after: Kept) -> Kept:
    """The original's indices that are kept by one plan and then by another."""
    composed = {name: dict(dims) for name, dims in before.items()}
    for name, dims in after.items():
        for dim, index in dims.items():
            known = composed.setdefault(name, {}).get(dim)
            composed[name][dim] = index if known is None else known[index]
    return composed


def _units(coupling: Coupling, wanted: Kept) -> dict[str, tuple[int, ...]]:
    """The units all of whose parameter indices are wanted."""
    result = {}
    for group in coupling.groups:
        alive = np.ones(group.width, dtype=bool)
        for site, index in group.index.items():
            listed = wanted.get(site.parameter, {}).get(site.dim)
            if listed is not None:
                alive &= np.isin(index, listed).all(axis=1)
        result[group.name] = tuple(np.flatnonzero(alive).tolist())
    return result


def _same(found: Kept, wanted: Kept, program: Program) -> bool:
    """Whether two sets of kept indices are the same, an axis not named being whole."""
    for name in found.keys() | wanted.keys():
        shape = get_tensor(program.module, name).shape
        for dim in found.get(name, {}).keys() | wanted.get(name, {}).keys():
            whole = np.arange(shape[dim])
            a, b = (kept.get(name, {}).get(dim, whole) for kept in (found, wanted))
            if not np.array_equal(a, b):
                return False
    return True


def _outputs(program: Program) -> list[Tensor]:
    """What a program yields for its example inputs."""
    with torch.no_grad():
        outputs = tree_leaves(program.module(*(x.clone() for x in program.inputs)))
    return [y for y in outputs if isinstance(y, Tensor)]
