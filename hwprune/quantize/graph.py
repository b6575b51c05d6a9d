"""`IntegerGraph`: a quantized network as operators on integers, in the order in which they run.

What lies between quantization and the code that is made for a device: NumPy arrays and integers,
nothing of torch. The arithmetic of every operator is that of TensorFlow Lite's reference kernels
and of CMSIS-NN with their default (double) rounding: `arithmetic.py` has the primitives,
`reference.py` the operators.

Conventions. q stands for r = scale * (q - zero_point). Images are (N, H, W, C), rows (N, C) or
(N, L, C). Weights are symmetric. An accumulator becomes an output as

    clamp(requantize(acc, multiplier[c], shift[c]) + output.zero_point, *clamp)

with a Q31 multiplier in [2^30, 2^31) (or 0) and a shift that is positive to the left.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np

    from hwprune.lower.spec import Workload

INT8_MIN, INT8_MAX = -128, 127
INT8, INT32, FLOAT32 = "int8", "int32", "float32"

BY_FEATURE = "arithmetic with a constant for each feature"

Pair = tuple[int, int]
Pads = tuple[int, int, int, int]  # top, left, bottom, right


@dataclass(frozen=True)
class IntegerTensor:
    """A value: its shape with the batch first, its type, and what its integers stand for.

    `scale` is a float32 number; with `zero_point` it means nothing where `dtype` is float32.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = INT8
    scale: float = 1.0
    zero_point: int = 0


@dataclass(frozen=True, eq=False)
class Operator:
    """One step: reads the tensors named `inputs`, writes the one named `output`.

    `name` is that of the graph node whose value it makes, `where` the user's source line.
    """

    name: str
    inputs: tuple[str, ...]
    output: str
    where: str
    kind: ClassVar[str] = ""


@dataclass(frozen=True, eq=False)
class Conv2d(Operator):
    """Convolution, grouped and depthwise too; padding adds real zeros, that is, zero points.

    acc = bias + sum((x - x.zero_point) * weight), |acc| < 2^31 for every input (checked).
    weight: int8 (O, kh, kw, I / groups); depthwise is groups == I. bias: int32 (O,).
    multiplier, shift: int32 (O,).
    """

    weight: np.ndarray
    bias: np.ndarray
    multiplier: np.ndarray
    shift: np.ndarray
    stride: Pair
    padding: Pads
    dilation: Pair
    groups: int
    clamp: Pair
    kind: ClassVar[str] = "conv2d"


@dataclass(frozen=True, eq=False)
class Linear(Operator):
    """x W^T + b over the last axis. weight: int8 (O, I); the rest as in `Conv2d`."""

    weight: np.ndarray
    bias: np.ndarray
    multiplier: np.ndarray
    shift: np.ndarray
    clamp: Pair
    kind: ClassVar[str] = "linear"


@dataclass(frozen=True, eq=False)
class Add(Operator):
    """Sum of two tensors of one shape.

    Each (x - zero_point) is shifted left by `left_shift` (20) and requantized by its multiplier and
    shift; the sum is requantized by the last ones: (first, second, result) each.
    """

    multiplier: tuple[int, int, int]
    shift: tuple[int, int, int]
    clamp: Pair
    left_shift: int = 20
    kind: ClassVar[str] = "add"


@dataclass(frozen=True, eq=False)
class Mul(Operator):
    """Product of (x - zero_point) and (y - zero_point), requantized.

    Shapes are equal, or the second is (N, 1, 1, C) or (N, 1, C): a gate of channels.
    """

    multiplier: int
    shift: int
    clamp: Pair
    kind: ClassVar[str] = "mul"


@dataclass(frozen=True, eq=False)
class MaxPool(Operator):
    """Maximum over windows; padding never wins. In and out have one scale and zero point."""

    kernel: Pair
    stride: Pair
    padding: Pads
    clamp: Pair
    kind: ClassVar[str] = "max_pool"


@dataclass(frozen=True, eq=False)
class AvgPool(Operator):
    """Mean over the positions of a window that lie inside the image.

    The sum of the integers is divided by their number, halves away from zero. In and out have one
    scale and zero point.
    """

    kernel: Pair
    stride: Pair
    padding: Pads
    clamp: Pair
    kind: ClassVar[str] = "avg_pool"


@dataclass(frozen=True, eq=False)
class Mean(Operator):
    """(N, H, W, C) -> (N, C) or (N, 1, 1, C): the sum of (x - zero_point), requantized.

    The multiplier has the division by H * W in it.
    """

    multiplier: int
    shift: int
    clamp: Pair
    kind: ClassVar[str] = "mean"


@dataclass(frozen=True, eq=False)
class Concat(Operator):
    """Inputs along `axis`; all have the result's scale and zero point."""

    axis: int
    kind: ClassVar[str] = "concat"


@dataclass(frozen=True, eq=False)
class Pad(Operator):
    """An image with `value` (an int8) around it."""

    padding: Pads
    value: int
    kind: ClassVar[str] = "pad"


@dataclass(frozen=True, eq=False)
class Reshape(Operator):
    """The same elements in the same order in another shape."""

    kind: ClassVar[str] = "reshape"


@dataclass(frozen=True, eq=False)
class Transpose(Operator):
    """Axis i of the result is axis `axes[i]` of the input."""

    axes: tuple[int, ...]
    kind: ClassVar[str] = "transpose"


@dataclass(frozen=True, eq=False)
class Lookup(Operator):
    """Any function of one value: table[q + 128]; table: int8 (256,). `function` names it."""

    table: np.ndarray
    function: str
    kind: ClassVar[str] = "lookup"


@dataclass(frozen=True, eq=False)
class Prelu(Operator):
    """A slope for each channel of the last axis below zero.

    d = x - zero_point: requantize(d, multiplier[0], shift[0]) where d >= 0, elsewhere
    requantize(d * slope[c], multiplier[1], shift[1]). slope: int8 (C,), symmetric.
    """

    slope: np.ndarray
    multiplier: Pair
    shift: Pair
    clamp: Pair
    kind: ClassVar[str] = "prelu"


@dataclass(frozen=True, eq=False)
class Softmax(Operator):
    """Softmax over the last axis; scale 1/256 and zero point -128 out.

    Differences to the row's maximum below `diff_min` count as 0. The others are shifted left by
    `shift` and multiplied by `multiplier` to Q5.26.
    """

    multiplier: int
    shift: int
    diff_min: int
    kind: ClassVar[str] = "softmax"


@dataclass(frozen=True, eq=False)
class Quantize(Operator):
    """float32 -> int8: round(x / scale) + zero_point, saturated.

    The quotient is float32; halves go away from zero, as C's roundf has it.
    """

    kind: ClassVar[str] = "quantize"


@dataclass(frozen=True, eq=False)
class Dequantize(Operator):
    """int8 -> float32: (q - zero_point) * scale, the product in float32."""

    kind: ClassVar[str] = "dequantize"


@dataclass(frozen=True, eq=False)
class Requantize(Operator):
    """int8 -> int8 of another scale: requantize(x - zero_point, multiplier, shift)."""

    multiplier: int
    shift: int
    clamp: Pair
    kind: ClassVar[str] = "requantize"


@dataclass(frozen=True, eq=False)
class Float(Operator):
    """An operator without an int8 kernel, in float32, where that was asked for.

    Its tensors are float32 and lie as torch has them (images as (N, C, H, W)): dequantize,
    transpose and quantize stand around it. params: arrays of `workload.params`.
    """

    workload: Workload
    params: tuple[np.ndarray, ...]
    kind: ClassVar[str] = "float"

    @property
    def operator(self) -> str:
        """The ATen operator, "aten.layer_norm", or BY_FEATURE."""
        target = dict(self.workload.attrs).get("target")
        return BY_FEATURE if target is None else str(target).rpartition(".")[0]


@dataclass(frozen=True, eq=False)
class IntegerGraph:
    """A network: its tensors, its operators in execution order, which tensors go in and come out.

    Shapes have a batch of one. Inputs and outputs are int8, or float32 where `Quantize` and
    `Dequantize` operators are part of the graph. Every tensor is written once.
    """

    name: str
    tensors: tuple[IntegerTensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @cached_property
    def by_name(self) -> dict[str, IntegerTensor]:
        """The tensors by name."""
        return {tensor.name: tensor for tensor in self.tensors}

    def summary(self) -> dict[str, Any]:
        """How many operators of every kind, and how many bytes of constants they hold."""
        kinds: dict[str, int] = {}
        for operator in self.operators:
            kinds[operator.kind] = kinds.get(operator.kind, 0) + 1
        names = ("weight", "bias", "multiplier", "shift", "slope", "table")
        held = [getattr(o, n, None) for o in self.operators for n in names]
        sizes = [int(getattr(array, "nbytes", 0)) for array in held]
        return {"operators": kinds, "constant_bytes": sum(sizes)}
