"""What one compiled kernel computes: the vocabulary between the graph and the schedules.

A `Workload` is a complete, hashable description of one fused kernel. The same workload
always compiles to the same code, so it is also the key of a latency table. A `Call` is
one launch of such a kernel in a network.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hwprune.lower.view import PREFIX, View

if TYPE_CHECKING:
    import numpy as np

PLAIN = "plain"
PACKED = "packed"
LAST = "packed_last"
NHWC = "nhwc"
NHWC_LAST = "nhwc_last"
PIXEL = 8  # channels of which a pixel of nhwc has a multiple: 16 bytes of float16
STEP_PARAMS = {"bias": 1, "affine": 2, "prelu": 1}  # how many entries a step consumes; others none
ARITHMETIC = "arithmetic"  # of products: the attribute that says it is not the tensors' type
ALIGNMENT = 64  # bytes, of every tensor in an arena: a cache line, and the longest vector

Attr = int | float | bool | str | None | tuple["Attr", ...]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor by its *logical* shape; the layout says how it lies in memory.

    `plain` is row-major. `packed` is for 4-D activations: logical (N, C, H, W) lies as
    (N, ceil(C / lanes), H, W, lanes) with the target's float32 vector width as `lanes`;
    the lanes past C hold finite values that nobody may rely on. `packed_last` lies the same, for
    logical (N, H, W, C): a packed image whose channels were moved to the end. On GPUs `nhwc` and
    `nhwc_last` stand for these two: (N, H, W, C) with C rounded up to PIXEL, the channels past C
    finite. "view:..." is a tensor that lies in the memory of another one (`View`).
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    layout: str = PLAIN

    def physical(self, lanes: int) -> tuple[int, ...]:
        """The shape in memory."""
        if self.layout == PLAIN:
            return self.shape
        if self.layout.startswith(PREFIX):
            return View.parse(self.layout).memory(self.shape)
        n, c, h, w = self.image
        if self.layout in (NHWC, NHWC_LAST):
            return (n, h, w, -(-c // PIXEL) * PIXEL)
        return (n, -(-c // lanes), h, w, lanes)

    @property
    def image(self) -> tuple[int, ...]:
        """The shape of a packed tensor as (N, C, H, W)."""
        if self.layout in (LAST, NHWC_LAST):
            n, h, w, c = self.shape
            return (n, c, h, w)
        return self.shape

    @property
    def view(self) -> View | None:
        """How a row-major or view tensor lies in memory; None for packed ones."""
        if self.layout == PLAIN:
            return View.whole(len(self.shape))
        return View.parse(self.layout) if self.layout.startswith(PREFIX) else None


@dataclass(frozen=True)
class Step:
    """One operation of an epilogue, applied to the running value, in order.

    `op` is one of: bias (param), affine (two params: scale, shift), relu, clamp, silu, sigmoid,
    hardswish, hardsigmoid, leaky_relu, prelu (param), gelu, gelu_tanh, tanh, elu,
    add (input), sub (input), mul (input).
    Steps marked (param) consume the next per-output-channel entry of `Workload.params`
    after the weight; those marked (input) the next entry of `Workload.inputs` after the
    first. Inputs broadcast by NumPy's rules against the output (e.g. (N, C, 1, 1)).
    `args` are numbers: clamp (low, high), leaky_relu (slope,), elu (alpha,).
    """

    op: str
    args: tuple[float, ...] = ()


@dataclass(frozen=True)
class Workload:
    """One fused kernel: main operation, shapes, constants and epilogue.

    `op` is one of
      conv2d            attrs stride (2), padding (top, left, bottom, right), dilation (2);
                        params[0] is the weight (O, I / groups, kh, kw): groups follow from it,
                        depthwise is a convolution with I == groups. Input may be PLAIN
                        (first layer) or PACKED; output is PACKED. On GPUs, here and in
                        linear, `arithmetic` "tf32" where factors are rounded to 10 bits
      expand_depthwise  a 1x1 conv2d and the depthwise conv2d that reads it, PACKED: attrs of the
                        latter, and `expansion`, the (op, args) of the former's epilogue; params
                        of the former, then of the latter (`lower/expansion.py`)
      linear            PLAIN (..., K) -> PLAIN (..., M); params[0] the weight (M, K). Or of
                        pixels: LAST (N, H, W, K) -> LAST (N, H, W, M) or PACKED (N, M, H, W)
      matmul            PLAIN (..., M, K) x PLAIN (..., K, N) -> PLAIN (..., M, N)
      layer_norm        over the last axis, PLAIN or LAST; attrs eps; params[0] the scale (C)
      softmax           over the last axis, PLAIN
      attention         softmax(q k^T * scale [+ masks]) v: (B, H, T, D), (B, H, S, D), (B, H, S, E)
                        and masks that broadcast to (B, H, T, S), leading dimensions of size 1
                        left out; attrs scale, causal. Operands and result may be views
      max_pool2d        attrs kernel, stride, padding (4), dilation
      avg_pool2d        attrs kernel, stride, padding (4), count_include_pad, divisor
      global_avg_pool   (N, C, H, W) PACKED -> (N, C, 1, 1) PACKED or (N, C) PLAIN
      elementwise       epilogue only, applied to inputs[0]
      concat            inputs along attrs axis: all PACKED (axis 1), or views of any axis
      slice             attrs axis, start, stop, step
      roll              attrs axes, shifts, PLAIN
      shuffle           attrs groups: output channel i * groups + g is input channel g * n + i
                        with n = C / groups, PACKED
      layout            the same tensor in another layout
      aten              anything else: attrs target ("aten.roll.default") and args, a JSON
                        text of the call's arguments with {"input": i} / {"param": i} for tensors
    """

    op: str
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    params: tuple[TensorSpec, ...] = ()
    attrs: tuple[tuple[str, Attr], ...] = ()
    epilogue: tuple[Step, ...] = ()

    def attr(self, name: str) -> Any:
        """The value of an attribute; KeyError if the workload has none of that name."""
        return dict(self.attrs)[name]

    def key(self) -> str:
        """A stable text, equal exactly for equal workloads: the key of table rows."""
        named = {
            "op": self.op,
            "inputs": [vars(spec) for spec in self.inputs],
            "output": vars(self.output),
            "params": [vars(spec) for spec in self.params],
            "attrs": self.attrs,
            "epilogue": [vars(step) for step in self.epilogue],
        }
        return json.dumps(named, sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_key(text: str) -> Workload:
        """The inverse of `key`. Raises ValueError, KeyError or TypeError on malformed text."""
        raw = json.loads(text)
        return Workload(
            op=raw["op"],
            inputs=tuple(_spec(t) for t in raw["inputs"]),
            output=_spec(raw["output"]),
            params=tuple(_spec(t) for t in raw["params"]),
            attrs=tuple((name, _tuples(value)) for name, value in raw["attrs"]),
            epilogue=tuple(Step(s["op"], tuple(s["args"])) for s in raw["epilogue"]),
        )

    def with_shapes(
        self,
        inputs: Sequence[tuple[int, ...]],
        output: tuple[int, ...],
        params: Sequence[tuple[int, ...]],
    ) -> Workload:
        """The same kernel at other logical shapes (another choice of widths)."""
        return replace(
            self,
            inputs=tuple(replace(t, shape=s) for t, s in zip(self.inputs, inputs, strict=True)),
            output=replace(self.output, shape=output),
            params=tuple(replace(t, shape=s) for t, s in zip(self.params, params, strict=True)),
        )


@dataclass(frozen=True)
class Call:
    """One launch of a kernel in a network.

    `args` and `output` name values of the captured graph (FX node names); a value that was
    re-laid-out carries a suffix, e.g. `relu_3@plain`, and stands for the same FX node.
    `params` name parameters and buffers (after batch-norm folding: the names the convolution had).
    `nodes` are all FX nodes this kernel computes.
    """

    name: str
    workload: Workload
    args: tuple[str, ...]
    params: tuple[str, ...]
    output: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Kernel:
    """A workload compiled to a scheduled TVM PrimFunc.

    The function's arguments are the inputs, then `pack(params)`, then the output, all with
    `physical` shapes. `rule` names the schedule rule that took it, `reason` says why. Tensors that
    a `placeable` function reads and writes may lie anywhere in an arena, at multiples of ALIGNMENT.
    """

    workload: Workload
    func: Any
    rule: str
    reason: str
    pack: Callable[[tuple[np.ndarray, ...]], tuple[np.ndarray, ...]]
    placeable: bool = True


def numpy_type(dtype: str) -> np.dtype:
    """NumPy's type of that name; bfloat16 is that of ml_dtypes, which TVM brings."""
    import numpy

    if dtype == "bfloat16":
        import ml_dtypes

        return numpy.dtype(ml_dtypes.bfloat16)
    return numpy.dtype(dtype)


def _spec(raw: dict[str, Any]) -> TensorSpec:
    return TensorSpec(tuple(raw["shape"]), raw["dtype"], raw["layout"])


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
