"""The checkpoint of a training: written whole or not at all, refused where it is of another one.

In: a path and plain state (tensors, numbers, texts). Nothing in the file is code.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hwprune.errors import HwpruneError, PlanError


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state beside `path` and move it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        torch.save(dict(state), partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_checkpoint(
    path: Path, settings: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """The state that was written with the same settings; absent ones were the defaults.

    Raises HwpruneError for a damaged file or other settings.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        saved = dict(defaults) | state["config"]
        held = {"module", "optimizer", "losses"} <= state.keys()
    except Exception as error:  # a damaged file makes torch raise almost anything
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error
    if not held:
        raise _unreadable(path, "it holds no training")
    differing = [key for key in sorted({*saved, *settings}) if saved.get(key) != settings.get(key)]
    if differing:
        listed = ", ".join(f"{k} {saved.get(k)} (now {settings.get(k)})" for k in differing)
        raise HwpruneError(
            f"the checkpoint was trained with other settings: {listed}",
            where=str(path),
            hint=_hint(path),
        )
    return state


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Give a module a checkpoint's weights. PlanError where they are of another network."""
    own = module.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        if name not in tensors or name not in own:
            there = "the checkpoint" if name in tensors else "the network"
            raise PlanError(
                f"the checkpoint is of another network: only {there} has {name}",
                where=str(path),
                hint=_hint(path),
            )
        if own[name].shape != tensors[name].shape:
            raise PlanError(
                f"the checkpoint is of another plan: {name} has shape "
                f"{tuple(tensors[name].shape)} there, {tuple(own[name].shape)} here",
                where=str(path),
                hint=_hint(path),
            )
    module.load_state_dict(dict(tensors))


def _unreadable(path: Path, reason: str) -> HwpruneError:
    return HwpruneError(
        f"the checkpoint cannot be read: {reason}", where=str(path), hint=_hint(path)
    )


def _hint(path: Path) -> str:
    return f"delete {path} to start again"
