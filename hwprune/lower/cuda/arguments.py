"""Which tensor each parameter of a compiled kernel is.

In: CUDA source, a kernel's name. Out: for every parameter the number of the tensor that it points
to, or the C type of an offset.
"""

from __future__ import annotations

import re

from hwprune.lower.cuda.source import parameters_of


def places(code: str, kernel: str, inputs: int, count: int) -> list[int | str]:
    """Of `count` tensors (inputs, packed parameters, the output) where each parameter points.

    Offsets within a tensor, which are zero, give their type instead.
    """
    found: list[int | str] = []
    for name, kind in parameters_of(code, kernel):
        place = re.fullmatch(r"([xpy])(\d*)(?:_flat)?(?:_ptr)?", name)
        if place is None:
            found.append(kind)
        else:
            found.append(int(place[2] or 0) + {"x": 0, "p": inputs, "y": count - 1}[place[1]])
    return found
