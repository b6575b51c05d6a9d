"""`Plan`: which units every group keeps, and what that is predicted to cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hwprune.atomic import write_text
from hwprune.coupling import Coupling
from hwprune.errors import ArtifactError, HwpruneError, PlanError
from hwprune.forms import USUAL, Forms

_FORMAT = 1
_HINT = "write it again with hwprune prune"


@dataclass(frozen=True)
class Plan:
    """Kept unit indices (sorted) per group name, for the program with this fingerprint.

    A branch keeps (0,), or nothing where it is removed whole, as do then the groups within.
    `predicted` has at least the budgets' resources: latency_us, macs, params. `forms` say what
    the units are, as `couple` takes them. `then` is a plan of the smaller program, if pruning
    goes on: all else here speaks of the first stage.
    """

    fingerprint: str
    kept: Mapping[str, tuple[int, ...]]
    predicted: Mapping[str, float] = field(default_factory=dict)
    forms: Forms = USUAL
    then: Plan | None = None

    @staticmethod
    def full(coupling: Coupling, fingerprint: str) -> Plan:
        """The plan that keeps everything."""
        kept = {name: tuple(range(width)) for name, width in coupling.full.items()}
        return Plan(fingerprint, kept, forms=coupling.forms)

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
        return json.dumps(self._raw())

    def _raw(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "fingerprint": self.fingerprint,
            **asdict(self.forms),
            "predicted": dict(self.predicted),
            "kept": {name: list(units) for name, units in self.kept.items()},
            **({} if self.then is None else {"then": self.then._raw()}),
        }

    def stages(self) -> tuple[Plan, ...]:
        """The plans of all stages, each without the next."""
        rest = () if self.then is None else self.then.stages()
        return replace(self, then=None), *rest

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
        for name, word in asdict(self.forms).items():
            other = getattr(coupling.forms, name)
            if word != other:
                raise PlanError(
                    f"the plan was made with {name} {word}, the model was coupled with {other}",
                    where=where,
                )
        full, gates = coupling.full, coupling.gates
        prefix = f"{where}: " if where else ""
        if self.kept.keys() != full.keys():
            odd = sorted(self.kept.keys() ^ full.keys())[0]
            raise PlanError("the plan and the model have different groups", where=prefix + odd)
        branches = {b.name for b in coupling.branches}
        for name, units in self.kept.items():
            gone = name in gates and not self.kept[gates[name]]
            if gone and units:
                raise PlanError(f"keeps units of {gates[name]}, which goes", where=prefix + name)
            if not units and not gone and name not in branches:
                raise PlanError("a group must keep at least one unit", where=prefix + name)
            if units and units[-1] >= full[name]:
                raise PlanError(f"unit {units[-1]} of {full[name]}", where=prefix + name)


def _parse(raw: Any, where: str) -> Plan:
    """A plan from parsed JSON; PlanError names the first entry that is wrong."""
    if not isinstance(raw, dict) or "format" not in raw:
        raise PlanError(f"not a plan of format {_FORMAT}", where=where, hint=_HINT)
    if isinstance(raw.get("then"), dict) and "then" in raw["then"]:
        raise PlanError("has more than two stages", where=where, hint=_HINT)
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
    try:
        forms = Forms.read(raw)
    except HwpruneError as error:
        raise PlanError(f"'{error.where}': {error.what}", where=where, hint=error.hint) from error
    for name, units in kept.items():
        if not isinstance(units, list) or not all(type(u) is int for u in units):
            raise PlanError("not a list of unit indices", where=f"{where}: {name}")
        if any(u < 0 for u in units) or sorted(set(units)) != units:
            raise PlanError("unit indices must ascend from 0", where=f"{where}: {name}")
    return Plan(
        fingerprint=raw["fingerprint"],
        kept={name: tuple(units) for name, units in kept.items()},
        predicted={name: float(value) for name, value in predicted.items()},
        forms=forms,
        then=_parse(raw["then"], f"{where}: then") if "then" in raw else None,
    )
