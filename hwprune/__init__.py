"""hwprune: a trained model, a device and a budget in; the smaller compiled model that meets it out.

Names are imported on first use, so that `import hwprune` stays cheap and `hwprune.load` never
imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hwprune.errors import HwpruneError

if TYPE_CHECKING:
    from hwprune.compiling import compile, compile_pruned
    from hwprune.deploy import Artifact, load
    from hwprune.dry_run import find_sensitivity
    from hwprune.front import compile_point
    from hwprune.front_search import search
    from hwprune.pipeline import inspect, prune
    from hwprune.plan import Plan
    from hwprune.profiling import profile
    from hwprune.target import Target, list_targets, load_target
    from hwprune.ways.growing import GrowingRegularizer
    from hwprune.ways.iterative import prune_iteratively
    from hwprune.ways.masks import mask
    from hwprune.ways.soft import SoftPruner
    from hwprune.weights import load_pruned

__version__ = "0.1.0"
_HOMES = {
    "Artifact": "deploy",
    "load": "deploy",
    "Plan": "plan",
    "PruneResult": "pipeline",
    "compile": "compiling",
    "compile_pruned": "compiling",
    "find_sensitivity": "dry_run",
    "inspect": "pipeline",
    "profile": "profiling",
    "compile_point": "front",
    "search": "front_search",
    "prune": "pipeline",
    "prune_iteratively": "ways.iterative",
    "GrowingRegularizer": "ways.growing",
    "SoftPruner": "ways.soft",
    "mask": "ways.masks",
    "Target": "target",
    "list_targets": "target",
    "load_target": "target",
    "load_pruned": "weights",
}
__all__ = [
    "Artifact",
    "GrowingRegularizer",
    "HwpruneError",
    "Plan",
    "SoftPruner",
    "Target",
    "compile",
    "compile_point",
    "compile_pruned",
    "find_sensitivity",
    "inspect",
    "list_targets",
    "load",
    "load_pruned",
    "load_target",
    "mask",
    "profile",
    "prune",
    "prune_iteratively",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hwprune' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hwprune.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
