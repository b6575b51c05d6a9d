"""A network as a GPU runs it: channels last, every tensor in the dtype that is asked for.

In: the `Fused` calls of a network, float32 and packed for vectors. Out: the same calls, of which
packed images are `nhwc` and float32 tensors, inputs and outputs included, are of that dtype. In
TF32 the tensors stay float32, and products say so by the attribute `arithmetic`: other kernels
are those of float32.
"""

from __future__ import annotations

from dataclasses import replace

from hwprune.lower.fuse import Fused
from hwprune.lower.spec import ARITHMETIC, LAST, NHWC, NHWC_LAST, PACKED, TensorSpec, Workload
from hwprune.target import FLOAT32, TF32

LAYOUTS = {PACKED: NHWC, LAST: NHWC_LAST}


def channels_last(fused: Fused, dtype: str) -> Fused:
    """The network of GPUs; `dtype` is a target's, "tf32" too."""
    stored = FLOAT32 if dtype == TF32 else dtype
    return replace(
        fused,
        dtype=stored,
        calls=tuple(replace(c, workload=on_gpu(c.workload, dtype)) for c in fused.calls),
        specs={name: _tensor(spec, stored) for name, spec in fused.specs.items()},
    )


def on_gpu(workload: Workload, dtype: str) -> Workload:
    """One kernel of it."""
    stored = FLOAT32 if dtype == TF32 else dtype
    rounds = dtype == TF32 and _is_product(workload)
    more = ((ARITHMETIC, TF32),) if rounds else ()
    return replace(
        workload,
        inputs=tuple(_tensor(t, stored) for t in workload.inputs),
        output=_tensor(workload.output, stored),
        params=tuple(_tensor(t, stored) for t in workload.params),
        attrs=tuple(sorted((*workload.attrs, *more), key=lambda attr: attr[0])),
    )


def _is_product(workload: Workload) -> bool:
    """Whether tensor cores may compute it: linear layers and convolutions, but for depthwise."""
    if workload.op != "conv2d":
        return workload.op == "linear"
    return workload.params[0].shape[1] > 1 or workload.inputs[0].shape[1] == 1


def _tensor(spec: TensorSpec, dtype: str) -> TensorSpec:
    layout = LAYOUTS.get(spec.layout, spec.layout)
    return replace(spec, dtype=dtype if spec.dtype == "float32" else spec.dtype, layout=layout)
