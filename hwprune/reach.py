"""Whether a latency budget can be met at all, from two kernels of every layer.

In: a `Prepared` network, its table and a budget. The kernels of the narrowest and of the full
network are measured first (the search needs them anyway): a hopeless budget is refused in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hwprune.branches import find_branches
from hwprune.budget import Budget
from hwprune.capture import specialize
from hwprune.errors import BudgetError
from hwprune.lower.spec import Workload
from hwprune.measure import Measured
from hwprune.obtain import obtain
from hwprune.prepare import Prepared
from hwprune.price import extremes
from hwprune.progress import Advance
from hwprune.remote.measure import BoardTable
from hwprune.table import LatencyTable

MARGIN = 1.15  # sums of kernels are this near to a network before they are calibrated


def check_latency(
    prepared: Prepared,
    table: LatencyTable,
    budget: Budget,
    advance: Advance | None = None,
    boards: BoardTable | None = None,
    fill: Callable[[Sequence[Workload]], Measured] | None = None,
) -> Measured:
    """Measure the narrowest and the full network's kernels; says what was measured.

    `fill` puts rows of kernels into the table where they are not float kernels.

    Raises BudgetError, with the smallest reachable latency, where even that exceeds the budget by
    more than a sum of kernels can be wrong.
    """
    ends = extremes(prepared.sites, prepared.candidates)
    workloads = [workload for narrow, full, _ in ends for workload in (narrow, full)]
    threads = prepared.threads
    if fill is not None:
        done = fill(workloads)
    else:
        done = obtain(workloads, prepared.target, threads, table, progress=advance, boards=boards)
    if table.failures(workloads, threads):
        return done  # reported where the costs are made
    stay = extremes([s for s in prepared.sites if not s.branch], prepared.candidates)
    least_us = sum(count * table.latency_us(narrow, threads) for narrow, _, count in stay)
    dense_us = sum(count * table.latency_us(full, threads) for _, full, count in ends)
    goal_us = budget.absolute(dense_us)
    if least_us > MARGIN * goal_us:
        raise BudgetError(
            f"cannot be met: {goal_us / 1000:.6g} ms asked, about {least_us / 1000:.4g} ms is the "
            f"smallest reachable ({100 * least_us / dense_us:.1f}% of the dense network)",
            where="latency",
            hint=way_out(prepared),
        )
    return done


def way_out(prepared: Prepared) -> str:
    """What to do about a latency that no widths reach."""
    coupling = prepared.coupling
    if coupling.forms.branches:
        return "raise the budget"
    found = find_branches(specialize(prepared.program).module.graph, coupling)
    if not found:
        return "raise the budget"
    return f"raise the budget, or let residual branches go ({len(found)} can): --branches"
