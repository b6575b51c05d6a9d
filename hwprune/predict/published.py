"""Tables of measured convolutions as CSV: one row per convolution, with its whole shape.

In: a file with the columns of `COLUMNS`. Out: `MeasuredConv`s. Raises TableError naming the line.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hwprune.errors import TableError
from hwprune.predict.conv_shape import ConvShape
from hwprune.predict.work import DEPTHWISE, DIRECT, WINOGRAD

COLUMNS = (
    "model", "abi", "task", "n", "cin", "cout", "in_h", "in_w", "kh", "kw", "stride", "pad",
    "groups", "latency_ms",
)  # fmt: skip


@dataclass(frozen=True)
class MeasuredConv:
    """A measured convolution: the device's name, the ABI of its code, the algorithm, the time."""

    device: str
    abi: str
    shape: ConvShape
    algorithm: str
    measured_us: float

    @property
    def layer(self) -> str:
        """The convolution, whatever the algorithm: the same layer is never in two folds."""
        return repr(self.shape)

    @property
    def family(self) -> str:
        """Convolutions of one plane and kernel, of any channels: much harder to leave out."""
        s = self.shape
        return f"{s.out_height}x{s.out_width} {s.kernel_height}x{s.kernel_width}/{s.stride}"


def read_convolutions(path: Path) -> tuple[MeasuredConv, ...]:
    """All rows of a file. Raises TableError naming the line that is malformed."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [c for c in COLUMNS if c not in (reader.fieldnames or ())]
            if missing:
                raise TableError(f"lacks the columns {', '.join(missing)}", where=f"{path}:1")
            rows = tuple(_row(raw, f"{path}:{reader.line_num}") for raw in reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"cannot be read: {error}", where=str(path)) from error
    if not rows:
        raise TableError("has no rows", where=str(path))
    return rows


def _row(raw: Mapping[str, str], where: str) -> MeasuredConv:
    try:
        n, cin, cout, height, width, kh, kw, stride, groups = (
            int(raw[name])
            for name in ("n", "cin", "cout", "in_h", "in_w", "kh", "kw", "stride", "groups")
        )
        top, left, bottom, right = _padding(json.loads(raw["pad"]))
        measured_us = 1000 * float(raw["latency_ms"])
    except (ValueError, TypeError) as error:
        raise TableError(f"is malformed: {error}", where=where) from error
    height, width = height + top + bottom, width + left + right
    least = min(n, cin, cout, kh, kw, stride, groups, height - kh + 1, width - kw + 1)
    if least < 1 or cin % groups or not (0 < measured_us < math.inf):
        raise TableError("is not a convolution with a latency", where=where)
    out_height, out_width = (height - kh) // stride + 1, (width - kw) // stride + 1
    shape = ConvShape(
        n, cin, cout, height, width, out_height, out_width, kh, kw, stride, groups
    )  # fmt: skip
    task = raw["task"]
    direct = DEPTHWISE if shape.depthwise else DIRECT
    algorithm = WINOGRAD if "winograd" in task else direct
    return MeasuredConv(raw["model"], raw["abi"], shape, algorithm, measured_us)


def _padding(raw: object) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) from one, two or four numbers."""
    numbers = [int(x) for x in raw] if isinstance(raw, list) else [int(str(raw))]
    if len(numbers) not in (1, 2, 4) or min(numbers) < 0:
        raise ValueError(f"padding {raw!r}")
    if len(numbers) == 4:
        return numbers[0], numbers[1], numbers[2], numbers[3]
    return numbers[0], numbers[-1], numbers[0], numbers[-1]
