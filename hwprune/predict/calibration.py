"""Calibrations as files: `model.json` beside a target's `target.toml` (docs/prediction.md).

In: a fitted `LatencyModel` and where it comes from. Out: a `Calibrated` model for a target: its own
where there is one, else that of a calibrated core of the same class, with the wider interval that
was measured between cores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hwprune.atomic import write_text
from hwprune.errors import TableError
from hwprune.gpu import Gpu
from hwprune.predict.device import Device, described
from hwprune.predict.gpu_work import GPU_ALGORITHMS, GPU_TERMS
from hwprune.predict.machine import IN_ORDER, OUT_OF_ORDER
from hwprune.predict.model import LatencyModel
from hwprune.predict.residual import Residual
from hwprune.predict.work import ALGORITHMS, TERMS
from hwprune.target import Target, target_directories

FILE = "model.json"
FORMAT = "hwprune latency model 1"
OURS, TVM = "hwprune", "tvm"  # whose schedules the measured kernels had
CLASS = {IN_ORDER: "cortex-a53", OUT_OF_ORDER: "cortex-a72"}  # who speaks for a class
FAMILIES = {TERMS: ALGORITHMS, GPU_TERMS: GPU_ALGORITHMS}  # of cores, of GPUs
_HINT = "make it anew with python -m benchmarks.arm_prediction --fit --save FILE"


@dataclass(frozen=True)
class Calibrated:
    """A model, the target that it was calibrated on, whose schedules, on what, how many rows.

    `transfer`: logarithms of measured over predicted that hold four of five kernels of another
    core.
    """

    model: LatencyModel
    target: str
    schedules: str
    source: str
    rows: int
    transfer: tuple[float, float]

    def describe(self) -> str:
        """Where its predictions come from, in a line."""
        if not self.rows:
            return f"not calibrated: {self.source}"
        whose = "hwprune's" if self.schedules == OURS else "TVM's"
        return f"calibrated on {self.rows} of {whose} kernels on {self.target} ({self.source})"

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of the terms that its coefficients are of."""
        names = tuple(self.model.coefficients)
        return next(terms for terms, algorithms in FAMILIES.items() if algorithms == names)

    def to_json(self) -> str:
        """The text of a file."""
        model = self.model
        document = {
            "format": FORMAT,
            "target": self.target,
            "schedules": self.schedules,
            "source": self.source,
            "rows": self.rows,
            "terms": list(self.terms),
            "coefficients": {
                name: [float(f"{x:.4g}") for x in row] for name, row in model.coefficients.items()
            },
            "interval": [round(x, 4) for x in model.interval],
            "transfer": [round(x, 4) for x in self.transfer],
            "residual": model.residual.to_json() if model.residual else None,
        }
        return json.dumps(document, indent=1) + "\n"

    def save(self, path: Path) -> None:
        """Write a file, all or nothing."""
        write_text(path, self.to_json())

    @staticmethod
    def load(path: Path) -> Calibrated:
        """Read a file. Raises TableError naming it and what is malformed."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TableError(f"cannot be read: {error}", where=str(path), hint=_HINT) from error
        try:
            return _parse(raw)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            why = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise TableError(f"is no calibration: {why}", where=str(path), hint=_HINT) from error


def find_model(target: Target, machine: Device) -> Calibrated:
    """The calibration of a target, or of its class; its interval is that of what it is used for.

    A GPU without one of its own is as its description says, and reaches a usual share of it.

    The coefficients of another core, or of schedules that are not ours, have the wider interval
    that was measured where coefficients of one core predicted another.

    Raises TableError where the file is malformed or there is none for the class.
    """
    own = _file(target.name)
    if own is not None:
        return _as_used(Calibrated.load(own))
    if isinstance(machine, Gpu):
        model = described(machine)
        source = f"the described rates of {target.name} and the share of them that is usual"
        return Calibrated(model, target.name, OURS, source, 0, model.interval)
    name = CLASS[machine.kind]
    file = _file(name)
    if file is None:
        raise TableError(
            f"no calibration of {machine.kind} cores", where=f"target {target.name}", hint=_HINT
        )
    found = Calibrated.load(file)
    model = replace(found.model, interval=found.transfer, residual=None)
    source = f"{found.source}; {target.name} itself is not calibrated: generic {machine.kind} core"
    return replace(found, model=model, source=source)


def _as_used(found: Calibrated) -> Calibrated:
    """With what holds for kernels of our own schedules."""
    if found.schedules == OURS:
        return found
    return replace(found, model=replace(found.model, interval=found.transfer, residual=None))


def _file(name: str) -> Path | None:
    found = (directory / name / FILE for directory in target_directories())
    return next((file for file in found if file.is_file()), None)


def _parse(raw: Mapping[str, Any]) -> Calibrated:
    if raw["format"] != FORMAT:
        raise ValueError(f"its format is {raw['format']!r}, not {FORMAT!r}")
    terms = tuple(raw["terms"])
    if terms not in FAMILIES:
        known = " or ".join(", ".join(names) for names in FAMILIES)
        raise ValueError(f"its terms are not {known}")
    if raw["schedules"] not in (OURS, TVM):
        raise ValueError(f"schedules {raw['schedules']!r} are neither {OURS!r} nor {TVM!r}")
    rows = {name: np.array(raw["coefficients"][name], dtype=float) for name in FAMILIES[terms]}
    for name, row in rows.items():
        if row.shape != (len(terms),) or not np.isfinite(row).all() or row.min() < 0:
            raise ValueError(f"coefficients of {name} are not {len(terms)} positive numbers")
    residual = None if raw["residual"] is None else Residual.from_json(raw["residual"])
    model = LatencyModel(rows, _bounds(raw, "interval"), residual)
    return Calibrated(
        model, str(raw["target"]), raw["schedules"], str(raw["source"]), int(raw["rows"]),
        _bounds(raw, "transfer"),
    )  # fmt: skip


def _bounds(raw: Mapping[str, Any], name: str) -> tuple[float, float]:
    low, high = (float(x) for x in raw[name])
    if not -5 < low <= 0 <= high < 5:
        raise ValueError(f"{name} {low}, {high} does not hold 0")
    return low, high
