"""Choosing units again and again under the same budgets while a network trains.

In: a `Prepared` network and budgets; scores, each time. Out: a `Plan`. A latency is measured once,
by a search like that of `hwprune.prune`; later choices use its kernels and calibration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hwprune.allocate import allocate
from hwprune.budget import LATENCY, MACS, PARAMS, Budget
from hwprune.cost import Cost
from hwprune.latency import search
from hwprune.plan import Plan
from hwprune.prepare import Prepared
from hwprune.program import fingerprint
from hwprune.progress import Progress
from hwprune.solver import network_costs


class Chooser:
    """Keeps what pricing needs between choices."""

    def __init__(
        self, prepared: Prepared, budgets: Mapping[str, Budget], progress: Progress
    ) -> None:
        self._prepared, self._budgets, self._progress = prepared, budgets, progress
        self._costs: dict[str, Sequence[Cost]] = {}
        self._absolute: dict[str, float] = {}

    def choose(self, scores: Mapping[str, np.ndarray]) -> Plan:
        """The plan that keeps the most importance. BudgetError where a budget cannot be met."""
        prepared = self._prepared
        if not self._costs:
            return self._first(scores)
        chosen = allocate(
            scores, prepared.candidates, self._costs, self._absolute, gates=prepared.gates
        )
        forms = prepared.coupling.forms
        return Plan(fingerprint(prepared.program), chosen.kept, dict(chosen.predicted), forms)

    def _first(self, scores: Mapping[str, np.ndarray]) -> Plan:
        prepared = self._prepared
        outcome = search(prepared, scores, self._budgets, self._progress)
        self._costs = {MACS: prepared.macs, PARAMS: prepared.params}
        self._absolute = {
            r: b.absolute(prepared.dense(r)) for r, b in self._budgets.items() if r != LATENCY
        }
        timing = outcome.timing
        if timing is not None:
            self._costs[LATENCY] = network_costs(timing.broad, timing.calibration)
            dense_us = sum(cost.at(prepared.full) for cost in self._costs[LATENCY])
            self._absolute[LATENCY] = self._budgets[LATENCY].absolute(dense_us)
        if outcome.estimate is not None:
            found = outcome.estimate
            self._costs[LATENCY] = network_costs(found.broad, found.calibration)
            self._absolute[LATENCY] = self._budgets[LATENCY].absolute(found.dense.median_us)
        return outcome.plan
