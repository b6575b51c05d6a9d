"""Criteria that look at gradients, of a loss on labelled batches or of the network's own outputs.

Without labels the loss is a random projection of the outputs (`gather.projection`): the expected
square of its derivative is the squared length of the outputs' change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hwprune.coupling import Group
from hwprune.score.criterion import GRADIENTS, SAMPLES, Rows, criterion
from hwprune.score.evidence import Evidence, GradientSums


@criterion("taylor", needs=GRADIENTS, aggregate="sum", relative=False)
def taylor(evidence: Evidence, group: Group) -> Rows:
    """Squared first-order change of the loss, (sum g w)^2, mean over batches (Molchanov et al.,
    Importance Estimation for Neural Network Pruning, 2019).
    """
    return _rows(evidence, group, lambda sums: sums.square_of_sum)


@criterion("snip", needs=GRADIENTS, aggregate="sum", relative=False)
def snip(evidence: Evidence, group: Group) -> Rows:
    """Sensitivity to connections, sum |g w|, mean over batches (Lee et al., SNIP, 2019)."""
    return _rows(evidence, group, lambda sums: sums.sum_of_absolutes)


@criterion("obd", needs=SAMPLES, aggregate="sum", relative=False)
def obd(evidence: Evidence, group: Group) -> Rows:
    """Diagonal second order, sum h w^2 / 2 (LeCun et al., Optimal Brain Damage, 1990).

    The diagonal h is that of the empirical Fisher matrix: the mean of g^2 over single samples.
    """
    return _rows(evidence, group, lambda sums: 0.5 * sums.sum_of_squares)


@criterion("fisher", needs=SAMPLES, aggregate="sum", relative=False)
def fisher(evidence: Evidence, group: Group) -> Rows:
    """Half the mean squared derivative, by sample, with respect to a factor on the unit wherever a
    layer reads it (Liu et al., Group Fisher Pruning, 2021).
    """
    if group.name not in evidence.data.fisher:
        return []
    return [0.5 * evidence.data.fisher[group.name] / evidence.data.batches]


def _rows(evidence: Evidence, group: Group, pick: Callable[[GradientSums], Any]) -> Rows:
    found = (evidence.data.gradients.get((group.name, site)) for site in group.sites)
    return [pick(sums) / evidence.data.batches for sums in found if sums is not None]
