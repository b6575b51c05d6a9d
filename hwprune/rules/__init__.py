"""How channel labels move through every supported operator, and how its integers shrink.

The only place to edit to support an operator: a label rule in `elementwise`, `movement`,
`arrangement`, `contraction` or `reduction`, and where the operator holds sizes, a resizer in
`resize`.
An operator without a rule freezes what it touches.
"""

from hwprune.rules import arrangement, contraction, elementwise, movement, reduction
from hwprune.rules.engine import RULES, Tracer, find_rule

__all__ = [
    "RULES",
    "Tracer",
    "arrangement",
    "contraction",
    "elementwise",
    "find_rule",
    "movement",
    "reduction",
]
