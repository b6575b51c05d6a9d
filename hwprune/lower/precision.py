"""A network as a GPU runs it: channels last, every tensor in the dtype that is asked for.

In: the `Fused` calls of a network, float32 and packed for vectors. Out: the same calls, of which
packed images are `nhwc` and float32 tensors, inputs and outputs included, are of that dtype.
"""

from __future__ import annotations

from dataclasses import replace

from hwprune.lower.fuse import Fused
from hwprune.lower.spec import LAST, NHWC, NHWC_LAST, PACKED, TensorSpec, Workload

LAYOUTS = {PACKED: NHWC, LAST: NHWC_LAST}


def channels_last(fused: Fused, dtype: str) -> Fused:
    """The network of GPUs."""
    return replace(
        fused,
        dtype=dtype,
        calls=tuple(replace(c, workload=on_gpu(c.workload, dtype)) for c in fused.calls),
        specs={name: _tensor(spec, dtype) for name, spec in fused.specs.items()},
    )


def on_gpu(workload: Workload, dtype: str) -> Workload:
    """One kernel of it."""
    return replace(
        workload,
        inputs=tuple(_tensor(t, dtype) for t in workload.inputs),
        output=_tensor(workload.output, dtype),
        params=tuple(_tensor(t, dtype) for t in workload.params),
    )


def _tensor(spec: TensorSpec, dtype: str) -> TensorSpec:
    layout = LAYOUTS.get(spec.layout, spec.layout)
    return replace(spec, dtype=dtype if spec.dtype == "float32" else spec.dtype, layout=layout)
