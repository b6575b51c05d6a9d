"""What of a GPU the schedule rules go by.

In: a `Target` of kind "cuda". Out: a `Context`.
"""

from __future__ import annotations

from dataclasses import dataclass

from hwprune.gpu import capability
from hwprune.target import Target

TENSOR_CORES_SINCE = 80  # sm_NN, of mma.m16n8k16 and of bfloat16


@dataclass(frozen=True)
class Context:
    """Multiprocessors, shared memory of a block in bytes, whether rules may use tensor cores."""

    sms: int
    shared_bytes: int
    tensor_cores: bool

    @staticmethod
    def of(target: Target) -> Context:
        """The context of a target."""
        gpu = target.gpu
        assert gpu is not None
        level = capability(gpu.architecture)
        cores = level >= TENSOR_CORES_SINCE
        return Context(gpu.sms, gpu.shared_bytes_per_block, cores)
