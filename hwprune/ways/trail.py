"""The checkpoint directory of a pruning in steps: what was asked, every step's plan and weights.

In: a directory, or None to keep nothing. A step's plan is kept before it is recovered, its weights
after, so that neither a search nor a finished recovery is done again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwprune.atomic import check_writable, replace_directory, write_text
from hwprune.errors import HwpruneError
from hwprune.plan import Plan
from hwprune.program import Program
from hwprune.weights import PLAN, WEIGHTS, fill, read_weights, weights_bytes

SETTINGS, NOTES = "settings.json", "notes.json"


@dataclass(frozen=True)
class Trail:
    """What is kept of a pruning in steps, under `folder`/step-1, step-2, ..."""

    folder: Path | None

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Start, or go on. Raises HwpruneError where the directory is of another pruning."""
        if self.folder is None:
            return
        check_writable(self.folder)
        path = self.folder / SETTINGS
        given = json.loads(json.dumps(settings))
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(given, indent=1) + "\n")
            return
        saved = read_json(path)
        differing = [key for key in given if saved.get(key) != given[key]]
        if differing:
            key = differing[0]
            raise HwpruneError(
                f"was made with {key} {saved.get(key)!r}, now it is {given[key]!r}",
                where=str(path),
                hint="ask for the same again, or choose another directory",
            )

    def plan(self, step: int) -> tuple[Plan, dict[str, Any]] | None:
        """The plan of a step and the notes on it, if it was found before."""
        folder = self._step(step)
        if folder is None or not (folder / PLAN).exists():
            return None
        return Plan.load(folder / PLAN), read_json(folder / NOTES)

    def keep_plan(self, step: int, plan: Plan, notes: Mapping[str, Any]) -> None:
        """Write the plan of a step and notes on it."""
        self._write(step, {NOTES: json.dumps(notes).encode(), PLAN: plan.to_json().encode()})

    def restore(self, step: int, program: Program) -> bool:
        """Give a program the recovered weights of a step; False if there are none yet.

        Raises ArtifactError where they are corrupt or of another plan.
        """
        folder = self._step(step)
        if folder is None or not (folder / WEIGHTS).exists():
            return False
        fill(program, read_weights(folder / WEIGHTS), folder / WEIGHTS)
        return True

    def keep(self, step: int, program: Program) -> None:
        """Write the recovered weights of a step."""
        self._write(step, {WEIGHTS: weights_bytes(program)})

    def training(self, step: int) -> Path | None:
        """Where the training of a step keeps its own checkpoint."""
        folder = self._step(step)
        return None if folder is None else folder / "training.pt"

    def _step(self, step: int) -> Path | None:
        return None if self.folder is None else self.folder / f"step-{step}"

    def _write(self, step: int, files: Mapping[str, bytes]) -> None:
        folder = self._step(step)
        if folder is not None:
            with replace_directory(folder) as staging:
                for name, data in files.items():
                    (staging / name).write_bytes(data)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises HwpruneError where it is absent or none."""
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError("not an object")
        return found
    except (OSError, ValueError) as error:
        raise HwpruneError(
            f"cannot be read: {error}", where=str(path), hint="choose another directory"
        ) from error
