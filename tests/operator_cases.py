"""One call of every operator that has a label rule, as small as it can be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hwprune.rules import RULES

Case = tuple[Any, tuple[Any, ...]]
_ATEN = torch.ops.aten


def _x(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def _image(*size: int, channels: int = 4) -> Tensor:
    return _x(1, channels, *size)


_I2, _I3 = _image(6, 6), _image(4, 4, 4)
_INDEX = torch.tensor([3, 0, 0, 2, 1])
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "baddbmm": (_x(4, 5, 6), _x(4, 5, 3), _x(4, 3, 6)),
    "bmm": (_x(4, 5, 3), _x(4, 3, 6)),
    "einsum": ("bhtd,bhsd->bhts", [_x(1, 4, 5, 3), _x(1, 4, 6, 3)]),
    "scaled_dot_product_attention": (_x(1, 4, 5, 3), _x(1, 4, 6, 3), _x(1, 4, 6, 2)),
    "_adaptive_avg_pool2d": (_I2, [3, 3]),
    "_log_softmax": (_x(4, 6), 1, False),
    "_softmax": (_x(4, 6), 1, False),
    "_unsafe_view": (_x(4, 6), [2, 2, 6]),
    "_upsample_nearest_exact2d": (_I2, [9, 9]),
    "adaptive_avg_pool1d": (_image(6), [3]),
    "adaptive_avg_pool2d": (_I2, [3, 3]),
    "adaptive_avg_pool3d": (_I3, [2, 2, 2]),
    "adaptive_max_pool1d": (_image(6), [3]),
    "adaptive_max_pool2d": (_I2, [3, 3]),
    "adaptive_max_pool3d": (_I3, [2, 2, 2]),
    "_weight_norm": (_x(6, 4, 3), _x(6, 1, 1), 0),
    "addcdiv": (_x(4, 6), _x(4, 6), _x(6) + 9),
    "addcmul": (_x(4, 6), _x(4, 6), _x(6)),
    "addmm": (_x(6), _x(4, 5), _x(5, 6)),
    "all": (_x(4, 6), 1),
    "alpha_dropout": (_x(4, 6), 0.5, False),
    "amax": (_x(4, 6), [1]),
    "amin": (_x(4, 6), [1], True),
    "any": (_x(4, 6), 0),
    "argmax": (_x(4, 6), 1),
    "argmin": (_x(4, 6), 1),
    "avg_pool1d": (_image(6), [2]),
    "avg_pool2d": (_I2, [2, 2]),
    "avg_pool3d": (_I3, [2, 2, 2]),
    "batch_norm": (_I2, _x(4), _x(4), _x(4), _x(4).abs(), False, 0.1, 1e-5, False),
    "broadcast_to": (_x(6), [4, 6]),
    "cat": ([_x(4, 6), _x(4, 3)], 1),
    "channel_shuffle": (_image(2, 2, channels=6), 3),
    "chunk": (_x(4, 6), 3, 1),
    "clamp": (_x(4, 6), -0.5, 0.5),
    "clamp.Tensor": (_x(4, 6), _x(6)),
    "clamp_max": (_x(4, 6), 0.5),
    "clamp_max.Tensor": (_x(4, 6), _x(6)),
    "clamp_min": (_x(4, 6), 0.5),
    "clamp_min.Tensor": (_x(4, 6), _x(4, 1)),
    "clip": (_x(4, 6), -0.5, 0.5),
    "clip.Tensor": (_x(4, 6), _x(6)),
    "col2im": (_x(1, 12, 9), [6, 6], [2, 2], [1, 1], [0, 0], [2, 2]),
    "concat": ([_x(4, 6), _x(3, 6)], 0),
    "concatenate": ([_x(4, 6), _x(3, 6)], 0),
    "constant_pad_nd": (_x(4, 6), [1, 2]),
    "conv1d": (_image(6), _x(5, 4, 3), _x(5)),
    "gru.input": (
        _x(3, 2, 5),
        _x(1, 2, 4),
        [_x(12, 5), _x(12, 4), _x(12), _x(12)],
        True,
        1,
        0.0,
        False,
        False,
        False,
    ),
    "lstm.input": (
        _x(3, 2, 5),
        [_x(2, 2, 4), _x(2, 2, 4)],
        [_x(16, 5), _x(16, 4), _x(16, 5), _x(16, 4)],
        False,
        1,
        0.0,
        False,
        True,
        False,
    ),
    "rnn_relu.input": (
        _x(2, 3, 5),
        _x(1, 2, 4),
        [_x(4, 5), _x(4, 4)],
        False,
        1,
        0.0,
        False,
        False,
        True,
    ),
    "rnn_tanh.input": (
        _x(2, 3, 5),
        _x(2, 2, 4),
        [_x(4, 5), _x(4, 4), _x(4, 4), _x(4, 4)],
        False,
        2,
        0.0,
        False,
        False,
        True,
    ),
    "conv2d": (_I2, _x(6, 2, 3, 3), _x(6), [1, 1], [0, 0], [1, 1], 2),
    "conv3d": (_I3, _x(5, 4, 3, 3, 3), _x(5)),
    "conv_transpose1d": (_image(6), _x(4, 5, 3), _x(5)),
    "conv_transpose2d": (_I2, _x(4, 1, 3, 3), _x(4), [2, 2], [0, 0], [0, 0], 4),
    "conv_transpose3d": (_I3, _x(4, 5, 3, 3, 3), _x(5)),
    "convolution": (_I2, _x(5, 4, 3, 3), _x(5), [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
    "copy": (_x(4, 6), _x(6)),
    "cumprod": (_x(4, 6), 1),
    "cumsum": (_x(4, 6), 0),
    "dropout": (_x(4, 6), 0.5, False),
    "embedding": (_x(7, 6), _INDEX),
    "empty_like": (_x(4, 6),),
    "expand": (_x(4, 1, 6), [4, 3, 6]),
    "expand_as": (_x(4, 1), _x(4, 6)),
    "expand_copy": (_x(6), [4, 6]),
    "feature_alpha_dropout": (_I2, 0.5, False),
    "feature_dropout": (_I2, 0.5, False),
    "fill": (_x(4, 6), 2.0),
    "flatten": (_I2, 1),
    "flip": (_x(4, 6), [1]),
    "full": ([4, 6], 2.0),
    "full_like": (_x(4, 6), 2.0),
    "glu": (_x(4, 6), 1),
    "group_norm": (_x(2, 4, 3), 2, _x(4), _x(4)),
    "im2col": (_I2, [3, 3], [1, 1], [0, 0], [1, 1]),
    "index": (_x(4, 5, 6), [None, _INDEX]),
    "index_select": (_x(4, 6), 1, _INDEX),
    "instance_norm": (_I2, _x(4), _x(4), None, None, True, 0.1, 1e-5, False),
    "layer_norm": (_x(4, 6), [6], _x(6), _x(6)),
    "linalg_vector_norm": (_x(4, 6), 2, [1]),
    "linear": (_x(4, 6), _x(5, 6), _x(5)),
    "log_softmax": (_x(4, 6), 0),
    "logsumexp": (_x(4, 6), [1]),
    "masked_fill": (_x(4, 6), _x(6) > 0, 1.0),
    "matmul": (_x(4, 6), _x(6, 5)),
    "max.dim": (_x(4, 6), 1),
    "max_pool1d": (_image(6), [2]),
    "max_pool1d_with_indices": (_image(6), [2]),
    "max_pool2d": (_I2, [2, 2]),
    "max_pool2d_with_indices": (_I2, [2, 2]),
    "max_pool3d": (_I3, [2, 2, 2]),
    "max_pool3d_with_indices": (_I3, [2, 2, 2]),
    "mean": (_x(4, 6), [0], True),
    "median.dim": (_x(4, 6), 1),
    "min.dim": (_x(4, 6), 1),
    "mm": (_x(4, 6), _x(6, 5)),
    "movedim": (_x(4, 5, 6), [0], [2]),
    "narrow": (_x(4, 6), 1, 2, 3),
    "new_full": (_x(4, 6), [4, 6], 2.0),
    "new_ones": (_x(4, 6), [4, 6]),
    "new_zeros": (_x(4, 6), [4, 6]),
    "norm": (_x(4, 6), 2, [1]),
    "ones": ([4, 6],),
    "pad": (_x(4, 6), [0, 0, 2, 1]),
    "permute": (_x(4, 5, 6), [2, 0, 1]),
    "pixel_shuffle": (_image(3, 3, channels=12), 2),
    "pixel_unshuffle": (_I2, 2),
    "pow": (_x(4, 6).abs(), _x(6)),
    "prelu": (_I2, _x(4)),
    "prod": (_x(4, 6), 1),
    "reflection_pad1d": (_image(6), [1, 1]),
    "reflection_pad2d": (_I2, [1, 1, 2, 2]),
    "reflection_pad3d": (_I3, [1] * 6),
    "repeat": (_x(4, 6), [2, 1, 3]),
    "repeat_interleave.self_int": (_x(4, 6), 2, 1),
    "replication_pad1d": (_image(6), [1, 1]),
    "replication_pad2d": (_I2, [1, 1, 2, 2]),
    "replication_pad3d": (_I3, [1] * 6),
    "reshape": (_x(4, 6), [4, 2, 3]),
    "reshape_as": (_x(1, 4, 6), _x(4, 6)),
    "rms_norm": (_x(4, 6), [6], _x(6)),
    "roll": (_x(4, 6), [1], [1]),
    "select": (_x(4, 6), 1, 2),
    "slice": (_x(4, 6), 1, 1, 6, 2),
    "softmax": (_x(4, 6), 1),
    "split": (_x(4, 6), 2, 1),
    "split_with_sizes": (_x(4, 6), [1, 3, 2], 1),
    "squeeze": (_x(4, 1, 6), 1),
    "stack": ([_x(4, 6), _x(4, 6)], 1),
    "std.correction": (_x(4, 6), [1]),
    "std.dim": (_x(4, 6), [1]),
    "sum": (_x(4, 6), [1]),
    "swapaxes": (_x(4, 6), 0, 1),
    "swapdims": (_x(4, 6), 0, 1),
    "tensor_split": (_x(4, 6), 3, 1),
    "threshold": (_x(4, 6), 0.1, 2.0),
    "tile": (_x(4, 6), [1, 2]),
    "to": (_x(4, 6), torch.float32),
    "transpose": (_x(4, 5, 6), 0, 2),
    "unbind": (_x(4, 3, 6), 1),
    "unflatten": (_x(4, 6), 1, [2, 3]),
    "unfold": (_x(4, 6), 1, 3, 2),
    "unsafe_chunk": (_x(4, 6), 2, 0),
    "unsafe_split": (_x(4, 6), 2, 1),
    "unsqueeze": (_x(4, 6), 1),
    "upsample_bicubic2d": (_I2, [9, 9], False),
    "upsample_bilinear2d": (_I2, [9, 9], False),
    "upsample_linear1d": (_image(6), [9], False),
    "upsample_nearest1d": (_image(6), [9]),
    "upsample_nearest2d": (_I2, [9, 9]),
    "upsample_nearest3d": (_I3, [6, 6, 6]),
    "upsample_trilinear3d": (_I3, [6, 6, 6], False),
    "var.correction": (_x(4, 6), [1]),
    "var.dim": (_x(4, 6), [0]),
    "view": (_x(4, 6), [24]),
    "view_as": (_x(4, 6), _x(4, 2, 3)),
    "view_copy": (_x(4, 6), [2, 12]),
    "where": (_x(4, 6) > 0, _x(4, 6), _x(6)),
    "zeros": ([4, 6],),
}
_OVERLOADS = {
    "all": "dim", "any": "dim", "mean": "dim", "prod": "dim_int", "sum": "dim_IntList",
    "softmax": "int", "log_softmax": "int", "max_pool1d": "default", "norm": "ScalarOpt_dim",
    "select": "int", "slice": "Tensor", "split": "Tensor", "squeeze": "dim", "index": "Tensor",
    "tensor_split": "sections", "to": "dtype", "transpose": "int", "unbind": "int",
    "unflatten": "int", "flatten": "using_ints", "where": "self", "masked_fill": "Scalar",
    "movedim": "intlist", "fill": "Scalar", "unsafe_split": "Tensor", "pow": "Tensor_Tensor",
    "float_power": "Tensor_Tensor", "lerp": "Tensor", "batch_norm": "default",
}  # fmt: skip
_BITS = ("__and__", "__or__", "__xor__", "bitwise_and", "bitwise_or", "bitwise_xor")
# Forms of an operator that its rule treats apart: the name of the rule, and which form.
_FORMS: dict[str, tuple[Any, ...]] = {
    "batch_norm#by_its_own_statistics": (
        _x(1, 4, 6), _x(4), None, None, None, True, 0.0, 1e-5, False,
    ),
    "group_norm#of_one_group": (_x(2, 4, 3), 1, _x(4), _x(4)),
    "group_norm#of_single_channels": (_x(2, 4, 3), 4),
    "conv1d#of_single_positions": (_x(2, 4, 6), _x(5, 4, 1), _x(5)),
    "conv2d#of_single_rows": (_x(2, 4, 5, 6), _x(8, 2, 1, 3), None, [1, 1], [0, 1], [1, 1], 2),
    "mean#within": (_x(4, 5, 6), [1]),
    "mean#of_all": (_x(4, 6), [0, 1]),
}  # fmt: skip
# No operators (what they are made of is captured), and one that yields nothing.
NO_OPERATOR = ("double", "float", "half", "softsign", "tanhshrink", "_assert_tensor_metadata")
NAMES = sorted((set(RULES) - set(NO_OPERATOR)) | set(_FORMS))


def case(name: str) -> Case:
    """(operator, arguments) for the name of a rule, or of a form of it."""
    arguments = _FORMS.get(name) or _ARGUMENTS.get(name)
    name = name.partition("#")[0]
    packet = getattr(_ATEN, name.split(".")[0])
    overload = name.split(".")[1] if "." in name else _OVERLOADS.get(name)
    known = packet.overloads()
    if arguments is None:
        if overload is None:
            overload = "Tensor" if "Tensor" in known else "default"
        schema = getattr(packet, overload)._schema
        needed = [a for a in schema.arguments if not (a.has_default_value() or a.kwarg_only)]
        tensors = [a for a in needed if "Tensor" in str(a.type)]
        shapes = ((4, 6), *((6,) for _ in tensors[1:]))
        arguments = tuple(_x(*shape).abs() + 0.1 for shape in shapes)
        if name in _BITS or name == "bitwise_not":
            arguments = tuple(a > 0.7 for a in arguments)
    overload = overload or ("default" if "default" in known else known[0])
    return getattr(packet, overload), arguments
