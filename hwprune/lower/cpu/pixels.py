"""Linear layers of the pixels of a packed image: a 1x1 convolution by another name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hwprune.lower.cpu import conv
from hwprune.lower.cpu.emit import Context
from hwprune.lower.spec import LAST, PACKED, Attr, Kernel, TensorSpec, Workload

_ATTRS: tuple[tuple[str, Attr], ...] = (
    ("dilation", (1, 1)),
    ("padding", (0, 0, 0, 0)),
    ("stride", (1, 1)),
)


def schedule(workload: Workload, context: Context) -> Kernel | None:
    """The kernel of a linear workload of pixels, or None."""
    if workload.op != "linear" or workload.inputs[0].layout != LAST:
        return None
    kernel = conv.schedule(_convolution(workload), context)
    if kernel is None:
        return None
    inner = kernel.pack

    def pack(params: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        return inner((params[0][:, :, None, None], *params[1:]))

    return Kernel(workload, kernel.func, kernel.rule, kernel.reason, pack)


def _convolution(workload: Workload) -> Workload:
    weight = workload.params[0]
    return replace(
        workload,
        op="conv2d",
        inputs=tuple(map(_image, workload.inputs)),
        output=_image(workload.output),
        params=(replace(weight, shape=(*weight.shape, 1, 1)), *workload.params[1:]),
        attrs=_ATTRS,
    )


def _image(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.image, spec.dtype, PACKED)
