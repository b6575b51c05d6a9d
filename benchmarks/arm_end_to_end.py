"""Whole networks of published end-to-end tables, predicted from their kernels.

In: a table (a row per device, a column per network) and the model of the device's kernels. Out: the
calibrated `NetworkModel`, and a row of errors for every network.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.arm_boards import BOARDS
from hwprune.errors import TableError
from hwprune.predict.conv_shape import ConvShape
from hwprune.predict.divided import divided_work
from hwprune.predict.machine import Machine
from hwprune.predict.model import LatencyModel
from hwprune.predict.network import LAUNCH_US, NetworkModel, NetworkTerms
from hwprune.predict.published import MeasuredConv
from hwprune.predict.work import DEPTHWISE, DIRECT, WINOGRAD, memory_rate

Row = dict[str, Any]
FEWEST = 4  # networks to calibrate on


def networks(
    path: Path,
    device: str,
    rows: Sequence[MeasuredConv],
    model: LatencyModel,
    machine: Machine,
) -> tuple[NetworkModel, list[Row]]:
    """Networks calibrated on all, and each predicted by a calibration on the others."""
    from benchmarks.arm_networks import NETWORKS

    measured_ms = {n: ms for n, ms in read_networks(path, device).items() if n in NETWORKS}
    if len(measured_ms) < FEWEST:
        raise TableError(f"has {len(measured_ms)} networks that are known here", where=str(path))
    terms = {name: network_terms(name, rows, model, machine) for name in measured_ms}
    names = list(measured_ms)
    whole = NetworkModel.fit(list(terms.values()), [1000 * measured_ms[n] for n in names])
    found = []
    for name in names:
        others = [n for n in names if n != name]
        without = NetworkModel.fit(
            [terms[n] for n in others], [1000 * measured_ms[n] for n in others]
        )
        found.append(
            {
                "network": name,
                "measured_ms": measured_ms[name],
                "kernels_ms": round(terms[name].kernels / 1000, 1),
                "predicted_ms": round(whole.us(terms[name]) / 1000, 1),
                "error_percent": _percent(whole.us(terms[name]), measured_ms[name]),
                "left_out_error_percent": _percent(without.us(terms[name]), measured_ms[name]),
            }
        )
    return whole, found


def _percent(predicted_us: float, measured_ms: float) -> float:
    return round(100 * (predicted_us / 1000 / measured_ms - 1), 1)


def read_networks(path: Path, device: str) -> dict[str, float]:
    """Milliseconds by network. Raises TableError where the device is not there."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"cannot be read: {error}", where=str(path)) from error
    names = {device, BOARDS[device].network_table if device in BOARDS else device}
    for number, line in enumerate(lines, start=2):
        if line.get("device") in names:
            try:
                return {k: float(v) for k, v in line.items() if k not in ("device", "cores") and v}
            except (TypeError, ValueError) as error:
                raise TableError(f"is malformed: {error}", where=f"{path}:{number}") from error
    known = ", ".join(str(line.get("device")) for line in lines)
    raise TableError(f"has no row for {device!r}", where=str(path), hint=f"it has {known}")


def network_terms(
    name: str, rows: Sequence[MeasuredConv], model: LatencyModel, machine: Machine
) -> NetworkTerms:
    """The sum of a network's predicted kernels, and its bytes at the described bandwidth."""
    from benchmarks.arm_networks import layers

    shapes, linear_bytes = layers(name)
    tuned = {row.layer: row.algorithm for row in rows}
    works = [divided_work(s, tuned.get(repr(s), _usual(s)), machine) for s in shapes]
    rate = memory_rate(machine) / 1e6  # bytes per microsecond
    bare = [replace(work, weight_bytes=0.0) for work in works]
    return NetworkTerms(
        float(model.median_us(bare, machine).sum()),
        sum(work.weight_bytes for work in works) / rate,
        linear_bytes / rate,
        sum(work.tensor_bytes[-1] for work in works) / rate,
        LAUNCH_US * len(works),
    )


def _usual(shape: ConvShape) -> str:
    """The template that TVM takes for a convolution that nobody has tuned."""
    if shape.depthwise:
        return DEPTHWISE
    small = (shape.kernel_height, shape.kernel_width, shape.stride) == (3, 3, 1)
    return WINOGRAD if small and shape.channels >= 64 else DIRECT
