"""The arrays that a network holds: packed weights of its calls, and constants of its graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import fx

from hwprune.lower.functional import get_tensor
from hwprune.lower.fuse import Fused
from hwprune.lower.reference import pack as pack_layout
from hwprune.lower.spec import PACKED, Call, Kernel, TensorSpec, Workload


def weights(
    call: Call, kernels: Mapping[Workload, Kernel], module: fx.GraphModule
) -> tuple[np.ndarray, ...]:
    """The parameters of a call as its kernel wants them."""
    arrays = tuple(
        get_tensor(module, name).detach().reshape(spec.shape).numpy()
        for name, spec in zip(call.params, call.workload.params, strict=True)
    )
    return kernels[call.workload].pack(arrays)


def constant(name: str, fused: Fused, module: fx.GraphModule, lanes: int) -> np.ndarray:
    """A value of the graph that is known, as it lies in memory."""
    tensor = get_tensor(module, fused.constants[name]).detach()
    if name.endswith(f"@{PACKED}"):
        spec = TensorSpec(tuple(tensor.shape), "float32", PACKED)
        tensor = pack_layout(tensor, spec, lanes)
    return np.asarray(tensor.numpy())
