"""Imports that every child of the coverage benchmark needs, made once in the process it forks from.

torchvision's and timm's alone take seconds of every model's time.
"""

import contextlib
import importlib

from examples.torchvision_ops import declare

declare()
for name in ("torchvision", "timm", "benchmarks.coverage_steps"):
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module(name)
