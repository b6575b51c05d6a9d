"""`Plan`: which units every group keeps, and what that is predicted to cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hwprune.atomic import write_text
from hwprune.coupling import HEAD_DIM, HEADS, Coupling
from hwprune.errors import ArtifactError, PlanError

_FORMAT = 1
_HINT = "write it again with hwprune prune"


@dataclass(frozen=True)
class Plan:
    """Kept unit indices (sorted) per group name, for the program with this fingerprint.

    `predicted` has at least the budgets' resources: latency_us, macs, params. `attention` says
    what a unit of an attention is, as `couple` takes it.
    """

    fingerprint: str
    kept: Mapping[str, tuple[int, ...]]
    predicted: Mapping[str, float] = field(default_factory=dict)
    attention: str = HEADS

    @staticmethod
    def full(coupling: Coupling, fingerprint: str) -> Plan:
        """The plan that keeps everything."""
        kept = {g.name: tuple(range(g.width)) for g in coupling.groups}
        return Plan(fingerprint, kept, attention=coupling.attention)

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read `plan.json`. Raises PlanError where it is absent or malformed."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise PlanError(f"cannot be read: {error.strerror}", where=str(path)) from error
        return Plan.from_json(data, str(path))

    @staticmethod
    def from_json(text: str | bytes, where: str = "") -> Plan:
        """The plan that `to_json` wrote. Raises PlanError, naming `where` it was read."""
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PlanError(f"not a JSON text: {error}", where=where, hint=_HINT) from error
        return _parse(raw, where)

    def to_json(self) -> str:
        """The text of `plan.json`."""
        return json.dumps(
            {
                "format": _FORMAT,
                "fingerprint": self.fingerprint,
                "attention": self.attention,
                "predicted": dict(self.predicted),
                "kept": {name: list(units) for name, units in self.kept.items()},
            }
        )

    def save(self, path: str | Path) -> None:
        """Write `plan.json`, whole or not at all. Raises PlanError where that is impossible."""
        try:
            write_text(path, self.to_json() + "\n")
        except ArtifactError as error:
            raise PlanError(error.what, where=error.where, hint=error.hint) from error

    def widths(self) -> dict[str, int]:
        """How many units each group keeps."""
        return {name: len(units) for name, units in self.kept.items()}

    def check(self, coupling: Coupling, fingerprint: str, where: str = "") -> None:
        """PlanError unless this plan fits the program with this coupling and fingerprint.

        `where` is the file that the plan comes from, if any.
        """
        if self.fingerprint != fingerprint:
            raise PlanError(
                f"the plan was made for another model: its fingerprint is {self.fingerprint}, "
                f"this model's is {fingerprint}",
                where=where,
                hint="plan this model anew",
            )
        if self.attention != coupling.attention:
            raise PlanError(
                f"the plan's units of attentions are {self.attention}, the model was coupled by "
                f"{coupling.attention}",
                where=where,
            )
        groups = {g.name: g.width for g in coupling.groups}
        prefix = f"{where}: " if where else ""
        if self.kept.keys() != groups.keys():
            odd = sorted(self.kept.keys() ^ groups.keys())[0]
            raise PlanError("the plan and the model have different groups", where=prefix + odd)
        for name, units in self.kept.items():
            if not units:
                raise PlanError("a group must keep at least one unit", where=prefix + name)
            if units[-1] >= groups[name]:
                raise PlanError(f"unit {units[-1]} of {groups[name]}", where=prefix + name)


def _parse(raw: Any, where: str) -> Plan:
    """A plan from parsed JSON; PlanError names the first entry that is wrong."""
    if not isinstance(raw, dict) or "format" not in raw:
        raise PlanError(f"not a plan of format {_FORMAT}", where=where, hint=_HINT)
    if raw["format"] != _FORMAT:
        raise PlanError(
            f"plan format {raw['format']!r} is not the {_FORMAT} of this hwprune",
            where=where,
            hint=_HINT,
        )
    kept, predicted = raw.get("kept"), raw.get("predicted", {})
    if not isinstance(raw.get("fingerprint"), str) or not isinstance(kept, dict):
        raise PlanError("'fingerprint' or 'kept' is missing", where=where)
    numbers = isinstance(predicted, dict) and all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in predicted.values()
    )
    if not numbers:
        raise PlanError("'predicted' does not map names to numbers", where=where)
    attention = raw.get("attention", HEADS)
    if attention not in (HEADS, HEAD_DIM):
        raise PlanError(f"'attention' is neither {HEADS} nor {HEAD_DIM}", where=where)
    for name, units in kept.items():
        if not isinstance(units, list) or not all(type(u) is int for u in units):
            raise PlanError("not a list of unit indices", where=f"{where}: {name}")
        if any(u < 0 for u in units) or sorted(set(units)) != units:
            raise PlanError("unit indices must ascend from 0", where=f"{where}: {name}")
    return Plan(
        fingerprint=raw["fingerprint"],
        kept={name: tuple(units) for name, units in kept.items()},
        predicted={name: float(value) for name, value in predicted.items()},
        attention=attention,
    )
