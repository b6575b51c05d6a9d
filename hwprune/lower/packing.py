"""How a logical tensor lies in memory: packed in vectors, channels last, or as a view says."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from hwprune.lower.spec import LAST, NHWC, NHWC_LAST, PIXEL, PLAIN, TensorSpec
from hwprune.lower.view import View


def unpack(tensor: Tensor, spec: TensorSpec) -> Tensor:
    """The logical tensor of a physical one."""
    if spec.layout == PLAIN:
        return tensor
    if spec.view is not None:
        return _unview(tensor, spec.view)
    n, c, h, w = spec.image
    if spec.layout in (NHWC, NHWC_LAST):
        pixels = tensor[..., :c]
        return pixels if spec.layout == NHWC_LAST else pixels.permute(0, 3, 1, 2)
    blocks, lanes = tensor.shape[1], tensor.shape[4]
    image = tensor.permute(0, 1, 4, 2, 3).reshape(n, blocks * lanes, h, w)[:, :c]
    return image.permute(0, 2, 3, 1) if spec.layout == LAST else image


def pack(tensor: Tensor, spec: TensorSpec, lanes: int) -> Tensor:
    """The physical tensor of a logical one; lanes past the channels, and other parts, are zero."""
    if spec.layout == PLAIN:
        return tensor
    if spec.view is not None:
        memory = tensor.new_zeros(spec.physical(lanes))
        _unview(memory, spec.view).copy_(tensor)
        return memory
    if spec.layout in (NHWC, NHWC_LAST):
        pixels = tensor if spec.layout == NHWC_LAST else tensor.permute(0, 2, 3, 1)
        return F.pad(pixels, (0, -pixels.shape[-1] % PIXEL)).contiguous()
    if spec.layout == LAST:
        tensor = tensor.permute(0, 3, 1, 2)
    n, c, h, w = spec.image
    blocks = -(-c // lanes)
    if blocks * lanes != c:
        tensor = F.pad(tensor, (0, 0, 0, 0, 0, blocks * lanes - c))
    return tensor.reshape(n, blocks, lanes, h, w).permute(0, 1, 3, 4, 2).contiguous()


def _unview(memory: Tensor, view: View) -> Tensor:
    """The logical tensor that lies in memory as a view says."""
    for axis, fixed in reversed(list(enumerate(view.axes))):
        if not isinstance(fixed, int):
            memory = memory.select(axis, fixed[0])
    dims = [a for a in view.axes if isinstance(a, int)]
    return memory.permute([dims.index(d) for d in range(len(dims))])
