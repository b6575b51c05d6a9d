"""The arrays that a network holds: packed weights of its calls, and constants of its graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import fx

from hwprune.lower.functional import get_tensor
from hwprune.lower.fuse import Fused
from hwprune.lower.packing import pack as pack_layout
from hwprune.lower.spec import PLAIN, Call, Kernel, Workload, numpy_type


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
    tensor, spec = get_tensor(module, fused.constants[name]).detach(), fused.specs[name]
    if spec.layout != PLAIN:
        tensor = pack_layout(tensor, spec, lanes)
    array = np.asarray(tensor.numpy())
    return array.astype(numpy_type(spec.dtype)) if array.dtype == np.float32 else array
