"""Importance: a score for every unit of every group, comparable between groups.

In: a `Program`, its `Coupling`, and for some criteria batches and a loss, or unlabelled images.
Out: `Scores`. A criterion gives the members of a group raw energies (`weights`, `gradients`,
`activations`); `combine` joins the members and makes the groups comparable.
"""

from hwprune.score import activations, gradients, weights  # noqa: F401 - they register criteria
from hwprune.score.combine import AGGREGATES, NORMALISATIONS, normalise
from hwprune.score.criterion import CRITERIA, Criterion
from hwprune.score.evidence import Batch, Evidence, Loss
from hwprune.score.scoring import Images, Scores, check_importance, score

__all__ = [
    "AGGREGATES",
    "CRITERIA",
    "NORMALISATIONS",
    "Batch",
    "Criterion",
    "Evidence",
    "Images",
    "Loss",
    "Scores",
    "check_importance",
    "normalise",
    "score",
]
