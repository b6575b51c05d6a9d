"""Lowering: `Program` + `Target` -> fused, scheduled kernels -> a compiled network."""

from hwprune.lower.build import KernelModule, build_kernels
from hwprune.lower.fold import fold_batch_norm
from hwprune.lower.fuse import fuse
from hwprune.lower.kernels import kernel_for
from hwprune.lower.network import Lowered, lower
from hwprune.lower.spec import Call, Kernel, TensorSpec, Workload

__all__ = [
    "Call",
    "Kernel",
    "KernelModule",
    "Lowered",
    "TensorSpec",
    "Workload",
    "build_kernels",
    "fold_batch_norm",
    "fuse",
    "kernel_for",
    "lower",
]
