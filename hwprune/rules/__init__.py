"""How channel labels move through every supported operator, and how its integers shrink.

The only place to edit to support an operator: a label rule in `elementwise`, `movement`,
`arrangement`, `contraction`, `product`, `attention`, `recurrent` or `reduction`, and where the
operator holds sizes, a resizer in `resize`. An operator without a rule is probed with random
values, and freezes what it touches where channels cannot be followed.
"""

from hwprune.rules import (
    arrangement,
    attention,
    contraction,
    elementwise,
    movement,
    product,
    recurrent,
    reduction,
)
from hwprune.rules.engine import RULES, Tracer, find_rule

__all__ = [
    "RULES",
    "Tracer",
    "arrangement",
    "attention",
    "contraction",
    "elementwise",
    "find_rule",
    "movement",
    "product",
    "recurrent",
    "reduction",
]
