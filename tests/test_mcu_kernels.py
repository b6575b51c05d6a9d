"""Every kernel on every kind of core, on the emulated board, against the integer reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwprune.errors import LoweringError
from hwprune.lower.mcu.matmul import TALL, WIDE, pack
from hwprune.lower.mcu.model import lower_to_c
from hwprune.lower.mcu.scaling import scaling_of
from hwprune.mcu_program import make_vectors, random_inputs, run_on_emulator
from hwprune.quantize import graph as ops
from hwprune.quantize.arithmetic import quantize_multiplier, softmax_constants
from hwprune.quantize.graph import IntegerGraph, IntegerTensor
from hwprune.target import load_target

CORES = ("cortex-m4", "cortex-m55", "cortex-m0plus")


class Bench:
    """Operators side by side, each with inputs and an output of its own, in one network."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.tensors: list[IntegerTensor] = []
        self.operators: list[ops.Operator] = []

    def tensor(self, *shape: int, dtype: str = "int8") -> IntegerTensor:
        name = f"t{len(self.tensors)}"
        made = IntegerTensor(name, (1, *shape), dtype, 0.05, int(self.rng.integers(-128, 128)))
        self.tensors.append(made)
        return made

    def add(
        self, kind: type, inputs: list[IntegerTensor], y: IntegerTensor, **more: object
    ) -> None:
        name = f"{kind.kind}_{len(self.operators)}"
        names = tuple(t.name for t in inputs)
        self.operators.append(kind(name, names, y.name, f"test:{name}", **more))

    def scales(self, count: int, real: float) -> dict[str, np.ndarray]:
        spread = real * self.rng.uniform(0.3, 1.0, count)
        pairs = [quantize_multiplier(float(value)) for value in spread]
        return {
            "multiplier": np.array([m for m, _ in pairs], np.int32),
            "shift": np.array([s for _, s in pairs], np.int32),
        }

    def conv(
        self, size: tuple[int, int, int], outputs: int, kernel: tuple[int, int], *,
        stride: tuple[int, int] = (1, 1), pads: tuple[int, int, int, int] = (0, 0, 0, 0),
        dilation: tuple[int, int] = (1, 1), groups: int = 1, real: float = 2e-3,
        clamp: tuple[int, int] = (-128, 127),
    ) -> None:  # fmt: skip
        h, w, channels = size
        out = [
            (n + a + b - (k - 1) * d - 1) // s + 1
            for n, a, b, k, d, s in zip(
                (h, w), pads[:2], pads[2:], kernel, dilation, stride, strict=True
            )
        ]
        shape = (outputs, *kernel, channels // groups)
        self.add(
            ops.Conv2d, [self.tensor(*size)], self.tensor(*out, outputs),
            weight=self.rng.integers(-127, 128, shape).astype(np.int8),
            bias=self.rng.integers(-20000, 20000, outputs).astype(np.int32),
            **self.scales(outputs, real), stride=stride, padding=pads, dilation=dilation,
            groups=groups, clamp=clamp,
        )  # fmt: skip

    def graph(self) -> IntegerGraph:
        made = {op.output for op in self.operators}
        inputs = tuple(t.name for t in self.tensors if t.name not in made)
        outputs = tuple(op.output for op in self.operators)
        return IntegerGraph("bench", tuple(self.tensors), tuple(self.operators), inputs, outputs)


def convolutions(bench: Bench) -> None:
    bench.conv((5, 5, 8), 6, (1, 1))
    bench.conv((3, 3, 32), 5, (1, 1), real=0.9)  # an odd width; positions no multiple of four
    bench.conv((1, 1, 7), 9, (1, 1))  # one position
    bench.conv((1, 3, 6), 3, (1, 1))
    bench.conv((7, 6, 3), 8, (3, 3), pads=(1, 1, 1, 1), clamp=(-10, 100))
    bench.conv((9, 4, 1), 4, (5, 4), stride=(2, 2), pads=(2, 1, 2, 2))
    bench.conv((6, 6, 4), 2, (3, 3), pads=(2, 2, 2, 2), dilation=(2, 2))
    bench.conv((5, 6, 8), 6, (3, 1), stride=(1, 2), groups=2, pads=(1, 0, 1, 0))
    bench.conv((4, 4, 5), 1, (2, 3), pads=(0, 2, 1, 0))
    bench.conv((5, 5, 4), 4, (1, 1), real=3.0)  # shifted to the left
    rng = bench.rng
    for _ in range(6):
        kernel = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
        pads = tuple(int(rng.integers(0, k)) for k in (*kernel, *kernel))
        stride = (int(rng.integers(1, 3)), int(rng.integers(1, 3)))
        size = (int(rng.integers(3, 8)), int(rng.integers(3, 8)), int(rng.integers(1, 13)))
        bench.conv(size, int(rng.integers(1, 11)), kernel, stride=stride, pads=pads)


def depthwise(bench: Bench) -> None:
    for size, kernel, more in (
        ((6, 5, 8), (3, 3), {"pads": (1, 1, 1, 1)}),
        ((6, 8, 3), (3, 3), {"pads": (1, 1, 1, 1), "stride": (2, 2)}),
        ((7, 7, 5), (5, 5), {"pads": (2, 2, 2, 2)}),
        ((7, 1, 4), (3, 3), {"pads": (1, 1, 1, 1)}),
        ((7, 9, 2), (3, 3), {"pads": (2, 2, 2, 2), "dilation": (2, 2)}),
        ((4, 9, 6), (1, 4), {"pads": (0, 3, 0, 0), "stride": (1, 3)}),
        ((8, 8, 4), (2, 3), {"dilation": (3, 1), "pads": (0, 1, 0, 1)}),
        ((7, 7, 3), (3, 3), {"pads": (0, 0, 1, 1), "stride": (2, 2)}),
        ((5, 6, 20), (3, 3), {"pads": (1, 1, 1, 1), "clamp": (-20, 90)}),
        ((8, 7, 32), (3, 2), {"pads": (1, 2, 0, 1), "stride": (2, 1), "dilation": (1, 2)}),
        ((3, 2, 16), (1, 1), {"real": 3.0}),
    ):
        bench.conv(size, size[2], kernel, groups=size[2], **{"real": 5e-3, **more})
    bench.conv((5, 5, 3), 6, (3, 3), groups=3, pads=(1, 1, 1, 1))  # two outputs a channel


def others(bench: Bench) -> None:
    clamp = (-128, 127)
    for features, outputs in ((33, 10), (64, 4), (1, 3)):
        bench.add(
            ops.Linear, [bench.tensor(features)], bench.tensor(outputs),
            weight=bench.rng.integers(-127, 128, (outputs, features)).astype(np.int8),
            bias=bench.rng.integers(-500, 500, outputs).astype(np.int32),
            **bench.scales(outputs, 4e-3), clamp=clamp,
        )  # fmt: skip
    pairs = [quantize_multiplier(r) for r in (0.4, 0.31, 1e-5 * 0.2)]
    m, s = (tuple(column) for column in zip(*pairs, strict=True))
    shape = (3, 5, 4)
    bench.add(ops.Add, [bench.tensor(*shape), bench.tensor(*shape)], bench.tensor(*shape),
              multiplier=m, shift=s, clamp=(-100, 90))  # fmt: skip
    product = dict(zip(("multiplier", "shift"), quantize_multiplier(7e-3), strict=True))
    bench.add(ops.Mul, [bench.tensor(*shape), bench.tensor(*shape)], bench.tensor(*shape),
              **product, clamp=clamp)  # fmt: skip
    bench.add(ops.Mul, [bench.tensor(*shape), bench.tensor(1, 1, 4)], bench.tensor(*shape),
              **product, clamp=clamp)  # fmt: skip
    for kind in (ops.MaxPool, ops.AvgPool):
        x = bench.tensor(7, 6, 3)
        y = bench.tensor(4, 3, 3)
        bench.tensors[-1] = y = IntegerTensor(y.name, y.shape, y.dtype, x.scale, x.zero_point)
        bench.add(kind, [x], y, kernel=(3, 2), stride=(2, 2), padding=(1, 0, 1, 0), clamp=clamp)
    mean = dict(zip(("multiplier", "shift"), quantize_multiplier(0.02), strict=True))
    bench.add(ops.Mean, [bench.tensor(5, 5, 6)], bench.tensor(6), **mean, clamp=clamp)
    parts = [bench.tensor(3, 2, 4), bench.tensor(3, 2, 1)]
    bench.add(ops.Concat, parts, bench.tensor(3, 2, 5), axis=3)
    bench.add(
        ops.Pad, [bench.tensor(2, 3, 2)], bench.tensor(5, 4, 2), padding=(2, 0, 1, 1), value=-7
    )
    bench.add(ops.Transpose, [bench.tensor(2, 3, 4)], bench.tensor(4, 2, 3), axes=(0, 3, 1, 2))
    bench.add(ops.Reshape, [bench.tensor(2, 6)], bench.tensor(3, 4))
    table = bench.rng.integers(-128, 128, 256).astype(np.int8)
    bench.add(ops.Lookup, [bench.tensor(40)], bench.tensor(40), table=table, function="random")
    slopes = bench.rng.integers(-127, 128, 4).astype(np.int8)
    (ma, sa), (mb, sb) = quantize_multiplier(0.8), quantize_multiplier(6e-3)
    bench.add(ops.Prelu, [bench.tensor(3, 3, 4)], bench.tensor(3, 3, 4), slope=slopes,
              multiplier=(ma, mb), shift=(sa, sb), clamp=clamp)  # fmt: skip
    for scale in (0.05, 0.4):
        multiplier, shift, least = softmax_constants(scale)
        x, y = bench.tensor(3, 11), bench.tensor(3, 11)
        bench.tensors[-1] = y = IntegerTensor(y.name, y.shape, y.dtype, 1 / 256, -128)
        bench.add(ops.Softmax, [x], y, multiplier=multiplier, shift=shift, diff_min=least)
    larger = dict(zip(("multiplier", "shift"), quantize_multiplier(1.7), strict=True))
    bench.add(ops.Requantize, [bench.tensor(9)], bench.tensor(9), clamp=clamp, **larger)
    bench.add(ops.Quantize, [bench.tensor(50, dtype="float32")], bench.tensor(50))
    bench.add(ops.Dequantize, [bench.tensor(50)], bench.tensor(50, dtype="float32"))


@pytest.mark.parametrize("core", CORES)
def test_kernels_are_the_reference_bit_for_bit(core: str, tmp_path: Path) -> None:
    bench = Bench(seed=9)
    for part in (convolutions, depthwise, others):
        part(bench)
    target = load_target(core)
    model = lower_to_c(bench.graph(), target)
    vectors = make_vectors(model, random_inputs(model, 3))
    assert all(len(np.unique(made)) > 1 for made in vectors.outputs)
    run = run_on_emulator(model, target, vectors, tmp_path)
    assert [bench.operators[i].name for i in run.differing] == []
    assert run.bit_exact
    assert run.count == 3


def test_packed_weights_lie_as_they_are_read() -> None:
    weight = np.arange(2 * 4, dtype=np.int8).reshape(2, 4)
    assert pack(weight, WIDE).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert pack(weight, TALL).tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 0, 0, 0, 0, 0, 0, 0, 0]


def test_sums_beyond_32_bits_are_refused() -> None:
    bench = Bench(0)
    bench.conv((1, 1, 4), 2, (1, 1))
    op = bench.operators[0]
    op.bias[:] = 2**31 - 1
    with pytest.raises(LoweringError, match=r"test:conv2d_0: sums of products .* 32 bits"):
        lower_to_c(bench.graph(), load_target("cortex-m4"))


class Novel(ops.Operator):
    kind = "novel"


def test_an_operator_without_kernel_is_named() -> None:
    x, y = (IntegerTensor(name, (1, 4)) for name in "xy")
    graph = IntegerGraph("g", (x, y), (Novel("n", ("x",), "y", "model.py:7"),), ("x",), ("y",))
    with pytest.raises(LoweringError, match=r"model.py:7: there is no kernel for novel"):
        lower_to_c(graph, load_target("cortex-m4"))


def test_only_shifts_in_range_take_the_fast_way() -> None:
    bench = Bench(0)
    bench.conv((1, 1, 4), 2, (1, 1), real=1e-3)
    op = bench.operators[0]
    assert scaling_of(op, 0, 1 << 20).fast
    assert not scaling_of(op, 0, 1 << 30).fast
    op.shift[0] = 0
    assert not scaling_of(op, 0, 1 << 20).fast
    op.multiplier[0] = 0  # a silent channel: any shift will do
    assert scaling_of(op, 0, 1 << 20).fast
