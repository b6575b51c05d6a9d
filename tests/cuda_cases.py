"""Workloads for the GPU rules, each with what makes it hard."""

from __future__ import annotations

from dataclasses import replace

from hwprune.lower.spec import (
    ARITHMETIC,
    NHWC,
    NHWC_LAST,
    PLAIN,
    STEP_PARAMS,
    Attr,
    Step,
    TensorSpec,
    Workload,
)

HALF = "float16"
BIAS = (Step("bias"),)


def spec(*shape: int, layout: str = PLAIN, dtype: str = HALF) -> TensorSpec:
    """A tensor."""
    return TensorSpec(shape, dtype, layout)


def image(*shape: int, dtype: str = HALF) -> TensorSpec:
    """An image with its channels last."""
    return TensorSpec(shape, dtype, NHWC)


def work(
    op: str,
    inputs: tuple[TensorSpec, ...],
    output: TensorSpec,
    steps: tuple[Step, ...] = (),
    params: tuple[TensorSpec, ...] = (),
    **attrs: Attr,
) -> Workload:
    """A workload."""
    return Workload(op, inputs, output, params, tuple(sorted(attrs.items())), steps)


def conv(
    source: TensorSpec,
    out: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
    steps: tuple[Step, ...] = BIAS,
    extras: tuple[TensorSpec, ...] = (),
) -> Workload:
    """A convolution that pads its image by half its window."""
    n, channels, size, _ = source.shape
    pad = dilation * (kernel // 2)
    after = (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
    weight = spec(out, channels // groups, kernel, kernel, dtype=source.dtype)
    more = [spec(out, dtype=source.dtype)] * sum(STEP_PARAMS.get(s.op, 0) for s in steps)
    return work(
        "conv2d", (source, *extras), image(n, out, after, after, dtype=source.dtype), steps,
        (weight, *more), stride=(stride, stride), dilation=(dilation, dilation),
        padding=(pad,) * 4,
    )  # fmt: skip


def linear(rows: int, depth: int, out: int, dtype: str = HALF) -> Workload:
    """A linear layer with a bias."""
    params = (spec(out, depth, dtype=dtype), spec(out, dtype=dtype))
    source, result = spec(2, rows, depth, dtype=dtype), spec(2, rows, out, dtype=dtype)
    return work("linear", (source,), result, BIAS, params)


def coarse(workload: Workload) -> Workload:
    """A product in TF32."""
    return replace(workload, attrs=tuple(sorted((*workload.attrs, (ARITHMETIC, "tf32")))))


def attention(causal: bool, *masks: TensorSpec) -> Workload:
    """Queries, keys and values where one projection left them; the result where one reads it."""
    parts = tuple(spec(1, 2, 19, 16, layout=f"view:0,2,{i}/3,1,3") for i in range(3))
    result = spec(1, 2, 19, 16, layout="view:0,2,1,3")
    return work("attention", (*parts, *masks), result, scale=0.25, causal=causal)


POOL: dict[str, Attr] = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1, 1, 1)}
RESIDUAL = (Step("bias"), Step("add"), Step("relu"))

CASES: dict[str, Workload] = {
    "conv_strided_residual": conv(
        image(1, 24, 11, 11), 40, 3, 2, steps=RESIDUAL, extras=(image(1, 40, 6, 6),)
    ),
    "conv_1x1": conv(image(2, 64, 7, 7), 72, 1),
    "conv_gathers_plain_image": conv(spec(1, 3, 14, 14), 16, 7, 2),
    "conv_odd_widths_gate": conv(
        image(1, 17, 9, 9), 21, 3, steps=(Step("bias"), Step("silu"), Step("mul")),
        extras=(image(1, 21, 1, 1),),
    ),
    "conv_grouped": conv(image(1, 32, 7, 7), 32, 3, groups=4),
    "conv_grouped_unaligned": conv(image(1, 20, 7, 7), 12, 3, groups=2),
    "conv_float32": conv(image(1, 24, 9, 9, dtype="float32"), 40, 3),
    "conv_tf32": coarse(conv(image(1, 24, 9, 9, dtype="float32"), 40, 3)),
    "conv_bfloat16_dilated": conv(image(1, 16, 9, 9, dtype="bfloat16"), 16, 3, dilation=2),
    "depthwise": conv(image(1, 20, 9, 9), 20, 3, groups=20),
    "depthwise_strided_float32": conv(image(1, 12, 9, 9, dtype="float32"), 12, 5, 2, groups=12),
    "linear": linear(50, 96, 64),
    "linear_odd": linear(5, 33, 30),
    "linear_float32": linear(9, 50, 10, "float32"),
    "linear_tf32": coarse(linear(20, 48, 16, "float32")),
    "max_pool": work(
        "max_pool2d", (image(2, 20, 9, 9),), image(2, 20, 5, 5), dilation=(1, 1), **POOL
    ),
    "avg_pool": work(
        "avg_pool2d", (image(1, 20, 9, 9),), image(1, 20, 5, 5), count_include_pad=False,
        divisor=None, **POOL,
    ),
    "global_pool": work("global_avg_pool", (image(2, 300, 5, 5),), spec(2, 300)),
    "add_gelu": work(
        "elementwise", (image(2, 20, 3, 3),) * 2, image(2, 20, 3, 3), (Step("add"), Step("gelu"))
    ),
    "broadcast": work("elementwise", (spec(2, 5, 7), spec(1, 1, 7)), spec(2, 5, 7), (Step("mul"),)),
    "to_plain": work("layout", (image(2, 20, 3, 3),), spec(2, 20, 3, 3)),
    "from_plain": work("layout", (spec(2, 20, 3, 3),), image(2, 20, 3, 3)),
    "concat": work(
        "concat", (image(1, 12, 3, 3), image(1, 9, 3, 3)), image(1, 21, 3, 3), (Step("relu"),),
        axis=1,
    ),
    "slice": work("slice", (spec(2, 9, 5),), spec(2, 4, 5), axis=1, start=1, stop=9, step=2),
    "roll": work("roll", (spec(2, 9, 5),), spec(2, 9, 5), axes=(1,), shifts=(-2,)),
    "shuffle": work("shuffle", (image(1, 12, 3, 3),), image(1, 12, 3, 3), groups=3),
    "layer_norm": work(
        "layer_norm", (spec(1, 3, 3, 20, layout=NHWC_LAST),), spec(1, 3, 3, 20, layout=NHWC_LAST),
        BIAS, (spec(20), spec(20)), eps=1e-6,
    ),
    "softmax": work("softmax", (spec(7, 50),), spec(7, 50)),
    "attention_of_views": attention(False),
    "attention_causal_mask": attention(True, spec(19, 19)),
}  # fmt: skip
